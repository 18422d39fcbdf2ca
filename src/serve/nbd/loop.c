/* SPDX-License-Identifier: MIT */
/*
 * loop: a thread that waits for its connections' descriptors and for what workers hand back (see core.h).
 */
#include "serve/nbd/core.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"

#define EVENTS	64
#define TICK_MS 100
#define TICK_NS (UINT64_C(1000000) * TICK_MS)
/* Failures are told of as seldom as this. */
#define TELL_NS UINT64_C(1000000000)

uint64_t qk_nbd_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

void qk_nbd_log(
	const struct qk_nbd_server *server, enum qk_nbd_log_level level, const char *fmt, ...)
{
	char text[512];
	va_list args;
	if (server->options.log == NULL)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	server->options.log(server->options.ctx, level, text);
}

/* ---- from other threads ---- */

/* With the lock: does somebody have to write the eventfd? */
static bool wake_locked(struct qk_nbd_loop *loop)
{
	bool is_first = !loop->is_woken;
	loop->is_woken = true;
	return is_first;
}

static void ring(struct qk_nbd_loop *loop, bool is_first)
{
	uint64_t one = 1;
	if (is_first && write(loop->event, &one, sizeof(one)) < 0)
		return; /* it counts already */
}

void qk_nbd_loop_wake(struct qk_nbd_loop *loop)
{
	pthread_mutex_lock(&loop->lock);
	bool is_first = wake_locked(loop);
	pthread_mutex_unlock(&loop->lock);
	ring(loop, is_first);
}

void qk_nbd_loop_done(struct qk_nbd_job *job)
{
	struct qk_nbd_conn *conn = job->conn;
	struct qk_nbd_loop *loop = conn->loop;
	job->next = NULL;
	pthread_mutex_lock(&loop->lock);
	if (conn->done_last != NULL)
		conn->done_last->next = job;
	else
		conn->done_first = job;
	conn->done_last = job;
	if (!conn->is_ready) {
		conn->is_ready = true;
		conn->next_ready = loop->ready;
		loop->ready = conn;
	}
	bool is_first = wake_locked(loop);
	pthread_mutex_unlock(&loop->lock);
	ring(loop, is_first);
}

/* ---- the loop's own ---- */

enum qcow_status qk_nbd_loop_watch(struct qk_nbd_loop *loop, int fd, uint32_t events,
	struct qk_nbd_source *source, struct qcow_error *err)
{
	struct epoll_event event = {.events = events, .data.ptr = source};
	if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
		return QK_FAIL_OS(err, errno, "waiting for a descriptor");
	return QCOW_OK;
}

void qk_nbd_loop_again(struct qk_nbd_conn *conn)
{
	if (conn->is_again)
		return;
	conn->is_again = true;
	conn->next_again = conn->loop->again;
	conn->loop->again = conn;
}

void qk_nbd_loop_count(struct qk_nbd_conn *conn, const struct qk_nbd_request *rq, bool failed)
{
	static const uint8_t kinds[] = {QK_NBD_COUNT_READ, QK_NBD_COUNT_WRITE, QK_NBD_COUNTS,
		QK_NBD_COUNT_FLUSH, QK_NBD_COUNT_TRIM, QK_NBD_COUNT_CACHE, QK_NBD_COUNT_ZERO,
		QK_NBD_COUNT_STATUS};
	unsigned kind = rq->type < sizeof(kinds) ? kinds[rq->type] : QK_NBD_COUNTS;
	atomic_fetch_add_explicit(&conn->n_requests, 1, memory_order_relaxed);
	if (kind == QK_NBD_COUNTS)
		return;
	struct qk_nbd_loop *loop = conn->loop;
	atomic_fetch_add_explicit(&loop->counts[kind].requests, 1, memory_order_relaxed);
	if (failed)
		atomic_fetch_add_explicit(&loop->counts[kind].errors, 1, memory_order_relaxed);
	else
		atomic_fetch_add_explicit(&loop->counts[kind].bytes, rq->len, memory_order_relaxed);
}

