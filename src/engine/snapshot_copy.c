/* SPDX-License-Identifier: MIT */
/*
 * snapshot_copy: L2 tables of the active tree whose COPIED bits change are written to fresh clusters; the others stay in
 * both trees. A table is copied at most once; what changes in it later (the next window of counts) changes in the copy.
 */
#include "engine/snapshot_int.h"

#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/rw.h"
#include "format/l1l2.h"

#define BATCH_BYTES  QK_MIB(1)
#define TAKE_AT_ONCE 64U
#define COPIED_TOP   0x80U /* of an entry's first byte */
#define ROW_MOST     64U /* entries whose bits are judged together */

enum qcow_status qk_copy_init(struct qk_copy *c, struct qcow_image *image, struct qk_fresh *fresh,
	const uint64_t *base, uint64_t n, struct qcow_error *err)
{
	uint64_t size = image->geometry.cluster_size;
	*c = (struct qk_copy){.image = image, .fresh = fresh, .base = base, .n = n};
	c->batch_room = qk_max(BATCH_BYTES, size);
	c->l1 = qk_malloc(qk_max(n, 1), sizeof(*c->l1));
	c->is_single = qk_calloc(qk_max(n, 1), sizeof(*c->is_single));
	c->reach = qk_calloc(qk_max(n, 1), sizeof(*c->reach));
	c->tables = qk_malloc_aligned(QK_SECTOR, (size_t)c->batch_room);
	c->batch = qk_malloc_aligned(QK_SECTOR, (size_t)c->batch_room);
	if (c->l1 == NULL || c->is_single == NULL || c->reach == NULL || c->tables == NULL ||
		c->batch == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t i = 0; i < n; i++)
		c->l1[i] = base[i] & QK_OFFSET_MASK;
	return QCOW_OK;
}

void qk_copy_release(struct qk_copy *c)
{
	free(c->l1);
	free(c->is_single);
	free(c->reach);
	free(c->tables);
	free(c->batch);
	*c = (struct qk_copy){0};
}

bool qk_copy_is_fresh(const struct qk_copy *c, uint64_t i)
{
	return c->l1[i] != (c->base[i] & QK_OFFSET_MASK);
}

/* ---- writing ---- */

static enum qcow_status flush_batch(struct qk_copy *c, struct qcow_error *err)
{
	if (c->batch_bytes == 0)
		return QCOW_OK;
	QK_TRY(qk_space_check_overlap(
		c->image->rw->space, QK_SPACE_L2, c->batch_off, c->batch_bytes, err));
	QK_TRY(qcow_store_write(
		c->image->store, c->batch, (size_t)c->batch_bytes, c->batch_off, err));
	c->batch_bytes = 0;
	return QCOW_OK;
}

static enum qcow_status take_one(struct qk_copy *c, uint64_t *off, struct qcow_error *err)
{
	/* as many in a row as can be had */
	for (uint64_t n = qk_min(TAKE_AT_ONCE, c->n_left); c->n_spare == 0; n /= 2) {
		enum qcow_status status = qk_snap_take(c->fresh, n, QK_SPACE_L2, &c->spare, err);
		if (status != QCOW_OK && n <= 1)
			return status;
		c->n_spare = status == QCOW_OK ? n : 0;
	}
	*off = c->spare;
	c->spare += c->image->geometry.cluster_size;
	c->n_spare--;
	return QCOW_OK;
}

/* c->table becomes that of entry i. */
static enum qcow_status put(struct qk_copy *c, uint64_t i, struct qcow_error *err)
{
	uint64_t size = c->image->geometry.cluster_size;
	if (!qk_copy_is_fresh(c, i))
		QK_TRY(take_one(c, &c->l1[i], err));
	if (c->batch_bytes != 0 && (c->l1[i] != c->batch_off + c->batch_bytes ||
					   c->batch_bytes + size > c->batch_room))
		QK_TRY(flush_batch(c, err));
	if (c->batch_bytes == 0)
		c->batch_off = c->l1[i];
	memcpy(c->batch + c->batch_bytes, c->table, (size_t)size);
	c->batch_bytes += size;
	return QCOW_OK;
}

/* What was taken and not used is free again: it would be counted. */
static enum qcow_status finish(struct qk_copy *c, struct qcow_error *err)
{
	QK_TRY(flush_batch(c, err));
	qk_snap_trim(c->fresh, c->n_spare);
	c->n_spare = 0;
	return QCOW_OK;
}

