/* SPDX-License-Identifier: MIT */
/*
 * ext: header extensions and the backing file name: everything in cluster 0 behind the fixed
 * header.
 *
 * Pure. The area ends at the END marker, at the backing file name, or at the end of the cluster:
 *
 *   0         header_length                               backing_off                cluster_size
 *   | header  | type len data pad | type len data pad | END | backing name | ...        |
 *             |<------------- area ------------------>|
 *
 * An extension that cannot be taken at its word refuses the image: the next one's place depends on
 * it. Unknown types are stepped over and kept.
 */
#include "format/header.h"

#include <inttypes.h>

#include "format/feature.h"

#define EXT_HEAD_BYTES	  8U
#define BITMAPS_EXT_BYTES 24U
#define CRYPTO_EXT_BYTES  16U

/* Where the padding of an extension that ends at `end` ends; the last one may lack its padding. */
static size_t skip_padding(size_t end, size_t limit)
{
	return (size_t)qk_min((end + 7) & ~(size_t)7, limit);
}

static bool head_at(struct qk_span area, size_t at, uint32_t *type, uint32_t *len)
{
	if (area.n - at < EXT_HEAD_BYTES)
		return false;
	*type = qk_load32(area.p + at);
	*len = qk_load32(area.p + at + 4);
	return *type != QK_EXT_END;
}

bool qk_ext_next(const struct qk_extensions *ext, size_t *at, struct qk_ext *out)
{
	uint32_t len = 0;
	if (!head_at(ext->area, *at, &out->type, &len))
		return false;
	size_t data_at = *at + EXT_HEAD_BYTES;
	QK_ASSERT_VOID(F9, len <= ext->area.n - data_at);
	out->data = (struct qk_span){ext->area.p + data_at, len};
	*at = skip_padding(data_at + len, ext->area.n);
	return true;
}

/* Sets ext->area and n_ext: the walk which proves that qk_ext_next stays inside. */
static enum qcow_status find_area(
	struct qk_span rest, uint64_t start, struct qk_extensions *ext, struct qcow_error *err)
{
	size_t at = 0;
	uint32_t type = 0, len = 0;
	while (head_at(rest, at, &type, &len)) {
		size_t data_at = at + EXT_HEAD_BYTES;
		if (len > rest.n - data_at)
			return QK_FAIL(err, QCOW_E_FORMAT,
				"the header extension 0x%08" PRIx32 " at byte %" PRIu64
				" has a length of %" PRIu32 ": must be at most %zu",
				type, start + at, len, rest.n - data_at);
		at = skip_padding(data_at + len, rest.n);
		if (++ext->n_ext > QK_MAX_EXTENSIONS)
			return QK_FAIL(err, QCOW_E_LIMIT,
				"there are more than %u header extensions", QK_MAX_EXTENSIONS);
	}
	ext->area = (struct qk_span){rest.p, at};
	return QCOW_OK;
}

static enum qcow_status take_string(struct qk_span data, const char *what, size_t max,
	struct qk_span *out, struct qcow_error *err)
{
	if (data.n > max)
		return QK_FAIL(err, QCOW_E_FORMAT, "%s has a length of %zu: must be at most %zu",
			what, data.n, max);
	*out = data;
	return QCOW_OK;
}

static enum qcow_status expect_length(
	const struct qk_ext *e, const char *what, size_t expected, struct qcow_error *err)
{
	if (e->data.n != expected)
		return QK_FAIL(err, QCOW_E_FORMAT, "%s has a length of %zu: must be %zu", what,
			e->data.n, expected);
	return QCOW_OK;
}

static enum qcow_status take_bitmaps(
	const struct qk_ext *e, struct qk_extensions *ext, struct qcow_error *err)
{
	QK_TRY(expect_length(e, "the bitmaps extension", BITMAPS_EXT_BYTES, err));
	ext->has_bitmaps = true;
	ext->bitmaps = (struct qk_bitmaps_ext){
		.n_bitmaps = qk_load32(e->data.p),
		.reserved = qk_load32(e->data.p + 4),
		.directory_size = qk_load64(e->data.p + 8),
		.directory_off = qk_load64(e->data.p + 16),
	};
	return QCOW_OK;
}

