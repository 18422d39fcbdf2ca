/* SPDX-License-Identifier: MIT */
/*
 * walk: visits header, encryption header, refcount table and blocks, the active L1 table and its L2 tables, the
 * snapshot table and each snapshot's tree, the bitmap directory and its tables; a table before its
 * entries, an entry before what it refers to. Tables stream through fixed buffers. Nothing is judged here:
 * the format room says what is wrong with a value, and what is wrong is not followed.
 *
 * A hostile L1 table may name one L2 table a million times. A table that its tree named before is shown with
 * L2_TABLE_TWICE and not walked again, as far as a fixed number of remembered offsets goes.
 */
#include "audit/walk.h"

#include <string.h>

#include "audit/bitmaplist.h"
#include "audit/snaplist.h"
#include "base/mem.h"
#include "format/bitmapext.h"
#include "format/l1l2.h"

#define CHUNK_BYTES (64U * 1024U)
#define N_SEEN	    65536U

struct walk {
	struct qk_audit *a;
	unsigned flags;
	bool (*visit)(void *ctx, const struct qcow_walk_item *item);
	void *ctx;
	bool stopped;
	uint8_t *outer; /* a chunk of an L1, refcount or bitmap table */
	uint8_t *inner; /* a cluster: an L2 table or refcount block */
	uint64_t *seen; /* L2 offsets of this tree, by hash */
	int64_t snapshot;
	struct qk_snaplist snaps;
};

/* A table of 8-byte entries to stream. */
struct table {
	uint64_t off, n_entries;
	const char *what;
	void (*entry)(struct walk *w, uint64_t entry_off, uint64_t index, uint64_t raw);
};

static void ignore_finding(void *ctx, const struct qcow_finding *finding)
{
	(void)ctx;
	(void)finding;
}

static void emit(struct walk *w, const struct qcow_walk_item *item)
{
	if (!w->stopped && !w->visit(w->ctx, item))
		w->stopped = true;
}

static void emit_structure(
	struct walk *w, enum qcow_structure kind, uint64_t off, uint64_t len, unsigned finding)
{
	emit(w, &(struct qcow_walk_item){.kind = kind,
			.host_off = off,
			.len = len,
			.guest_off = QCOW_NO_OFFSET,
			.snapshot = w->snapshot,
			.finding = finding});
}

static unsigned beyond(const struct walk *w, uint64_t off, uint64_t len, unsigned finding)
{
	return qk_in_range(off, len, qk_audit_end(w->a)) ? 0 : finding;
}

/* Every entry that is not 0, of as much of the table as the file has. */
static void stream_table(struct walk *w, const struct table *t)
{
	uint64_t end = qk_audit_end(w->a);
	uint64_t bytes = t->off < end ? qk_min(t->n_entries * 8, end - t->off) : 0;
	bool is_zero = false;

	for (uint64_t at = 0; at < bytes && !w->stopped; at += CHUNK_BYTES) {
		uint64_t n = qk_min(CHUNK_BYTES, bytes - at);
		if (!qk_audit_read(w->a, w->outer, (size_t)n, t->off + at, &is_zero, t->what) ||
			is_zero)
			continue;
		for (uint64_t i = 0; i < n && !w->stopped; i += 8) {
			uint64_t raw = qk_load64(w->outer + i);
			if (raw != 0)
				t->entry(w, t->off + at + i, (at + i) / 8, raw);
		}
	}
}

/* ---- refcounts ---- */

