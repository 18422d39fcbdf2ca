/* SPDX-License-Identifier: MIT */
/*
 * shadow: builds a second refcount structure (shadow.h) front to back.
 *
 *	1  areas (the clusters that one block counts) ascending: counts that are not all 0 get a block
 *	2  areas that hold only clusters of the structure itself get blocks of zeros, and the table its place
 *	3  the structure's own clusters are set to 1 in their blocks
 *	4  the table
 *
 * Round 2 takes clusters, which may lie in areas without a block: it goes on until none is missing. Blocks that lie next
 * to each other are written together. Owns nothing but what it took; never reads the old structure.
 *
 * Invariants:
 *   H1  every run was taken once and not given back
 *   H2  after round 2 every cluster of the structure has a block, and the table has room for every entry
 *   H3  clusters that were taken ahead are given back once at most before the end: nothing is taken ahead in round 2
 */
#include "engine/shadow.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "format/refcounts.h"

#define MAX_ENTRIES  (QK_MAX_REFTABLE_BYTES / 8)
#define BATCH_BYTES  QK_MIB(1)
#define TAKE_AT_ONCE 64U

struct builder {
	const struct qk_shadow_request *rq;
	const struct qk_geometry *g;
	struct qk_shadow *s;
	uint64_t *counts; /* QK_SHADOW_COUNTS */
	uint8_t *batch; /* blocks that lie next to each other, not yet written */
	uint64_t batch_room, batch_bytes, batch_off;
	size_t done_runs; /* round 2: runs whose areas have blocks, and clusters of the next */
	uint64_t done_in_run;
	uint64_t n_likely; /* round 1: blocks that are still to come, at most */
	struct qk_shadow_run
		returned; /* taken ahead, and given back where room was scarce: they may have been counted */
};

/* ---- clusters ---- */

static enum qcow_status add_run(
	struct qk_shadow *s, uint64_t first, uint64_t n, struct qcow_error *err)
{
	if (s->n_runs != 0) {
		struct qk_shadow_run *last = &s->runs[s->n_runs - 1];
		if (last->first + last->n == first) {
			last->n += n;
			return QCOW_OK;
		}
	}
	if (s->n_runs == s->runs_room) {
		size_t room = s->runs_room == 0 ? 16 : s->runs_room * 2;
		struct qk_shadow_run *v = qk_realloc(s->runs, room, sizeof(*v));
		if (v == NULL)
			return QK_FAIL_NOMEM(err);
		s->runs = v;
		s->runs_room = room;
	}
	s->runs[s->n_runs++] = (struct qk_shadow_run){first, n};
	return QCOW_OK;
}

static void give_back(const struct qk_shadow_source *src, uint64_t first, uint64_t n)
{
	if (n != 0 && src->give_back != NULL)
		src->give_back(src->ctx, first, n);
}

static enum qcow_status take(struct builder *b, uint64_t n, uint64_t min_n,
	struct qk_shadow_run *out, struct qcow_error *err)
{
	const struct qk_shadow_source *src = b->rq->source;
	struct qk_shadow_run *spare = &b->s->spare;
	enum qcow_status status = src->take(src->ctx, n, min_n, &out->first, &out->n, err);

	/* where room is scarce, what was taken for blocks to come may be all of it */
	if (status == QCOW_E_NOSPC && spare->n != 0) {
		give_back(src, spare->first, spare->n);
		QK_ASSERT(H3, b->returned.n == 0);
		b->returned = *spare;
		spare->n = 0;
		status = src->take(src->ctx, n, min_n, &out->first, &out->n, err);
	}
	QK_TRY(status);
	QK_ASSERT(H1, out->n >= min_n && out->n <= n && out->n != 0);
	return QCOW_OK;
}

/* As many clusters in a row as can be had, up to n: single ones lie far apart, and each would keep another block of the
 * source's counts in memory. */
static enum qcow_status take_row(
	struct builder *b, uint64_t n, struct qk_shadow_run *out, struct qcow_error *err)
{
	enum qcow_status status = QCOW_E_NOSPC;

	for (uint64_t least = n; status == QCOW_E_NOSPC && least != 0; least /= 2)
		status = take(b, n, least, out, err);
	return status;
}

/* A cluster for one block. */
static enum qcow_status take_block(struct builder *b, uint64_t *cluster, struct qcow_error *err)
{
	struct qk_shadow_run *spare = &b->s->spare;

	/* no more than is needed: what comes next would lie behind it */
	if (spare->n == 0)
		QK_TRY(take_row(b, qk_max(qk_min(TAKE_AT_ONCE, b->n_likely), 1), spare, err));
	/* remembered first: what was taken is never lost */
	QK_TRY(add_run(b->s, spare->first, 1, err));
	*cluster = spare->first++;
	spare->n--;
	return QCOW_OK;
}

