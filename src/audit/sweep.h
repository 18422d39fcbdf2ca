/* SPDX-License-Identifier: MIT */
/*
 * sweep: ranges of the file that may overlap, as disjoint ranges with the number of covers. A hostile
 * image may name one table 65536 times: swept, it is read once.
 */
#ifndef QK_AUDIT_SWEEP_H
#define QK_AUDIT_SWEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct qk_sweep_edge {
	uint64_t off;
	int64_t delta;
};

struct qk_sweep {
	struct qk_sweep_edge *v;
	size_t n, cap;
	size_t at; /* iteration */
	uint64_t cover;
};

struct qk_sweep_range {
	uint64_t off, len, covers;
};

/* Add [off, off + len); off + len must not overflow; len 0 adds nothing. QCOW_E_NOMEM. */
enum qcow_status qk_sweep_add(
	struct qk_sweep *s, uint64_t off, uint64_t len, struct qcow_error *err) QK_MUST_USE;

/* Sort, once everything is added. */
void qk_sweep_sort(struct qk_sweep *s);

/* Start over; then each range in ascending order, false after the last. */
void qk_sweep_rewind(struct qk_sweep *s);
bool qk_sweep_next(struct qk_sweep *s, struct qk_sweep_range *out);

void qk_sweep_release(struct qk_sweep *s);

#endif
