/* SPDX-License-Identifier: MIT */
/*
 * space_blocks: the cache of refcount blocks. A block that was changed stays until its sectors are written and a
 * flush has passed (X3), for after a failed flush the host may read back what never reached the disk: it is
 * written again from here. Where nothing can leave the cache grows past its budget, and
 * qk_space_wants_publish says so.
 *
 * A block is written by sector, by qk_refblock_write alone; a new one whole.
 */
#include "engine/space_private.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"

#define SHRINK_STEPS 8U

static uint64_t n_sectors(const struct qk_space *sp)
{
	return sp->g->cluster_size / QK_SECTOR;
}

static uint64_t n_words(const struct qk_space *sp)
{
	return qk_div_up(n_sectors(sp), 64);
}

static struct qk_refblock **bucket_of(struct qk_space *sp, uint64_t idx)
{
	return &sp->buckets[idx % QK_SPACE_BUCKETS];
}

static bool map_test(const uint64_t *map, uint64_t i)
{
	return (map[i / 64] >> (i % 64) & 1) != 0;
}

/* True where the bit was clear. */
static bool map_set(uint64_t *map, uint64_t i)
{
	uint64_t bit = UINT64_C(1) << (i % 64);
	bool was_clear = (map[i / 64] & bit) == 0;

	map[i / 64] |= bit;
	return was_clear;
}

/* ---- order of use ---- */

static void unlink_use(struct qk_space *sp, struct qk_refblock *b)
{
	*(b->newer != NULL ? &b->newer->older : &sp->newest) = b->older;
	*(b->older != NULL ? &b->older->newer : &sp->oldest) = b->newer;
}

static void link_use(struct qk_space *sp, struct qk_refblock *b)
{
	b->newer = NULL;
	b->older = sp->newest;
	*(sp->newest != NULL ? &sp->newest->newer : &sp->oldest) = b;
	sp->newest = b;
}

/* ---- making and dropping ---- */

static void release(struct qk_refblock *b)
{
	if (b != NULL)
		free(b->bytes);
	free(b);
}

/* Memory for one: that of the last one that left the cache, where there is any. */
static struct qk_refblock *get_memory(struct qk_space *sp, uint64_t maps)
{
	struct qk_refblock *b = sp->idle_block;

	sp->idle_block = NULL;
	if (b != NULL)
		return b;
	b = qk_calloc(1, sizeof(*b) + maps);
	if (b == NULL)
		return NULL;
	b->bytes = qk_malloc_aligned(QK_SECTOR, sp->g->cluster_size);
	if (b->bytes != NULL)
		return b;
	release(b);
	return NULL;
}

static struct qk_refblock *make(
	struct qk_space *sp, uint64_t idx, uint64_t off, enum qk_refblock_state state)
{
	uint64_t maps = 2 * n_words(sp) * sizeof(uint64_t);
	struct qk_refblock *b = get_memory(sp, maps);

	if (b == NULL)
		return NULL;
	*b = (struct qk_refblock){.idx = idx, .off = off, .bytes = b->bytes, .state = state};
	b->dirty = (uint64_t *)(void *)(b + 1);
	b->unstable = b->dirty + n_words(sp);
	memset(b->dirty, 0, (size_t)maps);
	return b;
}

static void insert(struct qk_space *sp, struct qk_refblock *b)
{
	struct qk_refblock **bucket = bucket_of(sp, b->idx);

	b->next_hash = *bucket;
	*bucket = b;
	link_use(sp, b);
	sp->n_blocks++;
}

static void destroy(struct qk_space *sp, struct qk_refblock *b)
{
	release(sp->idle_block);
	sp->idle_block = b;
}

static void evict(struct qk_space *sp, struct qk_refblock *b)
{
	struct qk_refblock **at = bucket_of(sp, b->idx);

	while (*at != b)
		at = &(*at)->next_hash;
	*at = b->next_hash;
	unlink_use(sp, b);
	sp->n_blocks--;
	destroy(sp, b);
}

/* A few of the oldest: what cannot leave goes to the other end, or each load would meet it again. */
static void shrink(struct qk_space *sp)
{
	for (unsigned i = 0; i < SHRINK_STEPS && sp->n_blocks >= sp->max_blocks; i++) {
		struct qk_refblock *b = sp->oldest;
		if (b->pins == 0 && !b->is_busy) {
			evict(sp, b);
		} else {
			unlink_use(sp, b);
			link_use(sp, b);
		}
	}
}

