/* SPDX-License-Identifier: MIT */
/*
 * amend_zeros: entries with the zero flag become such as version 2 has, in the L2 tables of every tree.
 *
 *	entry				nothing lies below		a backing file
 *	zero				0				a new cluster of zeros
 *	zero, with a host cluster	0, the cluster is unlinked	zeros in it, if these trees alone have it; else a new one
 *
 * Tables stay where they are: what a table reads does not change, so it may be shared by any number of trees. What an entry
 * names has one reference for each of them.
 *
 *	zeros, refcounts || changed sectors of the table || references that were taken away
 *
 * How many trees have a table is counted, not believed of its refcount, which may be too high: a table whose refcount is
 * another refuses the whole before anything changes.
 *
 * Memory: a table, and 8 bytes for each L1 entry in use, at most 64 MiB. A table is read once, however many trees share it.
 */
#include "engine/amend.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/control.h"
#include "engine/fresh.h"
#include "engine/image.h"
#include "engine/look.h"
#include "engine/meta.h"
#include "engine/rw.h"
#include "engine/snapshot_int.h"
#include "engine/space.h"
#include "format/l1l2.h"

#define MAX_TABLES (UINT64_C(8) << 20)
#define IS_ACTIVE  UINT64_C(1) /* beside the offset of a table: the active tree has it */

struct expand {
	struct qcow_image *image;
	struct qk_space *space; /* its refcounts */
	const struct qcow_progress *progress;
	uint8_t *table; /* a cluster */
	uint8_t *dirty; /* of its sectors */
	uint64_t *dropped; /* clusters that lose `references`, one an entry at most */
	uint32_t n_dropped;
	struct qk_fresh fresh; /* of one table */
	uint64_t references; /* trees that have the table */
	bool is_active;
	uint64_t done; /* of n_tables */
	uint64_t *
		tables; /* offsets of the L2 tables of all trees, IS_ACTIVE beside them, ascending */
	uint64_t n_tables;
};

static enum qcow_status fail_entry(const struct expand *x, uint64_t l2_off, uint32_t i,
	unsigned finding, struct qcow_error *err)
{
	uint64_t at = l2_off + i * sizeof(uint64_t);
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, finding, at, QCOW_NO_OFFSET,
		"L2 entry 0x%016" PRIx64 " at %" PRIu64 ": %s",
		qk_load64(x->table + i * sizeof(uint64_t)), at, qcow_finding_text(finding));
}

/* ---- one entry ---- */

static enum qcow_status write_zeros(struct expand *x, uint64_t off, struct qcow_error *err)
{
	uint64_t len = x->image->geometry.cluster_size;
	QK_TRY(qk_space_check_overlap(x->image->rw->space, QK_SPACE_DATA, off, len, err));
	return qcow_store_zero(x->image->store, off, len, 0, err);
}

/* A new cluster of zeros, with a reference for each tree. */
static enum qcow_status take_zeros(struct expand *x, uint64_t *off, struct qcow_error *err)
{
	QK_TRY(qk_fresh_take(&x->fresh, 1, off, err));
	for (uint64_t i = 1; i < x->references; i++)
		QK_TRY(qk_space_raise(x->image->rw->space, *off, 1, err));
	return write_zeros(x, *off, err);
}

/* Entries with a layer below, which must not show. */
static enum qcow_status hide(
	struct expand *x, const struct qk_l2_entry *e, uint64_t *raw, struct qcow_error *err)
{
	uint64_t references = 0, off = 0;
	if (qk_l2_has_host(e))
		QK_TRY(qk_space_refcount(x->image->rw->space, e->host_off.v, &references, err));
	if (references == x->references && references != 0) {
		*raw &= ~QK_FLAG_ZERO;
		return write_zeros(x, e->host_off.v, err);
	}
	QK_TRY(take_zeros(x, &off, err));
	*raw = off | (x->is_active && x->references == 1 ? QK_FLAG_COPIED : 0);
	if (qk_l2_has_host(e))
		x->dropped[x->n_dropped++] = e->host_off.v;
	return QCOW_OK;
}

static enum qcow_status expand_entry(
	struct expand *x, uint64_t l2_off, uint32_t i, struct qcow_error *err)
{
	const struct qcow_image *image = x->image;
	uint8_t *p = x->table + i * sizeof(uint64_t);
	uint64_t raw = qk_load64(p);
	struct qk_l2_entry e = qk_l2_decode(&image->geometry, raw, 0, (qk_goff){0});
	if (e.finding == 0 && qk_l2_has_host(&e) && e.host_off.v >= image->file_size)
		e.finding = QCOW_FINDING_L2_ENTRY_BEYOND_FILE;
	if (e.finding != 0)
		return fail_entry(x, l2_off, i, e.finding, err);
	if (e.type != QK_L2_ZERO && e.type != QK_L2_ZERO_ALLOC)
		return QCOW_OK;
	if (image->rw->has_below) {
		QK_TRY(hide(x, &e, &raw, err));
	} else {
		raw = 0;
		if (qk_l2_has_host(&e))
			x->dropped[x->n_dropped++] = e.host_off.v;
	}
	qk_store64(p, raw);
	x->dirty[i * sizeof(raw) / QK_SECTOR] = 1;
	return QCOW_OK;
}

