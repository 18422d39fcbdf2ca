/* SPDX-License-Identifier: MIT */
/*
 * resize_file: files that are as long as the disk: that of a raw image, and the data file of a qcow2 image.
 *
 *	grow	the data file is longer, what it holds past the old end is zeros where entries are to name it || entries, size
 *	shrink	size || entries || the data file is cut; a device, which stays as long, gets zeros up to the cluster's end
 *
 * All clusters of a raw data file have entries, so that it is the disk for whoever reads it alone.
 * Specification: "external data file", "raw external data".
 */
#include "engine/resize_private.h"

#include <inttypes.h>

#include "base/mem.h"
#include "engine/data_file.h"
#include "engine/gate.h"
#include "engine/image.h"
#include "engine/log.h"
#include "engine/rw.h"

#define ZEROS_BYTES QK_MIB(1)

enum qcow_status qk_resize_write_zeros(struct qcow_store *store, uint64_t from, uint64_t to,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	uint8_t *zeros QK_AUTO_FREE = qk_calloc(1, ZEROS_BYTES);
	if (zeros == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t at = from; at < to;) {
		uint64_t n = qk_min(ZEROS_BYTES, to - at);
		QK_TRY(qcow_store_write(store, zeros, (size_t)n, at, err));
		at += n;
		QK_TRY(qk_resize_step(progress, at - from, to - from, err));
	}
	return QCOW_OK;
}

/* The host has blocks for [from, to), or they are written, as is asked for. */
static enum qcow_status preallocate(struct qcow_store *store, uint64_t from, uint64_t to,
	const struct qk_resize_request *rq, struct qcow_error *err)
{
	if (to > from && rq->preallocation == QCOW_PREALLOC_FALLOC)
		return qcow_store_zero(store, from, to - from, QCOW_ZERO_ALLOCATE, err);
	if (to > from && rq->preallocation == QCOW_PREALLOC_FULL)
		return qk_resize_write_zeros(store, from, to, rq->progress, err);
	return QCOW_OK;
}

/* The file from `from` to `to`, which is its new end. */
static enum qcow_status extend(struct qcow_store *store, uint64_t from, uint64_t to,
	const struct qk_resize_request *rq, struct qcow_error *err)
{
	QK_TRY(qcow_store_truncate(store, to, err));
	return preallocate(store, from, to, rq, err);
}

/* ---- a data file ---- */

bool qk_resize_data_is_named(const struct qcow_image *image, const struct qk_resize_request *rq)
{
	return rq->preallocation != QCOW_PREALLOC_OFF || qk_data_file_is_raw(image);
}

static bool can_grow(struct qcow_store *store)
{
	struct qcow_store_caps caps;
	qcow_store_caps(store, &caps);
	return caps.can_grow;
}

enum qcow_status qk_resize_data_judge(
	const struct qcow_image *image, uint64_t size, struct qcow_error *err)
{
	uint64_t file_size = 0;
	if (!image->geometry.data_file || size <= image->size)
		return QCOW_OK;
	if (image->data_store == NULL)
		return QK_FAIL(err, QCOW_E_POLICY, "the data file was not opened");
	QK_TRY(qcow_store_size(image->data_store, &file_size, err));
	if (file_size >= size || can_grow(image->data_store))
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_NOTSUP,
		"the data file '%s' has a fixed size of %" PRIu64
		" bytes, too few for a disk of %" PRIu64,
		qcow_store_name(image->data_store), file_size, size);
}

enum qcow_status qk_resize_data_extend(struct qcow_image *image, uint64_t old_size,
	const struct qk_resize_request *rq, uint64_t *old_file, struct qcow_error *err)
{
	struct qcow_store *store = image->data_store;
	*old_file = UINT64_MAX;
	if (!image->geometry.data_file)
		return QCOW_OK;
	QK_TRY(qcow_store_size(store, old_file, err));
	uint64_t stale = qk_min(*old_file, rq->size);
	if (*old_file < rq->size)
		QK_TRY(qcow_store_truncate(store, rq->size, err));
	if (stale > old_size && qk_resize_data_is_named(image, rq))
		QK_TRY(qcow_store_zero(store, old_size, stale - old_size, 0, err));
	return preallocate(store, old_size, rq->size, rq, err);
}