void qk_nbd_loop_count_job(struct qk_nbd_conn *conn, const struct qk_nbd_job *job)
{
	struct qk_nbd_loop *loop = conn->loop;
	qk_nbd_loop_count(conn, &job->rq, job->error != QK_NBD_OK);
	uint64_t now = job->why != NULL ? qk_nbd_now() : 0;
	if (now == 0 || (loop->told_at != 0 && now - loop->told_at < TELL_NS))
		return;
	loop->told_at = now;
	qk_nbd_log(loop->server, QK_NBD_LOG_WARNING,
		"a request of client %" PRIu64 " (%s) failed: %s", conn->id, conn->peer, job->why);
}

static void add_conn(struct qk_nbd_loop *loop, struct qk_nbd_conn *conn)
{
	pthread_mutex_lock(&loop->lock);
	conn->next = loop->conns;
	if (conn->next != NULL)
		conn->next->prev = conn;
	loop->conns = conn;
	pthread_mutex_unlock(&loop->lock);
	qk_nbd_conn_begin(conn);
}

static void remove_conn(struct qk_nbd_loop *loop, struct qk_nbd_conn *conn)
{
	struct qk_nbd_server *server = loop->server;
	bool was_served = conn->was_served;
	pthread_mutex_lock(&loop->lock);
	if (conn->prev != NULL)
		conn->prev->next = conn->next;
	else
		loop->conns = conn->next;
	if (conn->next != NULL)
		conn->next->prev = conn->prev;
	pthread_mutex_unlock(&loop->lock);
	atomic_fetch_sub(&loop->n_conns, 1);
	if (!was_served)
		atomic_fetch_add_explicit(&loop->failed_handshakes, 1, memory_order_relaxed);
	qk_nbd_conn_free(conn);
	unsigned n_open = atomic_fetch_sub(&server->n_open, 1) - 1;
	if (server->options.on_connection != NULL)
		server->options.on_connection(server->options.ctx, n_open, false, was_served);
}

/* Free the dead whose jobs are back. */
static void reap(struct qk_nbd_loop *loop)
{
	struct qk_nbd_conn *next = NULL;
	if (!loop->has_dead)
		return;
	loop->has_dead = false;
	for (struct qk_nbd_conn *conn = loop->conns; conn != NULL; conn = next) {
		next = conn->next;
		if (atomic_load(&conn->phase) == QK_NBD_PHASE_DEAD && conn->n_jobs == 0 &&
			!conn->is_again)
			remove_conn(loop, conn);
	}
}

/* A file: nobody tells that there is more, and what was kept may lack its end. */
static bool needs_more(const struct qk_nbd_conn *conn)
{
	return conn->is_file && conn->n_stash - conn->stash_at <= QK_NBD_RX_BYTES / 2;
}

static void run_again(struct qk_nbd_loop *loop)
{
	struct qk_nbd_conn *conn = loop->again;
	loop->again = NULL;
	while (conn != NULL) {
		struct qk_nbd_conn *next = conn->next_again;
		conn->is_again = false;
		if (atomic_load(&conn->phase) == QK_NBD_PHASE_DEAD) {
			loop->has_dead = true;
		} else if ((conn->stash != NULL && !needs_more(conn)) || conn->is_paused ||
			   conn->has_eof) {
			qk_nbd_conn_parse(conn);
		} else {
			qk_nbd_conn_receive(conn);
		}
		conn = next;
	}
}

/* What was put down for the loop by others. */
struct mail {
	struct qk_nbd_conn *arrivals, *ready;
	bool is_purge;
};

static struct mail take_mail(struct qk_nbd_loop *loop)
{
	uint64_t count = 0;
	if (read(loop->event, &count, sizeof(count)) < 0)
		count = 0;
	pthread_mutex_lock(&loop->lock);
	struct mail mail = {loop->arrivals, loop->ready, loop->is_purge};
	loop->arrivals = loop->ready = NULL;
	loop->is_purge = loop->is_woken = false;
	pthread_mutex_unlock(&loop->lock);
	return mail;
}

