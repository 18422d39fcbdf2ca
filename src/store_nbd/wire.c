/* SPDX-License-Identifier: MIT */
/*
 * wire: the calls of store.h as requests on one connection.
 *
 * A caller puts its requests on the connection, which sends what the socket takes at once, and sleeps until the last of
 * them is answered. One thread waits for the socket, receives, and sends what was left. So threads that call
 * together have their requests in flight together, and a single request costs one change of thread.
 *
 * Locking: libnbd's own lock on the handle is held for each of its calls and never while anybody sleeps. A struct
 * wait is locked by its caller and by the callback, within that lock.
 */
#include "store_nbd/wire.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/mem.h"

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

static void kick(struct qk_nbd_wire *w)
{
	uint64_t one = 1;
	(void)!write(w->kick, &one, sizeof(one));
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
		kick(w);
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

/* ---- the thread ---- */

/* One turn; false: the connection is over. */
static bool turn(struct qk_nbd_wire *w)
{
	unsigned wants = w->lib->aio_get_direction(w->nbd);
	struct pollfd fds[2] = {
		{.fd = w->lib->aio_get_fd(w->nbd)}, {.fd = w->kick, .events = POLLIN}};
	if ((wants & LIBNBD_AIO_DIRECTION_READ) != 0)
		fds[0].events |= POLLIN;
	if ((wants & LIBNBD_AIO_DIRECTION_WRITE) != 0)
		fds[0].events |= POLLOUT;
	if (poll(fds, 2, -1) < 0)
		return errno == EINTR;
	uint64_t n = 0;
	if (fds[1].revents != 0)
		(void)!read(w->kick, &n, sizeof(n));
	/* a caller may have moved the state meanwhile */
	wants = w->lib->aio_get_direction(w->nbd);
	bool ended = (fds[0].revents & (POLLHUP | POLLERR)) != 0;
	int r = 0;
	if ((wants & LIBNBD_AIO_DIRECTION_READ) != 0 && ((fds[0].revents & POLLIN) != 0 || ended))
		r = w->lib->aio_notify_read(w->nbd);
	else if ((wants & LIBNBD_AIO_DIRECTION_WRITE) != 0 &&
		 ((fds[0].revents & POLLOUT) != 0 || ended))
		r = w->lib->aio_notify_write(w->nbd);
	return r == 0 && w->lib->aio_is_dead(w->nbd) == 0 && w->lib->aio_is_closed(w->nbd) == 0;
}

static void *run(void *ctx)
{
	struct qk_nbd_wire *w = ctx;
	while (!atomic_load(&w->ends) && turn(w))
		;
	return NULL;
}

enum qcow_status qk_nbd_wire_start(struct qk_nbd_wire *w, struct qcow_error *err)
{
	w->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->kick < 0)
		return QK_FAIL_OS(err, errno, "no descriptor to wake the connection's thread");
	int error = pthread_create(&w->thread, NULL, run, w);
	if (error == 0)
		return QCOW_OK;
	(void)close(w->kick);
	return QK_FAIL_OS(err, error, "no thread for the connection");
}

static void wire_close(void *ctx)
{
	struct qk_nbd_wire *w = ctx;
	atomic_store(&w->ends, true);
	kick(w);
	(void)pthread_join(w->thread, NULL);
	if (w->lib->aio_is_ready(w->nbd) > 0)
		(void)w->lib->shutdown(w->nbd, 0);
	w->lib->close(w->nbd);
	(void)close(w->kick);
	free(w);
}

/* ---- the calls ---- */

/* One buffer in requests that the server takes. */
static void move(struct qk_nbd_wire *w, struct wait *wait, const struct iovec *part, uint64_t off,
	bool writes)
{
	char *at = part->iov_base;
	for (size_t left = part->iov_len; left > 0;) {
		size_t n = left < w->max_request ? left : w->max_request;
		begin_one(wait);
		issued(w, wait,
			writes ? w->lib->aio_pwrite(w->nbd, at, n, off, callback_of(wait), 0)
			       : w->lib->aio_pread(w->nbd, at, n, off, callback_of(wait), 0));
		at += n;
		off += n;
		left -= n;
	}
}

static int move_all(
	struct qk_nbd_wire *w, const struct iovec *iov, int n_iov, uint64_t off, bool writes)
{
	struct wait wait = WAIT_INIT;
	for (int i = 0; i < n_iov; i++) {
		move(w, &wait, &iov[i], off, writes);
		off += iov[i].iov_len;
	}
	return wait_for(&wait);
}

static enum qcow_status wire_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	int error = move_all(ctx, iov, n_iov, off, false);
	return error == 0 ? QCOW_OK : QK_FAIL_OS(err, error, "reading at offset %" PRIu64, off);
}

static enum qcow_status wire_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	int error = move_all(ctx, iov, n_iov, off, true);
	return error == 0 ? QCOW_OK : QK_FAIL_OS(err, error, "writing at offset %" PRIu64, off);
}

