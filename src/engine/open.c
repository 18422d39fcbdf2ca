/* SPDX-License-Identifier: MIT */
/*
 * open: see open.h. Turns the bytes of cluster 0 into a struct qcow_image and decides what the image may
 * be used for. Judging single header fields is format/header's; here are the judgements that need the
 * file: its size, and the tables in it. Writes nothing, opens nothing. Specification: "Header".
 */
#include "engine/open.h"

#include <inttypes.h>

#include "base/err.h"
#include "base/mem.h"
#include "crypto/aes_legacy.h"
#include "crypto/secmem.h"
#include "engine/crypt.h"
#include "engine/decode.h"
#include "engine/hostmap.h"
#include "engine/image.h"
#include "engine/log.h"
#include "engine/meta.h"
#include "engine/rw.h"
#include "format/foreign.h"

/* Enough for every fixed header, and for the first look of the probe. */
#define FIRST_BYTES 512U

/* Only version 1 is found by a probe: what else has the magic is a disk that its guest encrypted. */
#define LUKS_VERSION_OFF 6U
#define LUKS_PROBE_BYTES 8U
#define DMG_END_BYTES	 512U /* of its last block, which begins with the mark */

enum layer_format {
	LAYER_PROBE,
	LAYER_QCOW2,
	LAYER_RAW,
	LAYER_LUKS
};

static enum qcow_status parse_format(
	const char *name, enum layer_format *out, struct qcow_error *err)
{
	if (name == NULL)
		*out = LAYER_PROBE;
	else if (strcmp(name, "qcow2") == 0)
		*out = LAYER_QCOW2;
	else if (strcmp(name, "raw") == 0)
		*out = LAYER_RAW;
	else if (strcmp(name, "luks") == 0)
		*out = LAYER_LUKS;
	else
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"image format '%s' is not supported: qcow2, raw and luks are", name);
	return QCOW_OK;
}

/* ---- raw ---- */

static enum qcow_status open_raw(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	uint64_t end = 0;
	if (o->snapshot != NULL)
		return QK_FAIL(err, QCOW_E_NOENT, "snapshot '%s' not found: a raw image has none",
			o->snapshot);
	if (o->raw_offset > image->file_size)
		return QK_FAIL(err, QCOW_E_RANGE,
			"raw offset %" PRIu64 " lies past the end of the file (%" PRIu64 " bytes)",
			o->raw_offset, image->file_size);
	image->is_raw = true;
	image->raw_offset = o->raw_offset;
	image->size = o->raw_size != 0 ? o->raw_size : image->file_size - o->raw_offset;
	/* a last sector may be missing in part: it reads as zeros, as a guest would see it */
	if (!qk_add(o->raw_offset, image->size, &end) ||
		(end > image->file_size && end - image->file_size >= QK_SECTOR))
		return QK_FAIL(err, QCOW_E_RANGE,
			"raw size %" PRIu64 " at offset %" PRIu64
			" goes past the end of the file (%" PRIu64 " bytes)",
			o->raw_size, o->raw_offset, image->file_size);
	return QCOW_OK;
}

/* ---- keys ---- */

/* The passphrase for this layer; none with CHECK, which needs no guest data. */
static enum qcow_status find_secret(struct qcow_image *image, const struct qcow_open_options *o,
	enum qcow_encryption encryption, struct qk_span *out, struct qcow_error *err)
{
	const struct qcow_secret_request rq = {qcow_store_name(image->store), encryption};
	struct qcow_secret secret = o->secret;

