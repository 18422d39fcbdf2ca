/* SPDX-License-Identifier: MIT */
/*
 * space_map: which structure lies in which cluster. Structures in one piece are ranges, L2 tables and refcount blocks
 * single clusters; a filter of 64 Ki bits answers without a lock for the many clusters that hold data.
 */
#include "engine/space_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "audit/bitmaplist.h"
#include "audit/snaplist.h"
#include "base/bytes.h"
#include "base/mem.h"
#include "format/l1l2.h"

/* Of the active tree: 16 MiB of slots. Beyond it the tables are not remembered. */
#define MAX_KNOWN_L2	      (UINT64_C(1) << 20)
#define CHUNK_BYTES	      65536U
#define MAX_SNAPSHOT_L1_BYTES QK_MIB(8)

const char *qk_space_kind_name(enum qk_space_kind kind)
{
	static const char *const names[QK_SPACE_KINDS] = {"guest data", "header", "refcount table",
		"refcount block", "L1 table", "L2 table", "snapshot table", "bitmap directory",
		"encryption header"};

	return names[kind];
}

/* ---- sets ---- */

static uint64_t mix(uint64_t cluster)
{
	return (cluster + 1) * UINT64_C(0x9e3779b97f4a7c15);
}

static uint64_t slot_of(const struct qk_cluster_set *s, uint64_t cluster)
{
	uint64_t i = mix(cluster) >> 32 & s->mask;

	while (s->v[i].cluster != 0 && s->v[i].cluster != cluster + 1)
		i = (i + 1) & s->mask;
	return i;
}

static enum qcow_status enlarge(struct qk_cluster_set *s, struct qcow_error *err)
{
	struct qk_cluster_set bigger = {.mask = s->mask == 0 ? 63 : s->mask * 2 + 1};

	bigger.v = qk_calloc(bigger.mask + 1, sizeof(*bigger.v));
	if (bigger.v == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t i = 0; s->v != NULL && i <= s->mask; i++) {
		if (s->v[i].cluster != 0)
			bigger.v[slot_of(&bigger, s->v[i].cluster - 1)] = s->v[i];
	}
	bigger.n = s->n;
	free(s->v);
	*s = bigger;
	return QCOW_OK;
}

enum qcow_status qk_cluster_set_add(
	struct qk_cluster_set *s, uint64_t cluster, uint64_t kind, struct qcow_error *err)
{
	if (s->v == NULL || s->n * 2 > s->mask)
		QK_TRY(enlarge(s, err));
	uint64_t i = slot_of(s, cluster);
	s->n += s->v[i].cluster == 0;
	s->v[i] = (struct qk_cluster_slot){cluster + 1, kind};
	return QCOW_OK;
}

uint64_t qk_cluster_set_find(const struct qk_cluster_set *s, uint64_t cluster)
{
	if (s->n == 0)
		return UINT64_MAX;
	uint64_t i = slot_of(s, cluster);
	return s->v[i].cluster == 0 ? UINT64_MAX : s->v[i].kind;
}

void qk_cluster_set_remove(struct qk_cluster_set *s, uint64_t cluster)
{
	if (s->n == 0)
		return;
	uint64_t i = slot_of(s, cluster);
	if (s->v[i].cluster == 0)
		return;
	s->v[i].cluster = 0;
	s->n--;
	/* what may have been put past this slot moves up */
	for (uint64_t j = (i + 1) & s->mask; s->v[j].cluster != 0; j = (j + 1) & s->mask) {
		struct qk_cluster_slot moved = s->v[j];
		s->v[j].cluster = 0;
		s->v[slot_of(s, moved.cluster - 1)] = moved;
	}
}

void qk_cluster_set_release(struct qk_cluster_set *s)
{
	free(s->v);
	*s = (struct qk_cluster_set){0};
}

/* ---- the filter ---- */

static void filter_set(struct qk_space *sp, uint64_t cluster)
{
	uint64_t bit = mix(cluster) >> 48;

	atomic_fetch_or_explicit(
		&sp->filter[bit / 64], UINT64_C(1) << (bit % 64), memory_order_release);
}

bool qk_space_map_may_hold(const struct qk_space *sp, uint64_t cluster)
{
	uint64_t bit = mix(cluster) >> 48;

	return (atomic_load_explicit(&sp->filter[bit / 64], memory_order_acquire) >> (bit % 64) &
		       1) != 0;
}

