/* SPDX-License-Identifier: MIT */
/*
 * api_info: what an image is: sizes, header fields, names, extensions, snapshots, bitmaps. And the table of
 * findings in words.
 */
#include <qcowkit/qcowkit.h>

#include <inttypes.h>

#include "api/pass.h"
#include "base/err.h"
#include "engine/image.h"
#include "engine/tablist.h"

static void fill_qcow2(const struct qcow_image *image, struct qcow_info *out)
{
	const struct qk_header *h = &image->header;
	out->format = "qcow2";
	out->version = h->version;
	out->cluster_size = image->geometry.cluster_size;
	out->refcount_bits = image->geometry.refcount_bits;
	out->compression = h->compression_type == 0 ? QCOW_COMPRESSION_ZLIB : QCOW_COMPRESSION_ZSTD;
	out->encryption = (enum qcow_encryption)h->crypt_method;
	out->extended_l2 = image->geometry.extended_l2;
	out->incompatible = h->incompatible;
	out->compatible = h->compatible;
	out->autoclear = h->autoclear;
	out->header_length = h->header_length;
	out->l1_offset = h->l1_off;
	out->l1_entries = h->l1_entries;
	out->refcount_table_offset = h->rt_off;
	out->refcount_table_clusters = h->rt_clusters;
	out->snapshots_offset = h->snapshots_off;
	out->n_snapshots = h->n_snapshots;
	out->n_bitmaps = image->bitmaps.n;
	out->bitmap_directory_offset = image->ext.bitmaps.directory_off;
	out->bitmap_directory_size = image->ext.bitmaps.directory_size;
	out->crypto_offset = image->ext.crypto_off;
	out->crypto_length = image->ext.crypto_len;
	out->backing_name = image->backing_name;
	out->backing_format = image->backing_format;
	out->data_file_name = image->data_file_name;
	out->read_only_at_most = image->read_only_at_most;
}

void qcow_get_info(const struct qcow_image *image, struct qcow_info *out)
{
	unsigned pass = qk_pass_enter(image);
	*out = (struct qcow_info){
		.format = "raw", .virtual_size = image->size, .file_size = image->file_size};
	if (!image->is_raw)
		fill_qcow2(image, out);
	if (image->is_luks) {
		out->format = "luks";
		out->encryption = QCOW_ENCRYPTION_LUKS;
		out->crypto_length = image->header_store == NULL ? image->raw_offset
								 : image->header_bytes;
		out->luks_detached_header = image->header_store != NULL;
	}
	qk_pass_leave(image, pass);
}

uint64_t qcow_size(const struct qcow_image *image)
{
	unsigned pass = qk_pass_enter(image);
	uint64_t size = image->size;
	qk_pass_leave(image, pass);
	return size;
}

struct qcow_image *qcow_backing(const struct qcow_image *image)
{
	/* an operation that is alone with the image may hide it */
	unsigned pass = qk_pass_enter(image);
	struct qcow_image *backing = image->backing;
	qk_pass_leave(image, pass);
	return backing;
}

struct qcow_store *qcow_image_store(const struct qcow_image *image)
{
	return image->store;
}

struct qcow_store *qcow_image_data_store(const struct qcow_image *image)
{
	return image->data_store;
}

struct qcow_store *qcow_image_header_store(const struct qcow_image *image)
{
	return image->header_store;
}

uint32_t qcow_extension_count(const struct qcow_image *image)
{
	return image->is_raw ? 0 : image->ext.n_ext;
}

enum qcow_status qcow_get_extension(const struct qcow_image *image, uint32_t index,
	struct qcow_extension *out, struct qcow_error *err)
{
	uint32_t n = qcow_extension_count(image);
	if (index >= n)
		return QK_FAIL(err, QCOW_E_RANGE,
			"header extension %" PRIu32 " of an image with %" PRIu32, index, n);
	size_t at = 0;
	struct qk_ext ext = {0};
	for (uint32_t i = 0; i <= index; i++) {
		bool is_there = qk_ext_next(&image->ext, &at, &ext);
		QK_ASSERT(A1, is_there);
	}
	*out = (struct qcow_extension){
		.type = ext.type, .length = (uint32_t)ext.data.n, .data = ext.data.p};
	return QCOW_OK;
}

const char *qcow_feature_name(const struct qcow_image *image, unsigned kind, unsigned bit)
{
	if (kind >= QK_FEATURE_KINDS || bit >= QK_FEATURE_BITS)
		return NULL;
	const char *own = image->feature_names[kind][bit];
	return own != NULL ? own : qk_feature_known_name(kind, bit);
}

enum qcow_status qcow_get_snapshot(const struct qcow_image *image, uint32_t index,
	struct qcow_snapshot *out, struct qcow_error *err)
{
	/* the list has a lock of its own and changes nothing that a caller could see */
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = qk_snapshot_get(
		(struct qcow_image *)(uintptr_t)image, index, out, NULL, err);
	qk_pass_leave(image, pass);
	return status;
}

enum qcow_status qcow_get_bitmap(const struct qcow_image *image, uint32_t index,
	struct qcow_bitmap *out, struct qcow_error *err)
{
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = qk_bitmap_get(
		(struct qcow_image *)(uintptr_t)image, index, out, NULL, err);
	qk_pass_leave(image, pass);
	return status;
}

struct each {
	bool (*snapshot)(void *ctx, uint32_t index, const struct qcow_snapshot *snapshot);
	bool (*bitmap)(void *ctx, uint32_t index, const struct qcow_bitmap *bitmap);
	void *ctx;
};

static bool visit_snapshot(
	void *ctx, uint32_t index, const struct qcow_snapshot *snapshot, unsigned finding)
{
	const struct each *each = ctx;
	(void)finding;
	return each->snapshot(each->ctx, index, snapshot);
}

static bool visit_bitmap(
	void *ctx, uint32_t index, const struct qcow_bitmap *bitmap, unsigned finding)
{
	const struct each *each = ctx;
	(void)finding;
	return each->bitmap(each->ctx, index, bitmap);
}

enum qcow_status qcow_each_snapshot(const struct qcow_image *image,
	bool (*visit)(void *ctx, uint32_t index, const struct qcow_snapshot *snapshot), void *ctx,
	struct qcow_error *err)
{
	struct each each = {.snapshot = visit, .ctx = ctx};
	if (visit == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_each_snapshot: the visitor is NULL");
	return qk_snapshots_each((struct qcow_image *)(uintptr_t)image, visit_snapshot, &each, err);
}

enum qcow_status qcow_each_bitmap(const struct qcow_image *image,
	bool (*visit)(void *ctx, uint32_t index, const struct qcow_bitmap *bitmap), void *ctx,
	struct qcow_error *err)
{
	struct each each = {.bitmap = visit, .ctx = ctx};
	if (visit == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_each_bitmap: the visitor is NULL");
	return qk_bitmaps_each((struct qcow_image *)(uintptr_t)image, visit_bitmap, &each, err);
}
