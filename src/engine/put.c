/* SPDX-License-Identifier: MIT */
/*
 * put: see put.h.
 *
 * Parts of sectors: who writes one counts itself in n_parts and then waits for the epochs. So whoever read or wrote a whole
 * sector in place without a lock has left, and whoever comes later sees the count and takes parts_lock, under which the
 * sector is read, changed and written. Who remaps holds the stripe, as does who writes a part.
 * Locking: parts_lock, a leaf, across I/O; n_parts is sequentially consistent, as epoch.c is.
 */
#include "engine/put.h"

#include <string.h>

#include "base/err.h"
#include "engine/image.h"
#include "engine/locks.h"
#include "engine/rw.h"

/* Buffers of one store call. */
#define PIECES 64

#define SECTOR_MASK ((uint64_t)QK_CRYPT_SECTOR - 1)

/* ---- plain ---- */

static enum qcow_status put_plain(const struct qk_put *put, struct qcow_error *err)
{
	uint64_t at = put->at.host.v, left = put->len;
	const struct qk_span *tail = &put->tail;
	struct iovec iov[PIECES];
	int n = 0;
	if (put->head.n != 0)
		iov[n++] = (struct iovec){(void *)(uintptr_t)put->head.p, put->head.n};
	while (left != 0 || n != 0) {
		uint64_t taken = 0;
		int n_taken = 0;
		qk_iov_take(put->from, left, iov + n, PIECES - 1 - n, &n_taken, &taken);
		QK_ASSERT(W3, taken != 0 || left == 0);
		left -= taken;
		n += n_taken;
		if (left == 0 && tail->n != 0)
			iov[n++] = (struct iovec){(void *)(uintptr_t)tail->p, tail->n};
		QK_TRY(qcow_store_writev(put->at.store, iov, n, at, err));
		for (int i = 0; i < n; i++)
			at += iov[i].iov_len;
		n = 0;
	}
	return QCOW_OK;
}

/* ---- encrypted ---- */

static enum qcow_status put_into(
	struct qk_crypt_sink *sink, const struct qk_put *put, struct qcow_error *err)
{
	uint64_t left = put->len;
	QK_TRY(qk_crypt_sink_put(sink, put->head, err));
	while (left != 0) {
		struct iovec iov;
		uint64_t taken = 0;
		int n = 0;
		qk_iov_take(put->from, left, &iov, 1, &n, &taken);
		QK_ASSERT(W3, taken != 0);
		const struct qk_span span = {iov.iov_base, iov.iov_len};
		QK_TRY(qk_crypt_sink_put(sink, span, err));
		left -= taken;
	}
	return qk_crypt_sink_put(sink, put->tail, err);
}

static enum qcow_status put_encrypted(const struct qk_put *put, struct qcow_error *err)
{
	struct qk_crypt_sink sink;
	QK_TRY(qk_crypt_sink_open(put->image->crypt, &put->at, &sink, err));
	enum qcow_status status = put_into(&sink, put, err);
	return qk_crypt_sink_close(&sink, status, err);
}

enum qcow_status qk_put(const struct qk_put *put, struct qcow_error *err)
{
	return put->image->crypt == NULL ? put_plain(put, err) : put_encrypted(put, err);
}

enum qcow_status qk_put_in_epoch(const struct qk_put *put, struct qcow_error *err)
{
	struct qk_rw *rw = put->image->rw;
	if (put->image->crypt == NULL || QK_LIKELY(atomic_load(&rw->n_parts) == 0))
		return qk_put(put, err);
	qk_lock(&rw->parts_lock);
	enum qcow_status status = put_encrypted(put, err);
	qk_unlock(&rw->parts_lock);
	return status;
}

enum qcow_status qk_put_read(struct qcow_image *image, const struct qk_crypt_place *at,
	uint8_t *buf, size_t len, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	if (rw == NULL || QK_LIKELY(atomic_load(&rw->n_parts) == 0))
		return qk_crypt_read(image->crypt, at, buf, len, err);
	qk_lock(&rw->parts_lock);
	enum qcow_status status = qk_crypt_read(image->crypt, at, buf, len, err);
	qk_unlock(&rw->parts_lock);
	return status;
}

