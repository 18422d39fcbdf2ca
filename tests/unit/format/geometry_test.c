/* SPDX-License-Identifier: MIT */
/* geometry_test: derived numbers and refcounts, against formulas, a bit-by-bit reader and QEMU. */
#include "golden.h"

#include <inttypes.h>

#include "format/refcounts.h"

static void derived_numbers_follow_the_formulas(void **state)
{
	(void)state;
	for (unsigned bits = 9; bits <= 21; bits++) {
		for (unsigned order = 0; order <= 6; order++) {
			for (unsigned ext = 0; ext <= (bits >= 14); ext++) {
				struct qk_geometry g;
				uint64_t size = UINT64_C(1) << bits;
				uint64_t entry = ext ? 16 : 8;
				qk_geometry_init(&g, 3, bits, order, ext);
				assert_int_equal(g.cluster_size, size);
				assert_int_equal(g.l2_entry_size, entry);
				assert_int_equal(g.l2_entries, size / entry);
				assert_int_equal(UINT64_C(1) << g.l2_bits, g.l2_entries);
				assert_int_equal(g.l2_span, size / entry * size);
				assert_int_equal(g.subclusters, ext ? 32 : 1);
				assert_int_equal(g.subcluster_size, ext ? size / 32 : size);
				assert_int_equal(g.refcount_bits, 1U << order);
				assert_int_equal(g.rb_entries, size * 8 / (1U << order));
				assert_int_equal(UINT64_C(1) << g.rb_bits, g.rb_entries);
				assert_int_equal(g.csize_shift, 62 - (bits - 8));
				assert_int_equal(g.csize_mask, (UINT64_C(1) << (bits - 8)) - 1);
			}
		}
	}
}

static void largest_refcount_fills_the_width(void **state)
{
	(void)state;
	static const uint64_t MAX[] = {1, 3, 15, 255, 65535, UINT32_MAX, UINT64_MAX};
	for (unsigned order = 0; order <= 6; order++) {
		struct qk_geometry g;
		qk_geometry_init(&g, 3, 16, order, false);
		assert_true(g.refcount_max == MAX[order]);
	}
}

static void compressed_offsets_end_at_bit_55(void **state)
{
	(void)state;
	struct qk_geometry g;
	qk_geometry_init(&g, 3, 9, 4, false); /* x = 61 */
	assert_true(g.coffset_mask == UINT64_C(0x00ffffffffffffff));
	qk_geometry_init(&g, 3, 14, 4, false); /* x = 56 */
	assert_true(g.coffset_mask == UINT64_C(0x00ffffffffffffff));
	qk_geometry_init(&g, 3, 15, 4, false); /* x = 55 */
	assert_true(g.coffset_mask == UINT64_C(0x007fffffffffffff));
	qk_geometry_init(&g, 3, 21, 4, false); /* x = 49: 512 TiB */
	assert_true(g.coffset_mask == UINT64_C(0x0001ffffffffffff));
}

static void l1_entries_round_up(void **state)
{
	(void)state;
	struct qk_geometry g;
	qk_geometry_init(&g, 3, 16, 4, false); /* 512 MiB an entry */
	assert_int_equal(qk_geometry_l1_entries(&g, 0), 0);
	assert_int_equal(qk_geometry_l1_entries(&g, 1), 1);
	assert_int_equal(qk_geometry_l1_entries(&g, QK_MIB(512)), 1);
	assert_int_equal(qk_geometry_l1_entries(&g, QK_MIB(512) + 1), 2);
	assert_true(qk_geometry_l1_entries(&g, UINT64_MAX) == UINT64_C(1) << 35);
}

static void table_places_are_judged_to_the_last_cluster(void **state)
{
	(void)state;
	uint64_t c = 65536, top = UINT64_C(1) << 63;
	assert_true(qk_is_table_place(16, c, 8));
	assert_true(qk_is_table_place(16, 0, 0));
	assert_true(qk_is_table_place(16, top - 2 * c, c));
	assert_false(qk_is_table_place(16, top - c, 0 + 8)); /* its cluster ends at 2^63 */
	assert_true(qk_is_table_place(16, top - c, 0));
	assert_false(qk_is_table_place(16, top, 0));
	assert_false(qk_is_table_place(16, 0, 8));
	assert_false(qk_is_table_place(16, c + 512, 8));
	assert_false(qk_is_table_place(16, c, UINT64_MAX)); /* off + bytes */
	assert_false(qk_is_table_place(16, c, UINT64_MAX - c - 1)); /* rounding up */
}

/* The oracle: a big integer as the specification draws it, one bit at a time. */
static uint64_t slow_refcount(const uint8_t *block, unsigned bits, uint64_t index)
{
	uint64_t value = 0;
	for (unsigned i = 0; i < bits; i++) {
		uint64_t bit = 0;
		if (bits < 8) {
			uint64_t at = index * bits + i;
			bit = block[at / 8] >> (at % 8) & 1;
		} else {
			uint64_t byte = index * bits / 8 + (bits / 8 - 1 - i / 8);
			bit = block[byte] >> (i % 8) & 1;
		}
		value |= bit << i;
	}
	return value;
}

