/* SPDX-License-Identifier: MIT */
/* bitmapext_test: bitmap directories and tables, built by hand and written by QEMU. */
#include "golden.h"

#include <inttypes.h>
#include <qcowkit/findings.h>

#include "format/bitmapext.h"

#define DISK QK_GIB(1)

static struct qk_geometry geometry(unsigned bits)
{
	struct qk_geometry g;
	qk_geometry_init(&g, 3, bits, 4, false);
	return g;
}

static struct qk_bitmap_entry entry(void)
{
	return (struct qk_bitmap_entry){
		.table_off = {0x10000},
		.table_entries = 1, /* 1 GiB / 64 KiB / 8 = 2 KiB of bits */
		.type = 1,
		.granularity_bits = 16,
		.name = {(const uint8_t *)"name", 4},
	};
}

static unsigned judged(struct qk_bitmap_entry e)
{
	struct qk_geometry g = geometry(16);
	return qk_bitmap_judge(&g, DISK, &e);
}

/* The padding counts from the entry's start, wherever the writer stands. */
static void entries_are_padded_from_their_start(void **state)
{
	(void)state;
	uint8_t buf[256];
	struct qk_bitmap_entry e = entry();
	struct qk_writer w = qk_writer_init(buf, sizeof(buf));
	w.at = 3;
	qk_bitmap_encode(&w, &e);
	assert_int_equal((w.at - 3) % 8, 0);
	struct qk_reader r = qk_reader_init(buf, w.at);
	r.at = 3;
	assert_true(qk_bitmap_decode(&r, &e));
	assert_int_equal(r.at, w.at);
}

static void entries_are_padded_to_8(void **state)
{
	(void)state;
	assert_int_equal(qk_bitmap_entry_bytes(0, 8), 32);
	assert_int_equal(qk_bitmap_entry_bytes(0, 9), 40);
	assert_int_equal(qk_bitmap_entry_bytes(1, 7), 32);
	assert_true(qk_bitmap_entry_bytes(UINT32_MAX, UINT16_MAX) > UINT32_MAX);
}

static void table_sizes_round_up_three_times(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(9);
	assert_int_equal(qk_bitmap_table_entries(&g, 0, 9), 0);
	assert_int_equal(qk_bitmap_table_entries(&g, 1, 9), 1);
	/* 512 bytes of bits of 512 bytes each: 2 MiB an entry */
	assert_int_equal(qk_bitmap_table_entries(&g, QK_MIB(2), 9), 1);
	assert_int_equal(qk_bitmap_table_entries(&g, QK_MIB(2) + 1, 9), 2);
	assert_int_equal(qk_bitmap_table_entries(&g, UINT64_MAX, 63), 1);
}

static void descriptions_are_judged_field_by_field(void **state)
{
	(void)state;
	struct qk_bitmap_entry e = entry();
	assert_int_equal(judged(e), 0);
	for (unsigned bit = 3; bit < 32; bit++) {
		e.flags = UINT32_C(1) << bit;
		assert_int_equal(judged(e), QCOW_FINDING_BITMAP_DIRECTORY);
	}
	e.flags = QK_BITMAP_AUTO | QK_BITMAP_EXTRA_COMPATIBLE;
	assert_int_equal(judged(e), 0);
	for (unsigned type = 0; type < 256; type++) {
		e.type = (uint8_t)type;
		assert_int_equal(judged(e), type == 1 ? 0 : QCOW_FINDING_BITMAP_DIRECTORY);
	}
	e = entry();
	e.name.n = 0;
	assert_int_equal(judged(e), QCOW_FINDING_BITMAP_DIRECTORY);
	e.name.n = 1023;
	assert_int_equal(judged(e), 0);
	e.name.n = 65535;
	assert_int_equal(judged(e), 0);
}

static void granularities_of_0_to_63_bits_are_legal(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(16);
	for (unsigned bits = 0; bits < 256; bits++) {
		struct qk_bitmap_entry e = entry();
		bool ok = bits <= 63;
		e.granularity_bits = (uint8_t)bits;
		e.table_entries = ok ? (uint32_t)qk_bitmap_table_entries(&g, DISK, bits) : 1;
		assert_int_equal(judged(e), ok ? 0 : QCOW_FINDING_BITMAP_DIRECTORY);
	}
}

static void tables_are_judged_by_place_and_size(void **state)
{
	(void)state;
	struct qk_bitmap_entry e = entry();
	e.table_off.v = 0x10200;
	assert_int_equal(judged(e), QCOW_FINDING_BITMAP_TABLE);
	e.table_off.v = 0;
	assert_int_equal(judged(e), QCOW_FINDING_BITMAP_TABLE);
	e = entry();
	e.table_entries = 2;
	assert_int_equal(judged(e), QCOW_FINDING_BITMAP_TABLE);
	e.flags = QK_BITMAP_IN_USE; /* its size may be outdated … */
	assert_int_equal(judged(e), 0);
	e.table_entries = (1U << 23) + 1; /* … but not beyond the limit */
	assert_int_equal(judged(e), QCOW_FINDING_BITMAP_TABLE);
	e.table_entries = UINT32_MAX;
	assert_int_equal(judged(e), QCOW_FINDING_BITMAP_TABLE);
}

