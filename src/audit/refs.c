/* SPDX-License-Identifier: MIT */
/*
 * refs: the counting walk. It owns the tables' buffers and the order of the visit; what an entry means is
 * l2scan's and the format room's. Never follows a table that is unaligned or beyond the file. Work is linear
 * in the tables that the file holds: tables named often are read once (sweep, l2set) and count often.
 */
#include "audit/refs.h"

#include "audit/bitmaplist.h"
#include "base/mem.h"
#include "format/bitmapext.h"
#include "format/l1l2.h"

#define CHUNK_BYTES  (64U * 1024U)
#define L2_BUF_BYTES QK_MIB(2) /* at least one L2 table of the largest cluster */

/* Which L2 tables a pass over the L1 tables is about. */
enum pass {
	PASS_COUNT,
	PASS_EXPLAIN,
	PASS_VISIT
};

struct l1_part {
	uint64_t off, n_entries, covers;
	bool is_active;
};

/* ---- setting up ---- */

static enum qcow_status add_sweeps(struct qk_refs *r, struct qk_sweep *bytes,
	struct qk_sweep *clusters, const struct qk_sweep_range *range, struct qcow_error *err)
{
	uint64_t mask = r->a->geometry->cluster_size - 1;

	QK_TRY(qk_sweep_add(bytes, range->off, range->len, err));
	return qk_sweep_add(clusters, range->off, (range->len + mask) & ~mask, err);
}

static enum qcow_status add_bitmap_table(
	void *ctx, const struct qk_bitmap_table *t, struct qcow_error *err)
{
	struct qk_refs *r = ctx;
	struct qk_sweep_range range = {t->off, t->n_entries * 8, 1};

	return add_sweeps(r, &r->bitmap_tables, &r->bitmap_table_clusters, &range, err);
}

static enum qcow_status load_snapshots(
	struct qk_refs *r, const uint64_t *skip, struct qcow_error *err)
{
	QK_TRY(qk_snaplist_load(&r->snaps, r->a, err));
	for (uint32_t i = 0; i < r->snaps.n; i++) {
		if (skip != NULL && (skip[i / 64] >> (i % 64) & 1) != 0)
			continue;
		struct qk_sweep_range range = {
			r->snaps.v[i].off, r->snaps.v[i].n_entries * UINT64_C(8), 1};
		QK_TRY(add_sweeps(r, &r->snap_l1, &r->snap_l1_clusters, &range, err));
	}
	qk_sweep_sort(&r->snap_l1);
	qk_sweep_sort(&r->snap_l1_clusters);
	return QCOW_OK;
}

static enum qcow_status load_bitmaps(struct qk_refs *r, struct qcow_error *err)
{
	QK_TRY(qk_bitmaplist_each(r->a, &r->bitmap_directory_bytes, add_bitmap_table, r, err));
	qk_sweep_sort(&r->bitmap_tables);
	qk_sweep_sort(&r->bitmap_table_clusters);
	return QCOW_OK;
}

static void report_header(struct qk_audit *a, unsigned finding, uint64_t off, uint64_t stored)
{
	qk_audit_report(
		a, &(struct qk_audit_note){finding, off, QCOW_NO_OFFSET, stored, stored}, "header");
}

static void judge_header(struct qk_audit *a)
{
	const struct qk_header *h = a->header;

	if ((h->incompatible & QCOW_INCOMPAT_DIRTY) != 0)
		report_header(a, QCOW_FINDING_DIRTY, 72, h->incompatible);
	if ((h->incompatible & QCOW_INCOMPAT_CORRUPT) != 0)
		report_header(a, QCOW_FINDING_CORRUPT_BIT, 72, h->incompatible);
	if ((h->autoclear & QCOW_AUTOCLEAR_BITMAPS) != 0 && !a->ext->has_bitmaps)
		report_header(a, QCOW_FINDING_BITMAP_AUTOCLEAR, 88, h->autoclear);
	if (!qk_in_range(h->l1_off, qk_audit_l1_claimed_bytes(a), qk_audit_end(a)))
		report_header(a, QCOW_FINDING_L1_BEYOND_FILE, h->l1_off, h->l1_entries);
	if (a->ext->has_crypto &&
		!qk_in_range(a->ext->crypto_off, a->ext->crypto_len, qk_audit_end(a)))
		report_header(
			a, QCOW_FINDING_CRYPTO_HEADER, a->ext->crypto_off, a->ext->crypto_len);
}

