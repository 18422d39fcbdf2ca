/* SPDX-License-Identifier: MIT */
/*
 * again: a connection that was lost is made again, for so long as the address says, and calls that it failed are repeated.
 *
 * A server that died may have lost what it had answered and not flushed. So every change is kept here, bytes and all, until a
 * flush that was begun after its answer has succeeded. On the next connection what was answered is done again, in the order in which
 * it was begun, before anybody's call; so nothing that was written is missing, neither for who reads nor for who flushes.
 * What was not answered its caller repeats. Where more than KEPT_MOST would be kept, a flush comes first; that it failed is told to
 * the next who flushes, too. A server that is not there in time fails every later call; one that dies of a call again and
 * again fails that call, when it has done so for as long.
 *
 * Two changes of one range that were under way together have no order, here as anywhere.
 *
 * Locking: `lives.lock`, never held across I/O. Who makes the next connection waits until nobody uses the old one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "store_nbd/wire.h"

#define KEPT_MOST  (UINT64_C(32) << 20)
#define KEPT_EXTRA 256U /* what a change costs beside its bytes, about */
#define PAUSE_MS   5 /* between two tries, at first; longer each time */
#define PAUSE_MOST 250

/* A change. */
struct qk_nbd_kept {
	struct qk_nbd_kept *next, *prev;
	struct qk_nbd_op op;
	struct iovec iov;
	bool is_done; /* answered */
	uint64_t done_at; /* flushes that had been begun by then */
	uint8_t data[];
};

void qk_nbd_lives_init(struct qk_nbd_lives *l)
{
	(void)pthread_mutex_init(&l->lock, NULL);
	(void)pthread_cond_init(&l->changed, NULL);
}

/* ---- what is kept; with the lock ---- */

static void put(struct qk_nbd_lives *l, struct qk_nbd_kept *k)
{
	k->prev = l->last;
	k->next = NULL;
	if (l->last != NULL)
		l->last->next = k;
	else
		l->first = k;
	l->last = k;
	l->kept_bytes += k->iov.iov_len + KEPT_EXTRA;
}

static void take_out(struct qk_nbd_lives *l, struct qk_nbd_kept *k)
{
	if (k->prev != NULL)
		k->prev->next = k->next;
	else
		l->first = k->next;
	if (k->next != NULL)
		k->next->prev = k->prev;
	else
		l->last = k->prev;
	l->kept_bytes -= k->iov.iov_len + KEPT_EXTRA;
}

static void drop(struct qk_nbd_lives *l, struct qk_nbd_kept *k)
{
	take_out(l, k);
	free(k);
}

/* Flush number `flush` has succeeded. */
static void drop_flushed(struct qk_nbd_lives *l, uint64_t flush)
{
	struct qk_nbd_kept *next = NULL;
	for (struct qk_nbd_kept *k = l->first; k != NULL; k = next) {
		next = k->next;
		if (k->is_done && k->done_at < flush)
			drop(l, k);
	}
}

void qk_nbd_lives_release(struct qk_nbd_lives *l)
{
	struct qk_nbd_kept *next = NULL;
	for (struct qk_nbd_kept *k = l->first; k != NULL; k = next) {
		next = k->next;
		free(k);
	}
	(void)pthread_cond_destroy(&l->changed);
	(void)pthread_mutex_destroy(&l->lock);
}

/* A copy of a change that is about to be made; NULL: no memory. */
static struct qk_nbd_kept *copy_of(const struct qk_nbd_op *op)
{
	size_t n = 0, at = 0;
	for (int i = 0; i < op->n_iov; i++)
		n += op->iov[i].iov_len;
	struct qk_nbd_kept *k = qk_malloc(sizeof(*k) + n, 1);
	if (k == NULL)
		return NULL;
	*k = (struct qk_nbd_kept){.op = *op};
	for (int i = 0; i < op->n_iov; i++) {
		memcpy(k->data + at, op->iov[i].iov_base, op->iov[i].iov_len);
		at += op->iov[i].iov_len;
	}
	k->iov = (struct iovec){k->data, n};
	k->op.iov = &k->iov;
	k->op.n_iov = n > 0;
	return k;
}

/* ---- the next connection ---- */