static void unknown_extra_data_makes_a_bitmap_unusable_and_stays(void **state)
{
	(void)state;
	uint8_t buf[64], again[64];
	struct qk_bitmap_entry e = entry(), out;
	assert_true(qk_bitmap_is_usable(&e));
	e.flags = QK_BITMAP_IN_USE;
	assert_false(qk_bitmap_is_usable(&e));
	e.flags = 0;
	e.extra = (struct qk_span){(const uint8_t *)"extra", 5};
	assert_false(qk_bitmap_is_usable(&e));
	e.flags = QK_BITMAP_EXTRA_COMPATIBLE;
	assert_true(qk_bitmap_is_usable(&e));

	struct qk_writer w = qk_writer_init(buf, sizeof(buf));
	qk_bitmap_encode(&w, &e);
	assert_int_equal(w.at, qk_bitmap_entry_bytes(5, 4));
	struct qk_reader r = qk_reader_init(buf, w.at);
	assert_true(qk_bitmap_decode(&r, &out));
	assert_int_equal(out.extra.n, 5);
	assert_memory_equal(out.extra.p, "extra", 5);
	assert_memory_equal(out.name.p, "name", 4);
	struct qk_writer w2 = qk_writer_init(again, sizeof(again));
	qk_bitmap_encode(&w2, &out);
	assert_memory_equal(buf, again, w.at);
	for (size_t n = 0; n < w.at; n++) {
		r = qk_reader_init(buf, n);
		assert_false(qk_bitmap_decode(&r, &out));
	}
}

static void padding_must_be_zero(void **state)
{
	(void)state;
	uint8_t buf[32];
	struct qk_bitmap_entry e = entry(), out;
	struct qk_writer w = qk_writer_init(buf, sizeof(buf));
	qk_bitmap_encode(&w, &e);
	struct qk_reader r = qk_reader_init(buf, sizeof(buf));
	assert_true(qk_bitmap_decode(&r, &out));
	assert_int_equal(out.padding.n, 4);
	assert_int_equal(judged(out), 0);
	buf[31] = 1;
	assert_int_equal(judged(out), QCOW_FINDING_BITMAP_DIRECTORY);
}

static unsigned ext_judged(uint32_t n, uint64_t size, uint64_t off, uint32_t reserved)
{
	struct qk_geometry g = geometry(16);
	struct qk_bitmaps_ext ext = {n, reserved, size, off};
	return qk_bitmaps_ext_judge(&g, &ext);
}

static void the_extension_is_judged_before_the_directory_is_read(void **state)
{
	(void)state;
	unsigned bad = QCOW_FINDING_BITMAP_DIRECTORY;
	assert_int_equal(ext_judged(1, 32, 0x10000, 0), 0);
	assert_int_equal(ext_judged(0, 32, 0x10000, 0), bad);
	assert_int_equal(ext_judged(65535, 65535 * 32, 0x10000, 0), 0);
	assert_int_equal(ext_judged(65536, QK_MIB(4), 0x10000, 0), bad);
	assert_int_equal(ext_judged(UINT32_MAX, UINT64_MAX, 0x10000, 0), bad);
	assert_int_equal(ext_judged(2, 63, 0x10000, 0), bad);
	assert_int_equal(ext_judged(2, QK_MIB(64), 0x10000, 0), 0);
	assert_int_equal(ext_judged(2, QK_MIB(64) + 1, 0x10000, 0), bad);
	assert_int_equal(ext_judged(1, 32, 0, 0), bad);
	assert_int_equal(ext_judged(1, 32, 0x10001, 0), bad);
	assert_int_equal(ext_judged(1, 32, UINT64_MAX - 65535, 0), bad);
	assert_int_equal(ext_judged(1, 32, 0x10000, 1), bad);
}

static void table_entries_have_a_cluster_or_a_constant(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(16);
	struct qk_bitmap_table_entry e = qk_bitmap_table_decode(&g, 0);
	assert_true(e.off.v == 0 && !e.all_ones && e.finding == 0);
	e = qk_bitmap_table_decode(&g, 1);
	assert_true(e.off.v == 0 && e.all_ones && e.finding == 0);
	e = qk_bitmap_table_decode(&g, 0x50000);
	assert_true(e.off.v == 0x50000 && !e.all_ones && e.finding == 0);
	assert_int_equal(qk_bitmap_table_decode(&g, 0x50001).finding, QCOW_FINDING_BITMAP_TABLE);
	for (unsigned bit = 1; bit < 64; bit++) {
		bool ok = bit >= 16 && bit <= 55;
		assert_int_equal(qk_bitmap_table_decode(&g, UINT64_C(1) << bit).finding,
			ok ? 0 : QCOW_FINDING_BITMAP_TABLE);
	}
}

