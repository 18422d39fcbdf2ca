/* SPDX-License-Identifier: MIT */
/*
 * plan_conflicts: clusters that several things want. Structures stay before L2 tables, L2 tables before guest data, and guest
 * data before a bitmap's bits, which then say "dirty". What an L1 entry names and something else needs, and does not
 * look like a table, is none. A cluster with more references than the width holds keeps as many as it can have; for the
 * others it is copied (plan_copies.c).
 */
#include "base/mem.h"
#include "check/plan_entries.h"
#include "format/bitmapext.h"
#include "format/l1l2.h"

#define MAX_OVER ((size_t)65536)

/* References that may still stay. */
struct qk_plan_over {
	uint64_t cluster, left;
};

/* ---- conflicts: clusters of the window that several things want ---- */

static bool has_flag(const struct qk_plan *p, uint64_t cluster, uint64_t narrow_flags)
{
	return (qk_plan_word(p, cluster) & narrow_flags << QK_CENSUS_WIDE_SHIFT) != 0;
}

static struct qk_plan_over *find_over(const struct qk_plan *p, uint64_t cluster)
{
	size_t lo = 0, hi = p->n_over;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (p->over[mid].cluster < cluster)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < p->n_over && p->over[lo].cluster == cluster ? &p->over[lo] : NULL;
}

/* Does the cluster have room for `weight` references more? */
static bool may_stay(const struct qk_plan *p, uint64_t cluster, uint64_t weight)
{
	struct qk_plan_over *over = p->n_over == 0 ? NULL : find_over(p, cluster);

	if (over == NULL)
		return true;
	if (over->left < weight)
		return false;
	over->left -= weight;
	return true;
}

/* Does it name the table of another entry of the active L1 table? Then it was planned what becomes of it. */
static bool has_copy(const struct qk_plan *p, const struct qk_refs_entry *e)
{
	const struct qk_plan_table *twice = e->index == QK_L2SET_NO_INDEX
						    ? NULL
						    : qk_plan_find_table(
							      &p->twice, e->raw & QK_OFFSET_MASK);

	return twice != NULL && twice->index != e->index;
}

static enum qcow_status conflict_l1(
	void *ctx, const struct qk_refs_entry *e, struct qcow_error *err)
{
	struct qk_plan *p = ctx;
	uint64_t cluster = (e->raw & QK_OFFSET_MASK) >> p->g.cluster_bits;
	unsigned finding = 0;

	if (cluster == 0)
		return QCOW_OK;
	if (has_flag(p, cluster, QK_CENSUS_EXCLUSIVE) ||
		qk_plan_find_table(&p->bogus, e->raw & QK_OFFSET_MASK) != NULL)
		finding = QCOW_FINDING_METADATA_OVERLAP;
	else if (!has_copy(p, e) && !may_stay(p, cluster, e->covers))
		finding = QCOW_FINDING_REFCOUNT_TOO_LOW;
	bool stays = finding == 0;
	struct qk_plan_copy copy = qk_entry_copy(p, e, finding);
	if (finding == QCOW_FINDING_REFCOUNT_TOO_LOW)
		QK_TRY(qk_plan_copy(p, &copy, &stays, err));
	if (stays)
		return QCOW_OK;
	return qk_entry_change_word(p, QCOW_REPAIR_L1_ENTRY, finding, e->off, e->raw, 0, err);
}

static enum qcow_status conflict_bitmap(
	void *ctx, const struct qk_refs_entry *e, struct qcow_error *err)
{
	struct qk_plan *p = ctx;
	struct qk_bitmap_table_entry d = qk_bitmap_table_decode(&p->g, e->raw);

	if (d.off.v == 0 || !has_flag(p, d.off.v >> p->g.cluster_bits, QK_CENSUS_OVERLAP))
		return QCOW_OK;
	return qk_entry_change_word(p, QCOW_REPAIR_BITMAP_ENTRY, QCOW_FINDING_METADATA_OVERLAP,
		e->off, e->raw, QK_ENTRY_ALL_ONES, err);
}

/* Why the clusters [first, last] of an entry cannot all stay, or 0. */
static unsigned conflict_of(const struct qk_plan *p, uint64_t first, uint64_t last, uint64_t weight)
{
	for (uint64_t c = first; c <= last; c++) {
		if (has_flag(p, c, QK_CENSUS_EXCLUSIVE | QK_CENSUS_L2))
			return QCOW_FINDING_METADATA_OVERLAP;
	}
	for (uint64_t c = first; c <= last; c++) {
		if (!may_stay(p, c, weight))
			return QCOW_FINDING_REFCOUNT_TOO_LOW;
	}
	return 0;
}

