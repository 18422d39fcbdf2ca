/* SPDX-License-Identifier: MIT */
/*
 * Damaged tables and entries: each costs the range that it maps, under its finding, and nothing else. The
 * images are qemu-img's, at its offsets: header 0, refcount table 0x10000, refcount block 0x20000, L1
 * 0x30000, first L2 0x40000, data from 0x50000, 64 KiB a cluster.
 */
#include "qemu.h"

#define K64  UINT64_C(0x10000)
#define L1   UINT64_C(0x30000)
#define L2   UINT64_C(0x40000)
#define SIZE UINT64_C(0x40000000) /* 1 GiB: two L2 tables */

/* 1 GiB, the first four clusters of each half written with 1 */
static void make_base(const char *options)
{
	sh("rm -f t && qemu-img create -q -f qcow2 -o %s t 1G && "
	   "qemu-io -c 'write -P 1 0 256k' -c 'write -P 1 512M 256k' t",
		options);
}

static void expect_byte(struct qcow_image *image, uint64_t off, int value)
{
	uint8_t buf[512];
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_pread(image, buf, sizeof(buf), off, &err) != QCOW_OK)
		fail_msg("at %llx: %s", (unsigned long long)off, err.message);
	assert_int_equal(buf[0], value);
	assert_int_equal(buf[511], value);
}

/* Reading and mapping at `off` fails with `finding`; reading across it too. */
static void expect_bad(struct qcow_image *image, uint64_t off, unsigned finding, uint64_t host_off)
{
	static uint8_t buf[3 * K64];
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_extent extent;
	assert_int_equal(qcow_pread(image, buf, 512, off, &err), QCOW_E_CORRUPT);
	assert_int_equal(err.finding, finding);
	assert_int_equal(err.guest_off, off);
	if (host_off != QCOW_NO_OFFSET)
		assert_int_equal(err.host_off, host_off);
	assert_non_null(err.site);
	err = (struct qcow_error)QCOW_ERROR_INIT;
	assert_int_equal(qcow_pread(image, buf, sizeof(buf), off == 0 ? 0 : off - K64, &err),
		QCOW_E_CORRUPT);
	assert_int_equal(err.finding, finding);
	assert_int_equal(qcow_map(image, off, SIZE - off, UINT32_MAX, &extent, &err),
		finding == QCOW_FINDING_COMPRESSED_STREAM ? QCOW_OK : QCOW_E_CORRUPT);
}

/* Entry 1 of the first L2 table becomes `raw`. */
static void one_bad_entry(const char *options, uint64_t raw, unsigned finding)
{
	make_base(options);
	poke64("t", L2 + 8, raw);
	struct qcow_image *image = must_open("t", NULL);
	struct qcow_extent extent;
	expect_bad(image, K64, finding, L2 + 8);
	expect_byte(image, 0, 1);
	expect_byte(image, 2 * K64, 1);
	expect_byte(image, 512 << 20, 1);
	expect_byte(image, 4 * K64, 0);
	/* the map stops before the bad entry and goes on behind it */
	assert_int_equal(qcow_map(image, 0, SIZE, UINT32_MAX, &extent, NULL), QCOW_OK);
	assert_int_equal(extent.len, K64);
	assert_int_equal(
		qcow_map(image, 2 * K64, SIZE - 2 * K64, UINT32_MAX, &extent, NULL), QCOW_OK);
	assert_int_equal(extent.len, 2 * K64);
	qcow_close(image);
}

static void a_bad_l2_entry_costs_its_cluster(void **state)
{
	(void)state;
	const uint64_t copied = UINT64_C(1) << 63;
	one_bad_entry("compat=1.1", copied | 0x60200, QCOW_FINDING_L2_ENTRY_UNALIGNED);
	one_bad_entry("compat=1.1", copied | UINT64_C(1) << 40, QCOW_FINDING_L2_ENTRY_BEYOND_FILE);
	one_bad_entry("compat=1.1", copied | UINT64_C(1) << 56, QCOW_FINDING_L2_ENTRY_RESERVED);
	one_bad_entry("compat=1.1", copied | 0x60002, QCOW_FINDING_L2_ENTRY_RESERVED);
	one_bad_entry("compat=1.1", copied, QCOW_FINDING_L2_COPIED_AT_ZERO);
	one_bad_entry("compat=0.10", copied | 0x60001, QCOW_FINDING_L2_ZERO_FLAG_V2);
	one_bad_entry("compat=1.1", UINT64_C(1) << 62 | UINT64_C(1) << 45,
		QCOW_FINDING_COMPRESSED_BEYOND_FILE);
}

