/* SPDX-License-Identifier: MIT */
/*
 * Workloads beside a data file: two files, each with flushes of its own. The disk is kept small, for a cluster lies where the
 * guest has it. With a raw data file, that file alone is judged too: at any moment it is the disk.
 */
#include "workloads.h"

#include <qcowkit/qcowkit.h>

/* 40 clusters, and past the first L2 table where that is not far away. */
static void beside(struct qkc_plan *p, bool is_raw)
{
	p->has_data_file = true;
	p->is_raw_data = is_raw;
	p->discard = QCOW_DISCARD_PASS_REQUEST;
	if (p->config.cluster_bits > 12)
		p->disk_bytes = 40 * cluster_bytes(p);
}

/* In an L2 table of its own where the disk has two. */
static uint64_t far(const struct qkc_plan *p)
{
	return l2_span(p) * cluster_bytes(p) < p->disk_bytes ? l2_span(p) : 30;
}

static void in_place(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 6);
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE_FUA, 3);
	whole(p, QKC_DO_WRITE, 1, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 2);
	part(p, QKC_DO_WRITE, 5);
	flush(p);
	part(p, QKC_DO_WRITE, 0);
}

static void allocate(struct qkc_plan *p)
{
	part(p, QKC_DO_WRITE, 0);
	whole(p, QKC_DO_WRITE, 2, 1);
	part(p, QKC_DO_WRITE, far(p));
	flush(p);
	part(p, QKC_DO_WRITE, 5);
	part(p, QKC_DO_WRITE, 0);
	whole(p, QKC_DO_WRITE, 9, 2);
	flush(p);
	part(p, QKC_DO_WRITE_FUA, far(p) + 1);
	part(p, QKC_DO_WRITE, 12);
}

/* What is given up is written again before and after the punch. */
static void discard(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 10);
	whole(p, QKC_DO_DISCARD, 1, 3);
	part(p, QKC_DO_WRITE, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 3);
	whole(p, QKC_DO_DISCARD, 6, 2);
	flush(p);
	whole(p, QKC_DO_WRITE, 6, 1);
	part(p, QKC_DO_WRITE, 7);
	whole(p, QKC_DO_DISCARD, 2, 1);
	flush(p);
	part(p, QKC_DO_WRITE, 1);
}

static void zero(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 8);
	whole(p, QKC_DO_ZERO, 1, 2);
	part(p, QKC_DO_ZERO, 4);
	flush(p);
	part(p, QKC_DO_WRITE, 1);
	whole(p, QKC_DO_ZERO_UNMAP, 5, 2);
	part(p, QKC_DO_ZERO, 20);
	flush(p);
	part(p, QKC_DO_WRITE, 6);
	part(p, QKC_DO_WRITE, 2);
	whole(p, QKC_DO_ZERO_UNMAP, 20, 1);
}

static void reopened(struct qkc_plan *p)
{
	part(p, QKC_DO_WRITE, 0);
	qkc_plan_step(p, QKC_DO_REOPEN, 0, 0);
	part(p, QKC_DO_WRITE, 1);
	whole(p, QKC_DO_DISCARD, 0, 1);
	qkc_plan_step(p, QKC_DO_REOPEN, 0, 0);
	whole(p, QKC_DO_WRITE, 0, 2);
	flush(p);
}

static void some(struct qkc_plan *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t cluster = below(p, 8) == 0 ? far(p) : below(p, 12);
		if (below(p, 4) == 0)
			flush(p);
		else if (below(p, 2) == 0)
			part(p, some_act(p, 7), cluster);
		else
			whole(p, some_act(p, 7), cluster, 1 + below(p, 3));
	}
}

static void by_chance(struct qkc_plan *p)
{
	/* nothing lies below a raw one */
	if (!p->is_raw_data && below(p, 2) != 0)
		p->backing_bytes = below(p, 14) * cluster_bytes(p) + 512 * (1 + below(p, 9));
	if (below(p, 3) == 0)
		p->disk_bytes -= 512 * below(p, cluster_bytes(p) / 512);
	p->has_bitmaps = below(p, 4) == 0;
	if (below(p, 3) == 0)
		p->discard = 0;
	if (below(p, 3) == 0)
		p->discard |= QCOW_DISCARD_NO_UNREF;
	some_first(p);
	some(p, 14);
}

static void failing(struct qkc_plan *p, enum qkc_fail how)
{
	first(p, QKC_DO_WRITE, 0, 6);
	fail(p, how, 1 + below(p, 4));
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, 8);
	whole(p, QKC_DO_DISCARD, 3, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 4);
	flush(p);
	recover(p);
	part(p, QKC_DO_WRITE, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 9);
}

/* A flush of one file fails, its cache is dropped, and what was written to the other file is there. New tables and old ones,
 * places that are written again, and parts of them. */