	*out = (struct qk_span){NULL, 0};
	image->is_encrypted = true;
	image->is_locked = (image->flags & QCOW_OPEN_CHECK) != 0;
	if (image->is_locked)
		return QCOW_OK;
	if (secret.data == NULL && o->get_secret != NULL) {
		qk_err_clear(err);
		enum qcow_status status = o->get_secret(o->secret_ctx, &rq, &secret, err);
		qk_err_complete(err, QK_SITE, status);
		QK_TRY(status);
	}
	if (secret.data == NULL)
		return QK_FAIL(err, QCOW_E_KEY,
			"the image is encrypted (%s) and no passphrase was given",
			encryption == QCOW_ENCRYPTION_LUKS ? "LUKS" : "AES");
	*out = (struct qk_span){secret.data, secret.len};
	return QCOW_OK;
}

static enum qcow_status unlock_aes(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	struct qk_span secret;
	struct qk_cipher_spec spec;
	uint8_t key[QK_AES_LEGACY_KEY_BYTES];

	QK_TRY(find_secret(image, o, QCOW_ENCRYPTION_AES, &secret, err));
	if (image->is_locked)
		return QCOW_OK;
	qk_aes_legacy(secret, &spec, key);
	enum qcow_status status = qk_crypt_new(&spec, key, true, &image->crypt, err);
	explicit_bzero(key, sizeof(key));
	return status;
}

/* The header at `off` is judged in any case, its slots only where there is a passphrase. */
static enum qcow_status unlock_luks(struct qcow_image *image, const struct qcow_open_options *o,
	uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct qk_luks luks;
	struct qk_crypt_luks_request rq = {
		.store = image->header_store != NULL ? image->header_store : image->store,
		.off = off,
		.len = len,
		.detached = image->header_store != NULL,
		.cancel = {o->cancelled, o->cancel_ctx},
		.max_iterations = o->max_iterations,
		.by_guest = image->is_luks};

	QK_TRY(qk_crypt_luks_header(&rq, &luks, err));
	if (image->is_luks)
		image->raw_offset = luks.payload_off;
	QK_TRY(find_secret(image, o, QCOW_ENCRYPTION_LUKS, &rq.passphrase, err));
	if (image->is_locked)
		return QCOW_OK;
	return qk_crypt_luks_unlock(&rq, &luks, &image->crypt, err);
}

/* ---- luks: an encrypted disk behind its header ---- */

static enum qcow_status open_luks(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	if (o->snapshot != NULL)
		return QK_FAIL(err, QCOW_E_NOENT, "snapshot '%s' not found: a LUKS image has none",
			o->snapshot);
	if (o->raw_offset != 0 || o->raw_size != 0)
		return QK_FAIL(err, QCOW_E_INVAL, "raw offset and size go with format raw only");
	uint64_t bytes = image->header_store != NULL ? image->header_bytes : image->file_size;
	if (bytes < QK_LUKS_HEADER_BYTES)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"the file has %" PRIu64 " bytes, a LUKS header alone has %u", bytes,
			QK_LUKS_HEADER_BYTES);
	image->is_raw = true;
	image->is_luks = true;
	QK_TRY(unlock_luks(image, o, 0, bytes, err));
	if (image->raw_offset > image->file_size)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"the LUKS payload at %" PRIu64 " lies past the end of the file (%" PRIu64
			" bytes)",
			image->raw_offset, image->file_size);
	/* what is missing of a last sector reads as zeros, before it is decrypted */
	image->size = qk_div_up(image->file_size - image->raw_offset, QK_CRYPT_SECTOR) *
		      QK_CRYPT_SECTOR;
	return QCOW_OK;
}

/* ---- qcow2: cluster 0 ---- */

/* Read the first n bytes of the file, as many as there are. */
static enum qcow_status read_start(struct qcow_image *image, uint64_t n, struct qcow_error *err)
{
	size_t bytes = (size_t)qk_min(n, image->file_size);
	uint8_t *start = qk_realloc(image->cluster0, bytes, 1);
	if (start == NULL)
		return QK_FAIL_NOMEM(err);
	image->cluster0 = start;
	image->cluster0_bytes = bytes;
	return bytes == 0 ? QCOW_OK : qcow_store_read(image->store, start, bytes, 0, err);
}

