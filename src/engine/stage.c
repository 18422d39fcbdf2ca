/* SPDX-License-Identifier: MIT */
/*
 * stage: see stage.h. Owns the chunks; does no I/O and judges no entry.
 *
 * Invariants: G1 a chunk is in the open list exactly while open != 0, in the publishing list exactly while
 * publishing != 0; G2 a chunk that is pinned or in a list is in its bucket; G3 the memory of a chunk stays
 * until the stage is freed: a late reader reads old words, never freed ones.
 * Locking: lock guards everything but the words and links that readers follow; a chunk's words change under
 * the lock, one by one. Chunks are removed, and words of wide entries changed, under the lock between an odd and
 * an even sequence count; a reader that saw it move looks again. Order of memory as in meta.c.
 */
#include "engine/stage.h"

#include <sched.h>

#include "base/mem.h"
#include "engine/locks.h"

#define DEFAULT_BYTES  QK_MIB(4)
#define MIN_CHUNKS     16U
#define UNLINKED_BYTES QK_MIB(256) /* of the file, that wait for a publication */
#define MAX_BUCKETS    (UINT64_C(1) << 20)

/* ---- pairs ---- */

static enum qcow_status pairs_room(struct qk_pairs *pairs, uint32_t n, struct qcow_error *err)
{
	struct qk_pairs_block *last = pairs->last;
	if (n == 0 || (last != NULL && sizeof(last->v) / sizeof(last->v[0]) - last->n >= n))
		return QCOW_OK;
	struct qk_pairs_block *block = qk_calloc(1, sizeof(*block));
	if (block == NULL)
		return QK_FAIL_NOMEM(err);
	if (last != NULL)
		last->next = block;
	else
		pairs->first = block;
	pairs->last = block;
	return QCOW_OK;
}

static void pairs_push(struct qk_pairs *pairs, uint64_t a, uint64_t b)
{
	struct qk_pairs_block *last = pairs->last;
	QK_ASSERT_VOID(G4, last != NULL && last->n < sizeof(last->v) / sizeof(last->v[0]));
	last->v[last->n++] = (struct qk_pair){a, b};
	pairs->n++;
}

/* `from` is empty afterwards. */
static void pairs_join(struct qk_pairs *pairs, struct qk_pairs *from)
{
	if (from->first == NULL)
		return;
	if (pairs->last != NULL)
		pairs->last->next = from->first;
	else
		pairs->first = from->first;
	pairs->last = from->last;
	pairs->n += from->n;
	*from = (struct qk_pairs){0};
}

void qk_pairs_release(struct qk_pairs *pairs)
{
	struct qk_pairs_block *block = pairs->first;
	while (block != NULL) {
		struct qk_pairs_block *next = block->next;
		free(block);
		block = next;
	}
	*pairs = (struct qk_pairs){0};
}

/* ---- making ---- */

enum qcow_status qk_stage_new(
	uint64_t bytes, uint64_t cluster_size, struct qk_stage **out, struct qcow_error *err)
{
	struct qk_stage *stage = qk_calloc(1, sizeof(*stage));
	if (stage == NULL)
		return QK_FAIL_NOMEM(err);
	bytes = bytes != 0 ? bytes : DEFAULT_BYTES;
	stage->max_chunks = qk_max(bytes / sizeof(struct qk_chunk), MIN_CHUNKS);
	stage->max_unlinked = qk_max(QK_STAGE_ENTRIES,
		qk_min(bytes / sizeof(struct qk_pair), UNLINKED_BYTES / cluster_size));
	uint64_t n_buckets = MIN_CHUNKS;
	while (n_buckets < stage->max_chunks && n_buckets < MAX_BUCKETS)
		n_buckets *= 2;
	stage->bucket_mask = n_buckets - 1;
	stage->buckets = qk_calloc(n_buckets, sizeof(*stage->buckets));
	if (stage->buckets == NULL) {
		free(stage);
		return QK_FAIL_NOMEM(err);
	}
	(void)pthread_mutex_init(&stage->lock, NULL);
	*out = stage;
	return QCOW_OK;
}

static void free_chunks(struct qk_chunk *chunk)
{
	while (chunk != NULL) {
		struct qk_chunk *next = atomic_load_explicit(&chunk->next, memory_order_relaxed);
		free(chunk);
		chunk = next;
	}
}

static void release_generation(struct qk_stage_generation *generation)
{
	qk_pairs_release(&generation->l1);
	qk_pairs_release(&generation->unlinked);
}