/* What was answered, once more. False: *is_lost, or the server refuses it. */
static bool do_again(struct qk_nbd_disk *d, bool *is_lost)
{
	for (struct qk_nbd_kept *k = d->lives.first; k != NULL; k = k->next)
		if (k->is_done && qk_nbd_op_once(d, &k->op, is_lost) != 0)
			return false;
	return true;
}

/* Is it the same export, and may we do there what we could? */
static bool is_same(const struct qk_nbd_disk *d)
{
	struct nbd_handle *nbd = d->wires[0].nbd;
	int64_t least = d->lib->get_block_size(nbd, LIBNBD_SIZE_MINIMUM);
	return d->lib->get_size(nbd) == (int64_t)d->size && least <= (int64_t)d->min_block &&
	       (!d->writable || d->lib->is_read_only(nbd) == 0) &&
	       (!d->can_flush || d->lib->can_flush(nbd) > 0) &&
	       (!d->can_zero || d->lib->can_zero(nbd) > 0) &&
	       (!d->has_extents ||
		       d->lib->can_meta_context(nbd, qk_nbd_context_of(&d->address)) > 0);
}

static void end_wires(struct qk_nbd_disk *d)
{
	qk_nbd_disk_end(d);
	atomic_store(&d->is_widened, false);
}

/* Once. False: not now, and *never: nor later. */
static bool connect_once(struct qk_nbd_disk *d, int64_t deadline_ms, bool *never)
{
	struct qk_nbd_wire *w = &d->wires[0];
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qk_nbd_wire_reach(w, &d->address, deadline_ms, &err) != QCOW_OK)
		return false;
	*never = !is_same(d);
	if (*never)
		return false;
	d->can_widen = d->can_widen && d->lib->can_multi_conn(w->nbd) > 0;
	atomic_store(&w->is_up, true);
	if (qk_nbd_wire_start(w, &err) != QCOW_OK)
		return false;
	bool is_lost = false, is_done = do_again(d, &is_lost);
	*never = !is_done && !is_lost;
	return is_done;
}

/* Longer each time. */
static void pause_a_while(long *ms)
{
	const struct timespec pause = {.tv_nsec = *ms * 1000000};
	(void)nanosleep(&pause, NULL);
	*ms = 2 * *ms < PAUSE_MOST ? 2 * *ms : PAUSE_MOST;
}

static bool connect_again(struct qk_nbd_disk *d)
{
	end_wires(d); /* those that are left have time for a farewell: it is not counted */
	int64_t deadline = qk_nbd_clock_ms() + (int64_t)d->address.reconnect_delay_s * 1000;
	for (long ms = PAUSE_MS;;) {
		bool never = false;
		if (connect_once(d, deadline, &never))
			return true;
		if (never || qk_nbd_clock_ms() >= deadline)
			return false;
		end_wires(d);
		pause_a_while(&ms);
	}
}

/* Connection number `number` is lost. False: and so it stays. */
static bool revive(struct qk_nbd_disk *d, unsigned number)
{
	struct qk_nbd_lives *l = &d->lives;
	(void)pthread_mutex_lock(&l->lock);
	bool is_mine = l->number == number && !l->is_between && !l->is_over;
	if (is_mine) {
		l->is_between = true;
		while (l->n_inside > 0)
			(void)pthread_cond_wait(&l->changed, &l->lock);
		(void)pthread_mutex_unlock(&l->lock);
		bool is_up = connect_again(d);
		(void)pthread_mutex_lock(&l->lock);
		l->number++;
		l->is_over = !is_up;
		l->is_between = false;
		(void)pthread_cond_broadcast(&l->changed);
	}
	while (l->is_between)
		(void)pthread_cond_wait(&l->changed, &l->lock);
	bool is_up = !l->is_over;
	(void)pthread_mutex_unlock(&l->lock);
	return is_up;
}

/* ---- calls ---- */

/* A try. */
struct turn {
	struct qk_nbd_kept *kept; /* of a change, or NULL */
	bool is_put; /* among those that are kept */
	uint64_t flush; /* number of a flush */
	unsigned number; /* of the connection */
};

