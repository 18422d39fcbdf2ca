/* SPDX-License-Identifier: MIT */
/*
 * Random sequences of taking, raising, dropping, giving back and publishing against an array of integers, on
 * every refcount width and several cluster sizes; and the single rules of allocation.
 */
#include "space_lab.h"

#include <stdlib.h>

#define N_STEPS 1500U

static uint64_t pick_owned(struct lab *lab, struct qkt_rng *rng)
{
	for (unsigned i = 0; i < 50 && lab->top != 0; i++) {
		uint64_t c = qkt_rng_below(rng, lab->top);
		if (lab->counts[c] != 0)
			return c;
	}
	return 0;
}

static void step_take(struct lab *lab, struct qkt_rng *rng, bool may_fill)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run = {0};
	uint64_t n = 1 + qkt_rng_below(rng, 40);
	uint64_t min_n = qkt_rng_below(rng, 4) == 0 ? n : qkt_rng_below(rng, 2);
	enum qcow_status status = lab_take(lab, n, min_n, &run, &err);

	if (status == QCOW_E_NOSPC && may_fill)
		return;
	assert_ok(status, err);
	if (qkt_rng_below(rng, 8) != 0)
		return;
	for (uint64_t i = 0; i < run.n; i++)
		lab->counts[(run.off >> lab->cluster_bits) + i] = 0;
	qk_space_give_back(lab->sp, run.off, run.n);
}

static void step(struct lab *lab, struct qkt_rng *rng, bool may_fill)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t c = pick_owned(lab, rng);
	uint64_t count = 0;

	switch (c == 0 ? 0 : qkt_rng_below(rng, 10)) {
	case 0:
	case 1:
	case 2:
		step_take(lab, rng, may_fill);
		break;
	case 3:
	case 4:
		assert_status(lab_raise(lab, c, &err),
			lab->counts[c] == lab->max ? QCOW_E_LIMIT : QCOW_OK, err);
		break;
	case 5:
		if (qkt_rng_below(rng, 8) == 0)
			assert_ok(lab_publish(lab, &err), err);
		break;
	case 6:
		assert_ok(qk_space_refcount(lab->sp, c << lab->cluster_bits, &count, &err), err);
		assert_int_equal(count, lab->counts[c]);
		break;
	default:
		assert_ok(lab_drop(lab, c, &err), err);
	}
}

static void run(const struct lab_options *o, uint64_t seed)
{
	struct qkt_rng rng = qkt_rng_fixed(seed);
	struct qcow_error err = QCOW_ERROR_INIT;
	struct lab lab;

	lab_open(&lab, o);
	for (unsigned i = 0; i < N_STEPS; i++) {
		step(&lab, &rng, o->fixed_clusters != 0);
		if (i % 500 == 499) {
			assert_ok(lab_publish(&lab, &err), err);
			lab_judge(&lab, false);
		}
	}
	assert_ok(qk_space_close(lab.sp, &err), err);
	lab_judge(&lab, true);
	qk_space_free(lab.sp);
	/* nothing on the disk refers to what the array holds: a proof would find leaks */
	struct lab_options again = *o;
	again.prove = QCOW_PROVE_OFF;
	assert_ok(lab_space(&lab, &again, &err), err);
	for (unsigned i = 0; i < N_STEPS / 4; i++)
		step(&lab, &rng, o->fixed_clusters != 0);
	assert_ok(qk_space_close(lab.sp, &err), err);
	lab_judge(&lab, true);
	lab_free(&lab);
}

static void random_steps_agree_with_an_array(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(20261122);
	for (uint32_t bits = 1; bits <= 64; bits *= 2) {
		for (uint64_t cs = 512; cs <= 65536; cs *= 8) {
			struct lab_options o = {.cluster_size = cs, .refcount_bits = bits};
			run(&o, qkt_rng_next(&rng));
		}
	}
}

static void random_steps_on_a_device(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(20261123);
	for (uint32_t bits = 1; bits <= 64; bits *= 4) {
		struct lab_options o = {
			.cluster_size = 512, .refcount_bits = bits, .fixed_clusters = 3000};
		run(&o, qkt_rng_next(&rng));
	}
}

static void a_small_cache_forgets_nothing(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(20261124);
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 64, .cache_bytes = 1};
	run(&o, qkt_rng_next(&rng));
}

/* ---- growth of the refcount table ---- */

/* 512 bytes and 64 bits: a block counts 64 clusters, a cluster of the table names 64 blocks. */
static void the_refcount_table_grows(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 64};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;
	struct lab lab;
	uint64_t first_table = 0;

	lab_open(&lab, &o);
	first_table = lab.image->header.rt_off;
	for (unsigned i = 0; i < 30000; i++) {
		assert_ok(lab_take(&lab, 1 + i % 3, 1, &run, &err), err);
		if (i % 1000 == 999) {
			assert_ok(lab_publish(&lab, &err), err);
			lab_judge(&lab, false);
		}
	}
	assert_ok(qk_space_close(lab.sp, &err), err);
	lab_judge(&lab, true);
	/* the first table was freed, and its cluster taken again */
	assert_int_equal(lab.counts[first_table / 512], 1);
	qk_space_free(lab.sp);
	assert_ok(lab_space(&lab, &o, &err), err);
	assert_true(lab.image->header.rt_clusters >= 16);
	lab_free(&lab);
}

/* What a writer does, with every step repeated until it ends well. */
static void grow_with_failures(struct lab *lab)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;

	for (unsigned i = 0; i < 240; i++) {
		while (lab_take(lab, 20, 1 + i % 20, &run, &err) != QCOW_OK)
			assert_true(err.status == QCOW_E_IO || err.status == QCOW_E_NOSPC);
		uint64_t c = run.off / 512;
		if (i % 5 == 0) {
			while (lab_raise(lab, c, &err) != QCOW_OK)
				assert_int_equal(err.status, QCOW_E_IO);
		}
		if (i % 7 == 0) {
			while (lab_drop(lab, c, &err) != QCOW_OK)
				assert_int_equal(err.status, QCOW_E_IO);
		}
		if (i % 30 != 29)
			continue;
		lab_judge(lab, false);
		while (lab_publish(lab, &err) != QCOW_OK) {
			lab_judge(lab, false);
			if (qk_space_recover(lab->sp, &err) != QCOW_OK)
				lab_judge(lab, false);
		}
		lab_judge(lab, false);
	}
}

static void every_call_of_the_store_may_fail(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 64, .cache_bytes = 1};
	static const enum qkt_failure kinds[] = {QKT_EIO, QKT_ENOSPC, QKT_SHORT};
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t n_calls = 0;

	for (uint64_t nth = 1; nth == 1 || nth <= n_calls; nth += 1 + nth / 100) {
		struct lab lab;
		lab_open(&lab, &o);
		qkt_fault_arm(lab.fault, QKT_ANY, nth, kinds[nth % 3], false);
		grow_with_failures(&lab);
		if (nth == 1)
			n_calls = qkt_fault_count(lab.fault, QKT_ANY);
		qkt_fault_disarm(lab.fault);
		assert_true(qk_space_close(lab.sp, &err) == QCOW_OK);
		lab_judge(&lab, false);
		lab_free(&lab);
	}
	assert_true(n_calls > 100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_steps_agree_with_an_array),
		cmocka_unit_test(random_steps_on_a_device),
		cmocka_unit_test(a_small_cache_forgets_nothing),
		cmocka_unit_test(the_refcount_table_grows),
		cmocka_unit_test(every_call_of_the_store_may_fail),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
