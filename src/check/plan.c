/* SPDX-License-Identifier: MIT */
/*
 * plan: the order of a round's steps (plan.h). Owns the image as it was read, the walk over it, and the census.
 */
#include "check/plan.h"

#include <inttypes.h>

#include "base/mem.h"

#define BYTES_PER_CHANGE 56U /* a change and its two slots, which are a power of two */
#define MAX_CHANGES	 (1U << 20)

static void ignore(void *ctx, const struct qcow_finding *f)
{
	(void)ctx;
	(void)f;
}

void qk_plan_audit(struct qk_plan *p, struct qcow_store *store, const struct qk_header *header,
	struct qk_audit *out)
{
	*out = (struct qk_audit){.store = store,
		.header = header,
		.ext = &p->ext,
		.geometry = &p->g,
		.file_size = p->file_size,
		.report = ignore,
		.progress = p->progress};
}

/* Cluster 0, as much of it as there is. */
static enum qcow_status read_header(struct qk_plan *p, struct qcow_error *err)
{
	uint8_t start[QK_V3_HEADER_BYTES];
	size_t n = (size_t)qk_min(sizeof(start), p->file_size);
	uint64_t size = 0;

	QK_TRY(qcow_store_read(p->store, start, n, 0, err));
	QK_TRY(qk_header_decode((struct qk_span){start, n}, &p->disk, err));
	QK_TRY(qk_header_cluster_size(&p->disk, &size, err));
	size = qk_min(size, p->file_size);
	p->cluster0 = qk_malloc(size, 1);
	if (p->cluster0 == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qcow_store_read(p->store, p->cluster0, (size_t)size, 0, err));
	if (size < QK_SECTOR)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"the file has %" PRIu64 " bytes, less than a sector", size);
	return qk_header_area_decode(
		(struct qk_span){p->cluster0, (size_t)size}, &p->disk, &p->ext, err);
}

enum qcow_status qk_plan_init(struct qk_plan *p, struct qcow_error *err)
{
	QK_TRY(qcow_store_size(p->store, &p->file_size, err));
	QK_TRY(read_header(p, err));
	p->header = p->disk;
	qk_header_geometry(&p->disk, &p->g);
	uint64_t max = qk_min(p->memory_bytes / 4 / BYTES_PER_CHANGE, MAX_CHANGES);
	QK_TRY(qk_changes_init(&p->changes, (uint32_t)max, err));
	QK_TRY(qk_changes_store(&p->changes, p->store, &p->view, err));
	qk_plan_audit(p, p->view, &p->header, &p->audit);
	p->n_clusters = qk_audit_end(&p->audit) >> p->g.cluster_bits;
	return qk_census_init(&p->census, p->memory_bytes * 3 / 8, p->n_clusters, err);
}

void qk_plan_release(struct qk_plan *p)
{
	qk_refs_release(&p->refs);
	qk_census_release(&p->census);
	qcow_store_close(p->view);
	qk_changes_release(&p->changes);
	free(p->skip_snapshots);
	free(p->copies.v);
	free(p->twice.v);
	free(p->bogus.v);
	free(p->over);
	free(p->cluster0);
	*p = (struct qk_plan){0};
}

enum qcow_status qk_plan_change(
	struct qk_plan *p, const struct qk_change *change, struct qcow_error *err)
{
	return qk_changes_add(&p->changes, change, err);
}

bool qk_plan_is_empty(const struct qk_plan *p)
{
	return p->changes.n == 0 && !p->new_refcounts && !p->new_l1 && !p->new_snapshots &&
	       p->copies.n == 0;
}

/* ---- windows ---- */

enum qcow_status qk_plan_count(struct qk_plan *p, uint64_t lo, struct qcow_error *err)
{
	qk_census_begin(&p->census, lo, p->n_clusters, false);
	QK_TRY(qk_refs_count(&p->refs, err));
	if (!p->census.need_wide)
		return QCOW_OK;
	qk_census_begin(&p->census, lo, p->n_clusters, true);
	return qk_refs_count(&p->refs, err);
}

/* Do the refcount table or its blocks share a cluster of the window? Then they are the ones to go. */
static bool refcounts_overlap(const struct qk_plan *p)
{
	const struct qk_reftable *rt = &p->refs.rt;
	uint64_t first = p->header.rt_off >> p->g.cluster_bits;

	for (uint64_t i = 0; i < p->header.rt_clusters; i++) {
		if ((qk_census_get(&p->census, first + i) & QK_CENSUS_WIDE(QK_CENSUS_OVERLAP)) != 0)
			return true;
	}
	for (uint64_t i = 0; i < rt->n; i++) {
		uint64_t cluster = rt->v[i] >> p->g.cluster_bits;
		if (rt->v[i] > QK_REFTABLE_UNUSABLE &&
			(qk_census_get(&p->census, cluster) & QK_CENSUS_WIDE(QK_CENSUS_OVERLAP)) !=
				0)
			return true;
	}
	return false;
}

