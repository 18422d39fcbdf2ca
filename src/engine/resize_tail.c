/* SPDX-License-Identifier: MIT */
/*
 * resize_tail: L1 and L2 entries past the end of the disk. There are some after a shrink (those that it is to unlink), after
 * one that was cut short, and where the state of a virtual machine was applied with a snapshot.
 *
 *	      end						end of L1
 *	   ····|····|····|		|		|
 *	scrub ^  L2 entries of its table	whole L2 tables, by their L1 entries
 *
 * Both kinds of entries become 0, a flush passes, and then every cluster that they named has one reference less.
 */
#include "engine/resize_private.h"

#include <inttypes.h>

#include "base/mem.h"
#include "engine/group.h"
#include "engine/image.h"
#include "engine/lookup.h"
#include "engine/meta.h"
#include "engine/publish.h"
#include "engine/rw.h"
#include "engine/stage.h"
#include "engine/zero.h"
#include "format/l1l2.h"

#define WINDOW_BYTES 65536U /* of an L2 table */

/* ---- L2 tables, entry by entry ---- */

struct table_walk {
	struct qcow_image *image;
	uint64_t l1_index;
	uint64_t l2_off;
	uint32_t first; /* entry to begin with */
	/* Clusters [off, off + n) that an entry names; n > 0. */
	enum qcow_status (*visit)(
		struct qcow_image *image, uint64_t off, uint64_t n, struct qcow_error *err);
	uint64_t run_off, run_n; /* joined and not visited yet */
	uint8_t *window;
};

static enum qcow_status fail_l2(const struct table_walk *w, uint32_t index, uint64_t raw,
	unsigned finding, struct qcow_error *err)
{
	const struct qk_geometry *g = &w->image->geometry;
	uint64_t at = w->l2_off + (uint64_t)index * g->l2_entry_size;
	uint64_t guest = w->l1_index * g->l2_span + ((uint64_t)index << g->cluster_bits);
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, finding, at, guest,
		"L2 entry 0x%016" PRIx64 " at %" PRIu64 " for guest offset %" PRIu64 ": %s", raw,
		at, guest, qcow_finding_text(finding));
}

/* The clusters that an entry names, as in qk_group_unlinked. */
static struct qk_pair named_by(const struct qcow_image *image, const struct qk_l2_entry *e)
{
	unsigned bits = image->geometry.cluster_bits;
	if (qk_l2_has_host(e))
		return (struct qk_pair){e->host_off.v, image->geometry.data_file ? 0 : 1};
	if (e->type != QK_L2_COMPRESSED)
		return (struct qk_pair){0, 0};
	uint64_t first = e->host_off.v >> bits;
	uint64_t last = (e->host_off.v + e->compressed_bytes - 1) >> bits;
	return (struct qk_pair){first << bits, last - first + 1};
}

static enum qcow_status flush_run(struct table_walk *w, struct qcow_error *err)
{
	uint64_t n = w->run_n;
	w->run_n = 0;
	return n != 0 ? w->visit(w->image, w->run_off, n, err) : QCOW_OK;
}

static enum qcow_status take_entry(
	struct table_walk *w, uint32_t index, uint64_t raw, uint64_t bitmap, struct qcow_error *err)
{
	const struct qk_geometry *g = &w->image->geometry;
	uint64_t guest = w->l1_index * g->l2_span + ((uint64_t)index << g->cluster_bits);
	struct qk_l2_entry e = qk_l2_decode(g, raw, bitmap, (qk_goff){guest});
	struct qk_pair named = named_by(w->image, &e);
	if (e.finding == 0 && named.b != 0 && named.a >= w->image->file_size)
		e.finding = QCOW_FINDING_L2_ENTRY_BEYOND_FILE;
	if (e.finding != 0)
		return fail_l2(w, index, raw, e.finding, err);
	/* streams of neighbours may share a cluster: each has its own reference */
	if (named.b == 0)
		return QCOW_OK;
	if (w->run_n != 0 && named.a == w->run_off + w->run_n * g->cluster_size) {
		w->run_n += named.b;
		return QCOW_OK;
	}
	QK_TRY(flush_run(w, err));
	w->run_off = named.a;
	w->run_n = named.b;
	return QCOW_OK;
}

