/* SPDX-License-Identifier: MIT */
/* refcounts: many entries of a refcount block at once. Pure. Specification: "Host cluster management". */
#ifndef QK_FORMAT_REFCOUNTS_H
#define QK_FORMAT_REFCOUNTS_H

#include "format/geometry.h"

/* out[0 .. n) are entries [index, index + n) of the block. */
void qk_refcounts_load(const struct qk_geometry *g, const uint8_t *block, uint64_t index,
	uint64_t n, uint64_t *out);

/* The other way; each count fits the width (qk_refcounts_all). */
void qk_refcounts_store(const struct qk_geometry *g, uint8_t *block, uint64_t index, uint64_t n,
	const uint64_t *counts);

/* The first entry in [index, end) of the block that is 0, or `end`. */
uint64_t qk_refcounts_find_zero(
	const struct qk_geometry *g, const uint8_t *block, uint64_t index, uint64_t end);

/* The bits of n counts together: 0 where all are 0, and larger than a refcount_max where one of them is. */
uint64_t qk_refcounts_all(const uint64_t *counts, uint64_t n);

#endif
