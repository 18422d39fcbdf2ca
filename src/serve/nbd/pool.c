/* SPDX-License-Identifier: MIT */
/*
 * pool: threads that carry out what may wait for a disk (see core.h), in the order it came.
 */
#include "serve/nbd/core.h"

#include <signal.h>

#include "base/err.h"

static struct qk_nbd_job *next_job(struct qk_nbd_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	pool->n_idle++;
	while (pool->first == NULL && !pool->is_over)
		pthread_cond_wait(&pool->work, &pool->lock);
	pool->n_idle--;
	struct qk_nbd_job *job = pool->first;
	if (job != NULL)
		pool->first = job->next;
	if (pool->first == NULL)
		pool->last = NULL;
	pthread_mutex_unlock(&pool->lock);
	return job;
}

static void *work(void *arg)
{
	struct qk_nbd_pool *pool = arg;
	struct qk_nbd_job *job;
	while ((job = next_job(pool)) != NULL) {
		struct qk_nbd_registry *registry = &job->conn->server->registry;
		if (qk_view_gate_enter(&registry->gate, &job->conn->is_cut)) {
			qk_nbd_execute(job);
			qk_view_gate_leave(&registry->gate);
		} else {
			qk_nbd_fail(job, QK_NBD_ESHUTDOWN, "the connection ends");
		}
		qk_nbd_loop_done(job);
	}
	return NULL;
}

void qk_nbd_pool_add(struct qk_nbd_pool *pool, struct qk_nbd_job *job)
{
	job->next = NULL;
	pthread_mutex_lock(&pool->lock);
	if (pool->last != NULL)
		pool->last->next = job;
	else
		pool->first = job;
	pool->last = job;
	if (pool->n_idle != 0)
		pthread_cond_signal(&pool->work);
	pthread_mutex_unlock(&pool->lock);
}

enum qcow_status qk_nbd_pool_start(struct qk_nbd_pool *pool, unsigned n, struct qcow_error *err)
{
	pool->threads = qk_calloc(n, sizeof(*pool->threads));
	if (pool->threads == NULL)
		return QK_FAIL_NOMEM(err);
	for (; pool->n_threads < n; pool->n_threads++) {
		int failed = pthread_create(&pool->threads[pool->n_threads], NULL, work, pool);
		if (failed != 0)
			return QK_FAIL_OS(err, failed, "making a thread");
	}
	return QCOW_OK;
}

void qk_nbd_pool_stop(struct qk_nbd_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	pool->is_over = true;
	pthread_cond_broadcast(&pool->work);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->n_threads; i++)
		pthread_join(pool->threads[i], NULL);
	free(pool->threads);
	pool->threads = NULL;
	pool->n_threads = 0;
}
