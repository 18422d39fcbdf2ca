/* SPDX-License-Identifier: MIT */
/*
 * store: the one wrapper around every implementation of store.h.
 *
 * It owns what no implementation should have to repeat: ranges checked without overflow, lists of any
 * length cut to IOV_MAX, reads beyond the end, zeros by writing, alignment (align.c), and messages
 * that name the store. It never caches bytes and never retries.
 *
 * Invariants:
 *   S1  an implementation is never asked for 0 bytes, nor for more than IOV_MAX buffers
 *   S2  known_size is raised after the store has grown and lowered before it shrinks
 */
#include "store/wrap.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "base/mem.h"
#include "base/num.h"

/* off_t is signed: no host can address more. */
#define LARGEST_SIZE ((uint64_t)INT64_MAX)

static void default_caps(const struct qcow_store_ops *ops, struct qcow_store_caps *caps)
{
	*caps = (struct qcow_store_caps){
		.request_align = 1,
		.physical_block = 512,
		.writable = ops->pwritev != NULL && ops->flush != NULL && ops->truncate != NULL,
		.can_grow = ops->truncate != NULL,
		.can_punch = ops->punch != NULL,
		.can_clone = ops->clone != NULL,
	};
}

static enum qcow_status validate(const struct qcow_store_ops *ops,
	const struct qcow_store_caps *caps, struct qcow_error *err)
{
	if (!qk_is_pow2(caps->request_align) || caps->request_align > QK_MIB(1))
		return QK_FAIL(err, QCOW_E_INVAL,
			"%s: a request alignment of %" PRIu32 " is not a power of two up to 1 MiB",
			ops->name, caps->request_align);
	if (caps->memory_align != 0 &&
		(!qk_is_pow2(caps->memory_align) || caps->memory_align > QK_MIB(1)))
		return QK_FAIL(err, QCOW_E_INVAL,
			"%s: a memory alignment of %" PRIu32 " is not a power of two up to 1 MiB",
			ops->name, caps->memory_align);
	if (caps->writable && (ops->pwritev == NULL || ops->flush == NULL || ops->truncate == NULL))
		return QK_FAIL(err, QCOW_E_INVAL,
			"%s: a writable store needs pwritev, flush and truncate", ops->name);
	return QCOW_OK;
}

enum qcow_status qcow_store_new(const struct qcow_store_ops *ops, void *ctx,
	struct qcow_store **out, struct qcow_error *err)
{
	if (ops == NULL || out == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "no table of calls, or nowhere to put the store");
	if (ops->abi != QCOW_STORE_ABI)
		return QK_FAIL(err, QCOW_E_INVAL, "a store of abi %" PRIu32 ", this library has %d",
			ops->abi, QCOW_STORE_ABI);
	if (ops->name == NULL || ops->preadv == NULL || ops->size == NULL || ops->close == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "a store needs a name, preadv, size and close");
	struct qcow_store_caps caps = {0};
	default_caps(ops, &caps);
	if (ops->caps != NULL)
		ops->caps(ctx, &caps);
	caps.request_align = (uint32_t)qk_max(caps.request_align, 1);
	caps.physical_block = (uint32_t)qk_max(caps.physical_block, 512);
	QK_TRY(validate(ops, &caps, err));

	struct qcow_store *store = qk_calloc(1, sizeof(*store));
	if (store == NULL)
		return QK_FAIL_NOMEM(err);
	store->ops = ops;
	store->ctx = ctx;
	store->caps = caps;
	if (pthread_rwlock_init(&store->block_lock, NULL) != 0) {
		free(store);
		return QK_FAIL_NOMEM(err);
	}
	*out = store;
	return QCOW_OK;
}

void qcow_store_close(struct qcow_store *store)
{
	if (store == NULL)
		return;
	store->ops->close(store->ctx);
	(void)pthread_rwlock_destroy(&store->block_lock);
	free(store->name);
	free(store);
}

const char *qcow_store_name(const struct qcow_store *store)
{
	return store->name != NULL ? store->name : store->ops->name;
}

