/* SPDX-License-Identifier: MIT */
/*
 * api_resize: qcow_resize: argument checks.
 */
#include <qcowkit/manage.h>

#include "api/pass.h"
#include "base/options.h"
#include "engine/image.h"
#include "engine/resize.h"

QK_TAKE_OPTIONS(
	take_options, qcow_resize_options, "resize options", QCOW_RESIZE_OPTIONS_INIT, progress)

enum qcow_status qcow_resize(struct qcow_image *image, uint64_t size,
	const struct qcow_resize_options *options, struct qcow_error *err)
{
	struct qcow_resize_options taken;
	if (image == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "no image");
	QK_TRY(take_options(options, &taken, err));
	QK_TRY(qk_may_change(image, taken.dry_run, err));
	if ((unsigned)taken.preallocation > QCOW_PREALLOC_FULL)
		return QK_FAIL(err, QCOW_E_INVAL, "preallocation %d is not known",
			(int)taken.preallocation);
	const struct qk_resize_request rq = {.size = size,
		.preallocation = taken.preallocation,
		.may_shrink = taken.shrink,
		.is_dry = taken.dry_run,
		.progress = &taken.progress};
	return qk_resize(image, &rq, err);
}
