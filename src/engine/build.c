/* SPDX-License-Identifier: MIT */
/*
 * build: the life of a builder: the target made empty, the fixed clusters at its start, and at the end the
 * tables and then sector 0, so that no reader takes half an image for a whole one.
 *
 * A growing store is emptied by a truncate and then reads zeros wherever nothing was written. A store of
 * fixed size (a block device) keeps old bytes: sector 0 is zeroed first, and whatever counts is written.
 *
 * With options.durable (|| is a flush): emptied || everything else || sector 0 ||.
 */
#include "engine/build.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "engine/crypt.h"

enum qcow_status qk_build_make_empty(struct qcow_store *store, bool *zeroed, struct qcow_error *err)
{
	static const uint8_t zeros[QK_SECTOR];
	struct qcow_store_caps caps = {0};

	qcow_store_caps(store, &caps);
	if (!caps.writable)
		return QK_FAIL(err, QCOW_E_READONLY, "%s is open for reading only",
			qcow_store_name(store));
	*zeroed = caps.can_grow && caps.reads_zero_past_end;
	if (caps.can_grow)
		return qcow_store_truncate(store, 0, err);
	return qcow_store_write(store, zeros, sizeof(zeros), 0, err);
}

static enum qcow_status prepare_data_store(struct qcow_builder *b, struct qcow_error *err)
{
	uint64_t size = 0;
	struct qcow_store_caps caps = {0};

	if (b->options.data_file_name == NULL)
		return QCOW_OK;
	qcow_store_caps(b->data_store, &caps);
	if (!b->options.keep_data_file && caps.can_grow) {
		QK_TRY(qcow_store_truncate(b->data_store, 0, err));
		b->data_zeroed = caps.reads_zero_past_end;
	}
	QK_TRY(qcow_store_size(b->data_store, &size, err));
	if (size >= b->size)
		return QCOW_OK;
	if (!caps.can_grow)
		return QK_FAIL(err, QCOW_E_NOSPC,
			"data file %s has %" PRIu64 " bytes, the disk has %" PRIu64,
			qcow_store_name(b->data_store), size, b->size);
	return qcow_store_truncate(b->data_store, b->size, err);
}

enum qcow_status qk_build_barrier(struct qcow_builder *b, struct qcow_error *err)
{
	if (!b->options.durable)
		return QCOW_OK;
	if (b->data_store != NULL)
		QK_TRY(qcow_store_flush(b->data_store, err));
	return qcow_store_flush(b->store, err);
}

static enum qcow_status copy_text(const char *text, char **out, struct qcow_error *err)
{
	if (text == NULL)
		return QCOW_OK;
	*out = qk_strndup(text, strlen(text));
	return *out != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

static enum qcow_status copy_options(
	struct qcow_builder *b, const struct qcow_create_options *o, struct qcow_error *err)
{
	b->options = *o;
	QK_TRY(copy_text(o->backing_name, &b->backing_name, err));
	QK_TRY(copy_text(o->backing_format, &b->backing_format, err));
	QK_TRY(copy_text(o->data_file_name, &b->data_file_name, err));
	b->options.backing_name = b->backing_name;
	b->options.backing_format = b->backing_format;
	b->options.data_file_name = b->data_file_name;
	b->size = o->virtual_size;
	qk_build_options_geometry(o, &b->g);
	return QCOW_OK;
}

static enum qcow_status prepare(struct qcow_builder *b, struct qcow_error *err)
{
	struct qcow_store_caps caps = {0};

