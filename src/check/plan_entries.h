/* SPDX-License-Identifier: MIT */
/*
 * plan_entries: one L2 entry at a time, for the files of plan that change entries.
 */
#ifndef QK_CHECK_PLAN_ENTRIES_H
#define QK_CHECK_PLAN_ENTRIES_H

#include "check/plan.h"
#include "format/l1l2.h"

#define QK_ENTRY_ALL_ONES \
	UINT64_C(1) /* of a bitmap's table: the bits of a cluster that is not there */

struct qk_entry {
	uint64_t off; /* of its first word */
	uint64_t raw, bitmap;
	unsigned finding; /* why it changes */
};

/* Plan a change of phase UNLINK. QCOW_E_NOMEM. */
enum qcow_status qk_entry_change_word(struct qk_plan *p, enum qcow_repair_kind kind,
	unsigned finding, uint64_t off, uint64_t was, uint64_t now,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_entry_change(struct qk_plan *p, const struct qk_entry *was,
	const struct qk_entry *now, struct qcow_error *err) QK_MUST_USE;

struct qk_entry qk_entry_load(
	const struct qk_plan *p, const struct qk_l2ref *ref, const uint8_t *table, uint32_t i);
/* What qk_l2_decode is to compare with: the guest offset where it is known. */
qk_goff qk_entry_guest(
	const struct qk_plan *p, const struct qk_l2ref *ref, uint32_t i, const struct qk_entry *e);
/* The entry names nothing any more, and reads as zeros where the version can say so. */
void qk_entry_unlink(const struct qk_geometry *g, struct qk_entry *e, unsigned finding);
/* Whatever is wrong in it, or beyond the file, is not afterwards. */
void qk_entry_mend(const struct qk_plan *p, struct qk_entry *e, qk_goff guest);
/* Of the cluster, or the compressed data, that an entry names in the file; 0: none. */
uint64_t qk_entry_last_byte(const struct qk_geometry *g, const struct qk_l2_entry *e);

/* A copy of the L2 table that an entry of an L1 table names. */
struct qk_plan_copy qk_entry_copy(
	const struct qk_plan *p, const struct qk_refs_entry *e, unsigned finding);

/* Lists of L2 tables: they are added by ascending offset. QCOW_E_NOMEM. */
enum qcow_status qk_plan_add_table(
	struct qk_plan_tables *t, uint64_t off, uint32_t index, struct qcow_error *err) QK_MUST_USE;
const struct qk_plan_table *qk_plan_find_table(const struct qk_plan_tables *t, uint64_t off);

/* What the census says of a cluster, in the wide form; 0 outside its window. */
uint64_t qk_plan_word(const struct qk_plan *p, uint64_t cluster);

#endif
