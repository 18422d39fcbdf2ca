/* SPDX-License-Identifier: MIT */
/*
 * repair_fresh: what a repair writes to clusters that nothing refers to: a new active L1 table, a new snapshot table, and
 * a second refcount structure that counts them. The switch is the caller's.
 */
#ifndef QK_CHECK_REPAIR_FRESH_H
#define QK_CHECK_REPAIR_FRESH_H

#include "check/plan.h"

/*
 * Write through `out` what the plan wants written anew, once the entries that it unlinks are stable. p->header has
 * the places afterwards. Not flushed. A failure leaves what refers to nothing.
 * QCOW_E_NOSPC, QCOW_E_LIMIT, QCOW_E_NOMEM, errors of the store.
 */
enum qcow_status qk_repair_fresh(
	struct qk_plan *p, struct qcow_store *out, struct qcow_error *err) QK_MUST_USE;

#endif
