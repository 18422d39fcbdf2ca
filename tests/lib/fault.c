/* SPDX-License-Identifier: MIT */
#include "fault.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SECTOR	512u
#define MAX_IDS 64u

struct qkt_fault {
	pthread_mutex_t lock;
	uint64_t counts[QKT_N_CALLS];
	bool is_armed, for_ever;
	enum qkt_call call;
	enum qkt_failure failure;
	uint64_t nth, hits;
	unsigned slow_us[QKT_N_CALLS];
	bool is_logging;
	uint64_t epochs[MAX_IDS];
	struct qkt_log_entry *log;
	size_t n_log, room;
};

struct wrapped {
	struct qkt_fault *f;
	struct qcow_store *inner;
	unsigned id;
};

static void *need(void *p)
{
	if (p != NULL)
		return p;
	(void)fprintf(stderr, "fault store: out of memory\n");
	abort();
}

struct qkt_fault *qkt_fault_new(void)
{
	struct qkt_fault *f = need(calloc(1, sizeof(*f)));
	(void)pthread_mutex_init(&f->lock, NULL);
	return f;
}

void qkt_fault_free(struct qkt_fault *f)
{
	for (size_t i = 0; i < f->n_log; i++)
		free(f->log[i].bytes);
	free(f->log);
	(void)pthread_mutex_destroy(&f->lock);
	free(f);
}

void qkt_fault_arm(struct qkt_fault *f, enum qkt_call call, uint64_t nth, enum qkt_failure failure,
	bool for_ever)
{
	(void)pthread_mutex_lock(&f->lock);
	memset(f->counts, 0, sizeof(f->counts));
	f->is_armed = true;
	f->call = call;
	f->nth = nth;
	f->failure = failure;
	f->for_ever = for_ever;
	f->hits = 0;
	(void)pthread_mutex_unlock(&f->lock);
}

void qkt_fault_disarm(struct qkt_fault *f)
{
	(void)pthread_mutex_lock(&f->lock);
	f->is_armed = false;
	(void)pthread_mutex_unlock(&f->lock);
}

void qkt_fault_slow(struct qkt_fault *f, enum qkt_call call, unsigned us)
{
	(void)pthread_mutex_lock(&f->lock);
	f->slow_us[call] = us;
	(void)pthread_mutex_unlock(&f->lock);
}

uint64_t qkt_fault_hits(struct qkt_fault *f)
{
	(void)pthread_mutex_lock(&f->lock);
	uint64_t hits = f->hits;
	(void)pthread_mutex_unlock(&f->lock);
	return hits;
}

uint64_t qkt_fault_count(struct qkt_fault *f, enum qkt_call call)
{
	(void)pthread_mutex_lock(&f->lock);
	uint64_t count = f->counts[call];
	(void)pthread_mutex_unlock(&f->lock);
	return count;
}

/* Count a call. True: it is to fail, in the way of *failure. */
static bool is_to_fail(struct wrapped *w, enum qkt_call call, enum qkt_failure *failure)
{
	struct qkt_fault *f = w->f;
	(void)pthread_mutex_lock(&f->lock);
	f->counts[call]++;
	f->counts[QKT_ANY]++;
	uint64_t count = f->counts[f->call];
	bool concerned = f->is_armed && (f->call == QKT_ANY || f->call == call);
	bool fails = concerned && (count == f->nth || (f->for_ever && count > f->nth));
	f->hits += fails;
	*failure = f->failure;
	const struct timespec late = {.tv_nsec = (long)f->slow_us[call] * 1000};
	(void)pthread_mutex_unlock(&f->lock);
	if (late.tv_nsec != 0)
		(void)nanosleep(&late, NULL);
	return fails;
}

static enum qcow_status fail_with(
	enum qkt_failure failure, const char *call, struct qcow_error *err)
{
	bool full = failure == QKT_ENOSPC;
	enum qcow_status st = full ? QCOW_E_NOSPC : QCOW_E_IO;
	if (err == NULL)
		return st;
	*err = (struct qcow_error)QCOW_ERROR_INIT;
	err->status = st;
	err->os_errno = full ? ENOSPC : EIO;
	err->site = "fault store";
	(void)snprintf(err->message, sizeof(err->message), "%s: %s (injected)", call,
		full ? "No space left on device" : "Input/output error");
	return st;
}

/* ---- the log ---- */

static uint8_t *gather(const struct iovec *iov, int n_iov, uint64_t *len)
{
	uint64_t n = 0, at = 0;
	for (int i = 0; i < n_iov; i++)
		n += iov[i].iov_len;
	uint8_t *bytes = need(malloc((size_t)n));
	for (int i = 0; i < n_iov; at += iov[i++].iov_len)
		if (iov[i].iov_len != 0)
			memcpy(bytes + at, iov[i].iov_base, iov[i].iov_len);
	*len = n;
	return bytes;
}