/* The table as the file has it: nothing of it is staged. */
static enum qcow_status walk_table(struct table_walk *w, struct qcow_error *err)
{
	const struct qk_geometry *g = &w->image->geometry;
	uint32_t per_window = (uint32_t)qk_min(WINDOW_BYTES, g->cluster_size) / g->l2_entry_size;
	for (uint32_t at = w->first; at < g->l2_entries;) {
		uint32_t n = (uint32_t)qk_min(per_window - at % per_window, g->l2_entries - at);
		QK_TRY(qcow_store_read_padded(w->image->store, w->window,
			(size_t)n * g->l2_entry_size, w->l2_off + (uint64_t)at * g->l2_entry_size,
			err));
		for (uint32_t i = 0; i < n; i++) {
			uint64_t raw = 0, bitmap = 0;
			qk_l2_load(g, w->window, i, &raw, &bitmap);
			if (raw != 0 || bitmap != 0)
				QK_TRY(take_entry(w, at + i, raw, bitmap, err));
		}
		at += n;
	}
	return flush_run(w, err);
}

/* ---- L1 ---- */

/* The first cluster past `end`, and where it has its place. */
static struct qk_guest_pos pos_past(const struct qcow_image *image, uint64_t end)
{
	uint64_t cluster_size = image->geometry.cluster_size;
	return qk_guest_pos(
		&image->geometry, (qk_goff){qk_div_up(end, cluster_size) * cluster_size});
}

static enum qcow_status load_l1(struct qcow_image *image, uint64_t index, struct qk_l1_entry *out,
	uint64_t *n, struct qcow_error *err)
{
	const _Atomic uint64_t *words = NULL;
	QK_TRY(qk_meta_l1(image->meta, true, &words, n, err));
	uint64_t raw = index < *n ? qk_l1_word(words, index) : 0;
	*out = qk_l1_decode(&image->geometry, raw);
	if (out->finding == 0 && out->l2_off.v >= image->file_size)
		out->finding = QCOW_FINDING_L1_ENTRY_BEYOND_FILE;
	if (out->finding == 0)
		return QCOW_OK;
	uint64_t guest = index * image->geometry.l2_span;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, out->finding, image->l1_off + index * sizeof(raw),
		guest, "L1 entry %" PRIu64 " (0x%016" PRIx64 ") for guest offset %" PRIu64 ": %s",
		index, raw, guest, qcow_finding_text(out->finding));
}

static enum qcow_status look(
	struct qcow_image *image, uint64_t off, uint64_t n, struct qcow_error *err)
{
	(void)image;
	(void)off;
	(void)n;
	(void)err;
	return QCOW_OK;
}

enum qcow_status qk_resize_judge_past(struct qcow_image *image, uint64_t end,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	struct qk_guest_pos pos = pos_past(image, end);
	uint8_t *window QK_AUTO_FREE = qk_malloc(WINDOW_BYTES, 1);
	uint64_t n = pos.l1_index + 1;
	if (window == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t i = pos.l1_index; i < n; i++) {
		struct qk_l1_entry e;
		QK_TRY(load_l1(image, i, &e, &n, err));
		if (e.l2_off.v == 0)
			continue;
		struct table_walk w = {.image = image,
			.l1_index = i,
			.l2_off = e.l2_off.v,
			.first = i == pos.l1_index ? pos.l2_index : 0,
			.visit = look,
			.window = window};
		QK_TRY(walk_table(&w, err));
		QK_TRY(qk_resize_step(progress, 0, 0, err));
	}
	return QCOW_OK;
}

/* ---- whole tables ---- */

static enum qcow_status unlink_run(
	struct qcow_image *image, uint64_t off, uint64_t n, struct qcow_error *err)
{
	return qk_stage_unlink(image->rw->stage, off, n, err);
}

/* Stage that L1 has nothing at `index` any more. What fails behind the first step is a leak. */
static enum qcow_status unlink_table(struct table_walk *w, struct qcow_error *err)
{
	struct qcow_image *image = w->image;
	QK_TRY(qk_stage_l1(image->rw->stage, w->l1_index, 0, w->l2_off, err));
	qk_meta_l1_set(image->meta, w->l1_index, 0);
	return walk_table(w, err);
}

static enum qcow_status unlink_tables(
	struct qcow_image *image, uint64_t first, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	uint8_t *window QK_AUTO_FREE = qk_malloc(WINDOW_BYTES, 1);
	uint64_t n = first + 1;
	if (window == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t i = first; i < n; i++) {
		struct qk_l1_entry e;
		QK_TRY(load_l1(image, i, &e, &n, err));
		if (e.l2_off.v == 0)
			continue;
		struct table_walk w = {.image = image,
			.l1_index = i,
			.l2_off = e.l2_off.v,
			.visit = unlink_run,
			.window = window};
		QK_TRY(unlink_table(&w, err));
		if (qk_stage_is_full(rw->stage) || qk_space_wants_publish(rw->space))
			QK_TRY(qk_publish_flush(rw->publish, err));
	}
	return QCOW_OK;
}

