/* SPDX-License-Identifier: MIT */
/*
 * The pool is what may be on the disk or not: the calls since the last flush of their file. Each call is a list of sector
 * versions, with the bytes that the sector had in the page cache after it, so that any subset of them is a
 * state that a disk may be in. After a flush that failed the pool is never emptied again; what a later flush
 * makes durable is then marked certain.
 */
#include "explore.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <rng.h>

struct version {
	uint64_t sector, hash;
	uint8_t bytes[QKC_SECTOR];
};

struct op {
	size_t event, first, n; /* its versions */
	uint64_t end; /* the file is at least this long after it; or its new size */
	bool is_resize, is_certain, is_data;
};

enum part {
	NONE,
	ALL,
	HEAD, /* the first `cut` sectors */
	TAIL, /* all but those */
	SOME /* as the bits of a random number say */
};

struct choice {
	enum part part;
	size_t cut;
	uint64_t seed;
};

struct qkc_member {
	uint64_t hash;
	uint32_t number;
	bool is_used;
};

struct qkc_walk {
	const struct qkc_explore *x;
	struct qkc_totals *totals;
	struct qkc_disk *live; /* the page cache */
	struct qkc_disk *disk; /* what is durable, and states made from it */
	struct version *versions;
	size_t n_versions, versions_room;
	struct op *ops;
	struct choice *choices;
	size_t n_ops, ops_room;
	uint8_t *ever; /* a bit a sector: it was not zeros at some time */
	bool in_limbo; /* a flush has failed */
	struct qkc_moment at;
	uint64_t id;
	struct qkc_set judged; /* with rank + 1 */
	struct qkt_rng rng;
};

/* ---- the pool ---- */

static bool was_ever_set(struct qkc_walk *w, uint64_t sector)
{
	if (qkc_disk_sector_hash(w->live, sector) != 0)
		w->ever[sector / 8] |= (uint8_t)(1u << sector % 8);
	return w->ever[sector / 8] >> sector % 8 & 1;
}

static void add_version(struct qkc_walk *w, uint64_t sector)
{
	if (w->n_versions == w->versions_room) {
		w->versions_room = w->versions_room != 0 ? w->versions_room * 2 : 1024;
		w->versions = qkc_more(w->versions, w->versions_room, sizeof(*w->versions));
	}
	struct version *v = &w->versions[w->n_versions++];
	v->sector = sector;
	v->hash = qkc_disk_sector_hash(w->live, sector);
	memcpy(v->bytes, qkc_disk_bytes(w->live) + sector * QKC_SECTOR, QKC_SECTOR);
}

static struct op *add_op(struct qkc_walk *w, size_t event)
{
	if (w->n_ops == w->ops_room) {
		w->ops_room = w->ops_room != 0 ? w->ops_room * 2 : 64;
		w->ops = qkc_more(w->ops, w->ops_room, sizeof(*w->ops));
		w->choices = qkc_more(w->choices, w->ops_room, sizeof(*w->choices));
	}
	w->ops[w->n_ops] = (struct op){.event = event,
		.first = w->n_versions,
		.is_data = qkc_event_is_data(&w->x->log->events[event])};
	return &w->ops[w->n_ops++];
}

static void take_event(struct qkc_walk *w, size_t event)
{
	const struct qkc_event *e = &w->x->log->events[event];
	uint64_t off = e->off, len = e->len, size = qkc_disk_end(w->live, off);
	if (e->kind == QKC_PUNCH)
		len = off >= size ? 0 : len < size - off ? len : size - off;
	struct op *op = add_op(w, event);
	if (e->kind == QKC_TRUNCATE) {
		op->is_resize = true;
		op->end = len;
		qkc_disk_resize(w->live, len);
		qkc_disk_settle(w->live);
		return;
	}
	uint64_t first = off / QKC_SECTOR, past = (off + len + QKC_SECTOR - 1) / QKC_SECTOR;
	for (uint64_t s = first; s < past; s++)
		(void)was_ever_set(w, s);
	qkc_disk_write(w->live, e->bytes, len, off);
	qkc_disk_settle(w->live);
	for (uint64_t s = first; s < past; s++)
		if (was_ever_set(w, s))
			add_version(w, s);
	op->n = w->n_versions - op->first;
	op->end = len != 0 ? off + len : 0;
}

