/* SPDX-License-Identifier: MIT */
/* Workloads for images with extended L2 entries. */
#include "workloads.h"

/* Sectors [first, first + n) of subcluster `at` of a cluster; they may run into the next ones. */
static void sub(struct qkc_plan *p, enum qkc_act act, uint64_t cluster, uint64_t at, uint64_t n)
{
	uint64_t size = cluster_bytes(p) / 32, within = n * 512 < size ? 512 : 0;
	qkc_plan_step(p, act, cluster * cluster_bytes(p) + at * size + within, n * 512);
}

/* The same of whole subclusters. */
static void subs(struct qkc_plan *p, enum qkc_act act, uint64_t cluster, uint64_t at, uint64_t n)
{
	uint64_t size = cluster_bytes(p) / 32;
	qkc_plan_step(p, act, cluster * cluster_bytes(p) + at * size, n * size);
}

static void first_subs(struct qkc_plan *p, uint64_t cluster, uint64_t at, uint64_t n)
{
	uint64_t size = cluster_bytes(p) / 32;
	qkc_plan_first(p, QKC_DO_WRITE, cluster * cluster_bytes(p) + at * size, n * size);
}

void qkc_sub_allocate(struct qkc_plan *p)
{
	p->is_extended = true;
	first_subs(p, 1, 4, 2);
	sub(p, QKC_DO_WRITE, 0, 3, 1);
	sub(p, QKC_DO_WRITE, 1, 8, 1);
	flush(p);
	sub(p, QKC_DO_WRITE, 0, 4, 1);
	subs(p, QKC_DO_WRITE, 1, 3, 4);
	sub(p, QKC_DO_WRITE, 0, 3, 1);
	flush(p);
	subs(p, QKC_DO_WRITE, 0, 20, 40);
	sub(p, QKC_DO_WRITE, l2_span(p), 31, 1);
	flush(p);
	sub(p, QKC_DO_WRITE, 0, 31, 1);
}

void qkc_sub_zero(struct qkc_plan *p)
{
	p->is_extended = true;
	first(p, QKC_DO_WRITE, 0, 3);
	subs(p, QKC_DO_ZERO, 0, 2, 3);
	sub(p, QKC_DO_ZERO, 1, 2, 1);
	flush(p);
	sub(p, QKC_DO_WRITE, 0, 3, 1);
	subs(p, QKC_DO_ZERO_UNMAP, 1, 30, 4);
	flush(p);
	sub(p, QKC_DO_WRITE, 1, 31, 1);
	sub(p, QKC_DO_WRITE, 2, 0, 1);
	whole(p, QKC_DO_ZERO, 0, 1);
	flush(p);
	sub(p, QKC_DO_WRITE, 0, 3, 1);
	subs(p, QKC_DO_ZERO, 5, 3, 2);
	flush(p);
	sub(p, QKC_DO_WRITE, 5, 4, 1);
}

void qkc_sub_discard(struct qkc_plan *p)
{
	p->is_extended = true;
	first(p, QKC_DO_WRITE, 0, 4);
	first_subs(p, 5, 3, 3);
	whole(p, QKC_DO_DISCARD, 1, 2);
	sub(p, QKC_DO_WRITE, 8, 3, 1);
	flush(p);
	sub(p, QKC_DO_WRITE, 1, 7, 1);
	whole(p, QKC_DO_DISCARD, 5, 1);
	whole(p, QKC_DO_ZERO_UNMAP, 3, 1);
	flush(p);
	sub(p, QKC_DO_WRITE, 9, 3, 1);
	sub(p, QKC_DO_WRITE, 10, 3, 1);
	sub(p, QKC_DO_WRITE, 5, 4, 1);
}

void qkc_sub_shared(struct qkc_plan *p)
{
	p->is_extended = true;
	first_subs(p, 0, 2, 3);
	first_subs(p, 0, 8, 1);
	first_subs(p, 0, 20, 12);
	first(p, QKC_DO_WRITE, 1, 2);
	p->has_snapshot = true;
	sub(p, QKC_DO_WRITE, 0, 3, 1);
	subs(p, QKC_DO_ZERO, 1, 3, 2);
	flush(p);
	sub(p, QKC_DO_WRITE, 0, 12, 1);
	sub(p, QKC_DO_WRITE, 1, 4, 1);
	subs(p, QKC_DO_WRITE, 1, 20, 20);
	flush(p);
	sub(p, QKC_DO_WRITE, 2, 30, 1);
	whole(p, QKC_DO_DISCARD, 1, 1);
}

