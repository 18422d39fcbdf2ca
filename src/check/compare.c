/* SPDX-License-Identifier: MIT */
/*
 * compare: stored refcounts against counted references. Clusters are compared in pieces that lie in one
 * refcount block and one page of the census; a piece where all is well costs one loop that the compiler
 * turns into vectors (16-bit refcounts), and only others are looked at one by one.
 *
 * A cluster gets one finding at most: METADATA_OVERLAP where structures share it (it would be "too low"
 * too), else REFCOUNT_TOO_LOW, else REFCOUNT_TOO_HIGH. Clusters whose refcount block cannot be read are not
 * judged: the finding about the block stands for them.
 */
#include "check/compare.h"

#include <string.h>

#include "base/bytes.h"

static const uint64_t no_counters[QK_CENSUS_PAGE_BYTES / 8];

/* A piece: n clusters from `cluster` on, at `index` of the refcount block (NULL: no block, all 0). */
struct piece {
	uint64_t cluster, n, index;
	const uint8_t *block;
	uint8_t *page; /* or NULL: nothing was counted */
};

static void report_cluster(
	struct qk_compare *c, uint64_t cluster, unsigned finding, uint64_t stored, uint64_t count)
{
	qk_audit_report_always(c->a,
		&(struct qk_audit_note){finding, cluster << c->a->geometry->cluster_bits,
			QCOW_NO_OFFSET, stored, count},
		"cluster %llu: refcount %llu, %llu references", (unsigned long long)cluster,
		(unsigned long long)stored, (unsigned long long)count);
}

/* Does the COPIED of some active entry disagree with the refcount? Leave the marks for explaining it. */
static void mark_copied(struct qk_compare *c, const struct piece *p, uint64_t at, uint64_t stored)
{
	uint64_t v = qk_census_load(c->census, p->page, at);
	unsigned flag = stored == 1 ? QK_CENSUS_UNCOPIED : QK_CENSUS_COPIED;
	unsigned marks = stored == 1 ? QK_CENSUS_EXCLUSIVE : 0;

	if ((v & QK_CENSUS_WIDE(flag)) != 0) {
		marks |= QK_CENSUS_OVERLAP;
		c->n_disagree++;
	}
	qk_census_set_flags(c->census, p->page, at, marks);
}

static void compare_one(struct qk_compare *c, const struct piece *p, uint64_t i)
{
	uint64_t cluster = p->cluster + i;
	uint64_t at = cluster & c->census->page_mask;
	uint64_t stored = p->block == NULL
				  ? 0
				  : qk_refcount_get(c->a->geometry, p->block, p->index + i);
	uint64_t v = p->page == NULL ? 0 : qk_census_load(c->census, p->page, at);
	uint64_t count = v & QK_CENSUS_WIDE_COUNT;

	if (stored != 0 || count != 0)
		c->last_in_use = qk_max(c->last_in_use, cluster + 1);
	if ((v & QK_CENSUS_WIDE(QK_CENSUS_OVERLAP)) != 0)
		report_cluster(c, cluster, QCOW_FINDING_METADATA_OVERLAP, stored, count);
	else if (stored < count)
		report_cluster(c, cluster, QCOW_FINDING_REFCOUNT_TOO_LOW, stored, count);
	else if (stored > count)
		report_cluster(c, cluster, QCOW_FINDING_REFCOUNT_TOO_HIGH, stored, count);
	if (p->page != NULL)
		mark_copied(c, p, at, stored);
}

/*
 * Narrow counters against 16-bit refcounts. Well: the counts agree, nothing overlaps, and no active entry
 * has COPIED other than for refcount 1. Returns 0 where all are well; *any says whether any is in use.
 */
