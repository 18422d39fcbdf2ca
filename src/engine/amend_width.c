/* SPDX-License-Identifier: MIT */
/*
 * amend_width: refcounts of another width. A complete second refcount structure || its place and the width, in one write of
 * sector 0 || the old one is free, for the new one does not count it.
 */
#include "engine/amend.h"

#include <inttypes.h>

#include "base/bytes.h"
#include "engine/control.h"
#include "engine/image.h"
#include "engine/look.h"
#include "engine/rw.h"
#include "engine/shadow.h"

#define REFCOUNT_ORDER_OFF 96U

static unsigned order_of(unsigned bits)
{
	unsigned order = 0;
	while ((1U << order) < bits)
		order++;
	return order;
}

static enum qcow_status switch_width(struct qcow_image *image, const struct qk_shadow *shadow,
	unsigned order, struct qcow_error *err)
{
	uint8_t place[QK_SHADOW_HEADER_BYTES], order_bytes[4];
	const struct qk_header_patch patches[] = {
		{.off = QK_SHADOW_HEADER_OFF, .len = sizeof(place), .bytes = place},
		{.off = REFCOUNT_ORDER_OFF, .len = sizeof(order_bytes), .bytes = order_bytes}};
	qk_shadow_header(shadow, place);
	qk_store32(order_bytes, order);
	return qk_control_switch(image, patches, 2, QK_SWITCH_SHADOW, err);
}

/* The structure of that width, of the counts that `space` has. */
static struct qk_shadow_request request(struct qcow_image *image, struct qk_space *space,
	unsigned refcount_bits, struct qk_geometry *wanted, struct qk_shadow_source *source)
{
	const struct qk_geometry *g = &image->geometry;
	qk_geometry_init(
		wanted, g->version, g->cluster_bits, order_of(refcount_bits), g->extended_l2);
	qk_shadow_of_space(space, source);
	return (struct qk_shadow_request){.store = image->store,
		.geometry = wanted,
		.source = source,
		.end = qk_shadow_space_end(space)};
}

enum qcow_status qk_amend_width_judge(struct qcow_image *image, unsigned refcount_bits,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	struct qk_geometry wanted;
	struct qk_shadow_source source;
	struct qk_look look;
	enum qcow_status status = QCOW_OK;
	QK_TRY(qk_look_begin(&look, image, QCOW_PROVE_AUTO, err));
	if (look.space != NULL) {
		struct qk_shadow_request rq = request(
			image, look.space, refcount_bits, &wanted, &source);
		rq.progress = progress;
		status = qk_shadow_judge(&rq, err);
	}
	return qk_look_end(&look, status, err);
}

enum qcow_status qk_amend_width(struct qcow_image *image, unsigned refcount_bits,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	unsigned order = order_of(refcount_bits);
	struct qk_geometry wanted;
	struct qk_shadow_source source;
	struct qk_shadow shadow = {0};
	QK_TRY(qk_control_begin(image, err));
	struct qk_shadow_request rq = request(
		image, image->rw->space, refcount_bits, &wanted, &source);
	rq.progress = progress;
	enum qcow_status status = qk_shadow_build(&rq, &shadow, err);
	if (status == QCOW_OK)
		status = switch_width(image, &shadow, order, err);
	if (status != QCOW_OK && !qk_control_is_fenced(image)) {
		qk_shadow_undo(&source, &shadow);
		qk_shadow_explain(status, err);
	}
	qk_shadow_release(&shadow);
	return qk_control_end(image,
		status == QCOW_OK ? (unsigned)QK_RELOAD_HEADER | QK_RELOAD_SPACE : 0U, status, err);
}
