/* SPDX-License-Identifier: MIT */
/*
 * lookup: see lookup.h. Walks L1 and L2 entries of one layer and joins what belongs together. Never
 * reads guest data, never looks at another layer. Specification: "Cluster mapping", "Extended L2 Entries".
 *
 * Invariant: L1 a run is made only of entries that were read whole (qk_slice_is_whole) and without a
 * finding; host offsets of PLAIN and COMPRESSED runs begin within the store.
 */
#include "engine/lookup.h"

#include <inttypes.h>

#include "base/err.h"
#include "engine/image.h"
#include "engine/meta.h"
#include "engine/rw.h"
#include "engine/stage.h"
#include "format/l1l2.h"

/* What one entry says from some byte of its cluster on. */
struct piece {
	struct qk_run run;
	unsigned finding;
	uint64_t raw;
};

/* A walk in progress. */
struct walk {
	struct qcow_image *image;
	uint64_t off, end; /* guest bytes still to look at */
	bool may_block;
	bool for_write; /* only what may be written in place is PLAIN, the rest UNALLOCATED */
	bool is_done; /* the run has ended before `end` */
	struct qk_run run; /* len 0: nothing yet */
	uint64_t last_raw; /* of a whole plain cluster that ended the run, else 0 */
};

bool qk_run_continues(const struct qk_run *run, const struct qk_run *next)
{
	if (run->kind != next->kind || run->layer != next->layer ||
		run->has_host != next->has_host || run->kind == QK_RUN_COMPRESSED)
		return false;
	return !run->has_host ||
	       (run->store == next->store && run->host_off.v + run->len == next->host_off.v);
}

/* Add `next` to the run; false where it does not belong to it. */
static bool join(struct walk *w, const struct qk_run *next)
{
	if (w->run.len == 0)
		w->run = *next;
	else if (qk_run_continues(&w->run, next))
		w->run.len += next->len;
	else
		return false;
	w->off += next->len;
	return true;
}

static void join_unallocated(struct walk *w, uint64_t len)
{
	struct qk_run next = {
		.kind = QK_RUN_UNALLOCATED, .guest.v = w->off, .len = len, .layer = w->image};
	w->is_done = !join(w, &next);
}

/* The subclusters of an extended entry that answer alike, from the one at `in_cluster` on. */
static void cut_subclusters(const struct qk_geometry *g, const struct qk_l2_entry *e,
	uint64_t in_cluster, struct qk_run *run)
{
	uint64_t first = in_cluster / g->subcluster_size;
	uint64_t alloc = (e->alloc >> first) & 1;
	uint64_t zero = (e->zero >> first) & 1;
	uint64_t last = first + 1;
	while (last < g->subclusters && ((e->alloc >> last) & 1) == alloc &&
		((e->zero >> last) & 1) == zero)
		last++;
	run->len = last * g->subcluster_size - in_cluster;
	if (alloc != 0)
		run->kind = QK_RUN_PLAIN;
	else
		run->kind = zero != 0 ? QK_RUN_ZERO : QK_RUN_UNALLOCATED;
}

static enum qk_run_kind kind_of(enum qk_l2_type type)
{
	switch (type) {
	case QK_L2_UNALLOCATED:
		return QK_RUN_UNALLOCATED;
	case QK_L2_ZERO:
	case QK_L2_ZERO_ALLOC:
		return QK_RUN_ZERO;
	case QK_L2_NORMAL:
		return QK_RUN_PLAIN;
	case QK_L2_COMPRESSED:
	default:
		return QK_RUN_COMPRESSED;
	}
}

/* A host cluster must begin within the file, compressed data must not end more than a cluster behind it:
 * images whose last cluster is cut short are legal. A data file may be short: it then reads as zeros. */
static unsigned judge_range(const struct qcow_image *image, const struct qk_run *run)
{
	uint64_t at = qk_align_down(run->host_off.v, image->geometry.cluster_size);
	if (run->kind == QK_RUN_COMPRESSED) {
		uint64_t end = run->host_off.v + run->compressed_bytes;
		bool is_in = run->host_off.v < image->file_size &&
			     (end <= image->file_size ||
				     end - image->file_size < image->geometry.cluster_size);
		return is_in ? 0 : QCOW_FINDING_COMPRESSED_BEYOND_FILE;
	}
	if (run->kind != QK_RUN_PLAIN || image->geometry.data_file || at < image->file_size)
		return 0;
	return QCOW_FINDING_L2_ENTRY_BEYOND_FILE;
}

