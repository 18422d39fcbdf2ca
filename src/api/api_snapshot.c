/* SPDX-License-Identifier: MIT */
/*
 * api_snapshot: the public calls that make, apply, delete and rename snapshots: argument checks.
 */
#include <qcowkit/manage.h>

#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "base/options.h"
#include "engine/snapshot.h"

#define ID_BYTES 127 /* other programs cut what is longer */

QK_TAKE_OPTIONS(take_options, qcow_snapshot_create_options, "snapshot options",
	QCOW_SNAPSHOT_CREATE_OPTIONS_INIT, progress)

static enum qcow_status check_length(
	const char *what, const char *text, size_t most, struct qcow_error *err)
{
	size_t n = text != NULL ? strlen(text) : 0;
	if (n <= most)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_INVAL,
		"the %s of a snapshot may have %zu bytes, not %zu: other programs would cut it",
		what, most, n);
}

static enum qcow_status check_key(const struct qcow_image *image, const char *key,
	enum qcow_snapshot_key how, struct qcow_error *err)
{
	if (image == NULL || key == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "a snapshot call without an image or a key");
	if ((unsigned)how > QCOW_SNAPSHOT_NAME_OR_ID)
		return QK_FAIL(err, QCOW_E_INVAL, "no such way to name a snapshot: %d", (int)how);
	return QCOW_OK;
}

enum qcow_status qcow_snapshot_create(struct qcow_image *image,
	const struct qcow_snapshot_create_options *options, struct qcow_error *err)
{
	struct qcow_snapshot_create_options o;
	if (image == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_snapshot_create needs an image");
	QK_TRY(take_options(options, &o, err));
	QK_TRY(check_length("name", o.name, QCOW_SNAPSHOT_NAME_BYTES, err));
	QK_TRY(check_length("id", o.id, ID_BYTES, err));
	if (o.id != NULL && o.id[0] == '\0')
		return QK_FAIL(err, QCOW_E_INVAL, "the id of a snapshot is not empty");
	if (!o.has_date) {
		struct timespec now = {0};
		(void)clock_gettime(CLOCK_REALTIME, &now);
		o.date_sec = (uint32_t)now.tv_sec;
		o.date_nsec = (uint32_t)now.tv_nsec;
	}
	return qk_snapshot_create(image, &o, err);
}

enum qcow_status qcow_snapshot_apply(struct qcow_image *image, const char *key,
	enum qcow_snapshot_key how, const struct qcow_progress *progress, struct qcow_error *err)
{
	QK_TRY(check_key(image, key, how, err));
	return qk_snapshot_apply(image, key, how, progress, err);
}

enum qcow_status qcow_snapshot_delete(struct qcow_image *image, const char *const *keys, size_t n,
	enum qcow_snapshot_key how, const struct qcow_progress *progress, struct qcow_error *err)
{
	if (keys == NULL || n == 0)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_snapshot_delete needs a snapshot");
	for (size_t i = 0; i < n; i++)
		QK_TRY(check_key(image, keys[i], how, err));
	return qk_snapshot_delete(image, keys, n, how, progress, err);
}

enum qcow_status qcow_snapshot_rename(struct qcow_image *image, const char *key,
	enum qcow_snapshot_key how, const char *name, struct qcow_error *err)
{
	QK_TRY(check_key(image, key, how, err));
	if (name == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_snapshot_rename needs a name");
	QK_TRY(check_length("name", name, QCOW_SNAPSHOT_NAME_BYTES, err));
	return qk_snapshot_rename(image, key, how, name, err);
}

enum qcow_status qcow_snapshot_judge(struct qcow_image *image, enum qcow_snapshot_act act,
	const char *const *keys, size_t n, enum qcow_snapshot_key how,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	const struct qk_snapshot_plan plan = {.act = act, .keys = keys, .n = n, .how = how};
	bool is_right = act == QCOW_SNAPSHOT_CREATE   ? n == 0
			: act == QCOW_SNAPSHOT_APPLY  ? n == 1
			: act == QCOW_SNAPSHOT_DELETE ? n != 0
						      : false;
	if (image == NULL || !is_right || (keys == NULL && n != 0))
		return QK_FAIL(err, QCOW_E_INVAL, "%zu keys and snapshot act %d", n, (int)act);
	for (size_t i = 0; i < n; i++)
		QK_TRY(check_key(image, keys[i], how, err));
	return qk_snapshot_foresee(image, &plan, progress, err);
}
