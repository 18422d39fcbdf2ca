/* SPDX-License-Identifier: MIT */
/*
 * Layout of new images. Input: 3 bytes of geometry, disk size, a count of clusters. Oracles: the
 * refcounts count everything, themselves included, and not a block more than needed; the pieces
 * follow without gaps.
 */
#include "fuzz.h"

#include "format/layout.h"

static bool covers(const struct qk_geometry *g, uint64_t n_other, uint64_t blocks)
{
	uint64_t table = qk_div_up(blocks * 8, g->cluster_size);
	return blocks << g->rb_bits >= n_other + blocks + table;
}

static void check_refcounts(const struct qk_geometry *g, uint64_t n_other)
{
	uint64_t blocks = 0, table = 0, max_blocks = QK_MAX_REFTABLE_BYTES / 8;
	if (qk_layout_refcounts(g, n_other, &blocks, &table, NULL) != QCOW_OK) {
		FUZZ_CHECK(n_other > max_blocks << g->rb_bits || !covers(g, n_other, max_blocks));
		return;
	}
	FUZZ_CHECK(table == qk_div_up(blocks * 8, g->cluster_size));
	FUZZ_CHECK(covers(g, n_other, blocks));
	FUZZ_CHECK(blocks == 0 || n_other == 0 || !covers(g, n_other, blocks - 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct qk_reader r = qk_reader_init(data, n);
	struct qk_geometry g = fuzz_geometry(&r);
	uint64_t size = qk_read64(&r), n_other = qk_read64(&r);
	struct qk_layout l;
	check_refcounts(&g, n_other);
	check_refcounts(&g, n_other >> 40);
	if (qk_layout_empty(&g, size, &l, NULL) != QCOW_OK) {
		FUZZ_CHECK(qk_geometry_l1_entries(&g, size) > QK_MAX_L1_BYTES / 8);
		return 0;
	}
	FUZZ_CHECK(l.rt_off == g.cluster_size);
	FUZZ_CHECK(l.rb_off == l.rt_off + l.rt_clusters * g.cluster_size);
	FUZZ_CHECK(l.end_off == l.rb_off + (l.n_blocks + l.l1_clusters) * g.cluster_size);
	FUZZ_CHECK(l.l1_entries == 0 ? l.l1_off == 0
				     : l.l1_off == l.rb_off + l.n_blocks * g.cluster_size);
	FUZZ_CHECK(l.l1_entries * 8 <= l.l1_clusters * g.cluster_size);
	FUZZ_CHECK(l.l1_entries * g.l2_span >= size);
	FUZZ_CHECK(l.end_off / g.cluster_size <= l.n_blocks << g.rb_bits);
	return 0;
}