/* Decode one entry for the bytes from w->off to the end of its cluster. */
static void decode(const struct walk *w, uint64_t raw, uint64_t bitmap, struct piece *out)
{
	const struct qk_geometry *g = &w->image->geometry;
	uint64_t in_cluster = w->off & (g->cluster_size - 1);
	struct qk_l2_entry e = qk_l2_decode(g, raw, bitmap, (qk_goff){w->off - in_cluster});
	struct qk_run *run = &out->run;
	*out = (struct piece){.finding = e.finding, .raw = raw};
	run->kind = kind_of(e.type);
	run->layer = w->image;
	run->guest.v = w->off;
	run->len = g->cluster_size - in_cluster;
	run->host_off = e.host_off;
	run->compressed_bytes = e.compressed_bytes;
	if (g->extended_l2 && e.type != QK_L2_COMPRESSED)
		cut_subclusters(g, &e, in_cluster, run);
	/* in a data file, offset 0 is a cluster like any other: COPIED tells */
	run->has_host = run->kind >= QK_RUN_PLAIN || e.host_off.v != 0 ||
			(g->data_file && e.copied);
	if (e.type != QK_L2_COMPRESSED)
		run->host_off.v = run->has_host ? e.host_off.v + in_cluster : 0;
	if (run->has_host)
		run->store = e.type == QK_L2_COMPRESSED ? w->image->store
							: qk_guest_store(w->image);
	if (out->finding == 0)
		out->finding = judge_range(w->image, run);
	if (w->for_write && (run->kind != QK_RUN_PLAIN || !e.copied)) {
		run->kind = QK_RUN_UNALLOCATED;
		run->has_host = false;
		run->host_off.v = 0;
	}
	if (run->len > w->end - w->off)
		run->len = w->end - w->off;
}

static enum qcow_status fail_entry(
	const struct walk *w, const struct piece *p, uint64_t host_off, struct qcow_error *err)
{
	uint64_t guest = qk_align_down(w->off, w->image->geometry.cluster_size);
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, p->finding, host_off, guest,
		"L2 entry 0x%016" PRIx64 " at %" PRIu64 " for guest offset %" PRIu64 ": %s", p->raw,
		host_off, guest, qcow_finding_text(p->finding));
}

/* The quick cases of a standard entry, judged by the one before: nothing after nothing, and the next
 * plain cluster in the file, flags and all. */
static bool is_more_of_the_same(const struct walk *w, uint64_t raw)
{
	const struct qk_geometry *g = &w->image->geometry;
	if (raw == 0)
		return w->run.kind == QK_RUN_UNALLOCATED && !w->run.has_host && w->run.len != 0;
	return w->last_raw != 0 && raw == w->last_raw + g->cluster_size &&
	       w->run.host_off.v + w->run.len < w->image->file_size;
}

static void take_whole_cluster(struct walk *w, uint64_t raw)
{
	uint64_t take = qk_min(w->image->geometry.cluster_size, w->end - w->off);
	w->run.len += take;
	w->off += take;
	w->last_raw = raw;
}

/* Eight empty entries at a time behind an unallocated run: most entries of most tables are empty. Their number. */
static uint32_t skip_empty(struct walk *w, const struct qk_slice *s, uint32_t i)
{
	uint64_t eight = w->image->geometry.cluster_size * 8;
	uint32_t n = 0;
	while (i + n + 8 <= s->n_entries && w->end - w->off > eight &&
		qk_slice_is_zero8(s, i + n)) {
		w->run.len += eight;
		w->off += eight;
		n += 8;
	}
	return n;
}

/* Walk the entries of one slice from w->off on. `index` is that of the first in the L2 table. *bad gets
 * an entry with a finding that ends the walk; its finding is 0 where there is none. */