/* How many of the tables from entry i on lie side by side, and are read at once? */
static uint64_t stretch(const struct qk_copy *c, uint64_t i)
{
	uint64_t size = c->image->geometry.cluster_size;
	uint64_t n = 1, most = c->batch_room / size;
	while (n < most && i + n < c->n && c->l1[i + n] == c->l1[i] + n * size)
		n++;
	return n;
}

/* c->table becomes that of entry i, in the buffer; entries are asked for in ascending order. */
static enum qcow_status get(struct qk_copy *c, uint64_t i, struct qcow_error *err)
{
	uint64_t size = c->image->geometry.cluster_size;
	if (i < c->read_at || i - c->read_at >= c->n_read) {
		uint64_t n = stretch(c, i);
		QK_TRY(qcow_store_read_padded(
			c->image->store, c->tables, (size_t)(n * size), c->l1[i], err));
		c->read_at = i;
		c->n_read = n;
	}
	c->table = c->tables + (i - c->read_at) * size;
	return QCOW_OK;
}

/* Before the first entry. */
static void begin(struct qk_copy *c)
{
	c->n_left = c->n_read = 0;
	for (uint64_t i = 0; i < c->n; i++)
		c->n_left += c->l1[i] != 0;
}

/* ---- bits ---- */

static bool clear_all(const struct qk_geometry *g, uint8_t *table)
{
	const uint64_t copied = __builtin_bswap64(QK_FLAG_COPIED);
	size_t step = g->l2_entry_size, n = (size_t)g->cluster_size;
	uint64_t all = 0;
	for (size_t at = 0; at < n; at += step) {
		uint64_t word = 0;
		memcpy(&word, table + at, sizeof(word));
		all |= word;
		word &= ~copied;
		memcpy(table + at, &word, sizeof(word));
	}
	return (all & copied) != 0;
}

enum qcow_status qk_copy_cleared(struct qk_copy *c, struct qk_counter *counter,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	begin(c);
	for (uint64_t i = 0; i < c->n; i++) {
		if (c->l1[i] == 0)
			continue;
		QK_TRY(qk_snapshot_goes_on(progress, err));
		QK_TRY(get(c, i, err));
		if (counter != NULL)
			qk_counter_show(counter, c->l1[i], c->table);
		if (clear_all(&c->image->geometry, c->table))
			QK_TRY(put(c, i, err));
		c->n_left--;
	}
	return finish(c, err);
}

/* Tables that were not copied and have one reference; those that were have one for certain. */
static void judge_own(struct qk_copy *c, const struct qk_counter *counter)
{
	for (uint64_t i = 0; i < c->n; i++) {
		uint64_t cluster = c->l1[i] >> c->image->geometry.cluster_bits;
		if (qk_copy_is_fresh(c, i))
			c->is_single[i] = true;
		else if (c->l1[i] != 0 && cluster >= counter->lo && cluster < counter->hi)
			c->is_single[i] = qk_counter_at(counter, cluster) == 1;
	}
}

/* The host cluster of entry i, 0: none that COPIED could speak of. */
static enum qcow_status host_of(
	struct qk_copy *c, uint64_t off, uint32_t i, uint64_t *host, struct qcow_error *err)
{
	const struct qk_geometry *g = &c->image->geometry;
	uint64_t raw = 0, bitmap = 0;
	qk_l2_load(g, c->table, i, &raw, &bitmap);
	struct qk_l2_entry e = qk_l2_decode(g, raw, bitmap, (qk_goff){0});
	*host = qk_l2_has_host(&e) ? e.host_off.v : 0;
	return e.finding == 0 ? QCOW_OK : qk_snapshot_bad_entry(off, i, raw, e.finding, err);
}

/* The n entries from `entry` on name the clusters of counts [k, k + n) of a narrow window, and are all COPIED or none: has one
 * changed? Those whose counts say different things are left, which `*done` says. */
static bool judge_row(
	const struct qk_counter *counter, uint64_t k, uint64_t n, uint8_t *entry, bool *done)
{
	const uint8_t *v = counter->narrow + k;
	uint8_t all = 1, any = 0;
	for (uint64_t i = 0; i < n; i++) {
		uint8_t is_single = (v[i] | 1) == 3;
		all &= is_single;
		any |= is_single;
	}
	*done = all == any;
	if (!*done || (all != 0) == ((*entry & COPIED_TOP) != 0))
		return false;
	for (uint64_t i = 0; i < n; i++)
		entry[i * sizeof(uint64_t)] ^= COPIED_TOP;
	return true;
}

