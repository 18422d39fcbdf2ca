/* SPDX-License-Identifier: MIT */
/*
 * Headers as an attacker or a broken disk leaves them: one field of a good image at a time, and the
 * sentence that refuses it. A row without a message is an image that must go on working.
 */
#include "golden.h"

#include <inttypes.h>

#define MAX64 UINT64_MAX
#define TOP   (UINT64_C(1) << 63)

struct row {
	const char *base;
	unsigned off, bytes; /* the field */
	uint64_t value;
	enum qcow_status status;
	const char *message;
};

#define V3			"v3-c65536"
#define V2			"v2-c65536"
#define BACK			"backing-v3"
#define EXTL2			"extl2-c16384"
#define DATA			"datafile"
#define FORMAT			QCOW_E_FORMAT
#define NO			QCOW_E_UNSUPPORTED
#define LIMIT			QCOW_E_LIMIT
#define MAGIC_MESSAGE		"the file does not begin with the qcow2 magic \"QFI\\xfb\""
#define BITS_MESSAGE(n)		"cluster_bits is " n ": must be between 9 and 21"
#define LENGTH_MESSAGE(n)	"header_length is " n ": must be a multiple of 8 between 104 and 4096"
#define ORDER_MESSAGE(n)	"refcount_order is " n ": must be between 0 and 6"
#define ALIGN_MESSAGE(field, n) field " is " n ": must be a multiple of the cluster size of 65536"
#define END_MESSAGE(field, n, bytes) \
	field " is " n ": the clusters of a table of " bytes " bytes there must end below 2^63"

