/* SPDX-License-Identifier: MIT */
/*
 * snapshot_count: what every refcount is after the switch: the one it has, and what the trees that come or go change in it.
 *
 * The changes are kept by L2 table, so that a table that many snapshots share is read once; one that is read for another
 * reason is counted on the way. Counts are held for a window of clusters, from which the second refcount structure is built
 * front to back; where the file is larger than that the tables that point into the next window are read again for it.
 *
 * Invariants: SN3 deltas are sorted and each table is there once when a window is begun; SN4 the window is asked for
 * in ascending order. Memory: 24 MiB, 24 million clusters of 127 references or less. Specification: "Host cluster management",
 * "Snapshots".
 */
#include "engine/snapshot_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/rw.h"
#include "format/l1l2.h"
#include "format/refcounts.h"

#define WINDOW_BYTES QK_MIB(24)
#define OPEN_MOST    UINT64_C(0x1100000) /* clusters: 1 TiB of 64 KiB, and its metadata */
#define BATCH_BYTES  QK_MIB(1) /* of tables that are read at once */
#define GROUP_BITS   16U /* of struct qk_reach */
#define WIDE_MOST    (INT32_MAX / 2) /* references */
#define NARROW_MOST  (UINT8_MAX / 2)

/* ---- life ---- */

enum qcow_status qk_counter_init(struct qk_counter *c, struct qcow_image *image,
	struct qk_space *sp, const struct qcow_progress *progress, struct qcow_error *err)
{
	*c = (struct qk_counter){.image = image, .sp = sp, .progress = progress};
	c->table_bytes = qk_max(BATCH_BYTES, image->geometry.cluster_size);
	c->table = qk_malloc((size_t)c->table_bytes, 1);
	return c->table != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

static void drop_window(struct qk_counter *c)
{
	c->narrow = NULL;
	c->wide = NULL;
	c->lo = c->hi = 0;
	c->is_current = false;
}

void qk_counter_release(struct qk_counter *c)
{
	drop_window(c);
	free(c->memory);
	free(c->deltas);
	free(c->table);
	*c = (struct qk_counter){0};
}

/* Count i of the window, `delta` more. Does it still fit? */
static inline bool add_at(struct qk_counter *c, uint64_t i, int64_t delta, bool is_wide)
{
	int64_t v = (is_wide ? c->wide[i] : c->narrow[i]) + 2 * delta;
	if (is_wide)
		c->wide[i] = (int32_t)v;
	else
		c->narrow[i] = (uint8_t)v;
	return is_wide ? v >= INT32_MIN && v <= INT32_MAX : v >= 0 && v <= UINT8_MAX;
}

/* Counts [i, i + n) of a narrow window, `delta` more each. Where one does not fit none is changed. */
static bool add_row(struct qk_counter *c, uint64_t i, uint64_t n, int64_t delta)
{
	uint8_t *v = c->narrow + i, least = UINT8_MAX, most = 0;
	for (uint64_t k = 0; k < n; k++) {
		least = v[k] < least ? v[k] : least;
		most = v[k] > most ? v[k] : most;
	}
	if (least + 2 * delta < 0 || most + 2 * delta > UINT8_MAX)
		return false;
	uint8_t more = (uint8_t)(2 * delta);
	for (uint64_t k = 0; k < n; k++)
		v[k] = (uint8_t)(v[k] + more);
	return true;
}

/* One count; what lies outside the window is no part of it. */
static void add(struct qk_counter *c, uint64_t cluster, int64_t delta)
{
	if (cluster >= c->lo && cluster < c->hi && !add_at(c, cluster - c->lo, delta, c->is_wide))
		c->overflows = true;
}

/* ---- what changes ---- */

static int by_place(const void *a, const void *b)
{
	const struct qk_delta *x = a, *y = b;
	return (x->off > y->off) - (x->off < y->off);
}

/* Sorted, and each table once. */
static void settle(struct qk_counter *c)
{
	size_t n = 0;
	if (c->n_sorted == c->n_deltas)
		return;
	qsort(c->deltas, c->n_deltas, sizeof(*c->deltas), by_place);
	for (size_t i = 0; i < c->n_deltas; i++) {
		struct qk_delta *last = n != 0 ? &c->deltas[n - 1] : NULL;
		if (last == NULL || last->off != c->deltas[i].off) {
			c->deltas[n++] = c->deltas[i];
			continue;
		}
		last->table += c->deltas[i].table;
		last->data += c->deltas[i].data;
		last->is_counted = last->is_counted || c->deltas[i].is_counted;
		if (last->reach.end == 0)
			last->reach = c->deltas[i].reach;
	}
	c->n_deltas = c->n_sorted = n;
}

static int by_key(const void *key, const void *item)
{
	const uint64_t *off = key;
	const struct qk_delta *d = item;
	return (*off > d->off) - (*off < d->off);
}

struct qk_delta *qk_counter_find(const struct qk_counter *c, uint64_t off)
{
	return bsearch(&off, c->deltas, c->n_sorted, sizeof(*c->deltas), by_key);
}

enum qcow_status qk_counter_add(
	struct qk_counter *c, uint64_t off, int32_t table, int32_t data, struct qcow_error *err)
{
	if (c->n_deltas == c->room) {
		/* tables that several trees share first become one */
		settle(c);
		size_t room = c->n_deltas * 2 < c->room ? c->room : c->room * 2 + 64;
		struct qk_delta *v = room == c->room ? c->deltas
						     : qk_realloc(c->deltas, room, sizeof(*v));
		if (v == NULL)
			return QK_FAIL_NOMEM(err);
		c->deltas = v;
		c->room = room;
	}
	c->deltas[c->n_deltas++] = (struct qk_delta){.off = off, .table = table, .data = data};
	c->n_sorted = 0;
	c->is_current = c->is_current && data == 0;
	if (c->is_current)
		add(c, off >> c->image->geometry.cluster_bits, table);
	return QCOW_OK;
}

enum qcow_status qk_counter_add_run(
	struct qk_counter *c, uint64_t off, uint64_t bytes, int32_t delta, struct qcow_error *err)
{
	uint64_t size = c->image->geometry.cluster_size;
	for (uint64_t at = 0; at < bytes; at += size)
		QK_TRY(qk_counter_add(c, off + at, delta, 0, err));
	return QCOW_OK;
}

enum qcow_status qk_counter_add_tree(struct qk_counter *c, const uint64_t *l1, uint64_t n,
	int32_t table, int32_t data, struct qcow_error *err)
{
	for (uint64_t i = 0; i < n; i++)
		if ((l1[i] & QK_OFFSET_MASK) != 0)
			QK_TRY(qk_counter_add(c, l1[i] & QK_OFFSET_MASK, table, data, err));
	return QCOW_OK;
}

void qk_counter_reset(struct qk_counter *c)
{
	c->is_current = c->has_freed = false;
	c->n_deltas = c->n_sorted = 0;
}

/* ---- the window ---- */

/* Without a comparison of 64 bits, which costs more than all the rest. */
static void set_narrow(uint8_t *out, const uint64_t *counts, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		uint8_t count = (uint8_t)counts[i];
		out[i] = (uint8_t)(count * 2 + (count != 0));
	}
}

