/* SPDX-License-Identifier: MIT */
/*
 * write: guest data from the caller's memory into the top layer.
 */
#ifndef QK_ENGINE_WRITE_H
#define QK_ENGINE_WRITE_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "engine/lookup.h"

/*
 * Split-phase writing in place: begin says where the bytes belong, the caller moves them (all of them, or it says so),
 * end releases. Runs are QK_RUN_PLAIN and cover [off, off + covered). covered 0: the first byte cannot be
 * written in place (needs_remap: use qk_write), or the metadata is not cached and may_block was false
 * (is_blocked). Of an encrypted image nothing is covered. Nothing that the runs name is handed out again before the end.
 * Errors as qk_lookup, the fence's, QCOW_E_CORRUPT where a run lies on metadata.
 */
#define QK_WRITE_RUNS 16U

struct qk_write {
	struct qcow_image *image;
	uint64_t off, covered;
	bool is_blocked, needs_remap;
	unsigned epoch;
	unsigned n;
	struct qk_run runs[QK_WRITE_RUNS];
};

struct qk_write_range {
	struct qcow_image *image; /* open for writing */
	qk_goff off;
	uint64_t len; /* > 0, within the image */
	bool may_block;
};

enum qcow_status qk_write_begin(const struct qk_write_range *range, struct qk_write *out,
	struct qcow_error *err) QK_MUST_USE;
/* Every begin that succeeded is ended once. */
void qk_write_end(struct qk_write *write);

/* qcow_pwritev without its flags: `n_iov` buffers, one after the other, to `off` on. The range lies within the
 * disk. Any thread. */
enum qcow_status qk_write(struct qcow_image *image, const struct iovec *iov, int n_iov,
	uint64_t off, struct qcow_error *err) QK_MUST_USE;

/* qcow_flush, and what it set free in a data file goes back to the host. The caller holds no lock. Errors as
 * qk_publish_flush. */
enum qcow_status qk_write_flush(struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;

#endif