static void a_bad_subcluster_bitmap_costs_its_cluster(void **state)
{
	(void)state;
	static const struct {
		uint64_t raw, bitmap;
		unsigned finding;
	} cases[] = {
		{UINT64_C(1) << 63 | 0x60000, UINT64_C(0x0000000180000001),
			QCOW_FINDING_L2_SUBCLUSTER_BITS},
		{0, 1, QCOW_FINDING_L2_SUBCLUSTER_NO_HOST},
		{UINT64_C(1) << 63 | 0x60001, UINT32_MAX, QCOW_FINDING_L2_ENTRY_RESERVED},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		make_base("extended_l2=on");
		poke64("t", L2 + 16, cases[i].raw);
		poke64("t", L2 + 24, cases[i].bitmap);
		struct qcow_image *image = must_open("t", NULL);
		expect_bad(image, K64, cases[i].finding, L2 + 16);
		expect_byte(image, 0, 1);
		expect_byte(image, 2 * K64, 1);
		qcow_close(image);
	}
}

static void a_bad_l1_entry_costs_its_table(void **state)
{
	(void)state;
	static const struct {
		uint64_t raw;
		unsigned finding;
	} cases[] = {
		{UINT64_C(1) << 63 | 0x40200, QCOW_FINDING_L1_ENTRY_UNALIGNED},
		{UINT64_C(1) << 63 | UINT64_C(1) << 44, QCOW_FINDING_L1_ENTRY_BEYOND_FILE},
		{UINT64_C(1) << 62 | 0x40000, QCOW_FINDING_L1_ENTRY_RESERVED},
		{UINT64_C(1) << 63 | 0x40001, QCOW_FINDING_L1_ENTRY_RESERVED},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		make_base("compat=1.1");
		poke64("t", L1, cases[i].raw);
		struct qcow_image *image = must_open("t", NULL);
		expect_bad(image, 0, cases[i].finding, L1);
		expect_bad(image, 3 * K64, cases[i].finding, L1);
		expect_byte(image, 512 << 20, 1);
		expect_byte(image, (512 << 20) + 4 * K64, 0);
		qcow_close(image);
	}
}

static void an_l1_entry_that_names_the_l1_table_is_survived(void **state)
{
	(void)state;
	static uint8_t buf[1 << 20];
	make_base("compat=1.1");
	poke64("t", L1, UINT64_C(1) << 63 | L1);
	struct qcow_image *image = must_open("t", NULL);
	/* the first two entries of that "table" name the two L2 tables as data: readable nonsense */
	assert_int_equal(qcow_pread(image, buf, sizeof(buf), 0, NULL), QCOW_OK);
	expect_byte(image, 512 << 20, 1);
	qcow_close(image);
}

static void an_l1_table_beyond_the_file_opens_read_only_and_empty_handed(void **state)
{
	(void)state;
	struct qcow_info info;
	make_base("compat=1.1");
	poke64("t", 40, UINT64_C(1) << 40);
	struct qcow_image *image = must_open("t", NULL);
	qcow_get_info(image, &info);
	assert_true(info.read_only_at_most);
	expect_bad(image, 0, QCOW_FINDING_L1_BEYOND_FILE, QCOW_NO_OFFSET);
	expect_bad(image, 512 << 20, QCOW_FINDING_L1_BEYOND_FILE, QCOW_NO_OFFSET);
	qcow_close(image);
	/* an L1 table that the file holds half of serves that half */
	make_base("compat=1.1");
	sh("truncate -s $((0x30008)) t");
	image = must_open("t", NULL);
	qcow_get_info(image, &info);
	assert_true(info.read_only_at_most);
	expect_bad(image, 0, QCOW_FINDING_L1_ENTRY_BEYOND_FILE, L1);
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t byte = 0;
	assert_int_equal(qcow_pread(image, &byte, 1, 512 << 20, &err), QCOW_E_CORRUPT);
	assert_int_equal(err.finding, QCOW_FINDING_L1_BEYOND_FILE);
	assert_int_equal(err.host_off, L1 + 8);
	qcow_close(image);
}

