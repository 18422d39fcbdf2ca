/* SPDX-License-Identifier: MIT */
/*
 * geometry: derived numbers of an image, and refcounts of every width in a refcount block.
 *
 * Pure. Invariant F1: the three inputs were validated (cluster_bits 9-21, refcount_order 0-6,
 * extended L2 from 14 cluster bits); everything else here is arithmetic that then cannot overflow:
 * l2_span <= 2^18 entries * 2^21 bytes = 2^39.
 */
#include "format/geometry.h"

#include "base/bytes.h"

void qk_geometry_init(struct qk_geometry *g, unsigned version, unsigned cluster_bits,
	unsigned refcount_order, bool extended_l2)
{
	QK_ASSERT_VOID(
		F1, cluster_bits >= QK_MIN_CLUSTER_BITS && cluster_bits <= QK_MAX_CLUSTER_BITS);
	QK_ASSERT_VOID(F1, refcount_order <= QK_MAX_REFCOUNT_ORDER);
	QK_ASSERT_VOID(F1, !extended_l2 || cluster_bits >= QK_MIN_EXTL2_CLUSTER_BITS);

	unsigned l2_entry_bits = extended_l2 ? 4 : 3;
	*g = (struct qk_geometry){
		.version = version,
		.cluster_bits = cluster_bits,
		.cluster_size = UINT64_C(1) << cluster_bits,
		.extended_l2 = extended_l2,
		.l2_entry_size = 1U << l2_entry_bits,
		.l2_bits = cluster_bits - l2_entry_bits,
		.subclusters = extended_l2 ? QK_SUBCLUSTERS : 1U,
		.refcount_order = refcount_order,
		.refcount_bits = 1U << refcount_order,
		.rb_bits = cluster_bits + 3 - refcount_order,
		.csize_shift = 62 - (cluster_bits - 8),
	};
	g->l2_entries = UINT32_C(1) << g->l2_bits;
	g->l2_span = (uint64_t)g->l2_entries << cluster_bits;
	g->subcluster_size = g->cluster_size / g->subclusters;
	g->refcount_max = UINT64_MAX >> (64 - g->refcount_bits);
	g->rb_entries = UINT64_C(1) << g->rb_bits;
	g->csize_mask = (UINT64_C(1) << (cluster_bits - 8)) - 1;
	g->coffset_mask = qk_min((UINT64_C(1) << g->csize_shift), QK_MAX_OFFSET) - 1;
}

uint64_t qk_geometry_l1_entries(const struct qk_geometry *g, uint64_t size)
{
	return qk_div_up(size, g->l2_span);
}

bool qk_is_table_place(unsigned cluster_bits, uint64_t off, uint64_t bytes)
{
	uint64_t cluster_size = UINT64_C(1) << cluster_bits;
	uint64_t end = 0;
	if (!qk_is_aligned(off, cluster_size) || off > QK_MAX_FILE_OFFSET)
		return false;
	if (bytes == 0)
		return true;
	return off != 0 && qk_add(off, bytes, &end) && qk_align_up(end, cluster_size, &end) &&
	       end <= QK_MAX_FILE_OFFSET;
}

/* Widths of 1, 2 and 4 bits: entry 0 is in the least significant bits of byte 0. */
static unsigned sub_byte_shift(const struct qk_geometry *g, uint64_t index)
{
	unsigned entries_per_byte = 8U >> g->refcount_order;
	return (unsigned)(index & (entries_per_byte - 1)) << g->refcount_order;
}

static uint64_t sub_byte_index(const struct qk_geometry *g, uint64_t index)
{
	return index >> (3 - g->refcount_order);
}

uint64_t qk_refcount_get(const struct qk_geometry *g, const uint8_t *block, uint64_t index)
{
	QK_ASSERT_VOID(F2, index < g->rb_entries);
	switch (g->refcount_order) {
	case 3:
		return block[index];
	case 4:
		return qk_load16(block + index * 2);
	case 5:
		return qk_load32(block + index * 4);
	case 6:
		return qk_load64(block + index * 8);
	default:
		return (uint64_t)block[sub_byte_index(g, index)] >> sub_byte_shift(g, index) &
		       g->refcount_max;
	}
}

void qk_refcount_set(const struct qk_geometry *g, uint8_t *block, uint64_t index, uint64_t value)
{
	QK_ASSERT_VOID(F2, index < g->rb_entries);
	QK_ASSERT_VOID(F3, value <= g->refcount_max);
	switch (g->refcount_order) {
	case 3:
		block[index] = (uint8_t)value;
		return;
	case 4:
		qk_store16(block + index * 2, (uint16_t)value);
		return;
	case 5:
		qk_store32(block + index * 4, (uint32_t)value);
		return;
	case 6:
		qk_store64(block + index * 8, value);
		return;
	default: {
		uint8_t *p = block + sub_byte_index(g, index);
		unsigned shift = sub_byte_shift(g, index);
		*p = (uint8_t)((*p & ~(g->refcount_max << shift)) | (value << shift));
	}
	}
}
