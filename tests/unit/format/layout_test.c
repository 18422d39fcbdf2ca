/* SPDX-License-Identifier: MIT */
/* layout_test: places in new images: minimal, without gaps, and QEMU's. */
#include "golden.h"

#include <inttypes.h>

#include "format/layout.h"

static struct qk_geometry geometry(unsigned bits, unsigned order)
{
	struct qk_geometry g;
	qk_geometry_init(&g, 3, bits, order, false);
	return g;
}

/* The smallest answer, found by trying: blocks count everything, the table names every block. */
static void refcounts_cover_themselves_and_no_more(void **state)
{
	(void)state;
	static const uint64_t OTHERS[] = {1, 2, 61, 62, 63, 64, 200, 255, 4000, 65533, 1000000};
	struct qcow_error err = QCOW_ERROR_INIT;
	for (unsigned order = 0; order <= 6; order += 2) {
		struct qk_geometry g = geometry(9, order);
		for (size_t i = 0; i < sizeof(OTHERS) / sizeof(OTHERS[0]); i++) {
			uint64_t blocks = 0, table = 0, least = 0;
			assert_ok(qk_layout_refcounts(&g, OTHERS[i], &blocks, &table, &err), err);
			assert_true(blocks * g.rb_entries >= OTHERS[i] + blocks + table);
			assert_true(table * g.cluster_size >= blocks * 8);
			assert_true((table - 1) * g.cluster_size < blocks * 8);
			for (least = 1;; least++) {
				uint64_t t = qk_div_up(least * 8, g.cluster_size);
				if (least * g.rb_entries >= OTHERS[i] + least + t)
					break;
			}
			CHECK(blocks == least, "order %u, %" PRIu64, order, OTHERS[i]);
		}
	}
}

static void nothing_needs_no_refcounts(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(16, 4);
	uint64_t blocks = 7, table = 7;
	assert_int_equal(qk_layout_refcounts(&g, 0, &blocks, &table, NULL), QCOW_OK);
	assert_true(blocks == 0 && table == 0);
}

static void refcount_tables_over_8_mib_are_refused(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_geometry g = geometry(9, 6); /* 64 clusters a block, 2^20 blocks */
	uint64_t blocks = 0, table = 0, most = UINT64_C(1) << 26;
	uint64_t own = (UINT64_C(1) << 20) + (QK_MIB(8) >> 9);
	assert_ok(qk_layout_refcounts(&g, most - own, &blocks, &table, &err), err);
	assert_int_equal(blocks, 1 << 20);
	assert_status(
		qk_layout_refcounts(&g, most - own + 1, &blocks, &table, &err), QCOW_E_LIMIT, err);
	assert_says(err, "66043905 clusters need a refcount table over 8388608 bytes with 64-bit "
			 "refcounts and "
			 "a cluster size of 512");
	assert_status(qk_layout_refcounts(&g, most, &blocks, &table, &err), QCOW_E_LIMIT, err);
	assert_status(
		qk_layout_refcounts(&g, UINT64_MAX, &blocks, &table, &err), QCOW_E_LIMIT, err);
}

static void l1_tables_over_32_mib_are_refused(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_geometry g = geometry(9, 4); /* 32 KiB an entry, 4 Mi entries: 128 GiB */
	struct qk_layout l;
	assert_ok(qk_layout_empty(&g, QK_GIB(128), &l, &err), err);
	assert_int_equal(l.l1_entries, 1 << 22);
	assert_status(qk_layout_empty(&g, QK_GIB(128) + 1, &l, &err), QCOW_E_LIMIT, err);
	assert_string_equal(err.message, "a virtual size of 137438953473 needs an L1 table of "
					 "4194305 entries with a cluster "
					 "size of 512: at most 4194304, larger clusters hold more");
}

/* 4 Mi L1 entries of 512-byte clusters are 65536 clusters: at 64 bits more than 1024 refcount
 * blocks. */
static void pieces_follow_each_other_without_gaps(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	for (unsigned order = 0; order <= 6; order++) {
		struct qk_geometry g = geometry(9, order);
		struct qk_layout l;
		assert_ok(qk_layout_empty(&g, QK_GIB(128), &l, &err), err);
		assert_int_equal(l.rt_off, g.cluster_size);
		assert_int_equal(l.rb_off, l.rt_off + l.rt_clusters * g.cluster_size);
		assert_int_equal(l.l1_off, l.rb_off + l.n_blocks * g.cluster_size);
		assert_int_equal(l.end_off, l.l1_off + l.l1_clusters * g.cluster_size);
		assert_int_equal(l.l1_clusters, 65536);
		assert_true(l.n_blocks * g.rb_entries >= l.end_off / g.cluster_size);
		assert_true(l.rt_clusters * g.cluster_size >= l.n_blocks * 8);
	}
}

/* 64 clusters a block: header, table, block and 61 of L1 fill one to the last. */
static void a_full_refcount_block_is_enough(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_geometry g = geometry(9, 6);
	struct qk_layout l;
	uint64_t size = 61 * 64 * g.l2_span; /* 64 entries a cluster of L1 */
	assert_ok(qk_layout_empty(&g, size, &l, &err), err);
	assert_true(l.l1_clusters == 61 && l.n_blocks == 1 && l.rt_clusters == 1);
	assert_int_equal(l.end_off, QK_KIB(32));
	assert_ok(qk_layout_empty(&g, size + 1, &l, &err), err);
	assert_true(l.l1_clusters == 62 && l.n_blocks == 2 && l.rt_clusters == 1);
}

/* Where QEMU needs one refcount block, its places and ours are the same. */
static void golden_layout(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qk_geometry g;
	struct qk_layout l;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *cluster0 = golden_header(golden, &h, &ext, &g);
	if (golden_number(golden, "pristine", 0) && !ext.has_crypto) {
		assert_ok(qk_layout_empty(&g, h.size, &l, &err), err);
		assert_int_equal(l.n_blocks, 1);
		assert_int_equal(l.rt_off, h.rt_off);
		assert_int_equal(l.rt_clusters, h.rt_clusters);
		assert_int_equal(l.l1_off, h.l1_off);
		assert_int_equal(l.l1_entries, h.l1_entries);
	}
	free(cluster0);
}

static void new_images_have_qemus_layout(void **state)
{
	(void)state;
	golden_each(golden_layout);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refcounts_cover_themselves_and_no_more),
		cmocka_unit_test(nothing_needs_no_refcounts),
		cmocka_unit_test(refcount_tables_over_8_mib_are_refused),
		cmocka_unit_test(l1_tables_over_32_mib_are_refused),
		cmocka_unit_test(pieces_follow_each_other_without_gaps),
		cmocka_unit_test(a_full_refcount_block_is_enough),
		cmocka_unit_test(new_images_have_qemus_layout),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
