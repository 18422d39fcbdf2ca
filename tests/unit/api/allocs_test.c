/* SPDX-License-Identifier: MIT */
/*
 * Every Nth allocation of the library fails, once and for ever: no crash, no wrong answer, nothing left
 * allocated, and the failure is called what it is.
 */
#include "cm.h"

#include <stdlib.h>

#include "failmalloc.h"
#include "scenario.h"

static void nothing_is_left_where_nothing_fails(void **state)
{
	(void)state;
	struct outcome o;
	scenario_run(NULL, &o);
	int64_t live = qkt_failmalloc_live();
	qkt_failmalloc_arm(0, false);
	scenario_run(NULL, &o);
	if (o.n_failed != 0)
		fail_msg("%s: %s", o.call, o.err.message);
	assert_true(qkt_failmalloc_count() > 50);
	assert_int_equal(qkt_failmalloc_live(), live);
}

static void judge(const struct outcome *o, uint64_t nth, int64_t left)
{
	unsigned long long n = nth;
	if (o->wrong != NULL)
		fail_msg("allocation %llu: wrong answer: %s", n, o->wrong);
	if (left != 0)
		fail_msg("allocation %llu: %lld blocks are left (%s: %s)", n, (long long)left,
			o->n_failed != 0 ? o->call : "no call failed", o->err.message);
	/* a cache that has no memory may do without: then every answer was right */
	if (o->n_failed == 0 && o->check_errors == 0)
		return;
	if (o->status != QCOW_E_NOMEM || o->err.status != QCOW_E_NOMEM ||
		strstr(o->err.message, "out of memory") == NULL)
		fail_msg("allocation %llu: %s answered %s: \"%s\"", n, o->call,
			qcow_status_name(o->status), o->err.message);
}

static void sweep(bool for_ever)
{
	uint64_t n_reported = 0;
	for (uint64_t nth = 1;; nth++) {
		struct outcome o;
		int64_t live = qkt_failmalloc_live();
		qkt_failmalloc_arm(nth, for_ever);
		scenario_run(NULL, &o);
		uint64_t hits = qkt_failmalloc_hits();
		qkt_failmalloc_arm(0, false);
		if (hits == 0)
			break;
		judge(&o, nth, qkt_failmalloc_live() - live);
		n_reported += o.n_failed != 0;
	}
	assert_true(n_reported > 20);
}

static void every_allocation_that_fails_once_is_survived(void **state)
{
	(void)state;
	sweep(false);
}

static void every_allocation_from_the_nth_on_is_survived(void **state)
{
	(void)state;
	sweep(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_is_left_where_nothing_fails),
		cmocka_unit_test(every_allocation_that_fails_once_is_survived),
		cmocka_unit_test(every_allocation_from_the_nth_on_is_survived),
	};
	scenario_make();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