static void apply(struct qkc_walk *w, const struct op *op, const struct choice *c)
{
	if (op->is_certain || c->part == ALL) {
		for (size_t i = 0; i < op->n; i++) {
			const struct version *v = &w->versions[op->first + i];
			qkc_disk_put(w->disk, v->sector, v->bytes, v->hash);
		}
		if (op->is_resize)
			qkc_disk_resize(w->disk, op->end);
		else
			qkc_disk_grow(w->disk, op->end);
		return;
	}
	struct qkt_rng rng = qkt_rng_fixed(c->seed);
	for (size_t i = 0; i < op->n && c->part != NONE; i++) {
		const struct version *v = &w->versions[op->first + i];
		uint64_t end = (v->sector + 1) * QKC_SECTOR;
		bool keeps = c->part == HEAD   ? i < c->cut
			     : c->part == TAIL ? i >= c->cut
					       : qkt_rng_next(&rng) & 1;
		if (!keeps)
			continue;
		qkc_disk_put(w->disk, v->sector, v->bytes, v->hash);
		qkc_disk_grow(w->disk, end < op->end ? end : op->end);
	}
}

/* What was written to a file since a flush of it failed is certain. */
static void settle_in_limbo(struct qkc_walk *w, bool is_data)
{
	for (size_t i = w->n_ops; i-- > 0;) {
		struct op *op = &w->ops[i];
		if (op->is_data != is_data)
			continue;
		if (op->is_certain || w->x->log->events[op->event].kind == QKC_FLUSH_FAILED)
			return;
		op->is_certain = true;
	}
}

/* A flush of one file is complete. */
static void settle(struct qkc_walk *w, bool is_data)
{
	const struct choice all = {.part = ALL};
	size_t n = 0;
	if (w->in_limbo) {
		settle_in_limbo(w, is_data);
		return;
	}
	for (size_t i = 0; i < w->n_ops; i++)
		if (w->ops[i].is_data == is_data)
			apply(w, &w->ops[i], &all);
		else
			w->ops[n++] = w->ops[i];
	qkc_disk_settle(w->disk);
	w->n_ops = n;
	if (n == 0)
		w->n_versions = 0;
}

/* What is not durable of one file is nowhere any more; what was written to the other is where it was. */
static void forget_pool(struct qkc_walk *w, bool is_data)
{
	const struct choice all = {.part = ALL};
	size_t n = 0, mark = qkc_disk_mark(w->disk);
	for (size_t i = 0; i < w->n_ops; i++)
		if (w->ops[i].is_data != is_data)
			w->ops[n++] = w->ops[i];
	w->n_ops = n;
	for (size_t i = 0; i < n; i++)
		apply(w, &w->ops[i], &all);
	qkc_disk_free(w->live);
	w->live = qkc_disk_copy(w->disk);
	qkc_disk_undo(w->disk, mark);
	if (n == 0)
		w->n_versions = 0;
}

/* ---- states ---- */

