/* SPDX-License-Identifier: MIT */
/* ext_test: extension areas and backing names, built by hand. */
#include "golden.h"

#include <inttypes.h>

#define CLUSTER 512U

/* A first cluster of 512 bytes, built by hand: header_length 112, then what a test appends. */
struct area {
	uint8_t p[CLUSTER];
	struct qk_writer w;
	struct qk_header h;
	struct qk_extensions ext;
	struct qcow_error err;
};

static void area_init(struct area *a)
{
	*a = (struct area){.err = QCOW_ERROR_INIT};
	a->w = qk_writer_init(a->p, CLUSTER);
	a->w.at = 112;
	a->h = (struct qk_header){
		.version = 3, .cluster_bits = 9, .header_length = 112, .refcount_order = 4};
	a->h.rt_off = CLUSTER;
	a->h.rt_clusters = 1;
}

static void area_add(struct area *a, uint32_t type, const void *data, size_t n)
{
	qk_write32(&a->w, type);
	qk_write32(&a->w, (uint32_t)n);
	qk_write_bytes(&a->w, data, n);
	qk_write_zeros(&a->w, -n & 7);
	assert_false(a->w.bad);
}

static enum qcow_status area_decode(struct area *a)
{
	return qk_extensions_decode((struct qk_span){a->p, CLUSTER}, &a->h, &a->ext, &a->err);
}

static void an_empty_area_holds_nothing(void **state)
{
	(void)state;
	struct area a;
	struct qk_ext e;
	size_t at = 0;
	area_init(&a);
	assert_ok(area_decode(&a), a.err);
	assert_true(a.ext.n_ext == 0 && a.ext.area.n == 0);
	assert_null(a.ext.backing_name.p);
	assert_null(a.ext.backing_format.p);
	assert_null(a.ext.data_file.p);
	assert_null(a.ext.feature_names.p);
	assert_false(a.ext.has_bitmaps || a.ext.has_crypto);
	assert_false(qk_ext_next(&a.ext, &at, &e));
}

static void extensions_are_found_in_any_order(void **state)
{
	(void)state;
	struct area a;
	uint8_t bitmaps[24], crypto[16];
	for (uint8_t i = 0; i < 24; i++)
		bitmaps[i] = i;
	memset(crypto, 1, sizeof(crypto));
	area_init(&a);
	area_add(&a, 0x12345678, "unknown", 7);
	area_add(&a, QK_EXT_BITMAPS, bitmaps, 24);
	area_add(&a, QK_EXT_DATA_FILE, "data", 4);
	area_add(&a, QK_EXT_CRYPTO, crypto, 16);
	area_add(&a, QK_EXT_FEATURE_NAMES, "x", 1);
	area_add(&a, QK_EXT_BACKING_FORMAT, "raw", 3);
	assert_ok(area_decode(&a), a.err);
	assert_int_equal(a.ext.n_ext, 6);
	assert_int_equal(a.ext.area.n, a.w.at - 112);
	assert_true(a.ext.has_bitmaps && a.ext.has_crypto);
	assert_int_equal(a.ext.bitmaps.n_bitmaps, 0x00010203);
	assert_int_equal(a.ext.bitmaps.reserved, 0x04050607);
	assert_true(a.ext.bitmaps.directory_size == UINT64_C(0x08090a0b0c0d0e0f));
	assert_true(a.ext.bitmaps.directory_off == UINT64_C(0x1011121314151617));
	assert_true(a.ext.crypto_off == UINT64_C(0x0101010101010101));
	assert_memory_equal(a.ext.data_file.p, "data", 4);
	assert_int_equal(a.ext.feature_names.n, 1); /* no whole entry: has no names, is no fault */
	assert_memory_equal(a.ext.backing_format.p, "raw", 3);
}

static void unknown_extensions_survive_a_rewrite(void **state)
{
	(void)state;
	struct area a, b;
	uint8_t out[CLUSTER];
	area_init(&a);
	area_add(&a, 0x12345678, "one", 3);
	area_add(&a, QK_EXT_BACKING_FORMAT, "raw", 3);
	area_add(&a, 0x12345678, "same type again", 15);
	area_add(&a, 0xffffffff, "", 0);
	assert_ok(area_decode(&a), a.err);
	assert_int_equal(a.ext.n_ext, 4);
	assert_ok(qk_header_area_encode(&a.h, &a.ext, false, out, CLUSTER, &a.err), a.err);
	area_init(&b); /* known first, unknown in their order */
	area_add(&b, QK_EXT_BACKING_FORMAT, "raw", 3);
	area_add(&b, 0x12345678, "one", 3);
	area_add(&b, 0x12345678, "same type again", 15);
	area_add(&b, 0xffffffff, "", 0);
	assert_memory_equal(out + 112, b.p + 112, CLUSTER - 112);
}

