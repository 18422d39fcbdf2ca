/* SPDX-License-Identifier: MIT */
/*
 * resize: see resize.h. Coordinates; what is done is in the other files.
 *
 *	grow	entries past the old end unlinked || L1 of the new length || the tail of the last cluster zeroed, a longer layer
 *		below hidden, clusters preallocated || bitmaps || size, in one write of sector 0
 *	shrink	bitmaps || size || entries past the new end unlinked, what they named is free || the tail zeroed, the data file
 *		cut; the close cuts the file
 *
 * What lies past the old end is nobody's: until the size is written, a crash leaves the disk as it was. What a shrink that
 * was cut short leaves past the end is what a grow begins with.
 * A data file follows the disk: resize_file.c.
 * Where the bitmaps extension lies past sector 0 the header goes to the disk by engine/header_store.h, whose first
 * step holds both.
 *
 * Invariant: 9 of doc/ARCHITECTURE.md. Locking: engine/control.h; a raw image is closed by its gate.
 */
#include "engine/resize_private.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "engine/control.h"
#include "engine/header_store.h"
#include "engine/image.h"
#include "engine/locks.h"
#include "engine/log.h"
#include "engine/publish.h"
#include "engine/rw.h"

#define HEADER_SIZE_OFF 24U
#define EXT_DIRECTORY	16U /* offset of the directory in the bitmaps extension's data */

enum qcow_status qk_resize_step(
	const struct qcow_progress *progress, uint64_t done, uint64_t total, struct qcow_error *err)
{
	if (progress == NULL)
		return QCOW_OK;
	if (progress->cancelled != NULL && progress->cancelled(progress->ctx))
		return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
	if (progress->report != NULL && total != 0)
		progress->report(progress->ctx, done, total);
	return QCOW_OK;
}

/* ---- what may be done ---- */

static enum qcow_status judge_request(
	const struct qcow_image *image, const struct qk_resize_request *rq, struct qcow_error *err)
{
	if (rq->size > QK_MAX_SIZE)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"a disk has at most %" PRIu64 " bytes, not %" PRIu64, (uint64_t)QK_MAX_SIZE,
			rq->size);
	if (rq->size < image->size && !rq->may_shrink)
		return QK_FAIL(err, QCOW_E_INVAL,
			"%" PRIu64 " bytes are less than the disk has (%" PRIu64
			"), and shrinking was not asked for",
			rq->size, image->size);
	if (rq->size < image->size && rq->preallocation != QCOW_PREALLOC_OFF)
		return QK_FAIL(err, QCOW_E_INVAL, "preallocation is for disks that grow");
	return QCOW_OK;
}

struct snapshot_judging {
	enum qcow_status status;
	struct qcow_error *err;
};

static bool judge_snapshot(
	void *ctx, uint32_t index, const struct qcow_snapshot *s, unsigned finding)
{
	struct snapshot_judging *j = ctx;
	(void)index;
	(void)finding;
	if (!s->has_disk_size)
		j->status = QK_FAIL(j->err, QCOW_E_UNSUPPORTED,
			"snapshot '%s' does not say how large its disk is, so the disk cannot "
			"change",
			s->name);
	return j->status == QCOW_OK;
}

static enum qcow_status judge_snapshots(struct qcow_image *image, struct qcow_error *err)
{
	struct snapshot_judging j = {.err = err};
	if (image->header.n_snapshots == 0)
		return QCOW_OK;
	if (image->geometry.version < 3)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"a version 2 image with snapshots cannot be resized: they do not say how "
			"large their disks are");
	QK_TRY(qk_snapshots_each(image, judge_snapshot, &j, err));
	return j.status;
}

static enum qcow_status judge_qcow2(
	struct qcow_image *image, const struct qk_resize_request *rq, struct qcow_error *err)
{
	const struct qk_geometry *g = &image->geometry;
	uint64_t l1_bytes = qk_geometry_l1_entries(g, rq->size) * sizeof(uint64_t);
	if (l1_bytes > QK_MAX_L1_BYTES)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"a disk of %" PRIu64 " bytes would take an L1 table of %" PRIu64
			" bytes: at most %" PRIu64,
			rq->size, l1_bytes, (uint64_t)QK_MAX_L1_BYTES);
	if (image->is_snapshot_view)
		return QK_FAIL(err, QCOW_E_READONLY, "a snapshot is viewed read-only");
	if (rq->preallocation != QCOW_PREALLOC_OFF && image->crypt != NULL && g->version < 3)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"an encrypted image of version 2 cannot be preallocated: its clusters "
			"could not "
			"read as zeros");
	if (rq->size > image->size && image->backing == NULL && image->backing_name != NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"the backing file is not open: how much of it would show in a longer disk "
			"is "
			"not known");
	QK_TRY(qk_resize_data_judge(image, rq->size, err));
	QK_TRY(judge_snapshots(image, err));
	return qk_resize_bitmaps_judge(image, rq->size, err);
}