static struct qkc_member *find_member(struct qkc_member *table, size_t room, uint64_t hash)
{
	size_t i = (size_t)(hash * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (room - 1);
	while (table[i].is_used && table[i].hash != hash)
		i = (i + 1) & (room - 1);
	return &table[i];
}

static void grow_set(struct qkc_set *set)
{
	size_t room = set->room != 0 ? set->room * 2 : 4096;
	struct qkc_member *table = qkc_need(room, sizeof(*table));
	for (size_t i = 0; i < set->room; i++)
		if (set->table[i].is_used)
			*find_member(table, room, set->table[i].hash) = set->table[i];
	free(set->table);
	set->table = table;
	set->room = room;
}

uint32_t *qkc_set_at(struct qkc_set *set, uint64_t hash)
{
	if (set->n * 2 >= set->room)
		grow_set(set);
	struct qkc_member *m = find_member(set->table, set->room, hash);
	if (!m->is_used) {
		*m = (struct qkc_member){.hash = hash, .is_used = true};
		set->n++;
	}
	return &m->number;
}

void qkc_set_free(struct qkc_set *set)
{
	free(set->table);
	*set = (struct qkc_set){0};
}

/* True where it has not been seen, or with fewer promises only. */
static bool is_news(struct qkc_walk *w, uint64_t hash)
{
	size_t before = w->totals->contents.n;
	(void)qkc_set_at(&w->totals->contents, hash);
	w->totals->n_distinct += w->totals->contents.n - before;
	uint32_t *rank = qkc_set_at(&w->judged, hash);
	if (*rank > w->at.rank)
		return false;
	*rank = w->at.rank + 1;
	return true;
}

static void visit(struct qkc_walk *w, const char *kind)
{
	struct qkc_state s = {kind, ++w->id, w->at, w};
	size_t mark = qkc_disk_mark(w->disk);
	w->totals->n_visited++;
	for (size_t i = 0; i < w->n_ops; i++)
		apply(w, &w->ops[i], &w->choices[i]);
	bool wanted = is_news(w, qkc_disk_hash(w->disk));
	if (w->x->only_id != 0)
		wanted = s.id == w->x->only_id;
	if (wanted) {
		w->totals->n_judged++;
		if (!w->x->judge(w->x->ctx, w->disk, &s))
			w->totals->n_bad++;
	}
	qkc_disk_undo(w->disk, mark);
}

static void choose(struct qkc_walk *w, size_t from, size_t past, enum part part)
{
	for (size_t i = from; i < past; i++)
		w->choices[i] = (struct choice){.part = part};
}

static void visit_subsets(struct qkc_walk *w)
{
	for (uint64_t bits = 0; bits < UINT64_C(1) << w->n_ops; bits++) {
		for (size_t i = 0; i < w->n_ops; i++)
			w->choices[i].part = bits >> i & 1 ? ALL : NONE;
		visit(w, "loss");
	}
}

static void visit_some_subsets(struct qkc_walk *w)
{
	for (size_t i = 0; i <= w->n_ops; i++) {
		choose(w, 0, i, ALL);
		choose(w, i, w->n_ops, NONE);
		visit(w, "loss");
		choose(w, 0, i, NONE);
		choose(w, i, w->n_ops, ALL);
		visit(w, "loss");
	}
	for (size_t i = 0; i < w->n_ops; i++) {
		choose(w, 0, w->n_ops, ALL);
		w->choices[i].part = NONE;
		visit(w, "loss");
		choose(w, 0, w->n_ops, NONE);
		w->choices[i].part = ALL;
		visit(w, "loss");
	}
	for (unsigned n = 0; n < w->x->n_random; n++) {
		uint64_t one_in = 2 + qkt_rng_below(&w->rng, 4);
		bool flip = qkt_rng_next(&w->rng) & 1;
		for (size_t i = 0; i < w->n_ops; i++)
			w->choices[i].part = (qkt_rng_below(&w->rng, one_in) == 0) != flip ? ALL
											   : NONE;
		visit(w, "loss");
	}
}

/* One write torn, with none, all before, or all of the others kept. */
static void tear(struct qkc_walk *w, size_t torn, size_t cut)
{
	for (unsigned others = 0; others < 3; others++)
		for (unsigned tail = 0; tail < 2; tail++) {
			choose(w, 0, w->n_ops, others == 2 ? ALL : NONE);
			if (others == 1)
				choose(w, 0, torn, ALL);
			w->choices[torn] = (struct choice){.part = tail ? TAIL : HEAD, .cut = cut};
			visit(w, "torn");
		}
}

static void visit_torn(struct qkc_walk *w)
{
	for (size_t i = 0; i < w->n_ops; i++) {
		size_t n = w->ops[i].n;
		if (n < 2 || w->ops[i].is_certain)
			continue;
		if (n - 1 <= w->x->n_cuts) {
			for (size_t cut = 1; cut < n; cut++)
				tear(w, i, cut);
			continue;
		}
		for (unsigned k = 0; k < w->x->n_cuts; k++)
			tear(w, i,
				k == 0	 ? 1
				: k == 1 ? n - 1
					 : 1 + (size_t)qkt_rng_below(&w->rng, n - 1));
	}
	for (unsigned k = 0; k < w->x->n_random; k++) {
		for (size_t i = 0; i < w->n_ops; i++) {
			size_t n = w->ops[i].n;
			w->choices[i] = (struct choice){
				.part = (enum part)qkt_rng_below(&w->rng, n > 1 ? 5 : 2),
				.cut = n > 1 ? 1 + (size_t)qkt_rng_below(&w->rng, n - 1) : 0,
				.seed = qkt_rng_next(&w->rng)};
		}
		visit(w, "torn");
	}
}

static void visit_epoch(struct qkc_walk *w)
{
	size_t n_free = 0;
	for (size_t i = 0; i < w->n_ops; i++)
		n_free += !w->ops[i].is_certain;
	choose(w, 0, w->n_ops, NONE);
	if (w->n_ops <= w->x->subset_bits)
		visit_subsets(w);
	else
		visit_some_subsets(w);
	if (n_free != 0)
		visit_torn(w);
}

static void visit_kill(struct qkc_walk *w)
{
	choose(w, 0, w->n_ops, ALL);
	visit(w, "kill");
}

/* ---- the log ---- */

static void end_step(struct qkc_walk *w, const struct qkc_event *e)
{
	w->at.ended = (uint32_t)e->off;
	if (!(e->len & QKC_DONE))
		return;
	if (e->len & QKC_IS_FLUSH)
		w->at.floor = (uint32_t)e->off;
	if (e->len & (QKC_IS_FLUSH | QKC_IS_FUA))
		w->at.rank++;
}

static void walk_event(struct qkc_walk *w, size_t i)
{
	const struct qkc_event *e = &w->x->log->events[i];
	switch (e->kind) {
	case QKC_BEGIN:
		w->at.started = (uint32_t)e->off;
		return;
	case QKC_END:
		end_step(w, e);
		visit_kill(w);
		return;
	case QKC_FLUSH:
		visit_epoch(w);
		settle(w, qkc_event_is_data(e));
		return;
	case QKC_FLUSH_DROPPED:
		visit_epoch(w);
		forget_pool(w, qkc_event_is_data(e));
		return;
	case QKC_FLUSH_FAILED:
		visit_epoch(w);
		w->in_limbo = true;
		(void)add_op(w, i); /* marks the place */
		return;
	default:
		take_event(w, i);
		visit_kill(w);
	}
}

void qkc_explore(const struct qkc_explore *x, struct qkc_totals *totals)
{
	struct qkc_walk w = {.x = x,
		.totals = totals,
		.live = qkc_disk_copy(x->initial),
		.disk = qkc_disk_copy(x->initial),
		.ever = qkc_need(QKC_ROOM_BYTES / QKC_SECTOR / 8, 1),
		.rng = qkt_rng_fixed(x->seed)};
	for (uint64_t i = 0; i * QKC_SECTOR < qkc_disk_size(w.live); i++)
		(void)was_ever_set(&w, i);
	for (uint64_t i = QKC_DATA_FILE / QKC_SECTOR; i * QKC_SECTOR < qkc_disk_data_end(w.live);
		i++)
		(void)was_ever_set(&w, i);
	visit_kill(&w);
	for (size_t i = 0; i < x->log->n; i++)
		walk_event(&w, i);
	visit_epoch(&w);
	qkc_disk_free(w.live);
	qkc_disk_free(w.disk);
	free(w.versions);
	free(w.ops);
	free(w.choices);
	free(w.ever);
	qkc_set_free(&w.judged);
}

/* ---- stories ---- */

#define STORY_EVENTS 40u

static void tell_choice(const struct op *op, const struct choice *c, FILE *out)
{
	if (op->is_certain || c->part == ALL)
		(void)fputs("kept", out);
	else if (c->part == NONE)
		(void)fputs("lost", out);
	else if (c->part == SOME)
		(void)fprintf(out, "some of its %zu sectors kept", op->n);
	else
		(void)fprintf(out, "%s %zu of its %zu sectors %s", "first", c->cut, op->n,
			c->part == HEAD ? "kept" : "lost");
}

void qkc_story(const struct qkc_state *s, FILE *out)
{
	const struct qkc_walk *w = s->walk;
	const struct qkc_log *log = w->x->log;
	size_t last = w->n_ops != 0 ? w->ops[w->n_ops - 1].event : 0;
	size_t first = w->n_ops != 0 ? w->ops[0].event : 0;
	if (last - first > STORY_EVENTS) {
		(void)fprintf(out, "    (%zu events before)\n", last - STORY_EVENTS);
		first = last - STORY_EVENTS;
	}
	for (size_t e = first, op = 0; e <= last && e < log->n; e++) {
		char line[80];
		qkc_event_print(&log->events[e], line, sizeof(line));
		(void)fprintf(out, "    %-34s ", line);
		while (op < w->n_ops && w->ops[op].event < e)
			op++;
		if (op < w->n_ops && w->ops[op].event == e)
			tell_choice(&w->ops[op], &w->choices[op], out);
		(void)fputc('\n', out);
	}
	(void)fprintf(out, "    %s; steps begun %u, ended %u, flush done %u\n", s->kind,
		s->at.started, s->at.ended, s->at.floor);
}
