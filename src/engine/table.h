/* SPDX-License-Identifier: MIT */
/*
 * table: L2 tables that may be written: made where there is none, copied where a snapshot shares it.
 */
#ifndef QK_ENGINE_TABLE_H
#define QK_ENGINE_TABLE_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"

/* The host offset of the L2 table for L1 entry `index`, which no other tree refers to. A new one is staged: the
 * next publication links it. May grow the L1 table, publish, and take the tables lock; the caller holds
 * stripe locks at most. QCOW_E_CORRUPT with finding, QCOW_E_NOSPC, QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status qk_table_get(struct qcow_image *image, uint64_t index, uint64_t *l2_off,
	struct qcow_error *err) QK_MUST_USE;

/* qk_space_take, and once more after a publication where clusters wait for one. The caller is in no epoch and
 * holds no lock from the publish lock on. */
struct qk_space_want;
struct qk_space_run;
enum qcow_status qk_table_take(struct qcow_image *image, const struct qk_space_want *want,
	struct qk_space_run *out, struct qcow_error *err) QK_MUST_USE;

#endif
