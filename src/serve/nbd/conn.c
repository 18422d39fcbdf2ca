/* SPDX-License-Identifier: MIT */
/*
 * conn: the life of a connection: handshake, TLS, transmission, draining, its end (see core.h).
 */
#include "serve/nbd/core.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"

#define MS_NS UINT64_C(1000000)

static enum qk_nbd_phase phase_of(const struct qk_nbd_conn *conn)
{
	return atomic_load_explicit(&conn->phase, memory_order_relaxed);
}

static void set_phase(struct qk_nbd_conn *conn, enum qk_nbd_phase phase)
{
	atomic_store_explicit(&conn->phase, phase, memory_order_release);
	if (phase != QK_NBD_PHASE_TRANSMISSION)
		conn->loop->is_timed = true;
}

/* ---- begin ---- */

static void name_peer(struct qk_nbd_conn *conn)
{
	struct sockaddr_storage a = {0};
	socklen_t n = sizeof(a);
	char host[48], port[8];
	int one = 1;
	snprintf(conn->peer, sizeof(conn->peer), conn->is_socket ? "unix" : "pipe");
	if (!conn->is_socket || getpeername(conn->in_fd, (struct sockaddr *)&a, &n) != 0)
		return;
	conn->is_local = a.ss_family == AF_UNIX;
	if (a.ss_family != AF_INET && a.ss_family != AF_INET6)
		return;
	(void)setsockopt(conn->in_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	(void)setsockopt(conn->in_fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	if (getnameinfo((struct sockaddr *)&a, n, host, sizeof(host), port, sizeof(port),
		    NI_NUMERICHOST | NI_NUMERICSERV) == 0)
		snprintf(conn->peer, sizeof(conn->peer),
			a.ss_family == AF_INET ? "%s:%s" : "[%s]:%s", host, port);
}

static bool set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

enum qcow_status qk_nbd_conn_new(struct qk_nbd_server *server, int in_fd, int out_fd,
	struct qk_nbd_conn **out, struct qcow_error *err)
{
	struct stat st;
	if (!set_nonblocking(in_fd) || !set_nonblocking(out_fd))
		return QK_FAIL_OS(err, errno, "a client's descriptor");
	struct qk_nbd_conn *conn = qk_calloc(1, sizeof(*conn));
	if (conn == NULL)
		return QK_FAIL_NOMEM(err);
	conn->source.kind = QK_NBD_SOURCE_CONN;
	conn->server = server;
	conn->id = atomic_fetch_add(&server->next_id, 1) + 1;
	conn->in_fd = in_fd;
	conn->out_fd = out_fd;
	conn->is_socket = in_fd == out_fd && fstat(in_fd, &st) == 0 && S_ISSOCK(st.st_mode);
	conn->session.min_block = 1;
	conn->session.max_block = QK_NBD_MAX_PAYLOAD;
	conn->handshake = (struct qk_nbd_handshake){.registry = &server->registry,
		.session = &conn->session,
		.tls = server->options.tls,
		.is_stopping = &server->is_stopping};
	name_peer(conn);
	*out = conn;
	return QCOW_OK;
}

/* ---- what epoll watches for ---- */

static void watch(struct qk_nbd_conn *conn, int fd, uint32_t *armed, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = &conn->source};
	int op = EPOLL_CTL_MOD;
	if (*armed == events || phase_of(conn) == QK_NBD_PHASE_DEAD)
		return;
	if (events == 0)
		op = EPOLL_CTL_DEL;
	else if (*armed == 0)
		op = EPOLL_CTL_ADD;
	*armed = events;
	if (epoll_ctl(conn->loop->epoll, op, fd, &event) == 0)
		return;
	*armed = 0;
	conn->is_file = errno == EPERM && fd == conn->in_fd;
	if (!conn->is_file)
		qk_nbd_conn_close(conn, "its descriptor cannot be watched");
}

static void arm(struct qk_nbd_conn *conn)
{
	bool wants_in = phase_of(conn) <= QK_NBD_PHASE_TRANSMISSION && !conn->is_paused &&
			!conn->has_eof;
	uint32_t in = wants_in ? EPOLLIN : 0, out = conn->wants_out ? EPOLLOUT : 0;
	if (conn->in_fd == conn->out_fd) {
		watch(conn, conn->in_fd, &conn->in_armed, in | out);
		return;
	}
	if (!conn->is_file)
		watch(conn, conn->in_fd, &conn->in_armed, in);
	if (conn->is_file && in != 0)
		qk_nbd_loop_again(conn);
	watch(conn, conn->out_fd, &conn->out_armed, out);
}

/* ---- handshake ---- */

static void send_greeting(struct qk_nbd_conn *conn)
{
	uint8_t *p = qk_nbd_send_room(conn, QK_NBD_GREETING_BYTES);
	if (p == NULL) {
		qk_nbd_conn_close(conn, "no memory");
		return;
	}
	qk_nbd_put_greeting(p);
	qk_nbd_send_room_done(conn, QK_NBD_GREETING_BYTES);
	qk_nbd_conn_settle(conn);
}

void qk_nbd_conn_begin(struct qk_nbd_conn *conn)
{
	conn->deadline = qk_nbd_now() + conn->server->options.handshake_ms * MS_NS;
	set_phase(conn, QK_NBD_PHASE_HANDSHAKE);
	send_greeting(conn);
}

/* `out` becomes a reply of the queue, and is empty. */
static bool send_buffer(struct qk_nbd_conn *conn, struct qk_nbd_buf *out)
{
	if (out->n == 0 && !out->bad)
		return true;
	struct qk_nbd_job *job = out->bad ? NULL
					  : qk_nbd_job_new(conn, &(struct qk_nbd_request){0});
	if (job == NULL) {
		qk_nbd_buf_free(out);
		qk_nbd_conn_close(conn, "no memory");
		return false;
	}
	job->more = *out;
	job->n_iov = 1;
	job->iov[0] = (struct iovec){job->more.p, job->more.n};
	qk_nbd_send_job(conn, job);
	return true;
}

static void enter_transmission(struct qk_nbd_conn *conn)
{
	conn->deadline = 0;
	conn->was_served = true;
	set_phase(conn, QK_NBD_PHASE_TRANSMISSION);
	qk_nbd_log(conn->server, QK_NBD_LOG_DEBUG, "client %" PRIu64 " (%s) uses export '%s'",
		conn->id, conn->peer, conn->session.node->name);
}

size_t qk_nbd_conn_shake(struct qk_nbd_conn *conn, const uint8_t *p, size_t n)
{
	struct qk_nbd_buf out = {0};
	size_t used = 0;
	conn->is_paused = conn->tx_bytes > QK_NBD_SLAB_BYTES;
	if (conn->is_paused)
		return 0;
	enum qk_nbd_step step = qk_nbd_handshake_step(&conn->handshake, p, n, &used, &out);
	if (!send_buffer(conn, &out))
		return 0;
	switch (step) {
	case QK_NBD_STEP_TLS:
		/* what is behind the option was not said by the one who will prove who it is */
		if (used != n)
			qk_nbd_conn_close(conn, "bytes behind STARTTLS");
		else
			set_phase(conn, QK_NBD_PHASE_TLS);
		break;
	case QK_NBD_STEP_TRANSMIT:
		enter_transmission(conn);
		break;
	case QK_NBD_STEP_CLOSE:
		qk_nbd_log(conn->server, QK_NBD_LOG_NOTE, "client %" PRIu64 " (%s): %s", conn->id,
			conn->peer, conn->handshake.broken);
		qk_nbd_conn_drain(conn);
		break;
	case QK_NBD_STEP_ABORT:
		conn->was_served = true;
		qk_nbd_conn_drain(conn);
		break;
	default:
		break;
	}
	return used;
}

/* ---- TLS ---- */

static void tls_step(struct qk_nbd_conn *conn)
{
	const char *why = NULL;
	int done = qk_nbd_tls_handshake(conn->tls, &conn->wants_out, &why);
	if (done < 0) {
		qk_nbd_log(conn->server, QK_NBD_LOG_NOTE, "client %" PRIu64 " (%s): TLS: %s",
			conn->id, conn->peer, why);
		qk_nbd_conn_close(conn, NULL);
		return;
	}
	if (done > 0) {
		conn->wants_out = false;
		conn->session.is_tls = true;
		set_phase(conn, QK_NBD_PHASE_HANDSHAKE);
		if (qk_nbd_io_has_more(conn))
			qk_nbd_loop_again(conn);
	}
	arm(conn);
}

static void begin_tls(struct qk_nbd_conn *conn)
{
	conn->tls = qk_nbd_tls_new(conn->server->tls, conn->in_fd, conn->out_fd);
	if (conn->tls == NULL)
		qk_nbd_conn_close(conn, "no memory");
	else
		tls_step(conn);
}

/* ---- events ---- */

void qk_nbd_conn_settle(struct qk_nbd_conn *conn)
{
	if (phase_of(conn) == QK_NBD_PHASE_DEAD)
		return;
	if (conn->tx_first != NULL && !conn->wants_out && !qk_nbd_send(conn))
		return;
	bool is_sent = conn->tx_first == NULL;
	if (is_sent && phase_of(conn) == QK_NBD_PHASE_TLS && conn->tls == NULL) {
		begin_tls(conn);
		return;
	}
	if (is_sent && phase_of(conn) == QK_NBD_PHASE_DRAIN && conn->n_jobs == 0) {
		qk_nbd_conn_close(conn, NULL);
		return;
	}
	/* it waits for its own replies only, and they are out */
	if (conn->is_paused && is_sent && conn->n_jobs == 0)
		qk_nbd_loop_again(conn);
	if (!conn->is_paused && !conn->has_eof && qk_nbd_io_has_more(conn))
		qk_nbd_loop_again(conn);
	arm(conn);
}

void qk_nbd_conn_event(struct qk_nbd_conn *conn, uint32_t events)
{
	if (phase_of(conn) == QK_NBD_PHASE_DEAD)
		return;
	if (phase_of(conn) == QK_NBD_PHASE_TLS && conn->tls != NULL) {
		tls_step(conn);
		return;
	}
	if (!conn->is_socket && (events & EPOLLERR) != 0) {
		qk_nbd_conn_close(conn, NULL);
		return;
	}
	if (conn->wants_out && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0) {
		if (!qk_nbd_send(conn))
			return;
		if (conn->is_paused && !conn->wants_out)
			qk_nbd_loop_again(conn);
	}
	if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
		qk_nbd_conn_receive(conn);
	qk_nbd_conn_settle(conn);
}

void qk_nbd_conn_ready(struct qk_nbd_conn *conn, struct qk_nbd_job *done)
{
	while (done != NULL) {
		struct qk_nbd_job *job = done;
		done = job->next;
		conn->n_jobs--;
		if (phase_of(conn) == QK_NBD_PHASE_DEAD)
			qk_nbd_job_free(job);
		else
			qk_nbd_conn_deliver(conn, job);
	}
	if (phase_of(conn) == QK_NBD_PHASE_DEAD)
		conn->loop->has_dead = true;
	else if (conn->is_paused)
		qk_nbd_conn_parse(conn);
	else
		qk_nbd_conn_settle(conn);
}

/* ---- limits and the end ---- */

/* It drains, and takes no reply for too long. */
static bool is_stuck(struct qk_nbd_conn *conn, uint64_t now)
{
	uint64_t sent = atomic_load(&conn->bytes_out);
	bool is_watched = phase_of(conn) == QK_NBD_PHASE_DRAIN && conn->wants_out;
	if (!is_watched || conn->stuck_at == 0 || sent != conn->stuck_bytes) {
		conn->stuck_at = is_watched ? now : 0;
		conn->stuck_bytes = sent;
	}
	return is_watched && now - conn->stuck_at >= conn->server->options.stall_ms * MS_NS;
}

void qk_nbd_conn_tick(struct qk_nbd_conn *conn, uint64_t now)
{
	uint64_t stop_at = atomic_load(&conn->server->stop_at);
	if (phase_of(conn) == QK_NBD_PHASE_DEAD)
		return;
	if (atomic_load(&conn->is_cut) || (stop_at != 0 && now >= stop_at))
		qk_nbd_conn_close(conn, NULL);
	else if (conn->deadline != 0 && now >= conn->deadline && phase_of(conn) <= QK_NBD_PHASE_TLS)
		qk_nbd_conn_close(conn, "the handshake took too long");
	else if (is_stuck(conn, now))
		qk_nbd_conn_close(conn, "it takes no replies");
}

void qk_nbd_conn_stop(struct qk_nbd_conn *conn)
{
	if (phase_of(conn) <= QK_NBD_PHASE_TLS) {
		qk_nbd_conn_close(conn, NULL);
		return;
	}
	qk_nbd_conn_receive(conn);
	if (phase_of(conn) == QK_NBD_PHASE_DEAD)
		return;
	conn->has_eof = true;
	if (conn->filling != NULL)
		qk_nbd_job_free(conn->filling);
	conn->filling = NULL;
	if (!conn->is_paused && !conn->is_again)
		qk_nbd_conn_drain(conn);
	qk_nbd_conn_settle(conn);
}

void qk_nbd_conn_drain(struct qk_nbd_conn *conn)
{
	if (phase_of(conn) < QK_NBD_PHASE_DRAIN)
		set_phase(conn, QK_NBD_PHASE_DRAIN);
}

/* A copy of a descriptor in another process would keep it watched. */
static void forget(struct qk_nbd_conn *conn)
{
	if (conn->in_armed != 0)
		(void)epoll_ctl(conn->loop->epoll, EPOLL_CTL_DEL, conn->in_fd, NULL);
	if (conn->out_armed != 0)
		(void)epoll_ctl(conn->loop->epoll, EPOLL_CTL_DEL, conn->out_fd, NULL);
	conn->in_armed = conn->out_armed = 0;
}

void qk_nbd_conn_close(struct qk_nbd_conn *conn, const char *why)
{
	if (phase_of(conn) == QK_NBD_PHASE_DEAD)
		return;
	if (why != NULL) {
		qk_nbd_log(conn->server, QK_NBD_LOG_NOTE, "client %" PRIu64 " (%s) is closed: %s",
			conn->id, conn->peer, why);
		atomic_fetch_add_explicit(&conn->loop->cut, 1, memory_order_relaxed);
	}
	bool is_clean = phase_of(conn) == QK_NBD_PHASE_DRAIN;
	set_phase(conn, QK_NBD_PHASE_DEAD);
	conn->loop->has_dead = true;
	qk_nbd_tls_free(conn->tls, is_clean);
	conn->tls = NULL;
	qk_nbd_job_free(conn->filling);
	conn->filling = NULL;
	qk_nbd_send_drop(conn);
	conn->wants_out = false;
	forget(conn);
	if (conn->out_fd != conn->in_fd)
		close(conn->out_fd);
	close(conn->in_fd);
	conn->in_fd = conn->out_fd = -1;
	/* who waits at the gate for this client need not */
	atomic_store(&conn->is_cut, true);
	qk_view_gate_wake(&conn->server->registry.gate);
}

void qk_nbd_conn_free(struct qk_nbd_conn *conn)
{
	qk_nbd_session_release(&conn->session, &conn->server->registry);
	free(conn->stash);
	free(conn);
}