/* ---- blocks ---- */

static enum qcow_status flush_batch(struct builder *b, struct qcow_error *err)
{
	if (b->batch_bytes == 0)
		return QCOW_OK;
	QK_TRY(qcow_store_write(b->rq->store, b->batch, (size_t)b->batch_bytes, b->batch_off, err));
	b->batch_bytes = 0;
	return QCOW_OK;
}

/* Room for the next block, zeroed: always there, what is full is written first. */
static enum qcow_status next_block(struct builder *b, uint8_t **out, struct qcow_error *err)
{
	if (b->batch_bytes == b->batch_room)
		QK_TRY(flush_batch(b, err));
	*out = b->batch + b->batch_bytes;
	memset(*out, 0, (size_t)b->g->cluster_size);
	return QCOW_OK;
}

static enum qcow_status judge_area(const struct builder *b, uint64_t area, struct qcow_error *err)
{
	if (area < MAX_ENTRIES)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_LIMIT,
		"the refcount table would be larger than %" PRIu64
		" bytes with a cluster size of %" PRIu64 " and %u-bit refcounts",
		QK_MAX_REFTABLE_BYTES, b->g->cluster_size, b->g->refcount_bits);
}

static enum qcow_status grow_table(struct builder *b, uint64_t area, struct qcow_error *err)
{
	struct qk_shadow *s = b->s;

	QK_TRY(judge_area(b, area, err));
	if (area >= s->table_room) {
		uint64_t room = qk_max(area + 1, s->table_room * 2);
		uint64_t *v = qk_realloc(s->table, room, sizeof(*v));
		if (v == NULL)
			return QK_FAIL_NOMEM(err);
		memset(v + s->table_room, 0, (room - s->table_room) * sizeof(*v));
		s->table = v;
		s->table_room = room;
	}
	s->n_entries = qk_max(s->n_entries, area + 1);
	return QCOW_OK;
}

/* What next_block gave is the block of `area`: find it a place. It may first have to move to the batch's start. */
static enum qcow_status keep_block(
	struct builder *b, uint64_t area, uint8_t *block, struct qcow_error *err)
{
	uint64_t cluster = 0;

	QK_TRY(grow_table(b, area, err));
	QK_TRY(take_block(b, &cluster, err));
	uint64_t off = cluster << b->g->cluster_bits;
	if (b->batch_bytes != 0 && off != b->batch_off + b->batch_bytes) {
		QK_TRY(flush_batch(b, err));
		memmove(b->batch, block, (size_t)b->g->cluster_size);
	}
	if (b->batch_bytes == 0)
		b->batch_off = off;
	b->batch_bytes += b->g->cluster_size;
	b->s->table[area] = off;
	return QCOW_OK;
}

/* ---- round 1 ---- */

static enum qcow_status fail_count(const struct builder *b, uint64_t first, struct qcow_error *err)
{
	uint64_t i = 0;

	while (b->counts[i] <= b->g->refcount_max)
		i++;
	uint64_t off = (first + i) << b->g->cluster_bits;
	return QK_FAIL_AT(err, QCOW_E_LIMIT, QCOW_FINDING_REFCOUNT_TOO_LOW, off, QCOW_NO_OFFSET,
		"%" PRIu64 " references to the cluster at %" PRIu64
		", more than %u-bit refcounts hold",
		b->counts[i], off, b->g->refcount_bits);
}

static enum qcow_status set_counts(const struct builder *b, uint8_t *block, uint64_t first,
	uint64_t n, bool *any, struct qcow_error *err)
{
	uint64_t all = qk_refcounts_all(b->counts, n);

	if (all > b->g->refcount_max)
		return fail_count(b, first, err);
	if (all == 0)
		return QCOW_OK;
	qk_refcounts_store(b->g, block, first & (b->g->rb_entries - 1), n, b->counts);
	*any = true;
	return QCOW_OK;
}

static enum qcow_status note_progress(
	const struct builder *b, uint64_t done, struct qcow_error *err)
{
	const struct qcow_progress *p = b->rq->progress;

	if (p == NULL)
		return QCOW_OK;
	if (p->cancelled != NULL && p->cancelled(p->ctx))
		return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
	if (p->report != NULL)
		p->report(p->ctx, done, b->rq->end);
	return QCOW_OK;
}

static enum qcow_status count_area(struct builder *b, uint64_t area, struct qcow_error *err)
{
	const struct qk_shadow_source *src = b->rq->source;
	uint64_t at = area << b->g->rb_bits;
	uint64_t end = qk_min((area + 1) << b->g->rb_bits, b->rq->end);
	uint8_t *block = NULL;
	bool any = false;

