/* SPDX-License-Identifier: MIT */
/*
 * receive: what a client sends, request by request (see core.h). What can be answered without waiting for a disk is answered
 * here, the rest becomes a worker's job.
 */
#include "serve/nbd/core.h"

#include <errno.h>

#include "base/err.h"

/* After so many requests the loop's other connections have their turn. */
#define TURN 256U
/* A reply that goes into a slab; a request that a loop carries out itself. */
#define SLAB_READ ((uint64_t)64 << 10)
#define AT_ONCE	  ((uint64_t)1 << 20)
/* Replies that a client lets lie before no more of its requests are looked at. */
#define TX_LIMIT ((size_t)1 << 20)
/* Replies of this much are not kept for those that come: the client has work meanwhile, and they are still in the cache. */
#define SEND_EARLY ((size_t)256 << 10)
/* A call that took this long shows that the store has to be waited for. */
#define SLOW_NS UINT64_C(1000000)

/* ---- at once ---- */

/* May the loop itself call what may have to wait? Until a call was slow; then workers do it for eight times as long. */
static bool is_fast(const struct qk_nbd_node *node, uint64_t now)
{
	return now >= atomic_load_explicit(&node->slow_until, memory_order_relaxed);
}

static void took(struct qk_nbd_node *node, uint64_t begin)
{
	uint64_t end = qk_nbd_now();
	if (QK_UNLIKELY(end - begin > SLOW_NS))
		atomic_store_explicit(
			&node->slow_until, end + 8 * (end - begin), memory_order_relaxed);
}

static bool read_at_once(struct qk_nbd_conn *conn, const struct qk_nbd_request *rq)
{
	const struct qk_nbd_node *node = conn->session.node;
	if (rq->len == 0 || rq->len > SLAB_READ || node->ops->pread_nowait == NULL)
		return false;
	size_t head = qk_nbd_read_head_bytes(conn->session.mode);
	uint8_t *out = qk_nbd_send_room(conn, head + rq->len);
	if (out == NULL || !qk_view_gate_try(&conn->server->registry.gate))
		return false;
	size_t n = qk_nbd_read_now(&conn->session, rq, out);
	qk_view_gate_leave(&conn->server->registry.gate);
	qk_nbd_send_room_done(conn, n);
	return n != 0;
}

/* A write whose payload lies in the receive buffer. One that fails is a worker's to repeat, and to tell of. */
static bool write_at_once(
	struct qk_nbd_conn *conn, const struct qk_nbd_request *rq, const uint8_t *payload)
{
	struct qk_nbd_node *node = conn->session.node;
	uint64_t begin = qk_nbd_now();
	if ((rq->flags & QK_NBD_CMD_FLAG_FUA) != 0 || rq->len == 0 || !is_fast(node, begin) ||
		!qk_in_range(rq->off, rq->len, atomic_load(&node->size)))
		return false;
	uint8_t *out = qk_nbd_send_room(conn, QK_NBD_EXT_REPLY_BYTES);
	if (out == NULL || !qk_view_gate_try(&conn->server->registry.gate))
		return false;
	enum qcow_status status = node->ops->pwrite(
		node->ctx, payload, (size_t)rq->len, rq->off, 0, NULL);
	qk_view_gate_leave(&conn->server->registry.gate);
	took(node, begin);
	if (status == QCOW_OK)
		qk_nbd_send_room_done(conn, qk_nbd_put_done(conn->session.mode, rq, out));
	return status == QCOW_OK;
}

static bool at_once(
	struct qk_nbd_conn *conn, const struct qk_nbd_request *rq, const uint8_t *payload, size_t n)
{
	bool is_done = false;
	if (rq->type == QK_NBD_CMD_READ)
		is_done = read_at_once(conn, rq);
	else if (rq->type == QK_NBD_CMD_WRITE && n >= rq->len)
		is_done = write_at_once(conn, rq, payload);
	if (is_done) {
		atomic_fetch_add_explicit(&conn->loop->at_once, 1, memory_order_relaxed);
		qk_nbd_loop_count(conn, rq, false);
	}
	return is_done;
}

/* ---- jobs ---- */

/* A whole job that the loop carries out itself. */
static bool run_here(struct qk_nbd_conn *conn, struct qk_nbd_job *job)
{
	struct qk_nbd_node *node = conn->session.node;
	const struct qk_nbd_request *rq = &job->rq;
	uint64_t begin = qk_nbd_now();
	bool is_write = rq->type == QK_NBD_CMD_WRITE && (rq->flags & QK_NBD_CMD_FLAG_FUA) == 0 &&
			is_fast(node, begin);
	bool is_done = job->error != QK_NBD_OK;
	if (is_done) {
		qk_nbd_execute(job);
	} else if (job->n_data <= AT_ONCE && (is_write || rq->type == QK_NBD_CMD_READ) &&
		   qk_view_gate_try(&conn->server->registry.gate)) {
		is_done = is_write || qk_nbd_execute_now(job);
		if (is_write)
			qk_nbd_execute(job);
		qk_view_gate_leave(&conn->server->registry.gate);
		took(node, begin);
		if (is_done)
			atomic_fetch_add_explicit(&conn->loop->at_once, 1, memory_order_relaxed);
	}
	return is_done;
}

