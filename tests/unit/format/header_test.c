/* SPDX-License-Identifier: MIT */
/* header_test: what QEMU wrote is understood, encoded back, and made from options alone. */
#include "golden.h"

#include <inttypes.h>

#include "format/layout.h"

static void magic_and_version_decide_the_probe(void **state)
{
	(void)state;
	const uint8_t v2[8] = "QFI\xfb\0\0\0\2", v3[8] = "QFI\xfb\0\0\0\3",
		      v1[8] = "QFI\xfb\0\0\0\1";
	const uint8_t v4[8] = "QFI\xfb\0\0\0\4", other[8] = "QFI\xfa\0\0\0\3";
	assert_int_equal(qk_probe(v2, 8), QK_PROBE_QCOW2);
	assert_int_equal(qk_probe(v3, 8), QK_PROBE_QCOW2);
	assert_int_equal(qk_probe(v1, 8), QK_PROBE_QCOW_OTHER);
	assert_int_equal(qk_probe(v4, 8), QK_PROBE_QCOW_OTHER);
	assert_int_equal(qk_probe(other, 8), QK_PROBE_OTHER);
	assert_int_equal(qk_probe(v3, 4), QK_PROBE_QCOW_OTHER); /* cut, and still never raw */
	assert_int_equal(qk_probe(v3, 3), QK_PROBE_OTHER);
	assert_int_equal(qk_probe(NULL, 0), QK_PROBE_OTHER);
}

static bool is_text(struct qk_span s, const char *text)
{
	return s.n == strlen(text) && (s.n == 0 || memcmp(s.p, text, s.n) == 0);
}

static void check_name(const struct golden *g, const char *key, struct qk_span span)
{
	char text[2048];
	const char *fact = golden_fact(g, key, 0, text, sizeof(text));
	CHECK((span.p != NULL) == (fact != NULL), "%s: %s", g->name, key);
	CHECK(fact == NULL || is_text(span, fact), "%s: %s", g->name, key);
}

static void check_features(const struct golden *g, const struct qk_header *h)
{
	char text[64];
	bool extl2 = (h->incompatible & QK_INCOMPAT_EXTENDED_L2) != 0;
	bool raw = (h->autoclear & QK_AUTOCLEAR_RAW_DATA) != 0;
	const char *type = h->compression_type == QK_COMPRESSION_ZSTD ? "zstd" : "zlib";
	assert_int_equal(extl2, golden_number(g, "extended-l2", 0));
	assert_int_equal(raw, golden_number(g, "data-file-raw", 0));
	assert_int_equal((h->incompatible & QK_INCOMPAT_DIRTY) != 0, golden_number(g, "dirty", 0));
	assert_int_equal(
		(h->incompatible & QK_INCOMPAT_CORRUPT) != 0, golden_number(g, "corrupt", 0));
	assert_int_equal((h->compatible & QK_COMPAT_LAZY_REFCOUNTS) != 0,
		golden_number(g, "lazy-refcounts", 0));
	assert_string_equal(golden_fact(g, "compression-type", 0, text, sizeof(text)), type);
	assert_string_equal(
		golden_fact(g, "compat", 0, text, sizeof(text)), h->version == 2 ? "0.10" : "1.1");
}

static void golden_fields(const struct golden *g)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qk_geometry geometry;
	uint8_t *cluster0 = golden_header(g, &h, &ext, &geometry);
	assert_int_equal(h.size, golden_number(g, "virtual-size", UINT64_MAX));
	assert_int_equal(geometry.cluster_size, golden_number(g, "cluster-size", 0));
	assert_int_equal(geometry.refcount_bits, golden_number(g, "refcount-bits", 16));
	assert_int_equal(h.crypt_method != 0, golden_number(g, "encrypted", 0));
	assert_int_equal(geometry.version, h.version);
	check_features(g, &h);
	check_name(g, "backing-filename", ext.backing_name);
	check_name(g, "backing-filename-format", ext.backing_format);
	check_name(g, "data-file", ext.data_file);
	assert_int_equal(geometry.data_file, ext.data_file.p != NULL);
	free(cluster0);
}