static void walk_slice(struct walk *w, const struct qk_slice *s, uint32_t index, struct piece *bad)
{
	const struct qk_geometry *g = &w->image->geometry;
	unsigned words = g->l2_entry_size / (unsigned)sizeof(uint64_t);
	uint32_t i = index - s->first;
	bad->finding = 0;
	while (i < s->n_entries && w->off < w->end && !w->is_done) {
		uint64_t raw = qk_slice_word(s, i * words);
		if (words == 1 && is_more_of_the_same(w, raw)) {
			take_whole_cluster(w, raw);
			i++;
			if (raw == 0)
				i += skip_empty(w, s, i);
			continue;
		}
		struct piece p;
		decode(w, raw, words == 2 ? qk_slice_word(s, i * words + 1) : 0, &p);
		w->is_done = p.finding != 0 || !join(w, &p.run);
		if (p.finding != 0)
			*bad = p;
		w->last_raw = p.run.kind == QK_RUN_PLAIN && words == 1 && !g->data_file ? raw : 0;
		if ((w->off & (g->cluster_size - 1)) == 0)
			i++;
	}
}

/* The entries around `index` of the table at l2_off: those that are staged, else those of the cache. Where something
 * is staged they are a sector of the table, for its neighbour may be staged or not. */
static enum qcow_status get_slice(const struct walk *w, uint64_t l2_off, uint32_t index,
	struct qk_slice *out, struct qcow_error *err)
{
	const struct qcow_image *image = w->image;
	struct qk_stage *stage = image->rw != NULL ? image->rw->stage : NULL;
	if (stage == NULL || qk_stage_is_empty(stage))
		return qk_meta_slice(image->meta, l2_off, index, w->may_block, out, err);
	uint32_t n = qk_stage_entries(&image->geometry);
	uint32_t first = (uint32_t)qk_align_down(index, n);
	uint64_t cluster = w->off >> image->geometry.cluster_bits;
	if (!qk_stage_find(stage, cluster / n, out)) {
		QK_TRY(qk_meta_slice(image->meta, l2_off, index, w->may_block, out, err));
		if (out->words != NULL)
			out->words += (size_t)(first - out->first) *
				      qk_entry_words(&image->geometry);
	}
	out->first = first;
	out->n_entries = n;
	return QCOW_OK;
}

/* Walk what one L2 table says, slice by slice, up to its end. */
static enum qcow_status walk_table(struct walk *w, uint64_t l2_off, struct qcow_error *err)
{
	const struct qk_geometry *g = &w->image->geometry;
	uint64_t table_end = qk_align_down(w->off, g->l2_span) + (g->l2_span - 1);
	while (!w->is_done && w->off < w->end && w->off <= table_end) {
		uint32_t index = qk_guest_pos(g, (qk_goff){w->off}).l2_index;
		const struct walk before = *w;
		struct qk_slice slice;
		struct piece bad;
		do {
			*w = before;
			/* behind a run, a table that cannot be read only ends it */
			QK_TRY(get_slice(w, l2_off, index, &slice, w->run.len == 0 ? err : NULL));
			if (slice.words == NULL) {
				w->is_done = true;
				return QCOW_OK;
			}
			walk_slice(w, &slice, index, &bad);
		} while (!qk_slice_is_whole(&slice));
		if (bad.finding != 0 && w->run.len == 0) {
			index = qk_guest_pos(g, (qk_goff){w->off}).l2_index;
			return fail_entry(
				w, &bad, l2_off + (uint64_t)index * g->l2_entry_size, err);
		}
	}
	return QCOW_OK;
}

/* Step over L1 entries that are absent, from entry `index` on. */
static void walk_absent(struct walk *w, const _Atomic uint64_t *l1, uint64_t n, uint64_t index)
{
	const struct qk_geometry *g = &w->image->geometry;
	uint64_t last = (w->end - 1) / g->l2_span;
	uint64_t limit = qk_min(n, last + 1);
	do
		index++;
	while (index < limit && qk_l1_word(l1, index) == 0);
	/* an entry past the table is absent too, where the table really ends there */
	if (index >= limit && (index > last || n == w->image->l1_entries))
		join_unallocated(w, w->end - w->off);
	else
		join_unallocated(w, index * g->l2_span - w->off);
}

static enum qcow_status fail_l1(const struct walk *w, uint64_t index, unsigned finding,
	uint64_t raw, struct qcow_error *err)
{
	const struct qcow_image *image = w->image;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, finding, image->l1_off + index * sizeof(raw), w->off,
		"L1 entry %" PRIu64 " (0x%016" PRIx64 ", table at %" PRIu64
		") for guest offset %" PRIu64 ": %s",
		index, raw, image->l1_off, w->off, qcow_finding_text(finding));
}