	QK_TRY(next_block(b, &block, err));
	while (at < end) {
		uint64_t n = qk_min(QK_SHADOW_COUNTS, end - at);
		memset(b->counts, 0, (size_t)n * sizeof(*b->counts));
		QK_TRY(src->counts(src->ctx, at, n, b->counts, err));
		QK_TRY(set_counts(b, block, at, n, &any, err));
		at += n;
	}
	if (any)
		QK_TRY(keep_block(b, area, block, err));
	return note_progress(b, at, err);
}

/* ---- round 2 ---- */

static enum qcow_status cover_area(struct builder *b, uint64_t area, struct qcow_error *err)
{
	uint8_t *block = NULL;

	if (area < b->s->n_entries && b->s->table[area] != 0)
		return QCOW_OK;
	QK_TRY(next_block(b, &block, err));
	return keep_block(b, area, block, err);
}

static enum qcow_status cover_run(
	struct builder *b, uint64_t first, uint64_t n, struct qcow_error *err)
{
	for (uint64_t area = first >> b->g->rb_bits; area <= (first + n - 1) >> b->g->rb_bits;
		area++)
		QK_TRY(cover_area(b, area, err));
	return QCOW_OK;
}

/* Blocks for all clusters of the structure. Each that is made is a cluster of it, too: the last run may grow. */
static enum qcow_status cover_own(struct builder *b, struct qcow_error *err)
{
	while (b->done_runs < b->s->n_runs) {
		struct qk_shadow_run run = b->s->runs[b->done_runs];
		if (b->done_in_run < run.n) {
			uint64_t done = b->done_in_run;
			b->done_in_run = run.n;
			QK_TRY(cover_run(b, run.first + done, run.n - done, err));
		} else if (b->done_runs + 1 == b->s->n_runs) {
			break;
		} else {
			b->done_runs++;
			b->done_in_run = 0;
		}
	}
	return QCOW_OK;
}

static uint64_t table_clusters(const struct builder *b)
{
	return qk_max(qk_div_up(b->s->n_entries * 8, b->g->cluster_size), 1);
}

/* A place for the table. Blocks for it may lengthen it: what became too short is given back. */
static enum qcow_status place_table(struct builder *b, struct qcow_error *err)
{
	struct qk_shadow_run run = {0};

	QK_TRY(cover_own(b, err));
	for (;;) {
		uint64_t want = table_clusters(b);
		QK_TRY(take(b, want, want, &run, err));
		/* its areas first: the blocks are taken behind it, and only then is its length known */
		enum qcow_status status = cover_run(b, run.first, run.n, err);
		if (status == QCOW_OK)
			status = cover_own(b, err);
		if (status == QCOW_OK && table_clusters(b) == run.n)
			break;
		give_back(b->rq->source, run.first, run.n);
		QK_TRY(status);
	}
	b->s->rt_off = run.first << b->g->cluster_bits;
	b->s->rt_clusters = (uint32_t)run.n;
	enum qcow_status status = add_run(b->s, run.first, run.n, err);
	if (status != QCOW_OK)
		give_back(b->rq->source, run.first, run.n);
	return status;
}

/* ---- rounds 3 and 4 ---- */

/* The clusters of `run` that `area` counts have refcount `count`; without a block it is 0 already. */
static enum qcow_status set_area(struct builder *b, uint64_t area, const struct qk_shadow_run *run,
	uint64_t count, struct qcow_error *err)
{
	uint64_t mask = b->g->rb_entries - 1;
	uint64_t at = qk_max(run->first, area << b->g->rb_bits);
	uint64_t end = qk_min(run->first + run->n, (area + 1) << b->g->rb_bits);
	uint64_t off = area < b->s->n_entries ? b->s->table[area] : 0;

	QK_ASSERT(H2, off != 0 || count == 0);
	if (off == 0)
		return QCOW_OK;
	QK_TRY(qcow_store_read(b->rq->store, b->batch, b->g->cluster_size, off, err));
	for (; at < end; at++)
		qk_refcount_set(b->g, b->batch, at & mask, count);
	return qcow_store_write(b->rq->store, b->batch, b->g->cluster_size, off, err);
}

static enum qcow_status set_run(
	struct builder *b, const struct qk_shadow_run *run, uint64_t count, struct qcow_error *err)
{
	if (run->n == 0)
		return QCOW_OK;
	uint64_t last = (run->first + run->n - 1) >> b->g->rb_bits;
	for (uint64_t area = run->first >> b->g->rb_bits; area <= last; area++)
		QK_TRY(set_area(b, area, run, count, err));
	return QCOW_OK;
}

