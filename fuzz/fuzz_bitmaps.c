/* SPDX-License-Identifier: MIT */
/*
 * Bitmap directory and tables. Input: 3 bytes of geometry, 24 of the extension, disk size, then
 * entries, all of it also taken as a table. Oracles: entries encode back, their padding aside;
 * table words encode back.
 */
#include "fuzz.h"

#include "format/bitmapext.h"

static void check_encode(const struct qk_bitmap_entry *e, const uint8_t *stored)
{
	static uint8_t out[1 << 20];
	size_t used = QK_BITMAP_FIXED_BYTES + e->extra.n + e->name.n;
	struct qk_writer w = qk_writer_init(out, sizeof(out));
	qk_bitmap_encode(&w, e);
	FUZZ_CHECK(!w.bad && w.at == qk_bitmap_entry_bytes(e->extra.n, e->name.n));
	FUZZ_CHECK(memcmp(out, stored, used) == 0);
	while (used < w.at)
		FUZZ_CHECK(out[used++] == 0);
}

static void check_table(const struct qk_geometry *g, const uint8_t *data, size_t n)
{
	struct qk_reader r = qk_reader_init(data, n);
	while (qk_reader_left(&r) >= 8) {
		uint64_t raw = qk_read64(&r);
		struct qk_bitmap_table_entry t = qk_bitmap_table_decode(g, raw);
		FUZZ_CHECK(t.finding != 0 || qk_bitmap_table_encode(t.off, t.all_ones) == raw);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct qk_reader r = qk_reader_init(data, n);
	struct qk_geometry g = fuzz_geometry(&r);
	struct qk_bitmaps_ext ext = {.n_bitmaps = qk_read32(&r)};
	ext.reserved = qk_read32(&r);
	ext.directory_size = qk_read64(&r);
	ext.directory_off = qk_read64(&r);
	uint64_t disk_size = qk_read64(&r) & INT64_MAX;
	struct qk_bitmap_entry e;
	if (qk_bitmaps_ext_judge(&g, &ext) == 0)
		FUZZ_CHECK(
			ext.n_bitmaps != 0 && ext.directory_size <= QK_MAX_BITMAP_DIRECTORY_BYTES);
	check_table(&g, data, n);
	if (r.bad)
		return 0;
	struct qk_reader d = qk_reader_init(data + r.at, n - r.at);
	for (;;) {
		size_t at = d.at;
		if (!qk_bitmap_decode(&d, &e))
			break;
		check_encode(&e, d.p + at);
		(void)qk_bitmap_is_usable(&e);
		if (qk_bitmap_judge(&g, disk_size, &e) != 0)
			continue;
		FUZZ_CHECK((uint64_t)e.table_entries * 8 <= QK_MAX_BITMAP_TABLE_BYTES);
		FUZZ_CHECK(e.granularity_bits <= QK_MAX_BITMAP_GRANULARITY_BITS && e.name.n != 0);
	}
	return 0;
}
