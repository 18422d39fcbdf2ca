/* SPDX-License-Identifier: MIT */
/*
 * Workloads in which clusters that are set free go back to the file system, or stay with zero clusters. Punches are logged as
 * any other call: a crash keeps or loses them.
 */
#include "workloads.h"

#include <qcowkit/qcowkit.h>

#define ALL_PASSED \
	((unsigned)QCOW_DISCARD_PASS_REQUEST | QCOW_DISCARD_PASS_SNAPSHOT | QCOW_DISCARD_PASS_OTHER)

/* What is freed is taken again at once, also beside what is not flushed. */
void qkc_punched(struct qkc_plan *p)
{
	p->discard = ALL_PASSED;
	first(p, QKC_DO_WRITE, 0, 8);
	whole(p, QKC_DO_DISCARD, 0, 4);
	part(p, QKC_DO_WRITE, 1);
	whole(p, QKC_DO_WRITE, 10, 2);
	flush(p);
	whole(p, QKC_DO_WRITE, 12, 2);
	whole(p, QKC_DO_DISCARD, 10, 1);
	part(p, QKC_DO_WRITE, 3);
	flush(p);
	part(p, QKC_DO_WRITE, 16);
	whole(p, QKC_DO_ZERO_UNMAP, 5, 2);
	flush(p);
	whole(p, QKC_DO_WRITE, 17, 2);
	part(p, QKC_DO_WRITE, 6);
}

void qkc_punched_shared(struct qkc_plan *p)
{
	p->discard = ALL_PASSED;
	first(p, QKC_DO_WRITE, 0, 6);
	p->has_snapshot = true;
	whole(p, QKC_DO_WRITE, 0, 3);
	flush(p);
	whole(p, QKC_DO_DISCARD, 1, 4);
	part(p, QKC_DO_WRITE, 8);
	flush(p);
	part(p, QKC_DO_WRITE, 1);
	part(p, QKC_DO_WRITE, 9);
	whole(p, QKC_DO_ZERO_UNMAP, 0, 2);
	flush(p);
	whole(p, QKC_DO_WRITE, 10, 2);
}

/* Streams that share a cluster, of which the last one goes. */
void qkc_punched_compressed(struct qkc_plan *p)
{
	p->discard = ALL_PASSED;
	first(p, QKC_DO_WRITE_COMPRESSED, 0, 8);
	part(p, QKC_DO_WRITE, 0);
	whole(p, QKC_DO_DISCARD, 1, 1);
	flush(p);
	whole(p, QKC_DO_WRITE_COMPRESSED, 2, 3);
	whole(p, QKC_DO_WRITE, 5, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 7);
	whole(p, QKC_DO_WRITE_COMPRESSED, 9, 2);
	flush(p);
	whole(p, QKC_DO_DISCARD, 2, 3);
	flush(p);
	part(p, QKC_DO_WRITE, 12);
}

/* Zero clusters keep theirs, which are punched and written again. */
void qkc_kept(struct qkc_plan *p)
{
	p->discard = ALL_PASSED | QCOW_DISCARD_NO_UNREF;
	first(p, QKC_DO_WRITE, 0, 6);
	whole(p, QKC_DO_DISCARD, 1, 3);
	part(p, QKC_DO_WRITE, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 1);
	whole(p, QKC_DO_ZERO_UNMAP, 4, 1);
	flush(p);
	whole(p, QKC_DO_WRITE, 3, 2);
	whole(p, QKC_DO_DISCARD, 3, 1);
	flush(p);
	part(p, QKC_DO_WRITE, 3);
	whole(p, QKC_DO_DISCARD, 0, 2);
}

void qkc_punched_flush_fails(struct qkc_plan *p)
{
	p->discard = ALL_PASSED |
		     (below(p, 2) != 0 && p->config.version == 3 ? (unsigned)QCOW_DISCARD_NO_UNREF
								 : 0);
	first(p, QKC_DO_WRITE, 0, 6);
	fail(p, below(p, 2) != 0 ? QKC_FAIL_FLUSH_DROP : QKC_FAIL_FLUSH, 1 + below(p, 3));
	whole(p, QKC_DO_DISCARD, 1, 2);
	part(p, QKC_DO_WRITE, 8);
	flush(p);
	recover(p);
	whole(p, QKC_DO_WRITE, 9, 2);
	whole(p, QKC_DO_DISCARD, 3, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 12);
	part(p, QKC_DO_WRITE, 2);
}

/* Any options, any steps; with subclusters where the clusters are large enough. */
void qkc_punched_random(struct qkc_plan *p)
{
	p->discard = (unsigned)below(p, 16) | QCOW_DISCARD_PASS_REQUEST;
	if (p->config.version == 2)
		p->discard &= ~(unsigned)QCOW_DISCARD_NO_UNREF;
	p->is_extended = p->config.version == 3 && p->config.cluster_bits >= 14 && below(p, 2) != 0;
	some_first(p);
	some_steps(p, 8, 7);
	whole(p, QKC_DO_DISCARD, below(p, 8), 1 + below(p, 4));
	flush(p);
	some_steps(p, 8, 7);
}
