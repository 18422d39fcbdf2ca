/* SPDX-License-Identifier: MIT */
/*
 * table: see table.h. A new table is written whole before readers or L1 know of it: zeros, or the copy of a shared
 * one. What changes in it afterwards is staged like any other entry, and the publication writes those
 * sectors before the barrier behind which it writes the L1 entry.
 *
 * Invariants: K1 an L1 entry in memory with COPIED names a table with one reference; it never changes again while
 * the image is open. Locking: tables_lock, across I/O; who finds COPIED takes none.
 * Specification: "Cluster mapping".
 */
#include "engine/table.h"

#include <inttypes.h>

#include "base/mem.h"
#include "engine/image.h"
#include "engine/locks.h"
#include "engine/meta.h"
#include "engine/publish.h"
#include "engine/rw.h"
#include "engine/space.h"
#include "engine/stage.h"
#include "format/l1l2.h"

enum qcow_status qk_table_take(struct qcow_image *image, const struct qk_space_want *want,
	struct qk_space_run *out, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	enum qcow_status status = qk_space_take(rw->space, want, out, err);
	if (status == QCOW_E_NOSPC && qk_stage_has_unlinked(rw->stage)) {
		QK_TRY(qk_publish_flush(rw->publish, err));
		status = qk_space_take(rw->space, want, out, err);
	}
	if (status == QCOW_OK)
		qk_rw_follow_size(image);
	return status;
}

static enum qcow_status fail_entry(const struct qcow_image *image, uint64_t index, uint64_t raw,
	unsigned finding, struct qcow_error *err)
{
	uint64_t guest = index * image->geometry.l2_span;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, finding, image->l1_off + index * sizeof(raw), guest,
		"L1 entry %" PRIu64 " (0x%016" PRIx64 ") for guest offset %" PRIu64 ": %s", index,
		raw, guest, qcow_finding_text(finding));
}

/* The L1 entry; an index past the table answers 0. */
static enum qcow_status load_entry(struct qcow_image *image, uint64_t index,
	struct qk_l1_entry *out, bool *is_past, struct qcow_error *err)
{
	const _Atomic uint64_t *words = NULL;
	uint64_t n = 0;
	QK_TRY(qk_meta_l1(image->meta, true, &words, &n, err));
	*is_past = index >= n;
	uint64_t raw = *is_past ? 0 : qk_l1_word(words, index);
	*out = qk_l1_decode(&image->geometry, raw);
	if (out->finding == 0 && out->l2_off.v >= image->file_size)
		out->finding = QCOW_FINDING_L1_ENTRY_BEYOND_FILE;
	return out->finding == 0 ? QCOW_OK : fail_entry(image, index, raw, out->finding, err);
}

/* ---- the content of a new table ---- */

/* One reference is not proven for anything that two tables name: nothing stays COPIED. */
static void clear_copied(const struct qk_geometry *g, uint8_t *table)
{
	for (uint32_t i = 0; i < g->l2_entries; i++) {
		uint64_t raw = 0, bitmap = 0;
		qk_l2_load(g, table, i, &raw, &bitmap);
		qk_l2_store(g, table, i, raw & ~QK_FLAG_COPIED, bitmap);
	}
}

/* Write the table to `run`: a copy of the one at `old`, or zeros where that is 0. */
static enum qcow_status write_table(struct qcow_image *image, const struct qk_space_run *run,
	uint64_t old, struct qcow_error *err)
{
	const struct qk_geometry *g = &image->geometry;
	qk_meta_forget(image->meta, run->off);
	if (old == 0 && run->reads_zero)
		return QCOW_OK;
	uint8_t *table QK_AUTO_FREE = qk_calloc(1, (size_t)g->cluster_size);
	if (table == NULL)
		return QK_FAIL_NOMEM(err);
	if (old != 0) {
		QK_TRY(qcow_store_read_padded(
			image->store, table, (size_t)g->cluster_size, old, err));
		/* in a data file nothing is shared, and COPIED alone names its first cluster */
		if (!g->data_file)
			clear_copied(g, table);
	}
	QK_TRY(qk_space_check_overlap(
		image->rw->space, QK_SPACE_L2, run->off, g->cluster_size, err));
	return qcow_store_write(image->store, table, (size_t)g->cluster_size, run->off, err);
}

/* A new table in place of `old` (0: none). The caller holds tables_lock. */
static enum qcow_status make_table(struct qcow_image *image, uint64_t index, uint64_t old,
	uint64_t *l2_off, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	const struct qk_space_want want = {.n = 1, .kind = QK_SPACE_L2};
	struct qk_space_run run = {0};
	QK_TRY(qk_table_take(image, &want, &run, err));
	enum qcow_status status = write_table(image, &run, old, err);
	if (status == QCOW_OK)
		status = qk_stage_l1(
			rw->stage, index, qk_l1_encode((qk_hoff){run.off}, true), old, err);
	if (status != QCOW_OK) {
		qk_space_give_back(rw->space, run.off, run.n);
		return status;
	}
	qk_meta_l1_set(image->meta, index, qk_l1_encode((qk_hoff){run.off}, true));
	*l2_off = run.off;
	return QCOW_OK;
}

/* COPIED is clear and the table has one reference all the same: put it right. */
static enum qcow_status adopt_table(
	struct qcow_image *image, uint64_t index, uint64_t l2_off, struct qcow_error *err)
{
	uint64_t raw = qk_l1_encode((qk_hoff){l2_off}, true);
	QK_TRY(qk_stage_l1(image->rw->stage, index, raw, 0, err));
	qk_meta_l1_set(image->meta, index, raw);
	return QCOW_OK;
}

/* The caller holds tables_lock. */
static enum qcow_status get_locked(
	struct qcow_image *image, uint64_t index, uint64_t *l2_off, struct qcow_error *err)
{
	struct qk_l1_entry e;
	bool is_past = false;
	uint64_t references = 0;
	QK_TRY(load_entry(image, index, &e, &is_past, err));
	if (is_past)
		QK_TRY(qk_publish_grow_l1(image->rw->publish,
			qk_geometry_l1_entries(&image->geometry, image->size), err));
	if (e.l2_off.v == 0)
		return make_table(image, index, 0, l2_off, err);
	*l2_off = e.l2_off.v;
	if (e.copied)
		return QCOW_OK;
	QK_TRY(qk_space_refcount(image->rw->space, e.l2_off.v, &references, err));
	if (references == 1 && qk_space_is_proven(image->rw->space))
		return adopt_table(image, index, e.l2_off.v, err);
	return make_table(image, index, e.l2_off.v, l2_off, err);
}

enum qcow_status qk_table_get(
	struct qcow_image *image, uint64_t index, uint64_t *l2_off, struct qcow_error *err)
{
	struct qk_l1_entry e;
	bool is_past = false;
	QK_TRY(load_entry(image, index, &e, &is_past, err));
	*l2_off = e.l2_off.v;
	if (QK_LIKELY(e.copied && e.l2_off.v != 0))
		return QCOW_OK;
	qk_lock(&image->rw->tables_lock);
	enum qcow_status status = get_locked(image, index, l2_off, err);
	qk_unlock(&image->rw->tables_lock);
	return status;
}