void qk_stage_free(struct qk_stage *stage)
{
	if (stage == NULL)
		return;
	for (uint64_t i = 0; i <= stage->bucket_mask; i++)
		free_chunks(atomic_load_explicit(&stage->buckets[i], memory_order_relaxed));
	free_chunks(stage->unused);
	release_generation(&stage->open);
	release_generation(&stage->publishing);
	(void)pthread_mutex_destroy(&stage->lock);
	free(stage->buckets);
	free(stage);
}

/* ---- the table of chunks ---- */

static _Atomic(struct qk_chunk *) *bucket_of(struct qk_stage *stage, uint64_t key)
{
	return &stage->buckets[(key ^ (key >> 17)) & stage->bucket_mask];
}

static struct qk_chunk *walk_bucket(struct qk_stage *stage, uint64_t key)
{
	struct qk_chunk *chunk = atomic_load_explicit(bucket_of(stage, key), memory_order_acquire);
	while (chunk != NULL && atomic_load_explicit(&chunk->key, memory_order_acquire) != key)
		chunk = atomic_load_explicit(&chunk->next, memory_order_acquire);
	return chunk;
}

bool qk_stage_find(struct qk_stage *stage, uint64_t key, struct qk_slice *out)
{
	for (;;) {
		uint32_t sequence = atomic_load_explicit(&stage->sequence, memory_order_acquire);
		if ((sequence & 1) != 0) {
			(void)sched_yield();
			continue;
		}
		struct qk_chunk *chunk = walk_bucket(stage, key);
		if (atomic_load_explicit(&stage->sequence, memory_order_relaxed) != sequence)
			continue;
		if (chunk == NULL)
			return false;
		out->words = chunk->words;
		out->sequence_at = &stage->sequence;
		out->sequence = sequence;
		return true;
	}
}

/* Take a chunk out of its bucket. Under the lock, the count is odd. */
static void remove_chunk(struct qk_stage *stage, struct qk_chunk *chunk)
{
	uint64_t key = atomic_load_explicit(&chunk->key, memory_order_relaxed);
	_Atomic(struct qk_chunk *) *link = bucket_of(stage, key);
	struct qk_chunk *at = atomic_load_explicit(link, memory_order_relaxed);
	while (at != chunk && at != NULL) {
		link = &at->next;
		at = atomic_load_explicit(link, memory_order_relaxed);
	}
	QK_ASSERT_VOID(G2, at == chunk);
	atomic_store_explicit(link, atomic_load_explicit(&chunk->next, memory_order_relaxed),
		memory_order_release);
	atomic_store_explicit(&chunk->next, stage->unused, memory_order_release);
	stage->unused = chunk;
	(void)atomic_fetch_sub_explicit(&stage->n_chunks, 1, memory_order_release);
}

static void begin_change(struct qk_stage *stage)
{
	(void)atomic_fetch_add_explicit(&stage->sequence, 1, memory_order_acq_rel);
}

static void end_change(struct qk_stage *stage)
{
	(void)atomic_fetch_add_explicit(&stage->sequence, 1, memory_order_release);
}

static bool is_idle(const struct qk_chunk *chunk)
{
	return chunk->pins == 0 && chunk->open == 0 && chunk->publishing == 0;
}

struct qk_chunk *qk_stage_pin(struct qk_stage *stage, uint64_t key)
{
	qk_lock(&stage->lock);
	struct qk_chunk *chunk = walk_bucket(stage, key);
	if (chunk != NULL)
		chunk->pins++;
	qk_unlock(&stage->lock);
	return chunk;
}

void qk_stage_unpin(struct qk_stage *stage, struct qk_chunk *chunk)
{
	qk_lock(&stage->lock);
	QK_ASSERT_VOID(G2, chunk->pins != 0);
	chunk->pins--;
	if (is_idle(chunk)) {
		begin_change(stage);
		remove_chunk(stage, chunk);
		end_change(stage);
	}
	qk_unlock(&stage->lock);
}

enum qcow_status qk_stage_add(struct qk_stage *stage, uint64_t key, uint64_t l2_off,
	const uint64_t disk[QK_STAGE_WORDS], struct qk_chunk **out, struct qcow_error *err)
{
	qk_lock(&stage->lock);
	struct qk_chunk *chunk = stage->unused;
	if (chunk != NULL)
		stage->unused = atomic_load_explicit(&chunk->next, memory_order_relaxed);
	else
		chunk = qk_calloc(1, sizeof(*chunk));
	if (chunk == NULL) {
		qk_unlock(&stage->lock);
		return QK_FAIL_NOMEM(err);
	}
	chunk->l2_off = l2_off;
	chunk->pins = 1;
	chunk->open = 0;
	chunk->publishing = 0;
	chunk->named = 0;
	for (uint32_t i = 0; i < QK_STAGE_WORDS; i++) {
		chunk->disk[i] = chunk->settled[i] = disk[i];
		atomic_store_explicit(&chunk->words[i], disk[i], memory_order_release);
	}
	_Atomic(struct qk_chunk *) *bucket = bucket_of(stage, key);
	atomic_store_explicit(&chunk->next, atomic_load_explicit(bucket, memory_order_relaxed),
		memory_order_release);
	atomic_store_explicit(&chunk->key, key, memory_order_release);
	atomic_store_explicit(bucket, chunk, memory_order_release);
	(void)atomic_fetch_add_explicit(&stage->n_chunks, 1, memory_order_release);
	qk_unlock(&stage->lock);
	*out = chunk;
	return QCOW_OK;
}

