/* SPDX-License-Identifier: MIT */
/*
 * geometry: the numbers that follow from cluster_bits, refcount_order and the feature bits,
 * computed once from validated header fields. Pure. Specification: "Host cluster management",
 * "Cluster mapping".
 */
#ifndef QK_FORMAT_GEOMETRY_H
#define QK_FORMAT_GEOMETRY_H

#include <stdbool.h>

#include "base/err.h"
#include "base/num.h"
#include "format/limits.h"

struct qk_geometry {
	unsigned version;
	unsigned cluster_bits;
	uint64_t cluster_size;
	bool extended_l2;
	bool data_file; /* guest clusters live in an external data file */
	unsigned l2_entry_size; /* 8, extended 16 */
	unsigned l2_bits; /* log2 of l2_entries */
	uint32_t l2_entries; /* an L2 table */
	uint64_t l2_span; /* guest bytes that one L2 table maps */
	unsigned subclusters; /* 32 with extended L2, else 1 */
	uint64_t subcluster_size;
	unsigned refcount_order;
	unsigned refcount_bits; /* 1 << refcount_order */
	uint64_t refcount_max; /* largest refcount that the width holds */
	unsigned rb_bits; /* log2 of rb_entries */
	uint64_t rb_entries; /* refcounts in a refcount block */
	unsigned csize_shift; /* compressed descriptor: x = 62 - (cluster_bits - 8) */
	uint64_t csize_mask; /* … sectors field, after the shift */
	uint64_t coffset_mask; /* … offset field, bits 0 to x-1, and never beyond bit 55 */
};

/* Fields must have passed qk_header_validate or qk_create validation. data_file is false: set it
 * where there is one. */
void qk_geometry_init(struct qk_geometry *g, unsigned version, unsigned cluster_bits,
	unsigned refcount_order, bool extended_l2);

/* L1 entries needed to map `size` bytes. */
uint64_t qk_geometry_l1_entries(const struct qk_geometry *g, uint64_t size);

/* Can a table of `bytes` bytes start at `off`? Aligned, behind the header cluster (an empty table
 * may say 0), and its last cluster ends within QK_MAX_FILE_OFFSET. The end of the file is not
 * judged. */
bool qk_is_table_place(unsigned cluster_bits, uint64_t off, uint64_t bytes);

/* Refcount of entry `index` (< rb_entries) in a refcount block of cluster_size bytes, and setting
 * it. Widths below a byte count from the least significant bit. */
uint64_t qk_refcount_get(const struct qk_geometry *g, const uint8_t *block, uint64_t index);
void qk_refcount_set(const struct qk_geometry *g, uint8_t *block, uint64_t index, uint64_t value);

#endif
