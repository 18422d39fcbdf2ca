/* SPDX-License-Identifier: MIT */
#include "base/bits.h"

#include <string.h>

#include "base/num.h"

void qk_bits_set(uint8_t *p, uint64_t at, uint64_t end)
{
	for (; at < end && at % 8 != 0; at++)
		p[at / 8] |= (uint8_t)(1U << (at % 8));
	if (at + 8 <= end) {
		memset(p + at / 8, 0xff, (end - at) / 8);
		at += (end - at) / 8 * 8;
	}
	for (; at < end; at++)
		p[at / 8] |= (uint8_t)(1U << (at % 8));
}

void qk_bits_clear(uint8_t *p, uint64_t at, uint64_t end)
{
	for (; at < end && at % 8 != 0; at++)
		p[at / 8] &= (uint8_t) ~(1U << (at % 8));
	if (at + 8 <= end) {
		memset(p + at / 8, 0, (end - at) / 8);
		at += (end - at) / 8 * 8;
	}
	for (; at < end; at++)
		p[at / 8] &= (uint8_t) ~(1U << (at % 8));
}

void qk_bits_or(uint8_t *dst, const uint8_t *src, size_t n)
{
	for (size_t i = 0; i < n; i++)
		dst[i] |= src[i];
}

bool qk_bits_adds(const uint8_t *dst, const uint8_t *src, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if ((src[i] & (uint8_t)~dst[i]) != 0)
			return true;
	return false;
}

bool qk_bits_all(const uint8_t *p, size_t n, uint8_t byte)
{
	return n == 0 || (p[0] == byte && memcmp(p, p + 1, n - 1) == 0);
}

uint64_t qk_bits_find(const uint8_t *p, uint64_t at, uint64_t end, bool is_set)
{
	static const uint8_t other[2] = {0xff, 0x00};
	uint64_t bit = at;

	while (bit < end) {
		uint8_t hits = (uint8_t)((p[bit / 8] ^ other[is_set]) >> (bit % 8));
		if (hits != 0) {
			bit += (unsigned)__builtin_ctz(hits);
			break;
		}
		bit += 8 - bit % 8;
		/* eight bytes at a time where there is none */
		for (uint64_t word = is_set ? 0 : UINT64_MAX; bit + 64 <= end; bit += 64)
			if (memcmp(p + bit / 8, &word, 8) != 0)
				break;
	}
	return qk_min(bit, end);
}

void qk_bits_scale(const struct qk_bits_part *to, const uint8_t *src, uint64_t src_first,
	uint64_t n_src, int shift)
{
	unsigned wider = shift > 0 ? (unsigned)shift : 0, finer = shift < 0 ? (unsigned)-shift : 0;
	uint64_t past = to->first + to->n;

	for (uint64_t at = 0; at < n_src;) {
		at = qk_bits_find(src, at, n_src, true);
		uint64_t end = qk_bits_find(src, at, n_src, false);
		if (at == end)
			break;
		/* bits of dst that the run touches */
		uint64_t from = ((src_first + at) << wider) >> finer;
		uint64_t last = (((src_first + end) << wider) - 1) >> finer;
		from = qk_max(from, to->first);
		if (from < past && last >= from)
			qk_bits_set(to->dst, from - to->first, qk_min(last + 1, past) - to->first);
		at = end;
	}
}