void qk_nbd_conn_deliver(struct qk_nbd_conn *conn, struct qk_nbd_job *job)
{
	if (job->is_part) {
		qk_nbd_parts_done(conn, job);
		return;
	}
	qk_nbd_loop_count_job(conn, job);
	qk_nbd_send_job(conn, job);
}

void qk_nbd_conn_launch(struct qk_nbd_conn *conn, struct qk_nbd_job *job)
{
	if (run_here(conn, job)) {
		qk_nbd_conn_deliver(conn, job);
	} else {
		conn->n_jobs++;
		qk_nbd_pool_add(&conn->server->pool, job);
	}
}

static bool is_crowded(const struct qk_nbd_conn *conn)
{
	return conn->n_jobs >= QK_NBD_CONN_JOBS || (conn->wants_out && conn->tx_bytes > TX_LIMIT);
}

/* A job with room for its data; NULL: not now. */
static struct qk_nbd_job *new_job(
	struct qk_nbd_conn *conn, const struct qk_nbd_request *rq, const struct qk_nbd_judgement *j)
{
	size_t n = j->payload;
	if (j->verdict == QK_NBD_REFUSE)
		n = 0;
	else if (rq->type == QK_NBD_CMD_READ)
		n = (size_t)rq->len;
	uint64_t bytes = sizeof(struct qk_nbd_job) + n;
	if (rq->type == QK_NBD_CMD_BLOCK_STATUS)
		bytes += QK_NBD_STATUS_ROOM;
	if (!qk_nbd_budget_take(conn, bytes))
		return NULL;
	struct qk_nbd_job *job = qk_nbd_job_new(conn, rq);
	if (job == NULL) {
		qk_nbd_budget_give(conn, bytes);
		return NULL;
	}
	job->charged = bytes;
	job->error = j->error;
	job->message = j->message;
	if (n != 0 && !qk_nbd_job_data(job, n)) {
		qk_nbd_job_free(job);
		return NULL;
	}
	return job;
}

/* Make a job of a request; `n` bytes of its payload are at hand. false: not now. */
static bool start(struct qk_nbd_conn *conn, const struct qk_nbd_request *rq,
	const struct qk_nbd_judgement *j, struct qk_span payload)
{
	struct qk_nbd_job *job = new_job(conn, rq, j);
	if (job == NULL)
		return false;
	if (j->verdict == QK_NBD_REFUSE) {
		conn->skip = j->payload - (uint32_t)payload.n;
		qk_nbd_conn_launch(conn, job);
		return true;
	}
	if (payload.n != 0)
		memcpy(job->data, payload.p, payload.n);
	if (payload.n == j->payload) {
		qk_nbd_conn_launch(conn, job);
	} else {
		conn->filling = job;
		conn->fill_at = payload.n;
	}
	return true;
}

/* The request at p. Returns the bytes that were used; 0: it is not whole, cannot be begun now, or ended the connection. */
static size_t request(struct qk_nbd_conn *conn, const uint8_t *p, size_t n)
{
	struct qk_nbd_request rq;
	size_t head = qk_nbd_request_bytes(conn->session.mode);
	if (n < head)
		return 0;
	if (!qk_nbd_get_request(conn->session.mode, p, &rq)) {
		qk_nbd_conn_close(conn, "the magic of a request is wrong");
		return 0;
	}
	struct qk_nbd_judgement j = qk_nbd_judge(&conn->session, &rq);
	if (j.verdict == QK_NBD_BREAK) {
		qk_nbd_conn_close(conn, j.message);
		return 0;
	}
	if (j.verdict == QK_NBD_DISC) {
		qk_nbd_conn_drain(conn);
		return n;
	}
	conn->is_paused = is_crowded(conn);
	if (conn->is_paused)
		return 0;
	if (j.verdict == QK_NBD_RUN && at_once(conn, &rq, p + head, n - head))
		return head + j.payload;
	size_t n_payload = qk_min(n - head, j.payload);
	if (start(conn, &rq, &j, (struct qk_span){p + head, n_payload}))
		return head + n_payload;
	if (j.verdict == QK_NBD_RUN && qk_nbd_parts_begin(conn, &rq)) {
		conn->is_paused =
			conn->parts.is_read; /* begun as soon as the others had their turn */
		return head;
	}
	if (conn->charged == 0)
		qk_nbd_conn_close(conn, "no memory");
	conn->is_paused = true;
	return 0;
}

static size_t skip(struct qk_nbd_conn *conn, size_t n)
{
	size_t used = qk_min(n, conn->skip);
	conn->skip -= (uint32_t)used;
	return used;
}

static bool is_dead(const struct qk_nbd_conn *conn)
{
	return atomic_load_explicit(&conn->phase, memory_order_relaxed) == QK_NBD_PHASE_DEAD;
}

