/* SPDX-License-Identifier: MIT */
/*
 * bitmap_edit: persistent bitmaps are added, removed, cleared, enabled, disabled and merged. Several actions in their
 * order, and all of them or none.
 */
#ifndef QK_ENGINE_BITMAP_EDIT_H
#define QK_ENGINE_BITMAP_EDIT_H

#include <qcowkit/manage.h>

#include "base/err.h"

/* The public call, arguments not NULL, options of this version. */
enum qcow_status qk_bitmap_edit(struct qcow_image *image, const struct qcow_bitmap_action *actions,
	size_t n_actions, const struct qcow_bitmap_edit_options *options, size_t *failed,
	struct qcow_error *err) QK_MUST_USE;

#endif
