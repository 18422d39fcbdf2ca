/* SPDX-License-Identifier: MIT */
/*
 * core: the threads of the server and what they share.
 *
 *	client -- recv --> loop: parse, judge --> answered at once ------> queue of replies -- sendmsg --> client
 *				      \                                   ^
 *				       --> pool: gate, execute --> done --/   (the connection's list, loop woken)
 *
 * A connection belongs to one loop's thread for good: all its fields are that thread's, but those marked otherwise. Memory
 * that requests and replies hold is charged to the budget until the last byte was sent.
 *
 * Where others hold so much that a large request cannot be had in one piece, it is carried out in parts, with 128 KiB that each
 * connection may always have (parts.c): a client that sends or takes nothing holds up nobody.
 *
 * Locks, none held when another is taken: qk_nbd_loop.lock, qk_nbd_pool.lock, the registry's.
 */
#ifndef QK_SERVE_NBD_CORE_H
#define QK_SERVE_NBD_CORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "serve/nbd/exec.h"
#include "serve/nbd/tls.h"

/* What one recv takes at most; a loop has one such buffer for all its connections. */
#define QK_NBD_RX_BYTES ((size_t)256 << 10)
/* Replies that a loop makes itself lie one behind the other in slabs of this size. */
#define QK_NBD_SLAB_BYTES ((size_t)128 << 10)
#define QK_NBD_SPARE_MIN  ((size_t)64 << 10)
#define QK_NBD_SPARE_MAX  ((size_t)1 << 20)
/* Requests of a connection that are a worker's at one time. */
#define QK_NBD_CONN_JOBS 64U

/* ---- budget.c: memory in flight ---- */

struct qk_nbd_budget {
	_Atomic uint64_t used;
	uint64_t limit, conn_limit;
};

/* May `conn` hold `bytes` more? Always, as long as it holds QK_NBD_SLAB_BYTES at most; a fair part of the rest beyond that. If not,
 * it is asked again when it gave something back itself. */
bool qk_nbd_budget_take(struct qk_nbd_conn *conn, uint64_t bytes);
void qk_nbd_budget_give(struct qk_nbd_conn *conn, uint64_t bytes);

/* A request that is carried out in parts. */
struct qk_nbd_parts {
	bool is_on, is_read;
	struct qk_nbd_request rq;
	uint64_t at; /* bytes of it that were begun */
};

/* ---- loop.c ---- */

enum qk_nbd_phase {
	QK_NBD_PHASE_HANDSHAKE = 0,
	QK_NBD_PHASE_TLS,
	QK_NBD_PHASE_TRANSMISSION,
	QK_NBD_PHASE_DRAIN, /* nothing is read any more; what is under way is answered */
	QK_NBD_PHASE_DEAD /* its descriptors are closed; freed when no worker has a job of it */
};

/* What epoll tells about. */
enum qk_nbd_source_kind {
	QK_NBD_SOURCE_WAKE = 0,
	QK_NBD_SOURCE_LISTENER,
	QK_NBD_SOURCE_CONN
};
struct qk_nbd_source {
	enum qk_nbd_source_kind kind;
};

struct qk_nbd_listener {
	struct qk_nbd_source source;
	struct qk_nbd_listener *next;
	int fd;
};

struct qk_nbd_conn {
	struct qk_nbd_source source;
	struct qk_nbd_server *server;
	struct qk_nbd_loop *loop;
	struct qk_nbd_conn *next, *prev; /* of the loop; changed under its lock */
	uint64_t id;
	char peer[64];
	int in_fd, out_fd;
	bool is_socket, is_file; /* file: one that epoll does not take; it is always ready */
	bool is_local, is_wide; /* a Unix socket; its send buffer was made larger */
	_Atomic enum qk_nbd_phase phase; /* read by others */
	bool was_served;
	struct qk_nbd_handshake handshake;
	struct qk_nbd_session session; /* others may read it from TRANSMISSION on */
	struct qk_nbd_tls *tls;
	uint64_t deadline; /* monotonic ns; 0: none */
	uint64_t stuck_at,
		stuck_bytes; /* draining: no reply was taken since then (monotonic ns; 0: not watched) */
	/* received */
	uint8_t *stash; /* bytes [stash_at, n_stash) could not be parsed yet */
	size_t stash_at, n_stash;
	bool has_eof, is_paused; /* paused: no memory, or too much under way */
	struct qk_nbd_parts parts;
	uint32_t skip; /* payload that is thrown away */
	struct qk_nbd_job *filling; /* its payload is coming in */
	size_t fill_at;
	/* to be sent: jobs with replies, in order */
	struct qk_nbd_job *tx_first, *tx_last;
	size_t tx_bytes;
	bool wants_out; /* the socket is full */
	uint32_t in_armed, out_armed; /* events that epoll watches for; pipes: of each */
	/* at the workers */
	unsigned n_jobs;
	uint64_t charged;
	/* under loop->lock */
	struct qk_nbd_job *done_first, *done_last;
	struct qk_nbd_conn *next_ready;
	bool is_ready;
	/* the loop's list of those that have more to do without an event */
	struct qk_nbd_conn *next_again;
	bool is_again;
	_Atomic bool is_cut;
	_Atomic uint64_t n_requests, bytes_in, bytes_out;
};