enum qcow_status qcow_store_set_name(
	struct qcow_store *store, const char *name, struct qcow_error *err)
{
	char *copy = qk_strndup(name, strlen(name));
	if (copy == NULL)
		return QK_FAIL_NOMEM(err);
	free(store->name);
	store->name = copy;
	return QCOW_OK;
}

int qcow_store_fd(struct qcow_store *store)
{
	return store->ops->fd != NULL ? store->ops->fd(store->ctx) : -1;
}

void qcow_store_caps(struct qcow_store *store, struct qcow_store_caps *out)
{
	*out = store->caps;
}

/* ---- failures ---- */

/* So that finish can tell whether the implementation said anything. */
static void begin(struct qcow_error *err)
{
	if (err != NULL)
		err->status = QCOW_OK;
}

/* Pass `st` on; a failure gets the store's name, the offset and, where there is none, a sentence. */
static enum qcow_status finish(const struct qcow_store *store, enum qcow_status st,
	const char *verb, uint64_t off, struct qcow_error *err)
{
	if (QK_LIKELY(st == QCOW_OK) || err == NULL)
		return st;
	if (err->status != st)
		(void)QK_FAIL(err, st, "%s failed: %s", verb, qcow_status_text(st));
	if (err->host_off == QCOW_NO_OFFSET)
		err->host_off = off;
	qk_err_context(err, "%s", qcow_store_name(store));
	return st;
}

/* ---- size ---- */

static void raise_known_size(struct qcow_store *store, uint64_t size)
{
	uint64_t known = atomic_load_explicit(&store->known_size, memory_order_relaxed);
	while (known < size && !atomic_compare_exchange_weak(&store->known_size, &known, size))
		;
}

static void lower_known_size(struct qcow_store *store, uint64_t size)
{
	uint64_t known = atomic_load_explicit(&store->known_size, memory_order_relaxed);
	while (known > size && !atomic_compare_exchange_weak(&store->known_size, &known, size))
		;
}

static enum qcow_status look_at_size(
	struct qcow_store *store, uint64_t *size, struct qcow_error *err)
{
	uint64_t now = 0;
	QK_TRY(store->ops->size(store->ctx, &now, err));
	atomic_store(&store->known_size, now);
	*size = now;
	return QCOW_OK;
}

enum qcow_status qcow_store_size(
	struct qcow_store *store, uint64_t *size_bytes, struct qcow_error *err)
{
	begin(err);
	return finish(store, look_at_size(store, size_bytes, err), "size", QCOW_NO_OFFSET, err);
}

/* [off, off + len) lies within the store. */
static enum qcow_status require_range(struct qcow_store *store, const char *verb, uint64_t off,
	uint64_t len, struct qcow_error *err)
{
	uint64_t size = atomic_load_explicit(&store->known_size, memory_order_relaxed);
	if (QK_LIKELY(qk_in_range(off, len, size)))
		return QCOW_OK;
	QK_TRY(look_at_size(store, &size, err));
	if (!qk_in_range(off, len, size))
		return QK_FAIL(err, QCOW_E_RANGE,
			"%s %" PRIu64 " bytes at offset %" PRIu64 " is past the end at %" PRIu64,
			verb, len, off, size);
	return QCOW_OK;
}

/* [off, off + len) may be written. */
static enum qcow_status require_writable(struct qcow_store *store, const char *verb, uint64_t off,
	uint64_t len, struct qcow_error *err)
{
	uint64_t end = 0;
	if (!store->caps.writable)
		return QK_FAIL(err, QCOW_E_READONLY, "%s, but it is open for reading only", verb);
	if (!qk_add(off, len, &end) || end > LARGEST_SIZE)
		return QK_FAIL(err, QCOW_E_RANGE,
			"%s %" PRIu64 " bytes at offset %" PRIu64 " is past the largest offset",
			verb, len, off);
	if (store->caps.can_grow)
		return QCOW_OK;
	uint64_t size = 0;
	QK_TRY(look_at_size(store, &size, err));
	if (end > size)
		return QK_FAIL_OS(err, ENOSPC,
			"%s %" PRIu64 " bytes at offset %" PRIu64
			" is past the fixed end at %" PRIu64,
			verb, len, off, size);
	return QCOW_OK;
}

