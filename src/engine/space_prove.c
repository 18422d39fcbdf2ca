/* SPDX-License-Identifier: MIT */
/*
 * space_prove: every reference to a host cluster counted, against the refcounts that are stored. A refcount below its
 * references, or a structure that something else lies on, stops writing: such a cluster would be handed
 * out, or overwritten in place, while somebody needs it. So does COPIED on a cluster with several references.
 * COPIED clear at one reference is nobody's business here.
 *
 * Clusters that nothing refers to (what a killed writer had reserved or taken) are free again, in memory, and on the
 * disk with the first publication: where the image is without damage and all that might refer to clusters is
 * known.
 *
 * Nor is an image written that has entries past the end of the file: it would grow over them, and what is an error
 * now would read as zeros, or as what somebody else has put there.
 *
 * Memory: 34 MiB for the counters, as far as there are clusters (17 million at a time), 2 MiB for the set of L2 tables,
 * whatever the image's size.
 */
#include "engine/space_census.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "format/l1l2.h"
#include "format/refcounts.h"

#define CENSUS_BYTES QK_MIB(34)
#define L2SET_BYTES  QK_MIB(2)
#define SMALL_TABLES QK_MIB(8) /* L1 and L2 tables that are always counted at open */

/* ---- counting ---- */

static void note(void *ctx, const struct qcow_finding *f)
{
	struct qk_space_census *c = ctx;

	c->has_damage = c->has_damage || f->severity == QCOW_SEVERITY_CORRUPTION;
	switch (f->id) {
	case QCOW_FINDING_L1_ENTRY_BEYOND_FILE:
	case QCOW_FINDING_L2_ENTRY_BEYOND_FILE:
	case QCOW_FINDING_COMPRESSED_BEYOND_FILE:
		qk_space_note(&c->beyond, f);
		break;
	case QCOW_FINDING_TABLE_READ_FAILED:
		c->has_unread_tables = true;
		break;
	default:
		break;
	}
}

enum qcow_status qk_space_census_init(struct qk_space_census *c, struct qk_space *sp,
	const struct qk_refs_watch *watch, struct qcow_error *err)
{
	*c = (struct qk_space_census){.sp = sp, .header = sp->header};
	c->audit = (struct qk_audit){.store = sp->store,
		.header = &c->header,
		.ext = sp->ext,
		.geometry = sp->g,
		.file_size = sp->open_size,
		.report = note,
		.report_ctx = c};
	c->n_clusters = qk_audit_end(&c->audit) >> sp->g->cluster_bits;
	struct qk_refs_request q = {.audit = &c->audit,
		.census = &c->census,
		.memory_bytes = L2SET_BYTES,
		.watch = watch};
	QK_TRY(qk_refs_init(&c->refs, &q, err));
	return qk_census_init(&c->census, CENSUS_BYTES, c->n_clusters, err);
}

void qk_space_census_release(struct qk_space_census *c)
{
	qk_refs_release(&c->refs);
	qk_census_release(&c->census);
}

/* Clusters [lo, census.hi). Never quiet: a table that cannot be read must be noticed in every pass. */
static enum qcow_status count(struct qk_space_census *c, uint64_t lo, struct qcow_error *err)
{
	qk_census_begin(&c->census, lo, c->n_clusters, false);
	QK_TRY(qk_refs_count(&c->refs, err));
	if (!c->census.need_wide)
		return QCOW_OK;
	qk_census_begin(&c->census, lo, c->n_clusters, true);
	return qk_refs_count(&c->refs, err);
}

enum qcow_status qk_space_census_run(struct qk_space_census *c,
	enum qcow_status (*pass)(void *ctx, struct qcow_error *err), void *ctx,
	struct qcow_error *err)
{
	uint64_t lo = 0;

	while (lo < c->n_clusters) {
		QK_TRY(count(c, lo, err));
		QK_TRY(qk_space_noted_error(&c->beyond, err));
		if (c->has_unread_tables)
			return QK_FAIL(err, c->audit.first_failure.status,
				"references cannot be counted: %s", c->audit.first_failure.message);
		QK_TRY(pass(ctx, err));
		lo = c->census.hi;
	}
	return QCOW_OK;
}