struct qk_nbd_loop {
	struct qk_nbd_source source; /* of the eventfd */
	struct qk_nbd_server *server;
	pthread_t thread;
	bool has_thread;
	int epoll, event;
	uint8_t *rx;
	struct qk_nbd_conn *again;
	struct qk_nbd_job *spare_slab;
	/* buffers of QK_NBD_SPARE_MIN bytes to QK_NBD_SPARE_MAX that no job has: fresh ones cost a page fault a page */
	struct qk_nbd_spare {
		uint8_t *p;
		size_t cap;
	} spares[8];
	pthread_mutex_t lock;
	struct qk_nbd_conn *conns; /* all of them; only the loop's thread adds and removes */
	_Atomic unsigned n_conns;
	struct qk_nbd_conn *arrivals, *ready;
	bool is_woken, is_purge;
	bool is_timed, is_ending; /* the thread's: limits to watch; it has seen is_stopping */
	bool has_dead;
	uint64_t ticked_at;
	/* written by the loop alone */
	struct {
		_Atomic uint64_t requests, bytes, errors;
	} counts[QK_NBD_COUNTS];
	_Atomic uint64_t at_once, failed_handshakes, cut;
	uint64_t accept_again; /* monotonic ns: out of descriptors until then; 0: not */
	uint64_t told_short_at; /* and it was said then */
	uint64_t told_at; /* monotonic ns: a request that failed was told of */
};

/* ---- pool.c ---- */

struct qk_nbd_pool {
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct qk_nbd_job *first, *last;
	unsigned n_idle, n_threads;
	bool is_over;
	pthread_t *threads;
};

enum qcow_status qk_nbd_pool_start(struct qk_nbd_pool *pool, unsigned n, struct qcow_error *err);
void qk_nbd_pool_stop(struct qk_nbd_pool *pool); /* no job is left */
void qk_nbd_pool_add(struct qk_nbd_pool *pool, struct qk_nbd_job *job);

/* ---- the server ---- */

struct qk_nbd_server {
	struct qk_nbd_options options;
	struct qk_nbd_registry registry;
	struct qk_nbd_tls_config *tls;
	struct qk_nbd_budget budget;
	struct qk_nbd_pool pool;
	struct qk_nbd_loop *loops;
	unsigned n_loops, next_loop;
	struct qk_nbd_listener *listeners; /* under loops[0].lock */
	bool is_started, is_stopped;
	_Atomic bool is_stopping;
	_Atomic uint64_t stop_at; /* monotonic ns: then what is left is cut */
	_Atomic unsigned n_open;
	_Atomic uint64_t n_accepted, n_refused, next_id;
};

uint64_t qk_nbd_now(void); /* monotonic ns */
void qk_nbd_log(const struct qk_nbd_server *server, enum qk_nbd_log_level level, const char *fmt,
	...) __attribute__((format(printf, 3, 4)));

enum qcow_status qk_nbd_loop_init(
	struct qk_nbd_loop *loop, struct qk_nbd_server *server, struct qcow_error *err);
enum qcow_status qk_nbd_loop_start(struct qk_nbd_loop *loop, struct qcow_error *err);
void qk_nbd_loop_release(struct qk_nbd_loop *loop);
/* Its thread looks at what was left for it. Any thread. */
void qk_nbd_loop_wake(struct qk_nbd_loop *loop);
/* A worker is done with a job. */
void qk_nbd_loop_done(struct qk_nbd_job *job);
enum qcow_status qk_nbd_loop_watch(struct qk_nbd_loop *loop, int fd, uint32_t events,
	struct qk_nbd_source *source, struct qcow_error *err);
/* The connection has more to do as soon as the others had their turn. */
void qk_nbd_loop_again(struct qk_nbd_conn *conn);
void qk_nbd_loop_count(struct qk_nbd_conn *conn, const struct qk_nbd_request *rq, bool failed);
/* The same for a job, and why it failed goes to the log; not oftener than once a second from each loop. */
void qk_nbd_loop_count_job(struct qk_nbd_conn *conn, const struct qk_nbd_job *job);