static unsigned differs16(const uint16_t *v, const uint8_t *stored, size_t n, unsigned *any)
{
	unsigned bad = 0;
	unsigned used = 0;

	for (size_t i = 0; i < n; i++) {
		uint16_t be = 0;
		memcpy(&be, stored + i * 2, sizeof(be));
		uint16_t s = (uint16_t)(be << 8 | be >> 8);
		uint16_t is_one = (uint16_t) - (s == 1);
		uint16_t wrong = (uint16_t)(QK_CENSUS_OVERLAP | (is_one & QK_CENSUS_UNCOPIED) |
					    (~is_one & QK_CENSUS_COPIED));
		bad |= (unsigned)((v[i] & QK_CENSUS_COUNT_MASK) ^ s) | (unsigned)(v[i] & wrong);
		used |= (unsigned)s | v[i];
	}
	*any = used;
	return bad;
}

/* The same for every other width, through whole numbers. */
static bool differs(const struct qk_compare *c, const struct piece *p, unsigned *any)
{
	bool bad = false;

	*any = 0;
	for (uint64_t i = 0; i < p->n; i++) {
		uint64_t v = p->page == NULL ? 0
					     : qk_census_load(c->census, p->page,
						       (p->cluster + i) & c->census->page_mask);
		uint64_t stored = p->block == NULL
					  ? 0
					  : qk_refcount_get(c->a->geometry, p->block, p->index + i);
		uint64_t wrong = QK_CENSUS_WIDE(
			QK_CENSUS_OVERLAP | (stored == 1 ? QK_CENSUS_UNCOPIED : QK_CENSUS_COPIED));
		bad |= (v & QK_CENSUS_WIDE_COUNT) != stored || (v & wrong) != 0;
		*any |= (v | stored) != 0;
	}
	return bad;
}

static bool is_well(struct qk_compare *c, const struct piece *p, unsigned *any)
{
	uint64_t at = p->cluster & c->census->page_mask;

	if (c->census->wide || c->a->geometry->refcount_bits != 16 || p->block == NULL)
		return !differs(c, p, any);
	const uint16_t *v = p->page == NULL ? (const uint16_t *)(const void *)no_counters
					    : (const uint16_t *)(const void *)p->page + at;
	return differs16(v, p->block + p->index * 2, (size_t)p->n, any) == 0;
}

static void compare_piece(struct qk_compare *c, const struct piece *p)
{
	unsigned any = 0;

	if (!is_well(c, p, &any)) {
		for (uint64_t i = 0; i < p->n; i++)
			compare_one(c, p, i);
		return;
	}
	if (any == 0)
		return;
	for (uint64_t i = p->n; i > 0; i--) {
		uint64_t before = c->last_in_use;
		if (p->cluster + i <= before)
			return;
		uint64_t at = (p->cluster + i - 1) & c->census->page_mask;
		uint64_t v = p->page == NULL ? 0 : qk_census_load(c->census, p->page, at);
		if ((v & QK_CENSUS_WIDE_COUNT) != 0) {
			c->last_in_use = p->cluster + i;
			return;
		}
	}
}

/* Compare [first, end) with a block whose first refcount counts `block_first`; NULL: no block. */
static void compare_range(struct qk_compare *c, uint64_t first, uint64_t end, uint64_t block_first,
	const uint8_t *block)
{
	uint64_t in_page = c->census->page_mask + 1;

	while (first < end) {
		uint64_t page_end = (first | c->census->page_mask) + 1;
		struct piece p = {.cluster = first,
			.n = qk_min(end, page_end) - first,
			.index = first - block_first,
			.block = block,
			.page = qk_census_find(c->census, first / in_page)};
		compare_piece(c, &p);
		first += p.n;
	}
}

static uint64_t pass_end(const struct qk_compare *c)
{
	return qk_min(c->census->hi, c->n_clusters);
}