/* Entries of 8 bytes that are plain, or 0, from the i-th on, up to the first that is something else. */
static inline uint32_t judge_plain(struct qk_copy *c, const struct qk_counter *counter,
	const struct qk_plain *p, uint32_t i, bool is_wide, bool *changed)
{
	uint32_t end = c->image->geometry.l2_entries, slow = 0;
	uint64_t size = c->image->geometry.cluster_size;
	bool any = false;
	for (; i < end; i++) {
		uint8_t *at = c->table + (size_t)i * sizeof(uint64_t);
		uint64_t raw = qk_load64(at);
		uint64_t off = raw & QK_OFFSET_MASK;
		if (QK_UNLIKELY((raw & p->bad_bits) != 0 || (off == 0 && raw != 0)))
			break;
		uint64_t k = (off >> p->cluster_bits) - p->lo;
		if (off == 0 || k >= p->n)
			continue;
		uint32_t row_end = (uint32_t)qk_min(end, i + ROW_MOST);
		uint64_t row = is_wide || i < slow ? 0 : qk_l2_row(c->table, i, row_end, size);
		bool done = false;
		row = qk_min(row, p->n - k);
		if (row != 0)
			any |= judge_row(counter, k, row, at, &done);
		if (done) {
			i += (uint32_t)row - 1;
			continue;
		}
		slow = row != 0 ? i + (uint32_t)row : slow;
		uint8_t top = (uint8_t)((*at & ~COPIED_TOP) |
					(qk_counter_is_single(counter, k, is_wide) ? COPIED_TOP
										   : 0));
		any |= top != *at;
		*at = top;
	}
	*changed = *changed || any;
	return i;
}

static enum qcow_status judge_entry(struct qk_copy *c, const struct qk_counter *counter,
	uint64_t off, uint32_t i, bool *changed, struct qcow_error *err)
{
	const struct qk_geometry *g = &c->image->geometry;
	uint8_t *top = c->table + (size_t)i * g->l2_entry_size;
	uint64_t host = 0;
	QK_TRY(host_of(c, off, i, &host, err));
	uint64_t cluster = host >> g->cluster_bits;
	if (host == 0 || cluster < counter->lo || cluster >= counter->hi)
		return QCOW_OK;
	bool is_single = qk_counter_at(counter, cluster) == 1;
	if (is_single == ((*top & COPIED_TOP) != 0))
		return QCOW_OK;
	*top ^= COPIED_TOP;
	*changed = true;
	return QCOW_OK;
}

/* Has a bit changed? */
static enum qcow_status judge_table(struct qk_copy *c, const struct qk_counter *counter,
	uint64_t off, bool *changed, struct qcow_error *err)
{
	const struct qk_plain p = qk_plain_init(counter);
	uint32_t n = c->image->geometry.l2_entries;
	for (uint32_t i = 0; i < n; i++) {
		if (p.applies)
			i = counter->is_wide ? judge_plain(c, counter, &p, i, true, changed)
					     : judge_plain(c, counter, &p, i, false, changed);
		if (i < n)
			QK_TRY(judge_entry(c, counter, off, i, changed, err));
	}
	return QCOW_OK;
}

enum qcow_status qk_copy_judged(
	struct qk_copy *c, const struct qk_counter *counter, struct qcow_error *err)
{
	begin(c);
	for (uint64_t i = 0; i < c->n; i++) {
		bool changed = false;
		if (c->l1[i] == 0)
			continue;
		if (!qk_counter_is_reached(counter, &c->reach[i])) {
			c->n_left--;
			continue;
		}
		QK_TRY(qk_snapshot_goes_on(counter->progress, err));
		QK_TRY(get(c, i, err));
		if (c->reach[i].end == 0 && qk_counter_is_cut(counter))
			c->reach[i] = qk_reach_of(&c->image->geometry, c->table);
		QK_TRY(judge_table(c, counter, c->l1[i], &changed, err));
		if (changed)
			QK_TRY(put(c, i, err));
		c->n_left--;
	}
	judge_own(c, counter);
	return finish(c, err);
}