static void an_area_may_end_without_a_marker(void **state)
{
	(void)state;
	struct area a;
	uint8_t rest[CLUSTER - 112 - 8] = {0};
	area_init(&a);
	area_add(&a, 0x12345678, rest, sizeof(rest));
	assert_ok(area_decode(&a), a.err);
	assert_int_equal(a.ext.n_ext, 1);
	area_init(&a);
	area_add(&a, 0x12345678, rest, sizeof(rest) - 8);
	qk_store32(a.p + CLUSTER - 8, 0x11111111);
	assert_ok(area_decode(&a), a.err);
	assert_int_equal(a.ext.n_ext, 2);
}

static void a_file_shorter_than_its_first_cluster_is_read(void **state)
{
	(void)state;
	struct area a;
	area_init(&a);
	area_add(&a, 0x12345678, "one", 3);
	/* the padding is cut off, then the data, then the head */
	for (size_t n = 123; n <= 130; n++) {
		assert_ok(qk_extensions_decode((struct qk_span){a.p, n}, &a.h, &a.ext, &a.err),
			a.err);
		assert_int_equal(a.ext.n_ext, 1);
	}
	assert_status(qk_extensions_decode((struct qk_span){a.p, 122}, &a.h, &a.ext, &a.err),
		QCOW_E_FORMAT, a.err);
	assert_ok(qk_extensions_decode((struct qk_span){a.p, 119}, &a.h, &a.ext, &a.err), a.err);
	assert_int_equal(a.ext.n_ext, 0);
}

static void lengths_beyond_the_area_are_refused(void **state)
{
	(void)state;
	static const uint32_t LENGTHS[] = {393, 65536, INT32_MAX, UINT32_MAX - 7, UINT32_MAX};
	struct area a;
	for (size_t i = 0; i < sizeof(LENGTHS) / sizeof(LENGTHS[0]); i++) {
		char expected[200];
		area_init(&a);
		qk_write32(&a.w, 0x12345678);
		qk_write32(&a.w, LENGTHS[i]);
		assert_status(area_decode(&a), QCOW_E_FORMAT, a.err);
		snprintf(expected, sizeof(expected),
			"the header extension 0x12345678 at byte 112 has a length of %" PRIu32
			": must be at most 392",
			LENGTHS[i]);
		assert_string_equal(a.err.message, expected);
	}
}

static void a_bad_length_is_told_with_its_place(void **state)
{
	(void)state;
	struct area a;
	area_init(&a);
	area_add(&a, 0x12345678, "123456789", 9);
	qk_write32(&a.w, 0x9abcdef0);
	qk_write32(&a.w, 1000);
	assert_status(area_decode(&a), QCOW_E_FORMAT, a.err);
	assert_string_equal(a.err.message,
		"the header extension 0x9abcdef0 at byte 136 has a length of 1000: must be at most "
		"368");
}

static void extensions_end_at_the_backing_name(void **state)
{
	(void)state;
	struct area a;
	area_init(&a);
	area_add(&a, 0x12345678, "123456789", 9);
	memcpy(a.p + 136, "name", 4);
	a.h.backing_off = 136;
	a.h.backing_len = 4;
	assert_ok(area_decode(&a), a.err);
	assert_int_equal(a.ext.n_ext, 1);
	assert_memory_equal(a.ext.backing_name.p, "name", 4);
	memcpy(a.p + 128, "9name", 5);
	a.h.backing_off = 128;
	assert_status(area_decode(&a), QCOW_E_FORMAT, a.err);
	assert_string_equal(a.err.message,
		"the header extension 0x12345678 at byte 112 has a length of 9: must be at most 8");
	a.h.backing_off = 112; /* old images of version 2: no area at all */
	assert_ok(area_decode(&a), a.err);
	assert_int_equal(a.ext.n_ext, 0);
}

static void refused_with(struct area *a, const char *message)
{
	assert_status(area_decode(a), QCOW_E_FORMAT, a->err);
	assert_string_equal(a->err.message, message);
}

static void known_extensions_must_have_their_length(void **state)
{
	(void)state;
	struct area a;
	static const uint8_t ZEROS[256];
	area_init(&a);
	area_add(&a, QK_EXT_BACKING_FORMAT, "123456789012345", 15);
	assert_ok(area_decode(&a), a.err);
	area_init(&a);
	area_add(&a, QK_EXT_BACKING_FORMAT, "1234567890123456", 16);
	refused_with(&a, "the backing file format name has a length of 16: must be at most 15");
	area_init(&a);
	area_add(&a, QK_EXT_BITMAPS, ZEROS, 23);
	refused_with(&a, "the bitmaps extension has a length of 23: must be 24");
	area_init(&a);
	area_add(&a, QK_EXT_BITMAPS, ZEROS, 32);
	refused_with(&a, "the bitmaps extension has a length of 32: must be 24");
	area_init(&a);
	area_add(&a, QK_EXT_CRYPTO, ZEROS, 15);
	refused_with(&a, "the encryption header pointer has a length of 15: must be 16");
}