static const struct row ROWS[] = {
	/* magic, version */
	{V3, 0, 4, 0x514649fa, QCOW_E_NOT_QCOW2, MAGIC_MESSAGE},
	{V3, 4, 4, 0, NO, "version is 0: must be 2 or 3"},
	{V3, 4, 4, 1, NO, "version is 1: must be 2 or 3"},
	{V3, 4, 4, 4, NO, "version is 4: must be 2 or 3"},
	{V3, 4, 4, 0xffffffff, NO, "version is 4294967295: must be 2 or 3"},
	/* cluster_bits */
	{V3, 20, 4, 0, FORMAT, BITS_MESSAGE("0")},
	{V3, 20, 4, 8, FORMAT, BITS_MESSAGE("8")},
	{V3, 20, 4, 22, FORMAT, BITS_MESSAGE("22")},
	{V3, 20, 4, 31, FORMAT, BITS_MESSAGE("31")},
	{V3, 20, 4, 32, FORMAT, BITS_MESSAGE("32")},
	{V3, 20, 4, 63, FORMAT, BITS_MESSAGE("63")},
	{V3, 20, 4, 64, FORMAT, BITS_MESSAGE("64")},
	{V3, 20, 4, 0xffffffff, FORMAT, BITS_MESSAGE("4294967295")},
	{V2, 20, 4, 8, FORMAT, BITS_MESSAGE("8")},
	{EXTL2, 20, 4, 13, FORMAT,
		"cluster_bits is 13: must be at least 14 with extended L2 entries"},
	/* size */
	{V3, 24, 8, 0, QCOW_OK, NULL},
	{V3, 24, 8, 1, QCOW_OK, NULL},
	{V3, 24, 8, 511, QCOW_OK, NULL},
	{V3, 24, 8, QK_MIB(512), QCOW_OK, NULL},
	{V3, 24, 8, QK_MIB(512) + 1, FORMAT, "l1_size is 1: a size of 536870913 needs 2 entries"},
	{V3, 24, 8, UINT64_C(1) << 56, FORMAT,
		"l1_size is 1: a size of 72057594037927936 needs 134217728 entries"},
	{V3, 24, 8, UINT64_C(1) << 61, FORMAT,
		"l1_size is 1: a size of 2305843009213693952 needs 4294967296 entries"},
	{V3, 24, 8, TOP - 1, FORMAT,
		"l1_size is 1: a size of 9223372036854775807 needs 17179869184 entries"},
	{V3, 24, 8, TOP, FORMAT, "size is 9223372036854775808: must be below 2^63"},
	{V3, 24, 8, MAX64 - 511, FORMAT, "size is 18446744073709551104: must be below 2^63"},
	{V3, 24, 8, MAX64, FORMAT, "size is 18446744073709551615: must be below 2^63"},
	/* crypt_method */
	{V3, 32, 4, 1, QCOW_OK,
		NULL}, /* AES has no metadata; opening it is the engine's to refuse */
	{V3, 32, 4, 2, FORMAT,
		"crypt_method is 2 (LUKS): the header extension with the encryption header's place "
		"(0x0537be77) is missing"},
	{V3, 32, 4, 3, NO, "crypt_method is 3: must be 0 (none), 1 (AES) or 2 (LUKS)"},
	{V3, 32, 4, 0xffffffff, NO,
		"crypt_method is 4294967295: must be 0 (none), 1 (AES) or 2 (LUKS)"},
	{"luks", 32, 4, 0, FORMAT,
		"crypt_method is 0: the header extension 0x0537be77 is only for 2 (LUKS)"},
	{"luks", 32, 4, 1, FORMAT,
		"crypt_method is 1: the header extension 0x0537be77 is only for 2 (LUKS)"},
	/* the encryption header's pointer: at 120 and 128 */
	{"luks", 120, 8, 0x10200, FORMAT,
		"the encryption header is at 66048 with 2068480 bytes: must be aligned to a "
		"cluster, "
		"behind the header, not empty, and end below 2^63"},
	{"luks", 120, 8, 0, FORMAT,
		"the encryption header is at 0 with 2068480 bytes: must be aligned to a cluster, "
		"behind the header, not empty, and end below 2^63"},
	{"luks", 120, 8, MAX64 - 65535, FORMAT,
		"the encryption header is at 18446744073709486080 with 2068480 bytes: must be "
		"aligned "
		"to a cluster, behind the header, not empty, and end below 2^63"},
	{"luks", 128, 8, 0, FORMAT,
		"the encryption header is at 262144 with 0 bytes: must be aligned to a cluster, "
		"behind the header, not empty, and end below 2^63"},
	{"luks", 128, 8, MAX64, FORMAT,
		"the encryption header is at 262144 with 18446744073709551615 bytes: must be "
		"aligned "
		"to a cluster, behind the header, not empty, and end below 2^63"},
	/* l1_size, l1_table_offset */
	{V3, 36, 4, 0, FORMAT, "l1_size is 0: a size of 1311744 needs 1 entries"},
	{V3, 36, 4, 0x400000, QCOW_OK, NULL},
	{V3, 36, 4, 0x400001, LIMIT, "l1_size is 4194305: must be at most 4194304"},
	{V3, 36, 4, 0x7fffffff, LIMIT, "l1_size is 2147483647: must be at most 4194304"},
	{V3, 36, 4, 0xffffffff, LIMIT, "l1_size is 4294967295: must be at most 4194304"},
	{V3, 40, 8, 0, FORMAT, "l1_table_offset is 0: a table of 8 bytes would overlap the header"},
	{"size-0", 40, 8, 0, QCOW_OK, NULL},
	{V3, 40, 8, 1, FORMAT, ALIGN_MESSAGE("l1_table_offset", "1")},
	{V3, 40, 8, 0x30200, FORMAT, ALIGN_MESSAGE("l1_table_offset", "197120")},
	{V3, 40, 8, TOP - 0x20000, QCOW_OK, NULL},
	{V3, 40, 8, TOP - 0x10000, FORMAT,
		END_MESSAGE("l1_table_offset", "9223372036854710272", "8")},
	{V3, 40, 8, TOP, FORMAT, END_MESSAGE("l1_table_offset", "9223372036854775808", "8")},
	{V3, 40, 8, MAX64 - 0xffff, FORMAT,
		END_MESSAGE("l1_table_offset", "18446744073709486080", "8")},
	{V3, 40, 8, UINT64_C(1) << 40, QCOW_OK, NULL}, /* beyond the file: opens read-only */
	/* refcount_table_offset, refcount_table_clusters */
	{V3, 48, 8, 0, FORMAT,
		"refcount_table_offset is 0: a table of 65536 bytes would overlap the header"},
	{V3, 48, 8, 0x10200, FORMAT, ALIGN_MESSAGE("refcount_table_offset", "66048")},
	{V3, 48, 8, TOP - 0x10000, FORMAT,
		END_MESSAGE("refcount_table_offset", "9223372036854710272", "65536")},
	{V3, 48, 8, MAX64 - 0xffff, FORMAT,
		END_MESSAGE("refcount_table_offset", "18446744073709486080", "65536")},
	{V3, 48, 8, 0x30000, QCOW_OK, NULL}, /* on the L1 table: a finding, not a refusal */
	{V3, 56, 4, 0, FORMAT, "refcount_table_clusters is 0: must be at least 1"},
	{V3, 56, 4, 0x80, QCOW_OK, NULL},
	{V3, 56, 4, 0x81, LIMIT, "refcount_table_clusters is 129: must be at most 128"},
	{V3, 56, 4, 0x7fffffff, LIMIT,
		"refcount_table_clusters is 2147483647: must be at most 128"},
	{V3, 56, 4, 0x80000000, LIMIT,
		"refcount_table_clusters is 2147483648: must be at most 128"},
	{V3, 56, 4, 0xffffffff, LIMIT,
		"refcount_table_clusters is 4294967295: must be at most 128"},
	/* nb_snapshots, snapshots_offset */
	{"snapshots-v3", 60, 4, 65536, QCOW_OK, NULL}, /* the table is judged when it is read */
	{"snapshots-v3", 60, 4, 65537, LIMIT, "nb_snapshots is 65537: must be at most 65536"},
	{"snapshots-v3", 60, 4, 0x7fffffff, LIMIT,
		"nb_snapshots is 2147483647: must be at most 65536"},
	{"snapshots-v3", 60, 4, 0xffffffff, LIMIT,
		"nb_snapshots is 4294967295: must be at most 65536"},
	{V3, 60, 4, 1, FORMAT,
		"snapshots_offset is 0: a table of 40 bytes would overlap the header"},
	{V3, 64, 8, 1, FORMAT, ALIGN_MESSAGE("snapshots_offset", "1")},
	{V3, 64, 8, 0x10200, FORMAT, ALIGN_MESSAGE("snapshots_offset", "66048")},
	{V3, 64, 8, MAX64 - 0xffff, FORMAT,
		END_MESSAGE("snapshots_offset", "18446744073709486080", "0")},
	{"snapshots-v3", 64, 8, TOP - 0x10000, FORMAT,
		END_MESSAGE("snapshots_offset", "9223372036854710272", "120")},
	{DATA, 60, 4, 1, FORMAT, "nb_snapshots is 1: must be 0 with an external data file"},
	/* incompatible_features */
	{V3, 72, 8, UINT64_C(1) << 5, NO,
		"incompatible_features has bits that are not supported: bit 5"},
	{V3, 72, 8, UINT64_C(1) << 31, NO,
		"incompatible_features has bits that are not supported: bit 31"},
	{V3, 72, 8, UINT64_C(1) << 32, NO,
		"incompatible_features has bits that are not supported: bit 32"},
	{V3, 72, 8, TOP | 0x21, NO,
		"incompatible_features has bits that are not supported: bit 5, bit 63"},
	{V3, 72, 8, 3, QCOW_OK, NULL}, /* dirty, corrupt: for the engine */
	{V3, 72, 8, 4, QCOW_OK, NULL}, /* a data file whose name the caller gives */
	{V2, 72, 8, MAX64, FORMAT, NULL}, /* version 2: an extension of 4 GiB, no feature bits */
	/* compatible_features, autoclear_features */
	{V3, 80, 8, MAX64, QCOW_OK, NULL},
	{V3, 88, 8, 1, QCOW_OK, NULL}, /* bitmaps without the extension: a finding */
	{V3, 88, 8, TOP | 4, QCOW_OK, NULL},
	{V3, 88, 8, 2, FORMAT,
		"autoclear_features has the raw external data bit (bit 1), but "
		"incompatible_features "
		"has no external data file bit (bit 2)"},
	{DATA, 88, 8, 2, QCOW_OK, NULL},
	/* refcount_order, header_length */
	{V3, 96, 4, 0, QCOW_OK, NULL},
	{V3, 96, 4, 7, FORMAT, ORDER_MESSAGE("7")},
	{V3, 96, 4, 31, FORMAT, ORDER_MESSAGE("31")},
	{V3, 96, 4, 32, FORMAT, ORDER_MESSAGE("32")},
	{V3, 96, 4, 63, FORMAT, ORDER_MESSAGE("63")},
	{V3, 100, 4, 0, FORMAT, LENGTH_MESSAGE("0")},
	{V3, 100, 4, 72, FORMAT, LENGTH_MESSAGE("72")},
	{V3, 100, 4, 103, FORMAT, LENGTH_MESSAGE("103")},
	{V3, 100, 4, 105, FORMAT, LENGTH_MESSAGE("105")},
	{V3, 100, 4, 108, FORMAT, LENGTH_MESSAGE("108")},
	{V3, 100, 4, 4096, QCOW_OK, NULL},
	{V3, 100, 4, 4104, FORMAT, LENGTH_MESSAGE("4104")},
	{V3, 100, 4, 65528, FORMAT, LENGTH_MESSAGE("65528")},
	{V3, 100, 4, 65536, FORMAT, LENGTH_MESSAGE("65536")},
	{V3, 100, 4, 65544, FORMAT, LENGTH_MESSAGE("65544")},
	{V3, 100, 4, 0x7fffffff, FORMAT, LENGTH_MESSAGE("2147483647")},
	{V3, 100, 4, 0xffffffff, FORMAT, LENGTH_MESSAGE("4294967295")},
	{"v3-c512", 100, 4, 512, QCOW_OK, NULL},
	{"v3-c512", 100, 4, 520, FORMAT, "header_length is 520: the first cluster has 512 bytes"},
	/* compression_type and its padding */
	{V3, 104, 1, 1, FORMAT,
		"compression_type is 1: must be 0 where the compression type bit is clear"},
	{V3, 104, 1, 77, FORMAT,
		"compression_type is 77: must be 0 where the compression type bit is clear"},
	{V3, 72, 8, 8, FORMAT,
		"compression_type is 0: must not be 0 where the compression type bit is set"},
	{"zstd-c65536", 104, 1, 2, NO, "compression_type is 2: must be 0 (deflate) or 1 (zstd)"},
	{"zstd-c65536", 104, 1, 77, NO, "compression_type is 77: must be 0 (deflate) or 1 (zstd)"},
	{"zstd-c65536", 100, 4, 104, FORMAT, NULL}, /* without the field */
	{V3, 105, 4, 0xffffffff, QCOW_OK, NULL},
	{V3, 108, 4, 0xffffffff, QCOW_OK, NULL},
	/* extensions: the feature names are the first of V3, the backing format the first of
	 * BACK */
	{V3, 116, 4, 0x7fffffff, FORMAT,
		"the header extension 0x6803f857 at byte 112 has a length of 2147483647: must be "
		"at "
		"most 65416"},
	{V3, 116, 4, 0xffffffff, FORMAT,
		"the header extension 0x6803f857 at byte 112 has a length of 4294967295: must be "
		"at "
		"most 65416"},
	{V3, 116, 4, 0xfffffff8, FORMAT,
		"the header extension 0x6803f857 at byte 112 has a length of 4294967288: must be "
		"at "
		"most 65416"},
	{V3, 116, 4, 65536, FORMAT,
		"the header extension 0x6803f857 at byte 112 has a length of 65536: must be at "
		"most "
		"65416"},
	{V2, 72, 8, UINT64_C(0xe2792aca7fffffff), FORMAT,
		"the header extension 0xe2792aca at byte 72 has a length of 2147483647: must be at "
		"most 65456"},
	{BACK, 112, 4, QK_EXT_DATA_FILE, QCOW_OK, NULL}, /* a data file name without the bit */
	{BACK, 112, 4, QK_EXT_FEATURE_NAMES, FORMAT,
		"the header extension 0x6803f857 appears twice"},
	{BACK, 112, 4, QK_EXT_BITMAPS, FORMAT,
		"the bitmaps extension has a length of 5: must be 24"},
	{BACK, 112, 4, QK_EXT_CRYPTO, FORMAT,
		"the encryption header pointer has a length of 5: must be 16"},
	/* the backing name: 10 bytes at 528 */
	{BACK, 16, 4, 0, FORMAT, "backing_file_size is 0: must be between 1 and 1023"},
	{BACK, 16, 4, 1024, FORMAT, "backing_file_size is 1024: must be between 1 and 1023"},
	{BACK, 16, 4, 0xffffffff, FORMAT,
		"backing_file_size is 4294967295: must be between 1 and 1023"},
	{BACK, 16, 4, 11, FORMAT, "the backing file name of 11 bytes holds a NUL byte"},
	{BACK, 8, 8, 1, FORMAT, "backing_file_offset is 1: lies inside the header of 112 bytes"},
	{BACK, 8, 8, 8, FORMAT, "backing_file_offset is 8: lies inside the header of 112 bytes"},
	{BACK, 8, 8, 64, FORMAT, "backing_file_offset is 64: lies inside the header of 112 bytes"},
	{BACK, 8, 8, 65535, FORMAT,
		"backing_file_offset is 65535: a name of 10 bytes there must end within the first "
		"cluster, of which 65536 bytes are there"},
	{BACK, 8, 8, 65536, FORMAT,
		"backing_file_offset is 65536: a name of 10 bytes there must end within the first "
		"cluster, of which 65536 bytes are there"},
	{BACK, 8, 8, TOP - 1, FORMAT,
		"backing_file_offset is 9223372036854775807: a name of 10 bytes there must end "
		"within "
		"the first cluster, of which 65536 bytes are there"},
	{BACK, 8, 8, MAX64, FORMAT,
		"backing_file_offset is 18446744073709551615: a name of 10 bytes there must end "
		"within "
		"the first cluster, of which 65536 bytes are there"},
	/* the data file's name: 8 bytes at 120 */
	{DATA, 120, 1, 0, FORMAT, "the external data file name of 8 bytes holds a NUL byte"},
	/* the bitmaps extension: numbers are judged when the bitmaps are wanted */
	{"bitmaps", 120, 4, 0, QCOW_OK, NULL},
	{"bitmaps", 120, 4, 65536, QCOW_OK, NULL},
	{"bitmaps", 128, 8, MAX64, QCOW_OK, NULL},
	{"bitmaps", 136, 8, MAX64, QCOW_OK, NULL},
};

