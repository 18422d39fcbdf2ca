/* SPDX-License-Identifier: MIT */
#ifndef QK_STORE_NBD_WIRE_H
#define QK_STORE_NBD_WIRE_H

#include <pthread.h>
#include <stdatomic.h>

#include "store_nbd/lib.h"
#include "store_nbd/store_nbd.h"

#define QK_NBD_CONNECTIONS 4 /* at most, to one export */

/* A connection. Constant once the thread runs, but for the atomics. */
struct qk_nbd_wire {
	const struct qk_libnbd *lib;
	struct nbd_handle *nbd; /* libnbd locks it itself; NULL: not begun */
	const struct qk_nbd_wire *first; /* NULL: it is that itself */
	uint64_t size; /* of the export, as the first connection saw it */
	int kick; /* eventfd: look again at what the connection waits for; -1 before the thread */
	pthread_t thread;
	bool has_thread;
	atomic_bool ends, is_up; /* is_up: takes requests */
	atomic_uint n_calls; /* that wait for it */
};

enum qk_nbd_op_kind {
	QK_NBD_OP_READ,
	QK_NBD_OP_WRITE,
	QK_NBD_OP_ZERO,
	QK_NBD_OP_FLUSH,
	QK_NBD_OP_STATUS
};

/* What a block status is asked for, and its first answer. */
struct qk_nbd_asked {
	const char *context;
	unsigned mask; /* the bits that count */
	uint64_t off; /* where the request begins */
	uint64_t len; /* of one answer from there; 0: none yet */
	unsigned bits;
	bool ended;
};

/* A call, which is as good when it is done twice. */
struct qk_nbd_op {
	enum qk_nbd_op_kind kind;
	const struct iovec *iov; /* of reads and writes */
	int n_iov;
	uint64_t off, len; /* len: of the others */
	uint32_t flags; /* LIBNBD_CMD_FLAG_… of zeros */
	struct qk_nbd_asked *asked;
};

/* again.c: the end of a connection and its next beginning. `lock` guards it all. */
struct qk_nbd_kept;
struct qk_nbd_lives {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned number; /* connections that were lost and made again */
	unsigned n_inside; /* calls that use this one */
	bool is_between, is_over; /* it is being made again; it was not in time */
	struct qk_nbd_kept *first,
		*last; /* changes that no flush has covered, in the order they were begun */
	uint64_t kept_bytes, n_flushes;
	_Atomic int flush_error; /* of one that nobody asked for: not told yet */
};

/* An export. The first connection is there from the start; the others come up where callers meet. */
struct qk_nbd_disk {
	const struct qk_libnbd *lib;
	struct qk_nbd_address address; /* its own */
	struct qk_nbd_wire wires[QK_NBD_CONNECTIONS];
	atomic_uint n_calls;
	atomic_bool is_widened;
	struct qk_nbd_lives lives;
	uint64_t size;
	uint32_t min_block, max_request;
	bool writable, can_flush, can_zero, has_extents, can_widen;
};

extern const struct qcow_store_ops qk_nbd_disk_ops;

/* The one context that is asked about. */
static inline const char *qk_nbd_context_of(const struct qk_nbd_address *a)
{
	return a->dirty_bitmap != NULL ? a->dirty_bitmap : LIBNBD_CONTEXT_BASE_ALLOCATION;
}

/* Begin the other connections, without waiting for them. A server that does not take them is used by the first alone. */
void qk_nbd_disk_widen(struct qk_nbd_disk *disk);
/* One try: 0 or an errno value. *is_lost: it failed because the connection did. */
int qk_nbd_op_once(struct qk_nbd_disk *disk, const struct qk_nbd_op *op, bool *is_lost);
/* The same, and again on the next connection, where the address asks for that (again.c). */
int qk_nbd_op_run(struct qk_nbd_disk *disk, const struct qk_nbd_op *op, bool *is_lost);
void qk_nbd_lives_init(struct qk_nbd_lives *lives);
void qk_nbd_lives_release(struct qk_nbd_lives *lives);
/* End all connections, the first one last: the others look at it. */
void qk_nbd_disk_end(struct qk_nbd_disk *disk);
/* The same, and free. */
void qk_nbd_disk_free(struct qk_nbd_disk *disk);

enum qk_nbd_turn {
	QK_NBD_TURNED,
	QK_NBD_LOST,
	QK_NBD_TIME_IS_OVER
};

/* Wait for the connection and move it on, once. -1: any time. */
enum qk_nbd_turn qk_nbd_wire_turn(struct qk_nbd_wire *wire, int timeout_ms);
/* The same until it neither connects nor negotiates, or the clock says `deadline`. QK_NBD_TURNED: so it is. */
enum qk_nbd_turn qk_nbd_wire_settle(struct qk_nbd_wire *wire, int64_t deadline_ms);
int64_t qk_nbd_clock_ms(void); /* monotonic */
/* Connected and ready for requests before the deadline, once (open.c). Ended by qk_nbd_wire_end, after a failure too. */
enum qcow_status qk_nbd_wire_reach(struct qk_nbd_wire *wire, const struct qk_nbd_address *address,
	int64_t deadline_ms, struct qcow_error *err) __attribute__((warn_unused_result));
/* Start the thread. QCOW_E_IO. */
enum qcow_status qk_nbd_wire_start(struct qk_nbd_wire *wire, struct qcow_error *err)
	__attribute__((warn_unused_result));
/* Stop the thread, if there is one, and close: at once, or when the server took the farewell, or at the deadline. */
void qk_nbd_wire_end(struct qk_nbd_wire *wire, int64_t deadline_ms);
/* The deadline for a farewell that is said now: 2 s, for all connections together. */
int64_t qk_nbd_farewell_ms(void);
void qk_nbd_wire_kick(struct qk_nbd_wire *wire);
bool qk_nbd_wire_is_lost(const struct qk_nbd_wire *wire);

#endif
