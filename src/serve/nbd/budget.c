/* SPDX-License-Identifier: MIT */
/*
 * budget: bytes that requests and replies hold, of a connection and of all (see core.h). Who asks for more than is left waits
 * in a line; the first of it is asked again whenever something was given back.
 */
#include "serve/nbd/core.h"

static bool is_first(const struct qk_nbd_budget *b, const struct qk_nbd_conn *conn)
{
	return b->first == NULL || b->first == conn;
}

static void remove_waiting(struct qk_nbd_budget *b, struct qk_nbd_conn *conn)
{
	struct qk_nbd_conn **at = &b->first, *before = NULL;
	if (!conn->is_waiting)
		return;
	while (*at != conn) {
		before = *at;
		at = &before->next_waiting;
	}
	*at = conn->next_waiting;
	if (b->last == conn)
		b->last = before;
	conn->next_waiting = NULL;
	conn->is_waiting = false;
	atomic_fetch_sub(&b->n_waiting, 1);
}

static void add_waiting(struct qk_nbd_budget *b, struct qk_nbd_conn *conn)
{
	if (conn->is_waiting)
		return;
	if (b->last != NULL)
		b->last->next_waiting = conn;
	else
		b->first = conn;
	b->last = conn;
	conn->is_waiting = true;
	atomic_fetch_add(&b->n_waiting, 1);
}

/* Its connections that wait for memory try again, and it watches those that hold it. */
static void tell(struct qk_nbd_loop *loop)
{
	pthread_mutex_lock(&loop->lock);
	loop->is_retry = true;
	pthread_mutex_unlock(&loop->lock);
	qk_nbd_loop_wake(loop);
}

bool qk_nbd_budget_take(struct qk_nbd_conn *conn, uint64_t bytes)
{
	struct qk_nbd_budget *b = &conn->server->budget;
	bool is_alone = conn->charged == 0;
	if (!is_alone && conn->charged + bytes > b->conn_limit)
		return false; /* asked again when it gives something back itself */
	pthread_mutex_lock(&b->lock);
	bool may = (is_alone && bytes <= QK_NBD_SLAB_BYTES) ||
		   (b->used + bytes <= b->limit && is_first(b, conn));
	bool is_new = !may && !conn->is_waiting;
	if (may) {
		b->used += bytes;
		remove_waiting(b, conn);
	} else {
		add_waiting(b, conn);
	}
	struct qk_nbd_conn *next = may ? b->first : NULL;
	struct qk_nbd_loop *loop = next != NULL ? next->loop : NULL;
	pthread_mutex_unlock(&b->lock);
	if (may)
		conn->charged += bytes;
	if (loop != NULL) /* what is left may do for the next one */
		tell(loop);
	for (unsigned i = 0; is_new && i < conn->server->n_loops; i++)
		tell(&conn->server->loops[i]);
	return may;
}

void qk_nbd_budget_give(struct qk_nbd_conn *conn, uint64_t bytes)
{
	struct qk_nbd_budget *b = &conn->server->budget;
	conn->charged -= bytes;
	pthread_mutex_lock(&b->lock);
	b->used -= bytes;
	struct qk_nbd_loop *loop = b->first != NULL ? b->first->loop : NULL;
	pthread_mutex_unlock(&b->lock);
	if (loop != NULL)
		tell(loop);
}

void qk_nbd_budget_leave(struct qk_nbd_conn *conn)
{
	struct qk_nbd_budget *b = &conn->server->budget;
	pthread_mutex_lock(&b->lock);
	remove_waiting(b, conn);
	pthread_mutex_unlock(&b->lock);
}