/* 256 clusters have a bit in `counting`, which stays set. */
#define GROUP_BITS 8U

static void counting_set(struct qk_space *sp, uint64_t first, uint64_t n)
{
	uint64_t last = (first + n - 1) >> GROUP_BITS;

	for (uint64_t g = first >> GROUP_BITS; g <= last; g++)
		sp->counting[g % QK_SPACE_FILTER_BITS / 64] |= UINT64_C(1) << (g % 64);
}

bool qk_space_map_may_count(const struct qk_space *sp, uint64_t first, uint64_t n)
{
	bool any = false;

	for (uint64_t g = first >> GROUP_BITS; n != 0 && g <= (first + n - 1) >> GROUP_BITS; g++)
		any |= (sp->counting[g % QK_SPACE_FILTER_BITS / 64] >> (g % 64) & 1) != 0;
	return any;
}

/* ---- ranges ---- */

static enum qcow_status append_range(struct qk_space *sp, enum qk_space_kind kind, uint64_t first,
	uint64_t n, struct qcow_error *err)
{
	struct qk_space_ranges *r = &sp->ranges;

	if (r->n == r->cap) {
		size_t cap = r->cap == 0 ? 16 : r->cap * 2;
		struct qk_space_range *v = qk_realloc(r->v, cap, sizeof(*v));
		if (v == NULL)
			return QK_FAIL_NOMEM(err);
		r->v = v;
		r->cap = cap;
	}
	r->v[r->n++] = (struct qk_space_range){first, first + n, kind};
	if (kind == QK_SPACE_REFTABLE && n != 0)
		counting_set(sp, first, n);
	for (uint64_t c = first; c < first + n && c - first < QK_SPACE_FILTER_BITS; c++)
		filter_set(sp, c);
	if (n > QK_SPACE_FILTER_BITS) {
		for (uint64_t i = 0; i < QK_SPACE_FILTER_BITS / 64; i++)
			atomic_store_explicit(&sp->filter[i], UINT64_MAX, memory_order_release);
	}
	return QCOW_OK;
}

static int compare_ranges(const void *a, const void *b)
{
	const struct qk_space_range *x = a;
	const struct qk_space_range *y = b;

	return (x->first > y->first) - (x->first < y->first);
}

static void sort_ranges(struct qk_space *sp)
{
	if (sp->ranges.n != 0)
		qsort(sp->ranges.v, sp->ranges.n, sizeof(*sp->ranges.v), compare_ranges);
}

/* The range that holds the cluster, or NULL. Ranges do not overlap. */
static struct qk_space_range *find_range(const struct qk_space *sp, uint64_t cluster)
{
	size_t lo = 0;
	size_t hi = sp->ranges.n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (sp->ranges.v[mid].end <= cluster)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == sp->ranges.n || sp->ranges.v[lo].first > cluster)
		return NULL;
	return &sp->ranges.v[lo];
}

/* Take [first, end) out of the range; where its middle goes the upper part is forgotten too. */
static void cut_range(struct qk_space *sp, struct qk_space_range *r, uint64_t first, uint64_t end)
{
	if (first > r->first)
		r->end = first;
	else
		r->first = qk_min(end, r->end);
	if (r->first < r->end)
		return;
	size_t i = (size_t)(r - sp->ranges.v);
	memmove(r, r + 1, (sp->ranges.n - i - 1) * sizeof(*r));
	sp->ranges.n--;
}

/* ---- the map ---- */

enum qk_space_kind qk_space_map_find(const struct qk_space *sp, uint64_t cluster)
{
	if (QK_LIKELY(!qk_space_map_may_hold(sp, cluster)))
		return QK_SPACE_DATA;
	uint64_t kind = qk_cluster_set_find(&sp->singles, cluster);
	if (kind != UINT64_MAX)
		return (enum qk_space_kind)kind;
	const struct qk_space_range *r = find_range(sp, cluster);
	return r == NULL ? QK_SPACE_DATA : r->kind;
}

static bool is_single(enum qk_space_kind kind)
{
	return kind == QK_SPACE_L2 || kind == QK_SPACE_REFBLOCK;
}

