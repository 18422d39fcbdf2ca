/* SPDX-License-Identifier: MIT */
/*
 * plan_counts: refcounts as words to change, where the refcount structure is sound and every cluster in use has a block.
 * Raising comes before the header changes, lowering after it. Where a block is missing, or more words would change
 * than are worth it, a second structure is planned instead.
 */
#include <string.h>

#include "base/mem.h"
#include "check/plan.h"

#define MAX_WORDS 65536U /* 512 KiB of refcounts: then a second structure is as cheap */

/* A block's entries as they are, when raised, and as they will be. */
struct blocks {
	uint8_t *was, *raised, *now;
};

static enum qcow_status change(struct qk_plan *p, uint64_t off, uint64_t was, uint64_t now,
	enum qcow_repair_phase phase, struct qcow_error *err)
{
	struct qk_change c = {.off = off,
		.was = was,
		.now = now,
		.phase = (uint8_t)phase,
		.kind = QCOW_REPAIR_REFCOUNTS,
		.finding = phase == QCOW_REPAIR_RAISE ? QCOW_FINDING_REFCOUNT_TOO_LOW
						      : QCOW_FINDING_REFCOUNT_TOO_HIGH};

	return qk_plan_change(p, &c, err);
}

static enum qcow_status change_words(
	struct qk_plan *p, uint64_t block_off, const struct blocks *b, struct qcow_error *err)
{
	for (uint64_t at = 0; at < p->g.cluster_size; at += 8) {
		uint64_t was = qk_load64(b->was + at);
		uint64_t raised = qk_load64(b->raised + at);
		uint64_t now = qk_load64(b->now + at);
		QK_TRY(change(p, block_off + at, was, raised, QCOW_REPAIR_RAISE, err));
		QK_TRY(change(p, block_off + at, raised, now, QCOW_REPAIR_LOWER, err));
	}
	return QCOW_OK;
}

/* What will refer to a cluster of the window, as far as a refcount can say. */
static uint64_t wanted(const struct qk_plan *p, uint64_t cluster)
{
	return qk_min(qk_census_get(&p->census, cluster) & QK_CENSUS_WIDE_COUNT, p->g.refcount_max);
}

/* Entries [first, end) of the block of `area`; true where any differs. */
static bool set_entries(
	const struct qk_plan *p, const struct blocks *b, uint64_t first, uint64_t end)
{
	uint64_t mask = p->g.rb_entries - 1;
	bool differs = false;

	for (uint64_t c = first; c < end; c++) {
		uint64_t stored = qk_refcount_get(&p->g, b->was, c & mask);
		uint64_t want = wanted(p, c);
		if (stored == want || (p->mode == QCOW_REPAIR_LEAKS && stored < want))
			continue;
		if (!differs) {
			memcpy(b->raised, b->was, p->g.cluster_size);
			memcpy(b->now, b->was, p->g.cluster_size);
			differs = true;
		}
		qk_refcount_set(&p->g, b->now, c & mask, want);
		if (stored < want)
			qk_refcount_set(&p->g, b->raised, c & mask, want);
	}
	return differs;
}

static enum qcow_status count_area(
	struct qk_plan *p, uint64_t area, const struct blocks *b, struct qcow_error *err)
{
	uint64_t off = p->refs.rt.v[area];
	uint64_t first = qk_max(area << p->g.rb_bits, p->census.lo);
	uint64_t end = qk_min((area + 1) << p->g.rb_bits, qk_min(p->census.hi, p->n_clusters));
	bool is_zero = false;

	if (off <= QK_REFTABLE_UNUSABLE)
		return QCOW_OK;
	if (!qk_audit_read(
		    &p->audit, b->was, (size_t)p->g.cluster_size, off, &is_zero, "refcount block"))
		return QCOW_OK;
	if (is_zero)
		memset(b->was, 0, p->g.cluster_size);
	/* words that an earlier window has changed come from its plan */
	if (!set_entries(p, b, first, end))
		return QCOW_OK;
	return change_words(p, off, b, err);
}

/* Is there a cluster in the window that is in use and has no block? */
static bool lacks_blocks(struct qk_plan *p)
{
	size_t n = 0;
	const uint64_t *keys = qk_census_sorted(&p->census, &n);

	for (size_t k = 0; k < n; k++) {
		const uint8_t *page = qk_census_find(&p->census, keys[k]);
		for (uint64_t i = 0; i <= p->census.page_mask; i++) {
			uint64_t cluster = (keys[k] << p->census.page_shift) + i;
			uint64_t area = cluster >> p->g.rb_bits;
			if ((qk_census_load(&p->census, page, i) & QK_CENSUS_WIDE_COUNT) != 0 &&
				(area >= p->refs.rt.n ||
					p->refs.rt.v[area] <= QK_REFTABLE_UNUSABLE))
				return true;
		}
	}
	return false;
}

static enum qcow_status count_areas(
	struct qk_plan *p, const struct blocks *b, struct qcow_error *err)
{
	uint64_t end = qk_min(p->census.hi, p->n_clusters);
	uint32_t n = p->changes.n;

	for (uint64_t area = p->census.lo >> p->g.rb_bits;
		area < p->refs.rt.n && area << p->g.rb_bits < end; area++) {
		QK_TRY(count_area(p, area, b, err));
		if (p->mode == QCOW_REPAIR_ALL && p->changes.n - n > MAX_WORDS) {
			p->new_refcounts = true;
			return QCOW_OK;
		}
	}
	return QCOW_OK;
}

enum qcow_status qk_plan_counts(struct qk_plan *p, struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *buf = NULL;

	if (p->mode == QCOW_REPAIR_ALL && lacks_blocks(p)) {
		p->new_refcounts = true;
		return QCOW_OK;
	}
	buf = qk_malloc(3, (size_t)p->g.cluster_size);
	if (buf == NULL)
		return QK_FAIL_NOMEM(err);
	struct blocks b = {buf, buf + p->g.cluster_size, buf + 2 * p->g.cluster_size};
	return count_areas(p, &b, err);
}
