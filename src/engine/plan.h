/* SPDX-License-Identifier: MIT */
/*
 * plan: what a write does to the clusters of one group, step by step. Pure: entries in, steps out.
 *
 *	entry				step
 *	plain, COPIED			IN_PLACE	data only
 *	plain, one reference		ADOPT		data in place, and COPIED is put right
 *	zero, with a cluster of its own	REFILL		the whole cluster, then the zero flag goes
 *	everything else			ALLOCATE	a new cluster; the old one, if any, loses a reference
 *
 * An extended entry with a cluster of its own, of which a subcluster is not allocated: REFILL too, of the subclusters
 * that are touched.
 */
#ifndef QK_ENGINE_PLAN_H
#define QK_ENGINE_PLAN_H

#include "format/l1l2.h"

enum qk_step_kind {
	QK_STEP_IN_PLACE,
	QK_STEP_ADOPT,
	QK_STEP_REFILL,
	QK_STEP_ALLOCATE
};

struct qk_step {
	enum qk_step_kind kind;
	uint32_t first, n; /* entries */
	qk_hoff host; /* of the first cluster, contiguous; ALLOCATE: where to go on if that is free, or 0 */
};

struct qk_plan {
	const struct qk_l2_entry *entries; /* judged: without findings, from the first step's on */
	uint64_t owned; /* a bit for each that has a host cluster with one reference */
	uint64_t cluster_size;
	bool is_extended;
};

/* The step for entries from `first` on, at most to `end`. */
struct qk_step qk_plan_step(const struct qk_plan *plan, uint32_t first, uint32_t end);

#endif
