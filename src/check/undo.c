/* SPDX-License-Identifier: MIT */
/*
 * undo: writing the record of a repair (undo.h), and putting the bytes back: last record first, so that what was saved first
 * stays. Owns its buffer; the stores are the caller's.
 */
#include "check/undo.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/num.h"
#include "format/limits.h"

#define HEAD_BYTES   1024U
#define RECORD_BYTES 32U
#define PIECE_BYTES  QK_MIB(1)
#define MAX_RECORDS  ((size_t)1 << 24)
#define KIND_BYTES   UINT64_C(0x756e646f00000001) /* "undo" */
#define KIND_HEADER  UINT64_C(0x756e646f00000002)

static const uint8_t magic[8] = {'q', 'c', 'o', 'w', 'u', 'n', 'd', 'o'};

static uint64_t padded(uint64_t len)
{
	return (len + 7) & ~UINT64_C(7);
}

/* FNV-1a over 64 bits: what is torn or not ours must not look like a record. */
static uint64_t checksum(const uint8_t *head, const uint8_t *bytes, size_t len)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < RECORD_BYTES - 8; i++)
		h = (h ^ head[i]) * UINT64_C(0x100000001b3);
	for (size_t i = 0; i < len; i++)
		h = (h ^ bytes[i]) * UINT64_C(0x100000001b3);
	return h;
}

/* ---- saving ---- */

enum qcow_status qk_undo_begin(
	struct qk_undo *u, struct qcow_store *log, struct qcow_store *image, struct qcow_error *err)
{
	uint8_t head[HEAD_BYTES] = {0};
	uint64_t size = 0;

	*u = (struct qk_undo){.log = log, .image = image, .at = HEAD_BYTES};
	QK_TRY(qcow_store_size(image, &u->image_size, err));
	if (log == NULL)
		return QCOW_OK;
	QK_TRY(qcow_store_size(log, &size, err));
	if (size != 0)
		return QK_FAIL(err, QCOW_E_INVAL,
			"the file for undoing is not empty: it may be what another repair needs");
	memcpy(head, magic, sizeof(magic));
	qk_store64(head + 8, 1);
	qk_store64(head + 16, u->image_size);
	qk_store64(head + 24, QK_SECTOR);
	QK_TRY(qcow_store_read_padded(image, head + QK_SECTOR, QK_SECTOR, 0, err));
	u->is_dirty = true;
	return qcow_store_write(log, head, sizeof(head), 0, err);
}

static enum qcow_status append(struct qk_undo *u, uint64_t kind, uint64_t off, uint8_t *record,
	size_t len, struct qcow_error *err)
{
	qk_store64(record, kind);
	qk_store64(record + 8, off);
	qk_store64(record + 16, len);
	qk_store64(record + 24, checksum(record, record + RECORD_BYTES, len));
	memset(record + RECORD_BYTES + len, 0, (size_t)(padded(len) - len));
	size_t n = RECORD_BYTES + (size_t)padded(len);
	u->is_dirty = true;
	QK_TRY(qcow_store_write(u->log, record, n, u->at, err));
	u->at += n;
	return QCOW_OK;
}

enum qcow_status qk_undo_save(struct qk_undo *u, uint64_t off, uint64_t len, struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *record = NULL;

	if (u->log == NULL || off >= u->image_size)
		return QCOW_OK;
	len = qk_min(len, u->image_size - off);
	record = qk_malloc(RECORD_BYTES + qk_min(len, PIECE_BYTES) + 8, 1);
	if (record == NULL)
		return QK_FAIL_NOMEM(err);
	while (len != 0) {
		size_t n = (size_t)qk_min(len, PIECE_BYTES);
		QK_TRY(qcow_store_read(u->image, record + RECORD_BYTES, n, off, err));
		QK_TRY(append(u, KIND_BYTES, off, record, n, err));
		off += n;
		len -= n;
	}
	return QCOW_OK;
}

enum qcow_status qk_undo_note_header(
	struct qk_undo *u, const uint8_t *sector, struct qcow_error *err)
{
	uint8_t record[RECORD_BYTES + QK_SECTOR + 8];