static void headers_of_qemu_mean_what_qemu_says(void **state)
{
	(void)state;
	golden_each(golden_fields);
}

static void golden_encode(const struct golden *g)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qk_geometry geometry;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *cluster0 = golden_header(g, &h, &ext, &geometry);
	uint64_t backing_off = h.backing_off;
	uint8_t *copy = malloc(geometry.cluster_size);
	memset(copy, 0xee, geometry.cluster_size);
	assert_int_equal(qk_header_wants_feature_names(&h), ext.feature_names.p != NULL);
	assert_ok(qk_header_area_encode(
			  &h, &ext, ext.feature_names.p != NULL, copy, geometry.cluster_size, &err),
		err);
	CHECK(memcmp(copy, cluster0, geometry.cluster_size) == 0, "%s", g->name);
	assert_true(h.backing_off == backing_off);
	free(copy);
	free(cluster0);
}

static void first_clusters_of_qemu_encode_back(void **state)
{
	(void)state;
	golden_each(golden_encode);
}

static struct qk_span text_span(const char *s)
{
	return (struct qk_span){s != NULL ? (const uint8_t *)s : NULL, s != NULL ? strlen(s) : 0};
}

/* A header made from the options alone, as create does it. */
static void golden_create(const struct golden *g)
{
	char backing[2048], format[64], data_file[64], text[64];
	struct qk_geometry geometry;
	struct qk_layout l;
	struct qcow_error err = QCOW_ERROR_INIT;
	if (!golden_number(g, "pristine", 0) || golden_number(g, "encrypted", 0))
		return;
	uint64_t cluster_size = golden_number(g, "cluster-size", 0);
	const char *compat = golden_fact(g, "compat", 0, text, sizeof(text));
	struct qk_header h = {
		.version = strcmp(compat, "0.10") == 0 ? 2 : 3,
		.cluster_bits = qk_log2(cluster_size),
		.size = golden_number(g, "virtual-size", 0),
		.refcount_order = qk_log2(golden_number(g, "refcount-bits", 16)),
		.compatible = golden_number(g, "lazy-refcounts", 0),
		.autoclear = golden_number(g, "data-file-raw", 0) << 1,
	};
	h.header_length = h.version == 2 ? 72 : 112;
	struct qk_extensions ext = {
		.backing_name = text_span(
			golden_fact(g, "backing-filename", 0, backing, sizeof(backing))),
		.backing_format = text_span(
			golden_fact(g, "backing-filename-format", 0, format, sizeof(format))),
		.data_file = text_span(
			golden_fact(g, "data-file", 0, data_file, sizeof(data_file))),
	};
	if (ext.data_file.p != NULL)
		h.incompatible |= QK_INCOMPAT_DATA_FILE;
	if (golden_number(g, "extended-l2", 0))
		h.incompatible |= QK_INCOMPAT_EXTENDED_L2;
	if (strcmp(golden_fact(g, "compression-type", 0, text, sizeof(text)), "zstd") == 0) {
		h.incompatible |= QK_INCOMPAT_COMPRESSION;
		h.compression_type = QK_COMPRESSION_ZSTD;
	}
	qk_header_geometry(&h, &geometry);
	assert_ok(qk_layout_empty(&geometry, h.size, &l, &err), err);
	h.rt_off = l.rt_off;
	h.rt_clusters = (uint32_t)l.rt_clusters;
	h.l1_off = l.l1_off;
	h.l1_entries = (uint32_t)l.l1_entries;
	uint8_t *ours = malloc(cluster_size);
	assert_ok(qk_header_area_encode(
			  &h, &ext, qk_header_wants_feature_names(&h), ours, cluster_size, &err),
		err);
	size_t n = 0;
	uint64_t off = 0;
	uint8_t *theirs = golden_section(g, "header", 0, &n, &off);
	CHECK(n == cluster_size && memcmp(ours, theirs, n) == 0, "%s", g->name);
	free(ours);
	free(theirs);
}

static void new_headers_are_qemus_byte_for_byte(void **state)
{
	(void)state;
	golden_each(golden_create);
}