/* A rewrite of what was accepted keeps the field. */
static void check_rewrite(const struct row *row, struct qk_header *h,
	const struct qk_extensions *ext, const uint8_t *cluster0)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t n = (size_t)1 << h->cluster_bits;
	uint8_t *copy = malloc(n);
	if (qk_header_area_encode(h, ext, false, copy, n, &err) != QCOW_OK) {
		/* a header that fills its cluster leaves no room for the end marker */
		assert_int_equal(err.status, QCOW_E_LIMIT);
		assert_int_equal(h->header_length, n);
	} else if (row->off < h->header_length) {
		assert_memory_equal(copy + 20, cluster0 + 20, h->header_length - 20);
	}
	free(copy);
}

static const struct row *current;

static void check_row(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t n = 0;
	uint64_t off = 0;
	uint8_t *p = golden_section(golden, "header", 0, &n, &off);
	for (unsigned i = 0; i < current->bytes; i++)
		p[current->off + i] = (uint8_t)(current->value >> 8 * (current->bytes - 1 - i));
	enum qcow_status status = qk_header_area_decode((struct qk_span){p, n}, &h, &ext, &err);
	CHECK(status == current->status, "%s %u=%" PRIu64 ": %s, \"%s\"", current->base,
		current->off, current->value, qcow_status_name(status), err.message);
	if (current->message != NULL)
		assert_string_equal(err.message, current->message);
	/* The same without an error to fill. */
	assert_int_equal(qk_header_area_decode((struct qk_span){p, n}, &h, &ext, NULL), status);
	if (status == QCOW_OK)
		check_rewrite(current, &h, &ext, p);
	free(p);
}

