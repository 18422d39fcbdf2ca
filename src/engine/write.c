/* SPDX-License-Identifier: MIT */
/*
 * write: see write.h.
 */
#include "engine/write.h"

#include "base/err.h"
#include "engine/data_file.h"
#include "engine/image.h"
#include "engine/iov.h"
#include "engine/publish.h"
#include "engine/put.h"
#include "engine/remap.h"
#include "engine/rw.h"
#include "engine/track.h"

/* A bad image may name metadata as data. */
static enum qcow_status check_overlap(
	struct qcow_image *image, const struct qk_run *run, struct qcow_error *err)
{
	return qk_rw_check_data(image, run->host_off.v, run->len, err);
}

static enum qcow_status find_runs(
	const struct qk_write_range *range, struct qk_write *out, struct qcow_error *err)
{
	qk_goff off = range->off;
	uint64_t left = range->len;
	while (out->n < QK_WRITE_RUNS && left != 0) {
		struct qk_run *run = &out->runs[out->n];
		enum qcow_status status = qk_lookup_writable(
			range->image, off, left, range->may_block, run, out->n == 0 ? err : NULL);
		if (status != QCOW_OK)
			return out->n == 0 ? status : QCOW_OK;
		out->is_blocked = run->kind == QK_RUN_BLOCKED;
		out->needs_remap = run->kind != QK_RUN_PLAIN && !out->is_blocked;
		if (run->kind != QK_RUN_PLAIN)
			return QCOW_OK;
		status = check_overlap(range->image, run, out->n == 0 ? err : NULL);
		if (status != QCOW_OK)
			return out->n == 0 ? status : QCOW_OK;
		out->n++;
		out->covered += run->len;
		off.v += run->len;
		left -= run->len;
	}
	return QCOW_OK;
}

/* The sectors that the range covers whole, from its start on. */
static uint64_t whole_sectors(const struct qk_write_range *range)
{
	if (!qk_is_aligned(range->off.v, QK_CRYPT_SECTOR))
		return 0;
	return qk_align_down(range->len, QK_CRYPT_SECTOR);
}

/* What is to be written is marked in the bitmaps. */
static enum qcow_status begin_marked(
	const struct qk_write_range *range, struct qk_write *out, struct qcow_error *err)
{
	struct qk_rw *rw = range->image->rw;
	out->image = range->image;
	out->off = range->off.v;
	out->covered = 0;
	out->n = 0;
	out->is_blocked = false;
	out->needs_remap = false;
	out->epoch = qk_epoch_enter(rw->epoch);
	/* in the epoch: who put the fence up and waits for the epochs finds nobody writing */
	enum qcow_status status = qk_fence_check(&rw->fence, err);
	if (status == QCOW_OK)
		status = find_runs(range, out, err);
	if (status != QCOW_OK)
		qk_epoch_leave(rw->epoch, out->epoch);
	return status;
}

enum qcow_status qk_write_begin(
	const struct qk_write_range *range, struct qk_write *out, struct qcow_error *err)
{
	struct qcow_image *image = range->image;
	QK_ASSERT(W1, image->rw != NULL && range->len != 0 &&
			      qk_in_range(range->off.v, range->len, image->size));
	bool must_not = !range->may_block && qk_track_would_block(image);
	if (!must_not)
		QK_TRY(qk_track_mark(image, range->off.v, range->len, err));
	QK_TRY(begin_marked(range, out, err));
	if (must_not) {
		out->n = 0;
		out->covered = 0;
		out->is_blocked = true;
	} else if (image->crypt != NULL) {
		/* not the caller's to move: they would lie there as they are */
		out->n = 0;
		out->covered = 0;
		out->needs_remap = true;
	}
	return QCOW_OK;
}

void qk_write_end(struct qk_write *write)
{
	QK_ASSERT_VOID(W2, write->image != NULL);
	qk_epoch_leave(write->image->rw->epoch, write->epoch);
	write->image = NULL;
}

static enum qcow_status write_run(struct qcow_image *image, const struct qk_run *run,
	struct qk_iov *from, struct qcow_error *err)
{
	const struct qk_put put = {.image = image,
		.at = {run->store, run->host_off, run->guest},
		.from = from,
		.len = run->len};
	return qk_put_in_epoch(&put, err);
}

/* What can be written in place from `range` on; *done bytes, maybe none. */
static enum qcow_status write_in_place(const struct qk_write_range *range, struct qk_iov *from,
	uint64_t *done, struct qcow_error *err)
{
	struct qk_write write;
	struct qk_write_range part = *range;
	enum qcow_status status = QCOW_OK;
	if (range->image->crypt != NULL)
		part.len = whole_sectors(range);
	*done = 0;
	if (part.len == 0)
		return QCOW_OK;
	QK_TRY(begin_marked(&part, &write, err));
	for (unsigned i = 0; i < write.n && status == QCOW_OK; i++)
		status = write_run(range->image, &write.runs[i], from, err);
	*done = write.covered;
	qk_write_end(&write);
	return status;
}

/* A part of an encrypted sector of a raw image. */
static enum qcow_status write_raw_part(const struct qk_write_range *range, struct qk_iov *from,
	uint64_t *done, struct qcow_error *err)
{
	struct qcow_image *image = range->image;
	uint64_t in_sector = QK_CRYPT_SECTOR - range->off.v % QK_CRYPT_SECTOR;
	const struct qk_put put = {.image = image,
		.at = {image->store, {image->raw_offset + range->off.v}, range->off},
		.from = from,
		.len = qk_min(range->len, in_sector)};
	QK_TRY(qk_fence_check(&image->rw->fence, err));
	*done = put.len;
	return qk_put_part(&put, err);
}

/* What cannot be written in place without looking at more than the entry. */
static enum qcow_status write_rest(const struct qk_write_range *range, struct qk_iov *from,
	uint64_t *done, struct qcow_error *err)
{
	if (range->image->is_raw)
		return write_raw_part(range, from, done, err);
	return qk_remap_write(range->image, range->off, range->len, from, done, err);
}

enum qcow_status qk_write(struct qcow_image *image, const struct iovec *iov, int n_iov,
	uint64_t off, struct qcow_error *err)
{
	struct qk_iov from = {iov, n_iov, 0};
	struct qk_write_range range = {.image = image, .off.v = off, .may_block = true};
	QK_ASSERT(W4, qk_iov_sum(iov, n_iov, &range.len));
	QK_TRY(qk_track_mark(image, off, range.len, err));
	while (range.len != 0) {
		uint64_t done = 0;
		QK_TRY(write_in_place(&range, &from, &done, err));
		if (done == 0)
			QK_TRY(write_rest(&range, &from, &done, err));
		QK_ASSERT(W6, done != 0 && done <= range.len);
		range.off.v += done;
		range.len -= done;
	}
	return QCOW_OK;
}

enum qcow_status qk_write_flush(struct qcow_image *image, struct qcow_error *err)
{
	QK_TRY(qk_publish_flush(image->rw->publish, err));
	qk_data_file_punch(image);
	return QCOW_OK;
}
