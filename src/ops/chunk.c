/* SPDX-License-Identifier: MIT */
/*
 * chunk: see chunk.h. Works on one chunk at a time and has no state of its own, so any number of
 * threads may fill chunks at once, each with its own scratch.
 *
 * Invariants:
 *   C1  segments are contiguous, begin at chunk->off and end at chunk->off + chunk->len;
 *   C2  BACKING segments cover whole units (the walk cuts them so);
 *   C3  after qk_chunk_fill the buffer holds the guest's bytes of every DATA unit.
 */
#include "ops/chunk.h"

#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/num.h"

#define BUFFER_ALIGN	    4096
#define SALVAGE_STEP_BYTES  QK_KIB(64)
#define SALVAGE_GRAIN_BYTES QK_KIB(4)

enum qcow_status qk_chunk_init(struct qk_chunk *chunk, const struct qk_policy *policy, bool salvage,
	struct qcow_error *err)
{
	*chunk = (struct qk_chunk){0};
	uint64_t n_units = policy->chunk_bytes / policy->unit_bytes;
	uint64_t grain = qk_min(policy->unit_bytes, 4096);
	chunk->max_segments = (unsigned)(policy->chunk_bytes / grain) + 2;
	chunk->max_puts = (unsigned)n_units + 1;
	chunk->buf = qk_malloc_aligned(BUFFER_ALIGN, policy->chunk_bytes);
	chunk->segments = qk_calloc(chunk->max_segments, sizeof(*chunk->segments));
	chunk->states = qk_calloc(n_units, sizeof(*chunk->states));
	chunk->puts = qk_calloc(chunk->max_puts, sizeof(*chunk->puts));
	bool is_whole = chunk->buf != NULL && chunk->segments != NULL && chunk->states != NULL &&
			chunk->puts != NULL;
	if (policy->compress) {
		chunk->packed_bytes = qk_calloc(n_units, sizeof(*chunk->packed_bytes));
		is_whole = is_whole && chunk->packed_bytes != NULL;
	}
	if (salvage) {
		chunk->max_lost = (unsigned)(policy->chunk_bytes / SALVAGE_GRAIN_BYTES) + 2;
		chunk->lost = qk_calloc(chunk->max_lost, sizeof(*chunk->lost));
		is_whole = is_whole && chunk->lost != NULL;
	}
	return is_whole ? QCOW_OK : QK_FAIL_NOMEM(err);
}

void qk_chunk_release(struct qk_chunk *chunk)
{
	free(chunk->buf);
	free(chunk->segments);
	free(chunk->states);
	free(chunk->packed_bytes);
	free(chunk->puts);
	free(chunk->lost);
	*chunk = (struct qk_chunk){0};
}

void qk_chunk_reset(struct qk_chunk *chunk, uint64_t off)
{
	chunk->kind = QK_CHUNK_MIXED;
	chunk->off = off;
	chunk->len = 0;
	chunk->n_segments = 0;
	chunk->n_puts = 0;
	chunk->n_lost = 0;
	chunk->clone_store = NULL;
	chunk->bytes_read = chunk->bytes_written = chunk->bytes_cloned = chunk->bytes_zero = 0;
}

bool qk_chunk_add_segment(struct qk_chunk *chunk, const struct qk_segment *segment)
{
	struct qk_segment *last = chunk->n_segments > 0 ? &chunk->segments[chunk->n_segments - 1]
							: NULL;
	if (last != NULL && last->kind == segment->kind) {
		last->len += segment->len;
	} else if (chunk->n_segments < chunk->max_segments) {
		/* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): room only where they are */
		chunk->segments[chunk->n_segments++] = *segment;
	} else {
		return false;
	}
	chunk->len += segment->len;
	return true;
}

enum qcow_status qk_chunk_add_put(struct qk_chunk *chunk, struct qk_put put, struct qcow_error *err)
{
	if (chunk->n_puts == chunk->max_puts) {
		unsigned n = chunk->max_puts * 2;
		struct qk_put *grown = qk_realloc(chunk->puts, n, sizeof(*grown));
		if (grown == NULL)
			return QK_FAIL_NOMEM(err);
		chunk->puts = grown;
		chunk->max_puts = n;
	}
	chunk->puts[chunk->n_puts++] = put;
	return QCOW_OK;
}

