/* SPDX-License-Identifier: MIT */
/*
 * send: the queue of replies of a connection, and as many of them as possible in one call (see core.h).
 */
#include "serve/nbd/core.h"

#include <errno.h>
#include <sys/socket.h>

#include "base/err.h"

#define GATHER 128
/* A Unix socket holds 208 KiB: who is sent replies of megabytes wakes us, and we it, ten times for each. So it is asked for more
 * where that much waits, and clients are few: the memory is the kernel's, and bounded by this. */
#define WIDE_BYTES   ((int)1 << 20)
#define WIDE_FROM    ((size_t)256 << 10)
#define WIDE_CLIENTS 32U

struct qk_nbd_job *qk_nbd_job_new(struct qk_nbd_conn *conn, const struct qk_nbd_request *rq)
{
	struct qk_nbd_job *job = malloc(sizeof(*job));
	if (job == NULL)
		return NULL;
	/* the list of buffers is filled before it is used */
	job->next = NULL;
	job->conn = conn;
	job->session = &conn->session;
	job->rq = *rq;
	job->error = QK_NBD_OK;
	job->message = NULL;
	job->data = NULL;
	job->n_data = job->data_cap = 0;
	job->charged = 0;
	job->is_slab = job->is_part = false;
	job->n_iov = job->i_iov = 0;
	job->iov_at = 0;
	job->more = (struct qk_nbd_buf){0};
	job->why = NULL;
	return job;
}

/* A power of two, so that buffers serve requests of all sizes. */
static size_t room_for(size_t n)
{
	size_t cap = QK_NBD_SPARE_MIN;
	if (n < QK_NBD_SPARE_MIN || n > QK_NBD_SPARE_MAX)
		return n;
	while (cap < n)
		cap *= 2;
	return cap;
}

bool qk_nbd_job_data(struct qk_nbd_job *job, size_t n)
{
	struct qk_nbd_loop *loop = job->conn->loop;
	const size_t n_spares = sizeof(loop->spares) / sizeof(loop->spares[0]);
	size_t cap = room_for(n);
	for (size_t i = 0; i < n_spares && cap >= QK_NBD_SPARE_MIN; i++) {
		if (loop->spares[i].cap == cap) {
			job->data = loop->spares[i].p;
			loop->spares[i] = (struct qk_nbd_spare){0};
			break;
		}
	}
	if (job->data == NULL)
		job->data = cap >= 4096 ? qk_malloc_aligned(4096, cap) : qk_malloc(cap, 1);
	job->n_data = n;
	job->data_cap = cap;
	return job->data != NULL;
}

/* Keep the buffer for another job, in the place of one of another size where there is no other. */
static void free_data(struct qk_nbd_job *job)
{
	struct qk_nbd_loop *loop = job->conn->loop;
	const size_t n_spares = sizeof(loop->spares) / sizeof(loop->spares[0]);
	size_t cap = job->data_cap, at = 0;
	if (job->data == NULL || job->is_slab || cap < QK_NBD_SPARE_MIN || cap > QK_NBD_SPARE_MAX) {
		free(job->data);
		return;
	}
	while (at + 1 < n_spares && loop->spares[at].p != NULL)
		at++;
	free(loop->spares[at].p);
	loop->spares[at] = (struct qk_nbd_spare){job->data, cap};
}

void qk_nbd_job_free(struct qk_nbd_job *job)
{
	if (job == NULL)
		return;
	if (job->charged != 0)
		qk_nbd_budget_give(job->conn, job->charged);
	qk_nbd_job_release(job);
	free_data(job);
	free(job);
}

static void append(struct qk_nbd_conn *conn, struct qk_nbd_job *job)
{
	job->next = NULL;
	if (conn->tx_last != NULL)
		conn->tx_last->next = job;
	else
		conn->tx_first = job;
	conn->tx_last = job;
}

void qk_nbd_send_job(struct qk_nbd_conn *conn, struct qk_nbd_job *job)
{
	job->i_iov = 0;
	job->iov_at = 0;
	for (int i = 0; i < job->n_iov; i++)
		conn->tx_bytes += job->iov[i].iov_len;
	append(conn, job);
}

