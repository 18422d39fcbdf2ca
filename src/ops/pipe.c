/* SPDX-License-Identifier: MIT */
/*
 * pipe: slots, threads and who does what next. Knows nothing of images.
 *
 * A slot's life: FREE, WORKING (next, then work), READY, PLACING, PLACED, STORING, FREE. Slot number is
 * sequence number modulo n_items, so the window of pieces in flight is bounded by the slots.
 *
 * Invariants:
 *   P1  at most one thread runs `next`; pieces are numbered in the order in which it described them;
 *   P2  at most one thread runs `place`, and piece n + 1 is placed after piece n (unless any_order);
 *   P3  a piece is stored only after it was placed; after a failure only pieces before the failed one
 *       are stored, so that an earlier failure among them can still win.
 *
 * Locking: `lock` guards everything in struct pipe; it is never held while next, work, place or store
 * runs. The callbacks of the progress run under it: one at a time.
 */
#include "ops/pipe.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/mem.h"
#include "base/num.h"

enum slot_state {
	SLOT_FREE,
	SLOT_WORKING,
	SLOT_READY,
	SLOT_PLACING,
	SLOT_PLACED,
	SLOT_STORING
};

struct slot {
	enum slot_state state;
	uint64_t seq;
	void *item;
	enum qcow_status status; /* of next and work, judged when its turn to be placed comes */
	struct qcow_error err;
};

struct pipe {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	const struct qk_pipe_job *job;
	struct slot *slots;
	uint64_t next_seq; /* number of the next piece to be described */
	uint64_t place_seq; /* number of the next piece to be placed */
	bool describing, placing, end, stop;
	enum qcow_status status;
	uint64_t failed_seq; /* of the failure in `err` */
	struct qcow_error err;
	uint64_t done;
	uint64_t due_nsec; /* not before this time may the next piece begin */
};

struct thread {
	struct pipe *pipe;
	unsigned index;
	pthread_t id;
};

/* One reads while the other writes. More than processors cost wake-ups and gain nothing: the page cache
 * reads ahead and writes behind. */
#define LEAST_WORKERS 2
#define BUFFER_ALIGN  4096
/* 512 KiB: the stages keep their buffers on the heap, and RLIMIT_AS may be small. */
#define STACK_BYTES ((size_t)512 << 10)
/* How long a wait for the rate may last before the cancel callback is asked again. */
#define NAP_NSEC UINT64_C(50000000)
#define NSEC	 UINT64_C(1000000000)

static uint64_t now_nsec(void)
{
	struct timespec ts = {0};
	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NSEC + (uint64_t)ts.tv_nsec;
}

/* Keep the failure of the earliest piece. */
static void fail(
	struct pipe *p, uint64_t seq, enum qcow_status status, const struct qcow_error *err)
{
	if (p->status == QCOW_OK || seq < p->failed_seq) {
		p->status = status;
		p->failed_seq = seq;
		p->err = *err;
	}
	p->stop = true;
}

static void poll_cancel(struct pipe *p)
{
	const struct qcow_progress *progress = &p->job->progress;
	if (p->stop || progress->cancelled == NULL || !progress->cancelled(progress->ctx))
		return;
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = QK_FAIL(&err, QCOW_E_CANCELLED, "cancelled");
	/* Before every piece: after a cancel nothing more is stored. */
	fail(p, 0, status, &err);
}

/* The placed piece that comes first among those that may still be stored (P3), or NULL. */
static struct slot *find_placed(struct pipe *p)
{
	struct slot *first = NULL;
	for (unsigned i = 0; i < p->job->n_items; i++) {
		struct slot *slot = &p->slots[i];
		if (slot->state != SLOT_PLACED || (p->stop && slot->seq >= p->failed_seq))
			continue;
		if (first == NULL || slot->seq < first->seq)
			first = slot;
	}
	return first;
}

static struct slot *find_ready(struct pipe *p)
{
	if (p->stop)
		return NULL;
	if (!p->job->any_order) {
		struct slot *slot = &p->slots[p->place_seq % p->job->n_items];
		bool its_turn = slot->state == SLOT_READY && slot->seq == p->place_seq;
		return its_turn && !p->placing ? slot : NULL;
	}
	for (unsigned i = 0; i < p->job->n_items; i++)
		if (p->slots[i].state == SLOT_READY)
			return &p->slots[i];
	return NULL;
}

static struct slot *find_free(struct pipe *p)
{
	struct slot *slot = &p->slots[p->next_seq % p->job->n_items];
	return p->stop || p->end || p->describing || slot->state != SLOT_FREE ? NULL : slot;
}

