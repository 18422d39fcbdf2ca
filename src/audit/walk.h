/* SPDX-License-Identifier: MIT */
/*
 * walk: every structure of an image, one item at a time, in a fixed order (qcow_walk of qcowkit.h).
 */
#ifndef QK_AUDIT_WALK_H
#define QK_AUDIT_WALK_H

#include "audit/audit.h"

/* See qcow_walk. The report callback of `a` is the walk's to set. QCOW_E_NOMEM. */
enum qcow_status qk_walk(struct qk_audit *a, unsigned flags,
	bool (*visit)(void *ctx, const struct qcow_walk_item *item), void *ctx,
	struct qcow_error *err) QK_MUST_USE;

#endif
