/* SPDX-License-Identifier: MIT */
#ifndef QK_STORE_NBD_WIRE_H
#define QK_STORE_NBD_WIRE_H

#include <pthread.h>
#include <stdatomic.h>

#include "store_nbd/lib.h"
#include "store_nbd/store_nbd.h"

/* A connection in transmission. Constant once the thread runs, but for `ends`. */
struct qk_nbd_wire {
	const struct qk_libnbd *lib;
	struct nbd_handle *nbd; /* libnbd locks it itself */
	int kick; /* eventfd: look again at what the connection waits for */
	pthread_t thread;
	atomic_bool ends;
	uint64_t size;
	uint32_t min_block, max_request;
	bool writable, can_flush, can_zero, has_extents;
};

extern const struct qcow_store_ops qk_nbd_wire_ops;

/* Start the thread. QCOW_E_IO. On success close with the ops' close. */
enum qcow_status qk_nbd_wire_start(struct qk_nbd_wire *wire, struct qcow_error *err)
	__attribute__((warn_unused_result));

#endif