/* The window's counts from entry `at` on; what is too large for it makes it overflow. */
static void set_base(struct qk_counter *c, uint64_t at, const uint64_t *counts, uint64_t n)
{
	uint64_t all = qk_refcounts_all(counts, n);
	c->overflows = c->overflows || all > (c->is_wide ? WIDE_MOST : NARROW_MOST);
	if (c->is_wide)
		for (uint64_t i = 0; i < n; i++)
			c->wide[at + i] = (int32_t)(counts[i] * 2 + (counts[i] != 0));
	else
		set_narrow(c->narrow + at, counts, n);
}

static enum qcow_status load_base(struct qk_counter *c, struct qcow_error *err)
{
	uint64_t *counts QK_AUTO_FREE = qk_malloc(QK_SHADOW_COUNTS, sizeof(*counts));
	if (counts == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t at = c->lo; at < c->hi && !c->overflows; at += QK_SHADOW_COUNTS) {
		uint64_t n = qk_min(QK_SHADOW_COUNTS, c->hi - at);
		memset(counts, 0, (size_t)n * sizeof(*counts));
		QK_TRY(c->space.counts(c->space.ctx, at, n, counts, err));
		set_base(c, at - c->lo, counts, n);
	}
	return QCOW_OK;
}

enum qcow_status qk_snapshot_bad_entry(
	uint64_t table_off, uint32_t index, uint64_t raw, unsigned finding, struct qcow_error *err)
{
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, finding, table_off, QCOW_NO_OFFSET,
		"entry %" PRIu32 " (0x%016" PRIx64 ") of the L2 table at %" PRIu64 ": %s", index,
		raw, table_off, qcow_finding_text(finding));
}

