/* SPDX-License-Identifier: MIT */
/*
 * undo: writing the record of a repair (undo.h). Owns its buffers; the stores are the caller's.
 */
#include "check/undo.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/num.h"
#include "check/undo_record.h"
#include "engine/iov.h"

#define PENDING_BYTES QK_MIB(4)

/* ---- saving ---- */

enum qcow_status qk_undo_begin(
	struct qk_undo *u, struct qcow_store *log, struct qcow_store *image, struct qcow_error *err)
{
	uint8_t head[QK_UNDO_HEAD_BYTES] = {0};
	uint64_t size = 0;

	*u = (struct qk_undo){.log = log, .image = image, .at = QK_UNDO_HEAD_BYTES};
	QK_TRY(qcow_store_size(image, &u->image_size, err));
	if (log == NULL)
		return QCOW_OK;
	QK_TRY(qcow_store_size(log, &size, err));
	if (size != 0)
		return QK_FAIL(err, QCOW_E_INVAL,
			"the file for undoing is not empty: it may be what another repair needs");
	memcpy(head, qk_undo_magic, sizeof(qk_undo_magic));
	qk_store64(head + 8, 2);
	qk_store64(head + 16, u->image_size);
	qk_store64(head + 24, QK_SECTOR);
	QK_TRY(qcow_store_read_padded(image, head + QK_SECTOR, QK_SECTOR, 0, err));
	qk_store64(head + QK_UNDO_HEAD_DIGEST, qk_undo_digest(head, sizeof(head)));
	u->is_dirty = true;
	return qcow_store_write(log, head, sizeof(head), 0, err);
}

/* What the next `len` bytes of `from` will be, over buf. */
static void overlay(struct qk_iov *from, uint8_t *buf, uint64_t len)
{
	struct iovec part;
	uint64_t taken = 0;
	int n = 0;

	for (; len != 0; len -= taken, buf += taken) {
		qk_iov_take(from, len, &part, 1, &n, &taken);
		if (taken == 0)
			return;
		memcpy(buf, part.iov_base, part.iov_len);
	}
}

/* The sectors of [off, off + len), which are no more than a piece. */
static enum qcow_status save_piece(struct qk_undo *u, struct qk_iov *from, uint64_t off,
	uint64_t len, uint8_t *record, struct qcow_error *err)
{
	uint64_t first = qk_align_down(off, QK_SECTOR);
	uint64_t n = qk_div_up(off + len - first, QK_SECTOR);
	uint64_t had = u->image_size > first ? u->image_size - first : 0;
	struct qk_undo_record r = {.kind = QK_UNDO_SAVED,
		.off = first,
		.n_sectors = (uint32_t)n,
		.n_bytes = (uint32_t)qk_min(n * QK_SECTOR, had)};
	QK_AUTO_FREE uint8_t *now = qk_malloc(n, QK_SECTOR);

	if (now == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qcow_store_read_padded(u->image, now, (size_t)n * QK_SECTOR, first, err));
	memcpy(qk_undo_bytes(record), now, r.n_bytes);
	overlay(from, now + (off - first), len);
	for (uint64_t i = 0; i < n; i++)
		qk_store64(qk_undo_digests(record, &r) + i * 8,
			qk_undo_digest(now + i * QK_SECTOR, QK_SECTOR));
	u->is_dirty = true;
	return qk_undo_append(u->log, &u->at, record, &r, err);
}

enum qcow_status qk_undo_save(
	struct qk_undo *u, const struct iovec *iov, int n, uint64_t off, struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *record = NULL;
	struct qk_iov from = {iov, n, 0};
	uint64_t len = 0;

	if (u->log == NULL)
		return QCOW_OK;
	if (!qk_iov_sum(iov, n, &len))
		return QK_FAIL(err, QCOW_E_RANGE, "more than 64 bits of bytes");
	record = qk_malloc(QK_UNDO_RECORD_ROOM, 1);
	if (record == NULL)
		return QK_FAIL_NOMEM(err);
	while (len != 0) {
		uint64_t end = qk_align_down(off, QK_SECTOR) + QK_UNDO_PIECE_BYTES;
		uint64_t part = qk_min(len, end - off);
		QK_TRY(save_piece(u, &from, off, part, record, err));
		off += part;
		len -= part;
	}
	return QCOW_OK;
}