static enum qcow_status init_decoder(struct qk_refs *r, struct qcow_error *err)
{
	size_t cluster = (size_t)r->a->geometry->cluster_size;
	bool is_zstd = r->a->header->compression_type == QCOW_COMPRESSION_ZSTD;

	r->scan.stream = qk_malloc(cluster, 2);
	r->scan.plain = qk_malloc(cluster, 1);
	if (r->scan.stream == NULL || r->scan.plain == NULL)
		return QK_FAIL_NOMEM(err);
	return qk_codec_new(is_zstd ? QCOW_COMPRESSION_ZSTD : QCOW_COMPRESSION_ZLIB, cluster, -1,
		&r->scan.codec, err);
}

enum qcow_status qk_refs_init(
	struct qk_refs *r, const struct qk_refs_request *q, struct qcow_error *err)
{
	*r = (struct qk_refs){.a = q->audit,
		.watch = q->watch,
		.census = q->census,
		.without_refcounts = q->without_refcounts};
	r->scan = (struct qk_l2scan){.a = q->audit, .census = q->census};
	r->l2_buf_bytes = qk_max(L2_BUF_BYTES, q->audit->geometry->cluster_size);
	r->chunk = qk_malloc(CHUNK_BYTES, 1);
	r->l2_buf = qk_malloc_aligned(4096, r->l2_buf_bytes);
	if (r->chunk == NULL || r->l2_buf == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qk_l2set_init(&r->set, q->memory_bytes, err));
	if (q->decode_streams)
		QK_TRY(init_decoder(r, err));
	judge_header(r->a);
	QK_TRY(qk_reftable_load(&r->rt, r->a, err));
	QK_TRY(load_snapshots(r, q->skip_snapshots, err));
	return load_bitmaps(r, err);
}

void qk_refs_release(struct qk_refs *r)
{
	qk_reftable_release(&r->rt);
	qk_snaplist_release(&r->snaps);
	qk_sweep_release(&r->snap_l1);
	qk_sweep_release(&r->snap_l1_clusters);
	qk_sweep_release(&r->bitmap_tables);
	qk_sweep_release(&r->bitmap_table_clusters);
	qk_l2set_release(&r->set);
	qk_codec_free(r->scan.codec);
	free(r->scan.stream);
	free(r->scan.plain);
	free(r->chunk);
	free(r->l2_buf);
}

/* ---- counting structures ---- */

/* Count the clusters of [off, off + len), as far as the file has them. */
static void count_range(struct qk_refs *r, uint64_t off, uint64_t len, uint64_t covers)
{
	unsigned bits = r->a->geometry->cluster_bits;
	uint64_t end = qk_audit_end(r->a);

	if (off >= end || len == 0)
		return;
	uint64_t last = (off + qk_min(len, end - off) - 1) >> bits;
	uint64_t first = qk_max(off >> bits, r->census->lo);
	for (uint64_t c = first; c <= last && c < r->census->hi; c++)
		qk_census_add(r->census, c, covers, QK_CENSUS_EXCLUSIVE);
}

static void count_sweep(struct qk_refs *r, struct qk_sweep *s)
{
	struct qk_sweep_range range = {0};

	qk_sweep_rewind(s);
	while (qk_sweep_next(s, &range))
		count_range(r, range.off, range.len, range.covers);
}

static void count_structures(struct qk_refs *r)
{
	const struct qk_audit *a = r->a;

	count_range(r, 0, a->geometry->cluster_size, 1);
	if (!r->without_refcounts)
		count_range(r, a->header->rt_off, qk_audit_rt_bytes(a), 1);
	for (uint64_t i = 0; i < r->rt.n && !r->without_refcounts; i++) {
		if (r->rt.v[i] > QK_REFTABLE_UNUSABLE)
			count_range(r, r->rt.v[i], a->geometry->cluster_size, 1);
	}
	if (a->ext->has_crypto)
		count_range(r, a->ext->crypto_off, a->ext->crypto_len, 1);
	count_range(r, a->header->snapshots_off, r->snaps.table_bytes, 1);
	count_sweep(r, &r->snap_l1_clusters);
	count_range(r, a->header->l1_off, qk_audit_l1_bytes(a), 1);
	if (r->bitmap_directory_bytes != 0)
		count_range(r, a->ext->bitmaps.directory_off, r->bitmap_directory_bytes, 1);
	count_sweep(r, &r->bitmap_table_clusters);
}