/* Clusters whose refcounts are stored. */
static void compare_blocks(struct qk_compare *c)
{
	unsigned bits = c->a->geometry->rb_bits;
	uint64_t per = UINT64_C(1) << bits;
	uint64_t end = pass_end(c);

	for (uint64_t i = c->census->lo >> bits; i < c->rt->n && i << bits < end; i++) {
		bool is_zero = false;
		uint64_t block_first = i << bits;
		uint64_t first = qk_max(block_first, c->census->lo);
		/* a block that several passes read is reported by the first of them */
		c->a->quiet = first != block_first;
		if (c->rt->v[i] <= QK_REFTABLE_UNUSABLE ||
			!qk_audit_read(c->a, c->block, (size_t)c->a->geometry->cluster_size,
				c->rt->v[i], &is_zero, "refcount block"))
			continue;
		/* a block of zeros says what no block says */
		compare_range(c, first, qk_min(block_first + per, end), block_first,
			is_zero ? NULL : c->block);
	}
}

/* Clusters whose refcount block cannot be read: structures that share one are all that can be judged. */
static void find_overlaps(struct qk_compare *c, uint64_t first, uint64_t end, uint8_t *page)
{
	for (uint64_t cluster = first; cluster < end; cluster++) {
		uint64_t v = qk_census_load(c->census, page, cluster & c->census->page_mask);
		uint64_t count = v & QK_CENSUS_WIDE_COUNT;
		if (count != 0)
			c->last_in_use = qk_max(c->last_in_use, cluster + 1);
		if ((v & QK_CENSUS_WIDE(QK_CENSUS_OVERLAP)) != 0)
			report_cluster(c, cluster, QCOW_FINDING_METADATA_OVERLAP, 0, count);
		qk_census_set_flags(c->census, page, cluster & c->census->page_mask, 0);
	}
}

/* Clusters without a refcount block that could be compared: only those counted can differ. */
static void compare_uncovered(struct qk_compare *c)
{
	unsigned bits = c->a->geometry->rb_bits;
	size_t n = 0;
	const uint64_t *keys = qk_census_sorted(c->census, &n);

	for (size_t k = 0; k < n; k++) {
		uint64_t at = qk_max(keys[k] << c->census->page_shift, c->census->lo);
		uint64_t end = qk_min((keys[k] + 1) << c->census->page_shift, pass_end(c));
		while (at < end) {
			uint64_t i = at >> bits;
			uint64_t next = qk_min((i + 1) << bits, end);
			if (i >= c->rt->n || c->rt->v[i] == 0)
				compare_range(c, at, next, at, NULL);
			else if (c->rt->v[i] == QK_REFTABLE_UNUSABLE)
				find_overlaps(c, at, next, qk_census_find(c->census, keys[k]));
			at = next;
		}
	}
}

void qk_compare_pass(struct qk_compare *c)
{
	bool was_quiet = c->a->quiet;

	c->n_disagree = 0;
	compare_blocks(c);
	compare_uncovered(c);
	c->a->quiet = was_quiet;
}

static bool counts_from(const struct qk_compare *c, uint64_t index)
{
	for (uint64_t i = index; i < c->a->geometry->rb_entries; i++) {
		if (qk_refcount_get(c->a->geometry, c->block, i) != 0)
			return true;
	}
	return false;
}

void qk_compare_past_end(struct qk_compare *c)
{
	unsigned bits = c->a->geometry->rb_bits;
	bool is_zero = false;

	for (uint64_t i = c->n_clusters >> bits; i < c->rt->n; i++) {
		uint64_t block_first = i << bits;
		uint64_t from = c->n_clusters > block_first ? c->n_clusters - block_first : 0;
		if (c->rt->v[i] <= QK_REFTABLE_UNUSABLE ||
			!qk_audit_read(c->a, c->block, (size_t)c->a->geometry->cluster_size,
				c->rt->v[i], &is_zero, "refcount block") ||
			is_zero)
			continue;
		if (counts_from(c, from))
			qk_audit_report_always(c->a,
				&(struct qk_audit_note){QCOW_FINDING_REFCOUNT_PAST_END, c->rt->v[i],
					QCOW_NO_OFFSET, 0, 0},
				"refcount block %llu", (unsigned long long)i);
	}
}