/* ---- reading and writing ---- */

static enum qcow_status measure(
	const struct iovec *iov, int n_iov, uint64_t *total, struct qcow_error *err)
{
	uint64_t sum = 0;
	if (n_iov < 0 || (n_iov > 0 && iov == NULL))
		return QK_FAIL(err, QCOW_E_INVAL, "a list of %d buffers", n_iov);
	for (int i = 0; i < n_iov; i++)
		if (!qk_add(sum, iov[i].iov_len, &sum))
			return QK_FAIL(err, QCOW_E_INVAL, "the buffers' sizes overflow");
	*total = sum;
	return QCOW_OK;
}

enum qcow_status qk_wrap_transfer(const struct qcow_store *store, qk_transfer_fn fn,
	const struct qk_vec *v, struct qcow_error *err)
{
	uint64_t off = v->off;
	for (int i = 0; i < v->n;) {
		int n = v->n - i < IOV_MAX ? v->n - i : IOV_MAX;
		uint64_t len = 0;
		for (int k = i; k < i + n; k++)
			len += v->iov[k].iov_len;
		if (len != 0)
			QK_TRY(fn(store->ctx, v->iov + i, n, off, err));
		off += len;
		i += n;
	}
	QK_ASSERT(S1, off == v->off + v->len);
	return QCOW_OK;
}

static enum qcow_status readv_checked(struct qcow_store *store, const struct iovec *iov, int n_iov,
	uint64_t off, struct qcow_error *err)
{
	struct qk_vec v = {iov, n_iov, off, 0};
	QK_TRY(measure(iov, n_iov, &v.len, err));
	if (v.len == 0)
		return QCOW_OK;
	QK_TRY(require_range(store, "reading", off, v.len, err));
	if (qk_align_is_needed(store))
		return qk_align_readv(store, &v, err);
	return qk_wrap_transfer(store, store->ops->preadv, &v, err);
}

static enum qcow_status writev_checked(struct qcow_store *store, const struct iovec *iov, int n_iov,
	uint64_t off, struct qcow_error *err)
{
	struct qk_vec v = {iov, n_iov, off, 0};
	QK_TRY(measure(iov, n_iov, &v.len, err));
	if (v.len == 0)
		return QCOW_OK;
	QK_TRY(require_writable(store, "writing", off, v.len, err));
	if (qk_align_is_needed(store))
		QK_TRY(qk_align_writev(store, &v, err));
	else
		QK_TRY(qk_wrap_transfer(store, store->ops->pwritev, &v, err));
	raise_known_size(store, off + v.len);
	return QCOW_OK;
}

enum qcow_status qcow_store_readv(struct qcow_store *store, const struct iovec *iov, int n_iov,
	uint64_t off, struct qcow_error *err)
{
	begin(err);
	return finish(store, readv_checked(store, iov, n_iov, off, err), "reading", off, err);
}

enum qcow_status qcow_store_read(
	struct qcow_store *store, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	struct iovec iov = {buf, len};
	return qcow_store_readv(store, &iov, 1, off, err);
}

enum qcow_status qcow_store_writev(struct qcow_store *store, const struct iovec *iov, int n_iov,
	uint64_t off, struct qcow_error *err)
{
	begin(err);
	return finish(store, writev_checked(store, iov, n_iov, off, err), "writing", off, err);
}

enum qcow_status qcow_store_write(
	struct qcow_store *store, const void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	/* iovec has one type for both directions; pwritev only reads from it */
	struct iovec iov = {(void *)(uintptr_t)buf, len};
	return qcow_store_writev(store, &iov, 1, off, err);
}

