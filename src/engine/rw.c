/* SPDX-License-Identifier: MIT */
/*
 * rw: see rw.h. Decides what may be written, and orders the making and the end of the writing parts.
 */
#include "engine/rw.h"

#include "base/mem.h"
#include "engine/hostmap.h"
#include "engine/image.h"
#include "engine/publish.h"

static enum qcow_status judge_bitmaps(struct qcow_image *image, struct qcow_error *err)
{
	for (uint32_t i = 0; i < image->bitmaps.n; i++) {
		struct qcow_bitmap bitmap;
		QK_TRY(qk_bitmap_get(image, i, &bitmap, NULL, err));
		if (bitmap.is_auto && !bitmap.in_use)
			return QK_FAIL(err, QCOW_E_UNSUPPORTED,
				"bitmap '%s' is enabled: it would have to record every write, "
				"which this version cannot do",
				bitmap.name);
	}
	return QCOW_OK;
}

static enum qcow_status judge_features(struct qcow_image *image, struct qcow_error *err)
{
	if (image->is_luks || image->is_encrypted)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"the image is encrypted: this version cannot write to it");
	if (image->geometry.extended_l2)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"the image has extended L2 entries: this version cannot write to it");
	if (image->geometry.data_file)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"the image has a data file: this version cannot write to it");
	return judge_bitmaps(image, err);
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
	return judge_features(image, err);
}

static enum qcow_status make(struct qcow_image *image, struct qcow_error *err)
{
	struct qk_rw *rw = qk_calloc(1, sizeof(*rw));
	if (rw == NULL)
		return QK_FAIL_NOMEM(err);
	qk_fence_init(&rw->fence);
	image->rw = rw;
	QK_TRY(qk_epoch_new(&rw->epoch, err));
	return qk_publish_new(image, &rw->publish, err);
}

enum qcow_status qk_rw_open(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	if ((o->flags & QCOW_OPEN_WRITE) == 0)
		return QCOW_OK;
	QK_TRY(judge(image, o, err));
	qk_hostmap_stop(image->hostmap);
	return make(image, err);
}

void qk_rw_close(struct qcow_image *image)
{
	struct qk_rw *rw = image->rw;
	if (rw == NULL)
		return;
	if (rw->publish != NULL) {
		/* the caller was told to flush before: there is nobody left to tell */
		enum qcow_status status = qk_publish_flush(rw->publish, NULL);
		(void)status;
	}
	qk_publish_free(rw->publish);
	qk_epoch_free(rw->epoch);
	qk_fence_release(&rw->fence);
	free(rw);
	image->rw = NULL;
}
