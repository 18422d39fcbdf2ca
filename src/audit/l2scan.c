/* SPDX-License-Identifier: MIT */
/*
 * l2scan: one pass over an L2 table. Entries that are a plain cluster and nothing else (nearly all of them)
 * are handled in one loop without calls; every other entry goes through the format room.
 */
#include "audit/l2scan.h"

#include "format/l1l2.h"

/* Where the table stands while it is scanned. */
struct place {
	const struct qk_l2ref *ref;
	const uint8_t *table;
	uint32_t index;
	uint64_t raw, bitmap;
};

/* What the loop over plain entries needs, in registers. */
struct plain {
	uint64_t bad_bits; /* set in no plain entry */
	uint64_t end_off; /* of the file in whole clusters */
	unsigned cluster_bits;
	unsigned entry_size;
};

static uint64_t guest_of(const struct qk_l2scan *s, const struct qk_l2ref *ref, uint32_t index)
{
	const struct qk_geometry *g = s->a->geometry;

	if (ref->l1_index == QK_L2SET_NO_INDEX)
		return QCOW_NO_OFFSET;
	return ref->l1_index * g->l2_span + ((uint64_t)index << g->cluster_bits);
}

static void report_entry(
	struct qk_l2scan *s, const struct place *at, unsigned finding, uint64_t expected)
{
	uint64_t entry_off = at->ref->off + (uint64_t)at->index * s->a->geometry->l2_entry_size;

	qk_audit_report(s->a,
		&(struct qk_audit_note){
			finding, entry_off, guest_of(s, at->ref, at->index), at->raw, expected},
		"L2 table at 0x%llx, entry %u = 0x%llx", (unsigned long long)at->ref->off,
		at->index, (unsigned long long)at->raw);
}

static unsigned copied_flag(const struct qk_l2ref *ref, bool is_copied)
{
	if (ref->n_active == 0)
		return 0;
	return is_copied ? QK_CENSUS_COPIED : QK_CENSUS_UNCOPIED;
}

static void check_stream(struct qk_l2scan *s, const struct place *at, const struct qk_l2_entry *e)
{
	size_t cap = (size_t)s->a->geometry->cluster_size * 2;
	size_t n = (size_t)qk_min(e->compressed_bytes, cap);
	bool is_zero = false;

	if (!qk_audit_read(s->a, s->stream, n, e->host_off.v, &is_zero, "compressed cluster"))
		return;
	if (is_zero || qk_codec_decompress(s->codec, s->stream, n, s->plain, NULL) != QCOW_OK)
		report_entry(s, at, QCOW_FINDING_COMPRESSED_STREAM, at->raw);
}

static void count_compressed(
	struct qk_l2scan *s, const struct place *at, const struct qk_l2_entry *e)
{
	unsigned bits = s->a->geometry->cluster_bits;
	uint64_t first = e->host_off.v >> bits;
	uint64_t last = (e->host_off.v + e->compressed_bytes - 1) >> bits;

	if (s->want_stats && at->ref->n_active != 0) {
		s->stats.allocated += at->ref->n_active;
		s->stats.compressed += at->ref->n_active;
		s->stats.fragmented += at->ref->n_active;
	}
	if (e->copied)
		report_entry(s, at, QCOW_FINDING_COMPRESSED_COPIED, at->raw & ~QK_FLAG_COPIED);
	if (last << bits >= qk_audit_end(s->a)) {
		report_entry(s, at, QCOW_FINDING_COMPRESSED_BEYOND_FILE, at->raw);
		return;
	}
	for (uint64_t c = first; c <= last; c++)
		qk_census_add(s->census, c, at->ref->weight, 0);
	if (s->codec != NULL && !s->a->quiet)
		check_stream(s, at, e);
}

/* Statistics of one cluster with a host offset of its own. */
static void note_allocated(struct qk_l2stats *st, uint64_t n_active, uint64_t off, uint64_t size)
{
	st->allocated += n_active;
	if (st->next_off != 0 && off != st->next_off)
		st->fragmented += n_active;
	st->next_off = off + size;
}

/* … of n clusters that follow each other. */
static void note_row(
	struct qk_l2stats *st, uint64_t n_active, uint64_t off, uint64_t n, unsigned cluster_bits)
{
	note_allocated(st, n_active, off, n << cluster_bits);
	st->allocated += n_active * (n - 1);
}

static void count_cluster(struct qk_l2scan *s, const struct place *at, const struct qk_l2_entry *e)
{
	const struct qk_geometry *g = s->a->geometry;

	if (s->want_stats && at->ref->n_active != 0)
		note_allocated(&s->stats, at->ref->n_active, e->host_off.v, g->cluster_size);
	if (g->data_file) {
		/* nothing else refers to it, and no refcount counts it: as if it were one */
		if (at->ref->n_active != 0 && !e->copied && e->finding == 0)
			report_entry(s, at, QCOW_FINDING_COPIED_MISSING, at->raw | QK_FLAG_COPIED);
		return;
	}
	if (e->host_off.v >= qk_audit_end(s->a)) {
		report_entry(s, at, QCOW_FINDING_L2_ENTRY_BEYOND_FILE, at->raw);
		return;
	}
	qk_census_add(s->census, e->host_off.v >> g->cluster_bits, at->ref->weight,
		copied_flag(at->ref, e->copied));
}

