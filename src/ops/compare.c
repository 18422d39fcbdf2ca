/* SPDX-License-Identifier: MIT */
/*
 * compare: do two images hold the same disk? One thread at a time walks both maps and cuts the disk into pieces; any
 * number of them read and compare. What comes first on the disk is the answer: a piece that differs, or fails, ends
 * the pipe, which lets the pieces before it finish.
 */
#include <qcowkit/ops.h>

#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/num.h"
#include "base/options.h"
#include "ops/pipe.h"

#define CHUNK_BYTES  ((size_t)QK_KIB(512))
#define SECTOR_BYTES 512U

struct side {
	struct qcow_image *image;
	uint64_t size; /* as compared */
	uint64_t end; /* of the run asked about last */
	bool is_zero; /* that run */
	uint32_t flags; /* of that run, as strict compares them */
};

/* What ends the walk; found at `off`. */
struct outcome {
	bool is_there;
	uint64_t off;
	enum qcow_difference difference; /* NONE: a failure */
	unsigned side;
	bool is_read;
	struct qcow_error err;
};

struct piece {
	uint8_t *bytes; /* a chunk for each side, one behind the other */
	uint64_t off, len;
	bool reads[2]; /* the side's bytes; one that is not read is zeros */
};

struct compare {
	const struct qcow_compare_options *options;
	struct side sides[2];
	uint64_t common, longest;
	uint64_t off; /* of the next piece */
	pthread_mutex_t lock; /* guards first */
	struct outcome first;
};

/* Keep what comes first on the disk. The status ends the pipe. */
static enum qcow_status end_with(struct compare *c, const struct outcome *outcome)
{
	(void)pthread_mutex_lock(&c->lock);
	if (!c->first.is_there || outcome->off < c->first.off)
		c->first = *outcome;
	c->first.is_there = true;
	(void)pthread_mutex_unlock(&c->lock);
	return QCOW_E_RANGE;
}

static enum qcow_status differs(struct compare *c, enum qcow_difference difference, uint64_t off)
{
	return end_with(c, &(struct outcome){.off = off, .difference = difference});
}

/* ---- cutting the disk into pieces: one thread at a time ---- */

/* The run at `off`, kept until it is passed. */
static enum qcow_status look(
	struct compare *c, unsigned which, uint64_t off, struct qcow_error *err)
{
	struct side *s = &c->sides[which];
	struct qcow_extent e;
	uint64_t size = qcow_size(s->image);
	if (off < s->end)
		return QCOW_OK;
	if (off >= size) {
		/* past the disk, or in the last sector of a raw one */
		s->end = UINT64_MAX;
		s->is_zero = true;
		s->flags = QCOW_EXTENT_PRESENT | QCOW_EXTENT_ZERO | QCOW_EXTENT_OFFSET;
		return QCOW_OK;
	}
	QK_TRY(qcow_map(s->image, off, size - off, UINT32_MAX, &e, err));
	s->end = off + e.len;
	s->flags = c->options->strict_flags != NULL
			   ? c->options->strict_flags(c->options->ctx, which, &e)
			   : e.flags;
	s->is_zero = (s->flags & QCOW_EXTENT_ZERO) != 0;
	return QCOW_OK;
}

/* What is at `off`: in *outcome why the walk ends there, else both runs are known. */
static bool look_at_both(struct compare *c, uint64_t off, struct outcome *outcome)
{
	*outcome = (struct outcome){.off = off};
	for (unsigned i = 0; i < 2; i++) {
		outcome->side = i;
		/* past the end of the shorter disk only the other is looked at */
		if (off < c->sides[i].size && look(c, i, off, &outcome->err) != QCOW_OK)
			return false;
	}
	if (!c->options->strict || c->sides[0].flags == c->sides[1].flags)
		return true;
	outcome->difference = QCOW_DIFFERENCE_ALLOCATION;
	return false;
}