enum qcow_status qk_counter_hosts(const struct qk_counter *c, const struct qk_delta *d,
	const uint8_t *table, uint32_t i, uint64_t *first, uint64_t *n, struct qcow_error *err)
{
	const struct qk_geometry *g = &c->image->geometry;
	uint64_t raw = 0, bitmap = 0;
	qk_l2_load(g, table, i, &raw, &bitmap);
	struct qk_l2_entry e = qk_l2_decode(g, raw, bitmap, (qk_goff){0});
	if (e.finding != 0)
		return qk_snapshot_bad_entry(d->off, i, raw, e.finding, err);
	*first = e.host_off.v >> g->cluster_bits;
	*n = qk_l2_has_host(&e) ? 1 : 0;
	if (e.type == QK_L2_COMPRESSED)
		*n = ((e.host_off.v + e.compressed_bytes - 1) >> g->cluster_bits) + 1 - *first;
	return QCOW_OK;
}

/* Any entry. */
static enum qcow_status add_closely(struct qk_counter *c, const struct qk_delta *d,
	const uint8_t *table, uint32_t i, struct qcow_error *err)
{
	uint64_t first = 0, n = 0;
	QK_TRY(qk_counter_hosts(c, d, table, i, &first, &n, err));
	for (uint64_t k = 0; k < n; k++)
		add(c, first + k, d->data);
	return QCOW_OK;
}

/* Count plain entries of 8 bytes from the `i`-th on, up to the first that is something else. */
static inline uint32_t add_plain(struct qk_counter *c, const struct qk_plain *p,
	const struct qk_delta *d, const uint8_t *table, uint32_t i, bool is_wide)
{
	uint32_t end = c->image->geometry.l2_entries;
	uint64_t size = c->image->geometry.cluster_size;
	bool fits = true;
	for (; i < end; i++) {
		uint64_t raw = qk_load64(table + (size_t)i * sizeof(raw));
		uint64_t off = raw & QK_OFFSET_MASK;
		if (QK_UNLIKELY((raw & p->bad_bits) != 0 || (off == 0 && raw != 0)))
			break;
		uint64_t at = (off >> p->cluster_bits) - p->lo;
		if (off == 0 || at >= p->n)
			continue;
		uint64_t row = is_wide ? 0 : qk_min(qk_l2_row(table, i, end, size), p->n - at);
		fits &= row != 0 ? add_row(c, at, row, d->data) : add_at(c, at, d->data, is_wide);
		i += row != 0 ? (uint32_t)row - 1 : 0;
	}
	c->overflows = c->overflows || !fits;
	return i;
}

