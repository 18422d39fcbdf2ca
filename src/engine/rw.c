/* SPDX-License-Identifier: MIT */
/*
 * rw: see rw.h. Decides what may be written, and orders the making and the end of the writing parts.
 */
#include "engine/rw.h"

#include <inttypes.h>

#include "base/mem.h"
#include "engine/compress.h"
#include "engine/data_file.h"
#include "engine/gate.h"
#include "engine/hostmap.h"
#include "engine/image.h"
#include "engine/log.h"
#include "engine/publish.h"
#include "engine/space.h"
#include "engine/stage.h"
#include "engine/track.h"
#include "engine/write.h"

static enum qcow_status judge_features(
	struct qcow_image *image, uint32_t discard, struct qcow_error *err)
{
	if ((discard & QCOW_DISCARD_NO_UNREF) != 0 && !image->is_raw && image->geometry.version < 3)
		return QK_FAIL(err, QCOW_E_INVAL,
			"discard-no-unref needs zero clusters, which version 2 does not have");
	if (image->is_locked)
		return QK_FAIL(err, QCOW_E_KEY,
			"the image is encrypted, and it cannot be written without its key");
	if (image->geometry.data_file)
		QK_TRY(qk_data_file_judge(image, err));
	return QCOW_OK;
}

static enum qcow_status judge(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	struct qcow_store_caps caps;
	qcow_store_caps(image->store, &caps);
	if (!caps.writable)
		return QK_FAIL(err, QCOW_E_READONLY, "'%s' is open for reading only",
			qcow_store_name(image->store));
	if (o->snapshot != NULL)
		return QK_FAIL(err, QCOW_E_READONLY, "a snapshot is viewed read-only");
	if (image->read_only_at_most)
		return QK_FAIL(err, QCOW_E_READONLY,
			"the image is marked corrupt or its metadata is damaged: it can be opened "
			"read-only at most");
	return judge_features(image, o->discard, err);
}

enum qcow_status qk_rw_make_space(struct qcow_image *image, const struct qk_refs_watch *watch,
	struct qk_space **out, struct qcow_error *err)
{
	struct qk_space_request rq = {.store = image->store,
		.geometry = &image->geometry,
		.header = &image->header,
		.ext = &image->ext,
		.prove = image->rw->prove,
		.watch = watch,
		.passes = image->rw->discard};
	/* the one that it is to replace */
	if (image->rw->space != NULL)
		qk_space_shed(image->rw->space);
	/* a rebuild of the refcounts may have made the file longer */
	QK_TRY(qcow_store_size(image->store, &rq.file_size, err));
	return qk_space_new(&rq, out, err);
}

static enum qcow_status make_qcow2(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	struct qk_space_request rq = {.store = image->store,
		.geometry = &image->geometry,
		.header = &image->header,
		.ext = &image->ext,
		.file_size = image->file_size,
		.prove = o->prove,
		.passes = o->discard};
	const struct qk_header was = image->header;
	/* refuses before anything is written */
	QK_TRY(qk_track_new(image, &rw->track, err));
	QK_TRY(qk_space_prepare(&rq, &image->header, QK_AUTOCLEAR_BITMAPS | QK_AUTOCLEAR_RAW_DATA,
		o->dirty == QCOW_DIRTY_REFUSE, err));
	if (was.autoclear != image->header.autoclear)
		qk_log(image, QCOW_LOG_NOTE, 0,
			"unknown bits of autoclear_features were cleared: 0x%" PRIx64,
			was.autoclear & ~image->header.autoclear);
	if (((was.incompatible ^ image->header.incompatible) & QCOW_INCOMPAT_DIRTY) != 0)
		qk_log(image, QCOW_LOG_NOTE, QCOW_FINDING_DIRTY,
			"the refcounts were rebuilt, and the dirty bit cleared");
	QK_TRY(qk_rw_make_space(image, NULL, &rw->space, err));
	qk_rw_follow_size(image);
	QK_TRY(qk_compress_new(&rw->compress, err));
	return qk_stage_new(o->stage_bytes, image->geometry.cluster_size, &rw->stage, err);
}

