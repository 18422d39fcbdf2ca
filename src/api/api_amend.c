/* SPDX-License-Identifier: MIT */
/*
 * api_amend: qcow_amend: argument checks.
 */
#include <qcowkit/manage.h>

#include "api/options.h"
#include "engine/amend.h"
#include "engine/image.h"

enum qcow_status qcow_amend(
	struct qcow_image *image, const struct qcow_amend_options *options, struct qcow_error *err)
{
	static const struct qcow_amend_options defaults = QCOW_AMEND_OPTIONS_INIT;
	static const struct qk_options_kind kind = {.what = "amend options",
		.init = "QCOW_AMEND_OPTIONS_INIT",
		.defaults = &defaults,
		.size = sizeof(defaults),
		.least = offsetof(struct qcow_amend_options, progress)};
	struct qcow_amend_options taken;
	if (image == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "no image");
	QK_TRY(qk_options_take(&kind, options, &taken, err));
	QK_TRY(qk_options_may_change(image, taken.dry_run, err));
	if ((unsigned)taken.lazy_refcounts > QCOW_AMEND_OFF ||
		(unsigned)taken.data_file_raw > QCOW_AMEND_OFF)
		return QK_FAIL(
			err, QCOW_E_INVAL, "lazy_refcounts and data_file_raw are kept, on or off");
	return qk_amend(image, &taken, err);
}