/* An entry that the loop over plain ones does not take. */
static void count_odd(struct qk_l2scan *s, const struct place *at)
{
	const struct qk_geometry *g = s->a->geometry;
	uint64_t guest = guest_of(s, at->ref, at->index);
	bool compare_guest = g->data_file && guest != QCOW_NO_OFFSET;
	struct qk_l2_entry e = qk_l2_decode(g, at->raw, at->bitmap,
		(qk_goff){compare_guest ? guest : at->raw & QK_OFFSET_MASK});

	if (e.finding != 0)
		report_entry(s, at, e.finding, at->raw);
	/* an offset is counted unless it is the offset that is wrong */
	if (e.finding == QCOW_FINDING_L2_ENTRY_UNALIGNED ||
		e.finding == QCOW_FINDING_COMPRESSED_DATA_FILE)
		return;
	if (e.type == QK_L2_COMPRESSED)
		count_compressed(s, at, &e);
	else if ((e.type == QK_L2_NORMAL || e.type == QK_L2_ZERO_ALLOC) &&
		 (e.host_off.v != 0 || g->data_file))
		count_cluster(s, at, &e);
}

static struct plain plain_init(const struct qk_audit *a)
{
	const struct qk_geometry *g = a->geometry;
	uint64_t ok = QK_FLAG_COPIED | (QK_OFFSET_MASK & ~(g->cluster_size - 1));

	return (struct plain){~ok, qk_audit_end(a), g->cluster_bits, g->l2_entry_size};
}

static inline bool is_plain(const struct plain *p, uint64_t raw, const uint8_t *entry)
{
	uint64_t off = raw & ~QK_FLAG_COPIED;

	if ((raw & p->bad_bits) != 0 || off == 0 || off >= p->end_off)
		return false;
	if (p->entry_size == 8)
		return true;
	uint64_t bitmap = qk_load64(entry + 8);
	return (bitmap >> 32 & bitmap) == 0;
}

static void count_plain(
	struct qk_l2scan *s, const struct qk_l2ref *ref, uint64_t raw, const struct plain *p)
{
	uint64_t off = raw & ~QK_FLAG_COPIED;
	unsigned flag = copied_flag(ref, (raw & QK_FLAG_COPIED) != 0);

	qk_census_add_data(s->census, off >> p->cluster_bits, ref->weight, flag);
	if (s->want_stats && ref->n_active != 0)
		note_allocated(&s->stats, ref->n_active, off, UINT64_C(1) << p->cluster_bits);
}

/* Plain entries of 8 bytes from the i-th on whose clusters follow each other, in one page of the census: the next that is not
 * counted. Where something is odd about a counter that is the i-th, and those before *slow are to be counted one by one. */
static uint32_t count_row(struct qk_l2scan *s, const struct qk_l2ref *ref, const uint8_t *table,
	uint32_t i, const struct plain *p, uint32_t *slow)
{
	const struct qk_census_row page = qk_census_row(s->census);
	uint64_t raw = qk_load64(table + (size_t)i * sizeof(raw));
	uint64_t off = raw & ~QK_FLAG_COPIED, k = (off >> p->cluster_bits) - page.first;

	if ((raw & p->bad_bits) != 0 || off == 0 || k >= page.n)
		return i;
	uint32_t end = (uint32_t)qk_min(s->a->geometry->l2_entries, i + (page.n - k) + QK_L2_ROW);
	uint64_t n = qk_min(qk_l2_row(table, i, end, s->a->geometry->cluster_size), page.n - k);
	uint16_t *v = page.counters + k, all = 0;
	for (uint64_t j = 0; j < n; j++)
		all |= v[j];
	if ((all & (QK_CENSUS_L2 | QK_CENSUS_EXCLUSIVE)) != 0 ||
		ref->weight >= QK_CENSUS_COUNT_MASK - (all & QK_CENSUS_COUNT_MASK)) {
		*slow = i + (uint32_t)n;
		return i;
	}
	uint16_t flag = (uint16_t)copied_flag(ref, (raw & QK_FLAG_COPIED) != 0);
	uint16_t weight = (uint16_t)ref->weight;
	for (uint64_t j = 0; j < n; j++)
		v[j] = (uint16_t)((v[j] + weight) | flag);
	if (s->want_stats && ref->n_active != 0 && n != 0)
		note_row(&s->stats, ref->n_active, off, n, p->cluster_bits);
	return i + (uint32_t)n;
}

