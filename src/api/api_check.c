/* SPDX-License-Identifier: MIT */
/*
 * api_check: qcow_check and qcow_walk: an open image as audit wants to see it.
 */
#include "base/options.h"
#include "audit/walk.h"
#include "check/judge.h"
#include "engine/image.h"
#include "engine/rw.h"

/* `header` is filled, and *a points to it. */
static enum qcow_status audit_init(struct qk_audit *a, struct qk_header *header,
	struct qcow_image *image, const char *what, struct qcow_error *err)
{
	if (image->is_raw)
		return QK_FAIL(err, QCOW_E_NOTSUP, "a raw image has no metadata to %s", what);
	QK_TRY(qk_rw_header(image, header, err));
	*a = (struct qk_audit){.store = image->store,
		.header = header,
		.ext = &image->ext,
		.geometry = &image->geometry,
		.file_size = image->file_size};
	return QCOW_OK;
}

QK_TAKE_OPTIONS(
	take_options, qcow_check_options, "check options", QCOW_CHECK_OPTIONS_INIT, memory_bytes)

enum qcow_status qcow_check(struct qcow_image *image, const struct qcow_check_options *options,
	struct qcow_check_result *result, struct qcow_error *err)
{
	struct qcow_check_options taken;
	struct qk_audit a = {0};
	struct qk_header header;

	if (image == NULL || result == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_check needs an image and a result");
	QK_TRY(take_options(options, &taken, err));
	QK_TRY(audit_init(&a, &header, image, "check", err));
	return qk_judge_check(&a, &taken, result, err);
}

enum qcow_status qcow_walk(struct qcow_image *image, unsigned flags,
	bool (*visit)(void *ctx, const struct qcow_walk_item *item), void *ctx,
	struct qcow_error *err)
{
	struct qk_audit a = {0};
	struct qk_header header;

	if (image == NULL || visit == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_walk needs an image and a visitor");
	QK_TRY(audit_init(&a, &header, image, "walk", err));
	return qk_walk(&a, flags, visit, ctx, err);
}