enum qcow_status qk_space_census_each(struct qk_space_census *c,
	enum qcow_status (*each)(
		void *ctx, uint64_t cluster, uint64_t word, struct qcow_error *err),
	void *ctx, struct qcow_error *err)
{
	size_t n = 0;
	const uint64_t *keys = qk_census_sorted(&c->census, &n);

	for (size_t k = 0; k < n; k++) {
		const uint8_t *page = qk_census_find(&c->census, keys[k]);
		for (uint64_t i = 0; i <= c->census.page_mask; i++) {
			uint64_t word = qk_census_load(&c->census, page, i);
			uint64_t cluster = (keys[k] << c->census.page_shift) + i;
			if ((word & QK_CENSUS_WIDE_COUNT) != 0 && cluster >= c->census.lo &&
				cluster < c->census.hi)
				QK_TRY(each(ctx, cluster, word, err));
		}
	}
	return QCOW_OK;
}

/* ---- judging ---- */

enum qcow_status qk_space_census_judge(
	const struct qk_space *sp, uint64_t cluster, uint64_t word, struct qcow_error *err)
{
	uint64_t refs = word & QK_CENSUS_WIDE_COUNT;
	uint64_t off = cluster << sp->g->cluster_bits;

	if ((word & QK_CENSUS_WIDE(QK_CENSUS_OVERLAP)) != 0)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_METADATA_OVERLAP, off,
			QCOW_NO_OFFSET,
			"not opened for writing: two structures share the cluster at %" PRIu64,
			off);
	if (refs > 1 && (word & QK_CENSUS_WIDE(QK_CENSUS_COPIED)) != 0)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_COPIED_WRONG, off,
			QCOW_NO_OFFSET,
			"not opened for writing: COPIED is set for the cluster at %" PRIu64
			", which has %" PRIu64 " references",
			off, refs);
	return QCOW_OK;
}

/* The block that counts `cluster`, pinned until the next one is; NULL where there is none. */
static enum qcow_status turn_to(struct qk_space_census *c, uint64_t cluster, struct qcow_error *err)
{
	struct qk_space *sp = c->sp;
	uint64_t idx = cluster >> sp->g->rb_bits;

	if (c->block != NULL && c->block->idx == idx)
		return QCOW_OK;
	if (c->block != NULL)
		qk_refblock_put(c->block);
	c->block = NULL;
	if (idx >= sp->table_entries || sp->table[idx] == 0)
		return QCOW_OK;
	return qk_refblock_get(sp, idx, &c->block, err);
}

static enum qcow_status compare(struct qk_space_census *c, uint64_t cluster, uint64_t word,
	uint64_t stored, struct qcow_error *err)
{
	uint64_t refs = word & QK_CENSUS_WIDE_COUNT;
	uint64_t off = cluster << c->sp->g->cluster_bits;

	if (refs == 0)
		return QCOW_OK;
	QK_TRY(qk_space_census_judge(c->sp, cluster, word, err));
	if (stored >= refs)
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_REFCOUNT_TOO_LOW, off, QCOW_NO_OFFSET,
		"not opened for writing: the cluster at %" PRIu64 " has refcount %" PRIu64
		" and %" PRIu64 " references",
		off, stored, refs);
}

/* What the counters of some clusters say. */
struct verdict {
	bool is_bad, has_leaks, has_free;
};

/* n narrow counters and the refcounts that are stored, none of more than 16 bits. */
static struct verdict judge_counters(const uint16_t *counters, const uint64_t *stored, uint64_t n)
{
	uint16_t bad = 0, leaks = 0, is_free = 0;

	for (uint64_t i = 0; i < n; i++) {
		uint16_t is = (uint16_t)stored[i], refs = counters[i] & QK_CENSUS_COUNT_MASK;
		uint16_t is_shared = refs > 1, is_copied = (counters[i] & QK_CENSUS_COPIED) != 0;
		bad |= (uint16_t)((counters[i] & QK_CENSUS_OVERLAP) | (is_shared & is_copied) |
				  (is < refs));
		leaks |= (uint16_t)((refs == 0) & (is != 0));
		is_free |= is == 0;
	}
	return (struct verdict){bad != 0, leaks != 0, is_free != 0};
}