static void table_entries_encode_back(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(1);
	struct qk_geometry g = geometry(16);
	for (unsigned i = 0; i < 100000; i++) {
		uint64_t raw = qkt_rng_next(&rng) & QK_OFFSET_MASK & ~UINT64_C(0xffff);
		if (i % 5 == 0)
			raw = i & 1;
		struct qk_bitmap_table_entry e = qk_bitmap_table_decode(&g, raw);
		assert_int_equal(e.finding, 0);
		assert_true(qk_bitmap_table_encode(e.off, e.all_ones) == raw);
	}
}

static void check_entry(const struct golden *golden, const struct qk_bitmap_entry *e, unsigned nth)
{
	char line[256], name[64], flags[64];
	uint64_t granularity = 0;
	assert_non_null(golden_fact(golden, "bitmap", nth, line, sizeof(line)));
	assert_int_equal(sscanf(line, "%63s %" SCNu64 " %63s", name, &granularity, flags), 3);
	assert_int_equal(e->name.n, strlen(name));
	assert_memory_equal(e->name.p, name, e->name.n);
	assert_true(UINT64_C(1) << e->granularity_bits == granularity);
	assert_int_equal((e->flags & QK_BITMAP_AUTO) != 0, strstr(flags, "auto") != NULL);
	assert_int_equal((e->flags & QK_BITMAP_IN_USE) != 0, strstr(flags, "in-use") != NULL);
}

static void check_table(const struct golden *golden, const struct qk_geometry *g,
	const struct qk_bitmap_entry *e, unsigned nth)
{
	size_t n = 0;
	uint64_t off = 0;
	uint8_t *table = golden_section(golden, "bitmap", nth, &n, &off);
	assert_int_equal(off, e->table_off.v);
	assert_int_equal(n, e->table_entries * 8U);
	for (size_t i = 0; i < n; i += 8) {
		struct qk_bitmap_table_entry t = qk_bitmap_table_decode(g, qk_load64(table + i));
		assert_int_equal(t.finding, 0);
		assert_true(qk_bitmap_table_encode(t.off, t.all_ones) == qk_load64(table + i));
	}
	free(table);
}

static void golden_bitmaps(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qk_geometry g;
	size_t n = 0;
	uint64_t off = 0;
	uint8_t *cluster0 = golden_header(golden, &h, &ext, &g);
	uint8_t *directory = golden_section(golden, "directory", 0, &n, &off), *copy = NULL;
	assert_int_equal(ext.has_bitmaps, directory != NULL);
	if (directory != NULL) {
		assert_int_equal(qk_bitmaps_ext_judge(&g, &ext.bitmaps), 0);
		assert_true(n == ext.bitmaps.directory_size && off == ext.bitmaps.directory_off);
		copy = calloc(1, n);
		struct qk_reader r = qk_reader_init(directory, n);
		struct qk_writer w = qk_writer_init(copy, n);
		for (unsigned i = 0; i < ext.bitmaps.n_bitmaps; i++) {
			struct qk_bitmap_entry e;
			assert_true(qk_bitmap_decode(&r, &e));
			assert_int_equal(qk_bitmap_judge(&g, h.size, &e), 0);
			check_entry(golden, &e, i);
			check_table(golden, &g, &e, i);
			qk_bitmap_encode(&w, &e);
		}
		assert_true(!w.bad && w.at == n);
		assert_memory_equal(directory, copy, n);
	}
	free(copy);
	free(directory);
	free(cluster0);
}

static void directories_of_qemu_are_understood_and_encode_back(void **state)
{
	(void)state;
	golden_each(golden_bitmaps);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(entries_are_padded_from_their_start),
		cmocka_unit_test(entries_are_padded_to_8),
		cmocka_unit_test(table_sizes_round_up_three_times),
		cmocka_unit_test(descriptions_are_judged_field_by_field),
		cmocka_unit_test(granularities_of_0_to_63_bits_are_legal),
		cmocka_unit_test(tables_are_judged_by_place_and_size),
		cmocka_unit_test(unknown_extra_data_makes_a_bitmap_unusable_and_stays),
		cmocka_unit_test(padding_must_be_zero),
		cmocka_unit_test(the_extension_is_judged_before_the_directory_is_read),
		cmocka_unit_test(table_entries_have_a_cluster_or_a_constant),
		cmocka_unit_test(table_entries_encode_back),
		cmocka_unit_test(directories_of_qemu_are_understood_and_encode_back),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