static void count_bitmap_entry(struct qk_refs *r, uint64_t entry_off, uint64_t raw, uint64_t covers)
{
	struct qk_audit *a = r->a;
	struct qk_bitmap_table_entry e = qk_bitmap_table_decode(a->geometry, raw);

	if (e.finding == 0 && e.off.v >= qk_audit_end(a))
		e.finding = QCOW_FINDING_BITMAP_TABLE;
	if (e.finding != 0)
		qk_audit_report(a,
			&(struct qk_audit_note){e.finding, entry_off, QCOW_NO_OFFSET, raw, raw},
			"bitmap table entry 0x%llx", (unsigned long long)raw);
	else if (e.off.v != 0)
		count_range(r, e.off.v, a->geometry->cluster_size, covers);
}

static void show_bitmap_entry(struct qk_refs *r, uint64_t off, uint64_t raw, uint64_t covers)
{
	struct qk_refs_entry e = {
		.off = off, .raw = raw, .covers = covers, .index = QK_L2SET_NO_INDEX};

	if (r->visit_status == QCOW_OK)
		r->visit_status = r->visitor->bitmap(r->visitor->ctx, &e, &r->visit_error);
}

/* Each entry, not 0, of the bitmaps' tables. */
static void stream_bitmaps(struct qk_refs *r,
	void (*each)(struct qk_refs *r, uint64_t off, uint64_t raw, uint64_t covers))
{
	struct qk_sweep_range range = {0};
	bool is_zero = false;

	qk_sweep_rewind(&r->bitmap_tables);
	while (qk_sweep_next(&r->bitmap_tables, &range)) {
		for (uint64_t at = 0; at < range.len; at += CHUNK_BYTES) {
			uint64_t n = qk_min(CHUNK_BYTES, range.len - at);
			if (!qk_audit_read(r->a, r->chunk, (size_t)n, range.off + at, &is_zero,
				    "bitmap table") ||
				is_zero)
				continue;
			for (uint64_t i = 0; i < n; i += 8) {
				uint64_t raw = qk_load64(r->chunk + i);
				if (raw != 0)
					each(r, range.off + at + i, raw, range.covers);
			}
		}
	}
}

/* ---- L1 tables ---- */

static void report_l1_entry(
	struct qk_refs *r, const struct l1_part *p, uint64_t index, unsigned finding, uint64_t raw)
{
	uint64_t guest = p->is_active ? index * r->a->geometry->l2_span : QCOW_NO_OFFSET;

	qk_audit_report(r->a, &(struct qk_audit_note){finding, p->off + index * 8, guest, raw, raw},
		"%s L1 table at 0x%llx, entry %llu = 0x%llx",
		p->is_active ? "active" : "snapshot's", (unsigned long long)p->off,
		(unsigned long long)index, (unsigned long long)raw);
}

static void gather_entry(struct qk_refs *r, const struct l1_part *p, uint64_t index, uint64_t raw)
{
	struct qk_l1_entry e = qk_l1_decode(r->a->geometry, raw);
	unsigned finding = qk_l1_finding(&e);

	if (finding == 0 && e.l2_off.v >= qk_audit_end(r->a))
		finding = QCOW_FINDING_L1_ENTRY_BEYOND_FILE;
	if (finding != 0)
		report_l1_entry(r, p, index, finding, raw);
	if ((finding != 0 && finding != QCOW_FINDING_L1_ENTRY_RESERVED) || e.l2_off.v == 0 ||
		e.l2_off.v >= qk_audit_end(r->a))
		return;
	struct qk_l2ref ref = {
		.off = e.l2_off.v, .weight = p->covers, .l1_index = QK_L2SET_NO_INDEX};
	if (p->is_active) {
		ref.l1_index = (uint32_t)index;
		ref.n_active = 1;
		ref.flags = e.copied ? QK_CENSUS_COPIED : QK_CENSUS_UNCOPIED;
	}
	qk_l2set_add(&r->set, &ref);
}

