/* SPDX-License-Identifier: MIT */
/*
 * Persistent bitmaps: what the builder was told is what the reader answers, by an array of bytes, over all kinds
 * of clusters, granularities and sizes; and what must be refused. tests/cli/bitmaps.sh asks QEMU.
 */
#include <stdio.h>
#include <stdlib.h>

#include <qcowkit/qcowkit.h>

#include "base/bytes.h"
#include "cm.h"
#include "fault.h"
#include "rng.h"

#define UNITS 4096U

/* One byte a unit of 512 guest bytes: is it dirty? */
struct model {
	uint64_t size;
	uint32_t granularity_bits;
	uint8_t dirty[UNITS];
};

/* As the bitmap sees it: a bit stands for all that it covers. */
static void widen(struct model *m)
{
	uint64_t per_bit = (UINT64_C(1) << m->granularity_bits) / 512;
	for (uint64_t u = 0; u < UNITS; u += per_bit) {
		uint8_t any = 0;
		for (uint64_t i = u; i < u + per_bit && i < UNITS; i++)
			any |= m->dirty[i];
		for (uint64_t i = u; i < u + per_bit && i < UNITS; i++)
			m->dirty[i] = any;
	}
}

static void draw(struct model *m, struct qkt_rng *rng, struct qcow_builder *builder)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t mean = 1 + qkt_rng_below(rng, 300);
	for (uint64_t at = qkt_rng_below(rng, mean); at < m->size / 512;) {
		uint64_t n = 1 + qkt_rng_below(rng, mean);
		n = n < m->size / 512 - at ? n : m->size / 512 - at;
		assert_ok(qcow_builder_bitmap_dirty(builder, at * 512, n * 512, &err), err);
		for (uint64_t i = at; i < at + n; i++)
			m->dirty[i] = 1;
		at += n + 1 + qkt_rng_below(rng, mean);
	}
	widen(m);
}

static void expect(struct qcow_image *image, uint32_t index, const struct model *m)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_bitmap_reader *reader = NULL;
	struct qcow_bitmap_extent e;
	struct qcow_bitmap b;

	assert_ok(qcow_get_bitmap(image, index, &b, &err), err);
	assert_int_equal(b.granularity_bits, m->granularity_bits);
	assert_ok(qcow_bitmap_open(image, index, &reader, &err), err);
	for (uint64_t off = 0; off < m->size; off += e.len) {
		assert_ok(qcow_bitmap_read(reader, off, m->size - off, &e, &err), err);
		assert_true(e.off == off && e.len != 0 && e.len <= m->size - off);
		for (uint64_t at = off; at < off + e.len; at += 512)
			assert_int_equal(m->dirty[at / 512], e.dirty);
		/* the longest run: what follows differs */
		if (off + e.len < m->size)
			assert_int_not_equal(m->dirty[(off + e.len) / 512], e.dirty);
	}
	assert_int_equal(qcow_bitmap_read(reader, m->size, 1, &e, &err), QCOW_E_RANGE);
	qcow_bitmap_close(reader);
}

static struct qcow_image *open_store(struct qcow_store *store)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	assert_ok(qcow_open(store, &o, &image, &err), err);
	return image;
}

static void check_is_clean(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_options o = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result r;
	assert_ok(qcow_check(image, &o, &r, &err), err);
	assert_int_equal(r.corruptions + r.leaks + r.notes, 0);
}

static void round_trip(struct qkt_rng *rng, unsigned cluster_bits)
{
	static struct model models[5];
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_builder *builder = NULL;
	struct qcow_store *store = NULL;
	uint64_t size = 512 * (1 + qkt_rng_below(rng, UNITS));

	assert_ok(qcow_memory_open(0, &store, &err), err);
	o.virtual_size = size;
	o.cluster_size = UINT64_C(1) << cluster_bits;
	assert_ok(qcow_builder_new(store, NULL, &o, &builder, &err), err);
	for (unsigned i = 0; i < 5; i++) {
		struct qcow_bitmap_options b = QCOW_BITMAP_OPTIONS_INIT;
		char name[8];
		(void)snprintf(name, sizeof(name), "b%u", i);
		models[i] = (struct model){
			.size = size, .granularity_bits = (uint32_t)(9 + qkt_rng_below(rng, 6))};
		b.name = name;
		b.granularity_bits = models[i].granularity_bits;
		b.is_auto = i % 2 == 0;
		assert_ok(qcow_builder_bitmap(builder, &b, &err), err);
		draw(&models[i], rng, builder);
	}
	assert_ok(qcow_builder_finish(builder, &err), err);
	struct qcow_image *image = open_store(store);
	for (uint32_t i = 0; i < 5; i++)
		expect(image, i, &models[i]);
	check_is_clean(image);
	uint32_t index = 0;
	assert_ok(qcow_bitmap_find(image, "b3", &index, &err), err);
	assert_int_equal(index, 3);
	assert_int_equal(qcow_bitmap_find(image, "b", &index, &err), QCOW_E_NOENT);
	qcow_close(image);
}

