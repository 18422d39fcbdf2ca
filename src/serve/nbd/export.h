/* SPDX-License-Identifier: MIT */
/*
 * export: what is served, by name, and the gate that every call of an export passes.
 *
 * A node lives while the registry names it, a handshake looks at it or a connection serves it. Everything in it that may change
 * is under the registry's mutex, but its size (atomic) and, for who is in the gate, its bitmaps.
 */
#ifndef QK_SERVE_NBD_EXPORT_H
#define QK_SERVE_NBD_EXPORT_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/bytes.h"
#include "serve/nbd/server.h"
#include "serve/view/gate.h"

struct qk_nbd_node {
	struct qk_nbd_node *next; /* in the order they were added */
	struct qk_nbd_node *next_alike; /* of the same place in `heads` */
	char *name, *description;
	_Atomic uint64_t size;
	bool read_only, multi_conn, rotational, has_depth, needs_tls;
	uint32_t min_block, preferred_block, max_block;
	unsigned max_connections;
	const struct qk_nbd_export_ops *ops;
	void *ctx;
	char **bitmaps;
	unsigned n_bitmaps;
	unsigned n_refs, n_connections;
	_Atomic bool is_removed, is_resting; /* resting: nobody may come, and who is there is cut */
	/* Calls by a loop itself were slow: until then (monotonic ns) they are a worker's. */
	_Atomic uint64_t slow_until;
};

#define QK_NBD_HEADS 1024U
struct qk_nbd_registry {
	pthread_mutex_t lock;
	pthread_cond_t closed; /* a node that was taken out lost a reference */
	struct qk_nbd_node *first, *last;
	struct qk_nbd_node
		*heads[QK_NBD_HEADS]; /* by a hash of the name: there may be 65,536 snapshots */
	struct qk_view_gate gate;
};

enum qcow_status qk_nbd_registry_init(struct qk_nbd_registry *r, struct qcow_error *err);
/* Nobody has a node any more. Closes them. */
void qk_nbd_registry_release(struct qk_nbd_registry *r);

enum qcow_status qk_nbd_registry_add(
	struct qk_nbd_registry *r, const struct qk_nbd_export *export, struct qcow_error *err);

/* The node with this name; the only one there is for "". NULL: none. To be put. */
struct qk_nbd_node *qk_nbd_registry_find(struct qk_nbd_registry *r, struct qk_span name);
/* The next node behind `after` (which is put; NULL: the first), in the order they were added. */
struct qk_nbd_node *qk_nbd_registry_next(struct qk_nbd_registry *r, struct qk_nbd_node *after);
struct qk_nbd_node *qk_nbd_node_get(struct qk_nbd_registry *r, struct qk_nbd_node *node);
/* NULL is allowed. */
void qk_nbd_node_put(struct qk_nbd_registry *r, struct qk_nbd_node *node);

/* A connection that serves it: false where there are as many as may be, or it is gone. */
bool qk_nbd_node_attach(struct qk_nbd_registry *r, struct qk_nbd_node *node);
void qk_nbd_node_detach(struct qk_nbd_registry *r, struct qk_nbd_node *node);

/* Take it out; the caller gets its reference. NULL: none, or (with refuse_used) *is_used. */
struct qk_nbd_node *qk_nbd_registry_take(
	struct qk_nbd_registry *r, const char *name, bool refuse_used, bool *is_used);
/* Put the last but connections' reference, and wait until the node is closed. */
void qk_nbd_node_put_wait(struct qk_nbd_registry *r, struct qk_nbd_node *node);

/* Nobody may attach to it from here on. With `hard` the caller lets its connections be closed, and qk_nbd_node_rest_wait
 * returns when they are. false, and nothing was done: it has some. */
bool qk_nbd_node_rest(struct qk_nbd_registry *r, struct qk_nbd_node *node, bool hard);
void qk_nbd_node_rest_wait(struct qk_nbd_registry *r, struct qk_nbd_node *node);

enum qcow_status qk_nbd_node_set_bitmaps(struct qk_nbd_registry *r, struct qk_nbd_node *node,
	const char *const *bitmaps, unsigned n_bitmaps, struct qcow_error *err);

/* The transmission flags that do not depend on the connection. */
uint16_t qk_nbd_node_flags(const struct qk_nbd_node *node);

#endif
