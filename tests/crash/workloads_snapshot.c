/* SPDX-License-Identifier: MIT */
/*
 * Workloads that make, apply and delete snapshots, with compressed clusters and bitmaps there: each operation is wholly
 * before or wholly after in every state.
 */
#include "workloads.h"

static void make(struct qkc_plan *p)
{
	qkc_plan_step(p, QKC_DO_SNAPSHOT, 0, 0);
}

static void apply(struct qkc_plan *p, uint64_t index)
{
	qkc_plan_step(p, QKC_DO_APPLY, index, 0);
}

static void delete_some(struct qkc_plan *p, uint64_t mask)
{
	qkc_plan_step(p, QKC_DO_DELETE, mask, 0);
}

/* Plain and compressed data in two L2 tables. */
static void start(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	first(p, QKC_DO_WRITE_COMPRESSED, 6, 1);
	first(p, QKC_DO_WRITE_COMPRESSED, 7, 1);
	first(p, QKC_DO_WRITE, l2_span(p), 1);
	first(p, QKC_DO_ZERO, 9, 1);
}

void qkc_snapshot_create(struct qkc_plan *p)
{
	start(p);
	whole(p, QKC_DO_WRITE, 1, 1);
	make(p);
	whole(p, QKC_DO_WRITE, 2, 1);
	part(p, QKC_DO_WRITE, 7);
	make(p);
	flush(p);
	whole(p, QKC_DO_WRITE, 0, 2);
}

void qkc_snapshot_apply(struct qkc_plan *p)
{
	start(p);
	p->has_snapshot = true;
	whole(p, QKC_DO_WRITE, 1, 2);
	whole(p, QKC_DO_WRITE, 6, 1);
	part(p, QKC_DO_WRITE, 11);
	apply(p, 0);
	whole(p, QKC_DO_WRITE, 2, 1);
	flush(p);
	apply(p, 0);
}

void qkc_snapshot_delete(struct qkc_plan *p)
{
	start(p);
	p->has_snapshot = true;
	whole(p, QKC_DO_WRITE, 1, 2);
	part(p, QKC_DO_WRITE, 6);
	delete_some(p, 1);
	whole(p, QKC_DO_WRITE, 0, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 3);
}

void qkc_snapshot_several(struct qkc_plan *p)
{
	start(p);
	p->has_snapshot = true;
	whole(p, QKC_DO_WRITE, 1, 1);
	make(p);
	whole(p, QKC_DO_WRITE, 2, 1);
	make(p);
	apply(p, 1);
	whole(p, QKC_DO_DISCARD, 3, 1);
	delete_some(p, 5);
	whole(p, QKC_DO_WRITE, 7, 1);
	delete_some(p, 1);
}

/* The judge looks at every bit: a small disk. */
void qkc_snapshot_bitmaps(struct qkc_plan *p)
{
	p->has_bitmaps = true;
	p->disk_bytes = 64 * cluster_bytes(p);
	first(p, QKC_DO_WRITE, 0, 4);
	first(p, QKC_DO_WRITE_COMPRESSED, 6, 1);
	whole(p, QKC_DO_WRITE, 1, 1);
	make(p);
	whole(p, QKC_DO_WRITE, 2, 1);
	apply(p, 0);
	whole(p, QKC_DO_WRITE, 20, 1);
	delete_some(p, 1);
}

void qkc_snapshot_device(struct qkc_plan *p)
{
	qkc_snapshot_several(p);
	p->fixed_spare = 256;
}

void qkc_snapshot_random(struct qkc_plan *p)
{
	unsigned n = 0;
	some_first(p);
	first(p, QKC_DO_WRITE_COMPRESSED, 16 + below(p, 3), 1);
	for (unsigned i = 0; i < 5; i++) {
		uint64_t what = below(p, 3);
		some_steps(p, 2, 7);
		if (n == 0 || what == 0) {
			make(p);
			n++;
		} else if (what == 1) {
			apply(p, below(p, n));
		} else {
			delete_some(p, UINT64_C(1) << below(p, n));
			n--;
		}
	}
}

void qkc_snapshot_sub_random(struct qkc_plan *p)
{
	p->is_extended = true;
	qkc_snapshot_random(p);
}