	if (u->log == NULL)
		return QCOW_OK;
	memcpy(record + RECORD_BYTES, sector, QK_SECTOR);
	return append(u, KIND_HEADER, 0, record, QK_SECTOR, err);
}

enum qcow_status qk_undo_sync(struct qk_undo *u, struct qcow_error *err)
{
	if (u->log == NULL || !u->is_dirty)
		return QCOW_OK;
	QK_TRY(qcow_store_flush(u->log, err));
	u->is_dirty = false;
	return QCOW_OK;
}

/* ---- a store that saves ---- */

static enum qcow_status saving_preadv(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *err)
{
	return qcow_store_readv(((struct qk_undo *)ctx)->image, iov, n, off, err);
}

static enum qcow_status saving_pwritev(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *err)
{
	struct qk_undo *u = ctx;
	uint64_t len = 0;

	for (int i = 0; i < n; i++)
		len += iov[i].iov_len;
	QK_TRY(qk_undo_save(u, off, len, err));
	QK_TRY(qk_undo_sync(u, err));
	return qcow_store_writev(u->image, iov, n, off, err);
}

static enum qcow_status saving_flush(void *ctx, struct qcow_error *err)
{
	return qcow_store_flush(((struct qk_undo *)ctx)->image, err);
}

static enum qcow_status saving_size(void *ctx, uint64_t *size, struct qcow_error *err)
{
	return qcow_store_size(((struct qk_undo *)ctx)->image, size, err);
}

static enum qcow_status saving_truncate(void *ctx, uint64_t size, struct qcow_error *err)
{
	return qcow_store_truncate(((struct qk_undo *)ctx)->image, size, err);
}

static enum qcow_status saving_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	return qcow_store_extents(((struct qk_undo *)ctx)->image, off, len, out, err);
}

static void saving_caps(void *ctx, struct qcow_store_caps *out)
{
	struct qcow_store_caps caps;

	qcow_store_caps(((struct qk_undo *)ctx)->image, &caps);
	*out = (struct qcow_store_caps){.request_align = 1,
		.physical_block = caps.physical_block,
		.writable = true,
		.can_grow = caps.can_grow,
		.reads_zero_past_end = caps.reads_zero_past_end};
}

static void saving_close(void *ctx)
{
	(void)ctx;
}

enum qcow_status qk_undo_store(struct qk_undo *u, struct qcow_store **out, struct qcow_error *err)
{
	static const struct qcow_store_ops ops = {.abi = QCOW_STORE_ABI,
		.name = "image",
		.preadv = saving_preadv,
		.pwritev = saving_pwritev,
		.flush = saving_flush,
		.size = saving_size,
		.truncate = saving_truncate,
		.extents = saving_extents,
		.caps = saving_caps,
		.close = saving_close};

	return qcow_store_new(&ops, u, out, err);
}

/* ---- putting back ---- */

struct replay {
	struct qcow_store *image, *log;
	uint64_t image_size, log_size;
	uint64_t *places; /* of the records, first to last */
	size_t n, room;
	uint8_t *buf; /* a record */
	bool is_known; /* the image's sector 0 is one that the repair knew */
	uint8_t sector0[QK_SECTOR]; /* of the image now */
};

static enum qcow_status read_head(struct replay *r, struct qcow_error *err)
{
	uint8_t head[HEAD_BYTES];

	QK_TRY(qcow_store_size(r->log, &r->log_size, err));
	if (r->log_size < sizeof(head))
		return QK_FAIL(err, QCOW_E_FORMAT, "this is no file that a repair saved bytes in");
	QK_TRY(qcow_store_read(r->log, head, sizeof(head), 0, err));
	if (memcmp(head, magic, sizeof(magic)) != 0 || qk_load64(head + 8) != 1 ||
		qk_load64(head + 24) != QK_SECTOR)
		return QK_FAIL(err, QCOW_E_FORMAT, "this is no file that a repair saved bytes in");
	r->image_size = qk_load64(head + 16);
	QK_TRY(qcow_store_read_padded(r->image, r->sector0, QK_SECTOR, 0, err));
	r->is_known = memcmp(r->sector0, head + QK_SECTOR, QK_SECTOR) == 0;
	return QCOW_OK;
}