static enum qcow_status walk_l1_entry(
	struct walk *w, const _Atomic uint64_t *l1, uint64_t n, struct qcow_error *err)
{
	const struct qcow_image *image = w->image;
	uint64_t index = w->off / image->geometry.l2_span;
	if (index >= n && index < image->l1_entries) {
		unsigned finding = image->is_snapshot_view ? QCOW_FINDING_SNAPSHOT_L1
							   : QCOW_FINDING_L1_BEYOND_FILE;
		return fail_l1(w, index, finding, 0, err);
	}
	uint64_t raw = index < n ? qk_l1_word(l1, index) : 0;
	if (raw == 0) {
		walk_absent(w, l1, n, index);
		return QCOW_OK;
	}
	struct qk_l1_entry e = qk_l1_decode(&image->geometry, raw);
	if (e.finding == 0 && e.l2_off.v >= image->file_size)
		e.finding = QCOW_FINDING_L1_ENTRY_BEYOND_FILE;
	if (e.finding != 0)
		return fail_l1(w, index, e.finding, raw, err);
	if (e.l2_off.v == 0) {
		walk_absent(w, l1, n, index);
		return QCOW_OK;
	}
	/* a table that a snapshot may share: its entries' COPIED is not believed */
	if (w->for_write && !e.copied) {
		uint64_t end = qk_align_down(w->off, image->geometry.l2_span) +
			       (image->geometry.l2_span - 1);
		join_unallocated(w, qk_min(w->end - 1, end) - w->off + 1);
		return QCOW_OK;
	}
	return walk_table(w, e.l2_off.v, err);
}

static void lookup_raw(struct qcow_image *image, qk_goff off, uint64_t len, struct qk_run *out)
{
	*out = (struct qk_run){.kind = QK_RUN_PLAIN,
		.has_host = true,
		.guest = off,
		.len = len,
		.host_off.v = image->raw_offset + off.v,
		.store = image->store,
		.layer = image};
}

/* Walk from w->off to w->end. */
static enum qcow_status walk_range(struct walk *w, struct qk_run *out, struct qcow_error *err)
{
	qk_goff off = {w->off};
	const _Atomic uint64_t *l1 = NULL;
	uint64_t n = 0;
	QK_TRY(qk_meta_l1(w->image->meta, w->may_block, &l1, &n, err));
	while (l1 != NULL && !w->is_done && w->off < w->end) {
		/* what is wrong behind the run is not this call's to report */
		bool is_first = w->run.len == 0;
		enum qcow_status status = walk_l1_entry(w, l1, n, is_first ? err : NULL);
		if (status != QCOW_OK && w->run.len == 0)
			return status;
		w->is_done = w->is_done || status != QCOW_OK;
	}
	if (w->run.len == 0)
		w->run = (struct qk_run){.kind = QK_RUN_BLOCKED, .guest = off, .layer = w->image};
	*out = w->run;
	return QCOW_OK;
}

enum qcow_status qk_lookup(struct qcow_image *layer, qk_goff off, uint64_t len, bool may_block,
	struct qk_run *out, struct qcow_error *err)
{
	QK_ASSERT(L2, len != 0 && qk_in_range(off.v, len, layer->size));
	if (layer->is_raw) {
		lookup_raw(layer, off, len, out);
		return QCOW_OK;
	}
	struct walk w = {.image = layer, .off = off.v, .end = off.v + len, .may_block = may_block};
	return walk_range(&w, out, err);
}

enum qcow_status qk_lookup_past(struct qcow_image *layer, qk_goff off, uint64_t len,
	struct qk_run *out, struct qcow_error *err)
{
	QK_ASSERT(L2, len != 0 && !layer->is_raw && qk_in_range(off.v, len, INT64_MAX));
	struct walk w = {.image = layer, .off = off.v, .end = off.v + len, .may_block = true};
	return walk_range(&w, out, err);
}

enum qcow_status qk_lookup_writable(struct qcow_image *layer, qk_goff off, uint64_t len,
	bool may_block, struct qk_run *out, struct qcow_error *err)
{
	QK_ASSERT(L2, len != 0 && qk_in_range(off.v, len, layer->size));
	if (layer->is_raw) {
		lookup_raw(layer, off, len, out);
		return QCOW_OK;
	}
	struct walk w = {.image = layer,
		.off = off.v,
		.end = off.v + len,
		.may_block = may_block,
		.for_write = true};
	return walk_range(&w, out, err);
}