static void walk_refcount_block(struct walk *w, uint64_t index, uint64_t off)
{
	const struct qk_geometry *g = w->a->geometry;
	bool is_zero = true;
	bool ok = (w->flags & QCOW_WALK_REFCOUNTS) == 0 ||
		  qk_audit_read(
			  w->a, w->inner, (size_t)g->cluster_size, off, &is_zero, "refcount block");

	emit(w, &(struct qcow_walk_item){.kind = QCOW_STRUCT_REFCOUNT_BLOCK,
			.host_off = off,
			.len = g->cluster_size,
			.index = index,
			.guest_off = QCOW_NO_OFFSET,
			.snapshot = -1,
			.finding = ok ? 0 : QCOW_FINDING_TABLE_READ_FAILED});
	for (uint64_t i = 0; i < g->rb_entries && ok && !is_zero && !w->stopped; i++) {
		uint64_t count = qk_refcount_get(g, w->inner, i);
		if (count == 0)
			continue;
		emit(w, &(struct qcow_walk_item){.kind = QCOW_STRUCT_REFCOUNT_ENTRY,
				.host_off = ((index << g->rb_bits) + i) << g->cluster_bits,
				.len = g->cluster_size,
				.index = i,
				.value = count,
				.guest_off = QCOW_NO_OFFSET,
				.snapshot = -1});
	}
}

static void walk_rt_entry(struct walk *w, uint64_t entry_off, uint64_t index, uint64_t raw)
{
	struct qk_rt_entry e = qk_rt_decode(w->a->geometry, raw);

	if (e.finding == 0 && e.block_off.v >= qk_audit_end(w->a))
		e.finding = QCOW_FINDING_REFTABLE_ENTRY_BEYOND_FILE;
	emit(w, &(struct qcow_walk_item){.kind = QCOW_STRUCT_REFCOUNT_TABLE_ENTRY,
			.host_off = entry_off,
			.len = 8,
			.index = index,
			.value = raw,
			.target_off = e.block_off.v,
			.target_len = w->a->geometry->cluster_size,
			.guest_off = QCOW_NO_OFFSET,
			.snapshot = -1,
			.finding = e.finding});
	if (e.finding == 0 && e.block_off.v != 0 && !w->stopped)
		walk_refcount_block(w, index, e.block_off.v);
}

static void walk_refcounts(struct walk *w)
{
	uint64_t off = w->a->header->rt_off;
	uint64_t claimed = qk_audit_rt_claimed_bytes(w->a);

	emit_structure(w, QCOW_STRUCT_REFCOUNT_TABLE, off, claimed,
		beyond(w, off, claimed, QCOW_FINDING_REFTABLE_BEYOND_FILE));
	stream_table(w,
		&(struct table){off, qk_audit_rt_bytes(w->a) / 8, "refcount table", walk_rt_entry});
}

/* ---- trees ---- */

static void emit_l2_entry(struct walk *w, const struct qcow_walk_item *table, uint32_t index,
	uint64_t raw, uint64_t bitmap)
{
	const struct qk_geometry *g = w->a->geometry;
	uint64_t guest = table->guest_off + ((uint64_t)index << g->cluster_bits);
	struct qk_l2_entry e = qk_l2_decode(g, raw, bitmap, (qk_goff){guest});
	bool has_host = e.type == QK_L2_COMPRESSED || e.type == QK_L2_NORMAL ||
			e.type == QK_L2_ZERO_ALLOC;
	uint64_t len = e.type == QK_L2_COMPRESSED ? e.compressed_bytes : g->cluster_size;

	if (e.finding == 0 && has_host && !g->data_file) {
		if (e.type != QK_L2_COMPRESSED && e.host_off.v >= qk_audit_end(w->a))
			e.finding = QCOW_FINDING_L2_ENTRY_BEYOND_FILE;
		else if (e.type == QK_L2_COMPRESSED && e.host_off.v + len > qk_audit_end(w->a))
			e.finding = QCOW_FINDING_COMPRESSED_BEYOND_FILE;
	}
	emit(w, &(struct qcow_walk_item){.kind = QCOW_STRUCT_L2_ENTRY,
			.host_off = table->host_off + (uint64_t)index * g->l2_entry_size,
			.len = g->l2_entry_size,
			.index = index,
			.value = raw,
			.value2 = bitmap,
			.target_off = has_host ? e.host_off.v : 0,
			.target_len = has_host ? len : 0,
			.guest_off = guest,
			.snapshot = w->snapshot,
			.finding = e.finding});
}

