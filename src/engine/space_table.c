/* SPDX-License-Identifier: MIT */
/*
 * space_table: refcount blocks that are new, a refcount table that grows, and the publication of both.
 *
 *	new block:	the whole block with its own count || table entry || use
 *	new table:	the whole table, refcounts of its clusters || header bytes 48-59 || the old one is freed
 *
 * A table that must grow takes half as much again. Invariants: space_private.h.
 */
#include "engine/space_private.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"

#define MAX_ENTRIES (QK_MAX_REFTABLE_BYTES / 8)
#define MAX_CHAIN   8U /* blocks that one missing block may need: each lies in the next one's area */

#define ENTRIES_IN_SECTOR 64U

#define HEADER_RT_OFF	48U /* refcount_table_offset, refcount_table_clusters */
#define HEADER_RT_BYTES 12U

static uint64_t entries_in(const struct qk_space *sp, uint64_t clusters)
{
	return clusters << (sp->g->cluster_bits - 3);
}

/* ---- more entries ---- */

static void abandon_place(struct qk_space *sp)
{
	uint64_t first = qk_space_cluster(sp, sp->next_off);

	qk_space_map_forget(sp, first, sp->next_clusters);
	sp->table_state = QK_TABLE_WANTED;
	if (qk_space_count(sp, QK_COUNT_CLEAR, first, sp->next_clusters, NULL) != QCOW_OK)
		return; /* they are leaks */
}

/* Entries for block `idx` in memory. */
static enum qcow_status grow(struct qk_space *sp, uint64_t idx, struct qcow_error *err)
{
	uint64_t wanted = qk_max(idx + 1, sp->table_entries + sp->table_entries / 2);
	uint64_t per_cluster = entries_in(sp, 1);
	uint64_t n = qk_min(qk_div_up(wanted, per_cluster) * per_cluster, MAX_ENTRIES);

	if (idx >= MAX_ENTRIES)
		return QK_FAIL(err, QCOW_E_NOSPC,
			"the refcount table cannot grow past %" PRIu64 " bytes",
			QK_MAX_REFTABLE_BYTES);
	uint64_t *table = qk_realloc(sp->table, n, sizeof(*table));
	if (table == NULL)
		return QK_FAIL_NOMEM(err);
	sp->table = table;
	uint64_t *full = qk_realloc(sp->full, qk_div_up(n, 64), sizeof(*full));
	if (full == NULL)
		return QK_FAIL_NOMEM(err);
	uint64_t old_words = qk_div_up(sp->table_entries, 64);
	memset(full + old_words, 0, (size_t)(qk_div_up(n, 64) - old_words) * sizeof(*full));
	memset(table + sp->table_entries, 0, (size_t)(n - sp->table_entries) * sizeof(*table));
	sp->full = full;
	sp->table_entries = n;
	if (sp->table_state == QK_TABLE_PLACED)
		abandon_place(sp);
	else if (sp->table_state == QK_TABLE_SETTLED)
		sp->table_state = QK_TABLE_WANTED;
	return QCOW_OK;
}

/* ---- new blocks ---- */

/* Blocks to make: idx[i] at cluster at[i]. */
struct chain {
	unsigned n;
	uint64_t idx[MAX_CHAIN];
	uint64_t at[MAX_CHAIN];
	struct qk_refblock *block[MAX_CHAIN]; /* made, pinned */
};

/* Is the area that of a block before the last: would the last be counted by one that it is to count itself? */
static bool is_circle(const struct chain *c, uint64_t area)
{
	for (unsigned i = 0; i < c->n; i++) {
		if (c->idx[i] == area)
			return true;
	}
	return false;
}

/* The cluster of block c->idx[c->n], from s->from on. */
static enum qcow_status find_place(
	struct qk_space *sp, struct qk_space_search *s, struct chain *c, struct qcow_error *err)
{
	uint64_t n = 0;
	uint64_t area = 0;

	do {
		QK_TRY(qk_space_find(sp, s, &c->at[c->n], &n, err));
		QK_ASSERT(X1, c->at[c->n] != 0);
		area = c->at[c->n] >> sp->g->rb_bits;
		s->from = is_circle(c, area) ? (area + 1) << sp->g->rb_bits : c->at[c->n] + 1;
	} while (is_circle(c, area));
	return QCOW_OK;
}

