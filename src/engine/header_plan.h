/* SPDX-License-Identifier: MIT */
/*
 * header_plan: how the bytes of cluster 0 change from one header area to another, so that after a crash at any
 * moment the file holds the old one or the new one: writes with a barrier behind each, where a sector of 512 bytes is
 * written whole or not at all. Pure.
 */
#ifndef QK_ENGINE_HEADER_PLAN_H
#define QK_ENGINE_HEADER_PLAN_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "format/header.h"

#define QK_HEADER_STEPS 5U

struct qk_header_step {
	uint64_t off; /* multiple of 512 */
	size_t len; /* multiple of 512; at off 0 it is 512 */
	uint8_t *bytes; /* the plan's */
};

struct qk_header_plan {
	unsigned n; /* 0: nothing changes */
	struct qk_header_step steps[QK_HEADER_STEPS];
};

/*
 * From `old`, the whole cluster 0, to `header` and `ext` in QEMU's form (qk_header_area_encode, with the feature names
 * where they belong). header_length becomes at least what this version writes. The spans of both may point into `old`.
 * Every state on the way decodes to what `old` says or to what is new; feature names may be missing or wrong
 * in between. The plan is released in any case.
 * QCOW_E_LIMIT: it does not fit cluster 0, or there is no room in it for both; QCOW_E_NOMEM.
 */
enum qcow_status qk_header_plan_make(struct qk_span old, const struct qk_header *header,
	const struct qk_extensions *ext, struct qk_header_plan *out,
	struct qcow_error *err) QK_MUST_USE;

void qk_header_plan_release(struct qk_header_plan *plan);

#endif
