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

/* ---- the state of a machine, behind the disk ---- */

#define FAR_STATE (UINT64_C(2) << 20) /* in another L2 table where clusters are small */

static void state(struct qkc_plan *p, uint64_t off, uint64_t len)
{
	qkc_plan_step(p, QKC_DO_WRITE_STATE, qkc_plan_state_off(p) + off, len);
}

static void first_state(struct qkc_plan *p, uint64_t off, uint64_t len)
{
	qkc_plan_first(p, QKC_DO_WRITE_STATE, qkc_plan_state_off(p) + off, len);
}

void qkc_state(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	whole(p, QKC_DO_WRITE, 1, 1);
	part(p, QKC_DO_WRITE, 6);
	state(p, 0, 2 * cluster_bytes(p));
	part(p, QKC_DO_WRITE, 2);
	state(p, 512, piece_bytes(p));
	whole(p, QKC_DO_DISCARD, 3, 1);
	state(p, FAR_STATE, piece_bytes(p));
	part(p, QKC_DO_WRITE, 3);
}

/* It stays with its snapshots, and is written anew beside them. */
void qkc_state_snapshots(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	first_state(p, 0, cluster_bytes(p));
	whole(p, QKC_DO_WRITE, 1, 1);
	make(p);
	state(p, 0, 2 * cluster_bytes(p));
	part(p, QKC_DO_WRITE, 1);
	make(p);
	state(p, 512, piece_bytes(p));
	apply(p, 0);
	state(p, cluster_bytes(p), piece_bytes(p));
	delete_some(p, 1);
	apply(p, 0);
}

void qkc_state_bitmaps(struct qkc_plan *p)
{
	p->has_bitmaps = true;
	p->disk_bytes = 64 * cluster_bytes(p);
	first(p, QKC_DO_WRITE, 0, 4);
	state(p, 0, cluster_bytes(p));
	whole(p, QKC_DO_WRITE, 1, 1);
	state(p, 0, piece_bytes(p));
	flush(p);
	state(p, FAR_STATE, cluster_bytes(p));
	part(p, QKC_DO_WRITE, 8);
}

/* A longer disk below does not show in it. */
void qkc_state_backing(struct qkc_plan *p)
{
	p->disk_bytes = 20 * cluster_bytes(p) + 512;
	p->backing_bytes = qkc_plan_state_off(p) + 4 * cluster_bytes(p);
	if (p->config.cluster_bits > 12)
		p->backing_bytes = 21 * cluster_bytes(p);
	part(p, QKC_DO_WRITE, 1);
	state(p, 512, 1024);
	qkc_plan_step(p, QKC_DO_WRITE, 20 * cluster_bytes(p), 512);
	state(p, cluster_bytes(p) + 512, cluster_bytes(p));
	part(p, QKC_DO_ZERO, 3);
}

static void failing_state(struct qkc_plan *p, enum qkc_fail what, uint64_t nth)
{
	first(p, QKC_DO_WRITE, 0, 4);
	if (below(p, 2) != 0)
		first_state(p, 0, cluster_bytes(p));
	part(p, QKC_DO_WRITE, 1);
	fail(p, what, nth);
	state(p, 0, 2 * cluster_bytes(p));
	part(p, QKC_DO_WRITE, 7);
	flush(p);
	recover(p);
	state(p, 512, cluster_bytes(p));
	part(p, QKC_DO_WRITE, 2);
	flush(p);
}

void qkc_state_flush_fails(struct qkc_plan *p)
{
	failing_state(p, below(p, 2) != 0 ? QKC_FAIL_FLUSH : QKC_FAIL_FLUSH_DROP, 1 + below(p, 6));
}

void qkc_state_write_fails(struct qkc_plan *p)
{
	failing_state(p, below(p, 3) != 0 ? QKC_FAIL_WRITE : QKC_FAIL_SPACE, 1 + below(p, 8));
}

void qkc_state_random(struct qkc_plan *p)
{
	unsigned n = 0;
	p->is_extended = p->config.version == 3 && p->config.cluster_bits >= 14 && below(p, 2) != 0;
	p->crypt = below(p, 4) == 0 ? "aes" : NULL;
	some_first(p);
	if (p->crypt == NULL && below(p, 2) != 0)
		first_state(p, 0, cluster_bytes(p));
	for (unsigned i = 0; i < 5; i++) {
		uint64_t what = below(p, 4);
		some_steps(p, 2, 7);
		state(p, below(p, 6) * piece_bytes(p) + (below(p, 8) == 0 ? FAR_STATE : 0),
			(1 + below(p, 4)) * piece_bytes(p));
		if (n == 0 || what == 0) {
			make(p);
			n++;
		} else if (what == 1) {
			apply(p, below(p, n));
		} else if (what == 2) {
			delete_some(p, UINT64_C(1) << below(p, n));
			n--;
		}
	}
}