/* ---- conn.c: one connection; the loop's thread ---- */

enum qcow_status qk_nbd_conn_new(struct qk_nbd_server *server, int in_fd, int out_fd,
	struct qk_nbd_conn **out, struct qcow_error *err);
void qk_nbd_conn_begin(struct qk_nbd_conn *conn);
void qk_nbd_conn_event(struct qk_nbd_conn *conn, uint32_t events);
/* Jobs that workers are done with; go on where it was paused. */
void qk_nbd_conn_ready(struct qk_nbd_conn *conn, struct qk_nbd_job *done);
/* Time has passed: limits. */
void qk_nbd_conn_tick(struct qk_nbd_conn *conn, uint64_t now);
/* Take in what has arrived and no more. */
void qk_nbd_conn_stop(struct qk_nbd_conn *conn);
/* Answer what is under way, then close. */
void qk_nbd_conn_drain(struct qk_nbd_conn *conn);
/* Close now; `why` NULL: nobody's fault. */
void qk_nbd_conn_close(struct qk_nbd_conn *conn, const char *why);
void qk_nbd_conn_free(struct qk_nbd_conn *conn);

/* ---- receive.c: requests ---- */

/* Take in what there is and do what can be done. */
void qk_nbd_conn_receive(struct qk_nbd_conn *conn);
/* The same with what was received before, where it was paused or the others had their turn. */
void qk_nbd_conn_parse(struct qk_nbd_conn *conn);

/* The job is whole: carry it out here, or hand it to a worker. */
void qk_nbd_conn_launch(struct qk_nbd_conn *conn, struct qk_nbd_job *job);
/* A job was carried out: its reply goes out. */
void qk_nbd_conn_deliver(struct qk_nbd_conn *conn, struct qk_nbd_job *job);

/* ---- parts.c: one request at a time, and no other meanwhile ---- */

/* false: it is none that can be parted, or the connection holds something. */
bool qk_nbd_parts_begin(struct qk_nbd_conn *conn, const struct qk_nbd_request *rq);
/* Payload of a write. Returns the bytes that were used. */
size_t qk_nbd_parts_write(struct qk_nbd_conn *conn, const uint8_t *p, size_t n);
/* The next part of a read, where the one before was sent. */
void qk_nbd_parts_read(struct qk_nbd_conn *conn);
void qk_nbd_parts_done(struct qk_nbd_conn *conn, struct qk_nbd_job *job);

/* conn.c: one step of the handshake with [p, p + n); returns what was used, 0 where more is needed. */
size_t qk_nbd_conn_shake(struct qk_nbd_conn *conn, const uint8_t *p, size_t n);
/* Requests were taken in, replies made: send, go on to what comes then, watch for what is wanted. */
void qk_nbd_conn_settle(struct qk_nbd_conn *conn);

/* ---- send.c: replies ---- */

/* A reply behind the others. */
void qk_nbd_send_job(struct qk_nbd_conn *conn, struct qk_nbd_job *job);
/* n bytes of room behind the last reply, to be followed by qk_nbd_send_room_done with those that were used; NULL: no memory
 * now. n <= QK_NBD_SLAB_BYTES. */
uint8_t *qk_nbd_send_room(struct qk_nbd_conn *conn, size_t n);
void qk_nbd_send_room_done(struct qk_nbd_conn *conn, size_t n);
/* As much as the socket takes. false: the connection was closed. */
bool qk_nbd_send(struct qk_nbd_conn *conn);
void qk_nbd_send_drop(struct qk_nbd_conn *conn);

struct qk_nbd_job *qk_nbd_job_new(struct qk_nbd_conn *conn, const struct qk_nbd_request *rq);
void qk_nbd_job_free(struct qk_nbd_job *job);
/* Give it a buffer of n > 0 bytes. false: no memory. The loop's thread. */
bool qk_nbd_job_data(struct qk_nbd_job *job, size_t n);

/* ---- io.c: bytes through TLS or not ---- */

/* As readv: > 0 bytes, 0 at the end, -1 with errno (EAGAIN). */
ssize_t qk_nbd_io_recv(struct qk_nbd_conn *conn, struct iovec *iov, int n_iov);
ssize_t qk_nbd_io_send(struct qk_nbd_conn *conn, struct iovec *iov, int n_iov);
/* Bytes that were received and wait in the TLS layer, where epoll does not see them. */
bool qk_nbd_io_has_more(const struct qk_nbd_conn *conn);

#endif