void qk_resize_data_restore(struct qcow_image *image, uint64_t old_file)
{
	uint64_t size = 0;
	if (image->geometry.data_file && can_grow(image->data_store) &&
		qcow_store_size(image->data_store, &size, NULL) == QCOW_OK && size > old_file &&
		qcow_store_truncate(image->data_store, old_file, NULL) != QCOW_OK)
		qk_log(image, QCOW_LOG_WARNING, 0, "the data file may stay longer than it was");
}

enum qcow_status qk_resize_data_cut(struct qcow_image *image, uint64_t size, struct qcow_error *err)
{
	struct qcow_store *store = image->data_store;
	uint64_t cluster_size = image->geometry.cluster_size, file_size = 0;
	QK_TRY(qcow_store_size(store, &file_size, err));
	if (file_size <= size)
		return QCOW_OK;
	if (can_grow(store))
		return qcow_store_truncate(store, size, err);
	uint64_t end = qk_min(file_size, qk_div_up(size, cluster_size) * cluster_size);
	return end > size ? qcow_store_zero(store, size, end - size, 0, err) : QCOW_OK;
}

/* ---- a raw image ---- */

enum qcow_status qk_resize_raw_judge(
	struct qcow_image *image, const struct qk_resize_request *rq, struct qcow_error *err)
{
	uint64_t file_size = 0, end = 0;
	struct qcow_store_caps caps;
	qcow_store_caps(image->store, &caps);
	QK_TRY(qcow_store_size(image->store, &file_size, err));
	if (!image->is_luks && image->raw_offset + image->size != file_size)
		return QK_FAIL(err, QCOW_E_NOTSUP,
			"the disk is a part of '%s', and its size is fixed",
			qcow_store_name(image->store));
	if (!caps.can_grow)
		return QK_FAIL(
			err, QCOW_E_NOTSUP, "'%s' has a fixed size", qcow_store_name(image->store));
	if (!qk_add(image->raw_offset, rq->size, &end) || end > QK_MAX_FILE_OFFSET)
		return QK_FAIL(
			err, QCOW_E_LIMIT, "%" PRIu64 " bytes are too many for a file", rq->size);
	if (rq->preallocation == QCOW_PREALLOC_METADATA)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"a raw disk has no metadata to preallocate: off, falloc or full");
	return QCOW_OK;
}

static enum qcow_status change_file(
	struct qcow_image *image, const struct qk_resize_request *rq, struct qcow_error *err)
{
	uint64_t from = 0, to = image->raw_offset + rq->size;
	QK_TRY(qk_fence_check(&image->rw->fence, err));
	QK_TRY(qcow_store_size(image->store, &from, err));
	enum qcow_status status = extend(image->store, from, to, rq, err);
	if (status == QCOW_OK)
		status = qcow_store_flush(image->store, err);
	if (status != QCOW_OK) {
		/* the disk is as long as it was, if the host can do that much */
		if (to > from && qcow_store_truncate(image->store, from, NULL) != QCOW_OK)
			qk_log(image, QCOW_LOG_WARNING, 0, "the file may stay longer than it was");
		return status;
	}
	image->size = rq->size;
	atomic_store(&image->file_size, to);
	return QCOW_OK;
}

enum qcow_status qk_resize_raw(
	struct qcow_image *image, const struct qk_resize_request *rq, struct qcow_error *err)
{
	qk_gate_close(image->rw->gate);
	enum qcow_status status = change_file(image, rq, err);
	qk_gate_open(image->rw->gate);
	return status;
}
