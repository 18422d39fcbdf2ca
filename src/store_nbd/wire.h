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
	uint64_t size; /* of the export, as the first connection saw it */
	int kick; /* eventfd: look again at what the connection waits for; -1 before the thread */
	pthread_t thread;
	bool has_thread;
	atomic_bool ends, is_up; /* is_up: takes requests */
	atomic_uint n_calls; /* that wait for it */
};

/* An export. The first connection is there from the start; the others come up where callers meet. */
struct qk_nbd_disk {
	const struct qk_libnbd *lib;
	struct qk_nbd_address address; /* its own */
	struct qk_nbd_wire wires[QK_NBD_CONNECTIONS];
	atomic_uint n_calls;
	atomic_bool is_widened;
	uint64_t size;
	uint32_t min_block, max_request;
	bool writable, can_flush, can_zero, has_extents, can_widen;
};

extern const struct qcow_store_ops qk_nbd_disk_ops;

/* Begin the other connections, without waiting for them. A server that does not take them is used by the first alone. */
void qk_nbd_disk_widen(struct qk_nbd_disk *disk);
/* Close the connections and free. */
void qk_nbd_disk_free(struct qk_nbd_disk *disk);

enum qk_nbd_turn {
	QK_NBD_TURNED,
	QK_NBD_LOST,
	QK_NBD_TIME_IS_OVER
};

/* Wait for the connection and move it on, once. -1: any time. */
enum qk_nbd_turn qk_nbd_wire_turn(struct qk_nbd_wire *wire, int timeout_ms);
/* Start the thread. QCOW_E_IO. */
enum qcow_status qk_nbd_wire_start(struct qk_nbd_wire *wire, struct qcow_error *err)
	__attribute__((warn_unused_result));
/* Stop the thread, if there is one, and close. */
void qk_nbd_wire_end(struct qk_nbd_wire *wire);
void qk_nbd_wire_kick(struct qk_nbd_wire *wire);
bool qk_nbd_wire_is_lost(const struct qk_nbd_wire *wire);

#endif