/* What names tables, before anything is done to what they name. */
static enum qcow_status plan_names(struct qk_plan *p, struct qcow_error *err)
{
	bool changed = false;

	QK_TRY(qk_plan_table_faults(p, err));
	if (p->found[QCOW_FINDING_METADATA_OVERLAP] == 0)
		return QCOW_OK;
	for (uint64_t lo = 0; lo < p->n_clusters && !p->changes.is_full; lo = p->census.hi) {
		p->refs.without_refcounts = false;
		QK_TRY(qk_plan_count(p, lo, err));
		if (refcounts_overlap(p)) {
			/* a refcount block that an L1 entry names is seldom a table, too */
			QK_TRY(qk_plan_find_bogus(p, err));
			p->new_refcounts = true;
		}
		p->refs.without_refcounts = p->new_refcounts;
		if (p->new_refcounts)
			QK_TRY(qk_plan_count(p, lo, err));
		QK_TRY(qk_plan_table_conflicts(p, &changed, err));
		QK_ASSERT(J1, p->census.hi > lo);
	}
	return QCOW_OK;
}

/* Clusters from `lo` on. */
static enum qcow_status plan_window(struct qk_plan *p, uint64_t lo, struct qcow_error *err)
{
	bool changed = false;

	QK_TRY(qk_plan_count(p, lo, err));
	if (p->mode == QCOW_REPAIR_ALL) {
		QK_TRY(qk_plan_entry_conflicts(p, &changed, err));
		if (changed)
			QK_TRY(qk_plan_count(p, lo, err));
	}
	/* COPIED where the stored refcount stays 0 would be worse than none */
	if (p->mode == QCOW_REPAIR_ALL || p->found[QCOW_FINDING_REFCOUNT_TOO_LOW] == 0)
		QK_TRY(qk_plan_copied(p, p->mode == QCOW_REPAIR_LEAKS, err));
	return p->new_refcounts ? QCOW_OK : qk_plan_counts(p, err);
}

static enum qcow_status plan_windows(struct qk_plan *p, struct qcow_error *err)
{
	uint64_t lo = 0;

	while (lo < p->n_clusters && !p->changes.is_full) {
		QK_TRY(plan_window(p, lo, err));
		QK_ASSERT(J1, p->census.hi > lo);
		lo = p->census.hi;
	}
	return QCOW_OK;
}

/* Leave out what may not be done now: with unlinked entries missing everything that follows from them; with a second
 * structure to come, changes of the first. */
static void cut(struct qk_plan *p)
{
	unsigned refcounts = 1U << QCOW_REPAIR_RAISE | 1U << QCOW_REPAIR_LOWER;
	unsigned first = 1U << QCOW_REPAIR_UNLINK | 1U << QCOW_REPAIR_HEADER;

	qk_plan_settle_copies(p);
	if (p->changes.is_full) {
		qk_changes_keep(&p->changes, 1U << QCOW_REPAIR_UNLINK);
		p->new_refcounts = p->new_l1 = p->new_snapshots = false;
	} else if (p->copies.n != 0) {
		/* the second structure counts them; COPIED was judged without them */
		p->new_refcounts = true;
		qk_changes_keep(&p->changes, first);
	} else if (p->new_refcounts) {
		qk_changes_keep(&p->changes, ~refcounts);
	}
}

static enum qcow_status check_reads(const struct qk_plan *p, struct qcow_error *err)
{
	if (p->audit.n_read_errors == 0)
		return QCOW_OK;
	return QK_FAIL_AT(err, p->audit.first_failure.status, QCOW_FINDING_TABLE_READ_FAILED,
		p->audit.failed_off, QCOW_NO_OFFSET, "not repaired, for a table cannot be read: %s",
		p->audit.first_failure.message);
}

enum qcow_status qk_plan_make(struct qk_plan *p, struct qcow_error *err)
{
	QK_TRY(qk_plan_tables(p, err));
	QK_TRY(check_reads(p, err));
	if (p->mode == QCOW_REPAIR_ALL)
		QK_TRY(plan_names(p, err));
	if (p->mode == QCOW_REPAIR_ALL && !p->changes.is_full)
		QK_TRY(qk_plan_entry_faults(p, err));
	QK_TRY(plan_windows(p, err));
	QK_TRY(check_reads(p, err));
	if (!p->changes.is_full)
		QK_TRY(qk_plan_header(p, err));
	cut(p);
	qk_changes_sort(&p->changes);
	return QCOW_OK;
}