/* ---- the switch ---- */

/* Offset in the file of the bitmaps extension's directory offset. */
static uint64_t directory_field(const struct qcow_image *image)
{
	struct qk_ext ext;
	for (size_t at = 0; qk_ext_next(&image->ext, &at, &ext);)
		if (ext.type == QK_EXT_BITMAPS)
			return (uint64_t)(ext.data.p - image->cluster0) + EXT_DIRECTORY;
	return 0;
}

static enum qcow_status write_area(struct qcow_image *image, uint64_t size, uint64_t directory_off,
	bool *in_doubt, struct qcow_error *err)
{
	struct qk_header_area area = {0};
	QK_TRY(qk_control_barrier(image, err));
	enum qcow_status status = qk_header_store_load(image, &area, err);
	area.header.size = size;
	area.ext.bitmaps.directory_off = directory_off;
	*in_doubt = status == QCOW_OK;
	if (status == QCOW_OK)
		status = qk_header_store_write(image, &area, err);
	qk_header_store_release(&area);
	return status;
}

/* Does the bitmaps extension lie past sector 0? */
static bool writes_area(const struct qcow_image *image)
{
	return image->bitmaps.n != 0 && directory_field(image) > QK_SECTOR - sizeof(uint64_t);
}

/* The size and, where there are bitmaps, their new directory. */
static enum qcow_status write_size(struct qcow_image *image, uint64_t size,
	const struct qk_resize_bitmaps *bitmaps, bool *in_doubt, struct qcow_error *err)
{
	uint64_t at = bitmaps->directory_off != 0 ? directory_field(image) : 0;
	uint8_t size_bytes[8], directory_bytes[8];
	const struct qk_header_patch patches[] = {
		{.off = HEADER_SIZE_OFF, .len = sizeof(size_bytes), .bytes = size_bytes},
		{.off = (uint32_t)at, .len = sizeof(directory_bytes), .bytes = directory_bytes}};
	qk_store64(size_bytes, size);
	qk_store64(directory_bytes, bitmaps->directory_off);
	if (bitmaps->directory_off != 0 && writes_area(image))
		return write_area(image, size, bitmaps->directory_off, in_doubt, err);
	return qk_control_switch(image, patches, at != 0 ? 2 : 1, 0, err);
}

static enum qcow_status switch_size(struct qcow_image *image, uint64_t old_size, uint64_t size,
	bool *in_doubt, struct qcow_error *err)
{
	struct qk_resize_bitmaps bitmaps = {.image = image, .old_size = old_size, .new_size = size};
	enum qcow_status status = qk_resize_bitmaps_build(&bitmaps, err);
	if (status == QCOW_OK)
		status = write_size(image, size, &bitmaps, in_doubt, err);
	if (status == QCOW_OK)
		qk_resize_bitmaps_drop_old(&bitmaps);
	else if (!qk_control_is_fenced(image))
		qk_resize_bitmaps_give_back(&bitmaps);
	qk_resize_bitmaps_release(&bitmaps);
	return status;
}

/* ---- grow ---- */

static enum qcow_status grow_l1(struct qcow_image *image, uint64_t size, struct qcow_error *err)
{
	uint64_t n = qk_geometry_l1_entries(&image->geometry, size);
	if (n <= image->l1_entries)
		return QCOW_OK;
	qk_lock(&image->rw->tables_lock);
	enum qcow_status status = qk_publish_grow_l1(image->rw->publish, n, err);
	qk_unlock(&image->rw->tables_lock);
	return status;
}

/* What the new part holds. image->size is the end of its last cluster; with a data file, which may end there, that of the
 * disk. */
static enum qcow_status fill(struct qcow_image *image, uint64_t old_size,
	const struct qk_resize_request *rq, struct qcow_error *err)
{
	uint64_t cluster_size = image->geometry.cluster_size;
	const struct qk_resize_fill request = {
		.from = qk_div_up(old_size, cluster_size) * cluster_size,
		.to = qk_div_up(image->size, cluster_size) * cluster_size,
		.mode = rq->preallocation,
		.progress = rq->progress};
	QK_TRY(qk_resize_scrub(image, old_size, false, err));
	if (rq->preallocation != QCOW_PREALLOC_OFF)
		QK_TRY(qk_resize_allocate_tail(image, old_size, err));
	if (qk_resize_data_is_named(image, rq))
		return qk_resize_allocate(image, &request, err);
	if (image->backing == NULL || image->backing->size <= old_size)
		return QCOW_OK;
	uint64_t end = qk_div_up(image->backing->size, cluster_size) * cluster_size;
	return qk_resize_hide(image, request.from, qk_min(end, image->size), rq->progress, err);
}

