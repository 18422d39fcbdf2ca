/* SPDX-License-Identifier: MIT */
/*
 * build_options: which options of a new image go together, and the header that says so. Touches no store.
 */
#include "engine/build.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "format/layout.h"

/* QEMU adds the feature name table from here on: in smaller clusters it would crowd out the names. */
#define FEATURE_NAMES_MIN_CLUSTER 8192U

static enum qcow_status validate_geometry(
	const struct qcow_create_options *o, struct qcow_error *err)
{
	if (o->version != 2 && o->version != 3)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"version %" PRIu32 " is not known: images are made as version 2 or 3",
			o->version);
	if (!qk_is_pow2(o->cluster_size) || o->cluster_size < (1U << QK_MIN_CLUSTER_BITS) ||
		o->cluster_size > (1U << QK_MAX_CLUSTER_BITS))
		return QK_FAIL(err, QCOW_E_INVAL,
			"Cluster size must be a power of two between 512 and 2048k, not %" PRIu64,
			o->cluster_size);
	if (!qk_is_pow2(o->refcount_bits) || o->refcount_bits > 64)
		return QK_FAIL(err, QCOW_E_INVAL,
			"Refcount width must be a power of two and may not exceed 64 bits: %" PRIu32
			" is not",
			o->refcount_bits);
	if (o->extended_l2 && o->cluster_size < (1U << QK_MIN_EXTL2_CLUSTER_BITS))
		return QK_FAIL(err, QCOW_E_INVAL,
			"Extended L2 entries are only supported with cluster sizes of at least "
			"16384 "
			"bytes, not %" PRIu64,
			o->cluster_size);
	if (o->compression != QCOW_COMPRESSION_ZLIB && o->compression != QCOW_COMPRESSION_ZSTD)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "compression type %u is not known",
			(unsigned)o->compression);
	return QCOW_OK;
}

static enum qcow_status validate_version_2(
	const struct qcow_create_options *o, struct qcow_error *err)
{
	const char *what = NULL;

	if (o->version != 2)
		return QCOW_OK;
	if (o->refcount_bits != 16)
		what = "a refcount width other than 16 bits";
	else if (o->compression != QCOW_COMPRESSION_ZLIB)
		what = "a compression type other than zlib";
	else if (o->extended_l2)
		what = "extended L2 entries";
	else if (o->lazy_refcounts)
		what = "lazy refcounts";
	else if (o->data_file_name != NULL)
		what = "an external data file";
	if (what != NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"%s needs compatibility level 1.1 or above (version 3)", what);
	return QCOW_OK;
}

static enum qcow_status validate_data_file(
	const struct qcow_create_options *o, struct qcow_error *err)
{
	if (o->data_file_name == NULL && o->data_file_raw)
		return QK_FAIL(err, QCOW_E_INVAL, "data_file_raw requires data_file");
	if (o->data_file_name == NULL && o->keep_data_file)
		return QK_FAIL(err, QCOW_E_INVAL, "keep_data_file requires data_file");
	if (o->data_file_raw && o->backing_name != NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"Backing file and data_file_raw cannot be used at the same time");
	if (!o->keep_data_file)
		return QCOW_OK;
	if (!o->data_file_raw && o->preallocation != QCOW_PREALLOC_METADATA)
		return QK_FAIL(err, QCOW_E_INVAL,
			"keep_data_file requires preallocation=metadata or data_file_raw, or the "
			"file's content would not be visible");
	if (o->preallocation == QCOW_PREALLOC_FALLOC || o->preallocation == QCOW_PREALLOC_FULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"keep_data_file and preallocation=falloc or full cannot be used at the "
			"same "
			"time: they would overwrite the file's content");
	return QCOW_OK;
}

static enum qcow_status validate_name(
	const char *option, const char *name, size_t max, struct qcow_error *err)
{
	if (name == NULL)
		return QCOW_OK;
	size_t n = strlen(name);
	if (n == 0)
		return QK_FAIL(err, QCOW_E_INVAL, "%s is empty", option);
	if (n > max)
		return QK_FAIL(err, QCOW_E_INVAL, "%s has %zu bytes: an image records at most %zu",
			option, n, max);
	return QCOW_OK;
}

static enum qcow_status validate_names(const struct qcow_create_options *o, struct qcow_error *err)
{
	QK_TRY(validate_name("backing file name", o->backing_name, QK_MAX_BACKING_NAME, err));
	QK_TRY(validate_name("backing format", o->backing_format, QK_MAX_BACKING_FORMAT, err));
	QK_TRY(validate_name("data file name", o->data_file_name, QK_MAX_DATA_FILE_NAME, err));
	if (o->backing_format != NULL && o->backing_name == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "a backing format requires a backing file");
	return QCOW_OK;
}

