/* SPDX-License-Identifier: MIT */
/*
 * calls: the calls of store.h as requests to a server.
 *
 * A caller puts its requests on one of the connections, which sends what the socket takes at once, and sleeps until the last
 * of them is answered. So threads that call together have their requests in flight together, and a single request costs one
 * change of thread. The second caller that comes at a time makes more connections, where the server says that they see
 * each other's writes.
 *
 * Locking: libnbd's own lock on a handle is held for each of its calls and never while anybody sleeps. A struct
 * wait is locked by its caller and by the callback, within that lock.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store_nbd/wire.h"

/* What a call waits for. */
struct wait {
	pthread_mutex_t lock;
	pthread_cond_t is_done;
	unsigned n_left;
	int error; /* the first, or 0 */
};

#define WAIT_INIT                                                                      \
	{                                                                              \
		.lock = PTHREAD_MUTEX_INITIALIZER, .is_done = PTHREAD_COND_INITIALIZER \
	}

static void end_one(struct wait *wait, int error)
{
	(void)pthread_mutex_lock(&wait->lock);
	if (wait->error == 0)
		wait->error = error;
	if (--wait->n_left == 0)
		(void)pthread_cond_signal(&wait->is_done);
	(void)pthread_mutex_unlock(&wait->lock);
}

static int completed(void *ctx, int *error)
{
	end_one(ctx, *error);
	return 1;
}

static void begin_one(struct wait *wait)
{
	(void)pthread_mutex_lock(&wait->lock);
	wait->n_left++;
	(void)pthread_mutex_unlock(&wait->lock);
}

static nbd_completion_callback callback_of(struct wait *wait)
{
	return (nbd_completion_callback){.callback = completed, .user_data = wait};
}

/* The request has been put on the connection, or not (cookie < 0). */
static void issued(struct qk_nbd_wire *w, struct wait *wait, int64_t cookie)
{
	if (cookie < 0) {
		int error = w->lib->get_errno();
		end_one(wait, error != 0 ? error : EIO);
		return;
	}
	if ((w->lib->aio_get_direction(w->nbd) & LIBNBD_AIO_DIRECTION_WRITE) != 0)
		qk_nbd_wire_kick(w);
}

/* Sleep until every request is answered; its first error. */
static int wait_for(struct wait *wait)
{
	(void)pthread_mutex_lock(&wait->lock);
	while (wait->n_left > 0)
		(void)pthread_cond_wait(&wait->is_done, &wait->lock);
	int error = wait->error;
	(void)pthread_mutex_unlock(&wait->lock);
	return error;
}

/* ---- one operation ---- */

/* The connection for a call: the one with the fewest of those that are up; the first, which then fails, where none is. */
static struct qk_nbd_wire *enter(struct qk_nbd_disk *d)
{
	struct qk_nbd_wire *best = &d->wires[0];
	if (atomic_fetch_add(&d->n_calls, 1) > 0 && d->can_widen &&
		!atomic_exchange(&d->is_widened, true))
		qk_nbd_disk_widen(d);
	for (int i = 1; i < QK_NBD_CONNECTIONS; i++) {
		struct qk_nbd_wire *w = &d->wires[i];
		if (atomic_load(&w->is_up) &&
			(!atomic_load(&best->is_up) ||
				atomic_load(&w->n_calls) < atomic_load(&best->n_calls)))
			best = w;
	}
	atomic_fetch_add(&best->n_calls, 1);
	return best;
}

static void leave(struct qk_nbd_disk *d, struct qk_nbd_wire *w)
{
	atomic_fetch_sub(&w->n_calls, 1);
	atomic_fetch_sub(&d->n_calls, 1);
}

/* ENOTCONN: the connection is about to be dead. */
static bool is_loss(const struct qk_nbd_wire *w, int error)
{
	return error == ENOTCONN || qk_nbd_wire_is_lost(w);
}

/* One buffer in requests that the server takes. */
static void move(struct qk_nbd_disk *d, struct qk_nbd_wire *w, struct wait *wait,
	const struct iovec *part, uint64_t off, bool writes)
{
	char *at = part->iov_base;
	for (size_t left = part->iov_len; left > 0;) {
		size_t n = left < d->max_request ? left : d->max_request;
		begin_one(wait);
		issued(w, wait,
			writes ? w->lib->aio_pwrite(w->nbd, at, n, off, callback_of(wait), 0)
			       : w->lib->aio_pread(w->nbd, at, n, off, callback_of(wait), 0));
		at += n;
		off += n;
		left -= n;
	}
}