/* Clusters past the end of the disk hold the state of a machine, or nothing: worth a note, once. */
static void note_past_disk(struct qk_l2scan *s, const struct qk_l2ref *ref, const uint8_t *table)
{
	const struct qk_geometry *g = s->a->geometry;

	if (ref->l1_index == QK_L2SET_NO_INDEX || s->past_disk_reported ||
		(ref->l1_index + UINT64_C(1)) * g->l2_span <= s->a->header->size)
		return;
	uint64_t start = ref->l1_index * g->l2_span;
	uint64_t in_disk = s->a->header->size > start ? s->a->header->size - start : 0;
	uint64_t first = qk_div_up(in_disk, g->cluster_size);
	for (uint64_t i = first; i < g->l2_entries; i++) {
		struct place at = {.ref = ref, .index = (uint32_t)i};
		qk_l2_load(g, table, at.index, &at.raw, &at.bitmap);
		if (at.raw == 0)
			continue;
		report_entry(s, &at, QCOW_FINDING_L2_BEYOND_DISK, at.raw);
		s->past_disk_reported = true;
		return;
	}
}

void qk_l2scan_count(struct qk_l2scan *s, const struct qk_l2ref *ref, const uint8_t *table)
{
	const struct qk_geometry *g = s->a->geometry;
	const struct plain p = plain_init(s->a);
	const bool take_plain = !g->data_file;
	const bool take_rows = take_plain && p.entry_size == sizeof(uint64_t);
	uint32_t slow = 0;

	s->stats.next_off = 0;
	if (!s->a->quiet)
		note_past_disk(s, ref, table);
	for (uint32_t i = 0; i < g->l2_entries; i++) {
		if (take_rows && i >= slow)
			i = count_row(s, ref, table, i, &p, &slow);
		if (i == g->l2_entries)
			break;
		const uint8_t *entry = table + (size_t)i * p.entry_size;
		uint64_t raw = qk_load64(entry);
		if (raw == 0 && p.entry_size == 8)
			continue;
		if (QK_LIKELY(take_plain && is_plain(&p, raw, entry))) {
			count_plain(s, ref, raw, &p);
			continue;
		}
		struct place at = {.ref = ref, .table = table, .index = i};
		qk_l2_load(g, table, i, &at.raw, &at.bitmap);
		if (at.raw != 0 || at.bitmap != 0)
			count_odd(s, &at);
	}
}

/* Is the cluster marked, and does the entry's COPIED disagree with its refcount? The finding, or 0. */
static unsigned disagreement(const struct qk_l2scan *s, uint64_t off, bool is_copied)
{
	const struct qk_census *c = s->census;
	uint64_t cluster = off >> s->a->geometry->cluster_bits;

	if (cluster < c->lo || cluster >= c->hi)
		return 0;
	uint64_t v = qk_census_get(c, cluster);
	bool is_one = (v & QK_CENSUS_WIDE(QK_CENSUS_EXCLUSIVE)) != 0;
	if ((v & QK_CENSUS_WIDE(QK_CENSUS_OVERLAP)) == 0 || is_one == is_copied)
		return 0;
	return is_copied ? QCOW_FINDING_COPIED_WRONG : QCOW_FINDING_COPIED_MISSING;
}

void qk_l2scan_explain(struct qk_l2scan *s, const struct qk_l2ref *ref, const uint8_t *table)
{
	const struct qk_geometry *g = s->a->geometry;

	if (g->data_file)
		return; /* their offsets are no clusters of the census */
	for (uint32_t i = 0; i < g->l2_entries; i++) {
		struct place at = {.ref = ref, .table = table, .index = i};
		qk_l2_load(g, table, i, &at.raw, &at.bitmap);
		if (at.raw == 0)
			continue;
		struct qk_l2_entry e = qk_l2_decode(
			g, at.raw, at.bitmap, (qk_goff){at.raw & QK_OFFSET_MASK});
		if (e.type == QK_L2_COMPRESSED || e.host_off.v == 0 ||
			e.finding == QCOW_FINDING_L2_ENTRY_UNALIGNED)
			continue;
		unsigned finding = disagreement(s, e.host_off.v, e.copied);
		if (finding != 0)
			report_entry(s, &at, finding, at.raw ^ QK_FLAG_COPIED);
	}
}

void qk_l2scan_explain_l1(struct qk_l2scan *s, uint32_t l1_index, uint64_t raw)
{
	const struct qk_audit *a = s->a;
	struct qk_l1_entry e = qk_l1_decode(a->geometry, raw);
	unsigned finding = e.finding != 0 ? 0 : disagreement(s, e.l2_off.v, e.copied);

	if (finding != 0)
		qk_audit_report(s->a,
			&(struct qk_audit_note){finding, a->header->l1_off + l1_index * UINT64_C(8),
				l1_index * a->geometry->l2_span, raw, raw ^ QK_FLAG_COPIED},
			"L1 entry %u = 0x%llx", l1_index, (unsigned long long)raw);
}