enum qcow_status qcow_store_read_padded(
	struct qcow_store *store, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	uint64_t size = atomic_load_explicit(&store->known_size, memory_order_relaxed);
	if (!qk_in_range(off, len, size))
		QK_TRY(qcow_store_size(store, &size, err));
	size_t have = off < size ? (size_t)qk_min(len, size - off) : 0;
	QK_TRY(qcow_store_read(store, buf, have, off, err));
	if (have < len)
		memset((uint8_t *)buf + have, 0, len - have);
	return QCOW_OK;
}

/* ---- the rest ---- */

/* Calls that change the size or other bytes stay away while align.c rewrites blocks. */
static void enter_blocks(struct qcow_store *store)
{
	if (qk_align_is_needed(store))
		(void)pthread_rwlock_rdlock(&store->block_lock);
}

static enum qcow_status leave_blocks(struct qcow_store *store, enum qcow_status st)
{
	if (qk_align_is_needed(store))
		(void)pthread_rwlock_unlock(&store->block_lock);
	return st;
}

enum qcow_status qcow_store_flush(struct qcow_store *store, struct qcow_error *err)
{
	begin(err);
	if (!store->caps.writable)
		return QCOW_OK;
	return finish(store, store->ops->flush(store->ctx, err), "flush", QCOW_NO_OFFSET, err);
}

static enum qcow_status truncate_checked(
	struct qcow_store *store, uint64_t size, struct qcow_error *err)
{
	QK_TRY(require_writable(store, "setting the size to", 0, size, err));
	if (!store->caps.can_grow) {
		uint64_t now = 0;
		QK_TRY(look_at_size(store, &now, err));
		if (size < now)
			return QK_FAIL(
				err, QCOW_E_NOTSUP, "its size is fixed at %" PRIu64 " bytes", now);
		return QCOW_OK;
	}
	lower_known_size(store, size);
	enter_blocks(store);
	QK_TRY(leave_blocks(store, store->ops->truncate(store->ctx, size, err)));
	raise_known_size(store, size);
	return QCOW_OK;
}

enum qcow_status qcow_store_truncate(
	struct qcow_store *store, uint64_t size_bytes, struct qcow_error *err)
{
	begin(err);
	return finish(
		store, truncate_checked(store, size_bytes, err), "truncate", QCOW_NO_OFFSET, err);
}

/* One page of zeros, listed many times: a write of 1 MiB needs no buffer of 1 MiB. */
#define ZERO_BYTES 16384
#define N_ZERO_IOV 64
static const _Alignas(4096) uint8_t zeros[ZERO_BYTES];

static enum qcow_status write_zeros(
	struct qcow_store *store, uint64_t off, uint64_t len, struct qcow_error *err)
{
	while (len != 0) {
		struct iovec iov[N_ZERO_IOV];
		uint64_t step = 0;
		int n = 0;
		for (; n < N_ZERO_IOV && step < len; n++) {
			uint64_t piece = qk_min(ZERO_BYTES, len - step);
			iov[n] = (struct iovec){(void *)(uintptr_t)zeros, (size_t)piece};
			step += piece;
		}
		QK_TRY(writev_checked(store, iov, n, off, err));
		off += step;
		len -= step;
	}
	return QCOW_OK;
}

/* zero or punch: the part that the implementation is asked for, whole blocks of its alignment. */
struct middle {
	uint64_t off, end; /* off == end: nothing */
};

static struct middle middle_of(const struct qcow_store *store, uint64_t off, uint64_t len)
{
	uint64_t align = store->caps.request_align;
	struct middle m = {off, off};
	uint64_t begin_off = 0, end = qk_align_down(off + len, align);
	if (qk_align_up(off, align, &begin_off) && begin_off < end)
		m = (struct middle){begin_off, end};
	return m;
}

