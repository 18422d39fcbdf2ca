/* SPDX-License-Identifier: MIT */
/*
 * reftable: the refcount table in memory (at most 8 MiB), each entry judged. Specification: "Host cluster
 * management".
 */
#ifndef QK_AUDIT_REFTABLE_H
#define QK_AUDIT_REFTABLE_H

#include "audit/audit.h"

#define QK_REFTABLE_UNUSABLE UINT64_C(1) /* there is a refcount block, but it cannot be read */

struct qk_reftable {
	uint64_t *v; /* offset of the refcount block; 0 none; QK_REFTABLE_UNUSABLE */
	uint64_t n;
};

/* Report what is wrong with the table and its entries, and keep those that can be followed. An entry
 * that names the block of an earlier one is unusable. QCOW_E_NOMEM. */
enum qcow_status qk_reftable_load(
	struct qk_reftable *t, struct qk_audit *a, struct qcow_error *err) QK_MUST_USE;
void qk_reftable_release(struct qk_reftable *t);

#endif
