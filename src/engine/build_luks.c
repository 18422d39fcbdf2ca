/* SPDX-License-Identifier: MIT */
/*
 * build_luks: a LUKS version 1 file: the encrypted disk behind its header, or in a file of its own.
 *
 *   store:  | header | slots … | disk: payload_off + guest offset |        detached:  store | header | slots … |
 *                                                                                data_store | disk |
 *
 * Key and slots are build_crypt's. The header is written last, so that a file cut short is no LUKS file. There
 * are no tables: what nobody writes of the disk is whatever the host's bytes decrypt to.
 *
 * Invariants: G1 of build_data (`cursor` never goes back); G3 host = payload_off + guest.
 */
#include "engine/build.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "crypto/cipher.h"

#define ZERO_BUFFER_BYTES QK_MIB(1)

bool qk_build_is_luks(const struct qcow_create_options *o)
{
	return o->format != NULL && strcmp(o->format, "luks") == 0;
}

/* ---- options ---- */

static const char *foreign_option(const struct qcow_create_options *o)
{
	if (o->backing_name != NULL || o->backing_format != NULL)
		return "backing file";
	if (o->data_file_name != NULL || o->data_file_raw || o->keep_data_file)
		return "data file";
	if (o->extended_l2 || o->lazy_refcounts)
		return "table";
	if (o->encryption == QCOW_ENCRYPTION_AES)
		return "other encryption";
	return NULL;
}

enum qcow_status qk_build_luks_validate(const struct qcow_create_options *o, struct qcow_error *err)
{
	struct qcow_create_options luks = *o;
	const char *what = foreign_option(o);

	if (what != NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "a LUKS file has no %s", what);
	if ((unsigned)o->preallocation > QCOW_PREALLOC_FULL)
		return QK_FAIL(err, QCOW_E_INVAL, "preallocation mode %u is not known",
			(unsigned)o->preallocation);
	if (o->luks_keep && o->preallocation != QCOW_PREALLOC_OFF)
		return QK_FAIL(err, QCOW_E_INVAL, "preallocation is for new files");
	if (o->virtual_size > (uint64_t)INT64_MAX - QK_SECTOR)
		return QK_FAIL(err, QCOW_E_LIMIT, "a disk of %" PRIu64 " bytes is over %" PRId64,
			o->virtual_size, INT64_MAX);
	luks.encryption = QCOW_ENCRYPTION_LUKS;
	return qk_build_crypt_validate(&luks, err);
}

/* ---- the files ---- */

/* `store` is long enough for what ends at `end`; it is made so where it can grow. */
static enum qcow_status give_length(
	struct qcow_builder *b, struct qcow_store *store, uint64_t end, struct qcow_error *err)
{
	struct qcow_store_caps caps = {0};
	uint64_t size = 0;

	qcow_store_caps(store, &caps);
	QK_TRY(qcow_store_size(store, &size, err));
	if (size >= end)
		return QCOW_OK;
	if (b->options.luks_keep || !caps.can_grow)
		return QK_FAIL(err, QCOW_E_NOSPC,
			"%s has %" PRIu64 " bytes, header and disk need %" PRIu64
			": No space left on device",
			qcow_store_name(store), size, end);
	return qcow_store_truncate(store, end, err);
}

static struct qcow_store *disk_store(const struct qcow_builder *b)
{
	return b->g.data_file ? b->data_store : b->store;
}

static enum qcow_status prepare_disk(struct qcow_builder *b, struct qcow_error *err)
{
	uint64_t end = 0;

	if (b->options.luks_detached_header)
		QK_TRY(give_length(b, b->store, b->crypto_bytes, err));
	if (b->options.luks_detached_header && b->data_store == NULL)
		return QCOW_OK;
	if (!qk_add(b->payload_off, b->size, &end) || end > INT64_MAX)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"a disk of %" PRIu64 " bytes and its header are more than a file can hold",
			b->size);
	QK_TRY(give_length(b, disk_store(b), end, err));
	if (b->options.preallocation != QCOW_PREALLOC_FALLOC || b->size == 0)
		return QCOW_OK;
	return qcow_store_zero(disk_store(b), b->payload_off, b->size, QCOW_ZERO_ALLOCATE, err);
}

static enum qcow_status empty_files(struct qcow_builder *b, struct qcow_error *err)
{
	struct qcow_store_caps caps = {0};

	if (b->options.luks_keep)
		return QCOW_OK;
	QK_TRY(qk_build_make_empty(b->store, &b->zeroed, err));
	if (b->data_store != NULL) {
		qcow_store_caps(b->data_store, &caps);
		if (caps.can_grow)
			QK_TRY(qcow_store_truncate(b->data_store, 0, err));
	}
	return qk_build_barrier(b, err);
}

static enum qcow_status check_stores(struct qcow_builder *b, struct qcow_error *err)
{
	const struct qcow_create_options *o = &b->options;

	if (b->data_store != NULL && !o->luks_detached_header)
		return QK_FAIL(
			err, QCOW_E_INVAL, "a second store goes with a detached LUKS header only");
	if (o->luks_keep && o->luks_detached_header && b->data_store == NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"a detached LUKS header alone has no disk to be written");
	b->g.data_file = b->data_store != NULL;
	return QCOW_OK;
}