static enum qcow_status zero_checked(struct qcow_store *store, uint64_t off, uint64_t len,
	unsigned flags, struct qcow_error *err)
{
	if (len == 0)
		return QCOW_OK;
	QK_TRY(require_writable(store, "zeroing", off, len, err));
	struct middle m = middle_of(store, off, len);
	if (store->ops->zero == NULL || m.off == m.end)
		return write_zeros(store, off, len, err);
	QK_TRY(write_zeros(store, off, m.off - off, err));
	enter_blocks(store);
	enum qcow_status st = leave_blocks(
		store, store->ops->zero(store->ctx, m.off, m.end - m.off, flags, err));
	if (st == QCOW_E_NOTSUP) {
		begin(err);
		st = write_zeros(store, m.off, m.end - m.off, err);
	}
	QK_TRY(st);
	raise_known_size(store, m.end);
	return write_zeros(store, m.end, off + len - m.end, err);
}

enum qcow_status qcow_store_zero(struct qcow_store *store, uint64_t off, uint64_t len,
	unsigned flags, struct qcow_error *err)
{
	begin(err);
	return finish(store, zero_checked(store, off, len, flags, err), "zeroing", off, err);
}

static enum qcow_status punch_checked(
	struct qcow_store *store, uint64_t off, uint64_t len, struct qcow_error *err)
{
	if (len == 0)
		return QCOW_OK;
	QK_TRY(require_writable(store, "punching", off, len, err));
	QK_TRY(require_range(store, "punching", off, len, err));
	if (store->ops->punch == NULL)
		return QK_FAIL(err, QCOW_E_NOTSUP, "this kind of store cannot punch holes");
	struct middle m = middle_of(store, off, len);
	QK_TRY(write_zeros(store, off, m.off - off, err));
	if (m.off != m.end) {
		enter_blocks(store);
		QK_TRY(leave_blocks(
			store, store->ops->punch(store->ctx, m.off, m.end - m.off, err)));
	}
	return write_zeros(store, m.end, off + len - m.end, err);
}

enum qcow_status qcow_store_punch(
	struct qcow_store *store, uint64_t off, uint64_t len, struct qcow_error *err)
{
	begin(err);
	return finish(store, punch_checked(store, off, len, err), "punching", off, err);
}

static enum qcow_status extents_checked(struct qcow_store *store, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	uint64_t size = atomic_load_explicit(&store->known_size, memory_order_relaxed);
	if (!qk_in_range(off, len, size))
		QK_TRY(look_at_size(store, &size, err));
	if (off >= size || len == 0)
		return QK_FAIL(err, QCOW_E_RANGE,
			"no extent of %" PRIu64 " bytes at offset %" PRIu64
			", the end is at %" PRIu64,
			len, off, size);
	len = qk_min(len, size - off);
	struct qcow_store_extent found = {off, len, false};
	if (store->ops->extents != NULL)
		QK_TRY(store->ops->extents(store->ctx, off, len, &found, err));
	if (found.len == 0)
		found.is_hole = false;
	out->off = off;
	out->len = found.len != 0 ? qk_min(found.len, len) : len;
	out->is_hole = found.is_hole;
	return QCOW_OK;
}

enum qcow_status qcow_store_extents(struct qcow_store *store, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	begin(err);
	return finish(store, extents_checked(store, off, len, out, err), "extents", off, err);
}

static enum qcow_status clone_checked(struct qcow_store *store, uint64_t off,
	struct qcow_store *src, uint64_t src_off, uint64_t len, struct qcow_error *err)
{
	if (len == 0)
		return QCOW_OK;
	QK_TRY(require_writable(store, "cloning", off, len, err));
	QK_TRY(require_range(src, "cloning", src_off, len, err));
	int fd = qcow_store_fd(src);
	if (store->ops->clone == NULL || fd < 0)
		return QK_FAIL(
			err, QCOW_E_NOTSUP, "%s cannot share blocks with it", qcow_store_name(src));
	enter_blocks(store);
	QK_TRY(leave_blocks(store, store->ops->clone(store->ctx, off, fd, src_off, len, err)));
	raise_known_size(store, off + len);
	return QCOW_OK;
}

enum qcow_status qcow_store_clone(struct qcow_store *store, uint64_t off, struct qcow_store *src,
	uint64_t src_off, uint64_t len, struct qcow_error *err)
{
	begin(err);
	return finish(
		store, clone_checked(store, off, src, src_off, len, err), "cloning", off, err);
}
