/* SPDX-License-Identifier: MIT */
/*
 * The pipe's promises, with stages that only keep a record: order, window, which failure wins, cancelling.
 */
#include "cm.h"

#include <stdatomic.h>
#include <sys/resource.h>
#include <time.h>

#include "base/err.h"
#include "ops/pipe.h"

#define N_PIECES 400
#define N_SLOTS	 9

struct piece {
	unsigned number;
};

struct record {
	unsigned next, placed, n_done;
	unsigned order[N_PIECES];
	atomic_uint describing, placing, in_flight, most_in_flight, stored;
	atomic_uint most_workers; /* the highest number of a worker */
	bool broken; /* a promise did not hold */
	unsigned fail_next, fail_work, fail_place, fail_store; /* piece + 1; 0 = none */
	unsigned fail_store_too;
	unsigned cancel_after;
	uint64_t reported;
};

/* Let the threads overtake each other. */
static void dawdle(unsigned number)
{
	struct timespec ts = {0, (long)(number * 7919 % 13) * 10000};
	(void)nanosleep(&ts, NULL);
}

static enum qcow_status maybe_fail(unsigned number, unsigned which, struct qcow_error *err)
{
	if (which == 0 || number != which - 1)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_IO, "piece %u", number);
}

static enum qcow_status next(
	void *ctx, void *item, bool *end, uint64_t *cost, struct qcow_error *err)
{
	struct record *r = ctx;
	struct piece *piece = item;
	if (atomic_fetch_add(&r->describing, 1) != 0)
		r->broken = true;
	*cost = 1;
	*end = r->next == N_PIECES;
	piece->number = r->next;
	r->next += !*end;
	unsigned n = *end ? 0 : atomic_fetch_add(&r->in_flight, 1) + 1;
	if (n > atomic_load(&r->most_in_flight))
		atomic_store(&r->most_in_flight, n);
	atomic_fetch_sub(&r->describing, 1);
	return *end ? QCOW_OK : maybe_fail(piece->number, r->fail_next, err);
}

static enum qcow_status work(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct record *r = ctx;
	const struct piece *piece = item;
	if (worker >= QK_PIPE_MAX_WORKERS)
		r->broken = true;
	if (worker > atomic_load(&r->most_workers))
		atomic_store(&r->most_workers, worker);
	dawdle(piece->number);
	return maybe_fail(piece->number, r->fail_work, err);
}

static enum qcow_status place(void *ctx, void *item, struct qcow_error *err)
{
	struct record *r = ctx;
	const struct piece *piece = item;
	if (atomic_fetch_add(&r->placing, 1) != 0)
		r->broken = true;
	QK_TRY(maybe_fail(piece->number, r->fail_place, err));
	r->order[r->placed++] = piece->number;
	atomic_fetch_sub(&r->placing, 1);
	return QCOW_OK;
}

static enum qcow_status store(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct record *r = ctx;
	const struct piece *piece = item;
	(void)worker;
	dawdle(piece->number + 5);
	QK_TRY(maybe_fail(piece->number, r->fail_store, err));
	QK_TRY(maybe_fail(piece->number, r->fail_store_too, err));
	atomic_fetch_add(&r->stored, 1);
	return QCOW_OK;
}

static uint64_t done(void *ctx, void *item)
{
	struct record *r = ctx;
	(void)item;
	r->n_done++;
	atomic_fetch_sub(&r->in_flight, 1);
	return 1;
}

static const struct qk_pipe_stages stages = {next, work, place, store, done};

static void report(void *ctx, uint64_t n, uint64_t total)
{
	struct record *r = ctx;
	if (n < r->reported || n > total || total != N_PIECES)
		r->broken = true;
	r->reported = n;
}

static bool cancelled(void *ctx)
{
	const struct record *r = ctx;
	return r->cancel_after != 0 && r->n_done >= r->cancel_after;
}

static enum qcow_status run_pipe(struct record *r, unsigned n_workers, struct qcow_error *err)
{
	struct piece pieces[N_SLOTS];
	void *items[N_SLOTS];
	for (unsigned i = 0; i < N_SLOTS; i++)
		items[i] = &pieces[i];
	struct qk_pipe_job job = {
		.stages = &stages,
		.ctx = r,
		.items = items,
		.n_items = N_SLOTS,
		.n_workers = n_workers,
		.total = N_PIECES,
		.progress = {report, cancelled, r},
	};
	return qk_pipe_run(&job, err);
}

