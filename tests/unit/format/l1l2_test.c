/* SPDX-License-Identifier: MIT */
/* l1l2_test: entries, bit by bit, at random and as QEMU wrote them. */
#include "golden.h"

#include <inttypes.h>
#include <qcowkit/findings.h>

#include "format/l1l2.h"

#define COPIED	   (UINT64_C(1) << 63)
#define COMPRESSED (UINT64_C(1) << 62)

static struct qk_geometry geometry(unsigned version, unsigned bits, bool ext)
{
	struct qk_geometry g;
	qk_geometry_init(&g, version, bits, 4, ext);
	return g;
}

static unsigned l2_finding(const struct qk_geometry *g, uint64_t raw, uint64_t bitmap)
{
	return qk_l2_decode(g, raw, bitmap, (qk_goff){0x30000}).finding;
}

static void l1_entries_are_split_and_judged(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(3, 16, false);
	struct qk_l1_entry e = qk_l1_decode(&g, COPIED | 0x40000);
	assert_int_equal(e.l2_off.v, 0x40000);
	assert_true(e.copied);
	assert_int_equal(e.finding, 0);
	e = qk_l1_decode(&g, 0);
	assert_true(e.l2_off.v == 0 && !e.copied && e.finding == 0);
	assert_int_equal(qk_l1_finding(&e), 0);
	/* read as none; a check says it */
	e = qk_l1_decode(&g, COPIED);
	assert_int_equal(e.finding, 0);
	assert_int_equal(qk_l1_finding(&e), QCOW_FINDING_L1_ENTRY_RESERVED);
	e = qk_l1_decode(&g, COPIED | 0x40000);
	assert_int_equal(qk_l1_finding(&e), 0);
	e = qk_l1_decode(&g, COPIED | 0x200);
	assert_int_equal(qk_l1_finding(&e), QCOW_FINDING_L1_ENTRY_UNALIGNED);
	assert_int_equal(qk_l1_decode(&g, 0x40200).finding, QCOW_FINDING_L1_ENTRY_UNALIGNED);
	for (unsigned bit = 0; bit < 63; bit++) {
		unsigned expected = 0;
		if (bit < 9 || bit > 55)
			expected = QCOW_FINDING_L1_ENTRY_RESERVED;
		else if (bit < 16)
			expected = QCOW_FINDING_L1_ENTRY_UNALIGNED;
		CHECK(qk_l1_decode(&g, UINT64_C(1) << bit).finding == expected, "bit %u", bit);
	}
}

static void l1_entries_encode_back(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(1);
	struct qk_geometry g = geometry(3, 16, false);
	for (unsigned i = 0; i < 100000; i++) {
		uint64_t raw = qkt_rng_next(&rng) & ~UINT64_C(0x7f0000000000ffff);
		struct qk_l1_entry e = qk_l1_decode(&g, raw);
		assert_int_equal(e.finding, 0);
		CHECK(qk_l1_encode(e.l2_off, e.copied) == raw, "%" PRIx64, raw);
	}
}

static void refcount_table_entries_use_bits_9_to_63(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(3, 16, false);
	for (unsigned bit = 0; bit < 64; bit++) {
		struct qk_rt_entry e = qk_rt_decode(&g, UINT64_C(1) << bit);
		unsigned expected = 0;
		if (bit < 9)
			expected = QCOW_FINDING_REFTABLE_ENTRY_RESERVED;
		else if (bit < 16)
			expected = QCOW_FINDING_REFTABLE_ENTRY_UNALIGNED;
		CHECK(e.finding == expected, "bit %u", bit);
		CHECK(e.block_off.v == (bit < 9 ? 0 : UINT64_C(1) << bit), "bit %u", bit);
	}
}

static void every_bit_of_a_standard_entry_has_its_finding(void **state)
{
	(void)state;
	for (unsigned version = 2; version <= 3; version++) {
		struct qk_geometry g = geometry(version, 16, false);
		for (unsigned bit = 0; bit < 62; bit++) {
			unsigned expected = 0;
			if (bit == 0)
				expected = version == 2 ? QCOW_FINDING_L2_ZERO_FLAG_V2 : 0;
			else if (bit < 9 || bit > 55)
				expected = QCOW_FINDING_L2_ENTRY_RESERVED;
			else if (bit < 16)
				expected = QCOW_FINDING_L2_ENTRY_UNALIGNED;
			CHECK(l2_finding(&g, UINT64_C(1) << bit, 0) == expected, "v%u bit %u",
				version, bit);
		}
	}
}