static enum qcow_status validate_preallocation(
	const struct qcow_create_options *o, struct qcow_error *err)
{
	if ((unsigned)o->preallocation > QCOW_PREALLOC_FULL)
		return QK_FAIL(err, QCOW_E_INVAL, "preallocation mode %u is not known",
			(unsigned)o->preallocation);
	if (o->preallocation != QCOW_PREALLOC_OFF && o->backing_name != NULL && !o->extended_l2)
		return QK_FAIL(err, QCOW_E_INVAL,
			"Backing file and preallocation can only be used at the same time if "
			"extended_l2 is on: else the backing file would be hidden");
	return QCOW_OK;
}

static enum qcow_status validate_size(const struct qcow_create_options *o, struct qcow_error *err)
{
	struct qk_geometry g = {0};
	struct qk_layout layout = {0};

	if (o->virtual_size > (uint64_t)QK_MAX_SIZE)
		return QK_FAIL(err, QCOW_E_LIMIT, "a disk of %" PRIu64 " bytes is over %" PRId64,
			o->virtual_size, (int64_t)QK_MAX_SIZE);
	qk_build_options_geometry(o, &g);
	return qk_layout_empty(&g, o->virtual_size, &layout, err);
}

/* The names must fit cluster 0: the encoder knows. */
static enum qcow_status validate_header(const struct qcow_create_options *o, struct qcow_error *err)
{
	struct qk_header h = {0};
	QK_AUTO_FREE uint8_t *cluster0 = qk_calloc(1, o->cluster_size);

	if (cluster0 == NULL)
		return QK_FAIL_NOMEM(err);
	struct qk_extensions ext = {0};
	qk_build_crypt_place(
		o, o->cluster_size, o->cluster_size, &h, &ext); /* room for a pointer */
	return qk_build_options_encode(o, &h, &ext, cluster0, err);
}

enum qcow_status qk_build_options_validate(
	const struct qcow_create_options *o, struct qcow_error *err)
{
	if (qk_build_is_luks(o))
		return qk_build_luks_validate(o, err);
	if (o->format != NULL && strcmp(o->format, "qcow2") != 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"images of format '%s' are not made: qcow2 and luks are", o->format);
	if (o->luks_detached_header || o->luks_keep)
		return QK_FAIL(
			err, QCOW_E_INVAL, "a detached or kept header goes with format luks only");
	QK_TRY(validate_geometry(o, err));
	QK_TRY(validate_version_2(o, err));
	QK_TRY(validate_names(o, err));
	QK_TRY(validate_data_file(o, err));
	QK_TRY(validate_preallocation(o, err));
	QK_TRY(qk_build_crypt_validate(o, err));
	QK_TRY(validate_size(o, err));
	return validate_header(o, err);
}

void qk_build_options_geometry(const struct qcow_create_options *o, struct qk_geometry *g)
{
	qk_geometry_init(
		g, o->version, qk_log2(o->cluster_size), qk_log2(o->refcount_bits), o->extended_l2);
	g->data_file = o->data_file_name != NULL;
}

static struct qk_span text_span(const char *text)
{
	return (struct qk_span){(const uint8_t *)text, text != NULL ? strlen(text) : 0};
}

static void set_features(const struct qcow_create_options *o, struct qk_header *h)
{
	if (o->data_file_name != NULL)
		h->incompatible |= QCOW_INCOMPAT_DATA_FILE;
	if (o->compression != QCOW_COMPRESSION_ZLIB)
		h->incompatible |= QCOW_INCOMPAT_COMPRESSION;
	if (o->extended_l2)
		h->incompatible |= QCOW_INCOMPAT_EXTENDED_L2;
	if (o->lazy_refcounts)
		h->compatible |= QCOW_COMPAT_LAZY_REFCOUNTS;
	if (o->data_file_raw)
		h->autoclear |= QCOW_AUTOCLEAR_DATA_RAW;
	h->compression_type = (uint8_t)o->compression;
}

enum qcow_status qk_build_options_encode(const struct qcow_create_options *o, struct qk_header *h,
	struct qk_extensions *ext, uint8_t *cluster0, struct qcow_error *err)
{
	bool with_names = o->version >= 3 && o->cluster_size >= FEATURE_NAMES_MIN_CLUSTER;

	h->version = o->version;
	h->cluster_bits = qk_log2(o->cluster_size);
	h->size = o->virtual_size;
	h->refcount_order = qk_log2(o->refcount_bits);
	h->header_length = o->version >= 3 ? QK_V3_HEADER_BYTES : QK_V2_HEADER_BYTES;
	set_features(o, h);
	ext->backing_name = text_span(o->backing_name);
	ext->backing_format = text_span(o->backing_format);
	ext->data_file = text_span(o->data_file_name);
	return qk_header_area_encode(h, ext, with_names, cluster0, o->cluster_size, err);
}