static void pieces_are_placed_in_order_and_stored_once(void **state)
{
	(void)state;
	static const unsigned workers[] = {1, 2, 3, 8, 16};
	for (size_t w = 0; w < sizeof(workers) / sizeof(workers[0]); w++) {
		struct record r = {0};
		struct qcow_error err = QCOW_ERROR_INIT;
		assert_ok(run_pipe(&r, workers[w], &err), err);
		assert_false(r.broken);
		assert_int_equal(r.placed, N_PIECES);
		for (unsigned i = 0; i < N_PIECES; i++)
			assert_int_equal(r.order[i], i);
		assert_int_equal(atomic_load(&r.stored), N_PIECES);
		assert_int_equal(r.n_done, N_PIECES);
		assert_int_equal(r.reported, N_PIECES);
		assert_true(atomic_load(&r.most_in_flight) <= N_SLOTS);
	}
}

static void failure_of_any_stage_ends_the_run_with_it(void **state)
{
	(void)state;
	for (unsigned stage = 0; stage < 4; stage++)
		for (unsigned workers = 1; workers <= 8; workers += 7)
			for (unsigned piece = 0; piece < N_PIECES; piece += 57) {
				struct record r = {0};
				struct qcow_error err = QCOW_ERROR_INIT;
				unsigned *which[] = {
					&r.fail_next, &r.fail_work, &r.fail_place, &r.fail_store};
				char words[32];
				*which[stage] = piece + 1;
				(void)snprintf(words, sizeof(words), "piece %u", piece);
				assert_status(run_pipe(&r, workers, &err), QCOW_E_IO, err);
				assert_string_equal(err.message, words);
				assert_false(r.broken);
				/* what came before it was stored, unless it was itself being stored */
				assert_true(atomic_load(&r.stored) >= (stage == 3 ? 0 : piece));
				assert_true(r.placed <= piece + N_SLOTS);
			}
}

static void first_failure_by_order_wins(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 40; round++) {
		struct record r = {.fail_work = 103, .fail_store = 101, .fail_place = 110};
		struct qcow_error err = QCOW_ERROR_INIT;
		/* 100 fails late (stored), 102 early (worked on): 100 comes first */
		assert_status(run_pipe(&r, 8, &err), QCOW_E_IO, err);
		assert_string_equal(err.message, "piece 100");
	}
}

static void cancel_stops_everything(void **state)
{
	(void)state;
	for (unsigned workers = 1; workers <= 16; workers += 5) {
		struct record r = {.cancel_after = 50};
		struct qcow_error err = QCOW_ERROR_INIT;
		assert_status(run_pipe(&r, workers, &err), QCOW_E_CANCELLED, err);
		assert_true(r.n_done >= 50 && r.n_done < 50 + 2 * N_SLOTS);
	}
}

static void refused_threads_leave_the_caller_to_do_the_work(void **state)
{
	(void)state;
#if QKT_SANITIZED
	skip(); /* a sanitizer needs address space of its own */
#endif
	struct record r = {0};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct rlimit old, none = {0};
	assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
	none = old;
	/* no room for another stack */
	none.rlim_cur = 1 << 20;
	assert_int_equal(setrlimit(RLIMIT_AS, &none), 0);
	enum qcow_status status = run_pipe(&r, 16, &err);
	assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
	assert_ok(status, err);
	assert_false(r.broken);
	assert_int_equal(r.most_workers, 0);
	assert_int_equal(r.placed, N_PIECES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		/* first: stacks of threads that ended are used again without asking for room */
		cmocka_unit_test(refused_threads_leave_the_caller_to_do_the_work),
		cmocka_unit_test(pieces_are_placed_in_order_and_stored_once),
		cmocka_unit_test(failure_of_any_stage_ends_the_run_with_it),
		cmocka_unit_test(first_failure_by_order_wins),
		cmocka_unit_test(cancel_stops_everything),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
