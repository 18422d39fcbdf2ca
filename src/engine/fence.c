/* SPDX-License-Identifier: MIT */
/*
 * fence: see fence.h. Locking: lock is a leaf.
 */
#include "engine/fence.h"

#include "engine/locks.h"

void qk_fence_init(struct qk_fence *fence)
{
	*fence = (struct qk_fence){.first = QCOW_ERROR_INIT};
	(void)pthread_mutex_init(&fence->lock, NULL);
}

void qk_fence_release(struct qk_fence *fence)
{
	(void)pthread_mutex_destroy(&fence->lock);
}

enum qcow_status qk_fence_raise(
	struct qk_fence *fence, enum qcow_status status, const struct qcow_error *err)
{
	qk_lock(&fence->lock);
	if (!atomic_load_explicit(&fence->is_up, memory_order_relaxed)) {
		fence->first = (struct qcow_error)QCOW_ERROR_INIT;
		fence->first.status = status;
		if (err != NULL)
			fence->first = *err;
		atomic_store_explicit(&fence->is_up, true, memory_order_release);
	}
	qk_unlock(&fence->lock);
	return status;
}

void qk_fence_lift(struct qk_fence *fence)
{
	qk_lock(&fence->lock);
	atomic_store_explicit(&fence->is_up, false, memory_order_release);
	qk_unlock(&fence->lock);
}

enum qcow_status qk_fence_fail(struct qk_fence *fence, struct qcow_error *err)
{
	enum qcow_status status = QCOW_OK;
	qk_lock(&fence->lock);
	if (atomic_load_explicit(&fence->is_up, memory_order_relaxed)) {
		status = fence->first.status;
		if (err != NULL)
			*err = fence->first;
	}
	qk_unlock(&fence->lock);
	if (status != QCOW_OK)
		qk_err_context(err, "nothing is written since an earlier failure");
	return status;
}
