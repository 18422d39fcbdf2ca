/* SPDX-License-Identifier: MIT */
/*
 * copy: cuts the source into chunks, and owns the chunks' buffers and the threads' codecs.
 *
 * Where chunks begin and end depends on the source alone, never on timing: that is what makes the
 * target's bytes the same for every number of workers.
 */
#include "ops/copy.h"

#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "base/num.h"

/* All chunks together, unless one a worker is more. */
#define CHUNKS_BYTES QK_MIB(32)
/* One shared run at most: the progress moves on, and a refusal is met early. */
#define CLONE_RUN_BYTES QK_GIB(1)

/* ---- cutting: one thread at a time ---- */

static bool may_clone(struct qk_copy *copy, struct qcow_store *store)
{
	if (copy->clone_dev == 0 || store == NULL)
		return false;
	if (copy->clone_store != store) {
		struct stat st;
		int fd = qcow_store_fd(store);
		copy->clone_store = store;
		copy->clone_store_ok = fd >= 0 && fstat(fd, &st) == 0 &&
				       st.st_dev == copy->clone_dev;
	}
	return copy->clone_store_ok;
}

/* How much of a segment that begins at a unit's start can be a chunk of its own: whole units, or up to
 * the end of the disk. 0 = it belongs into a mixed chunk. */
static uint64_t run_of(struct qk_copy *copy, const struct qk_segment *segment)
{
	const struct qk_policy *policy = &copy->policy;
	bool ends_disk = segment->off + segment->len == copy->source.size;
	uint64_t whole = qk_align_down(segment->len, policy->unit_bytes);
	switch (segment->kind) {
	case QK_SEGMENT_ZERO:
		if (policy->sparse_bytes == 0 || segment->len < policy->chunk_bytes)
			return 0;
		return ends_disk ? segment->len : whole;
	case QK_SEGMENT_BACKING:
		if (segment->len < policy->chunk_bytes)
			return 0;
		return ends_disk ? segment->len : whole;
	case QK_SEGMENT_DATA:
		if (!may_clone(copy, segment->store))
			return 0;
		if (!qk_is_aligned(segment->host_off, QK_CLONE_GRAIN_BYTES))
			return 0;
		return qk_min(whole, CLONE_RUN_BYTES);
	}
	return 0;
}

static void describe_run(struct qk_chunk *chunk, const struct qk_segment *segment, uint64_t len,
	uint64_t *cost_bytes)
{
	static const enum qk_chunk_kind kinds[] = {
		[QK_SEGMENT_DATA] = QK_CHUNK_CLONE,
		[QK_SEGMENT_ZERO] = QK_CHUNK_ZERO,
		[QK_SEGMENT_BACKING] = QK_CHUNK_BACKING,
	};
	chunk->kind = kinds[segment->kind];
	chunk->len = len;
	chunk->clone_store = segment->store;
	chunk->clone_off = segment->host_off;
	*cost_bytes = 0;
}

/* Put [at, …) of the segment into a mixed chunk, cut so that units stay whole (C2 of chunk.c). */
static void append(struct qk_copy *copy, struct qk_chunk *chunk, struct qk_segment segment)
{
	const struct qk_policy *policy = &copy->policy;
	uint64_t into = (segment.off - chunk->off) & (policy->unit_bytes - 1);
	bool ends_disk = segment.off + segment.len == copy->source.size;
	if (into != 0) {
		segment.len = qk_min(segment.len, policy->unit_bytes - into);
	} else if (segment.len >= policy->unit_bytes && !ends_disk) {
		segment.len = qk_align_down(segment.len, policy->unit_bytes);
	}
	segment.len = qk_min(segment.len, policy->chunk_bytes - chunk->len);
	bool is_whole = into == 0 && (segment.len >= policy->unit_bytes || ends_disk);
	if (segment.kind == QK_SEGMENT_BACKING && !is_whole)
		segment.kind = QK_SEGMENT_DATA;
	if (qk_chunk_add_segment(chunk, &segment))
		return;
	/* No room: what follows is read with its predecessor, and judged by its content. */
	struct qk_segment *last = &chunk->segments[chunk->n_segments - 1];
	last->kind = QK_SEGMENT_DATA;
	last->len += segment.len;
	chunk->len += segment.len;
}

