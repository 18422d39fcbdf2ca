/* SPDX-License-Identifier: MIT */
/*
 * fence: after a failure that leaves it uncertain what is on the disk, nothing is written until the image was
 * recovered. Remembers the first such failure and answers with it. Invariant 7 of doc/ARCHITECTURE.md.
 */
#ifndef QK_ENGINE_FENCE_H
#define QK_ENGINE_FENCE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/err.h"

struct qk_fence {
	_Atomic bool is_up;
	pthread_mutex_t lock; /* guards first */
	struct qcow_error first;
};

void qk_fence_init(struct qk_fence *fence);
void qk_fence_release(struct qk_fence *fence);

/* Put the fence up for the failure `status`, described by `err` (may be NULL); a fence that is up keeps its first
 * error. Answers `status`. Any thread. */
enum qcow_status qk_fence_raise(
	struct qk_fence *fence, enum qcow_status status, const struct qcow_error *err);

void qk_fence_lift(struct qk_fence *fence);

/* The first error, where the fence is up. */
enum qcow_status qk_fence_fail(struct qk_fence *fence, struct qcow_error *err);

static inline enum qcow_status qk_fence_check(struct qk_fence *fence, struct qcow_error *err)
{
	if (QK_LIKELY(!atomic_load_explicit(&fence->is_up, memory_order_acquire)))
		return QCOW_OK;
	return qk_fence_fail(fence, err);
}

#endif