static void standard_entries_have_four_kinds(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(3, 16, false);
	qk_goff guest = {0};
	assert_int_equal(qk_l2_decode(&g, 0, 0, guest).type, QK_L2_UNALLOCATED);
	assert_int_equal(qk_l2_decode(&g, 1, 0, guest).type, QK_L2_ZERO);
	struct qk_l2_entry e = qk_l2_decode(&g, COPIED | 0x50001, 0, guest);
	assert_int_equal(e.type, QK_L2_ZERO_ALLOC);
	assert_int_equal(e.host_off.v, 0x50000);
	assert_true(e.copied && e.finding == 0);
	e = qk_l2_decode(&g, 0x50000, 0, guest);
	assert_int_equal(e.type, QK_L2_NORMAL);
	assert_true(!e.copied && e.finding == 0);
	assert_int_equal(l2_finding(&g, COPIED, 0), QCOW_FINDING_L2_COPIED_AT_ZERO);
	assert_int_equal(l2_finding(&g, COPIED | 1, 0), QCOW_FINDING_L2_COPIED_AT_ZERO);
}

static void data_file_offsets_must_be_the_guest_offsets(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(3, 16, false);
	g.data_file = true;
	struct qk_l2_entry e = qk_l2_decode(&g, COPIED | 0x30000, 0, (qk_goff){0x30fff});
	assert_true(e.type == QK_L2_NORMAL && e.finding == 0);
	assert_int_equal(l2_finding(&g, COPIED | 0x40000, 0), QCOW_FINDING_DATA_FILE_OFFSET);
	assert_int_equal(l2_finding(&g, COPIED, 0), QCOW_FINDING_DATA_FILE_OFFSET);
	assert_int_equal(l2_finding(&g, 0, 0), 0);
	assert_int_equal(l2_finding(&g, 1, 0), 0);
	assert_int_equal(
		l2_finding(&g, COMPRESSED | 0x40000, 0), QCOW_FINDING_COMPRESSED_DATA_FILE);
	e = qk_l2_decode(&g, COPIED, 0, (qk_goff){0});
	assert_true(e.type == QK_L2_NORMAL && e.finding == 0 && e.host_off.v == 0);
	assert_true(qk_l2_has_host(&e));
	e = qk_l2_decode(&g, COPIED | 1, 0, (qk_goff){0});
	assert_true(e.type == QK_L2_ZERO_ALLOC && e.finding == 0);
}

static void subclusters_are_judged_by_their_bits(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(3, 16, true);
	uint64_t both = UINT64_C(1) << 37 | 1 << 5;
	assert_int_equal(l2_finding(&g, 0x50000, both), QCOW_FINDING_L2_SUBCLUSTER_BITS);
	assert_int_equal(l2_finding(&g, 0, 1), QCOW_FINDING_L2_SUBCLUSTER_NO_HOST);
	assert_int_equal(l2_finding(&g, 0x50001, 0), QCOW_FINDING_L2_ENTRY_RESERVED);
	assert_int_equal(l2_finding(&g, 0x50000, 0), 0);
	assert_int_equal(l2_finding(&g, COMPRESSED | 0x50000, 1), QCOW_FINDING_L2_ENTRY_RESERVED);
	assert_int_equal(l2_finding(&g, COMPRESSED | 0x50000, 0), 0);
}

