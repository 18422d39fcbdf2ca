/* SPDX-License-Identifier: MIT */
/*
 * publish: see publish.h.
 *
 * Sharing: a call notes how many publications have begun. Once it has the lock, a publication that began after
 * that and ended well has done its work.
 */
#include "engine/publish.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/mem.h"
#include "engine/image.h"
#include "engine/locks.h"
#include "engine/rw.h"

struct qk_publish {
	struct qcow_image *image;
	pthread_mutex_t lock;
	_Atomic uint64_t n_begun;
	uint64_t done; /* number of the last that ended well; guarded by lock */
};

enum qcow_status qk_publish_new(
	struct qcow_image *image, struct qk_publish **out, struct qcow_error *err)
{
	struct qk_publish *p = qk_calloc(1, sizeof(*p));
	if (p == NULL)
		return QK_FAIL_NOMEM(err);
	p->image = image;
	(void)pthread_mutex_init(&p->lock, NULL);
	*out = p;
	return QCOW_OK;
}

void qk_publish_free(struct qk_publish *p)
{
	if (p == NULL)
		return;
	(void)pthread_mutex_destroy(&p->lock);
	free(p);
}

/* Flush the store; a failure fences, for what it lost is not known. */
static enum qcow_status barrier(struct qk_publish *p, struct qcow_error *err)
{
	struct qcow_error own = QCOW_ERROR_INIT;
	enum qcow_status status = qcow_store_flush(p->image->store, &own);
	if (QK_LIKELY(status == QCOW_OK))
		return QCOW_OK;
	if (err != NULL)
		*err = own;
	return qk_fence_raise(&p->image->rw->fence, status, &own);
}

static enum qcow_status publish(struct qk_publish *p, struct qcow_error *err)
{
	QK_TRY(qk_fence_check(&p->image->rw->fence, err));
	return barrier(p, err);
}

enum qcow_status qk_publish_flush(struct qk_publish *p, struct qcow_error *err)
{
	uint64_t seen = atomic_load(&p->n_begun);
	enum qcow_status status = QCOW_OK;
	qk_lock(&p->lock);
	if (p->done <= seen) {
		uint64_t mine = atomic_fetch_add(&p->n_begun, 1) + 1;
		status = publish(p, err);
		if (status == QCOW_OK)
			p->done = mine;
	}
	qk_unlock(&p->lock);
	return status;
}

enum qcow_status qk_publish_recover(struct qk_publish *p, struct qcow_error *err)
{
	struct qk_fence *fence = &p->image->rw->fence;
	enum qcow_status status = QCOW_OK;
	qk_lock(&p->lock);
	if (qk_fence_check(fence, NULL) != QCOW_OK) {
		status = qcow_store_flush(p->image->store, err);
		if (status == QCOW_OK)
			qk_fence_lift(fence);
	}
	qk_unlock(&p->lock);
	return status;
}
