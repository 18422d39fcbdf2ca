/* SPDX-License-Identifier: MIT */
/*
 * api_backing: qcow_set_backing, qcow_empty: what an overlay says of what lies below it.
 */
#include <qcowkit/manage.h>

#include "base/err.h"
#include "base/options.h"
#include "engine/control.h"
#include "engine/empty.h"
#include "engine/header_store.h"
#include "engine/image.h"

QK_TAKE_OPTIONS(
	take_options, qcow_backing_options, "backing options", QCOW_BACKING_OPTIONS_INIT, dry_run)

static enum qcow_status check_options(const struct qcow_backing_options *o, struct qcow_error *err)
{
	if (o->format != NULL && o->name == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "a backing format requires a backing file");
	if ((o->name != NULL && o->name[0] == '\0') || (o->format != NULL && o->format[0] == '\0'))
		return QK_FAIL(err, QCOW_E_INVAL, "a name or format to record is empty");
	return QCOW_OK;
}

static enum qcow_status check_image(const struct qcow_image *image,
	const struct qcow_backing_options *o, struct qcow_error *err)
{
	if (image->is_raw)
		return QK_FAIL(err, QCOW_E_NOTSUP,
			"'%s' is not a qcow2 image: it has no backing file",
			qcow_store_name(image->store));
	if (image->rw == NULL)
		return QK_FAIL(err, QCOW_E_READONLY, "'%s' is not open for writing",
			qcow_store_name(image->store));
	if (o->name != NULL && (image->header.autoclear & QK_AUTOCLEAR_RAW_DATA) != 0)
		return QK_FAIL(err, QCOW_E_INVAL,
			"'%s' has a raw data file, and nothing may lie below that",
			qcow_store_name(image->store));
	return QCOW_OK;
}

static enum qcow_status replace(
	struct qcow_image *image, const struct qcow_backing_options *o, struct qcow_error *err)
{
	struct qk_header_area area;
	enum qcow_status status = qk_header_store_load(image, &area, err);
	if (status == QCOW_OK) {
		area.ext.backing_name = qk_header_store_text(o->name);
		area.ext.backing_format = qk_header_store_text(o->format);
		status = o->dry_run ? qk_header_store_judge(&area, err)
				    : qk_header_store_write(image, &area, err);
	}
	qk_header_store_release(&area);
	return status;
}

enum qcow_status qcow_set_backing(struct qcow_image *image,
	const struct qcow_backing_options *options, struct qcow_error *err)
{
	struct qcow_backing_options o;
	if (image == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "no image");
	QK_TRY(take_options(options, &o, err));
	QK_TRY(check_options(&o, err));
	QK_TRY(check_image(image, &o, err));
	if (o.dry_run)
		return replace(image, &o, err);
	QK_TRY(qk_control_begin(image, err));
	enum qcow_status status = replace(image, &o, err);
	return qk_control_end(image, status == QCOW_OK ? QK_RELOAD_HEADER : 0, status, err);
}

enum qcow_status qcow_empty(struct qcow_image *image, struct qcow_error *err)
{
	if (image == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "no image");
	QK_TRY(qk_control_begin(image, err));
	enum qcow_status status = qk_empty(image, err);
	return qk_control_end(image, status == QCOW_OK ? QK_RELOAD_HEADER : 0, status, err);
}
