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
	enum qcow_status want = QCOW_OK;

	switch (c == 0 ? 0 : qkt_rng_below(rng, 10)) {
	case 0:
	case 1:
	case 2:
		step_take(lab, rng, may_fill);
		break;
	case 3:
	case 4:
		want = lab->counts[c] == lab->max ? QCOW_E_LIMIT : QCOW_OK;
		assert_status(lab_raise(lab, c, &err), want, err);
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

/* ---- single rules ---- */

static uint64_t refcount(struct lab *lab, uint64_t cluster)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t count = 0;

	assert_ok(qk_space_refcount(lab->sp, cluster << lab->cluster_bits, &count, &err), err);
	return count;
}

/* Its refcount block has left the cache: what is given back is free at the next occasion, without I/O before. */
static void what_is_given_back_late_is_free_later(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 64, .cache_bytes = 1};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run first, run;
	struct lab lab;

	lab_open(&lab, &o);
	assert_ok(lab_take(&lab, 2, 2, &first, &err), err);
	for (unsigned i = 0; i < 900; i++)
		assert_ok(lab_take(&lab, 1, 1, &run, &err), err);
	assert_ok(lab_publish(&lab, &err), err);
	assert_ok(lab_take(&lab, 1, 1, &run, &err), err);
	for (uint64_t c = lab.top - 1; c > lab.top - 600; c -= 64)
		(void)refcount(&lab, c);
	qkt_fault_arm(lab.fault, QKT_READ, 1, QKT_EIO, true);
	lab.counts[first.off / 512] = 0;
	qk_space_give_back(lab.sp, first.off, 1);
	assert_int_equal(qkt_fault_hits(lab.fault), 0);
	assert_status(lab_drop(&lab, first.off / 512 + 1, &err), QCOW_E_IO, err);
	qkt_fault_disarm(lab.fault);
	assert_ok(lab_take(&lab, 1, 1, &run, &err), err);
	assert_int_equal(run.off, first.off);
	assert_false(run.reads_zero);
	lab_free(&lab);
}

static void a_run_is_reserved_and_given_back(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 65536, .refcount_bits = 16};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;
	struct lab lab;
	uint64_t first = 0;

	lab_open(&lab, &o);
	for (unsigned i = 0; i < 65; i++) {
		assert_ok(lab_take(&lab, 1, 1, &run, &err), err);
		first = i == 0 ? run.off >> 16 : first;
		assert_int_equal(run.off >> 16, first + i);
		assert_true(run.reads_zero);
		assert_int_equal(refcount(&lab, first + i + 1), i < 64 ? 0 : 1);
	}
	/* 64 MiB ahead, and the file is long enough */
	assert_int_equal(refcount(&lab, first + 64 + 1024), 1);
	assert_int_equal(refcount(&lab, first + 64 + 1025), 0);
	assert_int_equal(qk_space_file_size(lab.sp), (first + 65 + 1024) << 16);
	assert_ok(lab_publish(&lab, &err), err);
	/* the next publications have no refcount to write */
	qkt_fault_log(lab.fault);
	for (unsigned i = 65; i < 500; i++)
		assert_ok(lab_take(&lab, 1, 1, &run, &err), err);
	assert_ok(lab_publish(&lab, &err), err);
	assert_int_equal(qkt_fault_log_count(lab.fault), 1);
	assert_int_equal(qkt_fault_log_entry(lab.fault, 0)->call, QKT_FLUSH);
	assert_ok(lab_take(&lab, 700, 700, &run, &err), err);
	assert_int_equal(run.off >> 16, first + 500);
	assert_ok(qk_space_close(lab.sp, &err), err);
	lab_judge(&lab, true);
	assert_int_equal(qk_space_file_size(lab.sp), (first + 1200) << 16);
	lab_free(&lab);
}

static void a_run_goes_on_where_it_is_asked_to(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 4096, .refcount_bits = 16};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;
	struct lab lab;

	lab_open(&lab, &o);
	assert_ok(lab_take(&lab, 10, 10, &run, &err), err);
	struct qk_space_want want = {.n = 5, .min_n = 1, .near = run.off + 20 * 4096};
	uint64_t first = run.off;
	assert_ok(qk_space_take(lab.sp, &want, &run, &err), err);
	assert_int_equal(run.off, want.near);
	/* 3 are free there */
	want = (struct qk_space_want){.n = 5, .min_n = 2, .near = first + 17 * 4096};
	assert_ok(qk_space_take(lab.sp, &want, &run, &err), err);
	assert_int_equal(run.off, want.near);
	assert_int_equal(run.n, 3);
	/* too few: elsewhere, the lowest run that is long enough */
	want = (struct qk_space_want){.n = 8, .min_n = 8, .near = first + 16 * 4096};
	assert_ok(qk_space_take(lab.sp, &want, &run, &err), err);
	assert_int_equal(run.off, first + 25 * 4096);
	assert_ok(lab_take(&lab, 8, 1, &run, &err), err);
	assert_int_equal(run.off, first + 10 * 4096);
	assert_int_equal(run.n, 7);
	lab_free(&lab);
}