/* ---- changes ---- */

static void mark_open(struct qk_stage *stage, struct qk_chunk *chunk, uint64_t bits)
{
	if (chunk->open == 0) {
		chunk->next_open = stage->open.chunks;
		stage->open.chunks = chunk;
		stage->open.n_chunks++;
	}
	chunk->open |= bits;
}

static uint64_t bits_of(uint32_t first, uint32_t n)
{
	uint64_t mask = n == QK_STAGE_WORDS ? UINT64_MAX : (UINT64_C(1) << n) - 1;
	return mask << first;
}

/* Under the lock. */
static void set_words(struct qk_stage *stage, const struct qk_stage_change *change)
{
	if (change->is_wide)
		begin_change(stage);
	for (uint32_t i = 0; i < change->n; i++)
		atomic_store_explicit(&change->chunk->words[change->first + i],
			__builtin_bswap64(change->words[i]), memory_order_release);
	if (change->is_wide)
		end_change(stage);
}

enum qcow_status qk_stage_commit(
	struct qk_stage *stage, const struct qk_stage_change *change, struct qcow_error *err)
{
	struct qk_chunk *chunk = change->chunk;
	QK_ASSERT(G5, change->n != 0 && change->first + change->n <= QK_STAGE_WORDS &&
			      change->n_unlinked <= QK_STAGE_ENTRIES);
	qk_lock(&stage->lock);
	enum qcow_status status = pairs_room(&stage->open.unlinked, change->n_unlinked, err);
	if (status == QCOW_OK) {
		for (uint32_t i = 0; i < change->n_unlinked; i++)
			pairs_push(&stage->open.unlinked, change->unlinked[i].a,
				change->unlinked[i].b);
		(void)atomic_fetch_add_explicit(
			&stage->n_unlinked, change->n_unlinked, memory_order_relaxed);
		set_words(stage, change);
		mark_open(stage, chunk, bits_of(change->first, change->n));
		chunk->named &= ~bits_of(change->first, change->n);
		stage->open.needs_barrier = stage->open.needs_barrier || change->needs_barrier;
	}
	qk_unlock(&stage->lock);
	return status;
}

enum qcow_status qk_stage_l1(struct qk_stage *stage, uint64_t index, uint64_t raw,
	uint64_t unlinked, struct qcow_error *err)
{
	qk_lock(&stage->lock);
	enum qcow_status status = pairs_room(&stage->open.l1, 1, err);
	if (status == QCOW_OK && unlinked != 0)
		status = pairs_room(&stage->open.unlinked, 1, err);
	if (status == QCOW_OK) {
		pairs_push(&stage->open.l1, index, raw);
		if (unlinked != 0)
			pairs_push(&stage->open.unlinked, unlinked, 1);
		stage->open.needs_barrier = true;
	}
	qk_unlock(&stage->lock);
	return status;
}

enum qcow_status qk_stage_unlink(
	struct qk_stage *stage, uint64_t off, uint64_t n, struct qcow_error *err)
{
	qk_lock(&stage->lock);
	enum qcow_status status = pairs_room(&stage->open.unlinked, 1, err);
	if (status == QCOW_OK) {
		pairs_push(&stage->open.unlinked, off, n);
		(void)atomic_fetch_add_explicit(&stage->n_unlinked, 1, memory_order_relaxed);
	}
	qk_unlock(&stage->lock);
	return status;
}

bool qk_stage_has_unlinked(struct qk_stage *stage)
{
	qk_lock(&stage->lock);
	bool has = stage->open.unlinked.n != 0 || stage->publishing.unlinked.n != 0;
	qk_unlock(&stage->lock);
	return has;
}

uint64_t qk_stage_unsettled(struct qk_stage *stage, const struct qk_chunk *chunk)
{
	qk_lock(&stage->lock);
	uint64_t words = chunk->open | chunk->publishing | chunk->named;
	qk_unlock(&stage->lock);
	return words;
}

/* ---- publishing ---- */

