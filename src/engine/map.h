/* SPDX-License-Identifier: MIT */
/*
 * map: what a whole chain says about a guest range.
 *
 *	      0	     64K    128K    192K    256K
 *	top   | data |      |	    | zero |	   depth 0
 *	base  | xxxx | xxxx |	    |		   depth 1, shorter than top: what it lacks is top's
 *	=	0      1      1       0       	   … and reads as zeros
 *
 * Depth and presence are those of `qemu-img map`: a range that nobody holds belongs to the deepest layer
 * that is long enough to have been asked.
 */
#ifndef QK_ENGINE_MAP_H
#define QK_ENGINE_MAP_H

#include "engine/lookup.h"

struct qk_map_request {
	struct qcow_image *image;
	qk_goff off;
	uint64_t len; /* > 0, within the image */
	uint32_t max_depth; /* 0 = the image alone, UINT32_MAX = the chain */
	bool may_block; /* false: QK_RUN_BLOCKED rather than read metadata */
};

/* The longest run at rq->off with one answer of the chain. QK_RUN_UNALLOCATED: no layer down to max_depth
 * holds it; it reads as zeros where max_depth covered the chain. The work is proportional to the answer, in
 * each layer. Errors and locking as qk_lookup. */
enum qcow_status qk_map_find(
	const struct qk_map_request *rq, struct qk_run *out, struct qcow_error *err);

/*
 * Split-phase reading: begin says where the bytes are, the caller moves them, end releases.
 *
 * At most QK_READ_RUNS runs from `off` on; they cover [off, off + covered). Where metadata would have to
 * be read and may_block is false, `covered` is what the cache knew, maybe 0, and is_blocked says so.
 * A range that fails ends the runs before it; begin fails only where the first byte does.
 * Between begin and end, nothing that the runs name is handed out again.
 */
#define QK_READ_RUNS 16U

struct qk_read {
	struct qcow_image *image;
	uint64_t off, covered;
	bool is_blocked;
	unsigned epoch; /* of an image that is open for writing */
	unsigned n;
	struct qk_run runs[QK_READ_RUNS];
};

enum qcow_status qk_read_begin(
	const struct qk_map_request *rq, struct qk_read *out, struct qcow_error *err);

/* Every begin that succeeded is ended once, before the image is closed. */
void qk_read_end(struct qk_read *read);

/* qcow_map. */
enum qcow_status qk_map_extent(
	const struct qk_map_request *rq, struct qcow_extent *out, struct qcow_error *err);

#endif