static void visit_l1_entry(struct qk_refs *r, const struct l1_part *p, uint64_t index, uint64_t raw)
{
	struct qk_refs_entry e = {.off = p->off + index * 8,
		.raw = raw,
		.covers = p->covers,
		.index = p->is_active ? (uint32_t)index : QK_L2SET_NO_INDEX};

	if (r->visit_status == QCOW_OK)
		r->visit_status = r->visitor->l1(r->visitor->ctx, &e, &r->visit_error);
}

/* Each non-zero entry of an L1 table: gathered into the set, shown, or explained. */
static void stream_l1(struct qk_refs *r, const struct l1_part *p, enum pass pass)
{
	bool is_zero = false;
	uint64_t end = qk_audit_end(r->a);
	uint64_t bytes = p->off < end ? qk_min(p->n_entries * 8, end - p->off) : 0;

	for (uint64_t at = 0; at < bytes; at += CHUNK_BYTES) {
		uint64_t n = qk_min(CHUNK_BYTES, bytes - at);
		if (!qk_audit_read(r->a, r->chunk, (size_t)n, p->off + at, &is_zero, "L1 table") ||
			is_zero)
			continue;
		for (uint64_t i = 0; i < n / 8; i++) {
			uint64_t raw = qk_load64(r->chunk + i * 8);
			uint64_t index = at / 8 + i;
			if (raw != 0 && pass == PASS_COUNT)
				gather_entry(r, p, index, raw);
			else if (raw != 0 && pass == PASS_VISIT)
				visit_l1_entry(r, p, index, raw);
			else if (raw != 0)
				qk_l2scan_explain_l1(&r->scan, (uint32_t)index, raw);
		}
	}
}

static void stream_all_l1(struct qk_refs *r, enum pass pass)
{
	struct l1_part active = {r->a->header->l1_off, qk_audit_l1_bytes(r->a) / 8, 1, true};
	struct qk_sweep_range range = {0};

	stream_l1(r, &active, pass);
	qk_sweep_rewind(&r->snap_l1);
	while (qk_sweep_next(&r->snap_l1, &range)) {
		struct l1_part part = {range.off, range.len / 8, range.covers, false};
		stream_l1(r, &part, pass);
	}
}

/* ---- L2 tables ---- */

static void visit_table(
	struct qk_refs *r, const struct qk_l2ref *ref, const uint8_t *table, enum pass pass)
{
	if (pass == PASS_VISIT) {
		if (r->visit_status == QCOW_OK && r->visitor->l2 != NULL)
			r->visit_status = r->visitor->l2(
				r->visitor->ctx, ref, table, &r->visit_error);
		return;
	}
	if (table == NULL)
		return;
	if (pass == PASS_EXPLAIN) {
		if (ref->n_active != 0)
			qk_l2scan_explain(&r->scan, ref, table);
		return;
	}
	qk_l2scan_count(&r->scan, ref, table);
	if (r->watch != NULL)
		r->watch->table(r->watch->ctx, ref->off, table);
}

/* What a reference to the table itself says, before its content. */
static void count_table(struct qk_refs *r, const struct qk_l2ref *ref)
{
	qk_census_add(r->census, ref->off >> r->a->geometry->cluster_bits, ref->weight,
		QK_CENSUS_L2 | ref->flags);
	if (ref->n_active > 1)
		qk_audit_report(r->a,
			&(struct qk_audit_note){QCOW_FINDING_L2_TABLE_TWICE, ref->off,
				ref->l1_index * r->a->geometry->l2_span, ref->n_active, 1},
			"L2 table at 0x%llx, first named by L1 entry %u",
			(unsigned long long)ref->off, ref->l1_index);
}

/* How many tables from `first` on lie next to each other and fit the buffer. */
static uint32_t run_length(const struct qk_refs *r, uint32_t first)
{
	uint64_t size = r->a->geometry->cluster_size;
	uint32_t max = (uint32_t)(r->l2_buf_bytes / size);
	uint32_t n = 1;

	while (n < max && first + n < r->set.n &&
		r->set.v[first + n].off == r->set.v[first].off + n * size)
		n++;
	return n;
}