/* The record at `at` into buf; 0 bytes where there is none that is whole. */
static enum qcow_status load(struct replay *r, uint64_t at, size_t *n, struct qcow_error *err)
{
	*n = 0;
	if (!qk_in_range(at, RECORD_BYTES, r->log_size))
		return QCOW_OK;
	QK_TRY(qcow_store_read(r->log, r->buf, RECORD_BYTES, at, err));
	uint64_t kind = qk_load64(r->buf);
	uint64_t len = qk_load64(r->buf + 16);
	if ((kind != KIND_BYTES && kind != KIND_HEADER) || len == 0 || len > PIECE_BYTES ||
		!qk_in_range(at + RECORD_BYTES, padded(len), r->log_size))
		return QCOW_OK;
	QK_TRY(qcow_store_read(r->log, r->buf + RECORD_BYTES, (size_t)len, at + RECORD_BYTES, err));
	if (checksum(r->buf, r->buf + RECORD_BYTES, (size_t)len) == qk_load64(r->buf + 24) &&
		(kind == KIND_HEADER || qk_in_range(qk_load64(r->buf + 8), len, r->image_size)))
		*n = (size_t)len;
	return QCOW_OK;
}

static enum qcow_status remember(struct replay *r, uint64_t at, struct qcow_error *err)
{
	if (r->n == MAX_RECORDS)
		return QK_FAIL(err, QCOW_E_LIMIT, "more than %zu records", MAX_RECORDS);
	if (r->n == r->room) {
		size_t room = r->room == 0 ? 64 : r->room * 2;
		uint64_t *v = qk_realloc(r->places, room, sizeof(*v));
		if (v == NULL)
			return QK_FAIL_NOMEM(err);
		r->places = v;
		r->room = room;
	}
	r->places[r->n++] = at;
	return QCOW_OK;
}

static enum qcow_status scan(struct replay *r, struct qcow_error *err)
{
	uint64_t at = HEAD_BYTES;
	size_t n = 0;

	for (;;) {
		QK_TRY(load(r, at, &n, err));
		if (n == 0)
			return QCOW_OK;
		if (qk_load64(r->buf) == KIND_HEADER)
			r->is_known = r->is_known ||
				      memcmp(r->buf + RECORD_BYTES, r->sector0, QK_SECTOR) == 0;
		else
			QK_TRY(remember(r, at, err));
		at += RECORD_BYTES + padded(n);
	}
}

static enum qcow_status put_back(struct replay *r, struct qcow_error *err)
{
	struct qcow_store_caps caps;
	uint64_t size = 0;
	size_t n = 0;

	for (size_t i = r->n; i > 0; i--) {
		QK_TRY(load(r, r->places[i - 1], &n, err));
		QK_TRY(qcow_store_write(
			r->image, r->buf + RECORD_BYTES, n, qk_load64(r->buf + 8), err));
	}
	QK_TRY(qcow_store_flush(r->image, err));
	qcow_store_caps(r->image, &caps);
	QK_TRY(qcow_store_size(r->image, &size, err));
	if (!caps.can_grow || size <= r->image_size)
		return QCOW_OK;
	QK_TRY(qcow_store_truncate(r->image, r->image_size, err));
	return qcow_store_flush(r->image, err);
}

static enum qcow_status replay(struct replay *r, struct qcow_error *err)
{
	uint64_t size = 0;

	r->buf = qk_malloc(RECORD_BYTES + PIECE_BYTES, 1);
	if (r->buf == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(read_head(r, err));
	QK_TRY(scan(r, err));
	QK_TRY(qcow_store_size(r->image, &size, err));
	if (!r->is_known || size < r->image_size)
		return QK_FAIL(err, QCOW_E_INVAL,
			"the saved bytes are of another image, or this one was changed since");
	return put_back(r, err);
}

enum qcow_status qk_undo_apply(
	struct qcow_store *image, struct qcow_store *log, struct qcow_error *err)
{
	struct replay r = {.image = image, .log = log};
	enum qcow_status status = replay(&r, err);

	free(r.places);
	free(r.buf);
	return status;
}
