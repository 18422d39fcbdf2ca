/* SPDX-License-Identifier: MIT */
/*
 * bits: ranges of bits in bytes, bit 0 of byte 0 first, as the bitmaps of the format have them. Pure.
 */
#ifndef QK_BASE_BITS_H
#define QK_BASE_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Set, clear bits [at, end). */
void qk_bits_set(uint8_t *p, uint64_t at, uint64_t end);
void qk_bits_clear(uint8_t *p, uint64_t at, uint64_t end);

/* dst |= src, n bytes. */
void qk_bits_or(uint8_t *dst, const uint8_t *src, size_t n);

/* Is any bit of src, n bytes, not set in dst? */
bool qk_bits_adds(const uint8_t *dst, const uint8_t *src, size_t n);

/* Are all bytes `byte`? */
bool qk_bits_all(const uint8_t *p, size_t n, uint8_t byte);

/* The first bit in [at, end) that is `is_set`, or end. */
uint64_t qk_bits_find(const uint8_t *p, uint64_t at, uint64_t end, bool is_set);

/* The same bits at another granularity: `src` has bits [src_first, src_first + n_src) of a bitmap whose bits stand for
 * 2^shift times (shift > 0), or a 2^-shift th (shift < 0), of what those of `dst` stand for; `dst` gets, ored
 * in, its bits [first, first + n). What lies outside of it is left out. */
struct qk_bits_part {
	uint8_t *dst;
	uint64_t first, n;
};
void qk_bits_scale(const struct qk_bits_part *to, const uint8_t *src, uint64_t src_first,
	uint64_t n_src, int shift);

#endif