static void refcounts_of_every_width_are_read_as_drawn(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(1);
	uint8_t block[4096];
	for (size_t i = 0; i < sizeof(block); i++)
		block[i] = (uint8_t)qkt_rng_next(&rng);
	for (unsigned order = 0; order <= 6; order++) {
		struct qk_geometry g;
		qk_geometry_init(&g, 3, 12, order, false);
		for (uint64_t i = 0; i < g.rb_entries; i++)
			CHECK(qk_refcount_get(&g, block, i) == slow_refcount(block, 1U << order, i),
				"order %u, entry %" PRIu64, order, i);
	}
}

static void many_refcounts_are_each_of_them(void **state)
{
	struct qkt_rng rng = qkt_rng_init(5);
	(void)state;
	for (unsigned order = 0; order <= 6; order++) {
		struct qk_geometry g;
		uint8_t one[512] = {0}, many[512] = {0};
		uint64_t counts[64], back[64], all = 0;
		qk_geometry_init(&g, 3, 9, order, false);
		uint64_t n = g.rb_entries < 64 ? g.rb_entries : 64, at = g.rb_entries - n;
		for (uint64_t i = 0; i < n; i++) {
			counts[i] = qkt_rng_next(&rng) & g.refcount_max;
			all |= counts[i];
			qk_refcount_set(&g, one, at + i, counts[i]);
		}
		qk_refcounts_store(&g, many, at, n, counts);
		assert_memory_equal(one, many, sizeof(one));
		qk_refcounts_load(&g, many, at, n, back);
		assert_memory_equal(counts, back, (size_t)n * sizeof(*counts));
		assert_true(qk_refcounts_all(counts, n) == all && all <= g.refcount_max);
		for (uint64_t z = n; z-- != 0; qk_refcount_set(&g, many, at + z, 0)) {
			uint64_t zero = at;
			while (zero < at + n && slow_refcount(many, 1U << order, zero) != 0)
				zero++;
			assert_true(qk_refcounts_find_zero(&g, many, at, at + n) == zero);
		}
	}
	assert_true(qk_refcounts_all(NULL, 0) == 0);
}

static void setting_a_refcount_changes_that_one_only(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(1);
	uint8_t block[512] = {0};
	for (unsigned order = 0; order <= 6; order++) {
		struct qk_geometry g;
		uint64_t model[4096] = {0};
		qk_geometry_init(&g, 3, 9, order, false);
		memset(block, 0, sizeof(block));
		for (unsigned round = 0; round < 5000; round++) {
			uint64_t i = qkt_rng_next(&rng) % g.rb_entries;
			model[i] = qkt_rng_next(&rng) & g.refcount_max;
			qk_refcount_set(&g, block, i, model[i]);
		}
		for (uint64_t i = 0; i < g.rb_entries; i++)
			CHECK(slow_refcount(block, 1U << order, i) == model[i],
				"order %u, entry %" PRIu64, order, i);
	}
}

static void golden_refcounts(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qk_geometry g;
	uint64_t first = 0, count = 0, value = 0, off = 0;
	size_t n = 0;
	char line[128];
	uint8_t *cluster0 = golden_header(golden, &h, &ext, &g);
	uint8_t *block = golden_section(golden, "rb", 0, &n, &off);
	assert_int_equal(n, g.cluster_size);
	for (unsigned nth = 0; golden_fact(golden, "refcount", nth, line, sizeof(line)); nth++) {
		assert_int_equal(
			sscanf(line, "%" SCNu64 " %" SCNu64 " %" SCNu64, &first, &count, &value),
			3);
		for (uint64_t i = first; i < first + count; i++)
			CHECK(qk_refcount_get(&g, block, i) == value, "%s: cluster %" PRIu64,
				golden->name, i);
	}
	assert_true(count > 0);
	free(block);
	free(cluster0);
}

static void refcount_blocks_of_qemu_are_understood(void **state)
{
	(void)state;
	golden_each(golden_refcounts);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(derived_numbers_follow_the_formulas),
		cmocka_unit_test(largest_refcount_fills_the_width),
		cmocka_unit_test(compressed_offsets_end_at_bit_55),
		cmocka_unit_test(l1_entries_round_up),
		cmocka_unit_test(table_places_are_judged_to_the_last_cluster),
		cmocka_unit_test(refcounts_of_every_width_are_read_as_drawn),
		cmocka_unit_test(many_refcounts_are_each_of_them),
		cmocka_unit_test(setting_a_refcount_changes_that_one_only),
		cmocka_unit_test(refcount_blocks_of_qemu_are_understood),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