/* ---- one table ---- */

static enum qcow_status write_sectors(struct expand *x, uint64_t l2_off, struct qcow_error *err)
{
	uint64_t words[QK_SECTOR / sizeof(uint64_t)];
	for (uint64_t at = 0; at < x->image->geometry.cluster_size; at += QK_SECTOR) {
		if (x->dirty[at / QK_SECTOR] == 0)
			continue;
		QK_TRY(qk_space_check_overlap(
			x->image->rw->space, QK_SPACE_L2, l2_off + at, QK_SECTOR, err));
		memcpy(words, x->table + at, sizeof(words));
		QK_TRY(qk_meta_write(
			x->image->meta, l2_off + at, words, QK_SECTOR / sizeof(uint64_t), err));
	}
	return QCOW_OK;
}

/* The entries are stable: nothing names these any more. What cannot be dropped is a leak. */
static void drop(struct expand *x)
{
	for (uint32_t i = 0; i < x->n_dropped; i++)
		for (uint64_t k = 0; k < x->references; k++)
			if (qk_space_drop(x->image->rw->space, x->dropped[i], 1, NULL) != QCOW_OK)
				return;
}

/* What was taken for a table that stays as it is. */
static void give_back(struct expand *x)
{
	for (uint32_t i = 0; i < x->fresh.taken.n; i++) {
		const struct qk_space_run *run = &x->fresh.taken.v[i];
		for (uint64_t k = 1; k < x->references; k++)
			if (qk_space_drop(x->image->rw->space, run->off, run->n, NULL) != QCOW_OK)
				return;
	}
	qk_fresh_give_back(&x->fresh, NULL);
}

static enum qcow_status replace(struct expand *x, uint64_t l2_off, struct qcow_error *err)
{
	enum qcow_status status = QCOW_OK;
	for (uint32_t i = 0; i < x->image->geometry.l2_entries && status == QCOW_OK; i++)
		status = expand_entry(x, l2_off, i, err);
	if (status == QCOW_OK)
		status = qk_control_barrier(x->image, err);
	if (status != QCOW_OK) {
		if (!qk_control_is_fenced(x->image))
			give_back(x);
		return status;
	}
	/* from here on the disk may name it all */
	QK_TRY(write_sectors(x, l2_off, err));
	QK_TRY(qk_control_barrier(x->image, err));
	drop(x);
	return QCOW_OK;
}

static bool has_zeros(const struct expand *x)
{
	for (uint32_t i = 0; i < x->image->geometry.l2_entries; i++) {
		uint64_t raw = qk_load64(x->table + i * sizeof(raw));
		if ((raw & (QK_FLAG_ZERO | QK_FLAG_COMPRESSED)) == QK_FLAG_ZERO)
			return true;
	}
	return false;
}

static enum qcow_status tell(struct expand *x, struct qcow_error *err)
{
	const struct qcow_progress *p = x->progress;
	if (p == NULL)
		return QCOW_OK;
	if (p->cancelled != NULL && p->cancelled(p->ctx))
		return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
	if (p->report != NULL)
		p->report(p->ctx, x->done, x->n_tables);
	return QCOW_OK;
}

static enum qcow_status expand_table(struct expand *x, uint64_t l2_off, struct qcow_error *err)
{
	const struct qk_geometry *g = &x->image->geometry;
	QK_TRY(tell(x, err));
	QK_TRY(qcow_store_read_padded(
		x->image->store, x->table, (size_t)g->cluster_size, l2_off, err));
	if (!has_zeros(x))
		return QCOW_OK;
	memset(x->dirty, 0, (size_t)(g->cluster_size / QK_SECTOR));
	x->n_dropped = 0;
	qk_fresh_init(&x->fresh, x->image, QK_SPACE_DATA);
	enum qcow_status status = replace(x, l2_off, err);
	qk_fresh_release(&x->fresh);
	return status;
}

/* ---- all trees ---- */