static bool is_read(const struct side *s, uint64_t off)
{
	return off < s->size && !s->is_zero;
}

/* The end of what has one answer on both sides from `off` on. */
static uint64_t end_of_runs(const struct compare *c, uint64_t off)
{
	uint64_t end = off < c->common ? c->common : c->longest;
	for (unsigned i = 0; i < 2; i++)
		if (off < c->sides[i].size)
			end = qk_min(end, c->sides[i].end);
	return end;
}

/* A piece is as many runs as ask for the same to be done, up to a chunk where something is read. */
static enum qcow_status next(
	void *ctx, void *item, bool *end, uint64_t *cost_bytes, struct qcow_error *err)
{
	struct compare *c = ctx;
	struct piece *p = item;
	struct outcome outcome = {0};
	(void)err;
	*end = c->off >= c->longest;
	if (*end)
		return QCOW_OK;
	if (!look_at_both(c, c->off, &outcome))
		return end_with(c, &outcome);
	p->off = c->off;
	for (unsigned i = 0; i < 2; i++)
		p->reads[i] = is_read(&c->sides[i], p->off);
	bool reads = p->reads[0] || p->reads[1];
	uint64_t limit = p->off < c->common ? c->common : c->longest;
	if (reads)
		limit = qk_min(limit, p->off + CHUNK_BYTES);
	for (;;) {
		c->off = qk_min(end_of_runs(c, c->off), limit);
		/* what ends the walk there is met again by the next piece */
		if (c->off >= limit || !look_at_both(c, c->off, &outcome) ||
			is_read(&c->sides[0], c->off) != p->reads[0] ||
			is_read(&c->sides[1], c->off) != p->reads[1])
			break;
	}
	p->len = c->off - p->off;
	*cost_bytes = reads ? p->len : 0;
	return QCOW_OK;
}

/* ---- comparing them: any thread ---- */

/* The first byte of `n` that differs from `other`, or from 0 where that is NULL. */
static size_t first_difference(const uint8_t *p, const uint8_t *other, size_t n)
{
	size_t i = 0;
	while (i < n && p[i] == (other != NULL ? other[i] : 0))
		i++;
	return i;
}

static uint8_t *side_bytes(const struct piece *p, unsigned which)
{
	return p->bytes + which * CHUNK_BYTES;
}

/* A chunk may be of many clusters, and the first that cannot be read is what is told; what differs before it is. */
static enum qcow_status read_piece(
	struct compare *c, struct piece *p, unsigned which, struct qcow_error *err)
{
	return qcow_pread(c->sides[which].image, side_bytes(p, which), (size_t)p->len, p->off, err);
}

static enum qcow_status judge(struct compare *c, const struct piece *p)
{
	unsigned which = p->reads[0] ? 0 : 1;
	const uint8_t *bytes = side_bytes(p, which);
	const uint8_t *other = p->reads[0] && p->reads[1] ? side_bytes(p, 1) : NULL;
	size_t n = (size_t)p->len;
	if (other != NULL ? memcmp(bytes, other, n) == 0 : qk_is_zero(bytes, n))
		return QCOW_OK;
	return differs(c, QCOW_DIFFERENCE_CONTENT, p->off + first_difference(bytes, other, n));
}

/* Whole, or where a read fails sector by sector: what comes first counts. */
static enum qcow_status compare_piece(struct compare *c, struct piece *p)
{
	struct outcome outcome = {.off = p->off, .is_read = true};
	for (unsigned i = 0; i < 2; i++) {
		outcome.side = i;
		if (p->reads[i] && read_piece(c, p, i, &outcome.err) != QCOW_OK)
			return end_with(c, &outcome);
	}
	return judge(c, p);
}

