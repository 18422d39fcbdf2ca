/* SPDX-License-Identifier: MIT */
#include "cm.h"

#include <stdlib.h>

#include <qcowkit/store.h>

#include "model.h"
#include "rng.h"

#define PAGE 65536u

static struct qcow_error err;

static struct qcow_store *open_memory(uint64_t size)
{
	struct qcow_store *s = NULL;
	assert_ok(qcow_memory_open(size, &s, &err), err);
	return s;
}

static void new_memory_reads_as_zeros(void **state)
{
	(void)state;
	struct qcow_store *s = open_memory(3 * PAGE + 5);
	uint8_t buf[64], zero[64] = {0};
	memset(buf, 1, sizeof(buf));
	assert_ok(qcow_store_read(s, buf, sizeof(buf), 3 * PAGE + 5 - sizeof(buf), &err), err);
	assert_memory_equal(buf, zero, sizeof(buf));
	qcow_store_close(s);
}

static void a_pebibyte_costs_only_what_is_written(void **state)
{
	(void)state;
	const uint64_t size = UINT64_C(1) << 60;
	struct qcow_store *s = open_memory(size);
	struct qcow_store_extent e;
	assert_ok(qcow_store_extents(s, 0, size, &e, &err), err);
	assert_true(e.is_hole && e.len == size);
	assert_ok(qcow_store_write(s, "x", 1, size - 1, &err), err);
	assert_ok(qcow_store_extents(s, 0, size, &e, &err), err);
	assert_true(e.is_hole && e.len == size - PAGE);
	assert_ok(qcow_store_extents(s, e.len, PAGE, &e, &err), err);
	assert_true(!e.is_hole && e.len == PAGE);
	qcow_store_close(s);
}

static void growing_after_a_shrink_shows_zeros(void **state)
{
	(void)state;
	struct qcow_store *s = open_memory(0);
	uint8_t buf[300], zero[200] = {0};
	memset(buf, 7, sizeof(buf));
	assert_ok(qcow_store_write(s, buf, sizeof(buf), 0, &err), err);
	assert_ok(qcow_store_truncate(s, 100, &err), err);
	assert_ok(qcow_store_truncate(s, 300, &err), err);
	assert_ok(qcow_store_read(s, buf, 200, 100, &err), err);
	assert_memory_equal(buf, zero, 200);
	qcow_store_close(s);
}

static void punching_whole_pages_makes_holes(void **state)
{
	(void)state;
	struct qcow_store *s = open_memory(0);
	static uint8_t buf[4 * PAGE];
	memset(buf, 9, sizeof(buf));
	assert_ok(qcow_store_write(s, buf, sizeof(buf), 0, &err), err);
	assert_ok(qcow_store_punch(s, PAGE / 2, 2 * PAGE, &err), err);
	struct qcow_store_extent e;
	assert_ok(qcow_store_extents(s, 0, sizeof(buf), &e, &err), err);
	assert_true(!e.is_hole && e.len == PAGE);
	assert_ok(qcow_store_extents(s, PAGE, 3 * PAGE, &e, &err), err);
	assert_true(e.is_hole && e.len == PAGE);
	assert_ok(qcow_store_read(s, buf, sizeof(buf), 0, &err), err);
	for (size_t i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], i < PAGE / 2 || i >= 5 * PAGE / 2 ? 9 : 0);
	qcow_store_close(s);
}

static void allocated_zeros_are_no_hole(void **state)
{
	(void)state;
	struct qcow_store *s = open_memory(0);
	struct qcow_store_extent e;
	assert_ok(qcow_store_zero(s, 0, 2 * PAGE, QCOW_ZERO_ALLOCATE, &err), err);
	assert_ok(qcow_store_extents(s, 0, 2 * PAGE, &e, &err), err);
	assert_true(!e.is_hole && e.len == 2 * PAGE);
	qcow_store_close(s);
}

static void a_read_past_the_end_is_refused(void **state)
{
	(void)state;
	struct qcow_store *s = open_memory(1000);
	uint8_t buf[16];
	assert_status(qcow_store_read(s, buf, 16, 985, &err), QCOW_E_RANGE, err);
	assert_status(qcow_store_read(s, buf, 16, UINT64_MAX - 3, &err), QCOW_E_RANGE, err);
	assert_says(err, "memory: reading 16 bytes");
	assert_ok(qcow_store_read(s, buf, 16, 984, &err), err);
	qcow_store_close(s);
}

/* One random operation on both. */
static void step(struct qcow_store *s, struct qkt_model *m, struct qkt_rng *rng)
{
	static uint8_t buf[3 * PAGE];
	size_t off = (size_t)qkt_rng_below(rng, 16 * PAGE);
	size_t len = (size_t)qkt_rng_below(rng, sizeof(buf)) + 1;
	switch (qkt_rng_below(rng, 5)) {
	case 0:
		qkt_rng_fill(rng, buf, len);
		qkt_model_write(m, buf, len, off);
		assert_ok(qcow_store_write(s, buf, len, off, &err), err);
		break;
	case 1:
		qkt_model_zero(m, len, off);
		assert_ok(qcow_store_zero(s, off, len, 0, &err), err);
		break;
	case 2:
		if (off + len > m->size)
			break;
		qkt_model_zero(m, len, off);
		assert_ok(qcow_store_punch(s, off, len, &err), err);
		break;
	case 3:
		qkt_model_resize(m, off);
		assert_ok(qcow_store_truncate(s, off, &err), err);
		break;
	default:
		if (off >= m->size)
			break;
		len = len < m->size - off ? len : m->size - off;
		assert_ok(qcow_store_read(s, buf, len, off, &err), err);
		assert_true(qkt_model_differs(m, buf, len, off) == SIZE_MAX);
	}
}

static void random_operations_agree_with_an_array(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(0x6d656d);
	struct qcow_store *s = open_memory(0);
	struct qkt_model m = qkt_model_new(0);
	for (int i = 0; i < 3000; i++)
		step(s, &m, &rng);
	uint64_t size = 0;
	assert_ok(qcow_store_size(s, &size, &err), err);
	assert_int_equal(size, m.size);
	uint8_t *all = malloc(m.size + 1);
	assert_non_null(all);
	assert_ok(qcow_store_read(s, all, m.size, 0, &err), err);
	assert_true(qkt_model_differs(&m, all, m.size, 0) == SIZE_MAX);
	free(all);
	qkt_model_free(&m);
	qcow_store_close(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(new_memory_reads_as_zeros),
		cmocka_unit_test(a_pebibyte_costs_only_what_is_written),
		cmocka_unit_test(growing_after_a_shrink_shows_zeros),
		cmocka_unit_test(punching_whole_pages_makes_holes),
		cmocka_unit_test(allocated_zeros_are_no_hole),
		cmocka_unit_test(a_read_past_the_end_is_refused),
		cmocka_unit_test(random_operations_agree_with_an_array),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