static enum qcow_status take_crypto(
	const struct qk_ext *e, struct qk_extensions *ext, struct qcow_error *err)
{
	QK_TRY(expect_length(e, "the encryption header pointer", CRYPTO_EXT_BYTES, err));
	ext->has_crypto = true;
	ext->crypto_off = qk_load64(e->data.p);
	ext->crypto_len = qk_load64(e->data.p + 8);
	return QCOW_OK;
}

/* The bit of a known extension type in the set of those seen; 0 for an unknown one. */
static unsigned known_bit(uint32_t type)
{
	switch (type) {
	case QK_EXT_BACKING_FORMAT:
		return 1;
	case QK_EXT_FEATURE_NAMES:
		return 2;
	case QK_EXT_BITMAPS:
		return 4;
	case QK_EXT_CRYPTO:
		return 8;
	case QK_EXT_DATA_FILE:
		return 16;
	default:
		return 0;
	}
}

static enum qcow_status take_known(
	const struct qk_ext *e, struct qk_extensions *ext, struct qcow_error *err)
{
	switch (e->type) {
	case QK_EXT_BACKING_FORMAT:
		return take_string(e->data, "the backing file format name", QK_MAX_BACKING_FORMAT,
			&ext->backing_format, err);
	case QK_EXT_DATA_FILE:
		return take_string(e->data, "the external data file name", QK_MAX_DATA_FILE_NAME,
			&ext->data_file, err);
	case QK_EXT_BITMAPS:
		return take_bitmaps(e, ext, err);
	case QK_EXT_CRYPTO:
		return take_crypto(e, ext, err);
	case QK_EXT_FEATURE_NAMES:
		ext->feature_names = e->data;
		return QCOW_OK;
	default:
		return QCOW_OK;
	}
}

static enum qcow_status take_all(struct qk_extensions *ext, struct qcow_error *err)
{
	struct qk_ext e = {0};
	unsigned seen = 0;
	size_t at = 0;
	while (qk_ext_next(ext, &at, &e)) {
		unsigned bit = known_bit(e.type);
		if ((seen & bit) != 0)
			return QK_FAIL(err, QCOW_E_FORMAT,
				"the header extension 0x%08" PRIx32 " appears twice", e.type);
		seen |= bit;
		QK_TRY(take_known(&e, ext, err));
	}
	return QCOW_OK;
}

static enum qcow_status find_backing_name(struct qk_span cluster0, const struct qk_header *h,
	struct qk_span *out, struct qcow_error *err)
{
	if (h->backing_len == 0 || h->backing_len > QK_MAX_BACKING_NAME)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"backing_file_size is %" PRIu32 ": must be between 1 and %u",
			h->backing_len, QK_MAX_BACKING_NAME);
	if (h->backing_off < h->header_length)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"backing_file_offset is %" PRIu64 ": lies inside the header of %" PRIu32
			" bytes",
			h->backing_off, h->header_length);
	if (!qk_in_range(h->backing_off, h->backing_len, cluster0.n))
		return QK_FAIL(err, QCOW_E_FORMAT,
			"backing_file_offset is %" PRIu64 ": a name of %" PRIu32
			" bytes there must end within the first cluster, of which %zu bytes are "
			"there",
			h->backing_off, h->backing_len, cluster0.n);
	*out = (struct qk_span){cluster0.p + h->backing_off, h->backing_len};
	if (memchr(out->p, 0, out->n) != NULL)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"the backing file name of %" PRIu32 " bytes holds a NUL byte",
			h->backing_len);
	return QCOW_OK;
}