enum qcow_status qk_space_map_add(struct qk_space *sp, enum qk_space_kind kind, uint64_t first,
	uint64_t n, struct qcow_error *err)
{
	if (kind == QK_SPACE_DATA)
		return QCOW_OK;
	if (!is_single(kind)) {
		QK_TRY(append_range(sp, kind, first, n, err));
		sort_ranges(sp);
		return QCOW_OK;
	}
	for (uint64_t i = 0; i < n; i++) {
		enum qcow_status status = qk_cluster_set_add(&sp->singles, first + i, kind, err);
		if (status != QCOW_OK) {
			qk_space_map_forget(sp, first, i);
			return status;
		}
		filter_set(sp, first + i);
		if (kind == QK_SPACE_REFBLOCK)
			counting_set(sp, first + i, 1);
	}
	return QCOW_OK;
}

void qk_space_map_forget(struct qk_space *sp, uint64_t first, uint64_t n)
{
	for (uint64_t c = first; c < first + n; c++) {
		if (!qk_space_map_may_hold(sp, c))
			continue;
		qk_cluster_set_remove(&sp->singles, c);
		struct qk_space_range *r = find_range(sp, c);
		if (r != NULL)
			cut_range(sp, r, c, qk_min(first + n, r->end));
	}
}

void qk_space_map_release(struct qk_space *sp)
{
	free(sp->ranges.v);
	sp->ranges = (struct qk_space_ranges){0};
	qk_cluster_set_release(&sp->singles);
}

/* ---- learning ---- */

static enum qcow_status overlap(struct qk_space *sp, uint64_t cluster, enum qk_space_kind a,
	enum qk_space_kind b, struct qcow_error *err)
{
	uint64_t off = cluster << sp->g->cluster_bits;

	return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_METADATA_OVERLAP, off, QCOW_NO_OFFSET,
		"the cluster at %" PRIu64 " belongs to the %s and to the %s", off,
		qk_space_kind_name(a), qk_space_kind_name(b));
}

/* [off, off + len) bytes; a table that starts beyond the file, or has no bytes, is none. */
static enum qcow_status learn_range(struct qk_space *sp, enum qk_space_kind kind, uint64_t off,
	uint64_t len, struct qcow_error *err)
{
	uint64_t end = 0;

	if (len == 0 || !qk_add(off, len + (sp->g->cluster_size - 1), &end))
		return QCOW_OK;
	uint64_t first = qk_space_cluster(sp, off);
	return append_range(sp, kind, first, qk_space_cluster(sp, end) - first, err);
}

static enum qcow_status learn_bitmap_table(
	void *ctx, const struct qk_bitmap_table *t, struct qcow_error *err)
{
	struct qk_space *sp = ctx;

	return learn_range(sp, QK_SPACE_BITMAPS, t->off, t->n_entries * 8, err);
}

/* The snapshot table and the bitmaps. Snapshots stay in `snaps` for their trees. */
static enum qcow_status learn_lists(
	struct qk_space *sp, struct qk_audit *a, struct qk_snaplist *snaps, struct qcow_error *err)
{
	uint64_t directory = 0;

	QK_TRY(qk_snaplist_load(snaps, a, err));
	QK_TRY(learn_range(
		sp, QK_SPACE_SNAPSHOTS, sp->header.snapshots_off, snaps->table_bytes, err));
	for (uint32_t i = 0; i < snaps->n; i++)
		QK_TRY(learn_range(sp, QK_SPACE_SNAPSHOTS, snaps->v[i].off,
			snaps->v[i].n_entries * UINT64_C(8), err));
	QK_TRY(qk_bitmaplist_each(a, &directory, learn_bitmap_table, sp, err));
	return learn_range(sp, QK_SPACE_BITMAPS, sp->ext->bitmaps.directory_off, directory, err);
}

static enum qcow_status judge_ranges(struct qk_space *sp, struct qcow_error *err)
{
	const struct qk_space_range *v = sp->ranges.v;

	sort_ranges(sp);
	for (size_t i = 1; i < sp->ranges.n; i++) {
		if (v[i].first < v[i - 1].end)
			return overlap(sp, v[i].first, v[i - 1].kind, v[i].kind, err);
	}
	return QCOW_OK;
}

static enum qcow_status learn_single(
	struct qk_space *sp, enum qk_space_kind kind, uint64_t off, struct qcow_error *err)
{
	uint64_t cluster = qk_space_cluster(sp, off);
	enum qk_space_kind was = qk_space_map_find(sp, cluster);

	if (was != QK_SPACE_DATA && was != kind)
		return overlap(sp, cluster, was, kind, err);
	return qk_space_map_add(sp, kind, cluster, 1, err);
}

