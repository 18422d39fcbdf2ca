/* SPDX-License-Identifier: MIT */
/* Writes, discards and zeros with an enabled bitmap there. The judge looks at every bit, so the disk is small. */
#include "workloads_bitmap.h"

static void clusters(struct qkc_plan *p, enum qkc_act act, uint64_t at, uint64_t n)
{
	unsigned bits = p->config.cluster_bits;
	qkc_plan_step(p, act, at << bits, n << bits);
}

/* The second sector of a cluster; the only one of the smallest. */
static void sector(struct qkc_plan *p, uint64_t cluster)
{
	unsigned bits = p->config.cluster_bits;
	qkc_plan_step(p, QKC_DO_WRITE, (cluster << bits) + (bits > 9 ? 512 : 0), 512);
}

static void flush(struct qkc_plan *p)
{
	qkc_plan_step(p, QKC_DO_FLUSH, 0, 0);
}

static void fail_flush(struct qkc_plan *p, uint64_t nth)
{
	qkc_plan_step(p, QKC_DO_FAIL, QKC_FAIL_FLUSH, nth);
}

static void recover(struct qkc_plan *p)
{
	qkc_plan_step(p, QKC_DO_FAIL, QKC_FAIL_NONE, 1);
	qkc_plan_step(p, QKC_DO_RECOVER, 0, 0);
}

static void start(struct qkc_plan *p)
{
	unsigned bits = p->config.cluster_bits;
	p->has_bitmaps = true;
	p->disk_bytes = UINT64_C(64) << bits;
	qkc_plan_first(p, QKC_DO_WRITE, 0, UINT64_C(6) << bits);
	qkc_plan_between(p, QKC_DO_WRITE, UINT64_C(2) << bits, UINT64_C(1) << bits);
}

void qkc_bitmaps(struct qkc_plan *p)
{
	start(p);
	sector(p, 0);
	clusters(p, QKC_DO_WRITE, 8, 1);
	flush(p);
	clusters(p, QKC_DO_DISCARD, 3, 1);
	sector(p, 9);
	clusters(p, QKC_DO_ZERO, 5, 1);
}

void qkc_bitmaps_reopened(struct qkc_plan *p)
{
	qkc_bitmaps(p);
	qkc_plan_step(p, QKC_DO_REOPEN, 0, 0);
	sector(p, 20);
	sector(p, 0);
	qkc_plan_step(p, QKC_DO_REOPEN, 0, 0);
	clusters(p, QKC_DO_DISCARD, 8, 1);
}

void qkc_bitmaps_snapshot(struct qkc_plan *p)
{
	p->has_snapshot = true;
	qkc_bitmaps_reopened(p);
}

void qkc_bitmaps_device(struct qkc_plan *p)
{
	qkc_bitmaps_reopened(p);
	p->fixed_spare = 24;
}

void qkc_bitmaps_flush_fails(struct qkc_plan *p)
{
	qkc_bitmaps(p);
	fail_flush(p, 1);
	sector(p, 12);
	flush(p);
	recover(p);
	sector(p, 13);
}

void qkc_bitmaps_first_flush_fails(struct qkc_plan *p)
{
	start(p);
	fail_flush(p, 1);
	sector(p, 2);
	recover(p);
	sector(p, 3);
	sector(p, 9);
}

/* One of those of the last close, where it stores the bitmaps. */
void qkc_bitmaps_close_fails(struct qkc_plan *p)
{
	qkc_bitmaps_flush_fails(p);
	flush(p);
	fail_flush(p, 2 + qkt_rng_below(&p->rng, 2));
}
