/* SPDX-License-Identifier: MIT */
/*
 * epoch: see epoch.h. Counters in two phases: who enters counts in the current phase, who waits turns
 * the phase and waits until the other one is empty. A thread may read the phase, be held up, and count in
 * the old one after the turn; so the phase that becomes current is waited for first: it then holds only
 * such late ones, who began after an earlier turn and are waited for as well.
 *
 * Invariants: E1 a counter is never negative; E2 a waiter is in no epoch.
 * Order of memory: counting, and looking at the counters, is sequentially consistent. Either the waiter sees
 * the count, or the one who counts sees what the waiter's caller did before.
 * Locking: turn_lock: one waiter at a time. lock guards the sleep of the waiter; a leaf.
 */
#include "engine/epoch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "engine/locks.h"

#define N_SLOTS 16U

struct slot {
	_Alignas(64) _Atomic uint32_t n[2];
};

struct qk_epoch {
	struct slot slots[N_SLOTS];
	_Alignas(64) _Atomic unsigned phase;
	_Atomic bool is_awaited;
	pthread_mutex_t turn_lock;
	pthread_mutex_t lock;
	pthread_cond_t left;
};

enum qcow_status qk_epoch_new(struct qk_epoch **out, struct qcow_error *err)
{
	struct qk_epoch *epoch = qk_malloc_aligned(_Alignof(struct qk_epoch), sizeof(*epoch));
	if (epoch == NULL)
		return QK_FAIL_NOMEM(err);
	memset(epoch, 0, sizeof(*epoch));
	/* none of these can fail with default attributes on the platforms that we build for */
	(void)pthread_mutex_init(&epoch->turn_lock, NULL);
	(void)pthread_mutex_init(&epoch->lock, NULL);
	(void)pthread_cond_init(&epoch->left, NULL);
	*out = epoch;
	return QCOW_OK;
}

void qk_epoch_free(struct qk_epoch *epoch)
{
	if (epoch == NULL)
		return;
	(void)pthread_cond_destroy(&epoch->left);
	(void)pthread_mutex_destroy(&epoch->lock);
	(void)pthread_mutex_destroy(&epoch->turn_lock);
	free(epoch);
}

/* Threads have their descriptors pages apart. */
static unsigned own_slot(void)
{
	uint64_t self = (uint64_t)pthread_self();
	return (unsigned)((self * UINT64_C(0x9e3779b97f4a7c15)) >> 60) % N_SLOTS;
}

unsigned qk_epoch_enter(struct qk_epoch *epoch)
{
	unsigned slot = own_slot();
	unsigned phase = atomic_load(&epoch->phase) & 1;
	(void)atomic_fetch_add(&epoch->slots[slot].n[phase], 1);
	return slot * 2 + phase;
}

void qk_epoch_leave(struct qk_epoch *epoch, unsigned token)
{
	uint32_t before = atomic_fetch_sub(&epoch->slots[token / 2].n[token & 1], 1);
	QK_ASSERT_VOID(E1, before != 0);
	if (QK_LIKELY(!atomic_load(&epoch->is_awaited)))
		return;
	qk_lock(&epoch->lock);
	(void)pthread_cond_broadcast(&epoch->left);
	qk_unlock(&epoch->lock);
}

static bool is_empty(struct qk_epoch *epoch, unsigned phase)
{
	for (unsigned i = 0; i < N_SLOTS; i++)
		if (atomic_load(&epoch->slots[i].n[phase]) != 0)
			return false;
	return true;
}

static void wait_for(struct qk_epoch *epoch, unsigned phase)
{
	if (is_empty(epoch, phase))
		return;
	qk_lock(&epoch->lock);
	atomic_store(&epoch->is_awaited, true);
	while (!is_empty(epoch, phase))
		(void)pthread_cond_wait(&epoch->left, &epoch->lock);
	atomic_store(&epoch->is_awaited, false);
	qk_unlock(&epoch->lock);
}

void qk_epoch_wait(struct qk_epoch *epoch)
{
	qk_lock(&epoch->turn_lock);
	unsigned old = atomic_load(&epoch->phase) & 1;
	wait_for(epoch, old ^ 1);
	atomic_store(&epoch->phase, old ^ 1);
	wait_for(epoch, old);
	qk_unlock(&epoch->turn_lock);
}