static void subclusters_read_one_by_one(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(3, 16, true);
	qk_goff guest = {0};
	/* 0 allocated, 1 zero, 2 neither */
	struct qk_l2_entry e = qk_l2_decode(&g, 0x50000, UINT64_C(2) << 32 | 1, guest);
	assert_int_equal(e.type, QK_L2_NORMAL);
	assert_int_equal(qk_l2_subcluster(&g, &e, 0), QK_L2_NORMAL);
	assert_int_equal(qk_l2_subcluster(&g, &e, 1), QK_L2_ZERO_ALLOC);
	assert_int_equal(qk_l2_subcluster(&g, &e, 2), QK_L2_UNALLOCATED);
	e = qk_l2_decode(&g, 0, UINT64_C(2) << 32, guest);
	assert_int_equal(e.type, QK_L2_UNALLOCATED);
	assert_int_equal(qk_l2_subcluster(&g, &e, 1), QK_L2_ZERO);
	assert_int_equal(qk_l2_subcluster(&g, &e, 31), QK_L2_UNALLOCATED);
	e = qk_l2_decode(&g, 0, UINT64_C(0xffffffff) << 32, guest);
	assert_int_equal(e.type, QK_L2_ZERO);
	e = qk_l2_decode(&g, 0x50000, UINT64_C(0xffffffff) << 32, guest);
	assert_int_equal(e.type, QK_L2_ZERO_ALLOC);
	e = qk_l2_decode(&g, COMPRESSED | 0x50000, 0, guest);
	assert_int_equal(qk_l2_subcluster(&g, &e, 7), QK_L2_COMPRESSED);
	g = geometry(3, 16, false);
	e = qk_l2_decode(&g, 1, 0, guest);
	assert_int_equal(qk_l2_subcluster(&g, &e, 0), QK_L2_ZERO);
}

static void compressed_descriptors_split_at_x(void **state)
{
	(void)state;
	for (unsigned bits = 9; bits <= 21; bits++) {
		struct qk_geometry g = geometry(3, bits, false);
		unsigned x = 62 - (bits - 8);
		uint64_t off = ((UINT64_C(1) << (x < 56 ? x : 56)) - 1) & ~UINT64_C(0xff);
		uint64_t more = (UINT64_C(1) << (bits - 8)) - 1;
		struct qk_l2_entry e = qk_l2_decode(
			&g, COMPRESSED | more << x | off, 0, (qk_goff){0});
		assert_int_equal(e.type, QK_L2_COMPRESSED);
		assert_true(e.host_off.v == off);
		assert_int_equal(e.compressed_bytes, (more + 1) * 512 - off % 512);
		assert_int_equal(e.finding, 0);
		/* the bits from 56 to x-1 are reserved */
		for (unsigned bit = 56; bit < x; bit++)
			assert_int_equal(l2_finding(&g, COMPRESSED | UINT64_C(1) << bit, 0),
				QCOW_FINDING_L2_ENTRY_RESERVED);
	}
}

static void copied_on_a_compressed_entry_is_told_and_tolerated(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(3, 16, false);
	struct qk_l2_entry e = qk_l2_decode(&g, COPIED | COMPRESSED | 0x50123, 0, (qk_goff){0});
	assert_true(e.copied && e.finding == 0 && e.host_off.v == 0x50123);
}

static void compressed_words_name_every_byte_and_no_sector_more(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(1);
	for (unsigned bits = 9; bits <= 21; bits++) {
		struct qk_geometry g = geometry(3, bits, false);
		for (unsigned i = 0; i < 20000; i++) {
			uint64_t off = qkt_rng_next(&rng) & g.coffset_mask, raw = 0;
			uint64_t len = 1 + qkt_rng_next(&rng) % g.cluster_size;
			assert_true(qk_l2_compressed_raw(&g, (qk_hoff){off}, len, &raw));
			assert_int_equal(raw >> 62, 0);
			struct qk_l2_entry e = qk_l2_decode(&g, raw | COMPRESSED, 0, (qk_goff){0});
			assert_true(e.finding == 0 && e.host_off.v == off);
			assert_true(e.compressed_bytes >= len && e.compressed_bytes - len < 512);
			/* an entry with the exact length is the same word */
			uint64_t again = 0, bitmap = 0;
			e.compressed_bytes = (uint32_t)len;
			qk_l2_encode(&g, &e, &again, &bitmap);
			assert_true(again == (raw | COMPRESSED) && bitmap == 0);
		}
		uint64_t raw = 0;
		assert_false(qk_l2_compressed_raw(&g, (qk_hoff){g.coffset_mask + 1}, 1, &raw));
	}
}