static void move_all(
	struct qk_nbd_disk *d, struct qk_nbd_wire *w, struct wait *wait, const struct qk_nbd_op *op)
{
	uint64_t at = op->off;
	for (int i = 0; i < op->n_iov; i++) {
		move(d, w, wait, &op->iov[i], at, op->kind == QK_NBD_OP_WRITE);
		at += op->iov[i].iov_len;
	}
}

static void make_zeros(struct qk_nbd_wire *w, struct wait *wait, const struct qk_nbd_op *op)
{
	const uint64_t most = UINT64_C(1) << 30; /* the length of a request has 32 bits */
	for (uint64_t at = op->off, left = op->len; left > 0;) {
		uint64_t n = left < most ? left : most;
		begin_one(wait);
		issued(w, wait, w->lib->aio_zero(w->nbd, n, at, callback_of(wait), op->flags));
		at += n;
		left -= n;
	}
}

static int on_extents(void *ctx, const char *context, uint64_t offset, uint32_t *entries,
	size_t n_entries, int *error)
{
	struct qk_nbd_asked *a = ctx;
	(void)error;
	if (strcmp(context, a->context) != 0 || offset != a->off + a->len)
		return 0;
	for (size_t i = 0; i + 1 < n_entries && !a->ended; i += 2) {
		unsigned bits = entries[i + 1] & a->mask;
		a->ended = a->len > 0 && bits != a->bits;
		if (a->ended)
			break;
		a->bits = bits;
		a->len += entries[i];
	}
	return 0;
}

static void ask_status(struct qk_nbd_wire *w, struct wait *wait, const struct qk_nbd_op *op)
{
	nbd_extent_callback extent = {.callback = on_extents, .user_data = op->asked};
	op->asked->len = 0;
	op->asked->ended = false;
	begin_one(wait);
	issued(w, wait,
		w->lib->aio_block_status(w->nbd, op->len, op->off, extent, callback_of(wait), 0));
}

int qk_nbd_op_once(struct qk_nbd_disk *d, const struct qk_nbd_op *op, bool *is_lost)
{
	struct wait wait = WAIT_INIT;
	struct qk_nbd_wire *w = enter(d);
	switch (op->kind) {
	case QK_NBD_OP_ZERO:
		make_zeros(w, &wait, op);
		break;
	case QK_NBD_OP_FLUSH:
		begin_one(&wait);
		issued(w, &wait, w->lib->aio_flush(w->nbd, callback_of(&wait), 0));
		break;
	case QK_NBD_OP_STATUS:
		ask_status(w, &wait, op);
		break;
	default:
		move_all(d, w, &wait, op);
		break;
	}
	int error = wait_for(&wait);
	/* ESHUTDOWN: it is about to go */
	*is_lost = error != 0 &&
		   (is_loss(w, error) || (error == ESHUTDOWN && d->address.reconnect_delay_s != 0));
	leave(d, w);
	return error;
}

/* Carry it out; a failure in words: what was done, and where. */
static enum qcow_status carry_out(struct qk_nbd_disk *d, const struct qk_nbd_op *op,
	const char *doing, struct qcow_error *err)
{
	bool is_lost = false;
	int error = qk_nbd_op_run(d, op, &is_lost);
	if (error == 0)
		return QCOW_OK;
	char where[48] = "";
	if (op->kind != QK_NBD_OP_FLUSH)
		(void)snprintf(where, sizeof(where), " at offset %" PRIu64, op->off);
	if (!is_lost)
		return QK_FAIL_OS(err, error, "%s%s", doing, where);
	if (d->address.reconnect_delay_s == 0)
		return QK_FAIL(
			err, QCOW_E_IO, "%s%s: the server has ended the connection", doing, where);
	return QK_FAIL(err, QCOW_E_IO,
		"%s%s: the server has ended the connection, and was not there again within %u s",
		doing, where, d->address.reconnect_delay_s);
}

/* ---- the calls ---- */

static enum qcow_status disk_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	const struct qk_nbd_op op = {
		.kind = QK_NBD_OP_READ, .iov = iov, .n_iov = n_iov, .off = off};
	return carry_out(ctx, &op, "reading", err);
}

static enum qcow_status disk_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	const struct qk_nbd_op op = {
		.kind = QK_NBD_OP_WRITE, .iov = iov, .n_iov = n_iov, .off = off};
	return carry_out(ctx, &op, "writing", err);
}

