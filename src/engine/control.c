/* SPDX-License-Identifier: MIT */
/*
 * control: see control.h.
 *
 *	begin	gate closed || publication || tracked bitmaps stored || refcounts ||
 *	switch	barrier || sector 0 ||
 *	end	what the header names is read again; gate open
 *
 * A switch that failed leaves sector 0 as one of two. What is in memory is still the old one, nothing of which was given
 * away: qcow_recover writes the old sector 0 again. It is nowhere known, until then, which of the two a crash would show;
 * both are whole.
 *
 * Invariants: Q1 nothing is staged at begin and at the switch; Q2 a failed reload keeps the fence up.
 * Locking: the gate; under it everything of the data plane may be locked.
 */
#include "engine/control.h"

#include <string.h>

#include "engine/compress.h"
#include "engine/epoch.h"
#include "engine/gate.h"
#include "engine/hostmap.h"
#include "engine/image.h"
#include "engine/open.h"
#include "engine/publish.h"
#include "engine/rw.h"
#include "engine/stage.h"
#include "engine/track.h"

#define MAX_ROUNDS \
	4U /* of publications until nothing is left: a refcount table that was replaced is freed by the second */

bool qk_control_is_fenced(const struct qcow_image *image)
{
	return qk_fence_check(&image->rw->fence, NULL) != QCOW_OK;
}

/* ---- what the disk has ---- */

static void forget_streams(struct qcow_image *image)
{
	qk_compress_forget(image, 0, UINT64_MAX >> image->geometry.cluster_bits);
}

static enum qcow_status reload_space(struct qcow_image *image, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	struct qk_space *space = NULL;
	QK_TRY(qk_rw_make_space(image, NULL, &space, err));
	qk_space_follow_cut(space, rw->space);
	qk_space_free(rw->space);
	rw->space = space;
	return QCOW_OK;
}

static enum qcow_status reload_all(
	struct qcow_image *image, unsigned reload, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	QK_TRY(qk_layer_reload(image, err));
	QK_TRY(qk_publish_reload(rw->publish, err));
	if ((reload & QK_RELOAD_SPACE) != 0)
		QK_TRY(reload_space(image, err));
	else
		QK_TRY(qk_space_follow(rw->space, &image->header, err));
	qk_rw_follow_size(image);
	forget_streams(image);
	qk_hostmap_forget(image->hostmap);
	rw->has_below = image->backing != NULL || image->backing_name != NULL;
	return QCOW_OK;
}

/* Reload, and track the enabled bitmaps. A failure fences and is made good by a recovery. */
static enum qcow_status resume(struct qcow_image *image, unsigned reload, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	struct qcow_error own = QCOW_ERROR_INIT;
	bool reads = (reload & (QK_RELOAD_HEADER | QK_RELOAD_SPACE)) != 0;
	enum qcow_status status = reads ? reload_all(image, reload, &own) : QCOW_OK;
	if (status == QCOW_OK && rw->track == NULL)
		status = qk_track_new(image, &rw->track, &own);
	rw->pending.reload = status == QCOW_OK ? 0U : reads ? reload : reload | QK_RELOAD_KEEP;
	if (status == QCOW_OK)
		return QCOW_OK;
	qk_err_context(&own, "the metadata could not be read again");
	if (err != NULL)
		*err = own;
	return qk_fence_raise(&rw->fence, status, &own);
}

/* ---- begin ---- */

/* Every refcount is on the disk, and none is kept for later. */
static enum qcow_status settle(struct qcow_image *image, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	QK_TRY(qk_space_unreserve_all(rw->space, err));
	for (unsigned i = 0; qk_space_is_dirty(rw->space); i++) {
		if (i == MAX_ROUNDS)
			return QK_FAIL(err, QCOW_E_IO, "refcounts could not be settled");
		QK_TRY(qk_publish_taken(rw->publish, err));
	}
	return QCOW_OK;
}

/* The bitmaps that record writes are whole on the disk and out of use. */
static enum qcow_status store_bitmaps(struct qcow_image *image, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	bool is_in_use = qk_track_is_in_use(image);
	qk_space_sector0(rw->space, rw->pending.sector0);
	enum qcow_status status = qk_track_store(image, err);
	/* the header may name either directory: back to the one with the marks, which goes on to be tracked */
	rw->pending.puts_back = status != QCOW_OK && qk_control_is_fenced(image);
	QK_TRY(status);
	qk_track_free(rw->track);
	rw->track = NULL;
	/* the directory has moved */
	return is_in_use ? reload_all(image, QK_RELOAD_HEADER, err) : QCOW_OK;
}

