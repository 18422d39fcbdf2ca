/* SPDX-License-Identifier: MIT */
/*
 * num: arithmetic on values that came from disk or from a caller. The checked forms return false on
 * overflow and leave *out alone; use them on everything that a validator has not yet bounded.
 */
#ifndef QK_BASE_NUM_H
#define QK_BASE_NUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QK_KIB(n) ((uint64_t)(n) << 10)
#define QK_MIB(n) ((uint64_t)(n) << 20)
#define QK_GIB(n) ((uint64_t)(n) << 30)

/* The three address spaces of an image, kept apart by the compiler. */
typedef struct {
	uint64_t v; /* bytes into the virtual disk */
} qk_goff;
typedef struct {
	uint64_t v; /* bytes into the image file, or into the data file */
} qk_hoff;
typedef struct {
	uint64_t v; /* host offset >> cluster_bits */
} qk_cidx;

static inline bool qk_add(uint64_t a, uint64_t b, uint64_t *out)
{
	uint64_t sum = 0;
	if (__builtin_add_overflow(a, b, &sum))
		return false;
	*out = sum;
	return true;
}

static inline bool qk_mul(uint64_t a, uint64_t b, uint64_t *out)
{
	uint64_t product = 0;
	if (__builtin_mul_overflow(a, b, &product))
		return false;
	*out = product;
	return true;
}

static inline bool qk_is_pow2(uint64_t v)
{
	return v != 0 && (v & (v - 1)) == 0;
}

/* align is a power of two. */
static inline uint64_t qk_align_down(uint64_t v, uint64_t align)
{
	return v & ~(align - 1);
}

static inline bool qk_is_aligned(uint64_t v, uint64_t align)
{
	return (v & (align - 1)) == 0;
}

/* Round up to a multiple of align (a power of two). */
static inline bool qk_align_up(uint64_t v, uint64_t align, uint64_t *out)
{
	uint64_t sum = 0;
	if (!qk_add(v, align - 1, &sum))
		return false;
	*out = qk_align_down(sum, align);
	return true;
}

/* a / b rounded up, b != 0; cannot overflow. */
static inline uint64_t qk_div_up(uint64_t a, uint64_t b)
{
	return a / b + (a % b != 0);
}

static inline uint64_t qk_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t qk_max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* log2 of a power of two. */
static inline unsigned qk_log2(uint64_t v)
{
	return (unsigned)__builtin_ctzll(v);
}

/* [off, off + len) lies within [0, size). */
static inline bool qk_in_range(uint64_t off, uint64_t len, uint64_t size)
{
	return off <= size && len <= size - off;
}

#endif