/* Where the block for `idx` goes, and those that count its cluster and one another's. */
static enum qcow_status plan(struct qk_space *sp, uint64_t idx, uint64_t avoid, uint64_t avoid_end,
	struct chain *c, struct qcow_error *err)
{
	struct qk_space_search s = {.from = qk_max(sp->cursor, sp->floor),
		.n = 1,
		.min_n = 1,
		.avoid = avoid,
		.avoid_end = avoid_end};

	*c = (struct chain){0};
	do {
		QK_ASSERT(X4, c->n < MAX_CHAIN);
		c->idx[c->n] = idx;
		QK_TRY(find_place(sp, &s, c, err));
		idx = c->at[c->n++] >> sp->g->rb_bits;
		if (idx >= sp->table_entries)
			QK_TRY(grow(sp, idx, err));
	} while (sp->table[idx] == 0 && idx != c->idx[c->n - 1]);
	return QCOW_OK;
}

static enum qcow_status make_blocks(struct qk_space *sp, struct chain *c, struct qcow_error *err)
{
	for (unsigned i = 0; i < c->n; i++) {
		uint64_t off = c->at[i] << sp->g->cluster_bits;
		QK_TRY(qk_space_extend(sp, c->at[i] + 1, err));
		QK_TRY(qk_space_map_add(sp, QK_SPACE_REFBLOCK, c->at[i], 1, err));
		enum qcow_status status = qk_refblock_new(sp, c->idx[i], off, &c->block[i], err);
		if (status != QCOW_OK) {
			qk_space_map_forget(sp, c->at[i], 1);
			return status;
		}
		sp->table[c->idx[i]] = off;
		qk_space_used(sp, c->at[i], 1);
	}
	return QCOW_OK;
}

static void unmake_blocks(struct qk_space *sp, struct chain *c)
{
	for (unsigned i = 0; i < c->n && c->block[i] != NULL; i++) {
		sp->table[c->idx[i]] = 0;
		qk_space_map_forget(sp, c->at[i], 1);
		qk_refblock_unmake(sp, c->block[i]);
	}
}

static enum qcow_status count_blocks(struct qk_space *sp, struct chain *c, struct qcow_error *err)
{
	for (unsigned i = 0; i < c->n; i++)
		QK_TRY(qk_space_count(sp, QK_COUNT_TAKE, c->at[i], 1, err));
	return QCOW_OK;
}

/* Make the block for `idx`; [avoid, avoid_end) is what it is made for. */
static enum qcow_status make_block(struct qk_space *sp, uint64_t idx, uint64_t avoid,
	uint64_t avoid_end, struct qcow_error *err)
{
	struct chain c;
	struct qk_refblock *last = NULL;

	if (idx >= sp->table_entries)
		QK_TRY(grow(sp, idx, err));
	QK_TRY(plan(sp, idx, avoid, avoid_end, &c, err));
	/* the one block that may have to be read comes first: what follows the making cannot fail */
	uint64_t last_idx = c.at[c.n - 1] >> sp->g->rb_bits;
	if (sp->table[last_idx] != 0)
		QK_TRY(qk_refblock_get(sp, last_idx, &last, err));
	enum qcow_status status = make_blocks(sp, &c, err);
	if (status == QCOW_OK)
		status = count_blocks(sp, &c, err);
	if (last != NULL)
		qk_refblock_put(last);
	if (status != QCOW_OK) {
		unmake_blocks(sp, &c);
		return status;
	}
	for (unsigned i = 0; i < c.n; i++)
		qk_refblock_put(c.block[i]);
	return QCOW_OK;
}

enum qcow_status qk_space_cover(
	struct qk_space *sp, uint64_t first, uint64_t n, struct qcow_error *err)
{
	uint64_t last = (first + n - 1) >> sp->g->rb_bits;

	for (uint64_t idx = first >> sp->g->rb_bits; idx <= last; idx++) {
		if (idx >= sp->table_entries || sp->table[idx] == 0)
			QK_TRY(make_block(sp, idx, first, first + n, err));
	}
	return QCOW_OK;
}

/* ---- a place for the new table ---- */

static enum qcow_status take_place(
	struct qk_space *sp, uint64_t first, uint64_t n, struct qcow_error *err)
{
	QK_TRY(qk_space_extend(sp, first + n, err));
	QK_TRY(qk_space_map_add(sp, QK_SPACE_REFTABLE, first, n, err));
	enum qcow_status status = qk_space_count(sp, QK_COUNT_TAKE, first, n, err);
	if (status != QCOW_OK) {
		qk_space_map_forget(sp, first, n);
		return status;
	}
	qk_space_used(sp, first, n);
	sp->next_off = first << sp->g->cluster_bits;
	sp->next_clusters = n;
	sp->table_state = QK_TABLE_PLACED;
	return QCOW_OK;
}