/* Whatever was counted for them while they were being taken. */
static enum qcow_status set_own(struct builder *b, struct qcow_error *err)
{
	QK_TRY(set_run(b, &b->s->spare, 0, err));
	QK_TRY(set_run(b, &b->returned, 0, err));
	for (size_t i = 0; i < b->s->n_runs; i++)
		QK_TRY(set_run(b, &b->s->runs[i], 1, err));
	return QCOW_OK;
}

static enum qcow_status write_table(struct builder *b, struct qcow_error *err)
{
	uint64_t per = b->batch_room / 8;
	uint64_t n = ((uint64_t)b->s->rt_clusters << b->g->cluster_bits) / 8;

	for (uint64_t at = 0; at < n; at += per) {
		uint64_t part = qk_min(per, n - at);
		for (uint64_t i = 0; i < part; i++)
			qk_store64(b->batch + i * 8,
				at + i < b->s->n_entries ? b->s->table[at + i] : 0);
		QK_TRY(qcow_store_write(
			b->rq->store, b->batch, (size_t)part * 8, b->s->rt_off + at * 8, err));
	}
	return QCOW_OK;
}

/* ---- the whole ---- */

static enum qcow_status build(struct builder *b, struct qcow_error *err)
{
	uint64_t n_areas = (b->rq->end + b->g->rb_entries - 1) >> b->g->rb_bits;
	for (uint64_t area = 0; area < n_areas; area++) {
		b->n_likely = n_areas - area;
		QK_TRY(count_area(b, area, err));
	}
	b->n_likely = 0;
	QK_TRY(place_table(b, err));
	QK_TRY(flush_batch(b, err));
	QK_TRY(set_own(b, err));
	return write_table(b, err);
}

enum qcow_status qk_shadow_build(
	const struct qk_shadow_request *rq, struct qk_shadow *out, struct qcow_error *err)
{
	QK_AUTO_FREE uint64_t *counts = qk_malloc(QK_SHADOW_COUNTS, sizeof(*counts));
	QK_AUTO_FREE uint8_t *batch = NULL;
	struct builder b = {.rq = rq, .g = rq->geometry, .s = out, .counts = counts};

	*out = (struct qk_shadow){0};
	b.batch_room = qk_max(BATCH_BYTES, rq->geometry->cluster_size);
	batch = qk_malloc_aligned(QK_SECTOR, b.batch_room);
	if (counts == NULL || batch == NULL)
		return QK_FAIL_NOMEM(err);
	b.batch = batch;
	enum qcow_status status = build(&b, err);
	give_back(rq->source, out->spare.first, out->spare.n);
	out->spare.n = 0;
	return status;
}

enum qcow_status qk_shadow_judge(const struct qk_shadow_request *rq, struct qcow_error *err)
{
	QK_AUTO_FREE uint64_t *counts = qk_malloc(QK_SHADOW_COUNTS, sizeof(*counts));
	const struct qk_shadow_source *src = rq->source;
	const struct builder b = {.rq = rq, .g = rq->geometry, .counts = counts};

	if (counts == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t at = 0; at < rq->end; at += QK_SHADOW_COUNTS) {
		uint64_t n = qk_min(QK_SHADOW_COUNTS, rq->end - at);
		memset(counts, 0, (size_t)n * sizeof(*counts));
		QK_TRY(src->counts(src->ctx, at, n, counts, err));
		uint64_t all = qk_refcounts_all(counts, n);
		if (all > b.g->refcount_max)
			return fail_count(&b, at, err);
		if (all != 0)
			QK_TRY(judge_area(&b, (at + n - 1) >> b.g->rb_bits, err));
		QK_TRY(note_progress(&b, at + n, err));
	}
	return QCOW_OK;
}

void qk_shadow_release(struct qk_shadow *s)
{
	free(s->table);
	free(s->runs);
	*s = (struct qk_shadow){0};
}

void qk_shadow_header(const struct qk_shadow *s, uint8_t out[QK_SHADOW_HEADER_BYTES])
{
	qk_store64(out, s->rt_off);
	qk_store32(out + 8, s->rt_clusters);
}

void qk_shadow_undo(const struct qk_shadow_source *source, struct qk_shadow *s)
{
	for (size_t i = 0; i < s->n_runs; i++)
		give_back(source, s->runs[i].first, s->runs[i].n);
	s->n_runs = 0;
}

void qk_shadow_explain(enum qcow_status status, struct qcow_error *err)
{
	if (status == QCOW_E_NOSPC)
		qk_err_context(err,
			"the new tables have to lie beside those in use until they take their "
			"place, nothing was changed");
}
