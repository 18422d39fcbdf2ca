/* SPDX-License-Identifier: MIT */
/* plan: see plan.h. */
#include "engine/plan.h"

static enum qk_step_kind kind_of(const struct qk_plan *plan, uint32_t i)
{
	const struct qk_l2_entry *e = &plan->entries[i];
	if ((plan->owned >> i & 1) == 0)
		return QK_STEP_ALLOCATE;
	if (e->type == QK_L2_ZERO_ALLOC)
		return QK_STEP_REFILL;
	if (plan->is_extended && e->alloc != UINT32_MAX)
		return QK_STEP_REFILL;
	return e->copied ? QK_STEP_IN_PLACE : QK_STEP_ADOPT;
}

static bool goes_on(const struct qk_plan *plan, const struct qk_step *step, uint32_t i)
{
	if (kind_of(plan, i) != step->kind)
		return false;
	return step->kind == QK_STEP_ALLOCATE ||
	       plan->entries[i].host_off.v == step->host.v + step->n * plan->cluster_size;
}

struct qk_step qk_plan_step(const struct qk_plan *plan, uint32_t first, uint32_t end)
{
	struct qk_step step = {.kind = kind_of(plan, first), .first = first, .n = 1};
	if (step.kind != QK_STEP_ALLOCATE)
		step.host = plan->entries[first].host_off;
	else if (first > 0 && plan->entries[first - 1].type == QK_L2_NORMAL &&
		 plan->entries[first - 1].finding == 0)
		step.host.v = plan->entries[first - 1].host_off.v + plan->cluster_size;
	while (step.first + step.n < end && goes_on(plan, &step, step.first + step.n))
		step.n++;
	return step;
}