uint64_t qk_chunk_run(const struct qk_chunk *chunk, uint64_t unit, uint64_t n_units)
{
	uint8_t state = chunk->states[unit];
	bool is_zero = state == QK_UNIT_ZERO || state == QK_UNIT_FOUND;
	while (++unit < n_units) {
		uint8_t other = chunk->states[unit];
		bool is_same = is_zero ? other == QK_UNIT_ZERO || other == QK_UNIT_FOUND
				       : other == state;
		if (!is_same)
			break;
	}
	return unit;
}

/* ---- reading ---- */

static void note_lost(
	struct qk_chunk *chunk, uint64_t off, uint64_t len, const struct qcow_error *why)
{
	struct qk_lost *last = chunk->n_lost > 0 ? &chunk->lost[chunk->n_lost - 1] : NULL;
	if (last == NULL)
		chunk->why = *why;
	if (last != NULL && last->off + last->len == off)
		last->len += len;
	else if (chunk->n_lost < chunk->max_lost)
		chunk->lost[chunk->n_lost++] = (struct qk_lost){off, len};
	else if (last != NULL)
		last->len = off + len - last->off;
}

/* Read what can be read of [off, +len) in ever smaller pieces; the rest becomes zeros. */
static enum qcow_status salvage(struct qk_chunk *chunk, const struct qk_source *source,
	uint64_t off, uint64_t len, struct qcow_error *err)
{
	uint64_t end = off + len;
	while (off < end) {
		struct qcow_error why = QCOW_ERROR_INIT;
		uint8_t *p = chunk->buf + (off - chunk->off);
		uint64_t n = qk_min(end - off, SALVAGE_STEP_BYTES - off % SALVAGE_STEP_BYTES);
		if (qk_source_read(source, p, n, off, &why) == QCOW_OK) {
			off += n;
			continue;
		}
		for (uint64_t stop = off + n; off < stop; off += n, p += n) {
			n = qk_min(stop - off, SALVAGE_GRAIN_BYTES - off % SALVAGE_GRAIN_BYTES);
			enum qcow_status status = qk_source_read(source, p, n, off, &why);
			if (status == QCOW_E_NOMEM)
				return QK_FAIL_NOMEM(err);
			if (status == QCOW_OK)
				continue;
			memset(p, 0, n);
			note_lost(chunk, off, n, &why);
		}
	}
	return QCOW_OK;
}

static enum qcow_status read_segment(struct qk_chunk *chunk, const struct qk_source *source,
	const struct qk_segment *segment, struct qcow_error *err)
{
	uint8_t *p = chunk->buf + (segment->off - chunk->off);
	chunk->bytes_read += segment->len;
	if (chunk->lost == NULL)
		return qk_source_read(source, p, segment->len, segment->off, err);
	struct qcow_error why = QCOW_ERROR_INIT;
	if (qk_source_read(source, p, segment->len, segment->off, &why) == QCOW_OK)
		return QCOW_OK;
	return salvage(chunk, source, segment->off, segment->len, err);
}

/* ---- states ---- */

static uint64_t unit_len(
	const struct qk_chunk *chunk, const struct qk_policy *policy, uint64_t unit)
{
	uint64_t at = unit * policy->unit_bytes;
	return qk_min(policy->unit_bytes, chunk->len - at);
}

static void mark(struct qk_chunk *chunk, const struct qk_policy *policy,
	const struct qk_segment *segment, enum qk_unit_state state)
{
	uint64_t at = segment->off - chunk->off, end = at + segment->len;
	uint64_t first = qk_div_up(at, policy->unit_bytes);
	uint64_t after = end == chunk->len ? qk_div_up(end, policy->unit_bytes)
					   : end / policy->unit_bytes;
	if (first < after)
		memset(chunk->states + first, (int)state, after - first);
	if (state != QK_UNIT_ZERO)
		return;
	/* What the segment covers of units that it shares with others has to be in the buffer. */
	uint64_t head = qk_min(first * policy->unit_bytes, end);
	if (at < head)
		memset(chunk->buf + at, 0, head - at);
	uint64_t tail = qk_max(after * policy->unit_bytes, head);
	if (tail < end)
		memset(chunk->buf + tail, 0, end - tail);
}

/* Runs of zeros that are too short become data again. */
static void demote_short_runs(
	struct qk_chunk *chunk, const struct qk_policy *policy, uint64_t n_units)
{
	for (uint64_t u = 0, after = 0; u < n_units; u = after) {
		after = qk_chunk_run(chunk, u, n_units);
		uint8_t state = chunk->states[u];
		if (state != QK_UNIT_ZERO && state != QK_UNIT_FOUND)
			continue;
		uint64_t len = qk_min(after * policy->unit_bytes, chunk->len) -
			       u * policy->unit_bytes;
		if (len >= qk_min(policy->sparse_bytes, chunk->len) && policy->sparse_bytes != 0)
			continue;
		for (uint64_t i = u; i < after; i++) {
			if (chunk->states[i] == QK_UNIT_ZERO && policy->sparse_bytes != 0)
				continue; /* a hole of the source is one, however short */
			uint8_t *p = chunk->buf + i * policy->unit_bytes;
			memset(p, 0, unit_len(chunk, policy, i));
			chunk->states[i] = QK_UNIT_DATA;
		}
	}
}

