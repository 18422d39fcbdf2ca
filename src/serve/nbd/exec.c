/* SPDX-License-Identifier: MIT */
/*
 * exec: see exec.h.
 */
#include "serve/nbd/exec.h"

#include <string.h>

#include "base/err.h"

/* Runs of zeros are told as holes in steps of this much, in reads of at least twice as much. */
#define HOLE_STEP ((size_t)64 << 10)
#define MAX_CACHE (UINT64_C(64) << 20)

uint32_t qk_nbd_error_of(const struct qk_nbd_request *rq, enum qcow_status status)
{
	bool is_fast = rq->type == QK_NBD_CMD_WRITE_ZEROES &&
		       (rq->flags & QK_NBD_CMD_FLAG_FAST_ZERO) != 0;
	switch (status) {
	case QCOW_OK:
		return QK_NBD_OK;
	case QCOW_E_NOSPC:
		return QK_NBD_ENOSPC;
	case QCOW_E_READONLY:
		return QK_NBD_EPERM;
	case QCOW_E_NOMEM:
		return QK_NBD_ENOMEM;
	case QCOW_E_NOTSUP:
		return is_fast ? QK_NBD_ENOTSUP : QK_NBD_EINVAL;
	case QCOW_E_RANGE:
	case QCOW_E_INVAL:
		return QK_NBD_EINVAL;
	default:
		return QK_NBD_EIO;
	}
}

size_t qk_nbd_put_done(enum qk_nbd_mode mode, const struct qk_nbd_request *rq, uint8_t *out)
{
	if (mode == QK_NBD_EXTENDED || (mode != QK_NBD_SIMPLE && rq->type == QK_NBD_CMD_READ)) {
		qk_nbd_put_chunk(mode, out,
			&(struct qk_nbd_chunk){.flags = QK_NBD_REPLY_FLAG_DONE,
				.type = QK_NBD_REPLY_NONE,
				.cookie = rq->cookie,
				.off = rq->off});
		return qk_nbd_chunk_bytes(mode);
	}
	qk_nbd_put_simple(out, QK_NBD_OK, rq->cookie);
	return QK_NBD_SIMPLE_BYTES;
}

static void add_iov(struct qk_nbd_job *job, void *p, size_t n)
{
	job->iov[job->n_iov++] = (struct iovec){p, n};
}

void qk_nbd_succeed(struct qk_nbd_job *job)
{
	job->error = QK_NBD_OK;
	job->n_iov = 0;
	add_iov(job, job->head, qk_nbd_put_done(job->session->mode, &job->rq, job->head));
}

/* An error chunk in `more`. false: no memory for it. */
static bool put_error_chunk(struct qk_nbd_job *job, uint32_t error, const char *message)
{
	enum qk_nbd_mode mode = job->session->mode;
	size_t n = message != NULL ? strlen(message) : 0;
	job->more.n = 0;
	uint8_t *head = qk_nbd_buf_room(&job->more, qk_nbd_chunk_bytes(mode));
	if (head == NULL)
		return false;
	qk_nbd_put_chunk(mode, head,
		&(struct qk_nbd_chunk){.flags = QK_NBD_REPLY_FLAG_DONE,
			.type = QK_NBD_REPLY_ERROR,
			.cookie = job->rq.cookie,
			.off = job->rq.off,
			.payload = 6 + n});
	qk_nbd_buf_add32(&job->more, error);
	qk_nbd_buf_add16(&job->more, (uint16_t)n);
	qk_nbd_buf_add(&job->more, message, n);
	return !job->more.bad;
}

void qk_nbd_fail(struct qk_nbd_job *job, uint32_t error, const char *message)
{
	enum qk_nbd_mode mode = job->session->mode;
	job->error = error;
	job->n_iov = 0;
	if (mode == QK_NBD_SIMPLE) {
		qk_nbd_put_simple(job->head, error, job->rq.cookie);
		add_iov(job, job->head, QK_NBD_SIMPLE_BYTES);
	} else if (put_error_chunk(job, error, message)) {
		add_iov(job, job->more.p, job->more.n);
	} else {
		size_t n = qk_nbd_chunk_bytes(mode);
		qk_nbd_put_chunk(mode, job->head,
			&(struct qk_nbd_chunk){.flags = QK_NBD_REPLY_FLAG_DONE,
				.type = QK_NBD_REPLY_ERROR,
				.cookie = job->rq.cookie,
				.off = job->rq.off,
				.payload = 6});
		qk_store32(job->head + n, error);
		qk_store16(job->head + n + 4, 0);
		add_iov(job, job->head, n + 6);
	}
}