/* ---- the table that the end lies in ---- */

/* Entries [first, first + n) of a group: is one of them not 0? */
static enum qcow_status has_entries(struct qcow_image *image, uint64_t l2_off, uint32_t first,
	uint32_t n, bool *out, struct qcow_error *err)
{
	uint32_t n_words = qk_entry_words(&image->geometry);
	struct qk_slice slice;
	do {
		*out = false;
		QK_TRY(qk_meta_slice(image->meta, l2_off, first, true, &slice, err));
		for (uint32_t i = 0; i < n * n_words; i++)
			*out = *out ||
			       qk_slice_word(&slice, (first - slice.first) * n_words + i) != 0;
	} while (!qk_slice_is_whole(&slice));
	return QCOW_OK;
}

static enum qcow_status unlink_entries(
	struct qk_group *group, uint32_t first, uint32_t n, struct qcow_error *err)
{
	static const struct qk_l2_entry none = {.type = QK_L2_UNALLOCATED};
	struct qk_stage_change change;
	QK_TRY(qk_group_judge(group, first, n, err));
	qk_group_change(group, &change, first, n);
	for (uint32_t i = first; i < first + n; i++) {
		struct qk_l2_entry was = qk_group_entry(group, i);
		struct qk_pair unlinked = qk_group_unlinked(group, &was);
		qk_group_put(group, &change, i, &none);
		if (unlinked.b != 0)
			change.unlinked[change.n_unlinked++] = unlinked;
	}
	return qk_group_commit(group, &change, err);
}

/* Entries from `pos` to the end of its table. */
static enum qcow_status unlink_rest(
	struct qcow_image *image, const struct qk_guest_pos *pos, struct qcow_error *err)
{
	const struct qk_geometry *g = &image->geometry;
	uint32_t per_group = qk_stage_entries(g);
	for (uint32_t at = pos->l2_index; at < g->l2_entries;) {
		uint32_t n = per_group - at % per_group;
		qk_goff guest = {pos->l1_index * g->l2_span + ((uint64_t)at << g->cluster_bits)};
		struct qk_group group;
		struct qk_l1_entry e;
		bool has = false;
		uint64_t n_l1 = 0;
		QK_TRY(load_l1(image, pos->l1_index, &e, &n_l1, err));
		if (e.l2_off.v == 0)
			break;
		QK_TRY(has_entries(image, e.l2_off.v, at, n, &has, err));
		if (has) {
			QK_TRY(qk_group_lock(image, guest, &group, err));
			enum qcow_status status = unlink_entries(&group, at % per_group, n, err);
			qk_group_unlock(&group);
			QK_TRY(status);
		}
		at += n;
	}
	return QCOW_OK;
}

enum qcow_status qk_resize_unlink_past(
	struct qcow_image *image, uint64_t end, struct qcow_error *err)
{
	struct qk_guest_pos pos = pos_past(image, end);
	/* nothing is staged: what the file has is what there is */
	QK_TRY(qk_publish_flush(image->rw->publish, err));
	if (pos.l2_index != 0)
		QK_TRY(unlink_rest(image, &pos, err));
	QK_TRY(unlink_tables(image, pos.l1_index + (pos.l2_index != 0), err));
	return qk_publish_flush(image->rw->publish, err);
}

/* ---- the cluster that the end lies in ---- */

enum qcow_status qk_resize_scrub(
	struct qcow_image *image, uint64_t end, bool own_only, struct qcow_error *err)
{
	uint64_t off = end, cluster_size = image->geometry.cluster_size;
	uint64_t stop = qk_min(qk_div_up(end, cluster_size) * cluster_size, image->size);
	while (off < stop) {
		struct qk_run run;
		QK_TRY(qk_lookup(image, (qk_goff){off}, stop - off, true, &run, err));
		bool holds = run.kind == QK_RUN_PLAIN || run.kind == QK_RUN_COMPRESSED;
		if (holds || (run.kind == QK_RUN_UNALLOCATED && !own_only))
			QK_TRY(qk_zero(image, off, run.len, 0, err));
		off += run.len;
	}
	return QCOW_OK;
}