static void each_hostile_field_gets_its_verdict(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(ROWS) / sizeof(ROWS[0]); i++) {
		current = &ROWS[i];
		golden_one(current->base, check_row);
	}
}

/* Entry 0 of the feature name table: kind at 120, bit at 121, name from 122. */
static void with_feature_name(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t n = 0;
	uint64_t off = 0;
	uint8_t *p = golden_section(golden, "header", 0, &n, &off);
	struct qk_span cluster0 = {p, n};
	qk_store64(p + 72, TOP | 0x21);
	p[121] = 5;
	assert_status(qk_header_area_decode(cluster0, &h, &ext, &err), NO, err);
	assert_string_equal(err.message, "incompatible_features has bits that are not supported: "
					 "\"dirty bit\" (bit 5), bit 63");

	memcpy(p + 122, "\x1b[31m\a\n\"\\\xff\xe2\x80\xae", 14);
	assert_status(qk_header_area_decode(cluster0, &h, &ext, &err), NO, err);
	assert_string_equal(err.message,
		"incompatible_features has bits that are not supported: "
		"\"\\x1b[31m\\x07\\x0a\\x22\\x5c\\xff\\xe2\\x80\\xae\" (bit 5), bit 63");

	p[121] = 200; /* names a bit over 63: ignored */
	assert_status(qk_header_area_decode(cluster0, &h, &ext, &err), NO, err);
	assert_string_equal(err.message,
		"incompatible_features has bits that are not supported: bit 5, bit 63");

	/* The extension area cannot be read: unknown bits are what matters, known ones are not. */
	p[121] = 5;
	qk_store32(p + 116, UINT32_MAX);
	qk_store64(p + 72, 1);
	assert_status(qk_header_area_decode(cluster0, &h, &ext, &err), FORMAT, err);
	assert_says(err, "the header extension 0x6803f857");
	qk_store64(p + 72, TOP | 0x20);
	assert_status(qk_header_area_decode(cluster0, &h, &ext, &err), NO, err);
	assert_string_equal(err.message,
		"incompatible_features has bits that are not supported: bit 5, bit 63");
	free(p);
}