static enum qcow_status learn_l2(struct qk_space *sp, uint64_t off, struct qcow_error *err)
{
	/* the file would grow over it */
	if (off >= sp->pristine << sp->g->cluster_bits)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_L1_ENTRY_BEYOND_FILE, off,
			QCOW_NO_OFFSET,
			"not opened for writing: an L1 entry names an L2 table at %" PRIu64
			", past the end of the file",
			off);
	if (sp->n_l2 == MAX_KNOWN_L2) {
		sp->knows_all_l2 = false;
		return QCOW_OK;
	}
	sp->n_l2 += qk_space_map_find(sp, qk_space_cluster(sp, off)) == QK_SPACE_DATA;
	return learn_single(sp, QK_SPACE_L2, off, err);
}

static enum qcow_status learn_entries(
	struct qk_space *sp, const uint8_t *chunk, uint64_t bytes, struct qcow_error *err)
{
	for (uint64_t i = 0; i < bytes; i += 8) {
		struct qk_l1_entry e = qk_l1_decode(sp->g, qk_load64(chunk + i));
		/* what is unaligned is never followed: a read of its range says so */
		if (e.l2_off.v != 0 && qk_is_aligned(e.l2_off.v, sp->g->cluster_size))
			QK_TRY(learn_l2(sp, e.l2_off.v, err));
	}
	return QCOW_OK;
}

static enum qcow_status learn_tree(
	struct qk_space *sp, uint64_t l1_off, uint64_t bytes, struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *chunk = qk_malloc(CHUNK_BYTES, 1);

	if (chunk == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t at = 0; at < bytes; at += CHUNK_BYTES) {
		uint64_t n = qk_min(CHUNK_BYTES, bytes - at);
		QK_TRY(qcow_store_read_padded(sp->store, chunk, (size_t)n, l1_off + at, err));
		QK_TRY(learn_entries(sp, chunk, n, err));
	}
	return QCOW_OK;
}

/* The L2 tables of the active tree, and of the snapshots while their L1 tables are not large. */
static enum qcow_status learn_trees(
	struct qk_space *sp, const struct qk_snaplist *snaps, struct qcow_error *err)
{
	sp->knows_all_l2 = true;
	sp->l1_bytes = (uint64_t)sp->header.l1_entries * 8;
	QK_TRY(learn_tree(sp, sp->header.l1_off, sp->l1_bytes, err));
	for (uint32_t i = 0; i < snaps->n; i++) {
		uint64_t bytes = snaps->v[i].n_entries * UINT64_C(8);
		sp->l1_bytes += bytes;
		if (sp->l1_bytes > MAX_SNAPSHOT_L1_BYTES) {
			sp->knows_all_l2 = false;
			break;
		}
		QK_TRY(learn_tree(sp, snaps->v[i].off, bytes, err));
	}
	return QCOW_OK;
}

static enum qcow_status learn(
	struct qk_space *sp, struct qk_audit *a, struct qk_snaplist *snaps, struct qcow_error *err)
{
	const struct qk_header *h = &sp->header;

	QK_TRY(learn_range(sp, QK_SPACE_HEADER, 0, sp->g->cluster_size, err));
	QK_TRY(learn_range(sp, QK_SPACE_REFTABLE, h->rt_off,
		(uint64_t)h->rt_clusters << sp->g->cluster_bits, err));
	QK_TRY(learn_range(sp, QK_SPACE_L1, h->l1_off, (uint64_t)h->l1_entries * 8, err));
	if (sp->ext->has_crypto)
		QK_TRY(learn_range(
			sp, QK_SPACE_CRYPTO, sp->ext->crypto_off, sp->ext->crypto_len, err));
	QK_TRY(learn_lists(sp, a, snaps, err));
	QK_TRY(judge_ranges(sp, err));
	for (uint64_t i = 0; i < sp->table_entries; i++) {
		if (sp->table[i] != 0)
			QK_TRY(learn_single(sp, QK_SPACE_REFBLOCK, sp->table[i], err));
	}
	return learn_trees(sp, snaps, err);
}

enum qcow_status qk_space_map_init(struct qk_space *sp, struct qk_audit *a, struct qcow_error *err)
{
	struct qk_snaplist snaps = {0};
	enum qcow_status status = learn(sp, a, &snaps, err);

	qk_snaplist_release(&snaps);
	return status;
}
