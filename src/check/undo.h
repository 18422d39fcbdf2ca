/* SPDX-License-Identifier: MIT */
/*
 * undo: the bytes that a repair replaces, saved so that they can be put back.
 *
 *	0   "qcowundo"  8   version 2  16  bytes of the image before  24  bytes of sector 0 that follow, 512
 *	32  digest of this head        40  zeros    512  sector 0 of the image before
 *	1024  records (undo_record.h)
 *
 * A record is durable before anything that it saves is replaced. It has the sectors as they are and digests of what they
 * will be, those past the end of the image too, so that each state of each sector that the repair goes through is
 * known, and an image that anybody else has written to is told from one that the repair left. The last record says how
 * long the image was in the end: without it the repair was cut short.
 */
#ifndef QK_CHECK_UNDO_H
#define QK_CHECK_UNDO_H

#include <qcowkit/store.h>

#include "base/err.h"

#define QK_UNDO_MAX_PENDING 256U

/* A write that waits in qk_undo.pending. */
struct qk_undo_pending {
	uint64_t off;
	size_t len;
};

struct qk_undo {
	struct qcow_store *log; /* NULL: nothing is saved */
	struct qcow_store *image;
	uint64_t image_size; /* as it was: what lies beyond is not saved */
	uint64_t at; /* where the next record goes */
	bool is_dirty; /* something is not yet durable */
	/* of the store below: what is saved, and will be written when that is durable; in the order of the calls */
	uint8_t *pending; /* their bytes, one after the other */
	struct qk_undo_pending parts[QK_UNDO_MAX_PENDING];
	unsigned n_parts;
	size_t pending_bytes;
};

/* Write the head. `log` NULL makes every other call do nothing. QCOW_E_INVAL (log is not empty), QCOW_E_NOMEM, errors of
 * both stores. */
enum qcow_status qk_undo_begin(struct qk_undo *u, struct qcow_store *log, struct qcow_store *image,
	struct qcow_error *err) QK_MUST_USE;

/* `iov` will be written at `off`: save what the image holds there, as far as it had that, in whole sectors. Two that
 * are saved before either is written have no sector in common. */
enum qcow_status qk_undo_save(struct qk_undo *u, const struct iovec *iov, int n, uint64_t off,
	struct qcow_error *err) QK_MUST_USE;
/* What was saved is durable afterwards. */
enum qcow_status qk_undo_sync(struct qk_undo *u, struct qcow_error *err) QK_MUST_USE;
/* The repair is done, all that it wrote is stable: so is this note afterwards. */
enum qcow_status qk_undo_end(struct qk_undo *u, struct qcow_error *err) QK_MUST_USE;

/* A store over the image, which it does not own: what is written is saved, durably, before it. Writes are gathered for that:
 * those that were not followed by another call than a write are on the image after qk_undo_drain only. QCOW_E_NOMEM. */
enum qcow_status qk_undo_store(
	struct qk_undo *u, struct qcow_store **out, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_undo_drain(struct qk_undo *u, struct qcow_error *err) QK_MUST_USE;
void qk_undo_release(struct qk_undo *u);

/* undo_apply.c. See qcow_repair_undo. */
enum qcow_status qk_undo_apply(
	struct qcow_store *image, struct qcow_store *log, struct qcow_error *err) QK_MUST_USE;

/* Its memory: what is known of sectors at once, and places in `log` that are remembered. Both for tests; more of either is
 * gone through in parts. */
struct qk_undo_bounds {
	size_t max_states, max_marks;
};
enum qcow_status qk_undo_apply_within(struct qcow_store *image, struct qcow_store *log,
	const struct qk_undo_bounds *bounds, struct qcow_error *err) QK_MUST_USE;

#endif