void qkc_sub_backing(struct qkc_plan *p)
{
	p->is_extended = true;
	p->backing_bytes = 9 * cluster_bytes(p) + 1536;
	first_subs(p, 1, 4, 2);
	sub(p, QKC_DO_WRITE, 0, 3, 1);
	sub(p, QKC_DO_WRITE, 1, 3, 1);
	flush(p);
	sub(p, QKC_DO_WRITE, 1, 7, 1);
	subs(p, QKC_DO_ZERO, 1, 7, 2);
	subs(p, QKC_DO_ZERO, 2, 7, 2);
	flush(p);
	sub(p, QKC_DO_WRITE, 2, 8, 1);
	sub(p, QKC_DO_WRITE, 1, 8, 1);
	sub(p, QKC_DO_WRITE, 9, 0, 1);
	whole(p, QKC_DO_DISCARD, 0, 1);
}

void qkc_sub_compressed(struct qkc_plan *p)
{
	p->is_extended = true;
	first(p, QKC_DO_WRITE_COMPRESSED, 0, 5);
	sub(p, QKC_DO_WRITE, 0, 3, 1);
	subs(p, QKC_DO_ZERO, 1, 3, 2);
	flush(p);
	whole(p, QKC_DO_ZERO_UNMAP, 2, 1);
	sub(p, QKC_DO_WRITE, 3, 3, 1);
	sub(p, QKC_DO_WRITE, 0, 9, 1);
	flush(p);
	whole(p, QKC_DO_WRITE, 4, 2);
}

static void sub_some_steps(struct qkc_plan *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t cluster = below(p, 6), at = below(p, 32);
		if (below(p, 8) == 0)
			cluster += l2_span(p);
		if (below(p, 5) == 0)
			flush(p);
		else if (below(p, 5) == 0)
			whole(p, some_act(p, 7), cluster, 1 + below(p, 2));
		else if (below(p, 2) == 0)
			sub(p, some_act(p, 6), cluster, at, 1 + below(p, 4));
		else
			subs(p, some_act(p, 6), cluster, at, 1 + below(p, 20));
	}
}

static void sub_first(struct qkc_plan *p)
{
	p->is_extended = true;
	for (unsigned i = 0; i < 5; i++)
		first_subs(p, below(p, 6), below(p, 32), 1 + below(p, 20));
}

void qkc_sub_random(struct qkc_plan *p)
{
	sub_first(p);
	sub_some_steps(p, 14);
}

void qkc_sub_random_backing(struct qkc_plan *p)
{
	p->backing_bytes = 5 * cluster_bytes(p) + 512;
	qkc_sub_random(p);
}

void qkc_sub_random_snapshot(struct qkc_plan *p)
{
	sub_first(p);
	first(p, QKC_DO_WRITE_COMPRESSED, 8, 2);
	p->has_snapshot = true;
	sub(p, QKC_DO_WRITE, 8, below(p, 32), 1);
	sub_some_steps(p, 12);
}

static void sub_failing(struct qkc_plan *p, enum qkc_fail how)
{
	p->is_extended = true;
	first(p, QKC_DO_WRITE, 0, 2);
	p->has_snapshot = true;
	fail(p, how, 1 + below(p, 3));
	sub(p, QKC_DO_WRITE, 0, 3, 1);
	sub(p, QKC_DO_WRITE, 4, 3, 1);
	flush(p);
	subs(p, QKC_DO_ZERO, 1, 3, 2);
	sub(p, QKC_DO_WRITE, 4, 9, 1);
	flush(p);
	recover(p);
	sub(p, QKC_DO_WRITE, 1, 4, 1);
	sub(p, QKC_DO_WRITE, 4, 3, 1);
	flush(p);
	sub(p, QKC_DO_WRITE, 4, 12, 1);
}

void qkc_sub_failing_flush(struct qkc_plan *p)
{
	sub_failing(p, QKC_FAIL_FLUSH);
}

void qkc_sub_dropping_flush(struct qkc_plan *p)
{
	sub_failing(p, QKC_FAIL_FLUSH_DROP);
}
