/* SPDX-License-Identifier: MIT */
/*
 * census: the pages of counters (see census.h). No I/O.
 *
 * Invariants:
 *   C1  every page in use has its key in the hash, and every key lies in [lo >> shift, hi >> shift]
 *   C2  current is the page of current_key, or current_key is QK_CENSUS_NO_KEY
 *   C3  after dropping, at least one page is free and at least one is in use
 */
#include "audit/census.h"

#include <string.h>

#include "base/mem.h"
#include "base/num.h"

#define MIN_PAGES 16U
#define DROP_PART 16U /* of all pages, a sixteenth */
/* a page, its key, its scratch, its place in the free list, and 2 to 4 slots */
#define BYTES_PER_PAGE (QK_CENSUS_PAGE_BYTES + 8U + 8U + 4U + 16U)

static uint64_t round_up_pow2(uint64_t v)
{
	uint64_t p = 1;

	while (p < v)
		p <<= 1;
	return p;
}

enum qcow_status qk_census_init(
	struct qk_census *c, uint64_t memory_bytes, uint64_t n_clusters, struct qcow_error *err)
{
	*c = (struct qk_census){0};
	/* 128 counters a page where they are wide, and one page more for each end */
	uint64_t useful = qk_max(n_clusters / 128 + 2, MIN_PAGES);
	uint64_t n = qk_max(memory_bytes / BYTES_PER_PAGE, MIN_PAGES);

	n = qk_min(qk_min(n, useful), UINT32_MAX / 4);
	c->max_pages = (uint32_t)n;
	uint64_t n_slots = round_up_pow2(n * 2);
	c->slot_mask = (uint32_t)(n_slots - 1);
	c->pages = qk_malloc_aligned(64, n * QK_CENSUS_PAGE_BYTES);
	c->keys = qk_malloc(n, sizeof(*c->keys));
	c->scratch = qk_malloc(n, sizeof(*c->scratch));
	c->free_pages = qk_malloc(n, sizeof(*c->free_pages));
	c->slots = qk_malloc(n_slots, sizeof(*c->slots));
	if (c->pages == NULL || c->keys == NULL || c->scratch == NULL || c->free_pages == NULL ||
		c->slots == NULL) {
		qk_census_release(c);
		return QK_FAIL_NOMEM(err);
	}
	qk_census_begin(c, 0, n_clusters, false);
	return QCOW_OK;
}

void qk_census_release(struct qk_census *c)
{
	free(c->pages);
	free(c->keys);
	free(c->scratch);
	free(c->free_pages);
	free(c->slots);
	*c = (struct qk_census){0};
}

static void clear_slots(struct qk_census *c)
{
	memset(c->slots, 0, ((size_t)c->slot_mask + 1) * sizeof(*c->slots));
}

void qk_census_begin(struct qk_census *c, uint64_t lo, uint64_t hi, bool wide)
{
	c->lo = lo;
	c->hi = hi;
	c->wide = wide;
	c->need_wide = false;
	c->page_shift = wide ? 7 : 9;
	c->page_mask = (UINT64_C(1) << c->page_shift) - 1;
	c->current = NULL;
	c->current_key = QK_CENSUS_NO_KEY;
	c->n_pages = 0;
	c->n_free = 0;
	clear_slots(c);
}

