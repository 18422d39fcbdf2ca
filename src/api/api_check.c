/* SPDX-License-Identifier: MIT */
/*
 * api_check: qcow_check and qcow_walk: an open image as audit wants to see it.
 */
#include "audit/walk.h"
#include "check/judge.h"
#include "engine/image.h"

static enum qcow_status audit_init(
	struct qk_audit *a, struct qcow_image *image, const char *what, struct qcow_error *err)
{
	if (image->is_raw)
		return QK_FAIL(err, QCOW_E_NOTSUP, "a raw image has no metadata to %s", what);
	*a = (struct qk_audit){.store = image->store,
		.header = &image->header,
		.ext = &image->ext,
		.geometry = &image->geometry,
		.file_size = image->file_size};
	return QCOW_OK;
}

enum qcow_status qcow_check(struct qcow_image *image, const struct qcow_check_options *options,
	struct qcow_check_result *result, struct qcow_error *err)
{
	static const struct qcow_check_options defaults = QCOW_CHECK_OPTIONS_INIT;
	struct qk_audit a = {0};

	if (image == NULL || result == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_check needs an image and a result");
	if (options == NULL)
		options = &defaults;
	if (options->struct_size != sizeof(*options))
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_check: options of %u bytes, not %zu",
			options->struct_size, sizeof(*options));
	QK_TRY(audit_init(&a, image, "check", err));
	return qk_judge_check(&a, options, result, err);
}

enum qcow_status qcow_walk(struct qcow_image *image, unsigned flags,
	bool (*visit)(void *ctx, const struct qcow_walk_item *item), void *ctx,
	struct qcow_error *err)
{
	struct qk_audit a = {0};

	if (image == NULL || visit == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_walk needs an image and a visitor");
	QK_TRY(audit_init(&a, image, "walk", err));
	return qk_walk(&a, flags, visit, ctx, err);
}