/* Texts for whoever may be at the other end: no names of files. */
static const char *text_of(enum qcow_status status)
{
	switch (status) {
	case QCOW_E_NOSPC:
		return "the host has no space left";
	case QCOW_E_READONLY:
		return "the disk is read-only";
	case QCOW_E_NOMEM:
		return "the server has no memory left";
	case QCOW_E_NOTSUP:
		return "the disk cannot do that";
	case QCOW_E_RANGE:
		return "the disk ends before that";
	case QCOW_E_INVAL:
		return "the disk does not take that";
	case QCOW_E_NOENT:
		return "what is asked about is not there any more";
	case QCOW_E_CORRUPT:
		return "the image is damaged there";
	default:
		return "the disk of the server failed";
	}
}

void qk_nbd_fail_status(
	struct qk_nbd_job *job, enum qcow_status status, const struct qcow_error *err)
{
	uint32_t error = qk_nbd_error_of(&job->rq, status);
	/* what the client asked for amiss is not the server's to complain about */
	bool is_ours = error == QK_NBD_EIO || error == QK_NBD_ENOSPC || error == QK_NBD_ENOMEM;
	free(job->why);
	job->why = is_ours && err->message[0] != '\0'
			   ? qk_strndup(err->message, strlen(err->message))
			   : NULL;
	qk_nbd_fail(job, error, text_of(status));
}

void qk_nbd_job_release(struct qk_nbd_job *job)
{
	free(job->why);
	job->why = NULL;
	qk_nbd_buf_free(&job->more);
}

/* ---- reads ---- */

/* The head of a content chunk and its offset (and, for a hole, its length). Returns its bytes. */
static size_t put_content(const struct qk_nbd_session *session, const struct qk_nbd_request *rq,
	uint8_t *out, size_t at, size_t n, bool is_hole)
{
	size_t head = qk_nbd_chunk_bytes(session->mode);
	bool is_last = at + n == rq->len;
	qk_nbd_put_chunk(session->mode, out,
		&(struct qk_nbd_chunk){.flags = (uint16_t)(is_last ? QK_NBD_REPLY_FLAG_DONE : 0),
			.type = is_hole ? QK_NBD_REPLY_OFFSET_HOLE : QK_NBD_REPLY_OFFSET_DATA,
			.cookie = rq->cookie,
			.off = rq->off,
			.payload = is_hole ? 12 : 8 + n});
	qk_store64(out + head, rq->off + at);
	if (!is_hole)
		return head + 8;
	qk_store32(out + head + 8, (uint32_t)n);
	return head + 12;
}

size_t qk_nbd_read_now(
	const struct qk_nbd_session *session, const struct qk_nbd_request *rq, uint8_t *out)
{
	const struct qk_nbd_node *node = session->node;
	size_t head = qk_nbd_read_head_bytes(session->mode), n = (size_t)rq->len;
	if (!qk_in_range(rq->off, rq->len, atomic_load(&node->size)) ||
		node->ops->pread_nowait(node->ctx, out + head, n, rq->off, NULL) != QCOW_OK)
		return 0;
	if (session->mode == QK_NBD_SIMPLE) {
		qk_nbd_put_simple(out, QK_NBD_OK, rq->cookie);
		return head + n;
	}
	if (qk_is_zero(out + head, n))
		return put_content(session, rq, out, 0, n, true);
	return put_content(session, rq, out, 0, n, false) + n;
}

/* Where the run at `at` ends that is zeros, or is not, throughout. */
static size_t run_end(const struct qk_nbd_job *job, size_t at, bool *is_hole)
{
	size_t end = at;
	*is_hole = false;
	do {
		size_t n = job->n_data - end < HOLE_STEP ? job->n_data - end : HOLE_STEP;
		bool is_zero = qk_is_zero(job->data + end, n);
		if (end == at)
			*is_hole = is_zero;
		else if (is_zero != *is_hole)
			break;
		end += n;
	} while (end < job->n_data);
	return end;
}

/* Content chunks: one, or runs of data and holes. */
static void put_chunks(struct qk_nbd_job *job)
{
	const size_t room = QK_NBD_EXT_REPLY_BYTES + 12;
	bool is_one = (job->rq.flags & QK_NBD_CMD_FLAG_DF) != 0 || job->n_data < 2 * HOLE_STEP;
	uint8_t *heads = job->head;
	if (!is_one)
		heads = qk_nbd_buf_room(&job->more, QK_NBD_READ_CHUNKS * room);
	if (heads == NULL) {
		is_one = true;
		heads = job->head;
	}
	for (size_t at = 0, i = 0; at < job->n_data; i++) {
		bool is_hole = false;
		size_t end = job->n_data;
		if (is_one)
			is_hole = qk_is_zero(job->data, job->n_data);
		else if (i + 1 < QK_NBD_READ_CHUNKS)
			end = run_end(job, at, &is_hole);
		uint8_t *head = heads + i * room;
		add_iov(job, head,
			put_content(job->session, &job->rq, head, at, end - at, is_hole));
		if (!is_hole)
			add_iov(job, job->data + at, end - at);
		at = end;
	}
}

