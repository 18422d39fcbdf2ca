/* SPDX-License-Identifier: MIT */
/*
 * Refcount blocks. Input: 3 bytes of geometry, then the block's first bytes. Oracles: a block that
 * is read and written count by count is the same block; setting one count leaves its neighbours.
 */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static uint8_t copy[1 << 16];
	struct qk_reader r = qk_reader_init(data, n);
	struct qk_geometry g = fuzz_geometry(&r);
	if (r.bad || n - r.at < 8)
		return 0;
	const uint8_t *block = data + r.at;
	size_t bytes = (size_t)qk_min(qk_min(n - r.at, g.cluster_size), sizeof(copy)) & ~(size_t)7;
	uint64_t entries = bytes * 8 / g.refcount_bits;
	memset(copy, 0xa5, bytes);
	for (uint64_t i = 0; i < entries; i++) {
		uint64_t value = qk_refcount_get(&g, block, i);
		FUZZ_CHECK(value <= g.refcount_max);
		qk_refcount_set(&g, copy, i, value);
	}
	FUZZ_CHECK(memcmp(copy, block, bytes) == 0);
	uint64_t at = block[0] % entries;
	uint64_t flipped = ~qk_refcount_get(&g, block, at) & g.refcount_max;
	qk_refcount_set(&g, copy, at, flipped);
	for (uint64_t i = 0; i < entries; i++)
		FUZZ_CHECK(qk_refcount_get(&g, copy, i) ==
			   (i == at ? flipped : qk_refcount_get(&g, block, i)));
	return 0;
}
