/* SPDX-License-Identifier: MIT */
/*
 * exec: carries out one request on its export and makes the reply. Knows nothing of sockets and threads: who calls it is in the
 * gate, and the session does not change meanwhile.
 */
#ifndef QK_SERVE_NBD_EXEC_H
#define QK_SERVE_NBD_EXEC_H

#include <sys/uio.h>

#include "serve/nbd/request.h"

struct qk_nbd_conn;

/* Runs that one reply to a read is cut into; what comes later is data. */
#define QK_NBD_READ_CHUNKS 16U
/* Descriptors of one reply to BLOCK_STATUS, of each context: at most so many, of all so many bytes. The whole reply, with a head
 * for each of the contexts that there may be, is QK_NBD_STATUS_ROOM at most. */
#define QK_NBD_STATUS_EXTENTS 2048U
#define QK_NBD_STATUS_BYTES   ((size_t)64 << 10)
#define QK_NBD_STATUS_ROOM    ((size_t)88 << 10)

/* The reply is iov[0 … n_iov), which points into the job: `head`, `more` and `data`. */
struct qk_nbd_job {
	struct qk_nbd_job *next;
	struct qk_nbd_conn *conn;
	const struct qk_nbd_session *session;
	struct qk_nbd_request rq;
	uint32_t error; /* refused: this is the answer; after exec: what was answered */
	const char *message;
	uint8_t *data; /* payload, or room for what a read gives */
	size_t n_data, data_cap;
	uint64_t charged; /* bytes of the budget */
	bool is_slab; /* no request, but replies in `data` */
	bool is_part; /* of conn->parts */
	int n_iov;
	struct iovec iov[2 * QK_NBD_READ_CHUNKS];
	size_t iov_at; /* bytes of iov[i_iov] that were sent */
	int i_iov;
	struct qk_nbd_buf more;
	char *why; /* a failure in the library's words, which name files: for the log alone; NULL: none */
	uint8_t head[64];
};

/* Carry it out (or refuse it, where error is set). Always leaves a reply. */
void qk_nbd_execute(struct qk_nbd_job *job);

/* A read, where its bytes are at hand: false, and nothing was done, where it would wait. */
bool qk_nbd_execute_now(struct qk_nbd_job *job);

/* The reply to a request that has none but that it was done. */
void qk_nbd_succeed(struct qk_nbd_job *job);

/* The reply to a failure; message may be NULL. */
void qk_nbd_fail(struct qk_nbd_job *job, uint32_t error, const char *message);

/* The reply to a call that failed: the client hears the kind of failure, `why` keeps err's message. */
void qk_nbd_fail_status(
	struct qk_nbd_job *job, enum qcow_status status, const struct qcow_error *err);

void qk_nbd_job_release(struct qk_nbd_job *job);

/* Bytes before the data in a reply that is one piece. */
static inline size_t qk_nbd_read_head_bytes(enum qk_nbd_mode mode)
{
	return mode == QK_NBD_SIMPLE ? QK_NBD_SIMPLE_BYTES : qk_nbd_chunk_bytes(mode) + 8;
}

/* A read whose bytes are at hand, as one piece to `out` (room for the head and rq->len > 0 bytes): its length, or 0 where it
 * is not done without waiting. */
size_t qk_nbd_read_now(
	const struct qk_nbd_session *session, const struct qk_nbd_request *rq, uint8_t *out);

/* Bytes of a successful reply without data, to `out` (32 bytes of room). */
size_t qk_nbd_put_done(enum qk_nbd_mode mode, const struct qk_nbd_request *rq, uint8_t *out);

/* status.c: carry out BLOCK_STATUS. */
void qk_nbd_execute_status(struct qk_nbd_job *job);

/* The error value for a failure of `rq`. */
uint32_t qk_nbd_error_of(const struct qk_nbd_request *rq, enum qcow_status status);

#endif