/* Clusters [first, first + n) are in use: nobody need look for a free one where all of a block are. */
static void note_full(struct qk_space_census *c, uint64_t first, uint64_t n)
{
	struct qk_space *sp = c->sp;
	uint64_t idx = first >> sp->g->rb_bits;

	c->n_full = (c->full_idx == idx ? c->n_full : 0) + n;
	c->full_idx = idx;
	if (c->n_full == sp->g->rb_entries)
		sp->full[idx / 64] |= UINT64_C(1) << (idx % 64);
}

/* Clusters [first, first + n) of one page and one refcount block. */
static enum qcow_status compare_part(struct qk_space_census *c, const uint8_t *page, uint64_t first,
	uint64_t n, bool *has_leaks, struct qcow_error *err)
{
	uint64_t at = first & c->census.page_mask;

	QK_TRY(turn_to(c, first, err));
	if (c->block != NULL)
		qk_refcounts_load(c->sp->g, c->block->bytes, first & (c->sp->g->rb_entries - 1), n,
			c->stored);
	else
		memset(c->stored, 0, sizeof(c->stored));
	struct verdict v = {true, true, true};
	if (!c->census.wide && qk_refcounts_all(c->stored, n) <= UINT16_MAX)
		v = judge_counters((const uint16_t *)(const void *)page + at, c->stored, n);
	*has_leaks = v.has_leaks && c->block != NULL;
	if (!v.has_free && !v.has_leaks)
		note_full(c, first, n);
	for (uint64_t i = 0; v.is_bad && i < n; i++)
		QK_TRY(compare(
			c, first + i, qk_census_load(&c->census, page, at + i), c->stored[i], err));
	return QCOW_OK;
}

/* ---- leaks ---- */

static bool is_all_known(const struct qk_space *sp)
{
	struct qk_ext ext;
	size_t at = 0;
	bool has_dead_bitmaps = sp->ext->has_bitmaps &&
				(sp->header.autoclear & QCOW_AUTOCLEAR_BITMAPS) == 0;

	while (qk_ext_next(sp->ext, &at, &ext)) {
		if (ext.type != QK_EXT_BACKING_FORMAT && ext.type != QK_EXT_FEATURE_NAMES &&
			ext.type != QK_EXT_BITMAPS && ext.type != QK_EXT_CRYPTO &&
			ext.type != QK_EXT_DATA_FILE)
			return false;
	}
	return !has_dead_bitmaps;
}

/* Entries [first, end) of a block, which one page of the census counts (NULL: no references). */
static void reclaim_part(struct qk_space_census *c, struct qk_refblock *b, uint64_t first,
	uint64_t end, const uint8_t *page)
{
	struct qk_space *sp = c->sp;
	unsigned order = sp->g->refcount_order;
	uint64_t at = first & (sp->g->rb_entries - 1);

	if (page == NULL && order >= 3 &&
		qk_is_zero(b->bytes + (at << (order - 3)), (size_t)((end - first) << (order - 3))))
		return;
	for (uint64_t i = first; i < end; i++) {
		uint64_t word = page == NULL
					? 0
					: qk_census_load(&c->census, page, i & c->census.page_mask);
		if ((word & QK_CENSUS_WIDE_COUNT) == 0 && qk_refblock_at(sp, b, i) != 0)
			qk_refblock_set(sp, b, i, 0);
	}
}

/* More leaks than the cache holds stay leaks. */
static bool has_room(const struct qk_space *sp)
{
	return sp->n_blocks <= sp->max_blocks;
}

/* The clusters of one page, which has references. */
static enum qcow_status compare_page(
	struct qk_space_census *c, uint64_t key, struct qcow_error *err)
{
	const struct qk_census *census = &c->census;
	const uint8_t *page = qk_census_find(census, key);
	uint64_t at = qk_max(key << census->page_shift, census->lo);
	uint64_t end = (key + 1) << census->page_shift;
	bool has_leaks = false;

