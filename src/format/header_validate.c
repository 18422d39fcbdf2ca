/* SPDX-License-Identifier: MIT */
/*
 * header_validate: what the fields of a header must be, each on its own and against the others.
 *
 * Pure. Every failure names the field by the specification's word, its value and what it must be.
 * The order: what decides the meaning of other fields comes before them. What lies beyond the end
 * of the file, or on top of another structure, is not judged here: such an image may still be read.
 */
#include "format/header.h"

#include <inttypes.h>

#include "format/feature.h"
#include "format/snaptab.h"
#include "format/text.h"

typedef enum qcow_status (*check)(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err);

static enum qcow_status check_lengths(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	(void)ext;
	uint64_t cluster_size = 0;
	QK_TRY(qk_header_cluster_size(h, &cluster_size, err));
	if (h->header_length > cluster_size)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"header_length is %" PRIu32
			": must not exceed the cluster size of %" PRIu64,
			h->header_length, cluster_size);
	return QCOW_OK;
}

/* Append "'name' (bit 5)" or "bit 5" to the list of unknown features. */
static void append_feature(struct qk_text *list, struct qk_span name, unsigned bit)
{
	qk_text_add(list, list->at == 0 ? "" : ", ");
	if (name.n == 0) {
		qk_text_add(list, "bit %u", bit);
		return;
	}
	qk_text_add(list, "\"");
	qk_text_add_escaped(list, name);
	qk_text_add(list, "\" (bit %u)", bit);
}

static enum qcow_status check_incompatible(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	char buf[QCOW_ERROR_MESSAGE_BYTES - 128]; /* room for the sentence around it */
	struct qk_text list = qk_text_init(buf, sizeof(buf));
	uint64_t unknown = h->incompatible & ~qk_feature_known_mask(QK_FEATURE_INCOMPATIBLE);
	if (unknown == 0)
		return QCOW_OK;
	for (unsigned bit = 0; bit < 64; bit++) {
		struct qk_span name = {0};
		if ((unknown >> bit & 1) == 0)
			continue;
		if (ext != NULL)
			name = qk_feature_name(ext->feature_names, QK_FEATURE_INCOMPATIBLE, bit);
		append_feature(&list, name, bit);
	}
	return QK_FAIL(err, QCOW_E_UNSUPPORTED,
		"incompatible_features has bits that are not supported: %s", buf);
}

static enum qcow_status check_refcount_order(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	(void)ext;
	if (h->refcount_order > QK_MAX_REFCOUNT_ORDER)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"refcount_order is %" PRIu32 ": must be between 0 and %u",
			h->refcount_order, QK_MAX_REFCOUNT_ORDER);
	return QCOW_OK;
}

static enum qcow_status check_compression(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	(void)ext;
	bool bit = (h->incompatible & QK_INCOMPAT_COMPRESSION) != 0;
	if (bit && h->compression_type == QK_COMPRESSION_DEFLATE)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"compression_type is 0: must not be 0 where the compression type bit is "
			"set");
	if (!bit && h->compression_type != QK_COMPRESSION_DEFLATE)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"compression_type is %u: must be 0 where the compression type bit is clear",
			h->compression_type);
	if (h->compression_type > QK_COMPRESSION_ZSTD)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"compression_type is %u: must be 0 (deflate) or 1 (zstd)",
			h->compression_type);
	return QCOW_OK;
}

static enum qcow_status check_extended_l2(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	(void)ext;
	if ((h->incompatible & QK_INCOMPAT_EXTENDED_L2) != 0 &&
		h->cluster_bits < QK_MIN_EXTL2_CLUSTER_BITS)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"cluster_bits is %" PRIu32 ": must be at least %u with extended L2 entries",
			h->cluster_bits, QK_MIN_EXTL2_CLUSTER_BITS);
	return QCOW_OK;
}

static enum qcow_status check_data_file(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	if ((h->incompatible & QK_INCOMPAT_DATA_FILE) == 0) {
		if ((h->autoclear & QK_AUTOCLEAR_RAW_DATA) != 0)
			return QK_FAIL(err, QCOW_E_FORMAT,
				"autoclear_features has the raw external data bit (bit 1), but "
				"incompatible_features has no external data file bit (bit 2)");
		return QCOW_OK;
	}
	if (h->n_snapshots != 0)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"nb_snapshots is %" PRIu32 ": must be 0 with an external data file",
			h->n_snapshots);
	if (ext == NULL || ext->data_file.p == NULL)
		return QCOW_OK;
	if (ext->data_file.n == 0)
		return QK_FAIL(err, QCOW_E_FORMAT, "the external data file name is empty");
	if (memchr(ext->data_file.p, 0, ext->data_file.n) != NULL)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"the external data file name of %zu bytes holds a NUL byte",
			ext->data_file.n);
	return QCOW_OK;
}

