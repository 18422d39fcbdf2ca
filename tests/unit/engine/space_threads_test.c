/* SPDX-License-Identifier: MIT */
/*
 * Threads that take, raise, drop and give back clusters of one space while another one publishes: nobody gets what
 * somebody else has, and in the end the stored refcounts are those that the threads hold. For
 * ThreadSanitizer.
 */
#include "space_lab.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define N_THREADS 6U
#define N_STEPS	  400U
#define N_OWNED	  64U

struct shared {
	struct lab lab;
	_Atomic uint32_t *owners; /* references, by cluster */
	_Atomic unsigned n_running;
	_Atomic bool failed;
};

struct worker {
	pthread_t thread;
	struct shared *s;
	struct qkt_rng rng;
	uint64_t owned[N_OWNED]; /* clusters; 0: none */
};

static void check(struct shared *s, bool ok)
{
	if (!ok)
		atomic_store(&s->failed, true);
}

static void take(struct worker *w, unsigned slot)
{
	struct qk_space_want want = {.n = 1 + qkt_rng_below(&w->rng, 5),
		.near = w->owned[(slot + 1) % N_OWNED] * 512,
		.kind = qkt_rng_below(&w->rng, 8) == 0 ? QK_SPACE_L2 : QK_SPACE_DATA};
	struct qk_space_run run;

	if (qk_space_take(w->s->lab.sp, &want, &run, NULL) != QCOW_OK) {
		check(w->s, false);
		return;
	}
	uint64_t first = run.off / 512;
	for (uint64_t i = 0; i < run.n; i++)
		check(w->s, atomic_fetch_add(&w->s->owners[first + i], 1) == 0);
	for (uint64_t i = 1; i < run.n; i++)
		atomic_store(&w->s->owners[first + i], 0);
	if (run.n > 1)
		qk_space_give_back(w->s->lab.sp, run.off + 512, run.n - 1);
	w->owned[slot] = first;
}

static void step(struct worker *w)
{
	struct qk_space *sp = w->s->lab.sp;
	unsigned slot = (unsigned)qkt_rng_below(&w->rng, N_OWNED);
	uint64_t c = w->owned[slot];
	uint64_t count = 0;

	if (c == 0) {
		take(w, slot);
		return;
	}
	switch (qkt_rng_below(&w->rng, 4)) {
	case 0:
		check(w->s, qk_space_raise(sp, c * 512, 1, NULL) == QCOW_OK);
		atomic_fetch_add(&w->s->owners[c], 1);
		break;
	case 1:
		check(w->s, qk_space_refcount(sp, c * 512, &count, NULL) == QCOW_OK);
		check(w->s, count == atomic_load(&w->s->owners[c]));
		check(w->s, qk_space_file_size(sp) >= (c + 1) * 512);
		break;
	case 2:
		/* guest data at another place, or refused because it is a table */
		check(w->s, qk_space_check_overlap(sp, QK_SPACE_L2, c * 512, 512, NULL) == QCOW_OK);
		break;
	default:
		if (atomic_fetch_sub(&w->s->owners[c], 1) == 1)
			w->owned[slot] = 0;
		check(w->s, qk_space_drop(sp, c * 512, 1, NULL) == QCOW_OK);
	}
}

static void *work(void *arg)
{
	struct worker *w = arg;

	for (unsigned i = 0; i < N_STEPS; i++)
		step(w);
	atomic_fetch_sub(&w->s->n_running, 1);
	return NULL;
}

static void threads_share_a_space(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 64, .cache_bytes = 1};
	struct shared *s = calloc(1, sizeof(*s));
	struct worker *w = calloc(N_THREADS, sizeof(*w));
	struct qkt_rng rng = qkt_rng_init(77);
	struct qcow_error err = QCOW_ERROR_INIT;

	assert_true(s != NULL && w != NULL);
	lab_open(&s->lab, &o);
	s->owners = calloc(LAB_CLUSTERS, sizeof(*s->owners));
	assert_non_null(s->owners);
	atomic_store(&s->n_running, N_THREADS);
	for (unsigned i = 0; i < N_THREADS; i++) {
		w[i].s = s;
		w[i].rng = qkt_rng_fixed(qkt_rng_next(&rng));
		assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
	}
	while (atomic_load(&s->n_running) != 0)
		assert_ok(lab_publish(&s->lab, &err), err);
	for (unsigned i = 0; i < N_THREADS; i++)
		pthread_join(w[i].thread, NULL);
	assert_false(atomic_load(&s->failed));
	for (uint64_t c = 0; c < LAB_CLUSTERS; c++) {
		s->lab.counts[c] = atomic_load(&s->owners[c]);
		if (s->lab.counts[c] != 0)
			s->lab.top = c + 1;
	}
	assert_ok(qk_space_close(s->lab.sp, &err), err);
	lab_judge(&s->lab, true);
	lab_free(&s->lab);
	free(s->owners);
	free(s);
	free(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(threads_share_a_space)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