static void data_file_names_over_1023_bytes_are_refused(void **state)
{
	(void)state;
	uint8_t p[2048] = {0};
	struct area a;
	area_init(&a);
	a.h.cluster_bits = 11;
	qk_store32(p + 112, QK_EXT_DATA_FILE);
	qk_store32(p + 116, 1024);
	assert_status(qk_extensions_decode((struct qk_span){p, sizeof(p)}, &a.h, &a.ext, &a.err),
		QCOW_E_FORMAT, a.err);
	assert_string_equal(a.err.message,
		"the external data file name has a length of 1024: must be at most 1023");
	qk_store32(p + 116, 1023);
	assert_ok(
		qk_extensions_decode((struct qk_span){p, sizeof(p)}, &a.h, &a.ext, &a.err), a.err);
}

static void known_extensions_appear_once(void **state)
{
	(void)state;
	static const uint32_t TYPES[] = {QK_EXT_BACKING_FORMAT, QK_EXT_FEATURE_NAMES,
		QK_EXT_BITMAPS, QK_EXT_CRYPTO, QK_EXT_DATA_FILE};
	static const size_t LENGTHS[] = {3, 48, 24, 16, 4};
	static const uint8_t DATA[48] = "raw";
	for (size_t i = 0; i < 5; i++) {
		struct area a;
		char expected[100];
		area_init(&a);
		area_add(&a, TYPES[i], DATA, LENGTHS[i]);
		area_add(&a, 0x12345678, "between", 7);
		assert_ok(area_decode(&a), a.err);
		area_add(&a, TYPES[i], DATA, LENGTHS[i]);
		snprintf(expected, sizeof(expected),
			"the header extension 0x%08" PRIx32 " appears twice", TYPES[i]);
		refused_with(&a, expected);
	}
}

/* A cluster of 2 MiB has room for 262,130 empty extensions. */
static void more_than_1024_extensions_are_refused(void **state)
{
	(void)state;
	uint8_t p[16384] = {0};
	struct area a;
	area_init(&a);
	a.h.cluster_bits = 14;
	for (size_t i = 0; i < 1024; i++)
		qk_store32(p + 112 + 8 * i, 0x12345678);
	assert_ok(
		qk_extensions_decode((struct qk_span){p, sizeof(p)}, &a.h, &a.ext, &a.err), a.err);
	assert_int_equal(a.ext.n_ext, 1024);
	qk_store32(p + 112 + 8 * 1024, 0x12345678);
	assert_status(qk_extensions_decode((struct qk_span){p, sizeof(p)}, &a.h, &a.ext, &a.err),
		QCOW_E_LIMIT, a.err);
	assert_string_equal(a.err.message, "there are more than 1024 header extensions");
}

static void with_name(struct area *a, uint64_t off, uint32_t len)
{
	area_init(a);
	memset(a->p + 120, 'n', CLUSTER - 120);
	a->h.backing_off = off;
	a->h.backing_len = len;
}

static void backing_names_lie_behind_the_header_in_the_first_cluster(void **state)
{
	(void)state;
	struct area a;
	with_name(&a, 120, 392);
	assert_ok(area_decode(&a), a.err);
	with_name(&a, 511, 1);
	assert_ok(area_decode(&a), a.err);
	with_name(&a, 120, 0);
	refused_with(&a, "backing_file_size is 0: must be between 1 and 1023");
	with_name(&a, 120, 1024);
	refused_with(&a, "backing_file_size is 1024: must be between 1 and 1023");
	with_name(&a, 120, UINT32_MAX);
	refused_with(&a, "backing_file_size is 4294967295: must be between 1 and 1023");
	with_name(&a, 111, 4);
	refused_with(&a, "backing_file_offset is 111: lies inside the header of 112 bytes");
	with_name(&a, 1, 4);
	refused_with(&a, "backing_file_offset is 1: lies inside the header of 112 bytes");
	with_name(&a, 511, 2);
	refused_with(&a, "backing_file_offset is 511: a name of 2 bytes there must end within the "
			 "first cluster, of which 512 bytes are there");
	with_name(&a, UINT64_MAX, 2);
	refused_with(&a, "backing_file_offset is 18446744073709551615: a name of 2 bytes there "
			 "must end within "
			 "the first cluster, of which 512 bytes are there");
}