/* Decode and judge header and extensions. A header that is bad in itself is reported before an extension
 * area that a bad header put in the wrong place. */
static enum qcow_status decode_cluster0(struct qcow_image *image, struct qcow_error *err)
{
	struct qk_span start = {image->cluster0, image->cluster0_bytes};
	QK_TRY(qk_header_decode(start, &image->header, err));
	uint32_t bits = image->header.cluster_bits;
	if (bits < QK_MIN_CLUSTER_BITS || bits > QK_MAX_CLUSTER_BITS)
		return qk_header_validate(&image->header, NULL, err);
	QK_TRY(read_start(image, UINT64_C(1) << bits, err));
	start = (struct qk_span){image->cluster0, image->cluster0_bytes};
	QK_TRY(qk_header_decode(start, &image->header, err)); /* its tail points into the buffer */
	struct qcow_error ext_error = QCOW_ERROR_INIT;
	enum qcow_status ext_status = qk_extensions_decode(
		start, &image->header, &image->ext, &ext_error);
	QK_TRY(qk_header_validate(&image->header, ext_status == QCOW_OK ? &image->ext : NULL, err));
	if (ext_status != QCOW_OK && err != NULL)
		*err = ext_error;
	QK_TRY(ext_status);
	qk_header_geometry(&image->header, &image->geometry);
	return QCOW_OK;
}

static enum qcow_status copy_span(struct qk_span s, char **out, struct qcow_error *err)
{
	if (s.p == NULL)
		return QCOW_OK;
	*out = qk_strndup(s.p, s.n);
	return *out != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

static enum qcow_status copy_names(struct qcow_image *image, struct qcow_error *err)
{
	const struct qk_extensions *ext = &image->ext;
	QK_TRY(copy_span(ext->backing_name, &image->backing_name, err));
	QK_TRY(copy_span(ext->backing_format, &image->backing_format, err));
	QK_TRY(copy_span(ext->data_file, &image->data_file_name, err));
	if (ext->feature_names.p == NULL)
		return QCOW_OK;
	for (unsigned kind = 0; kind < QK_FEATURE_KINDS; kind++) {
		for (unsigned bit = 0; bit < QK_FEATURE_BITS; bit++) {
			struct qk_span name = qk_feature_name(ext->feature_names, kind, bit);
			if (name.n != 0)
				QK_TRY(copy_span(name, &image->feature_names[kind][bit], err));
		}
	}
	return QCOW_OK;
}

/* ---- qcow2: what the image may be used for ---- */

static void judge_tables(struct qcow_image *image)
{
	const struct qk_header *h = &image->header;
	uint64_t l1_bytes = (uint64_t)h->l1_entries * sizeof(uint64_t);
	uint64_t rt_bytes = (uint64_t)h->rt_clusters * image->geometry.cluster_size;
	if ((h->incompatible & QCOW_INCOMPAT_CORRUPT) != 0 ||
		!qk_in_range(h->l1_off, l1_bytes, image->file_size) ||
		!qk_in_range(h->rt_off, rt_bytes, image->file_size))
		image->read_only_at_most = true;
}

static bool is_good_bitmap(
	void *ctx, uint32_t index, const struct qcow_bitmap *bitmap, unsigned finding)
{
	bool *is_bad = ctx;
	(void)index;
	(void)bitmap;
	*is_bad = finding != 0;
	return finding == 0;
}

static enum qcow_status load_lists(struct qcow_image *image, struct qcow_error *err)
{
	QK_TRY(qk_snapshots_load(image, err));
	if (image->snapshots.is_bad && (image->flags & QCOW_OPEN_CHECK) == 0) {
		if (err != NULL)
			*err = image->snapshots.why;
		return QCOW_E_CORRUPT;
	}
	QK_TRY(qk_bitmaps_load(image, err));
	if (image->snapshots.is_bad || image->bitmaps.is_bad)
		image->read_only_at_most = true;
	if (image->read_only_at_most)
		return QCOW_OK;
	return qk_bitmaps_each(image, is_good_bitmap, &image->read_only_at_most, err);
}

static enum qcow_status judge_encryption(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	uint64_t off = image->ext.crypto_off, len = image->ext.crypto_len;

	if (image->header.crypt_method == QCOW_ENCRYPTION_NONE)
		return QCOW_OK;
	if (image->header.crypt_method == QCOW_ENCRYPTION_AES)
		return unlock_aes(image, o, err);
	if (qk_in_range(off, len, image->file_size))
		return unlock_luks(image, o, off, len, err);
	image->is_encrypted = true;
	image->is_locked = true;
	if ((image->flags & QCOW_OPEN_CHECK) != 0)
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_CRYPTO_HEADER, off, QCOW_NO_OFFSET,
		"the %" PRIu64 " bytes of encryption header at %" PRIu64
		" lie past the end of the file (%" PRIu64 " bytes)",
		len, off, image->file_size);
}

