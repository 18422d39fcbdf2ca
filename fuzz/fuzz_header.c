/* SPDX-License-Identifier: MIT */
/*
 * The first cluster: header, extensions, names. Oracles: the fixed header encodes back to the same
 * bytes; the whole area, encoded and decoded again, means the same, and encoding that gives the
 * same bytes once more; every message is printable.
 */
#include "fuzz.h"

#include "format/header.h"

static void check_message(const struct qcow_error *err)
{
	FUZZ_CHECK(err->message[0] != '\0');
	for (const char *c = err->message; *c != '\0'; c++)
		FUZZ_CHECK(*c >= 0x20 && *c < 0x7f);
}

static bool same(struct qk_span a, struct qk_span b)
{
	return a.n == b.n && (a.p == NULL) == (b.p == NULL) &&
	       (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static void check_fixed(struct qk_span in, const struct qk_header *h)
{
	uint8_t out[QK_MAX_HEADER_BYTES];
	struct qk_writer w = qk_writer_init(out, sizeof(out));
	FUZZ_CHECK(qk_header_encode(h, &w, NULL) == QCOW_OK);
	FUZZ_CHECK(w.at == h->header_length);
	FUZZ_CHECK(memcmp(out, in.p, w.at) == 0);
}

static void check_extensions(const struct qk_extensions *a, const struct qk_extensions *b)
{
	struct qk_ext e;
	size_t at = 0;
	uint32_t n = 0;
	FUZZ_CHECK(same(a->backing_name, b->backing_name));
	FUZZ_CHECK(same(a->backing_format, b->backing_format));
	FUZZ_CHECK(same(a->data_file, b->data_file));
	FUZZ_CHECK(a->has_bitmaps == b->has_bitmaps && a->has_crypto == b->has_crypto);
	FUZZ_CHECK(memcmp(&a->bitmaps, &b->bitmaps, sizeof(a->bitmaps)) == 0);
	FUZZ_CHECK(a->crypto_off == b->crypto_off && a->crypto_len == b->crypto_len);
	FUZZ_CHECK(a->n_ext == b->n_ext);
	while (qk_ext_next(a, &at, &e))
		n++;
	FUZZ_CHECK(n == a->n_ext && at == a->area.n);
}

static void check_area(struct qk_header h, const struct qk_extensions *ext)
{
	static uint8_t first[1 << QK_MAX_CLUSTER_BITS], second[1 << QK_MAX_CLUSTER_BITS];
	size_t n = (size_t)1 << h.cluster_bits;
	bool names = ext->feature_names.p != NULL;
	struct qk_header h2;
	struct qk_extensions ext2;
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qk_header_area_encode(&h, ext, names, first, n, &err) != QCOW_OK) {
		FUZZ_CHECK(err.status == QCOW_E_LIMIT);
		return;
	}
	FUZZ_CHECK(qk_header_area_decode((struct qk_span){first, n}, &h2, &ext2, NULL) == QCOW_OK);
	FUZZ_CHECK(h2.backing_off == h.backing_off && h2.backing_len == h.backing_len);
	FUZZ_CHECK(h2.size == h.size && h2.l1_off == h.l1_off && h2.autoclear == h.autoclear);
	check_extensions(ext, &ext2);
	FUZZ_CHECK(qk_header_area_encode(&h2, &ext2, names, second, n, NULL) == QCOW_OK);
	FUZZ_CHECK(memcmp(first, second, n) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct qk_span in = {data, n};
	struct qk_header h;
	struct qk_extensions ext;
	struct qk_geometry g;
	struct qcow_error err = QCOW_ERROR_INIT;
	(void)qk_probe(data, n);
	if (qk_header_area_decode(in, &h, &ext, &err) != QCOW_OK) {
		check_message(&err);
		return 0;
	}
	FUZZ_CHECK(qk_probe(data, n) == QK_PROBE_QCOW2);
	FUZZ_CHECK(qk_header_validate(&h, NULL, NULL) == QCOW_OK);
	qk_header_geometry(&h, &g);
	FUZZ_CHECK(h.l1_entries >= qk_geometry_l1_entries(&g, h.size));
	check_fixed(in, &h);
	check_area(h, &ext);
	return 0;
}
