/* SPDX-License-Identifier: MIT */
/* refcounts: see refcounts.h. The widths that images have are loops without calls. */
#include "format/refcounts.h"

#include <string.h>

#include "base/bytes.h"
#include "base/num.h"

void qk_refcounts_load(const struct qk_geometry *g, const uint8_t *block, uint64_t index,
	uint64_t n, uint64_t *out)
{
	QK_ASSERT_VOID(F2, n <= g->rb_entries && index <= g->rb_entries - n);
	switch (g->refcount_order) {
	case 4:
		for (uint64_t i = 0; i < n; i++)
			out[i] = qk_load16(block + (index + i) * 2);
		return;
	case 6:
		for (uint64_t i = 0; i < n; i++)
			out[i] = qk_load64(block + (index + i) * 8);
		return;
	default:
		for (uint64_t i = 0; i < n; i++)
			out[i] = qk_refcount_get(g, block, index + i);
	}
}

void qk_refcounts_store(const struct qk_geometry *g, uint8_t *block, uint64_t index, uint64_t n,
	const uint64_t *counts)
{
	QK_ASSERT_VOID(F2, n <= g->rb_entries && index <= g->rb_entries - n);
	switch (g->refcount_order) {
	case 4:
		for (uint64_t i = 0; i < n; i++)
			qk_store16(block + (index + i) * 2, (uint16_t)counts[i]);
		return;
	case 6:
		for (uint64_t i = 0; i < n; i++)
			qk_store64(block + (index + i) * 8, counts[i]);
		return;
	default:
		for (uint64_t i = 0; i < n; i++)
			qk_refcount_set(g, block, index + i, counts[i]);
	}
}

/* Of 16-bit entries, 16 at a time while none is 0: the first of 16 one of which is. In a word of four the top bit of
 * (x - 1) & ~x is set where x is 0, and above such a one maybe. */
static uint64_t pass_full(const uint8_t *block, uint64_t index, uint64_t end)
{
	const uint64_t ones = UINT64_C(0x0001000100010001);
	uint64_t v[4];
	for (; index + 16 <= end; index += 16) {
		uint64_t any = 0;
		memcpy(v, block + index * 2, sizeof(v));
		for (unsigned i = 0; i < 4; i++)
			any |= (v[i] - ones) & ~v[i];
		if ((any & ones << 15) != 0)
			break;
	}
	return index;
}

uint64_t qk_refcounts_find_zero(
	const struct qk_geometry *g, const uint8_t *block, uint64_t index, uint64_t end)
{
	if (g->refcount_order == 4)
		index = pass_full(block, index, end);
	while (index < end && qk_refcount_get(g, block, index) != 0)
		index++;
	return index;
}

uint64_t qk_refcounts_all(const uint64_t *counts, uint64_t n)
{
	uint64_t all = 0;
	for (uint64_t i = 0; i < n; i++)
		all |= counts[i];
	return all;
}