/* ---- parts of sectors ---- */

static void copy_from(struct qk_iov *from, uint8_t *to, uint64_t len)
{
	while (len != 0) {
		struct iovec iov;
		uint64_t taken = 0;
		int n = 0;
		qk_iov_take(from, len, &iov, 1, &n, &taken);
		QK_ASSERT_VOID(W3, taken != 0);
		memcpy(to, iov.iov_base, iov.iov_len);
		to += taken;
		len -= taken;
	}
}

/* put->len bytes within one sector. Under parts_lock. */
static enum qcow_status change_sector(const struct qk_put *put, struct qcow_error *err)
{
	struct qk_crypt *crypt = put->image->crypt;
	struct qk_crypt_place start = put->at;
	uint64_t into = put->at.host.v & SECTOR_MASK;
	uint8_t sector[QK_CRYPT_SECTOR];
	start.host.v -= into;
	start.guest.v -= into;
	QK_TRY(qk_crypt_read(crypt, &start, sector, sizeof(sector), err));
	copy_from(put->from, sector + into, put->len);
	enum qcow_status status = qk_crypt_write(crypt, &start, sector, sizeof(sector), err);
	explicit_bzero(sector, sizeof(sector));
	return status;
}

static enum qcow_status put_sector(const struct qk_put *put, struct qcow_error *err)
{
	struct qk_rw *rw = put->image->rw;
	(void)atomic_fetch_add(&rw->n_parts, 1);
	qk_epoch_wait(rw->epoch);
	qk_lock(&rw->parts_lock);
	enum qcow_status status = change_sector(put, err);
	qk_unlock(&rw->parts_lock);
	(void)atomic_fetch_sub(&rw->n_parts, 1);
	return status;
}

/* The next n bytes of `put`. */
static struct qk_put cut(struct qk_put *put, uint64_t n)
{
	struct qk_put first = *put;
	first.len = n;
	put->at.host.v += n;
	put->at.guest.v += n;
	put->len -= n;
	return first;
}

enum qcow_status qk_put_part(const struct qk_put *put, struct qcow_error *err)
{
	struct qk_put rest = *put, part;
	uint64_t into = put->at.host.v & SECTOR_MASK;
	if (put->image->crypt == NULL)
		return put_plain(put, err);
	if (into != 0) {
		part = cut(&rest, qk_min(rest.len, QK_CRYPT_SECTOR - into));
		QK_TRY(put_sector(&part, err));
	}
	if (rest.len >= QK_CRYPT_SECTOR) {
		part = cut(&rest, rest.len & ~SECTOR_MASK);
		QK_TRY(put_encrypted(&part, err));
	}
	return rest.len != 0 ? put_sector(&rest, err) : QCOW_OK;
}

enum qcow_status qk_put_over(const struct qk_put *put, struct qcow_error *err)
{
	struct qk_put rest = *put, part;
	uint64_t into = put->at.host.v & SECTOR_MASK;
	if (put->image->crypt == NULL)
		return put_plain(put, err);
	if (into != 0) {
		QK_ASSERT(W3, put->head.n == 0);
		part = cut(&rest, qk_min(rest.len, QK_CRYPT_SECTOR - into));
		QK_TRY(put_sector(&part, err));
	}
	if (rest.head.n + rest.len + rest.tail.n == 0)
		return QCOW_OK;
	uint64_t left = (rest.head.n + rest.len + rest.tail.n) & SECTOR_MASK;
	QK_ASSERT(W3, left == 0 || (rest.tail.n == 0 && left <= rest.len));
	part = rest;
	part.len -= left;
	QK_TRY(put_encrypted(&part, err));
	if (left == 0)
		return QCOW_OK;
	part.at.host.v += part.head.n + part.len;
	part.at.guest.v += part.head.n + part.len;
	part.head.n = 0;
	part.len = left;
	return put_sector(&part, err);
}