static void run_ready(struct qk_nbd_loop *loop, struct qk_nbd_conn *conn)
{
	while (conn != NULL) {
		struct qk_nbd_conn *next = conn->next_ready;
		pthread_mutex_lock(&loop->lock);
		struct qk_nbd_job *done = conn->done_first;
		conn->done_first = conn->done_last = NULL;
		conn->is_ready = false;
		pthread_mutex_unlock(&loop->lock);
		qk_nbd_conn_ready(conn, done);
		conn = next;
	}
}

static void run_arrivals(struct qk_nbd_loop *loop, struct qk_nbd_conn *conn)
{
	while (conn != NULL) {
		struct qk_nbd_conn *next = conn->next;
		conn->next = NULL;
		add_conn(loop, conn);
		if (loop->is_ending)
			qk_nbd_conn_close(conn, NULL);
		conn = next;
	}
}

/* Exports were taken away, or rest: their connections end, and handshakes forget those that are gone. */
static void purge(struct qk_nbd_loop *loop)
{
	for (struct qk_nbd_conn *conn = loop->conns; conn != NULL; conn = conn->next) {
		struct qk_nbd_session *session = &conn->session;
		if (session->node != NULL && (atomic_load(&session->node->is_removed) ||
						     atomic_load(&session->node->is_resting)))
			qk_nbd_conn_close(conn, NULL);
		else if (session->node == NULL && session->meta_node != NULL &&
			 atomic_load(&session->meta_node->is_removed))
			qk_nbd_contexts_release(session, &loop->server->registry);
	}
}

static void run_mail(struct qk_nbd_loop *loop)
{
	struct mail mail = take_mail(loop);
	run_arrivals(loop, mail.arrivals);
	run_ready(loop, mail.ready);
	if (mail.is_purge)
		purge(loop);
}

/* ---- clients that come ---- */

static void watch_listeners(struct qk_nbd_loop *loop, uint32_t events)
{
	pthread_mutex_lock(&loop->lock);
	for (struct qk_nbd_listener *l = loop->server->listeners; l != NULL; l = l->next) {
		struct epoll_event event = {.events = events, .data.ptr = &l->source};
		(void)epoll_ctl(loop->epoll, EPOLL_CTL_MOD, l->fd, &event);
	}
	pthread_mutex_unlock(&loop->lock);
}

/* Out of descriptors or memory: leave those who knock alone for a moment. */
static void rest(struct qk_nbd_loop *loop)
{
	uint64_t now = qk_nbd_now();
	if (loop->told_short_at == 0 || now - loop->told_short_at >= 10 * TELL_NS) {
		qk_nbd_log(loop->server, QK_NBD_LOG_WARNING, "cannot accept clients: %s",
			strerror(errno));
		loop->told_short_at = now;
	}
	watch_listeners(loop, 0);
	loop->accept_again = now + TICK_NS;
	loop->is_timed = true;
}

static void accept_clients(struct qk_nbd_loop *loop, const struct qk_nbd_listener *listener)
{
	for (int i = 0; i < EVENTS && !loop->is_ending; i++) {
		int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		bool is_short = fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
						  errno == ENOMEM);
		if (is_short)
			rest(loop);
		if (fd < 0 && (is_short || errno == EAGAIN))
			return;
		if (fd >= 0 && qk_nbd_server_connect(loop->server, fd, fd, NULL) != QCOW_OK)
			close(fd);
	}
}

/* ---- the thread ---- */

static void tick(struct qk_nbd_loop *loop, uint64_t now)
{
	struct qk_nbd_conn *next = NULL;
	loop->ticked_at = now;
	loop->is_timed = loop->is_ending;
	if (loop->accept_again != 0 && now >= loop->accept_again) {
		loop->accept_again = 0;
		watch_listeners(loop, EPOLLIN);
	}
	loop->is_timed |= loop->accept_again != 0;
	for (struct qk_nbd_conn *conn = loop->conns; conn != NULL; conn = next) {
		next = conn->next;
		qk_nbd_conn_tick(conn, now);
		enum qk_nbd_phase phase = atomic_load(&conn->phase);
		loop->is_timed |= phase != QK_NBD_PHASE_TRANSMISSION && phase != QK_NBD_PHASE_DEAD;
	}
}