/* Takes bytes. */
static void append(struct wrapped *w, struct qkt_log_entry e)
{
	struct qkt_fault *f = w->f;
	if (f->n_log == f->room) {
		f->room = f->room != 0 ? f->room * 2 : 64;
		f->log = need(realloc(f->log, f->room * sizeof(*f->log)));
	}
	e.store_id = w->id;
	e.epoch = f->epochs[w->id];
	f->log[f->n_log++] = e;
	if (e.call == QKT_FLUSH)
		f->epochs[w->id]++;
}

static void record(struct wrapped *w, enum qkt_call call, uint64_t off, uint64_t len)
{
	(void)pthread_mutex_lock(&w->f->lock);
	if (w->f->is_logging)
		append(w, (struct qkt_log_entry){.call = call, .off = off, .len = len});
	(void)pthread_mutex_unlock(&w->f->lock);
}

static void record_write(struct wrapped *w, const struct iovec *iov, int n_iov, uint64_t off)
{
	(void)pthread_mutex_lock(&w->f->lock);
	if (w->f->is_logging) {
		struct qkt_log_entry e = {.call = QKT_WRITE, .off = off};
		e.bytes = gather(iov, n_iov, &e.len);
		append(w, e);
	}
	(void)pthread_mutex_unlock(&w->f->lock);
}

void qkt_fault_log(struct qkt_fault *f)
{
	(void)pthread_mutex_lock(&f->lock);
	f->is_logging = true;
	(void)pthread_mutex_unlock(&f->lock);
}

size_t qkt_fault_log_count(struct qkt_fault *f)
{
	(void)pthread_mutex_lock(&f->lock);
	size_t n = f->n_log;
	(void)pthread_mutex_unlock(&f->lock);
	return n;
}

const struct qkt_log_entry *qkt_fault_log_entry(struct qkt_fault *f, size_t index)
{
	(void)pthread_mutex_lock(&f->lock);
	const struct qkt_log_entry *e = &f->log[index];
	(void)pthread_mutex_unlock(&f->lock);
	return e;
}

static void apply_sectors(
	const struct qkt_log_entry *e, struct qkt_model *m, uint64_t first, uint64_t n)
{
	uint64_t number = 0;
	for (uint64_t off = e->off; off < e->off + e->len; number++) {
		uint64_t end = (off / SECTOR + 1) * SECTOR;
		if (end > e->off + e->len)
			end = e->off + e->len;
		if (number >= first && number - first < n)
			qkt_model_write(
				m, e->bytes + (off - e->off), (size_t)(end - off), (size_t)off);
		off = end;
	}
}

void qkt_log_apply(const struct qkt_log_entry *e, struct qkt_model *m, uint64_t first, uint64_t n)
{
	switch (e->call) {
	case QKT_WRITE:
		apply_sectors(e, m, first, n);
		break;
	case QKT_TRUNCATE:
		qkt_model_resize(m, (size_t)e->off);
		break;
	case QKT_ZERO:
	case QKT_PUNCH:
		qkt_model_zero(m, (size_t)e->len, (size_t)e->off);
		break;
	default:
		break;
	}
}

/* ---- the store ---- */

/* The first half of the list's bytes, in `half`; the number of buffers, 0 where half of it is nothing. */
static int halve(const struct iovec *iov, int n_iov, struct iovec *half)
{
	uint64_t total = 0;
	for (int i = 0; i < n_iov; i++)
		total += iov[i].iov_len;
	uint64_t left = total / 2;
	int n = 0;
	for (; n < n_iov && left > 0; n++) {
		half[n] = iov[n];
		if (half[n].iov_len > left)
			half[n].iov_len = (size_t)left;
		left -= half[n].iov_len;
	}
	return n;
}

static enum qcow_status fault_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct wrapped *w = ctx;
	enum qkt_failure failure = QKT_EIO;
	if (!is_to_fail(w, QKT_READ, &failure))
		return qcow_store_readv(w->inner, iov, n_iov, off, err);
	if (failure == QKT_SHORT) {
		struct iovec *half = need(calloc((size_t)n_iov, sizeof(*half)));
		enum qcow_status st = qcow_store_readv(
			w->inner, half, halve(iov, n_iov, half), off, err);
		(void)st;
		free(half);
	}
	return fail_with(failure, "reading", err);
}

static enum qcow_status fault_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct wrapped *w = ctx;
	enum qkt_failure failure = QKT_EIO;
	if (!is_to_fail(w, QKT_WRITE, &failure)) {
		enum qcow_status st = qcow_store_writev(w->inner, iov, n_iov, off, err);
		if (st == QCOW_OK)
			record_write(w, iov, n_iov, off);
		return st;
	}
	if (failure == QKT_SHORT) {
		struct iovec *half = need(calloc((size_t)n_iov, sizeof(*half)));
		int n = halve(iov, n_iov, half);
		if (qcow_store_writev(w->inner, half, n, off, err) == QCOW_OK && n > 0)
			record_write(w, half, n, off);
		free(half);
	}
	return fail_with(failure, "writing", err);
}