static enum qcow_status work(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct compare *c = ctx;
	struct piece *p = item;
	(void)worker;
	if (!p->reads[0] && !p->reads[1])
		return QCOW_OK;
	bool readable = true;
	for (unsigned i = 0; i < 2 && readable; i++)
		readable = !p->reads[i] || read_piece(c, p, i, err) == QCOW_OK;
	if (readable)
		return judge(c, p);
	for (uint64_t at = 0; at < p->len; at += SECTOR_BYTES) {
		struct piece sector = *p;
		sector.off = p->off + at;
		sector.len = qk_min(SECTOR_BYTES, p->len - at);
		QK_TRY(compare_piece(c, &sector));
	}
	return QCOW_OK;
}

static uint64_t done(void *ctx, void *item)
{
	const struct piece *p = item;
	(void)ctx;
	return p->len;
}

/* ---- the call ---- */

static enum qcow_status run_pipe(struct compare *c, struct qcow_error *err)
{
	static const struct qk_pipe_stages stages = {.next = next, .work = work, .done = done};
	const struct qk_pipe_job job = {.stages = &stages,
		.ctx = c,
		.n_workers = qk_pipe_workers(c->options->n_workers),
		.total = c->longest,
		.progress = c->options->progress};
	return qk_pipe_run_pieces(&job, sizeof(struct piece), 2 * CHUNK_BYTES, err);
}

/* The disk's size as it is compared. */
static uint64_t shown_size(const struct qcow_compare_options *o, struct qcow_image *image)
{
	struct qcow_info info;
	uint64_t size = qcow_size(image);
	qcow_get_info(image, &info);
	if (!o->whole_sectors || info.version != 0)
		return size;
	return qk_div_up(size, SECTOR_BYTES) * SECTOR_BYTES;
}

static enum qcow_status take_outcome(
	const struct compare *c, struct qcow_compare_result *result, struct qcow_error *err)
{
	const struct outcome *first = &c->first;
	bool by_sector = first->difference == QCOW_DIFFERENCE_CONTENT && c->options->whole_sectors;
	result->difference = first->difference;
	result->offset = by_sector ? first->off / SECTOR_BYTES * SECTOR_BYTES : first->off;
	if (first->difference != QCOW_DIFFERENCE_NONE)
		return QCOW_OK;
	result->failed_side = first->side;
	result->failed_to_read = first->is_read;
	if (err != NULL)
		*err = first->err;
	return first->err.status;
}

QK_TAKE_OPTIONS(
	take_options, qcow_compare_options, "compare options", QCOW_COMPARE_OPTIONS_INIT, progress)

enum qcow_status qcow_compare(struct qcow_image *a, struct qcow_image *b,
	const struct qcow_compare_options *options, struct qcow_compare_result *result,
	struct qcow_error *err)
{
	struct qcow_compare_options o;
	QK_TRY(take_options(options, &o, err));
	if (a == NULL || b == NULL || result == NULL || o.n_workers > QK_PIPE_MAX_WORKERS)
		return QK_FAIL(err, QCOW_E_INVAL,
			"qcow_compare: an argument is NULL, or there are over %d workers",
			QK_PIPE_MAX_WORKERS);
	*result = (struct qcow_compare_result){.sizes = {shown_size(&o, a), shown_size(&o, b)}};
	struct compare c = {.options = &o,
		.sides = {{.image = a, .size = result->sizes[0]},
			{.image = b, .size = result->sizes[1]}}};
	c.common = qk_min(result->sizes[0], result->sizes[1]);
	c.longest = qk_max(result->sizes[0], result->sizes[1]);
	if (o.strict && c.common != c.longest) {
		result->difference = QCOW_DIFFERENCE_SIZE;
		result->offset = c.common;
		return QCOW_OK;
	}
	if (pthread_mutex_init(&c.lock, NULL) != 0)
		return QK_FAIL_NOMEM(err);
	enum qcow_status status = run_pipe(&c, err);
	(void)pthread_mutex_destroy(&c.lock);
	if (!c.first.is_there)
		return status;
	qk_err_clear(err);
	return take_outcome(&c, result, err);
}
