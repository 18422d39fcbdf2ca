/* SPDX-License-Identifier: MIT */
/*
 * control: the frame of every operation that manages an open image. Between begin and end the operation is alone: reads
 * and writes wait, nothing is staged, and the disk holds what memory holds.
 *
 *	QK_TRY(qk_control_begin(image, err));
 *	status = make new tables in clusters from image->rw->space; nothing in use changes
 *	if (status == QCOW_OK)
 *		status = qk_control_switch(image, patches, n, 0, err);
 *	(give back what was taken, where the switch did not come to pass: see below)
 *	status = qk_control_end(image, status == QCOW_OK ? QK_RELOAD_HEADER : 0, status, err);
 *
 * In between, image->rw->space belongs to the caller: take, raise, drop, give_back, publish_begin/link/done, write_header;
 * so do qk_track_…, qk_zero and the other engine calls, but none that passes image->rw->gate (the api room's).
 * Invariant 9 of doc/ARCHITECTURE.md.
 */
#ifndef QK_ENGINE_CONTROL_H
#define QK_ENGINE_CONTROL_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "engine/space.h"

/*
 * Waits for the calls that are under way and holds new ones back. Publishes everything, drops what was unlinked, gives
 * reservations back, stores the tracked bitmaps (they are not in use, and none is tracked until the end), and writes
 * every refcount: afterwards disk == memory. QCOW_E_READONLY, QCOW_E_NOTSUP (no qcow2 image), errors of a flush; the
 * image goes on as before, and no end follows.
 */
enum qcow_status qk_control_begin(struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;

/* Everything that was written, and the refcounts of everything taken or raised so far, become stable: one barrier, two
 * where refcount blocks are new. For operations of several steps. A failed flush fences. */
enum qcow_status qk_control_barrier(struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;

enum {
	QK_SWITCH_SHADOW =
		1 /* a whole new refcount structure comes with it: the present one is not written any more */
};

/*
 * The barrier; one write of sector 0 with all `n` patches; a flush. Afterwards the change is stable, and what nothing names
 * any more may be dropped.
 * A failure of the barrier is one of qk_control_barrier: what was taken may be given back, unless the fence is up
 * (qk_control_is_fenced). A failure after that fences, and both the old and the new clusters stay as they are;
 * qcow_recover then writes sector 0 as it was before.
 */
enum qcow_status qk_control_switch(struct qcow_image *image, const struct qk_header_patch *patches,
	unsigned n, unsigned flags, struct qcow_error *err) QK_MUST_USE;

bool qk_control_is_fenced(const struct qcow_image *image);

enum {
	QK_RELOAD_HEADER = 1, /* header, extensions, names, size, L1, snapshots, bitmaps */
	QK_RELOAD_SPACE = 2, /* the refcount structure too, and the clusters that are free */
	QK_RELOAD_KEEP =
		4 /* for an operation that failed before its switch: memory counts, for entries may be staged. A recovery
		     then publishes them, and reads nothing again */
};

/*
 * Reload what the disk has, where the operation changed it; then the data plane goes on, and enabled bitmaps are tracked.
 * What was dropped after the switch is published by the next flush. Answers `status`; where that was QCOW_OK and
 * the reload failed: its error, the operation itself is done and stable, and the image is fenced until qcow_recover.
 */
enum qcow_status qk_control_end(struct qcow_image *image, unsigned reload, enum qcow_status status,
	struct qcow_error *err) QK_MUST_USE;

/* The first part of qcow_recover: puts sector 0 and what is in memory in order. Nothing, where no operation failed. */
enum qcow_status qk_control_recover(struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;

#endif