static void a_quarantined_cluster_is_never_handed_out(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 16, .fixed_clusters = 60};
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = QCOW_OK;
	struct qk_space_run run, other;
	struct lab lab;

	lab_open(&lab, &o);
	assert_ok(lab_take(&lab, 2, 2, &run, &err), err);
	assert_ok(qk_space_quarantine(lab.sp, run.off, 1, &err), err);
	assert_ok(lab_drop(&lab, run.off / 512, &err), err);
	while ((status = lab_take(&lab, 1, 1, &other, &err)) == QCOW_OK)
		assert_true(other.off != run.off);
	assert_int_equal(status, QCOW_E_NOSPC);
	lab_free(&lab);
}

static void too_much_and_too_little_are_told(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 2};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;
	struct lab lab;
	uint8_t byte = 0;

	lab_open(&lab, &o);
	assert_ok(lab_take(&lab, 1, 1, &run, &err), err);
	assert_ok(lab_raise(&lab, run.off / 512, &err), err);
	assert_ok(lab_raise(&lab, run.off / 512, &err), err);
	assert_status(lab_raise(&lab, run.off / 512, &err), QCOW_E_LIMIT, err);
	assert_int_equal(refcount(&lab, run.off / 512), 3);
	for (unsigned i = 0; i < 3; i++)
		assert_ok(lab_drop(&lab, run.off / 512, &err), err);
	/* below 0: the corrupt bit, and nothing goes on */
	assert_status(qk_space_drop(lab.sp, run.off, 1, &err), QCOW_E_CORRUPT, err);
	assert_int_equal(err.finding, QCOW_FINDING_REFCOUNT_TOO_LOW);
	assert_int_equal(err.host_off, run.off);
	assert_ok(qcow_store_read(lab.peek, &byte, 1, 79, &err), err);
	assert_int_equal(byte, 2);
	assert_status(lab_take(&lab, 1, 1, &run, &err), QCOW_E_CORRUPT, err);
	assert_status(lab_publish(&lab, &err), QCOW_E_CORRUPT, err);
	lab_free(&lab);
}

/* It has no such bit. */
static void a_version_2_header_is_not_marked_corrupt(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 16, .version = 2};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;
	struct lab lab;
	uint8_t before[512], after[512];

	lab_open(&lab, &o);
	assert_ok(lab_take(&lab, 1, 1, &run, &err), err);
	assert_ok(lab_drop(&lab, run.off / 512, &err), err);
	assert_ok(qcow_store_read(lab.peek, before, sizeof(before), 0, &err), err);
	assert_status(qk_space_drop(lab.sp, run.off, 1, &err), QCOW_E_CORRUPT, err);
	assert_ok(qcow_store_read(lab.peek, after, sizeof(after), 0, &err), err);
	assert_memory_equal(before, after, sizeof(before));
	assert_status(lab_take(&lab, 1, 1, &run, &err), QCOW_E_CORRUPT, err);
	lab_free(&lab);
}

static void a_header_that_somebody_else_wrote_is_noticed(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 16, .plain = true};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct lab lab;
	uint8_t byte = 1;

	lab_open(&lab, &o);
	assert_ok(qk_space_recover(lab.sp, &err), err);
	assert_ok(qcow_store_write(lab.store, &byte, 1, 53, &err), err);
	assert_status(qk_space_recover(lab.sp, &err), QCOW_E_CORRUPT, err);
	lab_free(&lab);
}

/* Drops far apart: more blocks than the budget stay in memory until they are published. */
static void a_cache_over_its_budget_says_so(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 64, .cache_bytes = 1};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;
	struct lab lab;

	lab_open(&lab, &o);
	for (unsigned i = 0; i < 1000; i++)
		assert_ok(lab_take(&lab, 1, 1, &run, &err), err);
	assert_true(qk_space_wants_publish(lab.sp));
	assert_ok(lab_publish(&lab, &err), err);
	for (unsigned i = 0; i < 20; i++)
		(void)refcount(&lab, 10 + i);
	for (uint64_t c = 10; c < 900; c += 64)
		(void)refcount(&lab, c);
	assert_false(qk_space_wants_publish(lab.sp));
	lab_free(&lab);
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
		cmocka_unit_test(what_is_given_back_late_is_free_later),
		cmocka_unit_test(a_run_is_reserved_and_given_back),
		cmocka_unit_test(a_run_goes_on_where_it_is_asked_to),
		cmocka_unit_test(a_quarantined_cluster_is_never_handed_out),
		cmocka_unit_test(too_much_and_too_little_are_told),
		cmocka_unit_test(a_version_2_header_is_not_marked_corrupt),
		cmocka_unit_test(a_header_that_somebody_else_wrote_is_noticed),
		cmocka_unit_test(a_cache_over_its_budget_says_so),
		cmocka_unit_test(the_refcount_table_grows),
		cmocka_unit_test(every_call_of_the_store_may_fail),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