static enum qcow_status next_chunk(
	void *ctx, void *item, bool *end, uint64_t *cost_bytes, struct qcow_error *err)
{
	struct qk_copy *copy = ctx;
	struct qk_chunk *chunk = item;
	qk_chunk_reset(chunk, copy->at);
	if (copy->at >= copy->source.size) {
		*end = true;
		return QCOW_OK;
	}
	while (copy->at < copy->source.size && chunk->len < copy->policy.chunk_bytes) {
		struct qk_segment segment;
		QK_TRY(qk_source_segment(&copy->source, copy->at, &segment, err));
		bool at_unit = qk_is_aligned(chunk->len, copy->policy.unit_bytes);
		uint64_t run = at_unit ? run_of(copy, &segment) : 0;
		if (run != 0 && chunk->len != 0)
			break;
		if (run != 0) {
			describe_run(chunk, &segment, run, cost_bytes);
			copy->at += run;
			return QCOW_OK;
		}
		append(copy, chunk, segment);
		copy->at = chunk->off + chunk->len;
	}
	*cost_bytes = 0;
	for (unsigned i = 0; i < chunk->n_segments; i++)
		if (chunk->segments[i].kind == QK_SEGMENT_DATA)
			*cost_bytes += chunk->segments[i].len;
	return QCOW_OK;
}

/* ---- the other stages ---- */

struct run {
	struct qk_copy *copy;
	struct qk_chunk *chunks;
	void **items;
	unsigned n_chunks;
	struct qk_scratch scratch[QK_PIPE_MAX_WORKERS];
	unsigned n_workers;
};

static enum qcow_status stage_next(
	void *ctx, void *item, bool *end, uint64_t *cost_bytes, struct qcow_error *err)
{
	struct run *run = ctx;
	return next_chunk(run->copy, item, end, cost_bytes, err);
}

static enum qcow_status stage_work(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct run *run = ctx;
	struct qk_chunk *chunk = item;
	if (chunk->kind != QK_CHUNK_MIXED)
		return QCOW_OK;
	struct qk_copy *copy = run->copy;
	return qk_chunk_fill(chunk, &copy->policy, &copy->source, &run->scratch[worker], err);
}

static enum qcow_status stage_place(void *ctx, void *item, struct qcow_error *err)
{
	struct run *run = ctx;
	struct qk_copy *copy = run->copy;
	const struct qk_chunk *chunk = item;
	for (unsigned i = 0; i < chunk->n_lost && copy->on_salvage != NULL; i++)
		copy->on_salvage(
			copy->salvage_ctx, chunk->lost[i].off, chunk->lost[i].len, &chunk->why);
	return qk_sink_place(&copy->sink, item, err);
}

static enum qcow_status stage_store(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct run *run = ctx;
	(void)worker;
	return qk_sink_store(&run->copy->sink, item, run->copy->policy.chunk_bytes, err);
}

static uint64_t stage_done(void *ctx, void *item)
{
	struct run *run = ctx;
	struct qcow_convert_result *result = &run->copy->result;
	const struct qk_chunk *chunk = item;
	result->bytes_read += chunk->bytes_read;
	result->bytes_written += chunk->bytes_written;
	result->bytes_cloned += chunk->bytes_cloned;
	result->bytes_zero += chunk->bytes_zero;
	for (unsigned i = 0; i < chunk->n_lost; i++)
		result->bytes_salvaged += chunk->lost[i].len;
	return chunk->len;
}

static const struct qk_pipe_stages stages = {
	.next = stage_next,
	.work = stage_work,
	.place = stage_place,
	.store = stage_store,
	.done = stage_done,
};

/* ---- resources ---- */