	qcow_store_caps(b->store, &caps);
	b->can_grow = caps.can_grow;
	QK_TRY(qk_build_make_empty(b->store, &b->zeroed, err));
	QK_TRY(qk_build_barrier(b, err));
	QK_TRY(prepare_data_store(b, err));
	QK_TRY(qk_build_refs_init(&b->refs, b->store, &b->g, err));
	QK_TRY(qk_build_crypt_init(b, err));
	/* from here on the passphrase may be gone */
	b->options.secret = (struct qcow_secret){NULL, 0};
	QK_TRY(qk_build_map_init(&b->map, &b->refs, b->size, err));
	if (b->zeroed || b->map.l1_entries == 0)
		return QCOW_OK;
	return qcow_store_zero(b->store, b->map.l1_off, b->map.l1_entries * 8, 0, err);
}

enum qcow_status qk_build_new(struct qcow_store *store, struct qcow_store *data_store,
	const struct qcow_create_options *options, struct qcow_builder **out,
	struct qcow_error *err)
{
	QK_TRY(qk_build_options_validate(options, err));
	if (qk_build_is_luks(options))
		return qk_build_luks_new(store, data_store, options, out, err);
	if ((options->data_file_name != NULL) != (data_store != NULL))
		return QK_FAIL(err, QCOW_E_INVAL,
			"a data file name and a data store come together or not at all");
	struct qcow_builder *b = qk_calloc(1, sizeof(*b));
	if (b == NULL)
		return QK_FAIL_NOMEM(err);
	b->store = store;
	b->data_store = data_store;
	enum qcow_status status = copy_options(b, options, err);
	if (status == QCOW_OK)
		status = prepare(b, err);
	if (status != QCOW_OK) {
		qk_build_abandon(b);
		return status;
	}
	*out = b;
	return QCOW_OK;
}

void qk_build_abandon(struct qcow_builder *b)
{
	if (b == NULL)
		return;
	qk_build_refs_release(&b->refs);
	qk_build_map_release(&b->map);
	qk_build_bitmaps_release(&b->bitmaps);
	qk_crypt_free(b->crypt);
	free(b->gather);
	free(b->backing_name);
	free(b->backing_format);
	free(b->data_file_name);
	free(b);
}

/* The file has the length of its last cluster, also where the caller's data or zeros end before. */
static enum qcow_status extend_file(struct qcow_builder *b, struct qcow_error *err)
{
	uint64_t size = 0;

	if (!b->can_grow)
		return QCOW_OK;
	QK_TRY(qcow_store_size(b->store, &size, err));
	if (size >= b->refs.end_off)
		return QCOW_OK;
	return qcow_store_truncate(b->store, b->refs.end_off, err);
}

/* All but sector 0, then sector 0: from here on it is an image. */
static enum qcow_status write_header(struct qcow_builder *b, struct qk_header *h,
	struct qk_extensions *ext, struct qcow_error *err)
{
	size_t used = b->g.cluster_size;
	QK_AUTO_FREE uint8_t *cluster0 = qk_calloc(1, used);

	if (cluster0 == NULL)
		return QK_FAIL_NOMEM(err);
	qk_build_crypt_place(&b->options, b->crypto_off, b->crypto_bytes, h, ext);
	QK_TRY(qk_build_options_encode(&b->options, h, ext, cluster0, err));
	while (b->zeroed && used > QK_SECTOR && qk_is_zero(cluster0 + used - QK_SECTOR, QK_SECTOR))
		used -= QK_SECTOR;
	if (used > QK_SECTOR)
		QK_TRY(qcow_store_write(
			b->store, cluster0 + QK_SECTOR, used - QK_SECTOR, QK_SECTOR, err));
	QK_TRY(qk_build_barrier(b, err));
	QK_TRY(qcow_store_write(b->store, cluster0, QK_SECTOR, 0, err));
	return qk_build_barrier(b, err);
}

static enum qcow_status finish_all(struct qcow_builder *b, struct qcow_error *err)
{
	struct qk_header h = {0};
	struct qk_extensions ext = {0};
	qk_hoff table = {0};

	if (b->failed != QCOW_OK)
		return QK_FAIL(err, b->failed, "the image is incomplete: an earlier call failed");
	if (b->is_luks)
		return qk_build_luks_finish(b, err);
	QK_TRY(qk_build_data_finish(b, err));
	QK_TRY(qk_build_bitmaps_finish(b, &ext.bitmaps, err));
	QK_TRY(qk_build_map_finish(&b->map, err));
	QK_TRY(qk_build_refs_finish(&b->refs, &table, &h.rt_clusters, err));
	QK_TRY(extend_file(b, err));
	h.rt_off = table.v;
	h.l1_off = b->map.l1_off;
	h.l1_entries = (uint32_t)b->map.l1_entries;
	ext.has_bitmaps = ext.bitmaps.n_bitmaps != 0;
	if (ext.has_bitmaps)
		h.autoclear |= QCOW_AUTOCLEAR_BITMAPS;
	return write_header(b, &h, &ext, err);
}

enum qcow_status qk_build_finish(struct qcow_builder *b, struct qcow_error *err)
{
	enum qcow_status status = finish_all(b, err);

	qk_build_abandon(b);
	return status;
}