/* As much of [p, p + n) as can be used now. */
static size_t take_in(struct qk_nbd_conn *conn, const uint8_t *p, size_t n)
{
	size_t at = 0;
	for (unsigned turn = 0; at < n; turn++) {
		size_t used = 0;
		enum qk_nbd_phase phase = atomic_load_explicit(&conn->phase, memory_order_relaxed);
		if (phase >= QK_NBD_PHASE_DRAIN)
			return n;
		if (conn->filling != NULL || phase == QK_NBD_PHASE_TLS)
			break;
		if (conn->parts.is_on && conn->parts.is_read)
			break;
		if (conn->parts.is_on)
			used = qk_nbd_parts_write(conn, p + at, n - at);
		else if (conn->skip != 0)
			used = skip(conn, n - at);
		else if (phase == QK_NBD_PHASE_HANDSHAKE)
			used = qk_nbd_conn_shake(conn, p + at, n - at);
		else if (turn < TURN)
			used = request(conn, p + at, n - at);
		else
			qk_nbd_loop_again(conn);
		if (used == 0)
			break;
		at += used;
		if (conn->tx_bytes >= SEND_EARLY && !conn->wants_out && !is_dead(conn))
			(void)qk_nbd_send(conn);
	}
	return at;
}

/* Keep what could not be used. */
static void keep(struct qk_nbd_conn *conn, const uint8_t *p, size_t n)
{
	if (n == 0)
		return;
	conn->stash = qk_malloc(n, 1);
	if (conn->stash == NULL) {
		qk_nbd_conn_close(conn, "no memory");
		return;
	}
	memcpy(conn->stash, p, n);
	conn->stash_at = 0;
	conn->n_stash = n;
}

/* Nothing more comes: when all that came was used, or can never be, the connection ends. */
static void after(struct qk_nbd_conn *conn)
{
	if (conn->has_eof && !conn->is_paused && !conn->is_again && !is_dead(conn))
		qk_nbd_conn_drain(conn);
	qk_nbd_conn_settle(conn);
}

void qk_nbd_conn_parse(struct qk_nbd_conn *conn)
{
	conn->is_paused = false;
	if (conn->parts.is_on && conn->parts.is_read &&
		atomic_load_explicit(&conn->phase, memory_order_relaxed) < QK_NBD_PHASE_DRAIN)
		qk_nbd_parts_read(conn);
	if (is_dead(conn))
		return;
	if (conn->stash != NULL && !conn->is_paused) {
		uint8_t *p = conn->stash;
		size_t at = conn->stash_at, n = conn->n_stash;
		size_t used = take_in(conn, p + at, n - at);
		if (is_dead(conn))
			return;
		conn->stash_at += used;
		if (conn->stash_at == n) {
			free(p);
			conn->stash = NULL;
		}
	}
	after(conn);
}

/* The payload of conn->filling got `n` bytes more. */
static void filled(struct qk_nbd_conn *conn, size_t n)
{
	struct qk_nbd_job *job = conn->filling;
	conn->fill_at += n;
	if (conn->fill_at < job->n_data)
		return;
	conn->filling = NULL;
	qk_nbd_conn_launch(conn, job);
}

/* Received: `got` bytes, first into what is being filled, then into rx behind `n_old`. */
static void received(struct qk_nbd_conn *conn, size_t got, size_t n_old)
{
	uint8_t *rx = conn->loop->rx;
	atomic_fetch_add_explicit(&conn->bytes_in, got, memory_order_relaxed);
	if (conn->filling != NULL) {
		size_t n = qk_min(got, conn->filling->n_data - conn->fill_at);
		filled(conn, n);
		got -= n;
	}
	size_t n = n_old + got, used = take_in(conn, rx, n);
	if (!is_dead(conn))
		keep(conn, rx + used, n - used);
}

void qk_nbd_conn_receive(struct qk_nbd_conn *conn)
{
	uint8_t *rx = conn->loop->rx;
	struct iovec iov[2];
	int n_iov = 0;
	size_t n_old = 0;
	if (conn->has_eof || conn->is_paused || conn->is_again ||
		atomic_load_explicit(&conn->phase, memory_order_relaxed) >= QK_NBD_PHASE_DRAIN)
		return;
	if (conn->stash != NULL) {
		n_old = conn->n_stash - conn->stash_at;
		memcpy(rx, conn->stash + conn->stash_at, n_old);
		free(conn->stash);
		conn->stash = NULL;
	}
	if (conn->filling != NULL)
		iov[n_iov++] = (struct iovec){
			conn->filling->data + conn->fill_at, conn->filling->n_data - conn->fill_at};
	iov[n_iov++] = (struct iovec){rx + n_old, QK_NBD_RX_BYTES - n_old};
	ssize_t got = qk_nbd_io_recv(conn, iov, n_iov);
	if (got > 0) {
		received(conn, (size_t)got, n_old);
	} else if (got < 0 && errno == EAGAIN) {
		keep(conn, rx, n_old);
	} else {
		conn->has_eof = true;
		keep(conn, rx, n_old);
		if (n_old != 0)
			qk_nbd_loop_again(conn); /* whole requests may be among them */
		if (conn->filling != NULL || got < 0) {
			qk_nbd_conn_close(conn, NULL);
			return;
		}
	}
	if (!is_dead(conn))
		after(conn);
}