static void release_scratch(struct qk_scratch *scratch)
{
	qcow_codec_free(scratch->codec);
	free(scratch->packed);
	free(scratch->backing);
	*scratch = (struct qk_scratch){0};
}

static enum qcow_status init_scratch(
	struct qk_scratch *scratch, const struct qk_copy *copy, struct qcow_error *err)
{
	const struct qk_policy *policy = &copy->policy;
	if (policy->compress) {
		QK_TRY(qcow_codec_new(
			copy->compression, policy->unit_bytes, copy->level, &scratch->codec, err));
		scratch->packed = qk_malloc(1, policy->unit_bytes);
		if (scratch->packed == NULL)
			return QK_FAIL_NOMEM(err);
	}
	if (policy->compare != NULL) {
		scratch->backing = qk_malloc(1, policy->chunk_bytes);
		if (scratch->backing == NULL)
			return QK_FAIL_NOMEM(err);
	}
	return QCOW_OK;
}

/* As many workers as there is memory for, at least one. */
static enum qcow_status init_workers(struct run *run, unsigned wanted, struct qcow_error *err)
{
	for (; run->n_workers < wanted; run->n_workers++) {
		struct qk_scratch *scratch = &run->scratch[run->n_workers];
		enum qcow_status status = init_scratch(scratch, run->copy, err);
		if (status == QCOW_OK)
			continue;
		release_scratch(scratch);
		if (run->n_workers == 0 || status != QCOW_E_NOMEM)
			return status;
		qk_err_clear(err);
		break;
	}
	return QCOW_OK;
}

/* More chunks than workers, so that nobody waits for the order: two a worker (all of them stay in the
 * processor's cache), four where each takes its time; fewer where they are large. */
static enum qcow_status init_chunks(struct run *run, struct qcow_error *err)
{
	const struct qk_policy *policy = &run->copy->policy;
	uint64_t fit = CHUNKS_BYTES / policy->chunk_bytes;
	uint64_t depth = policy->compress ? 4 : 2;
	unsigned wanted = (unsigned)qk_max(run->n_workers, qk_min(fit, depth * run->n_workers));
	run->chunks = qk_calloc(wanted, sizeof(*run->chunks));
	run->items = qk_calloc(wanted, sizeof(*run->items));
	if (run->chunks == NULL || run->items == NULL)
		return QK_FAIL_NOMEM(err);
	for (; run->n_chunks < wanted; run->n_chunks++) {
		struct qk_chunk *chunk = &run->chunks[run->n_chunks];
		enum qcow_status status = qk_chunk_init(
			chunk, policy, run->copy->source.salvage, err);
		if (status != QCOW_OK) {
			qk_chunk_release(chunk);
			if (run->n_chunks == 0)
				return status;
			qk_err_clear(err);
			break;
		}
		run->items[run->n_chunks] = chunk;
	}
	return QCOW_OK;
}

static void release_run(struct run *run)
{
	for (unsigned i = 0; i < run->n_workers; i++)
		release_scratch(&run->scratch[i]);
	for (unsigned i = 0; i < run->n_chunks; i++)
		qk_chunk_release(&run->chunks[i]);
	free(run->chunks);
	free(run->items);
}

enum qcow_status qk_copy_run(struct qk_copy *copy, struct qcow_error *err)
{
	struct run run = {.copy = copy};
	copy->at = 0;
	enum qcow_status status = init_workers(&run, qk_pipe_workers(copy->n_workers), err);
	if (status == QCOW_OK)
		status = init_chunks(&run, err);
	if (status == QCOW_OK) {
		struct qk_pipe_job job = {
			.stages = &stages,
			.ctx = &run,
			.items = run.items,
			.n_items = run.n_chunks,
			.n_workers = run.n_workers,
			.any_order = copy->any_order,
			.rate_bytes_per_sec = copy->rate_bytes_per_sec,
			.total = copy->source.size,
			.progress = copy->progress,
		};
		status = qk_pipe_run(&job, err);
	}
	release_run(&run);
	return status;
}
