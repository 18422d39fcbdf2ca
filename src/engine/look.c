/* SPDX-License-Identifier: MIT */
/* look: see look.h. */
#include "engine/look.h"

#include "engine/control.h"
#include "engine/image.h"
#include "engine/rw.h"
#include "engine/space.h"

static enum qcow_status make_space(
	struct qk_look *look, enum qcow_prove prove, struct qcow_error *err)
{
	struct qcow_image *image = look->image;
	struct qk_space_request rq = {.store = image->store,
		.geometry = &image->geometry,
		.header = &image->header,
		.ext = &image->ext,
		.prove = prove};
	QK_TRY(qcow_store_size(image->store, &rq.file_size, err));
	QK_TRY(qk_space_new(&rq, &look->own, err));
	look->space = look->own;
	return QCOW_OK;
}

enum qcow_status qk_look_begin(struct qk_look *look, struct qcow_image *image,
	enum qcow_prove prove, struct qcow_error *err)
{
	*look = (struct qk_look){.image = image};
	if (image->is_raw)
		return QK_FAIL(err, QCOW_E_NOTSUP, "'%s' is not a qcow2 image",
			qcow_store_name(image->store));
	if (image->rw != NULL) {
		QK_TRY(qk_control_begin(image, err));
		look->space = image->rw->space;
		return QCOW_OK;
	}
	if ((image->header.incompatible & QCOW_INCOMPAT_DIRTY) != 0)
		return QCOW_OK;
	return make_space(look, prove, err);
}

enum qcow_status qk_look_end(struct qk_look *look, enum qcow_status status, struct qcow_error *err)
{
	qk_space_free(look->own);
	return look->image->rw != NULL ? qk_control_end(look->image, 0, status, err) : status;
}