static void golden_cut(const struct golden *g)
{
	struct qk_header h;
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t n = 0;
	uint64_t off = 0;
	uint8_t *p = golden_section(g, "header", 0, &n, &off);
	size_t need = qk_load32(p + 4) == 2 ? 72 : 112;
	for (size_t have = 0; have < need; have++) {
		uint8_t *cut = malloc(have + 1); /* exactly bounded, for the sanitizer */
		memcpy(cut, p, have);
		uint8_t *tight = realloc(cut, have != 0 ? have : 1);
		assert_status(qk_header_decode((struct qk_span){tight, have}, &h, &err),
			have < 4 ? QCOW_E_NOT_QCOW2 : QCOW_E_FORMAT, err);
		free(tight);
	}
	assert_ok(qk_header_decode((struct qk_span){p, need}, &h, &err), err);
	free(p);
}

static void headers_cut_anywhere_are_refused(void **state)
{
	(void)state;
	golden_one("v2-c65536", golden_cut);
	golden_one("v3-c65536", golden_cut);
}

static void cut_headers_say_how_much_is_missing(void **state)
{
	(void)state;
	struct qk_header h;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t buf[112] = "QFI\xfb\0\0\0\3";
	assert_status(qk_header_decode((struct qk_span){buf, 71}, &h, &err), QCOW_E_FORMAT, err);
	assert_string_equal(err.message, "the file ends after 71 bytes: the header needs 72");
	assert_status(qk_header_decode((struct qk_span){buf, 103}, &h, &err), QCOW_E_FORMAT, err);
	assert_string_equal(err.message, "the file ends after 103 bytes: the header needs 104");
	buf[103] = 112;
	assert_status(qk_header_decode((struct qk_span){buf, 111}, &h, &err), QCOW_E_FORMAT, err);
	assert_string_equal(err.message, "the file ends after 111 bytes: the header needs 112");
	buf[103] = 104;
	assert_ok(qk_header_decode((struct qk_span){buf, 104}, &h, &err), err);
}

static void version_2_has_no_bytes_72_to_103(void **state)
{
	(void)state;
	struct qk_header h;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t buf[112], out[112];
	memset(buf, 0xff, sizeof(buf));
	memcpy(buf, "QFI\xfb\0\0\0\2", 8);
	assert_ok(qk_header_decode((struct qk_span){buf, sizeof(buf)}, &h, &err), err);
	assert_true(h.incompatible == 0 && h.compatible == 0 && h.autoclear == 0);
	assert_true(h.refcount_order == 4 && h.header_length == 72 && h.compression_type == 0);
	assert_true(h.tail.n == 0);
	memset(out, 0xee, sizeof(out));
	struct qk_writer w = qk_writer_init(out, sizeof(out));
	assert_ok(qk_header_encode(&h, &w, &err), err);
	assert_int_equal(w.at, 72);
	assert_memory_equal(out, buf, 72);
	for (size_t i = 72; i < sizeof(out); i++)
		assert_int_equal(out[i], 0xee);
}

static void unknown_header_bytes_are_kept(void **state)
{
	(void)state;
	struct qk_header h;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t buf[256], out[256];
	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (uint8_t)i;
	memcpy(buf, "QFI\xfb\0\0\0\3", 8);
	for (uint32_t len = 104; len <= 256; len += 8) {
		qk_store32(buf + 100, len);
		assert_ok(qk_header_decode((struct qk_span){buf, sizeof(buf)}, &h, &err), err);
		assert_int_equal(h.tail.n, len == 104 ? 0 : len - 105);
		assert_int_equal(h.compression_type, len == 104 ? 0 : 104);
		struct qk_writer w = qk_writer_init(out, sizeof(out));
		assert_ok(qk_header_encode(&h, &w, &err), err);
		assert_int_equal(w.at, len);
		assert_memory_equal(out, buf, len);
	}
}