static void unknown_features_are_named_and_names_escaped(void **state)
{
	(void)state;
	golden_one(V3, with_feature_name);
}

/* All 59 unknown bits, each with a name of 46 escape characters: cut, not overrun. */
static void with_all_names(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t n = 0;
	uint64_t off = 0;
	uint8_t *p = golden_section(golden, "header", 0, &n, &off);
	qk_store64(p + 72, MAX64);
	qk_store32(p + 116, 59 * 48);
	for (uint8_t i = 0; i < 59; i++) {
		memset(p + 120 + 48 * i, 0x1b, 48);
		p[120 + 48 * i] = 0;
		p[121 + 48 * i] = (uint8_t)(5 + i);
	}
	assert_status(qk_header_area_decode((struct qk_span){p, n}, &h, &ext, &err), NO, err);
	assert_int_equal(strlen(err.message),
		strlen("incompatible_features has bits that are not supported: ") + 383);
	for (const char *c = err.message; *c != '\0'; c++)
		assert_true(*c >= 0x20 && *c < 0x7f);
	free(p);
}

static void messages_of_many_features_are_cut(void **state)
{
	(void)state;
	golden_one(V3, with_all_names);
}

static void with_data_file_name(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qk_geometry g;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *p = golden_header(golden, &h, &ext, &g);
	ext.data_file.n = 0;
	assert_status(qk_header_validate(&h, &ext, &err), FORMAT, err);
	assert_string_equal(err.message, "the external data file name is empty");
	h.incompatible = 0;
	assert_ok(qk_header_validate(&h, &ext, &err), err);
	free(p);
}