static enum qcow_status check_crypto_pointer(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	if (!ext->has_crypto)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"crypt_method is %u (LUKS): the header extension with the encryption "
			"header's "
			"place (0x0537be77) is missing",
			QK_CRYPT_LUKS);
	if (ext->crypto_len == 0 ||
		!qk_is_table_place(h->cluster_bits, ext->crypto_off, ext->crypto_len))
		return QK_FAIL(err, QCOW_E_FORMAT,
			"the encryption header is at %" PRIu64 " with %" PRIu64
			" bytes: must be aligned to a cluster, behind the header, not empty, and "
			"end "
			"below 2^63",
			ext->crypto_off, ext->crypto_len);
	return QCOW_OK;
}

static enum qcow_status check_crypt(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	if (h->crypt_method > QK_CRYPT_LUKS)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"crypt_method is %" PRIu32 ": must be 0 (none), 1 (AES) or 2 (LUKS)",
			h->crypt_method);
	if (ext == NULL)
		return QCOW_OK;
	if (h->crypt_method == QK_CRYPT_LUKS)
		return check_crypto_pointer(h, ext, err);
	if (ext->has_crypto)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"crypt_method is %" PRIu32
			": the header extension 0x0537be77 is only for 2 (LUKS)",
			h->crypt_method);
	return QCOW_OK;
}

/* Place of a table: `field` is the specification's name of its offset. */
static enum qcow_status check_place(const struct qk_header *h, const char *field, uint64_t off,
	uint64_t bytes, struct qcow_error *err)
{
	uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;
	if (!qk_is_aligned(off, cluster_size))
		return QK_FAIL(err, QCOW_E_FORMAT,
			"%s is %" PRIu64 ": must be a multiple of the cluster size of %" PRIu64,
			field, off, cluster_size);
	if (off == 0 && bytes != 0)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"%s is 0: a table of %" PRIu64 " bytes would overlap the header", field,
			bytes);
	if (!qk_is_table_place(h->cluster_bits, off, bytes))
		return QK_FAIL(err, QCOW_E_FORMAT,
			"%s is %" PRIu64 ": the clusters of a table of %" PRIu64
			" bytes there must end below 2^63",
			field, off, bytes);
	return QCOW_OK;
}

static enum qcow_status check_l1(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	(void)ext;
	struct qk_geometry g;
	if (h->size > QK_MAX_SIZE)
		return QK_FAIL(
			err, QCOW_E_FORMAT, "size is %" PRIu64 ": must be below 2^63", h->size);
	if (h->l1_entries > QK_MAX_L1_BYTES / 8)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"l1_size is %" PRIu32 ": must be at most %" PRIu64, h->l1_entries,
			QK_MAX_L1_BYTES / 8);
	qk_header_geometry(h, &g);
	uint64_t needed = qk_geometry_l1_entries(&g, h->size);
	if (h->l1_entries < needed)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"l1_size is %" PRIu32 ": a size of %" PRIu64 " needs %" PRIu64 " entries",
			h->l1_entries, h->size, needed);
	return check_place(h, "l1_table_offset", h->l1_off, (uint64_t)h->l1_entries * 8, err);
}

static enum qcow_status check_reftable(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	(void)ext;
	uint64_t max = QK_MAX_REFTABLE_BYTES >> h->cluster_bits;
	if (h->rt_clusters == 0)
		return QK_FAIL(
			err, QCOW_E_FORMAT, "refcount_table_clusters is 0: must be at least 1");
	if (h->rt_clusters > max)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"refcount_table_clusters is %" PRIu32 ": must be at most %" PRIu64,
			h->rt_clusters, max);
	return check_place(h, "refcount_table_offset", h->rt_off,
		(uint64_t)h->rt_clusters << h->cluster_bits, err);
}

static enum qcow_status check_snapshots(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	(void)ext;
	if (h->n_snapshots > QK_MAX_SNAPSHOTS)
		return QK_FAIL(err, QCOW_E_LIMIT, "nb_snapshots is %" PRIu32 ": must be at most %u",
			h->n_snapshots, QK_MAX_SNAPSHOTS);
	return check_place(h, "snapshots_offset", h->snapshots_off,
		(uint64_t)h->n_snapshots * QK_SNAPSHOT_FIXED_BYTES, err);
}

enum qcow_status qk_header_validate(
	const struct qk_header *h, const struct qk_extensions *ext, struct qcow_error *err)
{
	static const check CHECKS[] = {
		check_incompatible,
		check_lengths,
		check_refcount_order,
		check_compression,
		check_extended_l2,
		check_data_file,
		check_crypt,
		check_l1,
		check_reftable,
		check_snapshots,
	};
	for (size_t i = 0; i < sizeof(CHECKS) / sizeof(CHECKS[0]); i++)
		QK_TRY(CHECKS[i](h, ext, err));
	return QCOW_OK;
}
