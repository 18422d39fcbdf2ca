/* SPDX-License-Identifier: MIT */
/*
 * plan_changes: what a repair is going to write into structures that are there: words of 8 bytes, each with what it is now,
 * what it will be, and in which phase. And a store that reads as the image will read when all are written, so that
 * what is planned later sees what was planned before.
 */
#ifndef QK_CHECK_PLAN_CHANGES_H
#define QK_CHECK_PLAN_CHANGES_H

#include <qcowkit/manage.h>

#include "base/err.h"

struct qk_change {
	uint64_t off; /* in the file, a multiple of 8 */
	uint64_t was, now;
	uint32_t next; /* of the same sector: index + 1 */
	uint16_t finding; /* why, or 0 */
	uint8_t phase; /* enum qcow_repair_phase */
	uint8_t kind; /* enum qcow_repair_kind */
};

struct qk_changes {
	struct qk_change *v;
	uint32_t n, max, room;
	uint32_t *slots; /* hash of sectors: index + 1 of the first change, 0 = empty */
	uint32_t slot_mask;
	bool is_full; /* something was left out */
};

/* At most `max` changes. QCOW_E_NOMEM. */
enum qcow_status qk_changes_init(
	struct qk_changes *c, uint32_t max, struct qcow_error *err) QK_MUST_USE;
void qk_changes_release(struct qk_changes *c);
void qk_changes_clear(struct qk_changes *c);

/* Plan it; `now` replaces what was planned for the word in that phase. Where nothing is to change nothing is planned;
 * where the list is full is_full is set. QCOW_E_NOMEM. */
enum qcow_status qk_changes_add(
	struct qk_changes *c, const struct qk_change *change, struct qcow_error *err) QK_MUST_USE;

/* What was planned for the word in that phase, or NULL. */
const struct qk_change *qk_changes_find(
	const struct qk_changes *c, uint64_t off, enum qcow_repair_phase phase);

/* Only changes of the phases in the mask (1 << phase) stay. */
void qk_changes_keep(struct qk_changes *c, unsigned phases);

/* Order by phase, then offset; no find, add or read of the store afterwards. */
void qk_changes_sort(struct qk_changes *c);

/* A read-only store over `base`, which it does not own: as it reads with all changes. QCOW_E_NOMEM. */
enum qcow_status qk_changes_store(struct qk_changes *c, struct qcow_store *base,
	struct qcow_store **out, struct qcow_error *err) QK_MUST_USE;

#endif
