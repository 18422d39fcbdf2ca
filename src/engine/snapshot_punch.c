/* SPDX-License-Identifier: MIT */
/*
 * snapshot_punch: what lost its last reference with a snapshot goes back to the file system, where that is asked for
 * (QCOW_DISCARD_PASS_SNAPSHOT).
 *
 *	switch || punch
 *
 * The switch is stable, and the data plane stands still: nothing names these clusters, and nobody can have been given them.
 * No flush follows: a hole that a crash loses leaves old bytes in a cluster that is free. Nothing here can fail: what
 * cannot be read is not punched.
 */
#include "engine/snapshot_int.h"

#include <stdlib.h>
#include <string.h>

#include "engine/rw.h"

struct punching {
	struct qk_counter *c;
	uint64_t first, n; /* the run so far, in clusters */
};

static void flush_run(struct punching *p)
{
	if (p->n != 0)
		qk_space_punch_kept(p->c->sp, QK_FREED_SNAPSHOT,
			p->first << p->c->image->geometry.cluster_bits, p->n);
	p->n = 0;
}

static void note(struct punching *p, uint64_t cluster)
{
	if (p->n != 0 && cluster != p->first + p->n)
		flush_run(p);
	if (p->n++ == 0)
		p->first = cluster;
}

/* A table that has to be read once more, for another window? */
static bool is_needed(struct punching *p, uint64_t cluster)
{
	struct qk_counter *c = p->c;
	uint64_t off = cluster << c->image->geometry.cluster_bits;
	if (!qk_counter_is_cut(c))
		return false;
	/* the load of the window sorted them */
	struct qk_delta *d = qk_counter_find(c, off);
	if (d == NULL || d->data == 0)
		return false;
	d->is_freed = true;
	return true;
}

/* The next cluster from `at` on that has lost its last reference, or the end of the window. */
static uint64_t next_freed(const struct qk_counter *c, uint64_t at)
{
	uint64_t i = at - c->lo, n = c->hi - c->lo;
	if (!c->is_wide) {
		const uint8_t *found = memchr(c->narrow + i, 1, (size_t)(n - i));
		return found != NULL ? c->lo + (uint64_t)(found - c->narrow) : c->hi;
	}
	while (i < n && c->wide[i] != 1)
		i++;
	return c->lo + i;
}

static void punch_window(struct punching *p)
{
	const struct qk_counter *c = p->c;
	for (uint64_t at = next_freed(c, c->lo); at < c->hi; at = next_freed(c, at + 1))
		if (!is_needed(p, at))
			note(p, at);
	flush_run(p);
}

/* Those that were needed until now. */
static void punch_tables(struct punching *p)
{
	const struct qk_counter *c = p->c;
	for (size_t i = 0; i < c->n_deltas; i++)
		if (c->deltas[i].is_freed)
			note(p, c->deltas[i].off >> c->image->geometry.cluster_bits);
	flush_run(p);
}

void qk_counter_punch(struct qk_counter *c)
{
	struct punching p = {.c = c};
	const struct qk_rw *rw = c->image->rw;
	uint64_t lo = 0;
	/* a refcount that may be too low frees nothing for good */
	if ((rw->discard & QCOW_DISCARD_PASS_SNAPSHOT) == 0 || !qk_space_is_proven(c->sp) ||
		!c->has_freed)
		return;
	/* for each window of counts; the one that is loaded will do where it is the only one */
	do {
		if (qk_counter_load(c, lo, NULL) != QCOW_OK)
			return;
		punch_window(&p);
		lo = c->hi;
	} while (lo < c->end);
	punch_tables(&p);
}
