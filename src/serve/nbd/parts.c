/* SPDX-License-Identifier: MIT */
/*
 * parts: a request for which there is no memory is carried out in parts of 64 KiB, one after the other, with what every connection
 * has in any case (budget.c). So nobody waits for a client that does not take its replies, or does not send its payload.
 *
 * A write in parts that fails in the middle has changed the parts before: the protocol promises nothing else. A read whose reply
 * has begun and cannot say that it failed (simple, or one chunk) ends the connection.
 */
#include "serve/nbd/core.h"

#include "base/err.h"

#define PART ((uint64_t)64 << 10)

bool qk_nbd_parts_begin(struct qk_nbd_conn *conn, const struct qk_nbd_request *rq)
{
	bool is_read = rq->type == QK_NBD_CMD_READ;
	if (conn->charged != 0 || rq->len <= PART || (!is_read && rq->type != QK_NBD_CMD_WRITE))
		return false;
	conn->parts = (struct qk_nbd_parts){.is_on = true, .is_read = is_read, .rq = *rq};
	return true;
}

/* The next part, up to a multiple of PART on the disk. NULL: the connection was closed. */
static struct qk_nbd_job *next_part(struct qk_nbd_conn *conn)
{
	const struct qk_nbd_parts *parts = &conn->parts;
	struct qk_nbd_request rq = parts->rq;
	rq.off += parts->at;
	rq.len = qk_min(PART - rq.off % PART, parts->rq.len - parts->at);
	if (parts->at + rq.len != parts->rq.len)
		rq.flags &= (uint16_t)~QK_NBD_CMD_FLAG_FUA; /* the last one makes all stable */
	uint64_t bytes = sizeof(struct qk_nbd_job) + rq.len;
	struct qk_nbd_job *job = qk_nbd_job_new(conn, &rq);
	if (job != NULL && qk_nbd_budget_take(conn, bytes)) {
		job->charged = bytes;
		job->is_part = true;
		if (qk_nbd_job_data(job, (size_t)rq.len))
			return job;
	}
	qk_nbd_job_free(job);
	qk_nbd_conn_close(conn, "no memory");
	return NULL;
}

size_t qk_nbd_parts_write(struct qk_nbd_conn *conn, const uint8_t *p, size_t n)
{
	conn->is_paused = conn->n_jobs != 0; /* the part before */
	if (conn->is_paused || n == 0)
		return 0;
	struct qk_nbd_job *job = next_part(conn);
	if (job == NULL)
		return 0;
	size_t used = qk_min(n, job->n_data);
	memcpy(job->data, p, used);
	conn->parts.at += job->n_data;
	if (used == job->n_data) {
		qk_nbd_conn_launch(conn, job);
	} else {
		conn->filling = job;
		conn->fill_at = used;
	}
	return used;
}

void qk_nbd_parts_read(struct qk_nbd_conn *conn)
{
	conn->is_paused = true;
	/* the part before was not sent yet, or the last one is under way: nothing may come between them */
	if (conn->charged != 0 || conn->parts.at == conn->parts.rq.len)
		return;
	struct qk_nbd_job *job = next_part(conn);
	if (job == NULL)
		return;
	conn->parts.at += job->n_data;
	qk_nbd_conn_launch(conn, job);
	conn->is_paused = conn->parts.is_on;
}

/* ---- a part is done ---- */

/* The reply to the whole request: this part was its last, or failed. */
static void answer(struct qk_nbd_conn *conn, struct qk_nbd_job *job)
{
	conn->parts.is_on = false;
	job->rq = conn->parts.rq;
	if (job->error != QK_NBD_OK)
		qk_nbd_fail(job, job->error, "a part of it failed");
	else
		qk_nbd_succeed(job);
	qk_nbd_loop_count_job(conn, job);
	qk_nbd_send_job(conn, job);
}

static void write_done(struct qk_nbd_conn *conn, struct qk_nbd_job *job)
{
	uint64_t end = job->rq.off + job->rq.len - conn->parts.rq.off;
	if (job->error == QK_NBD_OK && end != conn->parts.rq.len) {
		qk_nbd_job_free(job);
		return;
	}
	conn->skip = (uint32_t)(conn->parts.rq.len - end);
	answer(conn, job);
}

/* What stands before the data of a part: a chunk's head for each part, or one head for all. */
static size_t put_head(const struct qk_nbd_conn *conn, struct qk_nbd_job *job, bool is_last)
{
	const struct qk_nbd_request *rq = &conn->parts.rq;
	enum qk_nbd_mode mode = conn->session.mode;
	bool is_first = job->rq.off == rq->off;
	bool is_whole = (rq->flags & QK_NBD_CMD_FLAG_DF) != 0;
	if ((mode == QK_NBD_SIMPLE || is_whole) && !is_first)
		return 0;
	if (mode == QK_NBD_SIMPLE) {
		qk_nbd_put_simple(job->head, QK_NBD_OK, rq->cookie);
		return QK_NBD_SIMPLE_BYTES;
	}
	bool is_done = is_last || is_whole;
	qk_nbd_put_chunk(mode, job->head,
		&(struct qk_nbd_chunk){.flags = (uint16_t)(is_done ? QK_NBD_REPLY_FLAG_DONE : 0),
			.type = QK_NBD_REPLY_OFFSET_DATA,
			.cookie = rq->cookie,
			.off = rq->off,
			.payload = 8 + (is_whole ? rq->len : job->n_data)});
	qk_store64(job->head + qk_nbd_chunk_bytes(mode), job->rq.off);
	return qk_nbd_chunk_bytes(mode) + 8;
}

static void read_done(struct qk_nbd_conn *conn, struct qk_nbd_job *job)
{
	const struct qk_nbd_request *rq = &conn->parts.rq;
	bool is_last = job->rq.off + job->rq.len == rq->off + rq->len;
	bool can_say = job->rq.off == rq->off || (conn->session.mode != QK_NBD_SIMPLE &&
							 (rq->flags & QK_NBD_CMD_FLAG_DF) == 0);
	if (job->error != QK_NBD_OK && !can_say) {
		qk_nbd_loop_count_job(conn, job);
		qk_nbd_job_free(job);
		qk_nbd_conn_close(conn, "a read failed when a part of it was sent");
		return;
	}
	if (job->error != QK_NBD_OK) {
		answer(conn, job);
		return;
	}
	size_t head = put_head(conn, job, is_last);
	job->n_iov = 0;
	if (head != 0)
		job->iov[job->n_iov++] = (struct iovec){job->head, head};
	job->iov[job->n_iov++] = (struct iovec){job->data, job->n_data};
	conn->parts.is_on = !is_last;
	if (is_last)
		qk_nbd_loop_count(conn, rq, false);
	qk_nbd_send_job(conn, job);
}

void qk_nbd_parts_done(struct qk_nbd_conn *conn, struct qk_nbd_job *job)
{
	if (conn->parts.is_read)
		read_done(conn, job);
	else
		write_done(conn, job);
}