/* ---- busy blocks ---- */

static void make_busy(struct qk_space *sp, struct qk_refblock *b)
{
	if (b->is_busy)
		return;
	b->is_busy = true;
	b->next_busy = sp->busy;
	sp->busy = b;
}

static bool is_idle(const struct qk_refblock *b)
{
	return b->n_dirty == 0 && b->n_unstable == 0 && b->state == QK_REFBLOCK_LINKED;
}

void qk_refblocks_tidy(struct qk_space *sp)
{
	for (struct qk_refblock **at = &sp->busy; *at != NULL;) {
		struct qk_refblock *b = *at;
		if (!is_idle(b)) {
			at = &b->next_busy;
			continue;
		}
		b->is_busy = false;
		*at = b->next_busy;
	}
	for (struct qk_refblock *b = sp->oldest; b != NULL && sp->n_blocks > sp->max_blocks;) {
		struct qk_refblock *newer = b->newer;
		if (b->pins == 0 && !b->is_busy)
			evict(sp, b);
		b = newer;
	}
}

void qk_space_shed(struct qk_space *sp)
{
	(void)pthread_mutex_lock(&sp->lock);
	uint64_t was = sp->max_blocks;
	sp->max_blocks = 0;
	qk_refblocks_tidy(sp);
	sp->max_blocks = was;
	release(sp->idle_block);
	sp->idle_block = NULL;
	(void)pthread_mutex_unlock(&sp->lock);
}

void qk_refblocks_release(struct qk_space *sp)
{
	for (struct qk_refblock *b = sp->newest; b != NULL;) {
		struct qk_refblock *older = b->older;
		release(b);
		b = older;
	}
	release(sp->idle_block);
	sp->newest = sp->oldest = sp->idle_block = NULL;
}

/* ---- finding ---- */

struct qk_refblock *qk_refblock_peek(struct qk_space *sp, uint64_t idx)
{
	struct qk_refblock *b = *bucket_of(sp, idx);

	while (b != NULL && b->idx != idx)
		b = b->next_hash;
	return b;
}

static enum qcow_status load(
	struct qk_space *sp, uint64_t idx, struct qk_refblock **out, struct qcow_error *err)
{
	uint64_t off = sp->table[idx];
	struct qk_refblock *b = NULL;

	shrink(sp);
	b = make(sp, idx, off, QK_REFBLOCK_LINKED);
	if (b == NULL)
		return QK_FAIL_NOMEM(err);
	enum qcow_status status = qcow_store_read_padded(
		sp->store, b->bytes, (size_t)sp->g->cluster_size, off, err);
	if (status != QCOW_OK) {
		destroy(sp, b);
		qk_err_context(err, "refcount block %" PRIu64 " at %" PRIu64, idx, off);
		if (err != NULL)
			err->finding = QCOW_FINDING_TABLE_READ_FAILED;
		return status;
	}
	insert(sp, b);
	*out = b;
	return QCOW_OK;
}

enum qcow_status qk_refblock_get(
	struct qk_space *sp, uint64_t idx, struct qk_refblock **out, struct qcow_error *err)
{
	QK_ASSERT(X4, idx < sp->table_entries && sp->table[idx] != 0);
	struct qk_refblock *b = qk_refblock_peek(sp, idx);

	if (b == NULL) {
		QK_TRY(load(sp, idx, &b, err));
	} else if (b != sp->newest) {
		unlink_use(sp, b);
		link_use(sp, b);
	}
	b->pins++;
	*out = b;
	return QCOW_OK;
}

void qk_refblock_put(struct qk_refblock *b)
{
	QK_ASSERT_VOID(X2, b->pins != 0);
	b->pins--;
}

static void mark_all(struct qk_space *sp, struct qk_refblock *b)
{
	for (uint64_t i = 0; i < n_sectors(sp); i++)
		b->n_dirty += map_set(b->dirty, i);
}

