/* SPDX-License-Identifier: MIT */
/*
 * census: how often each host cluster is referred to, and by what kind of structure, exactly, within a
 * fixed amount of memory.
 *
 * Counters live in pages of 1 KiB that exist only where a reference was seen. When the pages run out the
 * highest of the clusters seen so far are forgotten and `hi` comes down: the pass then is exact
 * for clusters [lo, hi), and the next pass starts at hi. A file that fits needs one pass; a sparse or hostile
 * one costs passes by the number of its references, not by its length.
 *
 * A counter is 16 bits (counts to 2046) in a first try; where that does not suffice need_wide is
 * set, and the pass must be repeated with 64-bit counters.
 *
 *   narrow:  15 overlap | 14 exclusive | 13 L2 | 12 uncopied | 11 copied | 10-0 count
 *   wide:    63 overlap | 62 exclusive | 61 L2 | 60 uncopied | 59 copied | 58-0 count
 */
#ifndef QK_AUDIT_CENSUS_H
#define QK_AUDIT_CENSUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define QK_CENSUS_PAGE_BYTES 1024U
#define QK_CENSUS_COUNT_BITS 11U
#define QK_CENSUS_COUNT_MASK 0x07ffU
#define QK_CENSUS_COPIED     0x0800U /* an active entry with COPIED refers to it */
#define QK_CENSUS_UNCOPIED   0x1000U /* an active entry without COPIED does */
#define QK_CENSUS_L2	     0x2000U /* it is an L2 table: shared by L2 references only */
#define QK_CENSUS_EXCLUSIVE  0x4000U /* it is metadata that nothing may share */
#define QK_CENSUS_OVERLAP    0x8000U /* … and something does */
#define QK_CENSUS_WIDE_SHIFT 48U /* from a narrow flag to the wide one */
#define QK_CENSUS_WIDE_COUNT ((UINT64_C(1) << 59) - 1)
#define QK_CENSUS_WIDE(flag) ((uint64_t)(flag) << QK_CENSUS_WIDE_SHIFT)
#define QK_CENSUS_NO_KEY     UINT64_MAX

struct qk_census {
	uint64_t lo, hi; /* clusters that this pass counts: [lo, hi) */
	bool wide, need_wide;
	unsigned page_shift; /* log2 of the counters in a page: 9, wide 7 */
	uint64_t page_mask;
	uint8_t *current; /* the page of current_key */
	uint64_t current_key;
	uint32_t n_pages, max_pages;
	uint8_t *pages;
	uint64_t *keys; /* cluster >> page_shift of each page, or QK_CENSUS_NO_KEY */
	uint64_t *scratch; /* max_pages keys, for sorting */
	uint32_t *free_pages;
	uint32_t n_free;
	uint32_t *slots; /* hash of keys: page + 1, 0 = empty */
	uint32_t slot_mask;
};

/* memory_bytes bounds everything that the census allocates (at least 64 KiB are taken). n_clusters: of the file.
 * QCOW_E_NOMEM. */
enum qcow_status qk_census_init(struct qk_census *c, uint64_t memory_bytes, uint64_t n_clusters,
	struct qcow_error *err) QK_MUST_USE;
void qk_census_release(struct qk_census *c);

/* Forget everything and count clusters [lo, hi). */
void qk_census_begin(struct qk_census *c, uint64_t lo, uint64_t hi, bool wide);

/* n more references to `cluster`. `flags`: QK_CENSUS_L2 or _EXCLUSIVE or 0 for data, with COPIED or UNCOPIED
 * for entries of the active tree. */
void qk_census_add(struct qk_census *c, uint64_t cluster, uint64_t n, unsigned flags);

/* The page for `key`, made where it is missing; false where the key is not in this pass (any more). */
bool qk_census_seek(struct qk_census *c, uint64_t key);

/* n references by a data entry: the fast way to the same. `flag` COPIED, UNCOPIED or 0. */
static inline void qk_census_add_data(
	struct qk_census *c, uint64_t cluster, uint64_t n, unsigned flag)
{
	if (cluster - c->lo >= c->hi - c->lo)
		return;
	if (QK_UNLIKELY(cluster >> c->page_shift != c->current_key) &&
		!qk_census_seek(c, cluster >> c->page_shift))
		return;
	uint16_t *counter = (uint16_t *)(void *)c->current + (cluster & c->page_mask);
	if (QK_LIKELY(!c->wide && (*counter & (QK_CENSUS_L2 | QK_CENSUS_EXCLUSIVE)) == 0 &&
		      n < QK_CENSUS_COUNT_MASK - (*counter & QK_CENSUS_COUNT_MASK)))
		*counter = (uint16_t)((*counter + n) | flag);
	else
		qk_census_add(c, cluster, n, flag);
}

/* Narrow counters of clusters [first, first + n) that lie side by side. */
struct qk_census_row {
	uint16_t *counters;
	uint64_t first, n;
};

/* Those of the page that was counted in last, as far as the pass has them; none where it counts wide ones. */
static inline struct qk_census_row qk_census_row(const struct qk_census *c)
{
	if (c->wide || c->current_key == QK_CENSUS_NO_KEY)
		return (struct qk_census_row){0};
	uint64_t page = c->current_key << c->page_shift, end = page + c->page_mask + 1;
	uint64_t first = page > c->lo ? page : c->lo;
	end = end < c->hi ? end : c->hi;
	return (struct qk_census_row){(uint16_t *)(void *)c->current + (first - page), first,
		end > first ? end - first : 0};
}

/* The page of `key`, or NULL. */
uint8_t *qk_census_find(const struct qk_census *c, uint64_t key);

/* The counter of a cluster in the wide form, 0 where nothing was counted. */
uint64_t qk_census_get(const struct qk_census *c, uint64_t cluster);
/* Counter `i` of a page in the wide form, and setting its narrow flags. */
uint64_t qk_census_load(const struct qk_census *c, const uint8_t *page, uint64_t i);
void qk_census_set_flags(const struct qk_census *c, uint8_t *page, uint64_t i, unsigned flags);

/* The keys in use, ascending; *n of them. Valid until the census changes. */
const uint64_t *qk_census_sorted(struct qk_census *c, size_t *n);

#endif
