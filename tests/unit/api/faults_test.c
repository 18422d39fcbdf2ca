/* SPDX-License-Identifier: MIT */
/*
 * Every Nth call on a store fails, in every way, once and for ever: the library must not crash, must
 * not answer wrongly, and must say what happened and where.
 */
#include "cm.h"

#include <errno.h>
#include <stdlib.h>

#include "host.h"
#include "scenario.h"

static void nothing_fails_where_nothing_is_injected(void **state)
{
	(void)state;
	struct outcome o;
	scenario_run(NULL, &o);
	if (o.n_failed != 0)
		fail_msg("%s: %s", o.call, o.err.message);
	assert_null(o.wrong);
	assert_int_equal(o.check_errors, 0);
}

/* The injected failure is found again in the error of the first call that met it. */
static void judge(const struct outcome *o, const char *what, uint64_t nth)
{
	if (o->wrong != NULL)
		fail_msg("%s %llu: wrong answer: %s", what, (unsigned long long)nth, o->wrong);
	if (o->n_failed == 0 && o->hits_before_check != 0)
		fail_msg("%s %llu: no call failed", what, (unsigned long long)nth);
	if (o->n_failed == 0 && o->check_errors == 0)
		fail_msg(
			"%s %llu: check and walk say nothing of it", what, (unsigned long long)nth);
	if (o->n_failed == 0)
		return;
	bool precise = o->status == QCOW_E_IO && o->err.status == o->status &&
		       o->err.os_errno == EIO && strstr(o->err.message, qkt_dir()) != NULL &&
		       strstr(o->err.message, "Input/output error (injected)") != NULL;
	if (!precise)
		fail_msg("%s %llu: %s answered %s, errno %d: \"%s\"", what, (unsigned long long)nth,
			o->call, qcow_status_name(o->status), o->err.os_errno, o->err.message);
}

/* N = 1, 2, … until a run has fewer calls than that. Returns how many failed. */
static uint64_t sweep(enum qkt_call call, enum qkt_failure failure, bool for_ever, const char *what)
{
	uint64_t nth = 0;
	for (;;) {
		struct qkt_fault *f = qkt_fault_new();
		struct outcome o;
		qkt_fault_arm(f, call, ++nth, failure, for_ever);
		scenario_run(f, &o);
		uint64_t hits = qkt_fault_hits(f);
		qkt_fault_free(f);
		if (hits == 0)
			break;
		judge(&o, what, nth);
	}
	return nth - 1;
}

static void every_read_that_fails_once_is_reported(void **state)
{
	(void)state;
	assert_true(sweep(QKT_READ, QKT_EIO, false, "read") > 20);
}

static void every_read_that_is_cut_short_is_reported(void **state)
{
	(void)state;
	assert_true(sweep(QKT_READ, QKT_SHORT, false, "short read") > 20);
}

static void every_read_from_the_nth_on_is_reported(void **state)
{
	(void)state;
	assert_true(sweep(QKT_READ, QKT_EIO, true, "read for ever") > 20);
}

static void every_look_at_the_size_that_fails_is_reported(void **state)
{
	(void)state;
	assert_true(sweep(QKT_SIZE, QKT_EIO, false, "size") > 3);
}

static void every_look_for_holes_that_fails_is_reported(void **state)
{
	(void)state;
	assert_true(sweep(QKT_EXTENTS, QKT_EIO, false, "extents") > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_fails_where_nothing_is_injected),
		cmocka_unit_test(every_read_that_fails_once_is_reported),
		cmocka_unit_test(every_read_that_is_cut_short_is_reported),
		cmocka_unit_test(every_read_from_the_nth_on_is_reported),
		cmocka_unit_test(every_look_at_the_size_that_fails_is_reported),
		cmocka_unit_test(every_look_for_holes_that_fails_is_reported),
	};
	scenario_make();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