static enum qcow_status make(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	struct qk_rw *rw = qk_calloc(1, sizeof(*rw));
	if (rw == NULL)
		return QK_FAIL_NOMEM(err);
	/* none of these can fail with default attributes on the platforms that we build for */
	qk_fence_init(&rw->fence);
	(void)pthread_mutex_init(&rw->parts_lock, NULL);
	(void)pthread_mutex_init(&rw->tables_lock, NULL);
	qk_data_file_init(&rw->data_file);
	for (unsigned i = 0; i < QK_STRIPES; i++)
		(void)pthread_mutex_init(&rw->stripes[i], NULL);
	rw->discard = o->discard;
	rw->has_below = image->backing != NULL || image->backing_name != NULL;
	rw->prove = o->prove;
	image->rw = rw;
	QK_TRY(qk_gate_new(&rw->gate, err));
	QK_TRY(qk_epoch_new(&rw->epoch, err));
	if (!image->is_raw)
		QK_TRY(make_qcow2(image, o, err));
	return qk_publish_new(image, &rw->publish, err);
}

enum qcow_status qk_rw_open(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	if ((o->flags & QCOW_OPEN_WRITE) == 0)
		return QCOW_OK;
	QK_TRY(judge(image, o, err));
	bool is_disk = image->is_raw || qk_data_file_is_raw(image);
	qk_hostmap_set_use(image->hostmap, is_disk ? QK_HOSTMAP_PUNCHED : QK_HOSTMAP_WRITTEN);
	return make(image, o, err);
}

static enum qcow_status store_bitmaps(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = qk_track_close(image, &err);
	if (status != QCOW_OK)
		qk_log(image, QCOW_LOG_WARNING, QCOW_FINDING_BITMAP_INCONSISTENT,
			"enabled bitmaps could not be stored and stay in use: %s", err.message);
	return status;
}

/* There is no place for a message any more but the log. */
static enum qcow_status settle(struct qcow_image *image)
{
	struct qk_rw *rw = image->rw;
	struct qcow_error err = QCOW_ERROR_INIT;
	if (rw->publish == NULL)
		return QCOW_OK;
	enum qcow_status status = qk_write_flush(image, &err);
	if (status != QCOW_OK)
		qk_log(image, QCOW_LOG_WARNING, 0, "what was written could not be flushed: %s",
			err.message);
	if (status != QCOW_OK || rw->space == NULL)
		return status;
	status = store_bitmaps(image);
	if (qk_fence_check(&rw->fence, NULL) != QCOW_OK)
		return status;
	enum qcow_status closed = qk_space_close(rw->space, &err);
	if (closed != QCOW_OK)
		qk_log(image, QCOW_LOG_WARNING, 0,
			"clusters that were reserved could not be given back: %s", err.message);
	return status != QCOW_OK ? status : closed;
}

enum qcow_status qk_rw_close(struct qcow_image *image)
{
	struct qk_rw *rw = image->rw;
	if (rw == NULL)
		return QCOW_OK;
	enum qcow_status status = settle(image);
	qk_track_free(rw->track);
	qk_publish_free(rw->publish);
	qk_stage_free(rw->stage);
	qk_compress_free(rw->compress);
	qk_space_free(rw->space);
	qk_epoch_free(rw->epoch);
	qk_gate_free(rw->gate);
	for (unsigned i = 0; i < QK_STRIPES; i++)
		(void)pthread_mutex_destroy(&rw->stripes[i]);
	(void)pthread_mutex_destroy(&rw->tables_lock);
	qk_data_file_release(&rw->data_file);
	(void)pthread_mutex_destroy(&rw->parts_lock);
	qk_fence_release(&rw->fence);
	free(rw);
	image->rw = NULL;
	return status;
}

enum qcow_status qk_rw_check_data(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct qk_space *space = image->rw->space;
	if (space == NULL || image->geometry.data_file)
		return QCOW_OK;
	return qk_space_check_overlap(space, QK_SPACE_DATA, off, len, err);
}

void qk_rw_follow_size(struct qcow_image *image)
{
	uint64_t now = qk_space_file_size(image->rw->space);
	uint64_t known = atomic_load_explicit(&image->file_size, memory_order_relaxed);
	while (known < now && !atomic_compare_exchange_weak(&image->file_size, &known, now))
		;
}

/* Header bytes 36-59: L1 entries and offset, refcount table offset and clusters. */
#define MOVING_OFF   36U
#define MOVING_BYTES 24U

enum qcow_status qk_rw_header(
	struct qcow_image *image, struct qk_header *out, struct qcow_error *err)
{
	uint8_t bytes[MOVING_BYTES];
	*out = image->header;
	if (image->rw == NULL || image->is_raw)
		return QCOW_OK;
	QK_TRY(qcow_store_read(image->store, bytes, sizeof(bytes), MOVING_OFF, err));
	out->l1_entries = qk_load32(bytes);
	out->l1_off = qk_load64(bytes + 4);
	out->rt_off = qk_load64(bytes + 12);
	out->rt_clusters = qk_load32(bytes + 20);
	return QCOW_OK;
}
