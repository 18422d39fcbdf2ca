/* SPDX-License-Identifier: MIT */
/*
 * lookup: what one layer says about a guest range, as the longest run with one answer.
 */
#ifndef QK_ENGINE_LOOKUP_H
#define QK_ENGINE_LOOKUP_H

#include <qcowkit/qcowkit.h>

#include "base/num.h"

enum qk_run_kind {
	QK_RUN_BLOCKED, /* the metadata is not cached and the caller must not wait for it */
	QK_RUN_UNALLOCATED, /* this layer does not say: ask the one below */
	QK_RUN_ZERO, /* reads as zeros */
	QK_RUN_PLAIN, /* len bytes at host_off of store; past the store's end they are zeros */
	QK_RUN_COMPRESSED /* (part of) one cluster, compressed in compressed_bytes at host_off of store */
};

struct qk_run {
	enum qk_run_kind kind;
	bool has_host; /* host_off is valid: always for PLAIN and COMPRESSED; a preallocated
				     cluster of a ZERO or (extended L2) UNALLOCATED run */
	uint32_t depth; /* of layer, 0 = the image asked */
	uint32_t compressed_bytes;
	qk_goff guest;
	uint64_t len; /* > 0 unless BLOCKED */
	qk_hoff host_off;
	struct qcow_store *store; /* that host_off belongs to */
	struct qcow_image *layer;
};

/* Does `next` continue `run`: the same kind and layer, host offsets that follow? Compressed never does. */
bool qk_run_continues(const struct qk_run *run, const struct qk_run *next);

/*
 * The longest run of `layer` at `off`, at most len (> 0) bytes; [off, off + len) lies within the layer's
 * size. Costs no more than reading the entries of the run, absent L2 tables counting as one entry.
 * A bad entry ends the run before it; where it is the first: QCOW_E_CORRUPT with finding, host_off of the
 * entry and guest_off of the cluster. QCOW_E_IO with TABLE_READ_FAILED, QCOW_E_NOMEM. depth is set to 0.
 * Any thread; takes no lock where the metadata is cached.
 */
enum qcow_status qk_lookup(struct qcow_image *layer, qk_goff off, uint64_t len, bool may_block,
	struct qk_run *out, struct qcow_error *err);

/* The same, of a qcow2 layer, wherever the disk ends: off + len is below 2^63. Past the L1 table nothing is allocated. */
enum qcow_status qk_lookup_past(struct qcow_image *layer, qk_goff off, uint64_t len,
	struct qk_run *out, struct qcow_error *err);

/* The same for a writer: QK_RUN_PLAIN is what may be overwritten in place (one reference, COPIED), everything else is
 * QK_RUN_UNALLOCATED, whatever it holds. */
enum qcow_status qk_lookup_writable(struct qcow_image *layer, qk_goff off, uint64_t len,
	bool may_block, struct qk_run *out, struct qcow_error *err);

#endif