static bool is_l1_place(const struct qcow_image *image, uint64_t off, uint32_t entries)
{
	uint64_t bytes = (uint64_t)entries * sizeof(uint64_t);
	return bytes <= QK_MAX_L1_BYTES && off <= QK_MAX_OFFSET &&
	       qk_is_aligned(off, image->geometry.cluster_size);
}

/* Point the image at the tree that reads go through. */
static enum qcow_status choose_tree(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	image->size = image->header.size;
	image->l1_off = image->header.l1_off;
	image->l1_entries = image->header.l1_entries;
	if (o->snapshot == NULL)
		return QCOW_OK;
	struct qcow_snapshot s;
	unsigned finding = 0;
	QK_TRY(qk_snapshot_find(
		image, o->snapshot, o->snapshot_by_id, o->snapshot_by_name, &s, &finding, err));
	/* Without its extra data a snapshot lacks what a version 3 writer needs, the image's size stands
	 * in; the judge then did not come to its L1 table. */
	if (finding == QCOW_FINDING_SNAPSHOT_EXTRA && !s.has_disk_size)
		finding = is_l1_place(image, s.l1_offset, s.l1_entries)
				  ? 0
				  : (unsigned)QCOW_FINDING_SNAPSHOT_L1;
	if (finding != 0)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, finding, s.l1_offset, QCOW_NO_OFFSET,
			"snapshot '%s' (L1 table of %" PRIu32 " entries at %" PRIu64
			", disk of %" PRIu64 " bytes) cannot be viewed: %s",
			o->snapshot, s.l1_entries, s.l1_offset, s.disk_size,
			qcow_finding_text(finding));
	image->is_snapshot_view = true;
	image->size = s.disk_size;
	image->l1_off = s.l1_offset;
	image->l1_entries = s.l1_entries;
	return QCOW_OK;
}

static enum qcow_status make_engine(struct qcow_image *image, struct qcow_error *err)
{
	const struct qk_meta_request rq = {.store = image->store,
		.file_size = image->file_size,
		.geometry = &image->geometry,
		.l1_off = image->l1_off,
		.l1_entries = image->l1_entries,
		.cache_bytes = image->cache_bytes};
	QK_TRY(qk_meta_new(&rq, &image->meta, err));
	enum qcow_compression compression = image->header.compression_type == 0
						    ? QCOW_COMPRESSION_ZLIB
						    : QCOW_COMPRESSION_ZSTD;
	return qk_decode_new(compression, (size_t)image->geometry.cluster_size,
		image->cache_bytes / 2, &image->decode, err);
}

static enum qcow_status open_qcow2(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	if (o->raw_offset != 0 || o->raw_size != 0)
		return QK_FAIL(err, QCOW_E_INVAL, "raw offset and size go with format raw only");
	QK_TRY(decode_cluster0(image, err));
	QK_TRY(copy_names(image, err));
	judge_tables(image);
	QK_TRY(judge_encryption(image, o, err));
	QK_TRY(load_lists(image, err));
	QK_TRY(choose_tree(image, o, err));
	return make_engine(image, err);
}