/* The first read of an open may end within a long header: enough to learn the cluster size from. */
static void a_long_header_decodes_from_112_bytes(void **state)
{
	(void)state;
	struct qk_header h;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t buf[128] = "QFI\xfb\0\0\0\3";
	uint64_t size = 0;
	qk_store32(buf + 20, 16);
	qk_store32(buf + 100, 128);
	assert_ok(qk_header_decode((struct qk_span){buf, 112}, &h, &err), err);
	assert_int_equal(h.tail.n, 7);
	assert_ok(qk_header_cluster_size(&h, &size, &err), err);
	assert_int_equal(size, 65536);
	struct qk_extensions ext;
	assert_status(qk_extensions_decode((struct qk_span){buf, 112}, &h, &ext, &err),
		QCOW_E_FORMAT, err);
	assert_string_equal(err.message, "header_length is 128: the first cluster has 112 bytes");
}

static void known_features_have_qemus_names(void **state)
{
	(void)state;
	assert_string_equal(
		qk_feature_known_name(QK_FEATURE_INCOMPATIBLE, 4), "extended L2 entries");
	assert_string_equal(qk_feature_known_name(QK_FEATURE_COMPATIBLE, 0), "lazy refcounts");
	assert_string_equal(qk_feature_known_name(QK_FEATURE_AUTOCLEAR, 1), "raw external data");
	assert_null(qk_feature_known_name(QK_FEATURE_INCOMPATIBLE, 5));
	assert_null(qk_feature_known_name(3, 0));
	assert_int_equal(qk_feature_known_mask(QK_FEATURE_INCOMPATIBLE), 31);
	assert_int_equal(qk_feature_known_mask(QK_FEATURE_COMPATIBLE), 1);
	assert_int_equal(qk_feature_known_mask(QK_FEATURE_AUTOCLEAR), 3);
}

static void golden_feature_table(const struct golden *g)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qk_geometry geometry;
	uint8_t *cluster0 = golden_header(g, &h, &ext, &geometry);
	unsigned n = 0;
	for (unsigned kind = 0; kind < 3; kind++) {
		for (unsigned bit = 0; bit < 256; bit++) {
			const char *known = qk_feature_known_name(kind, bit);
			struct qk_span name = qk_feature_name(ext.feature_names, kind, bit);
			CHECK(is_text(name, known != NULL ? known : ""), "%u.%u", kind, bit);
			n += known != NULL;
		}
	}
	assert_int_equal(ext.feature_names.n, n * 48);
	free(cluster0);
}

static void qemus_feature_table_is_ours(void **state)
{
	(void)state;
	golden_one("v3-c65536", golden_feature_table);
}

static void feature_names_need_no_nul(void **state)
{
	(void)state;
	uint8_t table[49];
	memset(table, 'x', sizeof(table));
	table[0] = 0;
	table[1] = 63;
	assert_int_equal(qk_feature_name((struct qk_span){table, 48}, 0, 63).n, 46);
	assert_int_equal(qk_feature_name((struct qk_span){table, 49}, 0, 63).n, 46);
	assert_int_equal(qk_feature_name((struct qk_span){table, 47}, 0, 63).n, 45);
	assert_int_equal(qk_feature_name((struct qk_span){table, 3}, 0, 63).n, 1);
	assert_int_equal(qk_feature_name((struct qk_span){table, 2}, 0, 63).n, 0);
	assert_int_equal(qk_feature_name((struct qk_span){table, 1}, 0, 63).n, 0);
	assert_int_equal(qk_feature_name((struct qk_span){NULL, 0}, 0, 63).n, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(magic_and_version_decide_the_probe),
		cmocka_unit_test(headers_of_qemu_mean_what_qemu_says),
		cmocka_unit_test(first_clusters_of_qemu_encode_back),
		cmocka_unit_test(new_headers_are_qemus_byte_for_byte),
		cmocka_unit_test(headers_cut_anywhere_are_refused),
		cmocka_unit_test(cut_headers_say_how_much_is_missing),
		cmocka_unit_test(version_2_has_no_bytes_72_to_103),
		cmocka_unit_test(unknown_header_bytes_are_kept),
		cmocka_unit_test(a_long_header_decodes_from_112_bytes),
		cmocka_unit_test(known_features_have_qemus_names),
		cmocka_unit_test(qemus_feature_table_is_ours),
		cmocka_unit_test(feature_names_need_no_nul),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