/* Random words, bent towards plausible ones: whatever decodes without a finding encodes back. */
static void entries_without_a_finding_encode_back(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(1);
	unsigned good = 0;
	for (unsigned i = 0; i < 400000; i++) {
		unsigned bits = 9 + (unsigned)(qkt_rng_next(&rng) % 13);
		struct qk_geometry g = geometry(
			2 + (qkt_rng_next(&rng) & 1), bits, bits >= 14 && (qkt_rng_next(&rng) & 1));
		g.data_file = qkt_rng_next(&rng) % 4 == 0;
		uint64_t raw = qkt_rng_next(&rng), bitmap = 0, raw2 = 0, bitmap2 = 0;
		if ((raw & COMPRESSED) == 0)
			raw &= (QK_OFFSET_MASK & ~(g.cluster_size - 1)) | COPIED | 1;
		if (qkt_rng_next(&rng) % 3 == 0)
			raw &= COPIED | COMPRESSED | 1;
		if (g.extended_l2 && qkt_rng_next(&rng) % 2 == 0) {
			uint64_t alloc = (uint32_t)qkt_rng_next(&rng);
			bitmap = alloc | (~alloc & qkt_rng_next(&rng)) << 32;
		}
		if (g.extended_l2 && qkt_rng_next(&rng) % 5 == 0)
			bitmap |= UINT64_C(0xffffffff) << 32;
		qk_goff guest = {qkt_rng_next(&rng) % 2 ? raw & QK_OFFSET_MASK : 0};
		struct qk_l2_entry e = qk_l2_decode(&g, raw, bitmap, guest);
		if (e.finding != 0)
			continue;
		good++;
		qk_l2_encode(&g, &e, &raw2, &bitmap2);
		CHECK(raw2 == raw && bitmap2 == bitmap, "%u bits: %016" PRIx64 " %016" PRIx64, bits,
			raw, bitmap);
	}
	assert_true(good > 50000);
}

static void guest_offsets_find_their_entries(void **state)
{
	(void)state;
	struct qk_geometry g = geometry(3, 16, false);
	struct qk_guest_pos pos = qk_guest_pos(&g, (qk_goff){0x60012345});
	assert_int_equal(pos.l1_index, 3);
	assert_int_equal(pos.l2_index, 1);
	assert_int_equal(pos.in_cluster, 0x2345);
	g = geometry(3, 21, true);
	pos = qk_guest_pos(&g, (qk_goff){UINT64_MAX});
	assert_true(pos.l1_index == UINT64_MAX / g.l2_span);
	assert_int_equal(pos.l2_index, g.l2_entries - 1);
	assert_int_equal(pos.in_cluster, g.cluster_size - 1);
}

/* Every length of a row, and every bit that ends it. */
static void rows_are_clusters_that_follow_each_other(void **state)
{
	(void)state;
	const uint64_t size = 65536, first = QK_FLAG_COPIED | (size * 5);
	uint8_t table[64 * 8];
	for (uint32_t i = 0; i < 64; i++)
		qk_store64(table + (size_t)i * 8, first + i * size);
	for (uint32_t end = 0; end <= 64; end++)
		for (uint32_t i = 0; i < end; i++)
			assert_int_equal(qk_l2_row(table, i, end, size), (end - i) / 8 * 8);
	for (uint32_t i = 1; i < 64; i++)
		for (unsigned bit = 0; bit < 64; bit++) {
			table[i * 8 + bit / 8] ^= (uint8_t)(1U << bit % 8);
			CHECK(qk_l2_row(table, 0, 64, size) == (i == 1 ? 0 : i / 8 * 8),
				"entry %u, bit %u", i, bit);
			table[i * 8 + bit / 8] ^= (uint8_t)(1U << bit % 8);
		}
}

static void words_are_loaded_and_stored_at_their_entry(void **state)
{
	(void)state;
	uint8_t table[64] = {0};
	uint64_t raw = 0, bitmap = 1;
	struct qk_geometry g = geometry(3, 16, false);
	qk_l2_store(&g, table, 2, UINT64_C(0x0102030405060708), 9);
	assert_int_equal(table[16], 1);
	assert_int_equal(table[24], 0);
	qk_l2_load(&g, table, 2, &raw, &bitmap);
	assert_true(raw == UINT64_C(0x0102030405060708) && bitmap == 0);
	g = geometry(3, 16, true);
	qk_l2_store(&g, table, 1, 7, UINT64_C(0x1100000000000000));
	assert_int_equal(table[24], 0x11);
	qk_l2_load(&g, table, 1, &raw, &bitmap);
	assert_true(raw == 7 && bitmap == UINT64_C(0x1100000000000000));
}

