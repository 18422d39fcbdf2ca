/* SPDX-License-Identifier: MIT */
/*
 * gate: what every call on guest data passes, so that somebody can be alone with the images: a server is quiesced by
 * closing it. Closed as often as it was closed and not opened; who is inside does not pass it again.
 */
#ifndef QK_SERVE_VIEW_GATE_H
#define QK_SERVE_VIEW_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/err.h"

struct qk_view_gate {
	pthread_mutex_t lock; /* for sleeping alone */
	pthread_cond_t changed; /* nobody is inside; it opens; somebody's wait is over */
	_Atomic unsigned n_inside, n_closed;
};

static inline void qk_view_gate_init(struct qk_view_gate *g)
{
	(void)pthread_mutex_init(&g->lock, NULL);
	(void)pthread_cond_init(&g->changed, NULL);
	atomic_init(&g->n_inside, 0);
	atomic_init(&g->n_closed, 0);
}

static inline void qk_view_gate_release(struct qk_view_gate *g)
{
	(void)pthread_mutex_destroy(&g->lock);
	(void)pthread_cond_destroy(&g->changed);
}

/* Whoever sleeps looks again. */
static inline void qk_view_gate_wake(struct qk_view_gate *g)
{
	(void)pthread_mutex_lock(&g->lock);
	(void)pthread_cond_broadcast(&g->changed);
	(void)pthread_mutex_unlock(&g->lock);
}

static inline void qk_view_gate_leave(struct qk_view_gate *g)
{
	if (atomic_fetch_sub(&g->n_inside, 1) == 1 && atomic_load(&g->n_closed) != 0)
		qk_view_gate_wake(g);
}

/* False: it is closed, and nothing was entered. */
static inline bool qk_view_gate_try(struct qk_view_gate *g)
{
	atomic_fetch_add(&g->n_inside, 1);
	if (QK_LIKELY(atomic_load(&g->n_closed) == 0))
		return true;
	qk_view_gate_leave(g);
	return false;
}

/* Waits while it is closed. False: *is_over became true (qk_view_gate_wake tells of it). */
static inline bool qk_view_gate_enter(struct qk_view_gate *g, const _Atomic bool *is_over)
{
	while (!qk_view_gate_try(g)) {
		(void)pthread_mutex_lock(&g->lock);
		while (atomic_load(&g->n_closed) != 0 && !atomic_load(is_over))
			(void)pthread_cond_wait(&g->changed, &g->lock);
		(void)pthread_mutex_unlock(&g->lock);
		if (atomic_load(is_over))
			return false;
	}
	return true;
}

/* Waits until nobody is inside. */
static inline void qk_view_gate_close(struct qk_view_gate *g)
{
	(void)pthread_mutex_lock(&g->lock);
	atomic_fetch_add(&g->n_closed, 1);
	while (atomic_load(&g->n_inside) != 0)
		(void)pthread_cond_wait(&g->changed, &g->lock);
	(void)pthread_mutex_unlock(&g->lock);
}

static inline void qk_view_gate_open(struct qk_view_gate *g)
{
	atomic_fetch_sub(&g->n_closed, 1);
	qk_view_gate_wake(g);
}

#endif