static enum qcow_status fault_flush(void *ctx, struct qcow_error *err)
{
	struct wrapped *w = ctx;
	enum qkt_failure failure = QKT_EIO;
	if (is_to_fail(w, QKT_FLUSH, &failure))
		return fail_with(failure, "flush", err);
	enum qcow_status st = qcow_store_flush(w->inner, err);
	if (st == QCOW_OK)
		record(w, QKT_FLUSH, 0, 0);
	return st;
}

static enum qcow_status fault_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	struct wrapped *w = ctx;
	enum qkt_failure failure = QKT_EIO;
	if (is_to_fail(w, QKT_SIZE, &failure))
		return fail_with(failure, "size", err);
	return qcow_store_size(w->inner, size_bytes, err);
}

static enum qcow_status fault_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct wrapped *w = ctx;
	enum qkt_failure failure = QKT_EIO;
	if (is_to_fail(w, QKT_TRUNCATE, &failure))
		return fail_with(failure, "truncate", err);
	enum qcow_status st = qcow_store_truncate(w->inner, size_bytes, err);
	if (st == QCOW_OK)
		record(w, QKT_TRUNCATE, size_bytes, 0);
	return st;
}

static enum qcow_status fault_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct wrapped *w = ctx;
	enum qkt_failure failure = QKT_EIO;
	bool fails = is_to_fail(w, QKT_ZERO, &failure);
	if (fails && failure == QKT_SHORT)
		len /= 2;
	else if (fails)
		return fail_with(failure, "zeroing", err);
	enum qcow_status st = qcow_store_zero(w->inner, off, len, flags, err);
	if (st == QCOW_OK && len > 0)
		record(w, QKT_ZERO, off, len);
	return fails ? fail_with(failure, "zeroing", err) : st;
}

static enum qcow_status fault_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct wrapped *w = ctx;
	enum qkt_failure failure = QKT_EIO;
	bool fails = is_to_fail(w, QKT_PUNCH, &failure);
	if (fails && failure == QKT_SHORT)
		len /= 2;
	else if (fails)
		return fail_with(failure, "punching", err);
	enum qcow_status st = qcow_store_punch(w->inner, off, len, err);
	if (st == QCOW_OK && len > 0)
		record(w, QKT_PUNCH, off, len);
	return fails ? fail_with(failure, "punching", err) : st;
}

static enum qcow_status fault_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	struct wrapped *w = ctx;
	enum qkt_failure failure = QKT_EIO;
	if (is_to_fail(w, QKT_EXTENTS, &failure))
		return fail_with(failure, "extents", err);
	return qcow_store_extents(w->inner, off, len, out, err);
}

/* Blocks cannot be shared around the log: the answer is always that of a store that cannot. */
static enum qcow_status fault_clone(
	void *ctx, uint64_t off, int src_fd, uint64_t src_off, uint64_t len, struct qcow_error *err)
{
	struct wrapped *w = ctx;
	enum qkt_failure failure = QKT_EIO;
	(void)off;
	(void)src_fd;
	(void)src_off;
	(void)len;
	if (is_to_fail(w, QKT_CLONE, &failure))
		return fail_with(failure, "cloning", err);
	(void)fail_with(QKT_EIO, "cloning", err);
	if (err != NULL)
		err->status = QCOW_E_NOTSUP;
	return QCOW_E_NOTSUP;
}

static void fault_caps(void *ctx, struct qcow_store_caps *out)
{
	struct wrapped *w = ctx;
	qcow_store_caps(w->inner, out);
	out->request_align = 1;
	out->memory_align = 1;
}

static void fault_close(void *ctx)
{
	struct wrapped *w = ctx;
	qcow_store_close(w->inner);
	free(w);
}

static const struct qcow_store_ops fault_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "fault",
	.preadv = fault_preadv,
	.pwritev = fault_pwritev,
	.flush = fault_flush,
	.size = fault_size,
	.truncate = fault_truncate,
	.zero = fault_zero,
	.punch = fault_punch,
	.extents = fault_extents,
	.clone = fault_clone,
	.caps = fault_caps,
	.close = fault_close,
};

struct qcow_store *qkt_fault_wrap(struct qkt_fault *f, struct qcow_store *inner, unsigned id)
{
	struct wrapped *w = need(calloc(1, sizeof(*w)));
	struct qcow_store *store = NULL;
	*w = (struct wrapped){f, inner, id};
	if (id >= MAX_IDS || qcow_store_new(&fault_ops, w, &store, NULL) != QCOW_OK ||
		qcow_store_set_name(store, qcow_store_name(inner), NULL) != QCOW_OK) {
		(void)fprintf(stderr, "fault store: cannot wrap store %u\n", id);
		abort();
	}
	return store;
}