static bool is_drained(const struct pipe *p)
{
	if (p->stop)
		return true;
	for (unsigned i = 0; i < p->job->n_items; i++)
		if (p->slots[i].state != SLOT_FREE)
			return false;
	return p->end;
}

static void set_state(struct pipe *p, struct slot *slot, enum slot_state state)
{
	slot->state = state;
	(void)pthread_cond_broadcast(&p->changed);
}

/* The piece has left the pipe. */
static void retire(struct pipe *p, struct slot *slot)
{
	const struct qcow_progress *progress = &p->job->progress;
	p->done += p->job->stages->done(p->job->ctx, slot->item);
	if (progress->report != NULL && !p->stop)
		progress->report(progress->ctx, qk_min(p->done, p->job->total), p->job->total);
	set_state(p, slot, SLOT_FREE);
}

/* Describe the next piece and work on it. Called and returns with the lock held. */
static void fill(struct pipe *p, struct slot *slot, unsigned worker)
{
	const struct qk_pipe_job *job = p->job;
	bool end = false;
	uint64_t cost = 0;
	slot->seq = p->next_seq++;
	slot->state = SLOT_WORKING;
	p->describing = true;
	(void)pthread_mutex_unlock(&p->lock);
	slot->status = job->stages->next(job->ctx, slot->item, &end, &cost, &slot->err);
	(void)pthread_mutex_lock(&p->lock);
	p->describing = false;
	if (slot->status == QCOW_OK && end) {
		p->end = true;
		p->next_seq--;
		set_state(p, slot, SLOT_FREE);
		return;
	}
	if (job->rate_bytes_per_sec != 0)
		p->due_nsec = qk_max(p->due_nsec, now_nsec()) +
			      (uint64_t)((double)cost / (double)job->rate_bytes_per_sec *
					 (double)NSEC);
	if (slot->status == QCOW_OK && !p->stop) {
		(void)pthread_cond_broadcast(&p->changed);
		(void)pthread_mutex_unlock(&p->lock);
		slot->status = job->stages->work(job->ctx, slot->item, worker, &slot->err);
		(void)pthread_mutex_lock(&p->lock);
	} else if (slot->status != QCOW_OK) {
		p->end = true; /* nothing after a piece that cannot be described */
	}
	set_state(p, slot, SLOT_READY);
}

static void place(struct pipe *p, struct slot *slot)
{
	const struct qk_pipe_job *job = p->job;
	p->placing = true;
	slot->state = SLOT_PLACING;
	enum qcow_status status = slot->status;
	if (status == QCOW_OK && job->stages->place != NULL) {
		(void)pthread_mutex_unlock(&p->lock);
		status = job->stages->place(job->ctx, slot->item, &slot->err);
		(void)pthread_mutex_lock(&p->lock);
	}
	p->placing = false;
	p->place_seq++;
	if (status != QCOW_OK)
		fail(p, slot->seq, status, &slot->err);
	set_state(p, slot, status == QCOW_OK ? SLOT_PLACED : SLOT_FREE);
}

static void store(struct pipe *p, struct slot *slot, unsigned worker)
{
	const struct qk_pipe_job *job = p->job;
	slot->state = SLOT_STORING;
	if (job->stages->store != NULL) {
		(void)pthread_mutex_unlock(&p->lock);
		enum qcow_status status = job->stages->store(
			job->ctx, slot->item, worker, &slot->err);
		(void)pthread_mutex_lock(&p->lock);
		if (status != QCOW_OK)
			fail(p, slot->seq, status, &slot->err);
	}
	retire(p, slot);
}

/* May a piece begin by the rate? Else wait a while. */
static bool wait_for_rate(struct pipe *p)
{
	if (p->job->rate_bytes_per_sec == 0)
		return true;
	uint64_t now = now_nsec();
	if (now >= p->due_nsec)
		return true;
	uint64_t until = now + qk_min(p->due_nsec - now, NAP_NSEC);
	struct timespec ts = {(time_t)(until / NSEC), (long)(until % NSEC)};
	(void)pthread_cond_timedwait(&p->changed, &p->lock, &ts);
	return false;
}

/* One thread: the most urgent first, which is what lets others go on. */
static void work_until_drained(struct pipe *p, unsigned worker)
{
	(void)pthread_mutex_lock(&p->lock);
	for (;;) {
		struct slot *slot = find_ready(p);
		if (slot != NULL) {
			place(p, slot);
			continue;
		}
		slot = find_placed(p);
		if (slot != NULL) {
			store(p, slot, worker);
			continue;
		}
		if (is_drained(p))
			break;
		poll_cancel(p);
		slot = find_free(p);
		if (slot == NULL) {
			if (!p->stop)
				(void)pthread_cond_wait(&p->changed, &p->lock);
			continue;
		}
		if (wait_for_rate(p) && !p->stop)
			fill(p, slot, worker);
	}
	(void)pthread_cond_broadcast(&p->changed);
	(void)pthread_mutex_unlock(&p->lock);
}

