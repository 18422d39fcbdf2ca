/* SPDX-License-Identifier: MIT */
/*
 * align: requests of any shape on a store that wants them aligned (O_DIRECT, 4Kn).
 *
 * A request that fits goes through untouched. One whose memory does not fit is bounced. One whose
 * range does not fit is widened to whole blocks; a write then reads the blocks at its two ends first:
 *
 *        off                       end
 *         |#########################|
 *   [ r ..|#########|#########|#####|.. r ]     r: read, then written back
 *
 * While that happens no other write may touch those blocks, so such a write holds block_lock
 * exclusively, and whole-block writes hold it shared. Reads take no lock: what a rewrite puts back
 * is what was there.
 */
#include "store/wrap.h"

#include <string.h>

#include "base/mem.h"
#include "base/num.h"

/* Long enough that the copy and not the calls cost, short enough for the second-level cache. */
#define BOUNCE_BYTES QK_KIB(1024)

/* A position in a list of buffers. */
struct cursor {
	const struct iovec *iov;
	size_t at;
};

static void copy_out(struct cursor *c, const uint8_t *from, uint64_t n)
{
	while (n != 0) {
		size_t step = (size_t)qk_min(n, c->iov->iov_len - c->at);
		if (step != 0)
			memcpy((uint8_t *)c->iov->iov_base + c->at, from, step);
		from += step;
		n -= step;
		c->at += step;
		if (c->at == c->iov->iov_len) {
			c->iov++;
			c->at = 0;
		}
	}
}

static void copy_in(struct cursor *c, uint8_t *to, uint64_t n)
{
	while (n != 0) {
		size_t step = (size_t)qk_min(n, c->iov->iov_len - c->at);
		if (step != 0)
			memcpy(to, (const uint8_t *)c->iov->iov_base + c->at, step);
		to += step;
		n -= step;
		c->at += step;
		if (c->at == c->iov->iov_len) {
			c->iov++;
			c->at = 0;
		}
	}
}

static bool is_range_aligned(const struct qcow_store *store, const struct qk_vec *v)
{
	uint64_t align = store->caps.request_align;
	return qk_is_aligned(v->off, align) && qk_is_aligned(v->len, align);
}

static bool is_memory_aligned(const struct qcow_store *store, const struct qk_vec *v)
{
	uint64_t base_align = qk_max(store->caps.memory_align, 1);
	uint64_t len_align = qk_max(store->caps.request_align, base_align);
	for (int i = 0; i < v->n; i++)
		if (!qk_is_aligned((uintptr_t)v->iov[i].iov_base, base_align) ||
			!qk_is_aligned(v->iov[i].iov_len, len_align))
			return false;
	return true;
}

/* A request widened to blocks, and the buffer that it goes through. */
struct bounce {
	uint64_t begin, end; /* bytes; multiples of the alignment */
	uint64_t step; /* bytes in buf */
	uint8_t *buf;
};