static void backing_names_of_1023_bytes_fit(void **state)
{
	(void)state;
	uint8_t p[2048] = {0};
	struct area a;
	area_init(&a);
	a.h.cluster_bits = 11;
	a.h.backing_off = 120;
	a.h.backing_len = 1023;
	memset(p + 120, 'n', 1023);
	assert_ok(
		qk_extensions_decode((struct qk_span){p, sizeof(p)}, &a.h, &a.ext, &a.err), a.err);
	assert_int_equal(a.ext.backing_name.n, 1023);
}

static void backing_names_hold_no_nul(void **state)
{
	(void)state;
	struct area a;
	with_name(&a, 120, 5);
	a.p[122] = 0;
	refused_with(&a, "the backing file name of 5 bytes holds a NUL byte");
}

static void bytes_behind_the_first_cluster_are_not_looked_at(void **state)
{
	(void)state;
	uint8_t p[2 * CLUSTER] = {0};
	struct area a;
	area_init(&a);
	a.h.backing_off = CLUSTER;
	a.h.backing_len = 1;
	assert_status(qk_extensions_decode((struct qk_span){p, sizeof(p)}, &a.h, &a.ext, &a.err),
		QCOW_E_FORMAT, a.err);
	assert_says(a.err, "of which 512 bytes are there");
}

static void a_bad_cluster_size_is_refused_here_too(void **state)
{
	(void)state;
	struct area a;
	area_init(&a);
	a.h.cluster_bits = 64;
	refused_with(&a, "cluster_bits is 64: must be between 9 and 21");
}

static void encode_refuses_what_does_not_fit(void **state)
{
	(void)state;
	struct area a;
	uint8_t out[CLUSTER], name[1023];
	memset(name, 'n', sizeof(name));
	area_init(&a);
	/* 112 header, 8 end marker */
	a.ext.backing_name = (struct qk_span){name, CLUSTER - 120};
	assert_ok(qk_header_area_encode(&a.h, &a.ext, false, out, CLUSTER, &a.err), a.err);
	assert_int_equal(a.h.backing_off, 120);
	assert_int_equal(a.h.backing_len, CLUSTER - 120);
	a.ext.backing_name.n++;
	assert_status(qk_header_area_encode(&a.h, &a.ext, false, out, CLUSTER, &a.err),
		QCOW_E_LIMIT, a.err);
	assert_string_equal(a.err.message,
		"the header extensions and the backing file name of 393 bytes do not fit the first "
		"cluster of 512 bytes");
	/* 112 + 8 + 384 + 8: the feature names fill a cluster of 512 bytes to the last byte */
	a.ext.backing_name = (struct qk_span){0};
	assert_ok(qk_header_area_encode(&a.h, &a.ext, true, out, CLUSTER, &a.err), a.err);
	assert_true(a.h.backing_off == 0 && a.h.backing_len == 0);
	a.ext.backing_name = (struct qk_span){name, 1};
	assert_status(qk_header_area_encode(&a.h, &a.ext, true, out, CLUSTER, &a.err), QCOW_E_LIMIT,
		a.err);
}

static void feature_names_belong_into_clusters_of_8_kib(void **state)
{
	(void)state;
	struct qk_header h = {.version = 3, .cluster_bits = 12};
	assert_false(qk_header_wants_feature_names(&h));
	h.cluster_bits = 13;
	assert_true(qk_header_wants_feature_names(&h));
	h.version = 2;
	assert_false(qk_header_wants_feature_names(&h));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_empty_area_holds_nothing),
		cmocka_unit_test(extensions_are_found_in_any_order),
		cmocka_unit_test(unknown_extensions_survive_a_rewrite),
		cmocka_unit_test(an_area_may_end_without_a_marker),
		cmocka_unit_test(a_file_shorter_than_its_first_cluster_is_read),
		cmocka_unit_test(lengths_beyond_the_area_are_refused),
		cmocka_unit_test(a_bad_length_is_told_with_its_place),
		cmocka_unit_test(extensions_end_at_the_backing_name),
		cmocka_unit_test(known_extensions_must_have_their_length),
		cmocka_unit_test(data_file_names_over_1023_bytes_are_refused),
		cmocka_unit_test(known_extensions_appear_once),
		cmocka_unit_test(more_than_1024_extensions_are_refused),
		cmocka_unit_test(backing_names_lie_behind_the_header_in_the_first_cluster),
		cmocka_unit_test(backing_names_of_1023_bytes_fit),
		cmocka_unit_test(backing_names_hold_no_nul),
		cmocka_unit_test(bytes_behind_the_first_cluster_are_not_looked_at),
		cmocka_unit_test(a_bad_cluster_size_is_refused_here_too),
		cmocka_unit_test(encode_refuses_what_does_not_fit),
		cmocka_unit_test(feature_names_belong_into_clusters_of_8_kib),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