/* ---- again, after an operation has changed it ---- */

/* What a layer has of the file. */
static void release_loaded(struct qcow_image *image)
{
	qk_meta_free(image->meta);
	qk_decode_free(image->decode);
	qk_tablist_release(&image->snapshots);
	qk_tablist_release(&image->bitmaps);
	for (unsigned kind = 0; kind < QK_FEATURE_KINDS; kind++)
		for (unsigned bit = 0; bit < QK_FEATURE_BITS; bit++)
			free(image->feature_names[kind][bit]);
	free(image->backing_name);
	free(image->backing_format);
	free(image->data_file_name);
	free(image->cluster0);
}

/* Everything that release_loaded frees, and what was decoded, from `from` to `to`, where it was released. */
static void move_loaded(struct qcow_image *to, struct qcow_image *from)
{
	to->meta = from->meta;
	to->decode = from->decode;
	qk_tablist_move(&to->snapshots, &from->snapshots);
	qk_tablist_move(&to->bitmaps, &from->bitmaps);
	memcpy(to->feature_names, from->feature_names, sizeof(to->feature_names));
	to->backing_name = from->backing_name;
	to->backing_format = from->backing_format;
	to->data_file_name = from->data_file_name;
	to->cluster0 = from->cluster0;
	to->cluster0_bytes = from->cluster0_bytes;
	to->header = from->header;
	to->ext = from->ext;
	to->geometry = from->geometry;
	to->size = from->size;
	to->l1_off = from->l1_off;
	to->l1_entries = from->l1_entries;
	atomic_store(&to->file_size, from->file_size);
}

static enum qcow_status load_again(struct qcow_image *next, struct qcow_error *err)
{
	static const struct qcow_open_options active = QCOW_OPEN_OPTIONS_INIT;
	uint64_t file_size = 0;
	QK_TRY(qcow_store_size(next->store, &file_size, err));
	next->file_size = file_size;
	QK_TRY(read_start(next, FIRST_BYTES, err));
	QK_TRY(decode_cluster0(next, err));
	QK_TRY(copy_names(next, err));
	judge_tables(next);
	QK_TRY(load_lists(next, err));
	if (next->read_only_at_most)
		return QK_FAIL(
			err, QCOW_E_CORRUPT, "the image's metadata is damaged since it was opened");
	QK_TRY(choose_tree(next, &active, err));
	return make_engine(next, err);
}

enum qcow_status qk_layer_reload(struct qcow_image *image, struct qcow_error *err)
{
	struct qcow_image *next QK_AUTO_FREE = qk_calloc(1, sizeof(*next));
	if (next == NULL)
		return QK_FAIL_NOMEM(err);
	next->store = image->store;
	next->flags = image->flags;
	next->cache_bytes = image->cache_bytes;
	enum qcow_status status = load_again(next, err);
	if (status != QCOW_OK) {
		release_loaded(next);
		return status;
	}
	release_loaded(image);
	move_loaded(image, next);
	return QCOW_OK;
}

/* ---- any layer ---- */

/* A DMG has its mark at the end, where a guest could write it: it counts only in a file of that name. */
static bool is_dmg(const struct qcow_image *image)
{
	static const char ending[] = ".dmg", mark[] = "koly";
	char last[sizeof(mark) - 1];
	const char *name = qcow_store_name(image->store);
	size_t n = strlen(name), n_ending = sizeof(ending) - 1;
	return n > n_ending && strcmp(name + n - n_ending, ending) == 0 &&
	       image->file_size >= DMG_END_BYTES &&
	       qcow_store_read_padded(image->store, last, sizeof(last),
		       image->file_size - DMG_END_BYTES, NULL) == QCOW_OK &&
	       memcmp(last, mark, sizeof(last)) == 0;
}

