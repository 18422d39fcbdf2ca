/* SPDX-License-Identifier: MIT */
/*
 * resize_fill: what a disk that grows holds between its old end and the new one, before the header says that it is longer.
 * Nothing there is in use: entries were unlinked before.
 *
 *	a layer below is longer	      zero clusters over it; version 2: its data is overwritten with zeros
 *	preallocation=metadata	      entries with host clusters that read as zeros
 *	falloc, full		      … and whose blocks the host has, or has written
 * The last cluster of the old disk, where its end lies inside, is preallocated too, with what it holds.
 * A data file has its zeros already (resize_file.c): entries are made alone.
 * Zeros of the host are no zeros when decrypted: of an encrypted image the entries have the zero flag too.
 */
#include "engine/resize_private.h"

#include <inttypes.h>

#include "base/mem.h"
#include "engine/group.h"
#include "engine/image.h"
#include "engine/lookup.h"
#include "engine/read.h"
#include "engine/rw.h"
#include "engine/table.h"
#include "engine/write.h"
#include "engine/zero.h"

#define HIDE_BYTES (UINT64_C(1) << 30) /* between two looks at the caller */

enum qcow_status qk_resize_hide(struct qcow_image *image, uint64_t from, uint64_t to,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	for (uint64_t at = from; at < to;) {
		uint64_t n = qk_min(to - at, HIDE_BYTES);
		QK_TRY(qk_zero(image, at, n, 0, err));
		at += n;
		QK_TRY(qk_resize_step(progress, at - from, to - from, err));
	}
	return QCOW_OK;
}

/* ---- preallocation ---- */

/* The content of host clusters that were taken. */
static enum qcow_status fill_run(struct qcow_image *image, const struct qk_resize_fill *fill,
	const struct qk_space_run *run, struct qcow_error *err)
{
	uint64_t len = run->n * image->geometry.cluster_size;
	QK_TRY(qk_space_check_overlap(image->rw->space, QK_SPACE_DATA, run->off, len, err));
	if (fill->mode == QCOW_PREALLOC_FULL)
		return qk_resize_write_zeros(image->store, run->off, run->off + len, NULL, err);
	if (fill->mode == QCOW_PREALLOC_FALLOC)
		return qcow_store_zero(image->store, run->off, len, QCOW_ZERO_ALLOCATE, err);
	return run->reads_zero ? QCOW_OK : qcow_store_zero(image->store, run->off, len, 0, err);
}

static enum qcow_status link_run(struct qk_group *group, uint32_t first,
	const struct qk_space_run *run, struct qcow_error *err)
{
	const struct qcow_image *image = group->image;
	const struct qk_geometry *g = &image->geometry;
	bool needs_flag = image->crypt != NULL;
	struct qk_stage_change change;
	qk_group_change(group, &change, first, (uint32_t)run->n);
	change.needs_barrier = true;
	for (uint32_t i = 0; i < run->n; i++) {
		struct qk_l2_entry e = {.type = needs_flag ? QK_L2_ZERO_ALLOC : QK_L2_NORMAL,
			.host_off.v = run->off + i * g->cluster_size,
			.copied = true};
		if (g->extended_l2)
			*(needs_flag ? &e.zero : &e.alloc) = UINT32_MAX;
		qk_group_put(group, &change, first + i, &e);
	}
	return qk_group_commit(group, &change, err);
}

/* Entries [first, end) of a group name their places in a data file, which has zeros there. */
static enum qcow_status link_in_data_file(
	struct qk_group *group, uint32_t *first, uint32_t end, struct qcow_error *err)
{
	const struct qk_space_run run = {
		.off = group->guest.v + ((uint64_t)*first << group->image->geometry.cluster_bits),
		.n = end - *first};
	QK_TRY(link_run(group, *first, &run, err));
	*first = end;
	return QCOW_OK;
}

/* Entries [first, end) of a group, of which as many as one run has clusters for; *near is where the next one goes on. */
static enum qcow_status allocate_some(struct qk_group *group, const struct qk_resize_fill *fill,
	uint32_t *first, uint32_t end, uint64_t *near, struct qcow_error *err)
{
	struct qcow_image *image = group->image;
	const struct qk_space_want want = {.n = end - *first, .near = *near, .kind = QK_SPACE_DATA};
	struct qk_space_run run = {0};
	if (image->geometry.data_file)
		return link_in_data_file(group, first, end, err);
	QK_TRY(qk_table_take(image, &want, &run, err));
	enum qcow_status status = fill_run(image, fill, &run, err);
	if (status == QCOW_OK)
		status = link_run(group, *first, &run, err);
	if (status != QCOW_OK) {
		qk_space_give_back(image->rw->space, run.off, run.n);
		return status;
	}
	*first += (uint32_t)run.n;
	*near = run.off + run.n * image->geometry.cluster_size;
	return QCOW_OK;
}

static enum qcow_status allocate_group(struct qcow_image *image, const struct qk_resize_fill *fill,
	uint64_t off, uint64_t end, uint64_t *near, struct qcow_error *err)
{
	struct qk_group group;
	enum qcow_status status = QCOW_OK;
	QK_TRY(qk_group_lock(image, (qk_goff){off}, &group, err));
	uint32_t first = (uint32_t)((off - group.guest.v) >> image->geometry.cluster_bits);
	uint32_t stop = (uint32_t)((end - group.guest.v) >> image->geometry.cluster_bits);
	while (status == QCOW_OK && first < stop)
		status = allocate_some(&group, fill, &first, stop, near, err);
	qk_group_unlock(&group);
	return status;
}

enum qcow_status qk_resize_allocate_tail(
	struct qcow_image *image, uint64_t old_size, struct qcow_error *err)
{
	uint64_t cluster_size = image->geometry.cluster_size;
	uint64_t off = old_size - old_size % cluster_size;
	uint64_t len = qk_min(cluster_size, image->size - off);
	struct qk_run run;
	if (off == old_size)
		return QCOW_OK;
	QK_TRY(qk_lookup(image, (qk_goff){off}, len, true, &run, err));
	if (run.kind == QK_RUN_PLAIN && run.len == len)
		return QCOW_OK;
	uint8_t *whole QK_AUTO_FREE = qk_malloc(len, 1);
	const struct iovec iov = {whole, (size_t)len};
	if (whole == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qk_read(image, whole, (size_t)len, off, err));
	return qk_write(image, &iov, 1, off, err);
}

enum qcow_status qk_resize_allocate(
	struct qcow_image *image, const struct qk_resize_fill *fill, struct qcow_error *err)
{
	uint64_t span = qk_group_span(image), near = 0;
	for (uint64_t at = fill->from; at < fill->to;) {
		uint64_t end = qk_min(fill->to, at - at % span + span);
		QK_TRY(allocate_group(image, fill, at, end, &near, err));
		at = end;
		QK_TRY(qk_resize_step(fill->progress, at - fill->from, fill->to - fill->from, err));
	}
	return QCOW_OK;
}