static enum qcow_status add_table(struct qk_counter *c, const struct qk_delta *d,
	const uint8_t *table, struct qcow_error *err)
{
	const struct qk_geometry *g = &c->image->geometry;
	const struct qk_plain p = qk_plain_init(c);
	for (uint32_t i = 0; i < g->l2_entries; i++) {
		if (p.applies)
			i = c->is_wide ? add_plain(c, &p, d, table, i, true)
				       : add_plain(c, &p, d, table, i, false);
		if (i < g->l2_entries)
			QK_TRY(add_closely(c, d, table, i, err));
	}
	return QCOW_OK;
}

struct qk_reach qk_reach_of(const struct qk_geometry *g, const uint8_t *table)
{
	uint64_t least = UINT64_MAX, most = 0;
	for (uint32_t i = 0; i < g->l2_entries; i++) {
		uint64_t raw = qk_load64(table + (size_t)i * g->l2_entry_size);
		uint64_t off = raw & QK_OFFSET_MASK;
		if ((raw & QK_FLAG_COMPRESSED) != 0)
			return (struct qk_reach){0, UINT32_MAX};
		least = qk_min(least, off == 0 ? UINT64_MAX : off);
		most = qk_max(most, off);
	}
	if (most == 0)
		return (struct qk_reach){1, 1};
	unsigned bits = g->cluster_bits + GROUP_BITS;
	return (struct qk_reach){(uint32_t)(least >> bits), (uint32_t)(most >> bits) + 1};
}

bool qk_counter_is_reached(const struct qk_counter *c, const struct qk_reach *reach)
{
	return reach->end == 0 || ((uint64_t)reach->first << GROUP_BITS < c->hi &&
					  (uint64_t)reach->end << GROUP_BITS > c->lo);
}

enum qcow_status qk_snapshot_goes_on(const struct qcow_progress *progress, struct qcow_error *err)
{
	if (progress != NULL && progress->cancelled != NULL && progress->cancelled(progress->ctx))
		return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
	return QCOW_OK;
}

/* Are the entries of the table to be counted? */
static bool is_read(const struct qk_counter *c, size_t i)
{
	const struct qk_delta *d = &c->deltas[i];
	return d->data != 0 && !d->is_counted && qk_counter_is_reached(c, &d->reach);
}

/* How many of the tables from the `i`-th on lie side by side, and go into the buffer? */
static size_t stretch(const struct qk_counter *c, size_t i)
{
	uint64_t size = c->image->geometry.cluster_size;
	size_t n = 1, most = (size_t)(c->table_bytes / size);
	while (n < most && i + n < c->n_deltas && is_read(c, i + n) &&
		c->deltas[i + n].off == c->deltas[i].off + n * size)
		n++;
	return n;
}

/* The n tables from the `i`-th on, which lie side by side. */
static enum qcow_status add_tables(struct qk_counter *c, size_t i, size_t n, struct qcow_error *err)
{
	const struct qk_geometry *g = &c->image->geometry;
	QK_TRY(qk_snapshot_goes_on(c->progress, err));
	QK_TRY(qcow_store_read_padded(
		c->image->store, c->table, n * (size_t)g->cluster_size, c->deltas[i].off, err));
	for (size_t k = 0; k < n; k++) {
		struct qk_delta *d = &c->deltas[i + k];
		const uint8_t *table = c->table + k * g->cluster_size;
		if (d->reach.end == 0 && qk_counter_is_cut(c))
			d->reach = qk_reach_of(g, table);
		QK_TRY(add_table(c, d, table, err));
		d->is_counted = true;
	}
	return QCOW_OK;
}

