/* SPDX-License-Identifier: MIT */
/*
 * wire: one connection. Its thread waits for the socket, receives, and sends what callers left.
 */
#include "store_nbd/wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"

#define FAREWELL_MS 2000

int64_t qk_nbd_clock_ms(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void qk_nbd_wire_kick(struct qk_nbd_wire *w)
{
	uint64_t one = 1;
	(void)!write(w->kick, &one, sizeof(one));
}

bool qk_nbd_wire_is_lost(const struct qk_nbd_wire *w)
{
	return w->lib->aio_is_dead(w->nbd) != 0 || w->lib->aio_is_closed(w->nbd) != 0;
}

enum qk_nbd_turn qk_nbd_wire_turn(struct qk_nbd_wire *w, int timeout_ms)
{
	unsigned wants = w->lib->aio_get_direction(w->nbd);
	struct pollfd fds[2] = {
		{.fd = w->lib->aio_get_fd(w->nbd)}, {.fd = w->kick, .events = POLLIN}};
	if ((wants & LIBNBD_AIO_DIRECTION_READ) != 0)
		fds[0].events |= POLLIN;
	if ((wants & LIBNBD_AIO_DIRECTION_WRITE) != 0)
		fds[0].events |= POLLOUT;
	int n_ready = poll(fds, 2, timeout_ms);
	if (n_ready <= 0)
		return n_ready == 0	? QK_NBD_TIME_IS_OVER
		       : errno == EINTR ? QK_NBD_TURNED
					: QK_NBD_LOST;
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
	return r == 0 && !qk_nbd_wire_is_lost(w) ? QK_NBD_TURNED : QK_NBD_LOST;
}

enum qk_nbd_turn qk_nbd_wire_settle(struct qk_nbd_wire *w, int64_t deadline_ms)
{
	while (w->lib->aio_is_connecting(w->nbd) > 0) {
		int64_t left = deadline_ms - qk_nbd_clock_ms();
		enum qk_nbd_turn turn = qk_nbd_wire_turn(w, left > 0 ? (int)left : 0);
		if (turn != QK_NBD_TURNED)
			return turn;
	}
	return QK_NBD_TURNED;
}

/* Has the server ended it, seen by libnbd or not? */
static bool is_ended(const struct qk_nbd_wire *w)
{
	struct pollfd fd = {.fd = w->lib->aio_get_fd(w->nbd), .events = POLLRDHUP};
	return fd.fd < 0 || poll(&fd, 1, 0) > 0 || qk_nbd_wire_is_lost(w);
}

/* A connection that came later has the same disk, or is not used. Where the first one is at its end, a server that was begun
 * since may have accepted this one: it knows nothing of what was not flushed. */
static void come_up(struct qk_nbd_wire *w)
{
	if (w->lib->aio_is_ready(w->nbd) <= 0)
		return;
	bool is_same = w->lib->get_size(w->nbd) == (int64_t)w->size &&
		       (w->first == NULL || !is_ended(w->first));
	atomic_store(is_same ? &w->is_up : &w->ends, true);
}

static void *run(void *ctx)
{
	struct qk_nbd_wire *w = ctx;
	while (!atomic_load(&w->ends) && qk_nbd_wire_turn(w, -1) == QK_NBD_TURNED)
		if (!atomic_load(&w->is_up))
			come_up(w);
	atomic_store(&w->is_up, false); /* the next call takes another */
	return NULL;
}

enum qcow_status qk_nbd_wire_start(struct qk_nbd_wire *w, struct qcow_error *err)
{
	w->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->kick < 0)
		return QK_FAIL_OS(err, errno, "no descriptor to wake the connection's thread");
	int error = pthread_create(&w->thread, NULL, run, w);
	w->has_thread = error == 0;
	if (error == 0)
		return QCOW_OK;
	(void)close(w->kick);
	w->kick = -1;
	return QK_FAIL_OS(err, error, "no thread for the connection");
}

/* Nothing is under way: say that no more comes. Whether a silent server heard it does not matter. */
static void say_farewell(struct qk_nbd_wire *w, int64_t deadline_ms)
{
	int64_t left = deadline_ms - qk_nbd_clock_ms();
	if (w->lib->aio_is_ready(w->nbd) <= 0 || w->lib->aio_disconnect(w->nbd, 0) != 0)
		return;
	while (left > 0 && !qk_nbd_wire_is_lost(w) &&
		qk_nbd_wire_turn(w, (int)left) == QK_NBD_TURNED)
		left = deadline_ms - qk_nbd_clock_ms();
}

int64_t qk_nbd_farewell_ms(void)
{
	return qk_nbd_clock_ms() + FAREWELL_MS;
}

void qk_nbd_wire_end(struct qk_nbd_wire *w, int64_t deadline_ms)
{
	if (w->has_thread) {
		atomic_store(&w->ends, true);
		qk_nbd_wire_kick(w);
		(void)pthread_join(w->thread, NULL);
		(void)close(w->kick);
		w->kick = -1;
	}
	if (w->nbd != NULL) {
		say_farewell(w, deadline_ms);
		w->lib->close(w->nbd);
	}
	w->nbd = NULL;
	w->has_thread = false;
	atomic_store(&w->ends, false);
	atomic_store(&w->is_up, false);
}