static uint32_t first_slot(const struct qk_census *c, uint64_t key)
{
	return (uint32_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & c->slot_mask;
}

/* The slot that holds the key, or the empty one where it belongs. */
static uint32_t find_slot(const struct qk_census *c, uint64_t key)
{
	uint32_t s = first_slot(c, key);

	while (c->slots[s] != 0 && c->keys[c->slots[s] - 1] != key)
		s = (s + 1) & c->slot_mask;
	return s;
}

static int compare_keys(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a;
	uint64_t y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

const uint64_t *qk_census_sorted(struct qk_census *c, size_t *n)
{
	*n = 0;
	for (uint32_t i = 0; i < c->n_pages; i++) {
		if (c->keys[i] != QK_CENSUS_NO_KEY)
			c->scratch[(*n)++] = c->keys[i];
	}
	qsort(c->scratch, *n, sizeof(*c->scratch), compare_keys);
	return c->scratch;
}

/* Give up the highest pages: the pass ends below them. A few at a time, for clusters mostly come by ascending offset, and what
 * is given up has to be counted in another pass. */
static void drop_highest(struct qk_census *c)
{
	size_t n = 0;
	const uint64_t *sorted = qk_census_sorted(c, &n);
	uint64_t limit = sorted[n - n / DROP_PART];

	c->hi = limit << c->page_shift;
	c->current_key = QK_CENSUS_NO_KEY;
	clear_slots(c);
	for (uint32_t i = 0; i < c->n_pages; i++) {
		if (c->keys[i] >= limit) {
			c->keys[i] = QK_CENSUS_NO_KEY;
			c->free_pages[c->n_free++] = i;
		} else {
			c->slots[find_slot(c, c->keys[i])] = i + 1;
		}
	}
	QK_ASSERT_VOID(C3, c->n_free > 0 && c->n_free < c->n_pages);
}

bool qk_census_seek(struct qk_census *c, uint64_t key)
{
	uint32_t s = find_slot(c, key);

	if (c->slots[s] == 0) {
		if (c->n_pages == c->max_pages && c->n_free == 0) {
			drop_highest(c);
			if (key >= c->hi >> c->page_shift)
				return false;
			s = find_slot(c, key);
		}
		uint32_t page = c->n_free > 0 ? c->free_pages[--c->n_free] : c->n_pages++;
		c->keys[page] = key;
		c->slots[s] = page + 1;
		memset(c->pages + (size_t)page * QK_CENSUS_PAGE_BYTES, 0, QK_CENSUS_PAGE_BYTES);
	}
	c->current = c->pages + (size_t)(c->slots[s] - 1) * QK_CENSUS_PAGE_BYTES;
	c->current_key = key;
	return true;
}

/* What a reference with `flags` makes of a counter that has `old` (both in narrow bits, count aside). */
static unsigned merge_flags(unsigned old, bool was_counted, uint64_t n, unsigned flags)
{
	bool overlap = false;

	if ((flags & QK_CENSUS_EXCLUSIVE) != 0)
		overlap = was_counted || n > 1;
	else if ((flags & QK_CENSUS_L2) != 0)
		overlap = was_counted && (old & QK_CENSUS_L2) == 0;
	else
		overlap = (old & (QK_CENSUS_EXCLUSIVE | QK_CENSUS_L2)) != 0;
	if ((old & QK_CENSUS_EXCLUSIVE) != 0)
		overlap = true;
	return old | flags | (overlap ? QK_CENSUS_OVERLAP : 0);
}

static void add_narrow(struct qk_census *c, uint16_t *counter, uint64_t n, unsigned flags)
{
	unsigned count = *counter & QK_CENSUS_COUNT_MASK;
	unsigned merged = merge_flags(*counter & ~QK_CENSUS_COUNT_MASK, count != 0, n, flags);

	if (n >= QK_CENSUS_COUNT_MASK - count) {
		c->need_wide = true;
		return;
	}
	*counter = (uint16_t)((merged & ~QK_CENSUS_COUNT_MASK) | (count + (unsigned)n));
}

static void add_wide(uint64_t *counter, uint64_t n, unsigned flags)
{
	uint64_t count = *counter & QK_CENSUS_WIDE_COUNT;
	unsigned old = (unsigned)(*counter >> QK_CENSUS_WIDE_SHIFT) & ~QK_CENSUS_COUNT_MASK;
	unsigned merged = merge_flags(old, count != 0, n, flags) & ~QK_CENSUS_COUNT_MASK;

	*counter = QK_CENSUS_WIDE(merged) | qk_min(count + n, QK_CENSUS_WIDE_COUNT);
}

void qk_census_add(struct qk_census *c, uint64_t cluster, uint64_t n, unsigned flags)
{
	if (cluster - c->lo >= c->hi - c->lo || n == 0)
		return;
	uint64_t key = cluster >> c->page_shift;
	if (key != c->current_key && !qk_census_seek(c, key))
		return;
	QK_ASSERT_VOID(C2, c->current != NULL);
	uint64_t i = cluster & c->page_mask;
	if (c->wide)
		add_wide((uint64_t *)(void *)c->current + i, n, flags);
	else
		add_narrow(c, (uint16_t *)(void *)c->current + i, n, flags);
}

uint8_t *qk_census_find(const struct qk_census *c, uint64_t key)
{
	uint32_t s = find_slot(c, key);

	return c->slots[s] == 0 ? NULL
				: c->pages + (size_t)(c->slots[s] - 1) * QK_CENSUS_PAGE_BYTES;
}

uint64_t qk_census_load(const struct qk_census *c, const uint8_t *page, uint64_t i)
{
	if (c->wide)
		return ((const uint64_t *)(const void *)page)[i];
	uint16_t v = ((const uint16_t *)(const void *)page)[i];
	return QK_CENSUS_WIDE(v & ~QK_CENSUS_COUNT_MASK) | (v & QK_CENSUS_COUNT_MASK);
}

void qk_census_set_flags(const struct qk_census *c, uint8_t *page, uint64_t i, unsigned flags)
{
	if (c->wide) {
		uint64_t *v = (uint64_t *)(void *)page + i;
		*v = (*v & QK_CENSUS_WIDE_COUNT) | QK_CENSUS_WIDE(flags);
	} else {
		uint16_t *v = (uint16_t *)(void *)page + i;
		*v = (uint16_t)((*v & QK_CENSUS_COUNT_MASK) | flags);
	}
}

uint64_t qk_census_get(const struct qk_census *c, uint64_t cluster)
{
	const uint8_t *page = qk_census_find(c, cluster >> c->page_shift);

	return page == NULL ? 0 : qk_census_load(c, page, cluster & c->page_mask);
}