void qk_stage_swap(struct qk_stage *stage)
{
	qk_lock(&stage->lock);
	QK_ASSERT_VOID(G1, stage->publishing.chunks == NULL && stage->publishing.l1.n == 0);
	for (struct qk_chunk *chunk = stage->open.chunks; chunk != NULL; chunk = chunk->next_open) {
		for (uint64_t left = chunk->open; left != 0; left &= left - 1) {
			unsigned i = (unsigned)__builtin_ctzll(left);
			chunk->disk[i] = atomic_load_explicit(
				&chunk->words[i], memory_order_relaxed);
		}
		chunk->publishing = chunk->open;
		chunk->open = 0;
		chunk->next_publishing = chunk->next_open;
	}
	stage->publishing = stage->open;
	stage->open = (struct qk_stage_generation){0};
	atomic_store_explicit(&stage->n_unlinked, 0, memory_order_relaxed);
	qk_unlock(&stage->lock);
}

/* The disk names the entries of the publication, or may. */
static void settle(struct qk_chunk *chunk)
{
	for (uint64_t left = chunk->publishing; left != 0; left &= left - 1) {
		unsigned i = (unsigned)__builtin_ctzll(left);
		chunk->settled[i] = chunk->disk[i];
	}
}

void qk_stage_published(struct qk_stage *stage, struct qk_pairs *unlinked)
{
	qk_lock(&stage->lock);
	*unlinked = stage->publishing.unlinked;
	stage->publishing.unlinked = (struct qk_pairs){0};
	qk_pairs_release(&stage->publishing.l1);
	begin_change(stage);
	struct qk_chunk *chunk = stage->publishing.chunks;
	while (chunk != NULL) {
		struct qk_chunk *next = chunk->next_publishing;
		settle(chunk);
		chunk->publishing = 0;
		chunk->named = 0;
		if (is_idle(chunk))
			remove_chunk(stage, chunk);
		chunk = next;
	}
	end_change(stage);
	stage->publishing = (struct qk_stage_generation){0};
	qk_unlock(&stage->lock);
}

void qk_stage_reopen(struct qk_stage *stage, bool is_named)
{
	struct qk_stage_generation *from = &stage->publishing;
	qk_lock(&stage->lock);
	struct qk_chunk *chunk = from->chunks;
	while (chunk != NULL) {
		struct qk_chunk *next = chunk->next_publishing;
		if (is_named) {
			settle(chunk);
			chunk->named |= chunk->publishing & ~chunk->open;
		}
		mark_open(stage, chunk, chunk->publishing);
		chunk->publishing = 0;
		chunk = next;
	}
	pairs_join(&stage->open.l1, &from->l1);
	pairs_join(&stage->open.unlinked, &from->unlinked);
	stage->open.needs_barrier = stage->open.needs_barrier || from->needs_barrier;
	*from = (struct qk_stage_generation){0};
	qk_unlock(&stage->lock);
}

/* All entries of a chunk as the last publication that got so far wrote them; it may be written again. */
static bool revert_chunk(struct qk_chunk *chunk)
{
	bool reverted = (chunk->open & ~chunk->named) != 0;
	for (uint64_t left = chunk->open & ~chunk->named; left != 0; left &= left - 1) {
		unsigned i = (unsigned)__builtin_ctzll(left);
		atomic_store_explicit(&chunk->words[i], chunk->settled[i], memory_order_release);
	}
	chunk->named = chunk->open;
	return reverted;
}

bool qk_stage_forget(
	struct qk_stage *stage, bool (*is_kept)(void *ctx, const struct qk_chunk *chunk), void *ctx)
{
	bool reverted = false;
	qk_lock(&stage->lock);
	struct qk_chunk *chunk = stage->open.chunks;
	stage->open.chunks = NULL;
	stage->open.n_chunks = 0;
	begin_change(stage);
	while (chunk != NULL) {
		struct qk_chunk *next = chunk->next_open;
		if (chunk->named != 0 && is_kept(ctx, chunk)) {
			reverted = revert_chunk(chunk) || reverted;
			chunk->next_open = stage->open.chunks;
			stage->open.chunks = chunk;
			stage->open.n_chunks++;
		} else {
			reverted = true;
			chunk->open = 0;
			chunk->named = 0;
			QK_ASSERT_VOID(G2, is_idle(chunk));
			remove_chunk(stage, chunk);
		}
		chunk = next;
	}
	end_change(stage);
	qk_unlock(&stage->lock);
	return reverted;
}

void qk_stage_defer(struct qk_stage *stage, struct qk_pairs *unlinked)
{
	qk_lock(&stage->lock);
	pairs_join(&stage->open.unlinked, unlinked);
	qk_unlock(&stage->lock);
}