enum qcow_status qk_space_place_table(struct qk_space *sp, struct qcow_error *err)
{
	uint64_t first = 0;
	uint64_t n = 0;
	uint64_t got = 0;

	/* the place may need blocks, and those more entries: then it is looked for again */
	while (sp->table_state == QK_TABLE_WANTED) {
		n = sp->table_entries / entries_in(sp, 1);
		struct qk_space_search s = {
			.from = qk_max(sp->cursor, sp->floor), .n = n, .min_n = n};
		QK_TRY(qk_space_find(sp, &s, &first, &got, err));
		QK_TRY(qk_space_cover(sp, first, n, err));
		if (n == sp->table_entries / entries_in(sp, 1))
			QK_TRY(take_place(sp, first, n, err));
	}
	return QCOW_OK;
}

/* ---- publishing ---- */

bool qk_space_wants_publish(struct qk_space *sp)
{
	(void)pthread_mutex_lock(&sp->lock);
	bool wants = sp->n_blocks > sp->max_blocks && sp->busy != NULL;
	(void)pthread_mutex_unlock(&sp->lock);
	return wants;
}

/* Entries that can be linked by the publication under way. */
static uint64_t linkable_entries(const struct qk_space *sp)
{
	return entries_in(sp,
		sp->table_state == QK_TABLE_WRITTEN ? sp->next_clusters : sp->header.rt_clusters);
}

static void drop_stale_table(struct qk_space *sp)
{
	uint64_t first = qk_space_cluster(sp, sp->stale_off);

	if (sp->stale_clusters != 0 &&
		qk_space_count(sp, QK_COUNT_DROP, first, sp->stale_clusters, NULL) == QCOW_OK)
		sp->stale_clusters = 0;
}

/* Pin what is to be written, and say which blocks are to be linked. */
static void gather(struct qk_space *sp)
{
	sp->publishing = NULL;
	for (struct qk_refblock *b = sp->busy; b != NULL; b = b->next_busy) {
		qk_refblock_requeue(b);
		b->link_round = 0;
		if (b->state == QK_REFBLOCK_LINKING)
			b->state = QK_REFBLOCK_NEW;
		if (b->state == QK_REFBLOCK_NEW && b->idx < linkable_entries(sp))
			b->state = QK_REFBLOCK_LINKING;
		if (b->n_dirty == 0 && b->state != QK_REFBLOCK_LINKING)
			continue;
		b->pins++;
		b->next_publish = sp->publishing;
		sp->publishing = b;
	}
}

/* A flush failed: the new length of the file may be lost with the rest. */
static enum qcow_status set_size_again(struct qk_space *sp, struct qcow_error *err)
{
	uint64_t size = qk_space_file_size(sp);

	return size > sp->open_size ? qcow_store_truncate(sp->store, size, err) : QCOW_OK;
}

static enum qcow_status begin(struct qk_space *sp, struct qcow_error *err)
{
	QK_TRY(qk_space_usable(sp, err));
	if (sp->is_publishing)
		QK_TRY(set_size_again(sp, err));
	sp->is_publishing = true;
	qk_space_settle_deferred(sp);
	drop_stale_table(sp);
	if (sp->table_state == QK_TABLE_WRITTEN)
		sp->table_state = QK_TABLE_PLACED;
	if (sp->table_state == QK_TABLE_PLACED &&
		entries_in(sp, sp->next_clusters) < sp->table_entries)
		abandon_place(sp);
	QK_TRY(qk_space_place_table(sp, err));
	if (sp->table_state == QK_TABLE_PLACED)
		sp->table_state = QK_TABLE_WRITTEN;
	sp->is_switching = sp->table_state == QK_TABLE_WRITTEN;
	gather(sp);
	return QCOW_OK;
}

static enum qcow_status switch_table(struct qk_space *sp, struct qcow_error *err)
{
	uint8_t bytes[HEADER_RT_BYTES];
	struct qk_header_patch patch = {HEADER_RT_OFF, HEADER_RT_BYTES, bytes};

	qk_store64(bytes, sp->next_off);
	qk_store32(bytes + 8, (uint32_t)sp->next_clusters);
	sp->header_uncertain = true;
	return qk_space_write_header(sp, &patch, err);
}

