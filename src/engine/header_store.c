/* SPDX-License-Identifier: MIT */
/*
 * header_store: see header_store.h. Sector 0 is written by the space, which keeps a copy of it; which bytes are
 * written in which order is header_plan's.
 */
#include "engine/header_store.h"

#include <string.h>

#include "base/mem.h"
#include "engine/fence.h"
#include "engine/header_plan.h"
#include "engine/image.h"
#include "engine/rw.h"
#include "engine/space.h"

enum qcow_status qk_header_store_load(
	struct qcow_image *image, struct qk_header_area *out, struct qcow_error *err)
{
	*out = (struct qk_header_area){.bytes = (size_t)image->geometry.cluster_size};
	out->cluster0 = qk_malloc(out->bytes, 1);
	if (out->cluster0 == NULL)
		return QK_FAIL_NOMEM(err);
	/* a file may end within its first cluster */
	QK_TRY(qcow_store_read_padded(image->store, out->cluster0, out->bytes, 0, err));
	return qk_header_area_decode(
		(struct qk_span){out->cluster0, out->bytes}, &out->header, &out->ext, err);
}

struct qk_span qk_header_store_text(const char *text)
{
	return (struct qk_span){(const uint8_t *)text, text != NULL ? strlen(text) : 0};
}

static enum qcow_status write_step(
	struct qcow_image *image, const struct qk_header_step *step, struct qcow_error *err)
{
	struct qk_space *space = image->rw->space;
	if (step->off == 0) {
		const struct qk_header_patch patch = {0, QK_SECTOR, step->bytes};
		return qk_space_write_header(space, &patch, err);
	}
	QK_TRY(qk_space_check_overlap(space, QK_SPACE_HEADER, step->off, step->len, err));
	return qcow_store_write(image->store, step->bytes, step->len, step->off, err);
}

static enum qcow_status write_steps(
	struct qcow_image *image, const struct qk_header_plan *plan, struct qcow_error *err)
{
	QK_TRY(qcow_store_flush(image->store, err));
	for (unsigned i = 0; i < plan->n; i++) {
		QK_TRY(write_step(image, &plan->steps[i], err));
		QK_TRY(qcow_store_flush(image->store, err));
	}
	return QCOW_OK;
}

static enum qcow_status carry_out(
	struct qcow_image *image, const struct qk_header_plan *plan, struct qcow_error *err)
{
	struct qcow_error why = QCOW_ERROR_INIT;
	if (plan->n == 0)
		return QCOW_OK;
	QK_TRY(qk_fence_check(&image->rw->fence, err));
	enum qcow_status status = write_steps(image, plan, &why);
	if (status == QCOW_OK)
		return QCOW_OK;
	if (err != NULL)
		*err = why;
	/* sector 0 may be either; the copy is of one that goes with what lies behind it in any case */
	qk_space_sector0(image->rw->space, image->rw->pending.sector0);
	image->rw->pending.puts_back = true;
	return qk_fence_raise(&image->rw->fence, status, &why);
}

static enum qcow_status make_plan(
	const struct qk_header_area *area, struct qk_header_plan *out, struct qcow_error *err)
{
	const struct qk_span old = {area->cluster0, area->bytes};
	return qk_header_plan_make(old, &area->header, &area->ext, out, err);
}

enum qcow_status qk_header_store_judge(const struct qk_header_area *area, struct qcow_error *err)
{
	struct qk_header_plan plan;
	enum qcow_status status = make_plan(area, &plan, err);
	qk_header_plan_release(&plan);
	return status;
}

enum qcow_status qk_header_store_write(
	struct qcow_image *image, const struct qk_header_area *area, struct qcow_error *err)
{
	struct qk_header_plan plan;
	enum qcow_status status = make_plan(area, &plan, err);
	if (status == QCOW_OK)
		status = carry_out(image, &plan, err);
	qk_header_plan_release(&plan);
	return status;
}

void qk_header_store_release(struct qk_header_area *area)
{
	free(area->cluster0);
	*area = (struct qk_header_area){0};
}