static enum qcow_status open_probed(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	const char *foreign = NULL;
	switch (qk_probe(image->cluster0, image->cluster0_bytes)) {
	case QK_PROBE_QCOW2:
		return open_qcow2(image, o, err);
	case QK_PROBE_QCOW_OTHER:
		return QK_FAIL(err, QCOW_E_NOT_QCOW2,
			"the file has the magic of qcow in a version that is neither 2 nor 3; to "
			"read "
			"its bytes as a disk, give the format raw");
	case QK_PROBE_OTHER:
	default:
		foreign = qk_foreign_probe(
			(struct qk_span){image->cluster0, image->cluster0_bytes});
		if (foreign == NULL && is_dmg(image))
			foreign = "dmg";
		if (foreign != NULL)
			return QK_FAIL(err, QCOW_E_UNSUPPORTED,
				"the file is an image of the format %s, which is not built in: "
				"QEMU's "
				"'qemu-img convert -O qcow2' makes a qcow2 image of it; to read "
				"its bytes "
				"as a disk, give the format raw",
				foreign);
		if (qk_luks_probe((struct qk_span){image->cluster0, image->cluster0_bytes}) &&
			image->cluster0_bytes >= LUKS_PROBE_BYTES &&
			qk_load16(image->cluster0 + LUKS_VERSION_OFF) == 1)
			return open_luks(image, o, err);
		return open_raw(image, o, err);
	}
}

static enum qcow_status open_format(
	struct qcow_image *image, const struct qcow_open_options *o, struct qcow_error *err)
{
	enum layer_format format = LAYER_PROBE;
	QK_TRY(parse_format(o->format, &format, err));
	if (o->luks_header != NULL && format != LAYER_LUKS)
		return QK_FAIL(err, QCOW_E_INVAL, "a detached header goes with format luks only");
	if (o->luks_header != NULL)
		QK_TRY(qcow_store_size(o->luks_header, &image->header_bytes, err));
	uint64_t file_size = 0;
	QK_TRY(qcow_store_size(image->store, &file_size, err));
	image->file_size = file_size;
	QK_TRY(qk_hostmap_new(&image->hostmap, err));
	if (format == LAYER_RAW)
		return open_raw(image, o, err);
	if (format == LAYER_LUKS)
		return open_luks(image, o, err);
	QK_TRY(read_start(image, FIRST_BYTES, err));
	return format == LAYER_QCOW2 ? open_qcow2(image, o, err) : open_probed(image, o, err);
}

enum qcow_status qk_layer_open(struct qcow_store *store, const struct qcow_open_options *options,
	struct qcow_image **out, struct qcow_error *err)
{
	struct qcow_image *image = qk_calloc(1, sizeof(*image));
	if (image == NULL) {
		qcow_store_close(store);
		qcow_store_close(options->luks_header);
		return QK_FAIL_NOMEM(err);
	}
	image->store = store;
	image->header_store = options->luks_header;
	image->flags = options->flags;
	image->cache_bytes = options->cache_bytes != 0 ? options->cache_bytes
						       : QK_DEFAULT_CACHE_BYTES;
	image->log = options->log;
	image->log_ctx = options->log_ctx;
	enum qcow_status status = open_format(image, options, err);
	if (status != QCOW_OK) {
		(void)qk_layer_close(image);
		return status;
	}
	qk_log_layer(image, options->format == NULL);
	*out = image;
	return QCOW_OK;
}

enum qcow_status qk_layer_close(struct qcow_image *image)
{
	if (image == NULL)
		return QCOW_OK;
	enum qcow_status status = qk_rw_close(image);
	qk_hostmap_free(image->hostmap);
	qk_crypt_free(image->crypt);
	release_loaded(image);
	qcow_store_close(image->data_store);
	qcow_store_close(image->header_store);
	qcow_store_close(image->store);
	free(image);
	return status;
}
