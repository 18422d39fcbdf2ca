/* SPDX-License-Identifier: MIT */
/*
 * Every Nth allocation of a space fails, once: each call that fails says so and has changed nothing, repeated it
 * succeeds, and no stored refcount ends below its references.
 */
#include "space_lab.h"

#include "failmalloc.h"

static void must_be_nomem(enum qcow_status status, const struct qcow_error *err)
{
	if (status != QCOW_E_NOMEM || err->status != QCOW_E_NOMEM)
		fail_msg("answered %s: %s", qcow_status_name(status), err->message);
}

/* Repeat the call until it succeeds: one allocation fails, so twice is enough. */
#define UNTIL_OK(call)                                            \
	do {                                                      \
		struct qcow_error err = QCOW_ERROR_INIT;          \
		enum qcow_status status = (call);                 \
		if (status != QCOW_OK) {                          \
			must_be_nomem(status, &err);              \
			err = (struct qcow_error)QCOW_ERROR_INIT; \
			assert_ok((call), err);                   \
		}                                                 \
	} while (0)

/* False where it could not be remembered: nothing is handed out then. */
static bool quarantine(struct lab *lab, uint64_t off)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;
	enum qcow_status status = qk_space_quarantine(lab->sp, off, 1, &err);

	if (status == QCOW_OK)
		return true;
	must_be_nomem(status, &err);
	must_be_nomem(lab_take(lab, 1, 1, &run, &err), &err);
	return false;
}

static void steps(struct lab *lab)
{
	struct qk_space_run run;

	for (unsigned i = 0; i < 900; i++) {
		enum qk_space_kind kind = i % 9 == 0 ? QK_SPACE_L2 : QK_SPACE_DATA;
		UNTIL_OK(lab_take_as(lab, kind, 1 + i % 12, 1, &run, &err));
		uint64_t c = run.off / 512;
		if (i % 5 == 0)
			UNTIL_OK(lab_raise(lab, c, &err));
		if (i % 7 == 0)
			UNTIL_OK(lab_drop(lab, c, &err));
		if (i % 11 == 0 && lab->counts[c] == 1) {
			lab->counts[c] = 0;
			qk_space_give_back(lab->sp, run.off, 1);
		}
		if (i % 13 == 0 && run.n > 2 && !quarantine(lab, run.off + 512))
			return;
		if (i % 100 == 99)
			UNTIL_OK(lab_publish(lab, &err));
	}
}

static uint64_t run_with(uint64_t nth)
{
	struct lab_options o = {
		.cluster_size = 512, .refcount_bits = 64, .cache_bytes = 1, .plain = true};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct lab lab;

	lab_open(&lab, &o);
	qkt_failmalloc_arm(nth, false);
	steps(&lab);
	uint64_t hits = qkt_failmalloc_hits();
	qkt_failmalloc_arm(0, false);
	assert_ok(qk_space_close(lab.sp, &err), err);
	lab_judge(&lab, false);
	lab_free(&lab);
	return hits;
}

static void every_allocation_may_fail(void **state)
{
	(void)state;
	uint64_t n = 0;

	run_with(0);
	int64_t live = qkt_failmalloc_live();
	/* the first ones one by one, the many after them in growing strides */
	for (uint64_t nth = 1; run_with(nth) != 0; nth += 1 + nth / 30)
		n++;
	assert_true(n > 50);
	assert_int_equal(qkt_failmalloc_live(), live);
}

static void an_open_that_fails_leaves_nothing(void **state)
{
	(void)state;
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 64, .plain = true};
	enum qcow_status status = QCOW_E_NOMEM;
	struct lab lab;
	unsigned n = 0;

	lab_open(&lab, &o);
	qk_space_free(lab.sp);
	lab.sp = NULL;
	for (uint64_t nth = 1; status != QCOW_OK; nth++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		int64_t live = qkt_failmalloc_live();
		qkt_failmalloc_arm(nth, false);
		status = lab_space(&lab, &o, &err);
		qkt_failmalloc_arm(0, false);
		if (status == QCOW_OK)
			break;
		must_be_nomem(status, &err);
		assert_int_equal(qkt_failmalloc_live(), live);
		n++;
	}
	assert_true(n > 5);
	lab_free(&lab);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_allocation_may_fail),
		cmocka_unit_test(an_open_that_fails_leaves_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
