/* SPDX-License-Identifier: MIT */
/*
 * api_amend: qcow_amend: argument checks.
 */
#include <qcowkit/manage.h>

#include "api/pass.h"
#include "base/options.h"
#include "engine/amend.h"
#include "engine/image.h"

QK_TAKE_OPTIONS(
	take_options, qcow_amend_options, "amend options", QCOW_AMEND_OPTIONS_INIT, progress)

enum qcow_status qcow_amend(
	struct qcow_image *image, const struct qcow_amend_options *options, struct qcow_error *err)
{
	struct qcow_amend_options taken;
	if (image == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "no image");
	QK_TRY(take_options(options, &taken, err));
	QK_TRY(qk_may_change(image, taken.dry_run, err));
	if ((unsigned)taken.lazy_refcounts > QCOW_AMEND_OFF ||
		(unsigned)taken.data_file_raw > QCOW_AMEND_OFF)
		return QK_FAIL(
			err, QCOW_E_INVAL, "lazy_refcounts and data_file_raw are kept, on or off");
	return qk_amend(image, &taken, err);
}