static void dropping(struct qkc_plan *p, enum qkc_only_file file, bool reopens)
{
	first(p, QKC_DO_WRITE, 0, 8);
	whole(p, QKC_DO_DISCARD, 1, 2);
	flush(p);
	fail(p, (enum qkc_fail)(QKC_FAIL_FLUSH_DROP | file), 1 + below(p, 3));
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, 1);
	part(p, QKC_DO_WRITE, 10);
	whole(p, QKC_DO_DISCARD, 4, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 4);
	part(p, QKC_DO_WRITE, far(p));
	whole(p, QKC_DO_ZERO, 6, 1);
	flush(p);
	part(p, QKC_DO_WRITE, 6);
	whole(p, QKC_DO_WRITE, 2, 1);
	flush(p);
	if (reopens)
		fail(p, QKC_FAIL_NONE, 1);
	else
		recover(p);
	if (reopens)
		qkc_plan_step(p, QKC_DO_REOPEN, 0, 0);
	part(p, QKC_DO_WRITE, 12);
	part(p, QKC_DO_WRITE, 10);
	flush(p);
	part(p, QKC_DO_WRITE, 4);
}

void qkc_data_dropped(struct qkc_plan *p)
{
	beside(p, false);
	dropping(p, QKC_ONLY_DATA_FILE, false);
}

void qkc_data_dropped_reopened(struct qkc_plan *p)
{
	beside(p, below(p, 2) != 0);
	dropping(p, QKC_ONLY_DATA_FILE, true);
}

void qkc_data_image_dropped(struct qkc_plan *p)
{
	beside(p, false);
	dropping(p, QKC_ONLY_IMAGE, false);
}

void qkc_data_image_dropped_reopened(struct qkc_plan *p)
{
	beside(p, below(p, 2) != 0);
	dropping(p, QKC_ONLY_IMAGE, true);
}

void qkc_raw_data_dropped(struct qkc_plan *p)
{
	beside(p, true);
	dropping(p, below(p, 3) != 0 ? QKC_ONLY_DATA_FILE : QKC_ONLY_IMAGE, false);
}

/* What the flushes of either file lose, with what is laid out by chance before it. */
void qkc_data_dropped_random(struct qkc_plan *p)
{
	beside(p, false);
	p->is_extended = p->config.cluster_bits >= 14 && below(p, 2) != 0;
	by_chance(p);
	fail(p,
		(enum qkc_fail)(QKC_FAIL_FLUSH_DROP |
				(below(p, 2) != 0 ? QKC_ONLY_DATA_FILE : QKC_ONLY_IMAGE)),
		1 + below(p, 3));
	some(p, 8);
	flush(p);
	recover(p);
	some(p, 4);
}

/* Space ends in one file or in both, comes back, and nobody is asked to recover. */
void qkc_data_no_space(struct qkc_plan *p)
{
	beside(p, below(p, 2) != 0);
	some_first(p);
	for (unsigned i = 0; i < 2; i++) {
		some(p, 2);
		fail(p, (enum qkc_fail)(QKC_FAIL_SPACE | below(p, 3) * QKC_ONLY_IMAGE),
			1 + below(p, 5));
		some(p, 5);
		flush(p);
		fail(p, QKC_FAIL_NONE, 1);
		some(p, 3);
		flush(p);
	}
}

void qkc_data_in_place(struct qkc_plan *p)
{
	beside(p, false);
	in_place(p);
}

void qkc_data_allocate(struct qkc_plan *p)
{
	beside(p, false);
	allocate(p);
}

void qkc_data_discard(struct qkc_plan *p)
{
	beside(p, false);
	discard(p);
}

/* Zero clusters keep theirs, which are punched and written again. */
void qkc_data_kept(struct qkc_plan *p)
{
	beside(p, false);
	p->discard |= QCOW_DISCARD_NO_UNREF;
	discard(p);
	whole(p, QKC_DO_ZERO_UNMAP, 6, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 6);
}

void qkc_data_zero(struct qkc_plan *p)
{
	beside(p, false);
	zero(p);
}

void qkc_data_backing(struct qkc_plan *p)
{
	beside(p, false);
	p->backing_bytes = 10 * cluster_bytes(p) + 1536;
	discard(p);
	part(p, QKC_DO_WRITE, 8);
	part(p, QKC_DO_ZERO, 9);
}

void qkc_data_reopened(struct qkc_plan *p)
{
	beside(p, below(p, 2) != 0);
	reopened(p);
}

void qkc_data_random(struct qkc_plan *p)
{
	beside(p, false);
	by_chance(p);
}

void qkc_data_sub_random(struct qkc_plan *p)
{
	beside(p, below(p, 2) != 0);
	p->is_extended = true;
	by_chance(p);
}

void qkc_data_flush_fails(struct qkc_plan *p)
{
	beside(p, below(p, 2) != 0);
	failing(p, (enum qkc_fail)(QKC_FAIL_FLUSH | below(p, 3) * QKC_ONLY_IMAGE));
}

void qkc_data_write_fails(struct qkc_plan *p)
{
	beside(p, below(p, 2) != 0);
	failing(p, QKC_FAIL_WRITE);
}

void qkc_raw_data_in_place(struct qkc_plan *p)
{
	beside(p, true);
	in_place(p);
}

void qkc_raw_data_allocate(struct qkc_plan *p)
{
	beside(p, true);
	allocate(p);
}

void qkc_raw_data_discard(struct qkc_plan *p)
{
	beside(p, true);
	discard(p);
}

void qkc_raw_data_zero(struct qkc_plan *p)
{
	beside(p, true);
	zero(p);
}

void qkc_raw_data_random(struct qkc_plan *p)
{
	beside(p, true);
	by_chance(p);
}