enum qcow_status qk_undo_sync(struct qk_undo *u, struct qcow_error *err)
{
	if (u->log == NULL || !u->is_dirty)
		return QCOW_OK;
	QK_TRY(qcow_store_flush(u->log, err));
	u->is_dirty = false;
	return QCOW_OK;
}

enum qcow_status qk_undo_end(struct qk_undo *u, struct qcow_error *err)
{
	struct qk_undo_record r = {.kind = QK_UNDO_END};
	uint8_t record[64];

	if (u->log == NULL)
		return QCOW_OK;
	QK_TRY(qcow_store_size(u->image, &r.off, err));
	u->is_dirty = true;
	QK_TRY(qk_undo_append(u->log, &u->at, record, &r, err));
	return qk_undo_sync(u, err);
}

/* ---- a store that saves ---- */

static bool is_pending(const struct qk_undo *u, uint64_t off, uint64_t len)
{
	uint64_t first = qk_align_down(off, QK_SECTOR);

	for (unsigned i = 0; i < u->n_parts; i++) {
		const struct qk_undo_pending *p = &u->parts[i];
		if (first < p->off + p->len && qk_align_down(p->off, QK_SECTOR) < off + len)
			return true;
	}
	return false;
}

enum qcow_status qk_undo_drain(struct qk_undo *u, struct qcow_error *err)
{
	size_t at = 0;

	if (u->n_parts == 0)
		return QCOW_OK;
	QK_TRY(qk_undo_sync(u, err));
	for (unsigned i = 0; i < u->n_parts; i++) {
		QK_TRY(qcow_store_write(
			u->image, u->pending + at, u->parts[i].len, u->parts[i].off, err));
		at += u->parts[i].len;
	}
	u->n_parts = 0;
	u->pending_bytes = 0;
	return QCOW_OK;
}

void qk_undo_release(struct qk_undo *u)
{
	free(u->pending);
	u->pending = NULL;
}

static enum qcow_status saving_preadv(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *err)
{
	struct qk_undo *u = ctx;

	QK_TRY(qk_undo_drain(u, err));
	return qcow_store_readv(u->image, iov, n, off, err);
}

/* It has room. */
static void gather(struct qk_undo *u, const struct iovec *iov, int n, uint64_t off, uint64_t len)
{
	for (int i = 0; i < n; i++) {
		memcpy(u->pending + u->pending_bytes, iov[i].iov_base, iov[i].iov_len);
		u->pending_bytes += iov[i].iov_len;
	}
	u->parts[u->n_parts++] = (struct qk_undo_pending){off, (size_t)len};
}

static enum qcow_status saving_pwritev(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *err)
{
	struct qk_undo *u = ctx;
	uint64_t len = 0;

	if (u->log == NULL)
		return qcow_store_writev(u->image, iov, n, off, err);
	if (!qk_iov_sum(iov, n, &len))
		return QK_FAIL(err, QCOW_E_RANGE, "more than 64 bits of bytes");
	if (u->pending == NULL && (u->pending = qk_malloc(PENDING_BYTES, 1)) == NULL)
		return QK_FAIL_NOMEM(err);
	if (u->n_parts == QK_UNDO_MAX_PENDING || len > PENDING_BYTES - u->pending_bytes ||
		is_pending(u, off, len))
		QK_TRY(qk_undo_drain(u, err));
	QK_TRY(qk_undo_save(u, iov, n, off, err));
	if (len <= PENDING_BYTES) {
		gather(u, iov, n, off, len);
		return QCOW_OK;
	}
	QK_TRY(qk_undo_sync(u, err));
	return qcow_store_writev(u->image, iov, n, off, err);
}

static enum qcow_status saving_flush(void *ctx, struct qcow_error *err)
{
	QK_TRY(qk_undo_drain(ctx, err));
	return qcow_store_flush(((struct qk_undo *)ctx)->image, err);
}

static enum qcow_status saving_size(void *ctx, uint64_t *size, struct qcow_error *err)
{
	QK_TRY(qk_undo_drain(ctx, err));
	return qcow_store_size(((struct qk_undo *)ctx)->image, size, err);
}

static enum qcow_status saving_truncate(void *ctx, uint64_t size, struct qcow_error *err)
{
	QK_TRY(qk_undo_drain(ctx, err));
	return qcow_store_truncate(((struct qk_undo *)ctx)->image, size, err);
}

static enum qcow_status saving_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	QK_TRY(qk_undo_drain(ctx, err));
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
