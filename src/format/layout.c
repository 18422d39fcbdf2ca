/* SPDX-License-Identifier: MIT */
/*
 * layout: offsets of the metadata of a new image.
 *
 * Pure. The pieces of an empty image, in this order and without gaps:
 *
 *   | header | refcount table ... | refcount blocks ... | L1 table ... |
 *   0        1                    1 + rt                1 + rt + rb    end      (clusters)
 *
 * With one cluster of refcount table and one refcount block (all but huge L1 tables of tiny
 * clusters) these are qemu-img's offsets.
 */
#include "format/layout.h"

#include <inttypes.h>

static enum qcow_status fail_too_many(
	const struct qk_geometry *g, uint64_t n_other, struct qcow_error *err)
{
	return QK_FAIL(err, QCOW_E_LIMIT,
		"%" PRIu64 " clusters need a refcount table over %" PRIu64
		" bytes with %u-bit refcounts and a cluster size of %" PRIu64
		": larger clusters or narrower refcounts hold more",
		n_other, QK_MAX_REFTABLE_BYTES, g->refcount_bits, g->cluster_size);
}

/* Refcount metadata counts itself, so the sum is iterated from below to its least fixed point. Each
 * round adds at least a cluster, and a refcount block counts at least 64 (512 bytes, 64 bits): a
 * few rounds. */
enum qcow_status qk_layout_refcounts(const struct qk_geometry *g, uint64_t n_other,
	uint64_t *n_blocks, uint64_t *n_table_clusters, struct qcow_error *err)
{
	uint64_t max_blocks = QK_MAX_REFTABLE_BYTES / 8;
	uint64_t blocks = 0, table = 0, before = 0;

	if (n_other > max_blocks << g->rb_bits) /* <= 2^20 * 2^24: the sums below cannot overflow */
		return fail_too_many(g, n_other, err);
	do {
		before = blocks + table;
		blocks = qk_div_up(n_other + before, g->rb_entries);
		table = qk_div_up(blocks * 8, g->cluster_size);
		if (blocks > max_blocks)
			return fail_too_many(g, n_other, err);
	} while (blocks + table != before);
	*n_blocks = blocks;
	*n_table_clusters = table;
	return QCOW_OK;
}

enum qcow_status qk_layout_empty(const struct qk_geometry *g, uint64_t disk_size,
	struct qk_layout *out, struct qcow_error *err)
{
	uint64_t l1_entries = qk_geometry_l1_entries(g, disk_size);
	if (l1_entries > QK_MAX_L1_BYTES / 8)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"a virtual size of %" PRIu64 " needs an L1 table of %" PRIu64
			" entries with a cluster size of %" PRIu64 ": at most %" PRIu64
			", larger clusters hold more",
			disk_size, l1_entries, g->cluster_size, QK_MAX_L1_BYTES / 8);

	uint64_t l1_clusters = qk_div_up(l1_entries * 8, g->cluster_size);
	uint64_t rt_clusters = 0, n_blocks = 0;
	enum qcow_status status = qk_layout_refcounts(
		g, 1 + l1_clusters, &n_blocks, &rt_clusters, err);
	/* At most 1 + 65536 clusters (32 MiB in clusters of 512 bytes), and a table counts 2^26. */
	QK_ASSERT(F10, status == QCOW_OK);
	uint64_t l1_first = 1 + rt_clusters + n_blocks;
	*out = (struct qk_layout){
		.rt_off = g->cluster_size,
		.rt_clusters = rt_clusters,
		.rb_off = (1 + rt_clusters) << g->cluster_bits,
		.n_blocks = n_blocks,
		.l1_off = l1_entries != 0 ? l1_first << g->cluster_bits : 0,
		.l1_entries = l1_entries,
		.l1_clusters = l1_clusters,
		.end_off = (l1_first + l1_clusters) << g->cluster_bits,
	};
	return QCOW_OK;
}
