/* SPDX-License-Identifier: MIT */
/* Workloads in which a call of the disk fails: a flush, a write, for want of space; with a recovery, without one, and in one. */
#include "workloads.h"

#include <qcowkit/qcowkit.h>

static void failing_flush(struct qkc_plan *p, enum qkc_fail how, uint64_t nth)
{
	first(p, QKC_DO_WRITE, 0, 4);
	p->has_snapshot = true;
	fail(p, how, nth);
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, 6);
	flush(p);
	part(p, QKC_DO_WRITE, 1);
	flush(p);
	recover(p);
	part(p, QKC_DO_WRITE, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 7);
}

void qkc_failing_flush_1(struct qkc_plan *p)
{
	failing_flush(p, QKC_FAIL_FLUSH, 1);
}

void qkc_dropping_flush_1(struct qkc_plan *p)
{
	failing_flush(p, QKC_FAIL_FLUSH_DROP, 1);
}

void qkc_failing_flush_2(struct qkc_plan *p)
{
	failing_flush(p, QKC_FAIL_FLUSH, 2);
}

void qkc_dropping_flush_2(struct qkc_plan *p)
{
	failing_flush(p, QKC_FAIL_FLUSH_DROP, 2);
}

void qkc_failing_flush_3(struct qkc_plan *p)
{
	failing_flush(p, QKC_FAIL_FLUSH, 3);
}

void qkc_dropping_flush_3(struct qkc_plan *p)
{
	failing_flush(p, QKC_FAIL_FLUSH_DROP, 3);
}

void qkc_failing_flush_discard(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 6);
	fail(p, QKC_FAIL_FLUSH, 1 + below(p, 3));
	whole(p, QKC_DO_DISCARD, 1, 2);
	part(p, QKC_DO_WRITE, 8);
	flush(p);
	recover(p);
	whole(p, QKC_DO_WRITE, 9, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 12);
}

/* Given up and opened again, by another process perhaps. */
void qkc_dropped_and_reopened(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 6);
	fail(p, QKC_FAIL_FLUSH_DROP, 1 + below(p, 3));
	part(p, QKC_DO_WRITE, 0);
	whole(p, QKC_DO_DISCARD, 2, 1);
	part(p, QKC_DO_WRITE, 8);
	flush(p);
	part(p, QKC_DO_WRITE, l2_span(p));
	flush(p);
	fail(p, QKC_FAIL_NONE, 1);
	qkc_plan_step(p, QKC_DO_REOPEN, 0, 0);
	whole(p, QKC_DO_WRITE, 9, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 12);
}

void qkc_dropping_flush_reuse(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 6);
	whole(p, QKC_DO_DISCARD, 1, 3);
	flush(p);
	fail(p, QKC_FAIL_FLUSH_DROP, 1 + below(p, 3));
	part(p, QKC_DO_WRITE, 8);
	part(p, QKC_DO_WRITE, 1);
	flush(p);
	part(p, QKC_DO_WRITE, l2_span(p));
	flush(p);
	recover(p);
	whole(p, QKC_DO_WRITE, 9, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 12);
}

void qkc_failing_write(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	fail(p, QKC_FAIL_WRITE, 1 + below(p, 6));
	part(p, QKC_DO_WRITE, 0);
	whole(p, QKC_DO_WRITE, 6, 1);
	part(p, QKC_DO_WRITE, l2_span(p));
	flush(p);
	recover(p);
	part(p, QKC_DO_WRITE, 6);
	part(p, QKC_DO_WRITE, 10);
	flush(p);
	whole(p, QKC_DO_WRITE, 12, 1);
}

void qkc_no_space(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 3);
	part(p, QKC_DO_WRITE, 5);
	fail(p, QKC_FAIL_SPACE, 1 + below(p, 3));
	part(p, QKC_DO_WRITE, 7);
	part(p, QKC_DO_WRITE, 8);
	flush(p);
	recover(p);
	part(p, QKC_DO_WRITE, 7);
	flush(p);
	part(p, QKC_DO_WRITE, 9);
}

/* An image of any kind. */
static void any_image(struct qkc_plan *p)
{
	bool is_v3 = p->config.version == 3;
	p->has_snapshot = p->config.refcount_bits != 1 && below(p, 2) != 0;
	p->is_extended = is_v3 && p->config.cluster_bits >= 14 && below(p, 3) == 0;
	p->has_bitmaps = is_v3 && below(p, 4) == 0;
	if (below(p, 3) == 0)
		p->backing_bytes = below(p, 14) * cluster_bytes(p) + 512 * (1 + below(p, 9));
	some_first(p);
}

/* Space ends, comes back, ends and comes back, and nobody is asked to recover. */
void qkc_no_space_goes_on(struct qkc_plan *p)
{
	any_image(p);
	for (unsigned i = 0; i < 2; i++) {
		some_steps(p, 2, 7);
		fail(p, QKC_FAIL_SPACE, 1 + below(p, 6));
		some_steps(p, 2, 7);
		if (below(p, 2) != 0)
			whole(p, QKC_DO_WRITE_COMPRESSED, below(p, 12), 1);
		some_steps(p, 2, 7);
		flush(p);
		fail(p, QKC_FAIL_NONE, 1);
		whole(p, QKC_DO_WRITE_COMPRESSED, below(p, 12), 1);
		some_steps(p, 3, 7);
		flush(p);
	}
}

/* What failed once fails again while it is put right, or there is no room for that. */
static void fails_in_recovery(struct qkc_plan *p, enum qkc_fail what)
{
	enum qkc_fail again = below(p, 3) != 0 ? what : QKC_FAIL_SPACE;
	first(p, QKC_DO_WRITE, 0, 6);
	fail(p, what, 1 + below(p, 3));
	part(p, QKC_DO_WRITE, 0);
	whole(p, QKC_DO_DISCARD, 2, 1);
	part(p, QKC_DO_WRITE, 8);
	flush(p);
	part(p, QKC_DO_WRITE, l2_span(p));
	flush(p);
	for (unsigned i = 0; i < 2; i++) {
		fail(p, again, 1 + below(p, 4));
		qkc_plan_step(p, QKC_DO_RECOVER, 0, 0);
	}
	recover(p);
	whole(p, QKC_DO_WRITE, 9, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 12);
}

/* One failure after another, each put right before the next. */
void qkc_failures_random(struct qkc_plan *p)
{
	static const enum qkc_fail fails[] = {
		QKC_FAIL_FLUSH_DROP, QKC_FAIL_FLUSH_DROP, QKC_FAIL_WRITE, QKC_FAIL_SPACE};
	any_image(p);
	if (below(p, 2) != 0)
		p->discard = QCOW_DISCARD_PASS_REQUEST | QCOW_DISCARD_PASS_OTHER;
	if (p->config.version == 3 && below(p, 3) == 0)
		p->discard |= QCOW_DISCARD_NO_UNREF;
	for (unsigned i = 0; i < 3; i++) {
		some_steps(p, 2, 7);
		fail(p, fails[below(p, 4)], 1 + below(p, 6));
		some_steps(p, 2, 7);
		if (below(p, 3) == 0)
			whole(p, QKC_DO_WRITE_COMPRESSED, below(p, 12), 1);
		some_steps(p, 2, 7);
		flush(p);
		recover(p);
	}
	some_steps(p, 2, 7);
}

void qkc_recovery_flush_dropped(struct qkc_plan *p)
{
	fails_in_recovery(p, QKC_FAIL_FLUSH_DROP);
}

void qkc_recovery_write_fails(struct qkc_plan *p)
{
	fails_in_recovery(p, QKC_FAIL_WRITE);
}