static void what_is_built_is_what_is_read(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(3);
	for (unsigned round = 0; round < 12; round++)
		for (unsigned bits = 9; bits <= 21; bits++)
			round_trip(&rng, bits);
}

/* 1 TiB: whole clusters of ones and of zeros take no data. */
static void ones_and_zeros_take_no_clusters(void **state)
{
	(void)state;
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_bitmap_options b = QCOW_BITMAP_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_builder *builder = NULL;
	struct qcow_store *store = NULL;
	struct qcow_bitmap_reader *reader = NULL;
	struct qcow_bitmap_extent e;
	uint64_t size = UINT64_C(1) << 40, bytes = 0;

	assert_ok(qcow_memory_open(0, &store, &err), err);
	o.virtual_size = size;
	assert_ok(qcow_builder_new(store, NULL, &o, &builder, &err), err);
	b.name = "all";
	assert_ok(qcow_builder_bitmap(builder, &b, &err), err);
	assert_ok(qcow_builder_bitmap_dirty(builder, 0, size, &err), err);
	assert_ok(qcow_builder_finish(builder, &err), err);
	assert_ok(qcow_store_size(store, &bytes, &err), err);
	assert_true(bytes < 16 * 65536);
	struct qcow_image *image = open_store(store);
	assert_ok(qcow_bitmap_open(image, 0, &reader, &err), err);
	assert_ok(qcow_bitmap_read(reader, 12345, size - 12345, &e, &err), err);
	assert_true(e.dirty && e.off == 12345 && e.len == size - 12345);
	qcow_bitmap_close(reader);
	check_is_clean(image);
	qcow_close(image);
}

static void wrong_bitmaps_are_refused(void **state)
{
	(void)state;
	static char long_name[1025];
	static const struct {
		const char *name;
		uint32_t granularity_bits;
		enum qcow_status status;
	} rows[] = {{"", 16, QCOW_E_INVAL}, {long_name, 16, QCOW_E_INVAL}, {"b", 8, QCOW_E_INVAL},
		{"b", 32, QCOW_E_INVAL}, {"there", 16, QCOW_E_EXIST}};
	struct qcow_error err = QCOW_ERROR_INIT;

	memset(long_name, 'n', 1024);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		struct qcow_bitmap_options b = QCOW_BITMAP_OPTIONS_INIT;
		struct qcow_builder *builder = NULL;
		struct qcow_store *store = NULL;
		assert_ok(qcow_memory_open(0, &store, &err), err);
		o.virtual_size = 1 << 20;
		assert_ok(qcow_builder_new(store, NULL, &o, &builder, &err), err);
		assert_int_equal(qcow_builder_bitmap_dirty(builder, 0, 512, &err), QCOW_E_INVAL);
		qcow_builder_abandon(builder);
		assert_ok(qcow_builder_new(store, NULL, &o, &builder, &err), err);
		b.name = "there";
		assert_ok(qcow_builder_bitmap(builder, &b, &err), err);
		b.name = rows[i].name;
		b.granularity_bits = rows[i].granularity_bits;
		assert_int_equal(qcow_builder_bitmap(builder, &b, &err), rows[i].status);
		/* a builder that failed once makes no image */
		assert_int_equal(qcow_builder_finish(builder, &err), rows[i].status);
		qcow_store_close(store);
	}
}

static void dirty_ranges_come_in_order(void **state)
{
	(void)state;
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_bitmap_options b = QCOW_BITMAP_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_builder *builder = NULL;
	struct qcow_store *store = NULL;

	assert_ok(qcow_memory_open(0, &store, &err), err);
	o.virtual_size = 1 << 20;
	assert_ok(qcow_builder_new(store, NULL, &o, &builder, &err), err);
	b.name = "b";
	assert_ok(qcow_builder_bitmap(builder, &b, &err), err);
	assert_ok(qcow_builder_bitmap_dirty(builder, 1 << 19, 512, &err), err);
	assert_ok(qcow_builder_bitmap_dirty(builder, (1 << 19) + 4096, 512, &err), err);
	assert_int_equal(qcow_builder_bitmap_dirty(builder, 0, 512, &err), QCOW_E_INVAL);
	qcow_builder_abandon(builder);
	qcow_store_close(store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_built_is_what_is_read),
		cmocka_unit_test(ones_and_zeros_take_no_clusters),
		cmocka_unit_test(wrong_bitmaps_are_refused),
		cmocka_unit_test(dirty_ranges_come_in_order),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
