/* SPDX-License-Identifier: MIT */
/*
 * publish: what was written becomes stable. One publication at a time; calls that come while one is under way
 * share the next.
 */
#ifndef QK_ENGINE_PUBLISH_H
#define QK_ENGINE_PUBLISH_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"

struct qk_publish;

/* Reads the L1 table. QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status qk_publish_new(
	struct qcow_image *image, struct qk_publish **out, struct qcow_error *err) QK_MUST_USE;
/* Frees memory, writes nothing. NULL is allowed. */
void qk_publish_free(struct qk_publish *p);

/* Everything that returned before is stable. Takes the publish lock; the caller is in no epoch. Any thread.
 * QCOW_E_NOSPC, QCOW_E_NOMEM: not all was published, the next call does it all again; other failures fence, where it is not
 * known what is on the disk. */
enum qcow_status qk_publish_flush(struct qk_publish *p, struct qcow_error *err) QK_MUST_USE;

/* qcow_recover. */
enum qcow_status qk_publish_recover(struct qk_publish *p, struct qcow_error *err) QK_MUST_USE;

/* Publish, then give the L1 table room for n entries, in a new place. The caller holds tables_lock. */
enum qcow_status qk_publish_grow_l1(
	struct qk_publish *p, uint64_t n, struct qcow_error *err) QK_MUST_USE;

/* `write` changes metadata that is in use, alone and behind a barrier of its own. With `has_targets` everything that was
 * taken before, refcounts and content, is stable first. Takes the publish lock; `write` takes none but the space's.
 * Failures of `write` and of flushes fence; but where nothing is named that was taken, a want of room does not: the caller does
 * it again. */
enum qcow_status qk_publish_through(struct qk_publish *p, bool has_targets,
	enum qcow_status (*write)(void *ctx, struct qcow_error *err), void *ctx,
	struct qcow_error *err) QK_MUST_USE;

/* For an operation that is alone (control.h): refcounts of everything taken, raised or dropped so far, and what was written,
 * are stable. QCOW_E_NOSPC, QCOW_E_NOMEM: nothing was done; other failures as qk_publish_flush. */
enum qcow_status qk_publish_taken(struct qk_publish *p, struct qcow_error *err) QK_MUST_USE;
/* Flush the store; a failure fences. */
enum qcow_status qk_publish_barrier(struct qk_publish *p, struct qcow_error *err) QK_MUST_USE;
/* The L1 table of image->meta is the disk's from now on. Nothing is staged. QCOW_E_IO, QCOW_E_NOMEM: as it was. */
enum qcow_status qk_publish_reload(struct qk_publish *p, struct qcow_error *err) QK_MUST_USE;

#endif