enum qcow_status qk_extensions_decode(struct qk_span cluster0, const struct qk_header *h,
	struct qk_extensions *out, struct qcow_error *err)
{
	uint64_t cluster_size = 0;
	*out = (struct qk_extensions){0};
	QK_TRY(qk_header_cluster_size(h, &cluster_size, err));
	cluster0.n = (size_t)qk_min(cluster0.n, cluster_size);
	if (h->header_length > cluster0.n)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"header_length is %" PRIu32 ": the first cluster has %zu bytes",
			h->header_length, cluster0.n);
	size_t limit = cluster0.n;
	if (h->backing_off != 0) {
		QK_TRY(find_backing_name(cluster0, h, &out->backing_name, err));
		limit = (size_t)h->backing_off;
	}
	struct qk_span rest = {cluster0.p + h->header_length, limit - h->header_length};
	QK_TRY(find_area(rest, h->header_length, out, err));
	return take_all(out, err);
}

bool qk_header_wants_feature_names(const struct qk_header *h)
{
	return h->version >= 3 && h->cluster_bits >= QK_MIN_FEATURE_NAMES_CLUSTER_BITS;
}

static void write_head(struct qk_writer *w, uint32_t type, size_t len)
{
	qk_write32(w, type);
	qk_write32(w, (uint32_t)len);
}

static void write_ext(struct qk_writer *w, uint32_t type, struct qk_span data)
{
	write_head(w, type, data.n);
	qk_write_bytes(w, data.p, data.n);
	qk_write_zeros(w, -data.n & 7);
}

static void write_optional(struct qk_writer *w, uint32_t type, struct qk_span data)
{
	if (data.p != NULL)
		write_ext(w, type, data);
}

static void write_crypto(struct qk_writer *w, const struct qk_extensions *ext)
{
	if (!ext->has_crypto)
		return;
	write_head(w, QK_EXT_CRYPTO, CRYPTO_EXT_BYTES);
	qk_write64(w, ext->crypto_off);
	qk_write64(w, ext->crypto_len);
}

static void write_bitmaps(struct qk_writer *w, const struct qk_extensions *ext)
{
	if (!ext->has_bitmaps)
		return;
	write_head(w, QK_EXT_BITMAPS, BITMAPS_EXT_BYTES);
	qk_write32(w, ext->bitmaps.n_bitmaps);
	qk_write32(w, ext->bitmaps.reserved);
	qk_write64(w, ext->bitmaps.directory_size);
	qk_write64(w, ext->bitmaps.directory_off);
}

static void write_unknown(struct qk_writer *w, const struct qk_extensions *ext)
{
	struct qk_ext e = {0};
	size_t at = 0;
	while (qk_ext_next(ext, &at, &e)) {
		if (known_bit(e.type) == 0)
			write_ext(w, e.type, e.data);
	}
}

static void write_extensions(
	struct qk_writer *w, const struct qk_extensions *ext, bool with_feature_names)
{
	write_optional(w, QK_EXT_BACKING_FORMAT, ext->backing_format);
	write_optional(w, QK_EXT_DATA_FILE, ext->data_file);
	write_crypto(w, ext);
	if (with_feature_names) {
		write_head(w, QK_EXT_FEATURE_NAMES, QK_FEATURE_TABLE_BYTES);
		qk_feature_table_encode(w);
	}
	write_bitmaps(w, ext);
	write_unknown(w, ext);
	write_head(w, QK_EXT_END, 0);
}

enum qcow_status qk_header_area_encode(struct qk_header *h, const struct qk_extensions *ext,
	bool with_feature_names, uint8_t *cluster0, size_t cluster_size, struct qcow_error *err)
{
	QK_ASSERT(F1, cluster_size >= h->header_length);
	memset(cluster0, 0, cluster_size);
	struct qk_writer w = qk_writer_init(cluster0, cluster_size);
	w.at = h->header_length;
	write_extensions(&w, ext, with_feature_names);
	h->backing_off = 0;
	h->backing_len = 0;
	if (ext->backing_name.n != 0) {
		h->backing_off = w.at;
		h->backing_len = (uint32_t)ext->backing_name.n;
		qk_write_bytes(&w, ext->backing_name.p, ext->backing_name.n);
	}
	if (w.bad)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"the header extensions and the backing file name of %zu bytes do not fit "
			"the "
			"first cluster of %zu bytes",
			ext->backing_name.n, cluster_size);
	struct qk_writer fixed = qk_writer_init(cluster0, h->header_length);
	return qk_header_encode(h, &fixed, err);
}