static void settle_table(struct qk_space *sp)
{
	uint64_t old = qk_space_cluster(sp, sp->header.rt_off);

	/* one before it whose drop failed until now is a leak */
	sp->stale_off = sp->header.rt_off;
	sp->stale_clusters = sp->header.rt_clusters;
	qk_space_map_forget(sp, old, sp->stale_clusters);
	sp->header.rt_off = sp->next_off;
	sp->header.rt_clusters = (uint32_t)sp->next_clusters;
	sp->header_uncertain = false;
	sp->is_switching = false;
	sp->table_state = sp->table_entries > entries_in(sp, sp->next_clusters) ? QK_TABLE_WANTED
										: QK_TABLE_SETTLED;
	drop_stale_table(sp);
}

/* The blocks that the publication linked are in use. */
static enum qcow_status flush(struct qk_space *sp, struct qcow_error *err)
{
	enum qcow_status status = qcow_store_flush(sp->store, err);
	sp->flush_failed = sp->flush_failed || status != QCOW_OK;
	return status;
}

static void settle_blocks(struct qk_space *sp)
{
	for (struct qk_refblock *b = sp->busy; b != NULL; b = b->next_busy) {
		if (b->state == QK_REFBLOCK_LINKING)
			b->state = QK_REFBLOCK_LINKED;
	}
}

/*
 * The last publication failed after it had begun to switch tables: the disk may name either. The new one and the
 * blocks in it were stable before, so the switch is completed: neither may change while both may be in use.
 */
static enum qcow_status finish_switch(struct qk_space *sp, struct qcow_error *err)
{
	if (!sp->header_uncertain)
		return QCOW_OK;
	QK_TRY(switch_table(sp, err));
	QK_TRY(flush(sp, err));
	(void)pthread_mutex_lock(&sp->lock);
	settle_blocks(sp);
	settle_table(sp);
	(void)pthread_mutex_unlock(&sp->lock);
	return QCOW_OK;
}

/* The word of entry i as the publication under way leaves it. */
static uint64_t entry_to_write(struct qk_space *sp, uint64_t i)
{
	const struct qk_refblock *b = sp->table[i] != 0 ? qk_refblock_peek(sp, i) : NULL;

	if (b == NULL || b->state == QK_REFBLOCK_LINKED)
		return sp->table[i];
	/* a new table becomes visible at once, entries of the one in use round by round, and what may be there stays */
	bool is_turn = sp->is_switching || b->link_round != 0 || b->is_named;
	return b->state == QK_REFBLOCK_LINKING && is_turn ? sp->table[i] : 0;
}

/* Entries [first, first + n) to the table at `table_off`. */
static enum qcow_status write_entries(
	struct qk_space *sp, uint64_t table_off, uint64_t first, uint64_t n, struct qcow_error *err)
{
	uint64_t off = table_off + first * 8;

	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = qk_space_judge_write(sp, QK_SPACE_REFTABLE, off, n * 8, err);
	for (uint64_t i = 0; i < n; i++)
		qk_store64(sp->scratch + i * 8, entry_to_write(sp, first + i));
	(void)pthread_mutex_unlock(&sp->lock);
	QK_TRY(status);
	return qcow_store_write(sp->store, sp->scratch, (size_t)(n * 8), off, err);
}

static enum qcow_status write_all(struct qk_space *sp, bool *needs_link, struct qcow_error *err)
{
	*needs_link = sp->is_switching;
	for (struct qk_refblock *b = sp->publishing; b != NULL; b = b->next_publish) {
		*needs_link = *needs_link || b->state == QK_REFBLOCK_LINKING;
		QK_TRY(qk_refblock_write(sp, b, err));
	}
	if (!sp->is_switching)
		return QCOW_OK;
	for (uint64_t i = 0; i < sp->next_clusters; i++)
		QK_TRY(write_entries(
			sp, sp->next_off, i * entries_in(sp, 1), entries_in(sp, 1), err));
	return QCOW_OK;
}

enum qcow_status qk_space_publish_begin(
	struct qk_space *sp, bool *needs_link, struct qcow_error *err)
{
	*needs_link = false;
	QK_TRY(finish_switch(sp, err));
	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = begin(sp, err);
	(void)pthread_mutex_unlock(&sp->lock);
	QK_TRY(status);
	/* states and the list change in begin and done only, which nobody else runs now (X7) */
	status = write_all(sp, needs_link, err);
	(void)pthread_mutex_lock(&sp->lock);
	for (struct qk_refblock *b = sp->publishing; b != NULL; b = b->next_publish)
		qk_refblock_put(b);
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}

/* ---- linking ---- */

/*
 * A block whose own count lies in another new block waits until that one is linked for sure: else a crash could
 * show its entry without its count. Blocks are made so that there is no circle.
 */
