/* SPDX-License-Identifier: MIT */
/*
 * rw: what an image open for writing has beside what every image has.
 */
#ifndef QK_ENGINE_RW_H
#define QK_ENGINE_RW_H

#include <qcowkit/qcowkit.h>

#include "engine/epoch.h"
#include "engine/fence.h"

struct qk_publish;

struct qk_rw {
	struct qk_epoch *epoch; /* of the readers, and of the writers in place */
	struct qk_fence fence;
	struct qk_publish *publish;
};

/* May the image of `options` be written? Where QCOW_OPEN_WRITE is not among the flags: nothing is done. Else what
 * writing needs is made and hangs at image->rw. Errors as qcow_open. */
enum qcow_status qk_rw_open(struct qcow_image *image, const struct qcow_open_options *options,
	struct qcow_error *err) QK_MUST_USE;

/* Publish, flush, free. NULL as image->rw is allowed. */
void qk_rw_close(struct qcow_image *image);

#endif