static void find_zeros(struct qk_chunk *chunk, const struct qk_policy *policy, uint64_t n_units)
{
	for (uint64_t u = 0; u < n_units; u++)
		if (chunk->states[u] == QK_UNIT_DATA &&
			qk_is_zero(chunk->buf + u * policy->unit_bytes, unit_len(chunk, policy, u)))
			chunk->states[u] = QK_UNIT_FOUND;
}

/* Leave out the units whose content the backing image holds already. */
static enum qcow_status find_backed(struct qk_chunk *chunk, const struct qk_policy *policy,
	struct qk_scratch *scratch, uint64_t n_units, struct qcow_error *err)
{
	uint64_t size = qcow_size(policy->compare);
	uint64_t n = chunk->off < size ? qk_min(chunk->len, size - chunk->off) : 0;
	if (n > 0)
		QK_TRY(qcow_pread(policy->compare, scratch->backing, n, chunk->off, err));
	memset(scratch->backing + n, 0, chunk->len - n);
	for (uint64_t u = 0; u < n_units; u++) {
		uint64_t at = u * policy->unit_bytes, len = unit_len(chunk, policy, u);
		uint8_t *theirs = scratch->backing + at;
		uint8_t state = chunk->states[u];
		bool is_same = state == QK_UNIT_DATA ? memcmp(chunk->buf + at, theirs, len) == 0
						     : qk_is_zero(theirs, len);
		if (state != QK_UNIT_BACKING && is_same)
			chunk->states[u] = QK_UNIT_BACKING;
	}
	return QCOW_OK;
}

static enum qcow_status pack(struct qk_chunk *chunk, const struct qk_policy *policy,
	struct qk_scratch *scratch, uint64_t n_units, struct qcow_error *err)
{
	for (uint64_t u = 0; u < n_units; u++) {
		if (chunk->states[u] != QK_UNIT_DATA)
			continue;
		uint8_t *p = chunk->buf + u * policy->unit_bytes;
		uint64_t len = unit_len(chunk, policy, u);
		if (len < policy->unit_bytes)
			memset(p + len, 0, policy->unit_bytes - len);
		size_t n = 0;
		QK_TRY(qcow_codec_compress(scratch->codec, p, scratch->packed, &n, err));
		if (n == 0)
			continue;
		QK_ASSERT(C4, n < policy->unit_bytes);
		memcpy(p, scratch->packed, n);
		chunk->packed_bytes[u] = (uint32_t)n;
		chunk->states[u] = QK_UNIT_PACKED;
	}
	return QCOW_OK;
}

enum qcow_status qk_chunk_fill(struct qk_chunk *chunk, const struct qk_policy *policy,
	const struct qk_source *source, struct qk_scratch *scratch, struct qcow_error *err)
{
	QK_ASSERT(C1, chunk->len <= policy->chunk_bytes && chunk->n_segments > 0);
	uint64_t n_units = qk_div_up(chunk->len, policy->unit_bytes);
	memset(chunk->states, QK_UNIT_DATA, n_units);
	for (unsigned i = 0; i < chunk->n_segments; i++) {
		const struct qk_segment *segment = &chunk->segments[i];
		if (segment->kind == QK_SEGMENT_DATA)
			QK_TRY(read_segment(chunk, source, segment, err));
		else if (segment->kind == QK_SEGMENT_ZERO)
			mark(chunk, policy, segment, QK_UNIT_ZERO);
		else
			mark(chunk, policy, segment, QK_UNIT_BACKING);
	}
	if (policy->sparse_bytes != 0 && policy->sparse_bytes <= policy->chunk_bytes)
		find_zeros(chunk, policy, n_units);
	if (policy->sparse_bytes == 0 || policy->sparse_bytes > policy->unit_bytes)
		demote_short_runs(chunk, policy, n_units);
	if (policy->compare != NULL)
		QK_TRY(find_backed(chunk, policy, scratch, n_units, err));
	if (policy->compress)
		QK_TRY(pack(chunk, policy, scratch, n_units, err));
	return QCOW_OK;
}