/* ---- what QEMU wrote ---- */

struct view {
	const struct golden *golden;
	struct qk_geometry g;
	uint8_t *l1;
	size_t l1_bytes;
};

/* The L2 section whose place in the image is `off`. */
static uint8_t *l2_at(const struct golden *golden, uint64_t off)
{
	size_t n = 0;
	uint64_t at = 0;
	for (unsigned nth = 0;; nth++) {
		uint8_t *p = golden_section(golden, "l2", nth, &n, &at);
		if (p == NULL || at == off)
			return p;
		free(p);
	}
}

static struct qk_l2_entry entry_at(const struct view *v, uint64_t guest)
{
	struct qk_l2_entry none = {.type = QK_L2_UNALLOCATED};
	uint64_t raw = 0, bitmap = 0;
	struct qk_guest_pos pos = qk_guest_pos(&v->g, (qk_goff){guest});
	assert_true(pos.l1_index * 8 < v->l1_bytes);
	struct qk_l1_entry l1 = qk_l1_decode(&v->g, qk_load64(v->l1 + pos.l1_index * 8));
	assert_int_equal(l1.finding, 0);
	if (l1.l2_off.v == 0)
		return none;
	uint8_t *table = l2_at(v->golden, l1.l2_off.v);
	assert_non_null(table);
	qk_l2_load(&v->g, table, pos.l2_index, &raw, &bitmap);
	free(table);
	struct qk_l2_entry e = qk_l2_decode(&v->g, raw, bitmap, (qk_goff){guest});
	CHECK(e.finding == 0, "%s: %" PRIu64, v->golden->name, guest);
	return e;
}

struct extent {
	uint64_t start, len;
	unsigned present, zero, data;
	char compressed[4], off[32]; /* "-" where QEMU does not say */
};

/* QEMU says of plain data that it is zero where the file has a hole, so zero is not compared
 * there. */
static void check_at(const struct view *v, const struct extent *x, uint64_t guest)
{
	struct qk_l2_entry e = entry_at(v, guest);
	uint64_t in_cluster = guest % v->g.cluster_size;
	enum qk_l2_type type = qk_l2_subcluster(
		&v->g, &e, (unsigned)(in_cluster / v->g.subcluster_size));
	bool is_data = type == QK_L2_NORMAL || type == QK_L2_COMPRESSED;
	bool is_zero = type == QK_L2_ZERO || type == QK_L2_ZERO_ALLOC;
	CHECK(x->compressed[0] == '-' || (x->compressed[0] == '1') == (type == QK_L2_COMPRESSED),
		"%s: %" PRIu64, v->golden->name, guest);
	CHECK(x->present == (type != QK_L2_UNALLOCATED), "%s: %" PRIu64, v->golden->name, guest);
	/* a hole in a data file makes QEMU say "no data": only ours of the image itself are
	 * compared */
	CHECK(x->data == is_data || v->g.data_file, "%s: %" PRIu64, v->golden->name, guest);
	CHECK(!is_zero || x->zero, "%s: %" PRIu64, v->golden->name, guest);
	if (type == QK_L2_NORMAL)
		CHECK(e.host_off.v + in_cluster == strtoull(x->off, NULL, 10) + (guest - x->start),
			"%s: %" PRIu64, v->golden->name, guest);
}

static void golden_map(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct view v = {.golden = golden};
	struct extent x;
	uint64_t off = 0;
	char line[256];
	uint8_t *cluster0 = golden_header(golden, &h, &ext, &v.g);
	v.l1 = golden_section(golden, "l1", 0, &v.l1_bytes, &off);
	for (unsigned i = 0; golden_fact(golden, "extent", i, line, sizeof(line)); i++) {
		assert_int_equal(sscanf(line, "%" SCNu64 " %" SCNu64 " %u %u %u %3s %31s", &x.start,
					 &x.len, &x.present, &x.zero, &x.data, x.compressed, x.off),
			7);
		if (x.len == 0)
			continue;
		check_at(&v, &x, x.start);
		check_at(&v, &x, x.start + x.len / 2);
		check_at(&v, &x, x.start + x.len - 1);
	}
	free(v.l1);
	free(cluster0);
}