static void a_broken_stream_costs_its_cluster(void **state)
{
	(void)state;
	static const char *const types[] = {"zlib", "zstd"};
	static uint8_t ff[4096];
	static uint8_t buf[K64];
	memset(ff, 0xff, sizeof(ff));
	for (int i = 0; i < 2; i++) {
		sh("rm -f t; dd if=/dev/urandom bs=32k count=1 | xxd -p | tr -d '\\n' >src; "
		   "qemu-img create -q -f qcow2 -o compression_type=%s t 1G; "
		   "qemu-io -c 'write -c -s src 0 64k' -c 'write -c -s src 64k 64k' "
		   "-c 'write -c -s src 128k 64k' t",
			types[i]);
		size_t n = 0;
		uint8_t *file = slurp("t", &n);
		uint64_t entry = 0;
		memcpy(&entry, file + L2 + 8, 8);
		free(file);
		uint64_t at = __builtin_bswap64(entry) & ((UINT64_C(1) << 54) - 1);
		poke("t", at, ff, 64);
		struct qcow_image *image = must_open("t", NULL);
		expect_bad(image, K64, QCOW_FINDING_COMPRESSED_STREAM, at);
		/* whole clusters go another way than parts */
		struct qcow_error err = QCOW_ERROR_INIT;
		assert_int_equal(qcow_pread(image, buf, K64, K64, &err), QCOW_E_CORRUPT);
		assert_int_equal(err.finding, QCOW_FINDING_COMPRESSED_STREAM);
		assert_int_equal(err.guest_off, K64);
		assert_int_equal(qcow_pread(image, buf, K64, 0, &err), QCOW_OK);
		assert_int_equal(qcow_pread(image, buf, K64, 2 * K64, &err), QCOW_OK);
		assert_int_equal(qcow_pread(image, buf, 100, 2 * K64 + 5, &err), QCOW_OK);
		qcow_close(image);
	}
}

static void copied_on_a_compressed_cluster_reads_right(void **state)
{
	(void)state;
	sh("rm -f t; qemu-img create -q -f qcow2 t 1G; qemu-io -c 'write -c -P 7 0 64k' t");
	size_t n = 0;
	uint8_t *file = slurp("t", &n);
	file[L2] |= 0x80;
	poke("t", L2, file + L2, 1);
	free(file);
	struct qcow_image *image = must_open("t", NULL);
	expect_byte(image, 0, 7);
	qcow_close(image);
}

static void a_bad_entry_below_is_reported_through_the_chain(void **state)
{
	(void)state;
	make_base("compat=1.1");
	poke64("t", L2 + 8, UINT64_C(1) << 63 | 0x60200);
	sh("mv t base; qemu-img create -q -u -f qcow2 -b base -F qcow2 t 2G");
	struct qcow_image *image = must_open("t", NULL);
	expect_bad(image, K64, QCOW_FINDING_L2_ENTRY_UNALIGNED, L2 + 8);
	expect_byte(image, 0, 1);
	expect_byte(image, 2 * K64, 1);
	expect_byte(image, (1 << 30) + K64, 0);
	qcow_close(image);
}

/* Single bytes of L1, L2 and data anywhere: no crash, and what is not touched stays readable. */
static void random_bytes_in_tables_are_survived(void **state)
{
	(void)state;
	static uint8_t buf[1 << 20];
	uint64_t seed = 99;
	static const char *const options[] = {"compat=0.10", "extended_l2=on", "cluster_size=512"};
	for (int i = 0; i < 60; i++) {
		sh("rm -f t && qemu-img create -q -f qcow2 -o %s t 8M && qemu-io "
		   "-c 'write -P 1 0 256k' -c 'write -c -P 2 4M 64k' -c 'write -z 5M 1M' t || true",
			options[i % 3]);
		struct stat st;
		assert_int_equal(stat(in_dir("t"), &st), 0);
		for (int k = 0; k < 200; k++) {
			uint8_t byte = (uint8_t)next_random(&seed);
			uint64_t at = 512 + next_random(&seed) % ((uint64_t)st.st_size - 512);
			poke("t", at, &byte, 1);
		}
		struct qcow_image *image = NULL;
		struct qcow_error err = QCOW_ERROR_INIT;
		if (try_open("t", NULL, &image, &err) != QCOW_OK) {
			assert_int_not_equal(err.message[0], 0);
			continue;
		}
		for (uint64_t off = 0; off < 8 << 20; off += sizeof(buf)) {
			enum qcow_status s = qcow_pread(image, buf, sizeof(buf), off, &err);
			assert_true(s == QCOW_OK || s == QCOW_E_CORRUPT);
			assert_true(s == QCOW_OK || err.finding != 0);
		}
		qcow_close(image);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_bad_l2_entry_costs_its_cluster),
		cmocka_unit_test(a_bad_subcluster_bitmap_costs_its_cluster),
		cmocka_unit_test(a_bad_l1_entry_costs_its_table),
		cmocka_unit_test(an_l1_entry_that_names_the_l1_table_is_survived),
		cmocka_unit_test(an_l1_table_beyond_the_file_opens_read_only_and_empty_handed),
		cmocka_unit_test(a_broken_stream_costs_its_cluster),
		cmocka_unit_test(copied_on_a_compressed_cluster_reads_right),
		cmocka_unit_test(a_bad_entry_below_is_reported_through_the_chain),
		cmocka_unit_test(random_bytes_in_tables_are_survived),
	};
	if (!has_qemu())
		return 77;
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