	if (census->hi < c->n_clusters)
		end = qk_min(end, census->hi);
	while (at < end) {
		uint64_t next = qk_min((at | (c->sp->g->rb_entries - 1)) + 1, end);
		QK_TRY(compare_part(c, page, at, next - at, &has_leaks, err));
		if (has_leaks && c->reclaims && has_room(c->sp))
			reclaim_part(c, c->block, at, next, page);
		at = next;
	}
	return QCOW_OK;
}

static enum qcow_status compare_pages(struct qk_space_census *c, struct qcow_error *err)
{
	size_t n = 0;
	const uint64_t *keys = qk_census_sorted(&c->census, &n);

	for (size_t i = 0; i < n; i++)
		QK_TRY(compare_page(c, keys[i], err));
	return QCOW_OK;
}

/* Parts of clusters [at, end) that no page counts: is there any, and what is stored for them is 0 from now on. */
static bool reclaim_rest(
	struct qk_space_census *c, struct qk_refblock *b, uint64_t at, uint64_t end)
{
	bool any = false;

	while (at < end) {
		uint64_t next = qk_min((at | c->census.page_mask) + 1, end);
		bool is_rest = qk_census_find(&c->census, at >> c->census.page_shift) == NULL;
		if (is_rest && b != NULL)
			reclaim_part(c, b, at, next, NULL);
		any = any || is_rest;
		at = next;
	}
	return any;
}

/* Of one block, what the window covers; with the last window what lies past the end of the file too. */
static enum qcow_status reclaim_block(
	struct qk_space_census *c, uint64_t idx, struct qcow_error *err)
{
	const struct qk_census *census = &c->census;
	uint64_t at = qk_max(idx << c->sp->g->rb_bits, census->lo);
	uint64_t end = (idx + 1) << c->sp->g->rb_bits;
	struct qk_refblock *b = NULL;

	if (census->hi < c->n_clusters)
		end = qk_min(end, census->hi);
	if (!reclaim_rest(c, NULL, at, end))
		return QCOW_OK;
	QK_TRY(qk_refblock_get(c->sp, idx, &b, err));
	(void)reclaim_rest(c, b, at, end);
	qk_refblock_put(b);
	return QCOW_OK;
}

static enum qcow_status reclaim(struct qk_space_census *c, struct qcow_error *err)
{
	struct qk_space *sp = c->sp;

	for (uint64_t i = c->census.lo >> sp->g->rb_bits; i < sp->table_entries; i++) {
		if (c->census.hi < c->n_clusters && i << sp->g->rb_bits >= c->census.hi)
			break;
		if (sp->table[i] != 0 && has_room(sp))
			QK_TRY(reclaim_block(c, i, err));
	}
	return QCOW_OK;
}

static enum qcow_status compare_pass(void *ctx, struct qcow_error *err)
{
	struct qk_space_census *c = ctx;

	c->reclaims = !c->has_damage && is_all_known(c->sp);
	enum qcow_status status = compare_pages(c, err);
	if (c->block != NULL)
		qk_refblock_put(c->block);
	c->block = NULL;
	QK_TRY(status);
	return c->reclaims ? reclaim(c, err) : QCOW_OK;
}

static enum qcow_status prove(
	struct qk_space *sp, const struct qk_refs_watch *watch, struct qcow_error *err)
{
	struct qk_space_census c;
	enum qcow_status status = qk_space_census_init(&c, sp, watch, err);

	if (status == QCOW_OK)
		status = qk_space_census_run(&c, compare_pass, &c, err);
	qk_space_census_release(&c);
	return status;
}

static bool is_small(const struct qk_space *sp)
{
	return sp->knows_all_l2 && sp->l1_bytes + (sp->n_l2 << sp->g->cluster_bits) <= SMALL_TABLES;
}

enum qcow_status qk_space_prove(
	struct qk_space *sp, const struct qk_space_request *rq, struct qcow_error *err)
{
	if (rq->prove == QCOW_PROVE_OFF)
		return QCOW_OK;
	if (rq->prove == QCOW_PROVE_FULL || is_small(sp) || !sp->can_grow) {
		QK_TRY(prove(sp, rq->watch, err));
		sp->is_proven = true;
		return QCOW_OK;
	}
	sp->floor = sp->pristine;
	return QCOW_OK;
}

bool qk_space_is_proven(const struct qk_space *sp)
{
	return sp->is_proven;
}
