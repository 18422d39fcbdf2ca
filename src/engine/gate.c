/* SPDX-License-Identifier: MIT */
/*
 * gate: see gate.h.
 *
 * Invariants: J1 a counter is never negative; J2 who opens it has closed it.
 * Order of memory: counting and looking at is_closed are sequentially consistent. Either who enters sees that the gate is
 * closed, or who closes it sees the count.
 * Locking: lock guards the sleep of those who wait; a leaf.
 */
#include "engine/gate.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "engine/locks.h"

#define N_SLOTS 16U

struct slot {
	_Alignas(64) _Atomic uint32_t n;
};

struct qk_gate {
	struct slot slots[N_SLOTS];
	_Alignas(64) _Atomic bool is_closed;
	pthread_mutex_t lock;
	pthread_cond_t changed;
};

enum qcow_status qk_gate_new(struct qk_gate **out, struct qcow_error *err)
{
	struct qk_gate *gate = qk_malloc_aligned(_Alignof(struct qk_gate), sizeof(*gate));
	if (gate == NULL)
		return QK_FAIL_NOMEM(err);
	memset(gate, 0, sizeof(*gate));
	/* neither can fail with default attributes on the platforms that we build for */
	(void)pthread_mutex_init(&gate->lock, NULL);
	(void)pthread_cond_init(&gate->changed, NULL);
	*out = gate;
	return QCOW_OK;
}

void qk_gate_free(struct qk_gate *gate)
{
	if (gate == NULL)
		return;
	(void)pthread_cond_destroy(&gate->changed);
	(void)pthread_mutex_destroy(&gate->lock);
	free(gate);
}

/* Threads have their descriptors pages apart. */
static unsigned own_slot(void)
{
	uint64_t self = (uint64_t)pthread_self();
	return (unsigned)((self * UINT64_C(0x9e3779b97f4a7c15)) >> 60) % N_SLOTS;
}

void qk_gate_leave(struct qk_gate *gate, unsigned token)
{
	uint32_t before = atomic_fetch_sub(&gate->slots[token].n, 1);
	QK_ASSERT_VOID(J1, before != 0);
	if (QK_LIKELY(!atomic_load(&gate->is_closed)))
		return;
	qk_lock(&gate->lock);
	(void)pthread_cond_broadcast(&gate->changed);
	qk_unlock(&gate->lock);
}

unsigned qk_gate_enter(struct qk_gate *gate)
{
	unsigned slot = own_slot();
	for (;;) {
		(void)atomic_fetch_add(&gate->slots[slot].n, 1);
		if (QK_LIKELY(!atomic_load(&gate->is_closed)))
			return slot;
		qk_gate_leave(gate, slot);
		qk_lock(&gate->lock);
		while (atomic_load(&gate->is_closed))
			(void)pthread_cond_wait(&gate->changed, &gate->lock);
		qk_unlock(&gate->lock);
	}
}

bool qk_gate_try(struct qk_gate *gate, unsigned *token)
{
	*token = own_slot();
	(void)atomic_fetch_add(&gate->slots[*token].n, 1);
	if (QK_LIKELY(!atomic_load(&gate->is_closed)))
		return true;
	qk_gate_leave(gate, *token);
	return false;
}

static bool is_empty(struct qk_gate *gate)
{
	for (unsigned i = 0; i < N_SLOTS; i++)
		if (atomic_load(&gate->slots[i].n) != 0)
			return false;
	return true;
}

void qk_gate_close(struct qk_gate *gate)
{
	qk_lock(&gate->lock);
	while (atomic_load(&gate->is_closed))
		(void)pthread_cond_wait(&gate->changed, &gate->lock);
	atomic_store(&gate->is_closed, true);
	while (!is_empty(gate))
		(void)pthread_cond_wait(&gate->changed, &gate->lock);
	qk_unlock(&gate->lock);
}

void qk_gate_open(struct qk_gate *gate)
{
	qk_lock(&gate->lock);
	QK_ASSERT_VOID(J2, atomic_load(&gate->is_closed));
	atomic_store(&gate->is_closed, false);
	(void)pthread_cond_broadcast(&gate->changed);
	qk_unlock(&gate->lock);
}
