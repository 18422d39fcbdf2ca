/* SPDX-License-Identifier: MIT */
/*
 * compare: one pass's census against the refcount blocks, as arrays.
 */
#ifndef QK_CHECK_COMPARE_H
#define QK_CHECK_COMPARE_H

#include "audit/audit.h"
#include "audit/census.h"
#include "audit/reftable.h"

struct qk_compare {
	struct qk_audit *a;
	struct qk_census *census;
	const struct qk_reftable *rt;
	uint8_t *block; /* a cluster */
	uint64_t n_clusters; /* of the file */
	uint64_t last_in_use; /* highest cluster with a refcount or a reference, + 1 */
	uint64_t n_disagree; /* clusters of this pass whose COPIED disagrees somewhere */
};

/*
 * Compare clusters [census->lo, min(census->hi, n_clusters)) and report each that differs. Afterwards
 * the census holds marks instead of flags: OVERLAP where an active entry's COPIED disagrees with the stored
 * refcount, with EXCLUSIVE where that refcount is 1.
 */
void qk_compare_pass(struct qk_compare *c);

/* Note the refcount blocks that count clusters past the end of the file. */
void qk_compare_past_end(struct qk_compare *c);

#endif