static int by_offset(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

static enum qcow_status gather_tree(
	struct expand *x, uint64_t l1_off, uint64_t n, uint64_t flag, struct qcow_error *err)
{
	uint64_t *l1 QK_AUTO_FREE = NULL;
	QK_TRY(qk_l1_read(x->image, l1_off, n, n, &l1, err));
	for (uint64_t i = 0; i < n; i++)
		if ((l1[i] & QK_OFFSET_MASK) != 0)
			x->tables[x->n_tables++] = (l1[i] & QK_OFFSET_MASK) | flag;
	return QCOW_OK;
}

/* `each` for every table once; x->references and x->is_active are set. */
static enum qcow_status each_table(struct expand *x,
	enum qcow_status (*each)(struct expand *x, uint64_t l2_off, struct qcow_error *err),
	struct qcow_error *err)
{
	uint64_t n = 0;
	for (uint64_t i = 0; i < x->n_tables; i += n) {
		uint64_t off = x->tables[i] & ~IS_ACTIVE;
		for (n = 1; i + n < x->n_tables; n++)
			if ((x->tables[i + n] & ~IS_ACTIVE) != off)
				break;
		x->references = n;
		x->is_active = (x->tables[i + n - 1] & IS_ACTIVE) != 0;
		x->done = i;
		QK_TRY(each(x, off, err));
	}
	return QCOW_OK;
}

/* It has as many references as trees have it. */
static enum qcow_status judge_count(struct expand *x, uint64_t l2_off, struct qcow_error *err)
{
	uint64_t stored = 0;
	QK_TRY(qk_space_refcount(x->space, l2_off, &stored, err));
	if (stored == x->references)
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_UNSUPPORTED, 0, l2_off, QCOW_NO_OFFSET,
		"the L2 table at %" PRIu64 " has a refcount of %" PRIu64 " and %" PRIu64
		" references: repair the image first",
		l2_off, stored, x->references);
}

static enum qcow_status gather(
	struct expand *x, const struct qk_snaps *snaps, struct qcow_error *err)
{
	const struct qcow_image *image = x->image;
	uint64_t total = image->l1_entries;
	for (uint32_t i = 0; i < snaps->n; i++)
		total += snaps->v[i].l1_entries;
	if (total > MAX_TABLES)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"all L1 tables together have %" PRIu64 " entries, more than %" PRIu64,
			total, MAX_TABLES);
	x->tables = qk_malloc(qk_max(total, 1), sizeof(*x->tables));
	if (x->tables == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(gather_tree(x, image->l1_off, image->l1_entries, IS_ACTIVE, err));
	for (uint32_t i = 0; i < snaps->n; i++)
		QK_TRY(gather_tree(x, snaps->v[i].l1_off.v, snaps->v[i].l1_entries, 0, err));
	qsort(x->tables, (size_t)x->n_tables, sizeof(*x->tables), by_offset);
	return QCOW_OK;
}

/* What refuses the whole before anything changes. */
static enum qcow_status judge_all(struct expand *x, struct qcow_error *err)
{
	struct qk_snaps snaps = {0};
	enum qcow_status status = qk_snaps_load(x->image, &snaps, err);
	if (status == QCOW_OK)
		status = gather(x, &snaps, err);
	qk_snaps_release(&snaps);
	QK_TRY(status);
	return each_table(x, judge_count, err);
}

static enum qcow_status expand_all(struct expand *x, struct qcow_error *err)
{
	QK_TRY(judge_all(x, err));
	QK_TRY(each_table(x, expand_table, err));
	x->done = x->n_tables;
	return tell(x, err);
}

enum qcow_status qk_amend_zeros_judge(struct qcow_image *image, struct qcow_error *err)
{
	struct expand x = {.image = image};
	struct qk_look look;
	enum qcow_status status = QCOW_OK;
	QK_TRY(qk_look_begin(&look, image, QCOW_PROVE_AUTO, err));
	x.space = look.space;
	if (x.space != NULL)
		status = judge_all(&x, err);
	free(x.tables);
	return qk_look_end(&look, status, err);
}

enum qcow_status qk_amend_zeros(
	struct qcow_image *image, const struct qcow_progress *progress, struct qcow_error *err)
{
	const struct qk_geometry *g = &image->geometry;
	struct expand x = {.image = image, .space = image->rw->space, .progress = progress};
	x.table = qk_malloc((size_t)g->cluster_size, 1);
	x.dirty = qk_malloc((size_t)(g->cluster_size / QK_SECTOR), 1);
	x.dropped = qk_malloc(g->l2_entries, sizeof(*x.dropped));
	enum qcow_status status = x.table == NULL || x.dirty == NULL || x.dropped == NULL
					  ? QK_FAIL_NOMEM(err)
					  : expand_all(&x, err);
	free(x.table);
	free(x.dirty);
	free(x.dropped);
	free(x.tables);
	return status;
}
