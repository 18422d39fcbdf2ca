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
	const struct qk_counter *c = p->c;
	if (cluster < c->lo || cluster >= c->hi || qk_counter_at(c, cluster) != 0)
		return;
	if (p->n != 0 && cluster != p->first + p->n)
		flush_run(p);
	if (p->n++ == 0)
		p->first = cluster;
}

static void punch_table(struct punching *p, const struct qk_delta *d)
{
	struct qk_counter *c = p->c;
	const struct qk_geometry *g = &c->image->geometry;
	if (qcow_store_read_padded(
		    c->image->store, c->table, (size_t)g->cluster_size, d->off, NULL) != QCOW_OK)
		return;
	for (uint32_t i = 0; i < g->l2_entries; i++) {
		uint64_t first = 0, n = 0;
		if (qk_counter_hosts(c, d, c->table, i, &first, &n, NULL) != QCOW_OK)
			return;
		for (uint64_t k = 0; k < n; k++)
			note(p, first + k);
	}
	flush_run(p);
}

/* Tables before their own clusters: those are read here. */
static void punch_window(struct punching *p)
{
	struct qk_counter *c = p->c;
	for (size_t i = 0; i < c->n_deltas; i++)
		if (c->deltas[i].data < 0)
			punch_table(p, &c->deltas[i]);
}

static void punch_tables(struct punching *p)
{
	struct qk_counter *c = p->c;
	for (size_t i = 0; i < c->n_deltas; i++)
		if (c->deltas[i].table < 0)
			note(p, c->deltas[i].off >> c->image->geometry.cluster_bits);
	flush_run(p);
}

/* `of` for each window of counts; the one that is loaded will do where it is the only one. */
static bool each_window(struct punching *p, void (*of)(struct punching *p))
{
	uint64_t lo = 0;
	do {
		if (qk_counter_load(p->c, lo, NULL) != QCOW_OK)
			return false;
		of(p);
		lo = p->c->hi;
	} while (lo < p->c->end);
	return true;
}

void qk_counter_punch(struct qk_counter *c)
{
	struct punching p = {.c = c};
	const struct qk_rw *rw = c->image->rw;
	/* a refcount that may be too low frees nothing for good */
	if ((rw->discard & QCOW_DISCARD_PASS_SNAPSHOT) == 0 || !qk_space_is_proven(c->sp))
		return;
	if (each_window(&p, punch_window))
		(void)each_window(&p, punch_tables);
}