/* Read and visit the tables [first, first + n), which lie next to each other. */
static void visit_run(struct qk_refs *r, uint32_t first, uint32_t n, enum pass pass)
{
	uint64_t size = r->a->geometry->cluster_size;
	const struct qk_l2ref *ref = &r->set.v[first];
	bool was_quiet = r->a->quiet;
	bool is_zero = false;

	for (uint32_t i = 0; i < n && pass == PASS_COUNT; i++)
		count_table(r, &ref[i]);
	/* one bad sector must not hide its neighbours: a run that fails is read again table by table */
	r->a->quiet = was_quiet || n > 1;
	bool ok = qk_audit_read(
		r->a, r->l2_buf, (size_t)(n * size), ref->off, &is_zero, "L2 table");
	r->a->quiet = was_quiet;
	for (uint32_t i = 0; i < n && ok; i++)
		visit_table(r, &ref[i], is_zero ? NULL : r->l2_buf + i * size, pass);
	for (uint32_t i = 0; i < n && !ok && n > 1; i++) {
		if (qk_audit_read(r->a, r->l2_buf, (size_t)size, ref[i].off, &is_zero, "L2 table"))
			visit_table(r, &ref[i], is_zero ? NULL : r->l2_buf, pass);
	}
}

static enum qcow_status visit_batch(struct qk_refs *r, enum pass pass, struct qcow_error *err)
{
	const struct qcow_progress *p = r->a->progress;

	qk_l2set_sort(&r->set);
	for (uint32_t i = 0; i < r->set.n && r->visit_status == QCOW_OK;) {
		uint32_t n = run_length(r, i);
		QK_TRY(qk_audit_cancelled(r->a, err));
		visit_run(r, i, n, pass);
		i += n;
		/* tables come by ascending offset, in batches too */
		if (p != NULL && p->report != NULL && pass == PASS_COUNT && !r->a->quiet)
			p->report(p->ctx, r->set.v[i - 1].off, qk_audit_end(r->a));
	}
	return QCOW_OK;
}

/* All distinct L2 tables, as many batches as the set's memory needs. */
static enum qcow_status visit_l2_tables(struct qk_refs *r, enum pass pass, struct qcow_error *err)
{
	bool was_quiet = r->a->quiet;
	uint64_t lo = 0;

	do {
		qk_l2set_begin(&r->set, lo);
		r->a->quiet = was_quiet || lo != 0 || pass != PASS_COUNT;
		stream_all_l1(r, PASS_COUNT);
		r->a->quiet = was_quiet;
		r->scan.want_stats = !was_quiet && pass == PASS_COUNT;
		QK_TRY(visit_batch(r, pass, err));
		lo = r->set.hi;
	} while (lo != UINT64_MAX);
	return QCOW_OK;
}

enum qcow_status qk_refs_count(struct qk_refs *r, struct qcow_error *err)
{
	QK_TRY(qk_audit_cancelled(r->a, err));
	count_structures(r);
	stream_bitmaps(r, count_bitmap_entry);
	return visit_l2_tables(r, PASS_COUNT, err);
}

enum qcow_status qk_refs_visit(
	struct qk_refs *r, const struct qk_refs_visitor *v, struct qcow_error *err)
{
	QK_TRY(qk_audit_cancelled(r->a, err));
	r->visitor = v;
	r->visit_status = QCOW_OK;
	if (v->l1 != NULL)
		stream_all_l1(r, PASS_VISIT);
	if (v->bitmap != NULL)
		stream_bitmaps(r, show_bitmap_entry);
	if (v->l2 != NULL && r->visit_status == QCOW_OK)
		QK_TRY(visit_l2_tables(r, PASS_VISIT, err));
	r->visitor = NULL;
	if (r->visit_status != QCOW_OK && err != NULL)
		*err = r->visit_error;
	return r->visit_status;
}

enum qcow_status qk_refs_explain(struct qk_refs *r, struct qcow_error *err)
{
	struct l1_part active = {r->a->header->l1_off, qk_audit_l1_bytes(r->a) / 8, 1, true};
	bool was_quiet = r->a->quiet;

	/* each cluster belongs to one pass: what is explained is explained once, in whichever it is */
	r->a->quiet = false;
	stream_l1(r, &active, PASS_EXPLAIN);
	enum qcow_status status = visit_l2_tables(r, PASS_EXPLAIN, err);
	r->a->quiet = was_quiet;
	return status;
}
