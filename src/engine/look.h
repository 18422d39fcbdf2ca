/* SPDX-License-Identifier: MIT */
/*
 * look: what a dry run is judged by. Of an image that is open for writing everything is settled, and the look is alone until
 * its end (control.h); for one that is not, the space is made from what the disk has. Nothing else is written.
 */
#ifndef QK_ENGINE_LOOK_H
#define QK_ENGINE_LOOK_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"

struct qk_space;

struct qk_look {
	struct qcow_image *image;
	struct qk_space *
		space; /* NULL: the image is dirty and not open for writing; its refcounts say nothing */
	struct qk_space *own; /* made for this */
};

/* QCOW_E_NOTSUP (no qcow2 image), errors of qk_control_begin and of qk_space_new: what an open for writing would have
 * answered. No end follows. */
enum qcow_status qk_look_begin(struct qk_look *look, struct qcow_image *image,
	enum qcow_prove prove, struct qcow_error *err) QK_MUST_USE;
/* Answers `status`, or why the image cannot go on. */
enum qcow_status qk_look_end(
	struct qk_look *look, enum qcow_status status, struct qcow_error *err) QK_MUST_USE;

#endif