static struct qk_nbd_job *new_slab(struct qk_nbd_conn *conn)
{
	struct qk_nbd_loop *loop = conn->loop;
	struct qk_nbd_job *slab = loop->spare_slab;
	loop->spare_slab = NULL;
	if (slab == NULL) {
		slab = qk_nbd_job_new(conn, &(struct qk_nbd_request){0});
		if (slab == NULL)
			return NULL;
		slab->is_slab = true;
		slab->data = qk_malloc(QK_NBD_SLAB_BYTES, 1);
		slab->data_cap = QK_NBD_SLAB_BYTES;
	}
	if (slab->data == NULL) {
		qk_nbd_job_free(slab);
		return NULL;
	}
	slab->conn = conn;
	slab->charged = QK_NBD_SLAB_BYTES;
	slab->n_data = 0;
	slab->n_iov = 1;
	slab->i_iov = 0;
	slab->iov_at = 0;
	slab->iov[0] = (struct iovec){slab->data, 0};
	return slab;
}

uint8_t *qk_nbd_send_room(struct qk_nbd_conn *conn, size_t n)
{
	struct qk_nbd_job *slab = conn->tx_last;
	if (slab == NULL || !slab->is_slab || slab->data_cap - slab->n_data < n) {
		if (!qk_nbd_budget_take(conn, QK_NBD_SLAB_BYTES))
			return NULL;
		slab = new_slab(conn);
		if (slab == NULL) {
			qk_nbd_budget_give(conn, QK_NBD_SLAB_BYTES);
			return NULL;
		}
		append(conn, slab);
	}
	return slab->data + slab->n_data;
}

void qk_nbd_send_room_done(struct qk_nbd_conn *conn, size_t n)
{
	struct qk_nbd_job *slab = conn->tx_last;
	slab->n_data += n;
	slab->iov[0].iov_len += n;
	conn->tx_bytes += n;
}

static void free_sent(struct qk_nbd_conn *conn, struct qk_nbd_job *job)
{
	struct qk_nbd_loop *loop = conn->loop;
	if (job->is_slab && loop->spare_slab == NULL) {
		qk_nbd_budget_give(conn, job->charged);
		job->charged = 0;
		loop->spare_slab = job;
	} else {
		qk_nbd_job_free(job);
	}
}

/* Take the first job off the queue. */
static void pop(struct qk_nbd_conn *conn)
{
	struct qk_nbd_job *job = conn->tx_first;
	conn->tx_first = job->next;
	if (conn->tx_first == NULL)
		conn->tx_last = NULL;
	free_sent(conn, job);
}

void qk_nbd_send_drop(struct qk_nbd_conn *conn)
{
	while (conn->tx_first != NULL)
		pop(conn);
	conn->tx_bytes = 0;
}

static int gather(const struct qk_nbd_conn *conn, struct iovec *iov)
{
	int n = 0;
	for (const struct qk_nbd_job *job = conn->tx_first; job != NULL; job = job->next) {
		for (int i = job->i_iov; i < job->n_iov && n < GATHER; i++, n++) {
			size_t at = i == job->i_iov ? job->iov_at : 0;
			iov[n].iov_base = (uint8_t *)job->iov[i].iov_base + at;
			iov[n].iov_len = job->iov[i].iov_len - at;
		}
	}
	return n;
}

static void advance(struct qk_nbd_conn *conn, size_t n)
{
	conn->tx_bytes -= n;
	while (conn->tx_first != NULL) {
		struct qk_nbd_job *job = conn->tx_first;
		while (job->i_iov < job->n_iov && n >= job->iov[job->i_iov].iov_len - job->iov_at) {
			n -= job->iov[job->i_iov].iov_len - job->iov_at;
			job->iov_at = 0;
			job->i_iov++;
		}
		if (job->i_iov < job->n_iov) {
			job->iov_at += n;
			return;
		}
		pop(conn);
	}
}

/* The socket is full: does it hold more now? */
static bool widen(struct qk_nbd_conn *conn)
{
	const int bytes = WIDE_BYTES;
	if (conn->is_wide || !conn->is_local || conn->tx_bytes < WIDE_FROM ||
		atomic_load(&conn->server->n_open) > WIDE_CLIENTS)
		return false;
	conn->is_wide = true;
	return setsockopt(conn->out_fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) == 0;
}

bool qk_nbd_send(struct qk_nbd_conn *conn)
{
	struct iovec iov[GATHER];
	conn->wants_out = false;
	while (conn->tx_first != NULL) {
		ssize_t put = qk_nbd_io_send(conn, iov, gather(conn, iov));
		if (put < 0 && errno == EAGAIN && widen(conn))
			continue;
		if (put < 0 && errno == EAGAIN) {
			conn->wants_out = true;
			return true;
		}
		if (put < 0) {
			qk_nbd_conn_close(conn, NULL);
			return false;
		}
		atomic_fetch_add_explicit(&conn->bytes_out, (uint64_t)put, memory_order_relaxed);
		advance(conn, (size_t)put);
	}
	return true;
}