enum qcow_status qk_refblock_new(struct qk_space *sp, uint64_t idx, uint64_t off,
	struct qk_refblock **out, struct qcow_error *err)
{
	QK_ASSERT(X2, qk_refblock_peek(sp, idx) == NULL);
	shrink(sp);
	struct qk_refblock *b = make(sp, idx, off, QK_REFBLOCK_NEW);
	if (b == NULL)
		return QK_FAIL_NOMEM(err);
	memset(b->bytes, 0, (size_t)sp->g->cluster_size);
	mark_all(sp, b);
	insert(sp, b);
	make_busy(sp, b);
	b->pins++;
	*out = b;
	return QCOW_OK;
}

void qk_refblock_unmake(struct qk_space *sp, struct qk_refblock *b)
{
	struct qk_refblock **at = &sp->busy;

	while (*at != b)
		at = &(*at)->next_busy;
	*at = b->next_busy;
	evict(sp, b);
}

/* ---- entries ---- */

uint64_t qk_refblock_at(const struct qk_space *sp, const struct qk_refblock *b, uint64_t cluster)
{
	return qk_refcount_get(sp->g, b->bytes, cluster & (sp->g->rb_entries - 1));
}

void qk_refblock_set(struct qk_space *sp, struct qk_refblock *b, uint64_t cluster, uint64_t value)
{
	uint64_t at = cluster & (sp->g->rb_entries - 1);

	QK_ASSERT_VOID(X4, cluster >> sp->g->rb_bits == b->idx && value <= sp->g->refcount_max);
	qk_refcount_set(sp->g, b->bytes, at, value);
	make_busy(sp, b);
	b->n_dirty += map_set(b->dirty, (at << sp->g->refcount_order) / (8 * QK_SECTOR));
}

/* ---- writing ---- */

void qk_refblock_requeue(struct qk_refblock *b)
{
	if (b->n_unstable == 0)
		return;
	uint64_t *end = b->unstable + (b->unstable - b->dirty);

	b->n_dirty = 0;
	b->n_unstable = 0;
	for (uint64_t *d = b->dirty, *u = b->unstable; u < end; d++, u++) {
		*d |= *u;
		*u = 0;
		b->n_dirty += (uint32_t)__builtin_popcountll(*d);
	}
}

void qk_refblock_settle(struct qk_refblock *b)
{
	memset(b->unstable, 0, (size_t)((uint8_t *)b->unstable - (uint8_t *)b->dirty));
	b->n_unstable = 0;
}

/* Copy the dirty sectors and call them written; their map goes to `map`. */
static void copy_out(struct qk_space *sp, struct qk_refblock *b, uint64_t *map)
{
	memcpy(map, b->dirty, (size_t)(n_words(sp) * sizeof(*map)));
	for (uint64_t i = 0; i < n_sectors(sp); i++) {
		if (!map_test(map, i))
			continue;
		memcpy(sp->scratch + i * QK_SECTOR, b->bytes + i * QK_SECTOR, QK_SECTOR);
		b->n_unstable += map_set(b->unstable, i);
	}
	memset(b->dirty, 0, (size_t)(n_words(sp) * sizeof(*map)));
	b->n_dirty = 0;
}

/* Runs of sectors in `map`, from the scratch buffer. */
static enum qcow_status write_runs(
	struct qk_space *sp, uint64_t off, const uint64_t *map, struct qcow_error *err)
{
	for (uint64_t i = 0; i < n_sectors(sp);) {
		uint64_t n = 0;
		while (i + n < n_sectors(sp) && map_test(map, i + n))
			n++;
		if (n != 0)
			QK_TRY(qcow_store_write(sp->store, sp->scratch + i * QK_SECTOR,
				(size_t)(n * QK_SECTOR), off + i * QK_SECTOR, err));
		i += n + 1;
	}
	return QCOW_OK;
}

enum qcow_status qk_refblock_write(
	struct qk_space *sp, struct qk_refblock *b, struct qcow_error *err)
{
	uint64_t map[QK_SPACE_SECTOR_MAX];

	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = qk_space_judge_write(
		sp, QK_SPACE_REFBLOCK, b->off, sp->g->cluster_size, err);
	if (status == QCOW_OK)
		copy_out(sp, b, map);
	(void)pthread_mutex_unlock(&sp->lock);
	QK_TRY(status);
	return write_runs(sp, b->off, map, err);
}