static enum qcow_status prepare(const struct qcow_store *store, const struct qk_vec *v,
	struct bounce *b, struct qcow_error *err)
{
	uint64_t align = store->caps.request_align;
	b->begin = qk_align_down(v->off, align);
	if (!qk_align_up(v->off + v->len, align, &b->end))
		return QK_FAIL(err, QCOW_E_RANGE, "the range ends past the largest offset");
	b->step = qk_min(qk_max(BOUNCE_BYTES, align), b->end - b->begin);
	uint64_t memory = qk_max(qk_max(store->caps.memory_align, align), 4096);
	b->buf = qk_malloc_aligned((size_t)memory, b->step);
	return b->buf != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

static enum qcow_status transfer_one(const struct qcow_store *store, qk_transfer_fn fn,
	uint8_t *buf, uint64_t len, uint64_t off, struct qcow_error *err)
{
	struct iovec iov = {buf, (size_t)len};
	return fn(store->ctx, &iov, 1, off, err);
}

static enum qcow_status read_bounced(
	const struct qcow_store *store, const struct qk_vec *v, struct qcow_error *err)
{
	struct bounce b = {0};
	QK_TRY(prepare(store, v, &b, err));
	QK_AUTO_FREE uint8_t *owned = b.buf;
	(void)owned;
	struct cursor c = {v->iov, 0};
	uint64_t end = v->off + v->len;
	for (uint64_t pos = b.begin; pos < b.end; pos += b.step) {
		uint64_t n = qk_min(b.step, b.end - pos);
		QK_TRY(transfer_one(store, store->ops->preadv, b.buf, n, pos, err));
		uint64_t from = qk_max(pos, v->off), to = qk_min(pos + n, end);
		copy_out(&c, b.buf + (from - pos), to - from);
	}
	return QCOW_OK;
}

enum qcow_status qk_align_readv(
	struct qcow_store *store, const struct qk_vec *v, struct qcow_error *err)
{
	if (is_range_aligned(store, v) && is_memory_aligned(store, v))
		return qk_wrap_transfer(store, store->ops->preadv, v, err);
	return read_bounced(store, v, err);
}

/* Fill one block of the bounce buffer with what the store holds at `pos`. */
static enum qcow_status fetch_block(const struct qcow_store *store, uint8_t *buf, uint64_t pos,
	uint64_t size, struct qcow_error *err)
{
	uint64_t align = store->caps.request_align;
	if (pos >= size) {
		memset(buf, 0, (size_t)align);
		return QCOW_OK;
	}
	return transfer_one(store, store->ops->preadv, buf, align, pos, err);
}

/* The bytes of [pos, pos + n) that the request does not cover, in whole blocks at its ends. */
static enum qcow_status fetch_ends(const struct qcow_store *store, const struct bounce *b,
	const struct qk_vec *v, uint64_t pos, uint64_t size, struct qcow_error *err)
{
	uint64_t align = store->caps.request_align;
	uint64_t n = qk_min(b->step, b->end - pos);
	bool head = pos < v->off;
	bool tail = pos + n > v->off + v->len;
	if (head)
		QK_TRY(fetch_block(store, b->buf, pos, size, err));
	if (tail && !(head && n == align))
		QK_TRY(fetch_block(store, b->buf + (n - align), pos + n - align, size, err));
	return QCOW_OK;
}

static enum qcow_status write_bounced(const struct qcow_store *store, const struct qk_vec *v,
	uint64_t size, struct qcow_error *err)
{
	struct bounce b = {0};
	QK_TRY(prepare(store, v, &b, err));
	QK_AUTO_FREE uint8_t *owned = b.buf;
	(void)owned;
	struct cursor c = {v->iov, 0};
	uint64_t end = v->off + v->len;
	for (uint64_t pos = b.begin; pos < b.end; pos += b.step) {
		uint64_t n = qk_min(b.step, b.end - pos);
		QK_TRY(fetch_ends(store, &b, v, pos, size, err));
		uint64_t from = qk_max(pos, v->off), to = qk_min(pos + n, end);
		copy_in(&c, b.buf + (from - pos), to - from);
		QK_TRY(transfer_one(store, store->ops->pwritev, b.buf, n, pos, err));
	}
	if (b.end > qk_max(size, end))
		return store->ops->truncate(store->ctx, qk_max(size, end), err);
	return QCOW_OK;
}

static enum qcow_status write_widened(
	const struct qcow_store *store, const struct qk_vec *v, struct qcow_error *err)
{
	uint64_t size = 0;
	QK_TRY(store->ops->size(store->ctx, &size, err));
	return write_bounced(store, v, size, err);
}

enum qcow_status qk_align_writev(
	struct qcow_store *store, const struct qk_vec *v, struct qcow_error *err)
{
	enum qcow_status st;
	if (!is_range_aligned(store, v)) {
		(void)pthread_rwlock_wrlock(&store->block_lock);
		st = write_widened(store, v, err);
	} else {
		(void)pthread_rwlock_rdlock(&store->block_lock);
		/* whole blocks: nothing is read, and the end is where the caller says */
		st = is_memory_aligned(store, v)
			     ? qk_wrap_transfer(store, store->ops->pwritev, v, err)
			     : write_bounced(store, v, UINT64_MAX, err);
	}
	(void)pthread_rwlock_unlock(&store->block_lock);
	return st;
}
