/* SPDX-License-Identifier: MIT */
/*
 * api_bitmap_edit: qcow_bitmap_edit: argument checks.
 */
#include <qcowkit/manage.h>

#include "base/options.h"
#include "engine/bitmap_edit.h"

QK_TAKE_OPTIONS(take_options, qcow_bitmap_edit_options, "bitmap options",
	QCOW_BITMAP_EDIT_OPTIONS_INIT, progress)

enum qcow_status qcow_bitmap_edit(struct qcow_image *image,
	const struct qcow_bitmap_action *actions, size_t n_actions,
	const struct qcow_bitmap_edit_options *options, size_t *failed, struct qcow_error *err)
{
	struct qcow_bitmap_edit_options taken;
	size_t at = n_actions;

	if (image == NULL || (actions == NULL && n_actions != 0))
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_bitmap_edit: an argument is NULL");
	enum qcow_status status = take_options(options, &taken, err);
	if (status == QCOW_OK)
		status = qk_bitmap_edit(image, actions, n_actions, &taken, &at, err);
	if (status != QCOW_OK && failed != NULL)
		*failed = at;
	return status;
}