static enum qcow_status publish_all(struct qcow_image *image, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	for (unsigned i = 0; i == 0 || qk_stage_has_unlinked(rw->stage); i++) {
		if (i == MAX_ROUNDS)
			return QK_FAIL(
				err, QCOW_E_IO, "clusters that were freed could not be settled");
		QK_TRY(qk_publish_flush(rw->publish, err));
	}
	QK_ASSERT(Q1, qk_stage_is_empty(rw->stage));
	qk_epoch_wait(rw->epoch);
	forget_streams(image);
	return QCOW_OK;
}

static enum qcow_status begin(struct qcow_image *image, struct qcow_error *err)
{
	QK_TRY(qk_fence_check(&image->rw->fence, err));
	QK_TRY(publish_all(image, err));
	QK_TRY(store_bitmaps(image, err));
	return settle(image, err);
}

static enum qcow_status judge(const struct qcow_image *image, struct qcow_error *err)
{
	if (image->rw == NULL)
		return QK_FAIL(err, QCOW_E_READONLY, "'%s' is not open for writing",
			qcow_store_name(image->store));
	if (image->is_raw)
		return QK_FAIL(err, QCOW_E_NOTSUP, "'%s' is not a qcow2 image",
			qcow_store_name(image->store));
	return QCOW_OK;
}

enum qcow_status qk_control_begin(struct qcow_image *image, struct qcow_error *err)
{
	QK_TRY(judge(image, err));
	qk_gate_close(image->rw->gate);
	enum qcow_status status = begin(image, err);
	if (status == QCOW_OK)
		return QCOW_OK;
	/* where the bitmaps were stored their directory has moved; the failure is told, that of going on is the fence's */
	unsigned reload = image->rw->track == NULL && image->bitmaps.n != 0 ? QK_RELOAD_HEADER : 0U;
	if (qk_control_is_fenced(image) || resume(image, reload, NULL) != QCOW_OK)
		image->rw->pending.reload |= reload;
	qk_gate_open(image->rw->gate);
	return status;
}

/* ---- switch ---- */

enum qcow_status qk_control_barrier(struct qcow_image *image, struct qcow_error *err)
{
	QK_TRY(qk_publish_taken(image->rw->publish, err));
	return qk_space_is_dirty(image->rw->space) ? settle(image, err) : QCOW_OK;
}

/* Sector 0 may be the one or the other. */
static enum qcow_status fence_switch(struct qcow_image *image, enum qcow_status status,
	const struct qcow_error *own, struct qcow_error *err)
{
	if (err != NULL)
		*err = *own;
	image->rw->pending.puts_back = true;
	return qk_fence_raise(&image->rw->fence, status, own);
}

enum qcow_status qk_control_switch(struct qcow_image *image, const struct qk_header_patch *patches,
	unsigned n, unsigned flags, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	struct qcow_error own = QCOW_ERROR_INIT;
	QK_ASSERT(Q1, qk_stage_is_empty(rw->stage));
	if ((flags & QK_SWITCH_SHADOW) != 0)
		QK_TRY(qk_publish_barrier(rw->publish, err));
	else
		QK_TRY(qk_control_barrier(image, err));
	qk_space_sector0(rw->space, rw->pending.sector0);
	enum qcow_status status = qk_space_write_patches(rw->space, patches, n, &own);
	if (status == QCOW_OK)
		status = qk_publish_barrier(rw->publish, &own);
	return status == QCOW_OK ? QCOW_OK : fence_switch(image, status, &own, err);
}

/* ---- end ---- */

enum qcow_status qk_control_end(
	struct qcow_image *image, unsigned reload, enum qcow_status status, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	if (qk_control_is_fenced(image))
		rw->pending.reload |= (reload & QK_RELOAD_KEEP) != 0 ? (unsigned)QK_RELOAD_KEEP
								     : reload | QK_RELOAD_HEADER;
	else if (status == QCOW_OK)
		status = resume(image, reload, err);
	else if (resume(image, reload, NULL) != QCOW_OK)
		QK_ASSERT_VOID(Q2, qk_control_is_fenced(image));
	qk_gate_open(rw->gate);
	return status;
}

/* ---- recovery ---- */

static enum qcow_status put_back(struct qcow_image *image, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	const struct qk_header_patch patch = {0, QK_SECTOR, rw->pending.sector0};
	QK_TRY(qk_space_write_header(rw->space, &patch, err));
	QK_TRY(qcow_store_flush(image->store, err));
	rw->pending.puts_back = false;
	return QCOW_OK;
}

enum qcow_status qk_control_recover(struct qcow_image *image, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	enum qcow_status status = QCOW_OK;
	qk_gate_close(rw->gate);
	if (rw->pending.puts_back)
		status = put_back(image, err);
	if (status == QCOW_OK && rw->pending.reload != 0)
		status = resume(image, rw->pending.reload, err);
	qk_gate_open(rw->gate);
	return status;
}