/* A server without the command keeps nothing back. */
static enum qcow_status wire_flush(void *ctx, struct qcow_error *err)
{
	struct qk_nbd_wire *w = ctx;
	struct wait wait = WAIT_INIT;
	if (!w->can_flush)
		return QCOW_OK;
	begin_one(&wait);
	issued(w, &wait, w->lib->aio_flush(w->nbd, callback_of(&wait), 0));
	int error = wait_for(&wait);
	return error == 0 ? QCOW_OK : QK_FAIL_OS(err, error, "making the data durable");
}

static enum qcow_status wire_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	(void)err;
	*size_bytes = ((struct qk_nbd_wire *)ctx)->size;
	return QCOW_OK;
}

static enum qcow_status wire_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct qk_nbd_wire *w = ctx;
	if (size_bytes == w->size)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_NOTSUP, "an export cannot change its size");
}

static enum qcow_status make_zeros(
	struct qk_nbd_wire *w, uint64_t off, uint64_t len, uint32_t flags, struct qcow_error *err)
{
	const uint64_t most = UINT64_C(1) << 30; /* the length of a request has 32 bits */
	struct wait wait = WAIT_INIT;
	if (!w->can_zero)
		return QK_FAIL(err, QCOW_E_NOTSUP, "the server does not write zeros by itself");
	for (uint64_t at = off, left = len; left > 0;) {
		uint64_t n = left < most ? left : most;
		begin_one(&wait);
		issued(w, &wait, w->lib->aio_zero(w->nbd, n, at, callback_of(&wait), flags));
		at += n;
		left -= n;
	}
	int error = wait_for(&wait);
	return error == 0 ? QCOW_OK
			  : QK_FAIL_OS(err, error, "writing zeros at offset %" PRIu64, off);
}

static enum qcow_status wire_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	return make_zeros(ctx, off, len,
		(flags & QCOW_ZERO_ALLOCATE) != 0 ? LIBNBD_CMD_FLAG_NO_HOLE : 0, err);
}

static enum qcow_status wire_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	return make_zeros(ctx, off, len, 0, err);
}

/* What is asked of a block status. */
struct asked {
	uint64_t off; /* where the request begins */
	uint64_t len; /* of one answer from there; 0: none yet */
	bool is_hole, ended;
};

static int on_extents(void *ctx, const char *context, uint64_t offset, uint32_t *entries,
	size_t n_entries, int *error)
{
	struct asked *a = ctx;
	(void)error;
	if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || offset != a->off + a->len)
		return 0;
	for (size_t i = 0; i + 1 < n_entries && !a->ended; i += 2) {
		bool is_hole = (entries[i + 1] & LIBNBD_STATE_ZERO) != 0;
		a->ended = a->len > 0 && is_hole != a->is_hole;
		if (a->ended)
			break;
		a->is_hole = is_hole;
		a->len += entries[i];
	}
	return 0;
}

static enum qcow_status wire_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	struct qk_nbd_wire *w = ctx;
	struct wait wait = WAIT_INIT;
	*out = (struct qcow_store_extent){.off = off, .len = len};
	if (!w->has_extents)
		return QCOW_OK;
	/* whole blocks, and a length of 32 bits */
	uint64_t skipped = off % w->min_block, most = (UINT64_C(4) << 30) - (UINT64_C(1) << 26);
	struct asked asked = {.off = off - skipped};
	uint64_t n = w->size - asked.off;
	n = n < most ? n : most;
	if (skipped + len < n)
		n = (skipped + len + w->min_block - 1) / w->min_block * w->min_block;
	begin_one(&wait);
	nbd_extent_callback extent = {.callback = on_extents, .user_data = &asked};
	issued(w, &wait,
		w->lib->aio_block_status(w->nbd, n, asked.off, extent, callback_of(&wait), 0));
	int error = wait_for(&wait);
	if (error != 0)
		return QK_FAIL_OS(err, error, "asking what lies at offset %" PRIu64, off);
	if (asked.len <= skipped)
		return QCOW_OK; /* nothing was said: data */
	out->len = asked.len - skipped < len ? asked.len - skipped : len;
	out->is_hole = asked.is_hole;
	return QCOW_OK;
}

static void wire_caps(void *ctx, struct qcow_store_caps *out)
{
	struct qk_nbd_wire *w = ctx;
	*out = (struct qcow_store_caps){.request_align = w->min_block,
		.memory_align = w->min_block > 1 ? w->min_block : 0,
		.physical_block = 512,
		.writable = w->writable,
		.can_punch = w->writable && w->can_zero};
}

const struct qcow_store_ops qk_nbd_wire_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "nbd",
	.preadv = wire_preadv,
	.pwritev = wire_pwritev,
	.flush = wire_flush,
	.size = wire_size,
	.truncate = wire_truncate,
	.zero = wire_zero,
	.punch = wire_punch,
	.extents = wire_extents,
	.caps = wire_caps,
	.close = wire_close,
};