static enum qcow_status make_window(struct qk_counter *c, uint64_t lo, struct qcow_error *err)
{
	uint64_t width = c->is_wide ? sizeof(*c->wide) : sizeof(*c->narrow);
	drop_window(c);
	uint64_t hi = qk_min(c->end, lo + WINDOW_BYTES / width), bytes = (hi - lo) * width;
	/* its memory stays: what is freed and taken again by turns does not go back to the system */
	if (bytes > c->memory_bytes || c->memory == NULL) {
		free(c->memory);
		c->memory_bytes = 0;
		c->memory = qk_malloc(qk_max(bytes, 1), 1);
		if (c->memory == NULL)
			return QK_FAIL_NOMEM(err);
		c->memory_bytes = bytes;
	}
	c->lo = lo;
	c->hi = hi;
	c->overflows = false;
	c->narrow = c->is_wide ? NULL : c->memory;
	c->wide = c->is_wide ? c->memory : NULL;
	return QCOW_OK;
}

/* The counts as they are, and the references to tables. */
static enum qcow_status begin(struct qk_counter *c, uint64_t lo, struct qcow_error *err)
{
	settle(c);
	QK_TRY(make_window(c, lo, err));
	QK_TRY(load_base(c, err));
	for (size_t i = 0; i < c->n_deltas && !c->overflows; i++) {
		c->deltas[i].is_counted = false;
		add(c, c->deltas[i].off >> c->image->geometry.cluster_bits, c->deltas[i].table);
	}
	return QCOW_OK;
}

/* What the entries of the tables name. */
static enum qcow_status sweep(struct qk_counter *c, struct qcow_error *err)
{
	size_t n = 0;
	for (size_t i = 0; i < c->n_deltas && !c->overflows; i += n) {
		n = 1;
		if (!is_read(c, i))
			continue;
		n = stretch(c, i);
		QK_TRY(add_tables(c, i, n, err));
	}
	return QCOW_OK;
}

static enum qcow_status fail_count(
	const struct qk_counter *c, uint64_t at, int64_t v, struct qcow_error *err)
{
	const struct qk_geometry *g = &c->image->geometry;
	uint64_t off = at << g->cluster_bits;
	if (v < 0)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_REFCOUNT_TOO_LOW, off,
			QCOW_NO_OFFSET,
			"the cluster at %" PRIu64 " has more references than its refcount says",
			off);
	return QK_FAIL_AT(err, QCOW_E_LIMIT, 0, off, QCOW_NO_OFFSET,
		"the cluster at %" PRIu64 " would have %" PRId64
		" references, more than %u-bit refcounts hold",
		off, v, g->refcount_bits);
}

/* The smallest and the largest of the window's words, and whether there is one that lost its last reference. */
static void find_extremes(const struct qk_counter *c, int32_t *least, int32_t *most, bool *freed)
{
	uint64_t n = c->hi - c->lo;
	uint8_t narrow_most = 0;
	bool any = false;
	*least = *most = 0;
	for (uint64_t i = 0; c->is_wide && i < n; i++) {
		*least = c->wide[i] < *least ? c->wide[i] : *least;
		*most = c->wide[i] > *most ? c->wide[i] : *most;
		any |= c->wide[i] == 1;
	}
	*freed = any || (!c->is_wide && memchr(c->narrow, 1, (size_t)n) != NULL);
	for (uint64_t i = 0; !c->is_wide && i < n; i++)
		narrow_most = c->narrow[i] > narrow_most ? c->narrow[i] : narrow_most;
	*most = c->is_wide ? *most : narrow_most;
}

static enum qcow_status judge(struct qk_counter *c, struct qcow_error *err)
{
	int64_t max = (int64_t)qk_min(c->image->geometry.refcount_max, INT64_MAX);
	int32_t least = 0, most = 0;
	bool freed = false;
	find_extremes(c, &least, &most, &freed);
	c->has_freed = c->has_freed || freed;
	if (QK_LIKELY(least >= 0 && most / 2 <= max))
		return QCOW_OK;
	uint64_t at = c->lo;
	while (qk_counter_at(c, at) >= 0 && qk_counter_at(c, at) <= max)
		at++;
	return fail_count(c, at, qk_counter_at(c, at), err);
}

