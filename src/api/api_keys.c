/* SPDX-License-Identifier: MIT */
/*
 * api_keys: qcow_amend_keys: argument checks.
 */
#include <qcowkit/manage.h>

#include "api/pass.h"
#include "base/options.h"
#include "engine/image.h"
#include "engine/luks_slots.h"

QK_TAKE_OPTIONS(take_options, qcow_key_options, "key options", QCOW_KEY_OPTIONS_INIT, progress)

enum qcow_status qcow_amend_keys(
	struct qcow_image *image, const struct qcow_key_options *options, struct qcow_error *err)
{
	struct qcow_key_options taken;
	if (image == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "no image");
	QK_TRY(take_options(options, &taken, err));
	QK_TRY(qk_may_change(image, taken.dry_run, err));
	return qk_luks_slots_amend(image, &taken, err);
}