static bool may_link(struct qk_space *sp, const struct qk_refblock *b)
{
	uint64_t area = qk_space_cluster(sp, b->off) >> sp->g->rb_bits;
	const struct qk_refblock *counts = area == b->idx ? NULL : qk_refblock_peek(sp, area);

	return counts == NULL || counts->state == QK_REFBLOCK_LINKED || counts->link_round != 0;
}

/* Number the blocks whose turn it is. False where none is left; *more: some still wait. */
static bool start_round(struct qk_space *sp, unsigned round, bool *more)
{
	bool any = false;

	*more = false;
	(void)pthread_mutex_lock(&sp->lock);
	for (struct qk_refblock *b = sp->publishing; b != NULL; b = b->next_publish)
		b->is_ready = b->state == QK_REFBLOCK_LINKING && b->link_round == 0 &&
			      may_link(sp, b);
	for (struct qk_refblock *b = sp->publishing; b != NULL; b = b->next_publish) {
		if (b->is_ready)
			b->link_round = round;
		any = any || b->is_ready;
		*more = *more || (b->state == QK_REFBLOCK_LINKING && b->link_round == 0);
	}
	(void)pthread_mutex_unlock(&sp->lock);
	return any;
}

/* Has an earlier block of the list the same sector of the table in this round? */
static bool is_written(const struct qk_space *sp, const struct qk_refblock *b)
{
	for (const struct qk_refblock *o = sp->publishing; o != b; o = o->next_publish) {
		if (o->state == QK_REFBLOCK_LINKING && o->link_round == b->link_round &&
			o->idx / ENTRIES_IN_SECTOR == b->idx / ENTRIES_IN_SECTOR)
			return true;
	}
	return false;
}

/* A later round begins behind a flush, and a publication that fails in it or afterwards leaves its blocks to the next one: what
 * counts them is linked for sure. */
static enum qcow_status write_round(struct qk_space *sp, unsigned round, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&sp->lock);
	for (struct qk_refblock *b = sp->publishing; b != NULL; b = b->next_publish)
		b->is_named = b->is_named || b->link_round == round;
	(void)pthread_mutex_unlock(&sp->lock);
	for (struct qk_refblock *b = sp->publishing; b != NULL; b = b->next_publish) {
		if (b->state == QK_REFBLOCK_LINKING && b->link_round == round && !is_written(sp, b))
			QK_TRY(write_entries(sp, sp->header.rt_off,
				b->idx / ENTRIES_IN_SECTOR * ENTRIES_IN_SECTOR, ENTRIES_IN_SECTOR,
				err));
	}
	return QCOW_OK;
}

enum qcow_status qk_space_publish_link(struct qk_space *sp, struct qcow_error *err)
{
	bool more = false;

	if (sp->is_switching)
		return switch_table(sp, err);
	for (unsigned round = 1; start_round(sp, round, &more); round++) {
		QK_TRY(write_round(sp, round, err));
		if (more)
			QK_TRY(flush(sp, err));
	}
	QK_ASSERT(X8, !more);
	return QCOW_OK;
}

void qk_space_publish_done(struct qk_space *sp)
{
	(void)pthread_mutex_lock(&sp->lock);
	for (struct qk_refblock *b = sp->busy; b != NULL; b = b->next_busy)
		qk_refblock_settle(b);
	settle_blocks(sp);
	qk_refblocks_tidy(sp);
	sp->is_publishing = false;
	sp->publishing = NULL;
	if (sp->is_switching)
		settle_table(sp);
	(void)pthread_mutex_unlock(&sp->lock);
}

bool qk_space_flush_failed(struct qk_space *sp)
{
	bool failed = sp->flush_failed;
	sp->flush_failed = false;
	return failed;
}

enum qcow_status qk_space_recover(struct qk_space *sp, struct qcow_error *err)
{
	uint8_t now[QK_SECTOR];

	QK_TRY(qcow_store_read(sp->store, now, sizeof(now), 0, err));
	uint64_t off = qk_load64(now + HEADER_RT_OFF);
	if (off != sp->header.rt_off && !(sp->header_uncertain && off == sp->next_off))
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_METADATA_OVERLAP, HEADER_RT_OFF,
			QCOW_NO_OFFSET,
			"the header names a refcount table at %" PRIu64
			": somebody else has written it",
			off);
	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = set_size_again(sp, err);
	(void)pthread_mutex_unlock(&sp->lock);
	QK_TRY(status);
	return finish_switch(sp, err);
}