static enum qcow_status prepare(struct qcow_builder *b, struct qcow_error *err)
{
	QK_TRY(check_stores(b, err));
	QK_TRY(empty_files(b, err));
	QK_TRY(qk_build_crypt_init(b, err));
	b->options.secret = (struct qcow_secret){NULL, 0};
	return prepare_disk(b, err);
}

enum qcow_status qk_build_luks_new(struct qcow_store *store, struct qcow_store *data_store,
	const struct qcow_create_options *options, struct qcow_builder **out,
	struct qcow_error *err)
{
	struct qcow_builder *b = qk_calloc(1, sizeof(*b));

	if (b == NULL)
		return QK_FAIL_NOMEM(err);
	b->store = store;
	b->data_store = data_store;
	b->options = *options;
	b->options.encryption = QCOW_ENCRYPTION_LUKS;
	b->is_luks = true;
	b->size = qk_div_up(options->virtual_size, QK_SECTOR) * QK_SECTOR;
	enum qcow_status status = prepare(b, err);
	if (status != QCOW_OK) {
		qk_build_abandon(b);
		return status;
	}
	*out = b;
	return QCOW_OK;
}

/* ---- the disk ---- */

static enum qcow_status check_range(
	const struct qcow_builder *b, qk_goff off, uint64_t len, struct qcow_error *err)
{
	uint64_t mask = QK_SECTOR - 1;
	uint64_t end = 0;

	if (disk_store(b) == NULL || (b->options.luks_detached_header && b->data_store == NULL))
		return QK_FAIL(err, QCOW_E_INVAL, "a detached LUKS header alone has no disk");
	if (len == 0 || !qk_in_range(off.v, len, b->size))
		return QK_FAIL(err, QCOW_E_RANGE,
			"%" PRIu64 " bytes at %" PRIu64 " do not lie in a disk of %" PRIu64, len,
			off.v, b->size);
	end = off.v + len;
	if ((off.v & mask) != 0 || ((end & mask) != 0 && end != b->options.virtual_size))
		return QK_FAIL(err, QCOW_E_INVAL,
			"%" PRIu64 " bytes at %" PRIu64 " are not whole sectors of %u", len, off.v,
			(unsigned)QK_SECTOR);
	if (off.v < b->cursor)
		return QK_FAIL(err, QCOW_E_INVAL,
			"%" PRIu64 " bytes at %" PRIu64 " come after the disk up to %" PRIu64, len,
			off.v, b->cursor);
	return QCOW_OK;
}

/* preallocation=full: what nobody mentions is written, as zeros on the host. */
static enum qcow_status fill_gap(struct qcow_builder *b, uint64_t end, struct qcow_error *err)
{
	const struct qcow_progress *p = &b->options.progress;

	if (b->options.preallocation != QCOW_PREALLOC_FULL || end <= b->cursor ||
		(b->options.luks_detached_header && b->data_store == NULL))
		return QCOW_OK;
	QK_AUTO_FREE uint8_t *zeros = qk_calloc(1, ZERO_BUFFER_BYTES);
	if (zeros == NULL)
		return QK_FAIL_NOMEM(err);
	while (b->cursor < end) {
		uint64_t n = qk_min(end - b->cursor, ZERO_BUFFER_BYTES);
		if (p->cancelled != NULL && p->cancelled(p->ctx))
			return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
		QK_TRY(qcow_store_write(disk_store(b), zeros, n, b->payload_off + b->cursor, err));
		b->cursor += n;
		if (p->report != NULL)
			p->report(p->ctx, b->cursor, b->size);
	}
	return QCOW_OK;
}

enum qcow_status qk_build_luks_reserve(struct qcow_builder *b, qk_goff off, uint64_t len,
	qk_hoff *host_off, uint64_t *run_bytes, struct qcow_error *err)
{
	QK_TRY(check_range(b, off, len, err));
	QK_TRY(fill_gap(b, off.v, err));
	b->cursor = qk_div_up(off.v + len, QK_SECTOR) * QK_SECTOR;
	host_off->v = b->payload_off + off.v;
	*run_bytes = len;
	return QCOW_OK;
}

enum qcow_status qk_build_luks_zero(
	struct qcow_builder *b, qk_goff off, uint64_t len, struct qcow_error *err)
{
	qk_hoff host = {0};
	uint64_t run = 0;

	QK_TRY(qk_build_luks_reserve(b, off, len, &host, &run, err));
	return qk_build_crypt_zeros(b, off, host, run, err);
}

enum qcow_status qk_build_luks_finish(struct qcow_builder *b, struct qcow_error *err)
{
	uint8_t sector[QK_SECTOR * 2] = {0};

	QK_TRY(fill_gap(b, b->size, err));
	QK_TRY(qk_build_barrier(b, err));
	if (b->options.luks_keep)
		return QCOW_OK;
	memcpy(sector, b->luks_header, sizeof(b->luks_header));
	QK_TRY(qcow_store_write(b->store, sector, sizeof(sector), 0, err));
	return qk_build_barrier(b, err);
}