static void walk_l2(struct walk *w, uint64_t l1_index, uint64_t off)
{
	const struct qk_geometry *g = w->a->geometry;
	uint64_t *seen = &w->seen[(off >> 9) * UINT64_C(0x9e3779b97f4a7c15) >> 48];
	struct qcow_walk_item table = {.kind = QCOW_STRUCT_L2,
		.host_off = off,
		.len = g->cluster_size,
		.index = l1_index,
		.guest_off = l1_index * g->l2_span,
		.snapshot = w->snapshot};
	bool is_zero = true;

	if (*seen == off)
		table.finding = QCOW_FINDING_L2_TABLE_TWICE;
	else if ((w->flags & QCOW_WALK_ENTRIES) != 0 &&
		 !qk_audit_read(w->a, w->inner, (size_t)g->cluster_size, off, &is_zero, "L2 table"))
		table.finding = QCOW_FINDING_TABLE_READ_FAILED;
	*seen = off;
	emit(w, &table);
	if (table.finding != 0 || is_zero)
		return;
	for (uint32_t i = 0; i < g->l2_entries && !w->stopped; i++) {
		uint64_t raw = 0;
		uint64_t bitmap = 0;
		qk_l2_load(g, w->inner, i, &raw, &bitmap);
		if (raw != 0 || bitmap != 0)
			emit_l2_entry(w, &table, i, raw, bitmap);
	}
}

static void walk_l1_entry(struct walk *w, uint64_t entry_off, uint64_t index, uint64_t raw)
{
	struct qk_l1_entry e = qk_l1_decode(w->a->geometry, raw);

	e.finding = qk_l1_finding(&e);
	if (e.finding == 0 && e.l2_off.v >= qk_audit_end(w->a))
		e.finding = QCOW_FINDING_L1_ENTRY_BEYOND_FILE;
	emit(w, &(struct qcow_walk_item){.kind = QCOW_STRUCT_L1_ENTRY,
			.host_off = entry_off,
			.len = 8,
			.index = index,
			.value = raw,
			.target_off = e.l2_off.v,
			.target_len = e.l2_off.v != 0 ? w->a->geometry->cluster_size : 0,
			.guest_off = index * w->a->geometry->l2_span,
			.snapshot = w->snapshot,
			.finding = e.finding});
	if (e.finding == 0 && e.l2_off.v != 0 && !w->stopped)
		walk_l2(w, index, e.l2_off.v);
}

static void walk_tree(struct walk *w, uint64_t off, uint64_t n_entries)
{
	memset(w->seen, 0, N_SEEN * sizeof(*w->seen));
	stream_table(w, &(struct table){off, n_entries, "L1 table", walk_l1_entry});
}

static void walk_snapshots(struct walk *w)
{
	if (w->a->header->n_snapshots == 0)
		return;
	emit_structure(w, QCOW_STRUCT_SNAPSHOT_TABLE, w->a->header->snapshots_off,
		w->snaps.table_bytes, w->snaps.finding);
	for (uint32_t i = 0; i < w->snaps.n && !w->stopped; i++) {
		w->snapshot = i;
		emit_structure(w, QCOW_STRUCT_L1, w->snaps.v[i].off,
			w->snaps.v[i].n_entries * UINT64_C(8), w->snaps.v[i].finding);
		walk_tree(w, w->snaps.v[i].off, w->snaps.v[i].n_entries);
	}
	w->snapshot = -1;
}

/* ---- bitmaps ---- */

static void walk_bitmap_entry(struct walk *w, uint64_t entry_off, uint64_t index, uint64_t raw)
{
	struct qk_bitmap_table_entry e = qk_bitmap_table_decode(w->a->geometry, raw);

	if (e.finding == 0 && e.off.v >= qk_audit_end(w->a))
		e.finding = QCOW_FINDING_BITMAP_TABLE;
	emit(w, &(struct qcow_walk_item){.kind = QCOW_STRUCT_BITMAP_TABLE_ENTRY,
			.host_off = entry_off,
			.len = 8,
			.index = index,
			.value = raw,
			.target_off = e.off.v,
			.target_len = e.off.v != 0 ? w->a->geometry->cluster_size : 0,
			.guest_off = QCOW_NO_OFFSET,
			.snapshot = -1,
			.finding = e.finding});
}