/* A server without the command keeps nothing back. */
static enum qcow_status disk_flush(void *ctx, struct qcow_error *err)
{
	struct qk_nbd_disk *d = ctx;
	const struct qk_nbd_op op = {.kind = QK_NBD_OP_FLUSH};
	return d->can_flush ? carry_out(d, &op, "making the data durable", err) : QCOW_OK;
}

static enum qcow_status disk_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	(void)err;
	*size_bytes = ((struct qk_nbd_disk *)ctx)->size;
	return QCOW_OK;
}

static enum qcow_status disk_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct qk_nbd_disk *d = ctx;
	if (size_bytes == d->size)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_NOTSUP, "an export cannot change its size");
}

static enum qcow_status write_zeros(
	struct qk_nbd_disk *d, uint64_t off, uint64_t len, uint32_t flags, struct qcow_error *err)
{
	const struct qk_nbd_op op = {
		.kind = QK_NBD_OP_ZERO, .off = off, .len = len, .flags = flags};
	if (!d->can_zero)
		return QK_FAIL(err, QCOW_E_NOTSUP, "the server does not write zeros by itself");
	return carry_out(d, &op, "writing zeros", err);
}

static enum qcow_status disk_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	return write_zeros(ctx, off, len,
		(flags & QCOW_ZERO_ALLOCATE) != 0 ? LIBNBD_CMD_FLAG_NO_HOLE : 0, err);
}

static enum qcow_status disk_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	return write_zeros(ctx, off, len, 0, err);
}

/* The first answer for [off, off + len); *bits stays where the server says nothing. */
static enum qcow_status first_status(struct qk_nbd_disk *d, uint64_t off, uint64_t *len,
	unsigned mask, unsigned *bits, struct qcow_error *err)
{
	/* whole blocks, and a length of 32 bits */
	uint64_t skipped = off % d->min_block, most = (UINT64_C(4) << 30) - (UINT64_C(1) << 26);
	struct qk_nbd_asked asked = {
		.context = qk_nbd_context_of(&d->address), .mask = mask, .off = off - skipped};
	uint64_t n = d->size - asked.off;
	n = n < most ? n : most;
	if (skipped + *len < n)
		n = (skipped + *len + d->min_block - 1) / d->min_block * d->min_block;
	const struct qk_nbd_op op = {
		.kind = QK_NBD_OP_STATUS, .off = asked.off, .len = n, .asked = &asked};
	QK_TRY(carry_out(d, &op, "asking for the extent", err));
	if (asked.len <= skipped)
		return QCOW_OK;
	*len = asked.len - skipped < *len ? asked.len - skipped : *len;
	*bits = asked.bits;
	return QCOW_OK;
}

static enum qcow_status disk_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	struct qk_nbd_disk *d = ctx;
	unsigned bits = 0;
	*out = (struct qcow_store_extent){.off = off, .len = len};
	/* a bitmap says nothing of what is stored: data */
	if (!d->has_extents || d->address.dirty_bitmap != NULL)
		return QCOW_OK;
	QK_TRY(first_status(d, off, &out->len, LIBNBD_STATE_ZERO, &bits, err));
	out->is_hole = bits != 0;
	return QCOW_OK;
}

enum qcow_status qk_nbd_status(struct qk_nbd_disk *d, uint64_t off, uint64_t len,
	struct qk_nbd_status *out, struct qcow_error *err)
{
	*out = (struct qk_nbd_status){.len = len};
	return first_status(
		d, off, &out->len, LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO, &out->bits, err);
}

static void disk_caps(void *ctx, struct qcow_store_caps *out)
{
	struct qk_nbd_disk *d = ctx;
	*out = (struct qcow_store_caps){.request_align = d->min_block,
		.memory_align = d->min_block > 1 ? d->min_block : 0,
		.physical_block = 512,
		.writable = d->writable,
		.can_punch = d->writable && d->can_zero};
}

static void disk_close(void *ctx)
{
	qk_nbd_disk_free(ctx);
}

const struct qcow_store_ops qk_nbd_disk_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "nbd",
	.preadv = disk_preadv,
	.pwritev = disk_pwritev,
	.flush = disk_flush,
	.size = disk_size,
	.truncate = disk_truncate,
	.zero = disk_zero,
	.punch = disk_punch,
	.extents = disk_extents,
	.caps = disk_caps,
	.close = disk_close,
};