static void put_data(struct qk_nbd_job *job)
{
	job->error = QK_NBD_OK;
	job->n_iov = 0;
	if (job->session->mode == QK_NBD_SIMPLE) {
		qk_nbd_put_simple(job->head, QK_NBD_OK, job->rq.cookie);
		add_iov(job, job->head, QK_NBD_SIMPLE_BYTES);
		add_iov(job, job->data, job->n_data);
	} else {
		put_chunks(job);
	}
}

static enum qcow_status execute_read(struct qk_nbd_job *job, struct qcow_error *err)
{
	const struct qk_nbd_node *node = job->session->node;
	QK_TRY(node->ops->pread(node->ctx, job->data, job->n_data, job->rq.off, err));
	put_data(job);
	return QCOW_OK;
}

static bool is_inside(const struct qk_nbd_node *node, const struct qk_nbd_request *rq)
{
	return qk_in_range(rq->off, rq->len, atomic_load(&node->size));
}

bool qk_nbd_execute_now(struct qk_nbd_job *job)
{
	const struct qk_nbd_node *node = job->session->node;
	if (job->error != QK_NBD_OK || job->rq.type != QK_NBD_CMD_READ || job->n_data == 0 ||
		node->ops->pread_nowait == NULL || !is_inside(node, &job->rq))
		return false;
	if (node->ops->pread_nowait(node->ctx, job->data, job->n_data, job->rq.off, NULL) !=
		QCOW_OK)
		return false;
	put_data(job);
	return true;
}

/* ---- the others ---- */

static unsigned io_flags(const struct qk_nbd_request *rq)
{
	unsigned flags = (rq->flags & QK_NBD_CMD_FLAG_FUA) != 0 ? QCOW_IO_FUA : 0;
	if (rq->type != QK_NBD_CMD_WRITE_ZEROES)
		return flags;
	if ((rq->flags & QK_NBD_CMD_FLAG_NO_HOLE) == 0)
		flags |= QCOW_IO_UNMAP;
	if ((rq->flags & QK_NBD_CMD_FLAG_FAST_ZERO) != 0)
		flags |= QCOW_IO_FAST;
	return flags;
}

static enum qcow_status execute_change(struct qk_nbd_job *job, struct qcow_error *err)
{
	const struct qk_nbd_node *node = job->session->node;
	const struct qk_nbd_request *rq = &job->rq;
	unsigned flags = io_flags(rq);
	switch (rq->type) {
	case QK_NBD_CMD_WRITE:
		return node->ops->pwrite(node->ctx, job->data, job->n_data, rq->off, flags, err);
	case QK_NBD_CMD_WRITE_ZEROES:
		return node->ops->zero(node->ctx, rq->off, rq->len, flags, err);
	case QK_NBD_CMD_TRIM:
		return node->ops->trim(node->ctx, rq->off, rq->len, flags, err);
	case QK_NBD_CMD_CACHE:
		return node->ops->cache(node->ctx, rq->off, qk_min(rq->len, MAX_CACHE), err);
	default:
		return node->ops->flush(node->ctx, err);
	}
}

void qk_nbd_execute(struct qk_nbd_job *job)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = QCOW_OK;
	job->more.n = 0;
	job->n_iov = 0;
	if (job->error != QK_NBD_OK) {
		qk_nbd_fail(job, job->error, job->message);
		return;
	}
	if (job->rq.type == QK_NBD_CMD_BLOCK_STATUS) {
		qk_nbd_execute_status(job);
		return;
	}
	if (job->rq.len == 0 && job->rq.type != QK_NBD_CMD_FLUSH) {
		qk_nbd_succeed(job);
		return;
	}
	/* the disk may have shrunk since the client was told its size */
	if (!is_inside(job->session->node, &job->rq))
		status = QK_FAIL(&err, QCOW_E_RANGE, "the disk ends before that");
	else if (job->rq.type == QK_NBD_CMD_READ)
		status = execute_read(job, &err);
	else
		status = execute_change(job, &err);
	if (status != QCOW_OK)
		qk_nbd_fail_status(job, status, &err);
	else if (job->rq.type != QK_NBD_CMD_READ)
		qk_nbd_succeed(job);
}
