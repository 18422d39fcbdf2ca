/* SPDX-License-Identifier: MIT */
/*
 * sweep: overlapping ranges to disjoint ones. Owns its edges; 32 bytes a range.
 */
#include "audit/sweep.h"

#include "base/mem.h"

static enum qcow_status reserve(struct qk_sweep *s, struct qcow_error *err)
{
	if (s->n + 2 <= s->cap)
		return QCOW_OK;
	size_t cap = s->cap == 0 ? 64 : s->cap * 2;
	struct qk_sweep_edge *v = qk_realloc(s->v, cap, sizeof(*v));
	if (v == NULL)
		return QK_FAIL_NOMEM(err);
	s->v = v;
	s->cap = cap;
	return QCOW_OK;
}

enum qcow_status qk_sweep_add(
	struct qk_sweep *s, uint64_t off, uint64_t len, struct qcow_error *err)
{
	if (len == 0)
		return QCOW_OK;
	QK_TRY(reserve(s, err));
	s->v[s->n++] = (struct qk_sweep_edge){off, 1};
	s->v[s->n++] = (struct qk_sweep_edge){off + len, -1};
	return QCOW_OK;
}

static int compare_edges(const void *a, const void *b)
{
	uint64_t x = ((const struct qk_sweep_edge *)a)->off;
	uint64_t y = ((const struct qk_sweep_edge *)b)->off;

	return (x > y) - (x < y);
}

void qk_sweep_sort(struct qk_sweep *s)
{
	if (s->n != 0)
		qsort(s->v, s->n, sizeof(*s->v), compare_edges);
	qk_sweep_rewind(s);
}

void qk_sweep_rewind(struct qk_sweep *s)
{
	s->at = 0;
	s->cover = 0;
}

bool qk_sweep_next(struct qk_sweep *s, struct qk_sweep_range *out)
{
	while (s->at < s->n) {
		uint64_t off = s->v[s->at].off;
		while (s->at < s->n && s->v[s->at].off == off)
			s->cover += (uint64_t)s->v[s->at++].delta;
		if (s->cover == 0)
			continue;
		*out = (struct qk_sweep_range){off, s->v[s->at].off - off, s->cover};
		return true;
	}
	return false;
}

void qk_sweep_release(struct qk_sweep *s)
{
	free(s->v);
	*s = (struct qk_sweep){0};
}
