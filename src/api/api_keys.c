/* SPDX-License-Identifier: MIT */
/*
 * api_keys: qcow_amend_keys: argument checks.
 */
#include <qcowkit/manage.h>

#include "api/options.h"
#include "engine/image.h"
#include "engine/luks_slots.h"

enum qcow_status qcow_amend_keys(
	struct qcow_image *image, const struct qcow_key_options *options, struct qcow_error *err)
{
	static const struct qcow_key_options defaults = QCOW_KEY_OPTIONS_INIT;
	static const struct qk_options_kind kind = {.what = "key options",
		.init = "QCOW_KEY_OPTIONS_INIT",
		.defaults = &defaults,
		.size = sizeof(defaults),
		.least = offsetof(struct qcow_key_options, progress)};
	struct qcow_key_options taken;
	if (image == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "no image");
	QK_TRY(qk_options_take(&kind, options, &taken, err));
	QK_TRY(qk_options_may_change(image, taken.dry_run, err));
	return qk_luks_slots_amend(image, &taken, err);
}