void qk_counter_follow(struct qk_counter *c, const struct qk_fresh *fresh)
{
	unsigned bits = c->image->geometry.cluster_bits;
	for (uint32_t i = 0; c->is_current && i < fresh->taken.n; i++) {
		const struct qk_space_run *run = &fresh->taken.v[i];
		for (uint64_t k = 0; k < run->n; k++)
			add(c, (run->off >> bits) + k, 1);
	}
}

static void follow_space(struct qk_counter *c)
{
	qk_shadow_of_space(c->sp, &c->space);
	c->end = qk_shadow_space_end(c->sp);
}

enum qcow_status qk_counter_open(struct qk_counter *c, struct qcow_error *err)
{
	follow_space(c);
	if (c->end > OPEN_MOST)
		return QCOW_OK;
	QK_TRY(begin(c, 0, err));
	c->is_current = !qk_counter_is_cut(c);
	return QCOW_OK;
}

void qk_counter_show(struct qk_counter *c, uint64_t off, const uint8_t *table)
{
	if (!c->is_current || c->overflows)
		return;
	struct qk_delta *d = qk_counter_find(c, off);
	if (d == NULL || d->data == 0 || d->is_counted)
		return;
	/* the load says what is wrong */
	d->is_counted = true;
	c->is_current = add_table(c, d, table, NULL) == QCOW_OK;
}

void qk_counter_move(struct qk_counter *c, struct qk_space *sp, bool are_same)
{
	c->sp = sp;
	c->is_current = c->is_current && are_same;
	qk_shadow_of_space(sp, &c->space);
}

enum qcow_status qk_counter_load(struct qk_counter *c, uint64_t lo, struct qcow_error *err)
{
	bool goes_on = c->is_current && lo == 0 && qk_shadow_space_end(c->sp) == c->end;
	if (!goes_on) {
		follow_space(c);
		QK_TRY(begin(c, lo, err));
	}
	QK_TRY(sweep(c, err));
	if (c->overflows && !c->is_wide) {
		c->is_wide = true;
		QK_TRY(begin(c, lo, err));
		QK_TRY(sweep(c, err));
	}
	if (c->overflows)
		return QK_FAIL(
			err, QCOW_E_LIMIT, "a cluster has more than %d references", WIDE_MOST);
	QK_TRY(judge(c, err));
	c->is_current = c->lo == 0 && c->hi == c->end;
	return QCOW_OK;
}

/* ---- for the second structure ---- */

static enum qcow_status counts(
	void *ctx, uint64_t first, uint64_t n, uint64_t *out, struct qcow_error *err)
{
	struct qk_counter *c = ctx;
	for (uint64_t at = 0; at < n && first + at < c->end;) {
		if (first + at >= c->hi)
			QK_TRY(qk_counter_load(c, first + at, err));
		QK_ASSERT(SN4, first + at >= c->lo);
		uint64_t from = first + at - c->lo;
		uint64_t part = qk_min(n - at, c->hi - c->lo - from);
		if (c->is_wide)
			for (uint64_t i = 0; i < part; i++)
				out[at + i] = (uint64_t)c->wide[from + i] / 2;
		else
			for (uint64_t i = 0; i < part; i++)
				out[at + i] = c->narrow[from + i] / 2U;
		at += part;
	}
	return QCOW_OK;
}

static enum qcow_status take(void *ctx, uint64_t n, uint64_t min_n, uint64_t *first,
	uint64_t *n_taken, struct qcow_error *err)
{
	const struct qk_counter *c = ctx;
	return c->space.take(c->space.ctx, n, min_n, first, n_taken, err);
}

static void give_back(void *ctx, uint64_t first, uint64_t n)
{
	const struct qk_counter *c = ctx;
	c->space.give_back(c->space.ctx, first, n);
}

void qk_counter_source(struct qk_counter *c, struct qk_shadow_source *out)
{
	*out = (struct qk_shadow_source){c, counts, take, give_back};
}
