/* SPDX-License-Identifier: MIT */
/* subcluster: see subcluster.h. */
#include "engine/subcluster.h"

#include "base/err.h"
#include "base/num.h"

#define SUBCLUSTERS 32U

uint32_t qk_sub_mask(const struct qk_geometry *g, uint64_t from, uint64_t to)
{
	if (from >= to)
		return 0;
	uint64_t first = from / g->subcluster_size, last = (to - 1) / g->subcluster_size;
	QK_ASSERT_VOID(Y1, last < SUBCLUSTERS);
	return UINT32_MAX << first & UINT32_MAX >> (SUBCLUSTERS - 1 - last);
}

uint32_t qk_sub_kept(const struct qk_l2_entry *e)
{
	return e->type == QK_L2_COMPRESSED ? UINT32_MAX : e->alloc;
}

uint64_t qk_sub_head(
	const struct qk_geometry *g, const struct qk_l2_entry *e, bool in_place, uint64_t from)
{
	uint32_t kept = qk_sub_kept(e);
	uint64_t first = from / g->subcluster_size;
	if (in_place)
		return (kept >> first & 1) != 0 ? 0 : from % g->subcluster_size;
	while (first > 0 && (kept >> (first - 1) & 1) != 0)
		first--;
	return from - first * g->subcluster_size;
}

uint64_t qk_sub_tail(
	const struct qk_geometry *g, const struct qk_l2_entry *e, bool in_place, uint64_t to)
{
	uint32_t kept = qk_sub_kept(e);
	uint64_t last = (to - 1) / g->subcluster_size;
	if (in_place)
		return (kept >> last & 1) != 0 ? 0 : (last + 1) * g->subcluster_size - to;
	while (last + 1 < SUBCLUSTERS && (kept >> (last + 1) & 1) != 0)
		last++;
	return (last + 1) * g->subcluster_size - to;
}

struct qk_sub_run qk_sub_next(uint32_t *mask)
{
	uint32_t first = (uint32_t)__builtin_ctz(*mask);
	uint32_t n = 0;
	while (first + n < SUBCLUSTERS && (*mask >> (first + n) & 1) != 0)
		*mask &= ~(UINT32_C(1) << (first + n++));
	return (struct qk_sub_run){first, n};
}
