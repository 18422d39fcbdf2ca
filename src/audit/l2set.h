/* SPDX-License-Identifier: MIT */
/*
 * l2set: the distinct L2 tables that L1 tables name, with how often, within a fixed amount of memory: so
 * each table is read once however many snapshots share it. Like the census, a set that runs full forgets
 * the upper half and lowers `hi`; the next batch starts there.
 */
#ifndef QK_AUDIT_L2SET_H
#define QK_AUDIT_L2SET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define QK_L2SET_NO_INDEX UINT32_MAX

struct qk_l2ref {
	uint64_t off; /* of the table in the file */
	uint64_t weight; /* L1 entries that name it */
	uint32_t l1_index; /* of the first active one, or QK_L2SET_NO_INDEX */
	uint32_t n_active; /* how many of them are active */
	uint32_t flags; /* QK_CENSUS_COPIED, _UNCOPIED as seen in active entries */
};

struct qk_l2set {
	uint64_t lo, hi; /* offsets that this batch holds: [lo, hi) */
	uint32_t n, max;
	struct qk_l2ref *v;
	uint32_t *slots; /* index + 1, 0 = empty */
	uint32_t slot_mask;
};

/* QCOW_E_NOMEM. */
enum qcow_status qk_l2set_init(
	struct qk_l2set *s, uint64_t memory_bytes, struct qcow_error *err) QK_MUST_USE;
void qk_l2set_release(struct qk_l2set *s);

/* Empty the set; it will hold offsets from lo on. */
void qk_l2set_begin(struct qk_l2set *s, uint64_t lo);

/* `ref` names one table; where the set holds it already the two are merged. */
void qk_l2set_add(struct qk_l2set *s, const struct qk_l2ref *ref);

/* Order for reading: by host offset. Nothing is added after it. */
void qk_l2set_sort(struct qk_l2set *s);

#endif