/* As far as it can be: what stays past the end is put away by the next grow. */
static void undo_fill(struct qcow_image *image, uint64_t old_size, uint64_t old_data_file)
{
	if (qk_control_is_fenced(image) || qk_resize_unlink_past(image, old_size, NULL) != QCOW_OK)
		qk_log(image, QCOW_LOG_NOTE, 0,
			"clusters past the end of the disk stay allocated after a resize that "
			"failed");
	else
		qk_resize_data_restore(image, old_data_file);
}

static enum qcow_status grow(struct qcow_image *image, const struct qk_resize_request *rq,
	bool *in_doubt, struct qcow_error *err)
{
	uint64_t cluster_size = image->geometry.cluster_size, old_size = image->size;
	uint64_t old_data_file = UINT64_MAX;
	QK_TRY(qk_resize_judge_past(image, old_size, rq->progress, err));
	QK_TRY(qk_resize_unlink_past(image, old_size, err));
	QK_TRY(grow_l1(image, rq->size, err));
	image->size = image->geometry.data_file ? rq->size
						: qk_div_up(rq->size, cluster_size) * cluster_size;
	enum qcow_status status = qk_resize_data_extend(image, old_size, rq, &old_data_file, err);
	if (status == QCOW_OK)
		status = fill(image, old_size, rq, err);
	if (status == QCOW_OK)
		status = qk_publish_flush(image->rw->publish, err);
	image->size = old_size;
	if (status == QCOW_OK)
		status = switch_size(image, old_size, rq->size, in_doubt, err);
	if (status != QCOW_OK)
		undo_fill(image, old_size, old_data_file);
	return status;
}

/* ---- shrink ---- */

/* The disk is shorter. Whatever fails here leaves clusters that a later grow puts away. */
static void put_away(struct qcow_image *image, uint64_t size)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t cluster_size = image->geometry.cluster_size;
	enum qcow_status status = qk_resize_unlink_past(image, size, &err);
	if (status == QCOW_OK && image->geometry.data_file) {
		status = qk_resize_data_cut(image, size, &err);
	} else if (status == QCOW_OK) {
		image->size = qk_div_up(size, cluster_size) * cluster_size;
		status = qk_resize_scrub(image, size, true, &err);
	}
	image->size = size;
	if (!qk_control_is_fenced(image) && qk_publish_flush(image->rw->publish, &err) != QCOW_OK)
		status = err.status;
	if (status != QCOW_OK)
		qk_log(image, QCOW_LOG_WARNING, err.finding,
			"the disk was made shorter, but what lay past its new end could not all be "
			"put away: "
			"%s",
			err.message);
}

static enum qcow_status shrink(struct qcow_image *image, const struct qk_resize_request *rq,
	bool *in_doubt, struct qcow_error *err)
{
	uint64_t old_size = image->size;
	QK_TRY(qk_resize_judge_past(image, rq->size, rq->progress, err));
	QK_TRY(switch_size(image, old_size, rq->size, in_doubt, err));
	image->size = rq->size;
	put_away(image, rq->size);
	qk_space_let_cut(image->rw->space);
	return QCOW_OK;
}

static enum qcow_status resize_qcow2(
	struct qcow_image *image, const struct qk_resize_request *rq, struct qcow_error *err)
{
	/* the whole header area was being written: the disk says what became of it, and nothing is staged */
	bool in_doubt = false;
	QK_TRY(qk_control_begin(image, err));
	enum qcow_status status = rq->size > image->size ? grow(image, rq, &in_doubt, err)
							 : shrink(image, rq, &in_doubt, err);
	bool reads = status == QCOW_OK || in_doubt;
	return qk_control_end(image, reads ? QK_RELOAD_HEADER : QK_RELOAD_KEEP, status, err);
}

enum qcow_status qk_resize(
	struct qcow_image *image, const struct qk_resize_request *rq, struct qcow_error *err)
{
	QK_TRY(judge_request(image, rq, err));
	QK_TRY(image->is_raw ? qk_resize_raw_judge(image, rq, err) : judge_qcow2(image, rq, err));
	if (rq->is_dry && !image->is_raw && rq->size != image->size)
		return qk_resize_judge_past(
			image, qk_min(rq->size, image->size), rq->progress, err);
	if (rq->is_dry || rq->size == image->size)
		return QCOW_OK;
	return image->is_raw ? qk_resize_raw(image, rq, err) : resize_qcow2(image, rq, err);
}