static void maps_of_qemu_are_understood(void **state)
{
	(void)state;
	golden_each(golden_map);
}

static void golden_compressed(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct view v = {.golden = golden};
	uint64_t off = 0, guest = 0, host = 0;
	char line[128];
	uint8_t *cluster0 = golden_header(golden, &h, &ext, &v.g);
	v.l1 = golden_section(golden, "l1", 0, &v.l1_bytes, &off);
	for (unsigned i = 0; golden_fact(golden, "compressed", i, line, sizeof(line)); i++) {
		assert_int_equal(sscanf(line, "%" SCNu64 " %" SCNu64, &guest, &host), 2);
		struct qk_l2_entry e = entry_at(&v, guest);
		assert_int_equal(e.type, QK_L2_COMPRESSED);
		assert_true(e.host_off.v == host);
	}
	free(v.l1);
	free(cluster0);
}

static void compressed_entries_of_qemu_are_understood(void **state)
{
	(void)state;
	golden_each(golden_compressed);
}

static void golden_encode_back(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qk_geometry g;
	size_t n = 0;
	uint64_t off = 0;
	uint8_t *cluster0 = golden_header(golden, &h, &ext, &g), *table = NULL;
	/* The tables come in the order of the L1 entries that name them. */
	uint8_t *l1 = golden_section(golden, "l1", 0, &n, &off);
	size_t l1_n = n / 8;
	unsigned nth = 0;
	for (size_t i = 0; i < l1_n; i++) {
		struct qk_l1_entry e = qk_l1_decode(&g, qk_load64(l1 + i * 8));
		assert_true(qk_l1_encode(e.l2_off, e.copied) == qk_load64(l1 + i * 8));
		if (e.l2_off.v == 0)
			continue;
		table = golden_section(golden, "l2", nth++, &n, &off);
		for (uint32_t j = 0; j < g.l2_entries; j++) {
			uint64_t raw = 0, bitmap = 0, raw2 = 0, bitmap2 = 0;
			qk_goff guest = {i * g.l2_span + ((uint64_t)j << g.cluster_bits)};
			qk_l2_load(&g, table, j, &raw, &bitmap);
			struct qk_l2_entry l2 = qk_l2_decode(&g, raw, bitmap, guest);
			CHECK(l2.finding == 0, "%s: entry %u", golden->name, j);
			qk_l2_encode(&g, &l2, &raw2, &bitmap2);
			CHECK(raw == raw2 && bitmap == bitmap2, "%s: entry %u", golden->name, j);
		}
		free(table);
	}
	free(l1);
	free(cluster0);
}

static void tables_of_qemu_encode_back(void **state)
{
	(void)state;
	golden_each(golden_encode_back);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(l1_entries_are_split_and_judged),
		cmocka_unit_test(l1_entries_encode_back),
		cmocka_unit_test(refcount_table_entries_use_bits_9_to_63),
		cmocka_unit_test(every_bit_of_a_standard_entry_has_its_finding),
		cmocka_unit_test(standard_entries_have_four_kinds),
		cmocka_unit_test(data_file_offsets_must_be_the_guest_offsets),
		cmocka_unit_test(subclusters_are_judged_by_their_bits),
		cmocka_unit_test(subclusters_read_one_by_one),
		cmocka_unit_test(compressed_descriptors_split_at_x),
		cmocka_unit_test(copied_on_a_compressed_entry_is_told_and_tolerated),
		cmocka_unit_test(compressed_words_name_every_byte_and_no_sector_more),
		cmocka_unit_test(entries_without_a_finding_encode_back),
		cmocka_unit_test(guest_offsets_find_their_entries),
		cmocka_unit_test(rows_are_clusters_that_follow_each_other),
		cmocka_unit_test(words_are_loaded_and_stored_at_their_entry),
		cmocka_unit_test(maps_of_qemu_are_understood),
		cmocka_unit_test(compressed_entries_of_qemu_are_understood),
		cmocka_unit_test(tables_of_qemu_encode_back),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
