/* SPDX-License-Identifier: MIT */
/*
 * pass: the calls on guest data, and those that tell what an image is, pass the gate of an image that is open for writing:
 * operations that manage it are alone (engine/control.h). Nothing between enter and leave calls back to the caller.
 */
#ifndef QK_API_PASS_H
#define QK_API_PASS_H

#include "base/err.h"
#include "engine/gate.h"
#include "engine/image.h"
#include "engine/rw.h"

/* For a call that changes the image, unless it is a dry run: QCOW_E_READONLY. */
static inline enum qcow_status qk_may_change(
	const struct qcow_image *image, bool is_dry, struct qcow_error *err)
{
	if (image->rw != NULL || is_dry)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_READONLY, "'%s' is not open for writing",
		qcow_store_name(image->store));
}

static inline unsigned qk_pass_enter(const struct qcow_image *image)
{
	return image->rw != NULL ? qk_gate_enter(image->rw->gate) : 0;
}

/* The same without waiting: false while the gate is closed. */
static inline bool qk_pass_try(const struct qcow_image *image, unsigned *token)
{
	*token = 0;
	return image->rw == NULL || qk_gate_try(image->rw->gate, token);
}

static inline void qk_pass_leave(const struct qcow_image *image, unsigned token)
{
	if (image->rw != NULL)
		qk_gate_leave(image->rw->gate, token);
}

#endif