static enum qcow_status walk_bitmap(
	void *ctx, const struct qk_bitmap_table *t, struct qcow_error *err)
{
	struct walk *w = ctx;

	(void)err;
	emit(w, &(struct qcow_walk_item){.kind = QCOW_STRUCT_BITMAP_TABLE,
			.host_off = t->off,
			.len = t->n_entries * 8,
			.index = t->index,
			.guest_off = QCOW_NO_OFFSET,
			.snapshot = -1,
			.finding = t->finding});
	stream_table(w, &(struct table){t->off, t->n_entries, "bitmap table", walk_bitmap_entry});
	return QCOW_OK;
}

static enum qcow_status walk_bitmaps(struct walk *w, struct qcow_error *err)
{
	const struct qk_bitmaps_ext *b = &w->a->ext->bitmaps;
	uint64_t bytes = 0;

	if (!qk_audit_has_bitmaps(w->a) || w->stopped)
		return QCOW_OK;
	emit_structure(w, QCOW_STRUCT_BITMAP_DIRECTORY, b->directory_off, b->directory_size,
		beyond(w, b->directory_off, b->directory_size, QCOW_FINDING_BITMAP_DIRECTORY));
	return qk_bitmaplist_each(w->a, &bytes, walk_bitmap, w, err);
}

/* ---- the whole ---- */

static enum qcow_status walk_all(struct walk *w, struct qcow_error *err)
{
	const struct qk_header *h = w->a->header;
	const struct qk_extensions *ext = w->a->ext;

	emit_structure(w, QCOW_STRUCT_HEADER, 0, h->header_length, 0);
	if (ext->has_crypto)
		emit_structure(w, QCOW_STRUCT_CRYPTO_HEADER, ext->crypto_off, ext->crypto_len,
			beyond(w, ext->crypto_off, ext->crypto_len, QCOW_FINDING_CRYPTO_HEADER));
	walk_refcounts(w);
	uint64_t l1_bytes = qk_audit_l1_claimed_bytes(w->a);
	emit_structure(w, QCOW_STRUCT_L1, h->l1_off, l1_bytes,
		beyond(w, h->l1_off, l1_bytes, QCOW_FINDING_L1_BEYOND_FILE));
	walk_tree(w, h->l1_off, qk_audit_l1_bytes(w->a) / 8);
	QK_TRY(qk_snaplist_load(&w->snaps, w->a, err));
	walk_snapshots(w);
	return walk_bitmaps(w, err);
}

enum qcow_status qk_walk(struct qk_audit *a, unsigned flags,
	bool (*visit)(void *ctx, const struct qcow_walk_item *item), void *ctx,
	struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *outer = qk_malloc(CHUNK_BYTES, 1);
	QK_AUTO_FREE uint8_t *inner = qk_malloc(a->geometry->cluster_size, 1);
	QK_AUTO_FREE uint64_t *seen = qk_calloc(N_SEEN, sizeof(*seen));
	struct walk w = {.a = a, .flags = flags, .visit = visit, .ctx = ctx, .snapshot = -1};

	if (outer == NULL || inner == NULL || seen == NULL)
		return QK_FAIL_NOMEM(err);
	w.outer = outer;
	w.inner = inner;
	w.seen = seen;
	a->report = ignore_finding;
	enum qcow_status status = walk_all(&w, err);
	qk_snaplist_release(&w.snaps);
	if (status != QCOW_OK || w.stopped || a->n_read_errors == 0)
		return status;
	/* what could be read was visited, but the caller must not take it for the whole */
	if (err != NULL)
		*err = a->first_failure;
	return a->first_failure.status;
}
