/* SPDX-License-Identifier: MIT */
#include "turns.h"

#include <stdbool.h>

int __real_pthread_rwlock_rdlock(pthread_rwlock_t *l);
int __real_pthread_rwlock_wrlock(pthread_rwlock_t *l);
int __real_pthread_rwlock_unlock(pthread_rwlock_t *l);
int __wrap_pthread_mutex_lock(pthread_mutex_t *m);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *m);
int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m);
int __wrap_pthread_cond_broadcast(pthread_cond_t *c);
int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *l);
int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *l);
int __wrap_pthread_rwlock_unlock(pthread_rwlock_t *l);

struct turns turns = {.lock = PTHREAD_MUTEX_INITIALIZER, .turn = PTHREAD_COND_INITIALIZER};

_Thread_local int turn_self = -1;

static bool is_enabled(int who)
{
	return turns.state[who] == AT_CALL ||
	       (turns.state[who] == WAITS && turns.seen[who] != turns.released);
}

int turn_choose(void)
{
	bool a = is_enabled(0), b = is_enabled(1);
	unsigned char n = (unsigned char)(a && b ? 2 : 1);
	if (!a && !b) {
		if (turns.state[0] == ENDED && turns.state[1] == ENDED)
			return -1;
		turn_die("deadlock: both wait");
	}
	if (n == 1)
		return a ? 0 : 1;
	if (turns.n == MAX_CHOICES)
		turn_die("more choices than expected: one waits without end");
	if (turns.n >= turns.n_given)
		turns.choices[turns.n] = 0;
	turns.n_alternatives[turns.n] = n;
	return turns.choices[turns.n++];
}

void turn_yield(enum state state)
{
	(void)__real_pthread_mutex_lock(&turns.lock);
	turns.state[turn_self] = state;
	turns.seen[turn_self] = turns.released;
	turns.running = turn_choose();
	(void)__real_pthread_cond_broadcast(&turns.turn);
	while (state != ENDED && turns.running != turn_self)
		(void)__real_pthread_cond_wait(&turns.turn, &turns.lock);
	(void)__real_pthread_mutex_unlock(&turns.lock);
}

static void release(void)
{
	turns.released++; /* one thread runs at a time */
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *m)
{
	if (turn_self < 0)
		return __real_pthread_mutex_lock(m);
	while (pthread_mutex_trylock(m) != 0)
		turn_yield(WAITS);
	return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *m)
{
	int rc = __real_pthread_mutex_unlock(m);
	if (turn_self >= 0)
		release();
	return rc;
}

int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
	if (turn_self < 0)
		return __real_pthread_cond_wait(c, m);
	(void)__real_pthread_mutex_unlock(m);
	release();
	turn_yield(WAITS);
	return __wrap_pthread_mutex_lock(m);
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *c)
{
	if (turn_self >= 0)
		release();
	return __real_pthread_cond_broadcast(c);
}

int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *l)
{
	if (turn_self < 0)
		return __real_pthread_rwlock_rdlock(l);
	while (pthread_rwlock_tryrdlock(l) != 0)
		turn_yield(WAITS);
	return 0;
}

int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *l)
{
	if (turn_self < 0)
		return __real_pthread_rwlock_wrlock(l);
	while (pthread_rwlock_trywrlock(l) != 0)
		turn_yield(WAITS);
	return 0;
}

int __wrap_pthread_rwlock_unlock(pthread_rwlock_t *l)
{
	int rc = __real_pthread_rwlock_unlock(l);
	if (turn_self >= 0)
		release();
	return rc;
}

/* ---- the store that the threads call: each call is a point of choice ---- */

static void point(void)
{
	if (turn_self >= 0)
		turn_yield(AT_CALL);
}

static enum qcow_status gate_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	point();
	return qcow_store_readv(ctx, iov, n_iov, off, err);
}

static enum qcow_status gate_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	point();
	return qcow_store_writev(ctx, iov, n_iov, off, err);
}

static enum qcow_status gate_flush(void *ctx, struct qcow_error *err)
{
	point();
	return qcow_store_flush(ctx, err);
}

static enum qcow_status gate_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	return qcow_store_size(ctx, size_bytes, err);
}

static enum qcow_status gate_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	point();
	return qcow_store_truncate(ctx, size_bytes, err);
}

static enum qcow_status gate_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	point();
	return qcow_store_zero(ctx, off, len, flags, err);
}

static enum qcow_status gate_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	point();
	return qcow_store_punch(ctx, off, len, err);
}

static void gate_caps(void *ctx, struct qcow_store_caps *out)
{
	qcow_store_caps(ctx, out);
}

static void gate_close(void *ctx)
{
	qcow_store_close(ctx);
}

const struct qcow_store_ops turn_store_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "gate",
	.preadv = gate_preadv,
	.pwritev = gate_pwritev,
	.flush = gate_flush,
	.size = gate_size,
	.truncate = gate_truncate,
	.zero = gate_zero,
	.punch = gate_punch,
	.caps = gate_caps,
	.close = gate_close,
};