static void *run_thread(void *arg)
{
	struct thread *thread = arg;
	work_until_drained(thread->pipe, thread->index);
	return NULL;
}

/* Make up to `want` threads with all signals blocked (they are the caller's to take); the number made. */
static unsigned make_threads(struct pipe *p, struct thread *threads, unsigned want)
{
	pthread_attr_t attr;
	sigset_t all, old;
	unsigned made = 0;
	if (want == 0 || pthread_attr_init(&attr) != 0)
		return 0;
	(void)pthread_attr_setstacksize(&attr, STACK_BYTES);
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	while (made < want) {
		threads[made] = (struct thread){.pipe = p, .index = made + 1};
		if (pthread_create(&threads[made].id, &attr, run_thread, &threads[made]) != 0)
			break;
		made++;
	}
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	(void)pthread_attr_destroy(&attr);
	return made;
}

static bool init_sync(struct pipe *p)
{
	pthread_condattr_t attr;
	if (pthread_mutex_init(&p->lock, NULL) != 0)
		return false;
	if (pthread_condattr_init(&attr) != 0)
		goto no_cond;
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	int rc = pthread_cond_init(&p->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
	if (rc == 0)
		return true;
no_cond:
	(void)pthread_mutex_destroy(&p->lock);
	return false;
}

enum qcow_status qk_pipe_run(const struct qk_pipe_job *job, struct qcow_error *err)
{
	QK_ASSERT(P1, job->n_items > 0 && job->n_workers > 0);
	QK_ASSERT(P1, job->n_workers <= QK_PIPE_MAX_WORKERS);
	struct thread threads[QK_PIPE_MAX_WORKERS];
	QK_AUTO_FREE struct slot *slots = qk_calloc(job->n_items, sizeof(*slots));
	struct pipe p = {.job = job, .slots = slots, .due_nsec = now_nsec()};
	if (slots == NULL || !init_sync(&p))
		return QK_FAIL_NOMEM(err);
	for (unsigned i = 0; i < job->n_items; i++)
		slots[i].item = job->items[i];
	unsigned made = make_threads(&p, threads, job->n_workers - 1);
	work_until_drained(&p, 0);
	for (unsigned i = 0; i < made; i++)
		(void)pthread_join(threads[i].id, NULL);
	(void)pthread_cond_destroy(&p.changed);
	(void)pthread_mutex_destroy(&p.lock);
	if (p.status != QCOW_OK && err != NULL)
		*err = p.err;
	return p.status;
}

enum qcow_status qk_pipe_run_pieces(const struct qk_pipe_job *job, size_t item_bytes,
	size_t buffer_bytes, struct qcow_error *err)
{
	struct qk_pipe_job whole = *job;
	void *items[2 * QK_PIPE_MAX_WORKERS];
	unsigned n = 2 * job->n_workers;
	size_t stride = (buffer_bytes + BUFFER_ALIGN - 1) / BUFFER_ALIGN * BUFFER_ALIGN;
	QK_AUTO_FREE uint8_t *pieces = qk_calloc(n, item_bytes);
	QK_AUTO_FREE uint8_t *buffers = qk_malloc_aligned(BUFFER_ALIGN, (uint64_t)n * stride);
	QK_ASSERT(P1, job->n_workers <= QK_PIPE_MAX_WORKERS && item_bytes >= sizeof(buffers));
	if (pieces == NULL || buffers == NULL)
		return QK_FAIL_NOMEM(err);
	for (unsigned i = 0; i < n; i++) {
		uint8_t *buffer = buffers + i * stride;
		items[i] = pieces + i * item_bytes;
		memcpy(items[i], &buffer, sizeof(buffer));
	}
	whole.items = items;
	whole.n_items = n;
	return qk_pipe_run(&whole, err);
}

unsigned qk_pipe_workers(unsigned wanted)
{
	if (wanted == 0) {
		long n = sysconf(_SC_NPROCESSORS_ONLN);
		wanted = n < LEAST_WORKERS ? LEAST_WORKERS : (unsigned)n;
	}
	return wanted > QK_PIPE_MAX_WORKERS ? QK_PIPE_MAX_WORKERS : wanted;
}