static void an_empty_data_file_name_is_refused(void **state)
{
	(void)state;
	golden_one(DATA, with_data_file_name);
}

/* A header that was never encoded can be judged too: create does it. */
static void a_header_of_fields_is_judged_without_extensions(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_header h = {.version = 3,
		.cluster_bits = 9,
		.header_length = 520,
		.rt_off = 512,
		.rt_clusters = 1,
		.refcount_order = 4};
	assert_status(qk_header_validate(&h, NULL, &err), FORMAT, err);
	assert_string_equal(
		err.message, "header_length is 520: must not exceed the cluster size of 512");
	h.header_length = 112;
	assert_ok(qk_header_validate(&h, NULL, &err), err);
	h.crypt_method = 2;
	assert_ok(qk_header_validate(&h, NULL, &err), err);
	h.incompatible = QK_INCOMPAT_DATA_FILE;
	assert_ok(qk_header_validate(&h, NULL, &err), err);
	h.cluster_bits = 22;
	assert_status(qk_header_validate(&h, NULL, &err), FORMAT, err);
	assert_string_equal(err.message, BITS_MESSAGE("22"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_hostile_field_gets_its_verdict),
		cmocka_unit_test(unknown_features_are_named_and_names_escaped),
		cmocka_unit_test(messages_of_many_features_are_cut),
		cmocka_unit_test(an_empty_data_file_name_is_refused),
		cmocka_unit_test(a_header_of_fields_is_judged_without_extensions),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