/* False: there is no connection any more. */
static bool come_in(struct qk_nbd_lives *l, struct turn *t)
{
	(void)pthread_mutex_lock(&l->lock);
	while (l->is_between)
		(void)pthread_cond_wait(&l->changed, &l->lock);
	bool may = !l->is_over;
	if (may) {
		l->n_inside++;
		t->number = l->number;
		t->flush = ++l->n_flushes; /* only a flush's is looked at */
		if (t->kept != NULL && t->is_put)
			take_out(l, t->kept); /* it is begun anew */
		if (t->kept != NULL)
			put(l, t->kept);
		t->is_put = true;
	}
	(void)pthread_mutex_unlock(&l->lock);
	return may;
}

/* Out again, with what the try came to. */
static void go_out(
	struct qk_nbd_disk *d, struct turn *t, const struct qk_nbd_op *op, int error, bool is_lost)
{
	struct qk_nbd_lives *l = &d->lives;
	(void)pthread_mutex_lock(&l->lock);
	bool is_kept = t->kept != NULL && !is_lost;
	if (is_kept && error == 0 && d->can_flush) {
		t->kept->is_done = true;
		t->kept->done_at = l->n_flushes;
	} else if (is_kept) {
		drop(l, t->kept);
	}
	if (op->kind == QK_NBD_OP_FLUSH && error == 0)
		drop_flushed(l, t->flush);
	if (--l->n_inside == 0)
		(void)pthread_cond_broadcast(&l->changed);
	(void)pthread_mutex_unlock(&l->lock);
}

/* It is not tried any more. */
static void give_up(struct qk_nbd_lives *l, struct turn *t)
{
	(void)pthread_mutex_lock(&l->lock);
	while (l->is_between) /* somebody looks at what is kept */
		(void)pthread_cond_wait(&l->changed, &l->lock);
	if (t->kept != NULL && t->is_put)
		drop(l, t->kept);
	else
		free(t->kept);
	(void)pthread_mutex_unlock(&l->lock);
}

/* Try by try; `t` has the copy of a change. */
static int run(struct qk_nbd_disk *d, struct turn *t, const struct qk_nbd_op *op, bool *is_lost)
{
	long ms = PAUSE_MS;
	int64_t until = 0; /* counted from the second connection on */
	while (come_in(&d->lives, t)) {
		int error = qk_nbd_op_once(d, op, is_lost);
		go_out(d, t, op, error, *is_lost);
		if (!*is_lost)
			return error;
		if (until != 0 && qk_nbd_clock_ms() >= until)
			break;
		if (until != 0)
			pause_a_while(&ms);
		if (!revive(d, t->number))
			break;
		if (until == 0)
			until = qk_nbd_clock_ms() + (int64_t)d->address.reconnect_delay_s * 1000;
	}
	give_up(&d->lives, t);
	*is_lost = true;
	return ENOTCONN;
}

/* Room for one more: what the others hold is made durable first. That it could not be is told to the next who flushes, too: the
 * server may have forgotten it, and say so once. */
static int make_room(struct qk_nbd_disk *d, const struct qk_nbd_kept *more, bool *is_lost)
{
	const struct qk_nbd_op flush = {.kind = QK_NBD_OP_FLUSH};
	struct qk_nbd_lives *l = &d->lives;
	struct turn t = {0};
	(void)pthread_mutex_lock(&l->lock);
	uint64_t bytes = l->kept_bytes;
	(void)pthread_mutex_unlock(&l->lock);
	if (bytes == 0 || bytes + more->iov.iov_len <= KEPT_MOST || !d->can_flush)
		return 0;
	int error = run(d, &t, &flush, is_lost);
	if (error != 0)
		atomic_store(&l->flush_error, error);
	return error;
}

int qk_nbd_op_run(struct qk_nbd_disk *d, const struct qk_nbd_op *op, bool *is_lost)
{
	struct turn t = {0};
	if (d->address.reconnect_delay_s == 0)
		return qk_nbd_op_once(d, op, is_lost);
	if (op->kind == QK_NBD_OP_WRITE || op->kind == QK_NBD_OP_ZERO) {
		t.kept = copy_of(op);
		int error = t.kept != NULL ? make_room(d, t.kept, is_lost) : ENOMEM;
		if (error != 0) {
			free(t.kept);
			return error;
		}
	}
	int error = run(d, &t, op, is_lost);
	if (error == 0 && op->kind == QK_NBD_OP_FLUSH)
		error = atomic_exchange(&d->lives.flush_error, 0);
	return error;
}