static enum qcow_status conflict_l2(
	void *ctx, const struct qk_l2ref *ref, const uint8_t *table, struct qcow_error *err)
{
	struct qk_plan *p = ctx;
	unsigned bits = p->g.cluster_bits;

	for (uint32_t i = 0; table != NULL && i < p->g.l2_entries; i++) {
		struct qk_entry was = qk_entry_load(p, ref, table, i);
		struct qk_l2_entry d = qk_l2_decode(
			&p->g, was.raw, was.bitmap, qk_entry_guest(p, ref, i, &was));
		uint64_t last = d.finding != 0 ? 0 : qk_entry_last_byte(&p->g, &d);
		if (last == 0)
			continue;
		struct qk_plan_copy copy = {.entry_off = was.off,
			.raw = was.raw,
			.first = d.host_off.v >> bits,
			.n = (last >> bits) - (d.host_off.v >> bits) + 1,
			.weight = ref->weight,
			.finding = QCOW_FINDING_REFCOUNT_TOO_LOW,
			.kind = QCOW_REPAIR_L2_ENTRY};
		unsigned finding = conflict_of(p, copy.first, last >> bits, ref->weight);
		bool stays = finding == 0;
		if (finding == QCOW_FINDING_REFCOUNT_TOO_LOW)
			QK_TRY(qk_plan_copy(p, &copy, &stays, err));
		if (stays)
			continue;
		struct qk_entry now = was;
		qk_entry_unlink(&p->g, &now, finding);
		QK_TRY(qk_entry_change(p, &was, &now, err));
	}
	return QCOW_OK;
}

/* The clusters of the window whose references no refcount holds. */
static enum qcow_status find_all_over(struct qk_plan *p, struct qcow_error *err)
{
	size_t n = 0;
	const uint64_t *keys = qk_census_sorted(&p->census, &n);

	p->n_over = 0;
	for (size_t k = 0; k < n; k++) {
		const uint8_t *page = qk_census_find(&p->census, keys[k]);
		for (uint64_t i = 0; i <= p->census.page_mask && p->n_over < MAX_OVER; i++) {
			uint64_t word = qk_census_load(&p->census, page, i);
			if ((word & QK_CENSUS_WIDE_COUNT) <= p->g.refcount_max)
				continue;
			struct qk_plan_over *v = qk_grown(
				p->over, p->n_over, &p->over_room, sizeof(*v));
			if (v == NULL)
				return QK_FAIL_NOMEM(err);
			p->over = v;
			p->over[p->n_over++] = (struct qk_plan_over){
				(keys[k] << p->census.page_shift) + i, p->g.refcount_max};
		}
	}
	return QCOW_OK;
}

static bool any_overlap(struct qk_plan *p)
{
	size_t n = 0;
	const uint64_t *keys = qk_census_sorted(&p->census, &n);

	for (size_t k = 0; k < n; k++) {
		const uint8_t *page = qk_census_find(&p->census, keys[k]);
		for (uint64_t i = 0; i <= p->census.page_mask; i++) {
			if ((qk_census_load(&p->census, page, i) &
				    QK_CENSUS_WIDE(QK_CENSUS_OVERLAP)) != 0)
				return true;
		}
	}
	return false;
}

/* Does this look like a table? Guest data that an L1 entry names by mistake hardly ever does. */
static bool is_plausible(const struct qk_plan *p, const struct qk_l2ref *ref, const uint8_t *table)
{
	uint32_t n_good = 0, n_bad = 0;

	for (uint32_t i = 0; table != NULL && i < p->g.l2_entries; i++) {
		struct qk_entry was = qk_entry_load(p, ref, table, i);
		struct qk_entry now = was;
		if (was.raw == 0 && was.bitmap == 0)
			continue;
		qk_entry_mend(p, &now, qk_entry_guest(p, ref, i, &was));
		if (was.raw == now.raw && was.bitmap == now.bitmap)
			n_good++;
		else
			n_bad++;
	}
	return n_bad <= n_good;
}

static enum qcow_status note_bogus(
	void *ctx, const struct qk_l2ref *ref, const uint8_t *table, struct qcow_error *err)
{
	struct qk_plan *p = ctx;

	if (!has_flag(p, ref->off >> p->g.cluster_bits, QK_CENSUS_OVERLAP) ||
		is_plausible(p, ref, table))
		return QCOW_OK;
	return qk_plan_add_table(&p->bogus, ref->off, ref->l1_index, err);
}

enum qcow_status qk_plan_find_bogus(struct qk_plan *p, struct qcow_error *err)
{
	const struct qk_refs_visitor bogus = {.ctx = p, .l2 = note_bogus};

	return qk_refs_visit(&p->refs, &bogus, err);
}

enum qcow_status qk_plan_table_conflicts(struct qk_plan *p, bool *changed, struct qcow_error *err)
{
	const struct qk_refs_visitor tables = {
		.ctx = p, .l1 = conflict_l1, .bitmap = conflict_bitmap};
	uint32_t n = p->changes.n;

	p->n_over = 0;
	/* what shares a cluster with the refcount structure alone shares none once that is left out */
	if (!any_overlap(p) && p->bogus.n == 0)
		return QCOW_OK;
	QK_TRY(qk_plan_find_bogus(p, err));
	QK_TRY(qk_refs_visit(&p->refs, &tables, err));
	*changed = *changed || p->changes.n != n || p->changes.is_full;
	return QCOW_OK;
}

enum qcow_status qk_plan_entry_conflicts(struct qk_plan *p, bool *changed, struct qcow_error *err)
{
	const struct qk_refs_visitor all = {.ctx = p, .l1 = conflict_l1, .l2 = conflict_l2};

	QK_TRY(find_all_over(p, err));
	if (p->n_over == 0 && !any_overlap(p))
		return QCOW_OK;
	*changed = true;
	return qk_refs_visit(&p->refs, &all, err);
}