static void begin_end(struct qk_nbd_loop *loop)
{
	struct qk_nbd_conn *next = NULL;
	loop->is_ending = true;
	loop->is_timed = true;
	if (loop == &loop->server->loops[0])
		watch_listeners(loop, 0);
	for (struct qk_nbd_conn *conn = loop->conns; conn != NULL; conn = next) {
		next = conn->next;
		qk_nbd_conn_stop(conn);
	}
}

static void dispatch(struct qk_nbd_loop *loop, const struct epoll_event *event)
{
	struct qk_nbd_source *source = event->data.ptr;
	switch (source->kind) {
	case QK_NBD_SOURCE_WAKE:
		run_mail(loop);
		break;
	case QK_NBD_SOURCE_LISTENER:
		accept_clients(loop, (const struct qk_nbd_listener *)(const void *)source);
		break;
	default:
		qk_nbd_conn_event((struct qk_nbd_conn *)(void *)source, event->events);
	}
}

static bool is_over(struct qk_nbd_loop *loop)
{
	if (!loop->is_ending || loop->conns != NULL)
		return false;
	pthread_mutex_lock(&loop->lock);
	bool is_empty = loop->arrivals == NULL;
	pthread_mutex_unlock(&loop->lock);
	return is_empty;
}

static void *run(void *arg)
{
	struct qk_nbd_loop *loop = arg;
	struct epoll_event events[EVENTS];
	while (!is_over(loop)) {
		int timeout = loop->again != NULL ? 0 : loop->is_timed ? TICK_MS : -1;
		int n = epoll_wait(loop->epoll, events, EVENTS, timeout);
		for (int i = 0; i < n; i++)
			dispatch(loop, &events[i]);
		if (!loop->is_ending && atomic_load(&loop->server->is_stopping))
			begin_end(loop);
		run_again(loop);
		uint64_t now = loop->is_timed ? qk_nbd_now() : 0;
		if (loop->is_timed && now - loop->ticked_at >= TICK_NS)
			tick(loop, now);
		reap(loop);
	}
	return NULL;
}

enum qcow_status qk_nbd_loop_init(
	struct qk_nbd_loop *loop, struct qk_nbd_server *server, struct qcow_error *err)
{
	loop->source.kind = QK_NBD_SOURCE_WAKE;
	loop->server = server;
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	loop->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	loop->rx = qk_malloc(QK_NBD_RX_BYTES, 1);
	pthread_mutex_init(&loop->lock, NULL);
	if (loop->epoll < 0 || loop->event < 0)
		return QK_FAIL_OS(err, errno, "making an event loop");
	if (loop->rx == NULL)
		return QK_FAIL_NOMEM(err);
	return qk_nbd_loop_watch(loop, loop->event, EPOLLIN, &loop->source, err);
}

enum qcow_status qk_nbd_loop_start(struct qk_nbd_loop *loop, struct qcow_error *err)
{
	int failed = pthread_create(&loop->thread, NULL, run, loop);
	if (failed != 0)
		return QK_FAIL_OS(err, failed, "making a thread");
	loop->has_thread = true;
	return QCOW_OK;
}

void qk_nbd_loop_release(struct qk_nbd_loop *loop)
{
	/* those that no thread ever served */
	while (loop->arrivals != NULL) {
		struct qk_nbd_conn *conn = loop->arrivals;
		loop->arrivals = conn->next;
		if (conn->out_fd != conn->in_fd)
			close(conn->out_fd);
		close(conn->in_fd);
		qk_nbd_conn_free(conn);
	}
	if (loop->spare_slab != NULL)
		free(loop->spare_slab->data);
	free(loop->spare_slab);
	for (size_t i = 0; i < sizeof(loop->spares) / sizeof(loop->spares[0]); i++)
		free(loop->spares[i].p);
	free(loop->rx);
	if (loop->epoll >= 0)
		close(loop->epoll);
	if (loop->event >= 0)
		close(loop->event);
	pthread_mutex_destroy(&loop->lock);
}
