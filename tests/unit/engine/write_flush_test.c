/* SPDX-License-Identifier: MIT */
/*
 * What a write costs and promises beside its bytes: flushes of the store, calls that must not wait, the plan of a group,
 * flags and ranges that are refused, and an open for writing that fails half way.
 */
#include "cm.h"

#include <stdbool.h>
#include <stdlib.h>

#include <qcowkit/qcowkit.h>

#include "engine/plan.h"
#include "engine/write.h"
#include "failmalloc.h"
#include "order.h"

#define CLUSTER UINT64_C(65536)
#define SIZE	(UINT64_C(64) << 20)

struct bench {
	struct qkt_order *order;
	struct qkt_fault *fault;
	struct qcow_store *base;
	struct qcow_image *image;
};

static struct qcow_store *new_image(uint32_t version, uint64_t cluster)
{
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	create.version = version;
	create.virtual_size = SIZE;
	create.cluster_size = cluster;
	assert_ok(qcow_memory_open(0, &store, &err), err);
	assert_ok(qcow_create(store, NULL, &create, &err), err);
	return store;
}

static struct bench new_bench(uint32_t version)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bench b = {.order = qkt_order_new(NULL), .fault = qkt_fault_new()};
	b.base = new_image(version, CLUSTER);
	o.flags = QCOW_OPEN_WRITE;
	assert_ok(qcow_open(qkt_guard(b.fault, b.order, b.base, 0), &o, &b.image, &err), err);
	return b;
}

static void end_bench(struct bench *b)
{
	qcow_close(b->image);
	qkt_order_free(b->order);
	qkt_fault_free(b->fault);
}

/* Flushes of the store since the last call. */
static uint64_t n_flushes(struct bench *b)
{
	uint64_t n = qkt_fault_count(b->fault, QKT_FLUSH);
	qkt_fault_disarm(b->fault);
	qkt_fault_arm(b->fault, QKT_FLUSH, UINT64_MAX, QKT_EIO, false);
	return n;
}

static void flush_costs_one_where_nothing_is_allocated(void **state)
{
	(void)state;
	struct bench b = new_bench(3);
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t byte = 1;
	(void)n_flushes(&b);
	assert_ok(qcow_pwrite(b.image, &byte, 1, 5, 0, &err), err);
	assert_int_equal(n_flushes(&b), 0);
	assert_ok(qcow_flush(b.image, &err), err);
	assert_int_equal(n_flushes(&b), 2);
	assert_ok(qcow_flush(b.image, &err), err);
	assert_int_equal(n_flushes(&b), 1);
	assert_ok(qcow_pwrite(b.image, &byte, 1, 6, QCOW_IO_FUA, &err), err);
	assert_int_equal(n_flushes(&b), 1);
	assert_ok(qcow_pwrite(b.image, &byte, 1, 9 * CLUSTER, QCOW_IO_FUA, &err), err);
	assert_int_equal(n_flushes(&b), 2);
	/* entries that name nothing new need no barrier before them */
	assert_ok(qcow_discard(b.image, 0, CLUSTER, QCOW_IO_FUA, &err), err);
	assert_int_equal(n_flushes(&b), 1);
	end_bench(&b);
}

static void full_stage_publishes_by_itself(void **state)
{
	(void)state;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bench b = {.order = qkt_order_new(NULL), .fault = qkt_fault_new()};
	o.flags = QCOW_OPEN_WRITE;
	o.stage_bytes = 1;
	assert_ok(qcow_open(qkt_guard(b.fault, b.order, new_image(3, 512), 0), &o, &b.image, &err),
		err);
	(void)n_flushes(&b);
	/* 16 groups of 64 clusters fit */
	for (uint64_t i = 0; i < 16; i++)
		assert_ok(qcow_pwrite(b.image, "x", 1, i * 64 * 512, 0, &err), err);
	assert_int_equal(n_flushes(&b), 0);
	assert_ok(qcow_pwrite(b.image, "x", 1, 16 * 64 * 512, 0, &err), err);
	assert_int_equal(n_flushes(&b), 2);
	end_bench(&b);
}

static void begin_names_places_without_waiting(void **state)
{
	(void)state;
	struct bench b = new_bench(3);
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_write w;
	struct qk_write_range r = {.image = b.image, .off = {0}, .len = 3 * CLUSTER};
	uint8_t *bytes = calloc(3, CLUSTER);
	assert_ok(qk_write_begin(&r, &w, &err), err);
	assert_true(w.covered == 0 && w.needs_remap && !w.is_blocked);
	qk_write_end(&w);
	memset(bytes, 7, 2 * CLUSTER);
	assert_ok(qcow_pwrite(b.image, bytes, 2 * CLUSTER, 0, 0, &err), err);
	/* staged, and published: in place up to where nothing is allocated */
	for (unsigned i = 0; i < 2; i++) {
		assert_ok(qk_write_begin(&r, &w, &err), err);
		assert_int_equal(w.covered, 2 * CLUSTER);
		assert_int_equal(w.n, 1);
		assert_true(w.runs[0].kind == QK_RUN_PLAIN && w.needs_remap);
		qk_write_end(&w);
		assert_ok(qcow_flush(b.image, &err), err);
	}
	/* another handle has nothing cached */
	uint64_t size = 0;
	assert_ok(qcow_store_size(b.base, &size, &err), err);
	uint8_t *copy = malloc(size);
	struct qcow_store *other = NULL;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	assert_ok(qcow_store_read(b.base, copy, size, 0, &err), err);
	assert_ok(qcow_memory_open(0, &other, &err), err);
	assert_ok(qcow_store_write(other, copy, size, 0, &err), err);
	o.flags = QCOW_OPEN_WRITE;
	assert_ok(qcow_open(other, &o, &r.image, &err), err);
	assert_ok(qk_write_begin(&r, &w, &err), err);
	assert_true(w.covered == 0 && w.is_blocked);
	qk_write_end(&w);
	r.may_block = true;
	assert_ok(qk_write_begin(&r, &w, &err), err);
	assert_int_equal(w.covered, 2 * CLUSTER);
	qk_write_end(&w);
	qcow_close(r.image);
	free(copy);
	free(bytes);
	end_bench(&b);
}

static void plan_joins_what_belongs_together(void **state)
{
	(void)state;
	const struct qk_l2_entry entries[] = {
		{.type = QK_L2_NORMAL, .host_off = {0x10000}, .copied = true},
		{.type = QK_L2_NORMAL, .host_off = {0x20000}, .copied = true},
		{.type = QK_L2_NORMAL, .host_off = {0x50000}, .copied = true},
		{.type = QK_L2_NORMAL, .host_off = {0x60000}},
		{.type = QK_L2_UNALLOCATED},
		{.type = QK_L2_COMPRESSED, .host_off = {0x70123}, .compressed_bytes = 512},
		{.type = QK_L2_NORMAL, .host_off = {0x90000}},
		{.type = QK_L2_ZERO_ALLOC, .host_off = {0xa0000}, .copied = true},
		{.type = QK_L2_ZERO_ALLOC, .host_off = {0xb0000}, .copied = true},
	};
	const struct qk_plan plan = {.entries = entries, .owned = 0x18f, .cluster_size = 0x10000};
	static const struct qk_step want[] = {
		{QK_STEP_IN_PLACE, 0, 2, {0x10000}},
		{QK_STEP_IN_PLACE, 2, 1, {0x50000}},
		{QK_STEP_ADOPT, 3, 1, {0x60000}},
		{QK_STEP_ALLOCATE, 4, 3, {0x70000}},
		{QK_STEP_REFILL, 7, 2, {0xa0000}},
	};
	uint32_t at = 0;
	for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		struct qk_step step = qk_plan_step(&plan, at, 9);
		assert_int_equal(step.kind, want[i].kind);
		assert_int_equal(step.first, want[i].first);
		assert_int_equal(step.n, want[i].n);
		assert_int_equal(step.host.v, want[i].host.v);
		at += step.n;
	}
	assert_int_equal(at, 9);
	assert_int_equal(qk_plan_step(&plan, 4, 5).n, 1);
}

static void wrong_calls_are_refused(void **state)
{
	(void)state;
	struct bench b = new_bench(2);
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_status(qcow_pwrite(b.image, "x", 1, SIZE, 0, &err), QCOW_E_RANGE, err);
	assert_status(qcow_pwrite(b.image, "x", 1, 0, QCOW_IO_UNMAP, &err), QCOW_E_INVAL, err);
	assert_status(qcow_discard(b.image, 0, 1, QCOW_IO_FAST, &err), QCOW_E_INVAL, err);
	assert_status(qcow_zero(b.image, SIZE, 1, 0, &err), QCOW_E_RANGE, err);
	assert_status(qcow_zero(b.image, 0, 1, 1U << 31, &err), QCOW_E_INVAL, err);
	/* version 2 has no zero clusters: what is not zero already would have to be written */
	assert_ok(qcow_zero(b.image, 0, CLUSTER, QCOW_IO_FAST, &err), err);
	assert_ok(qcow_pwrite(b.image, "x", 1, 0, 0, &err), err);
	assert_status(qcow_zero(b.image, 0, CLUSTER, QCOW_IO_FAST, &err), QCOW_E_NOTSUP, err);
	assert_ok(qcow_zero(b.image, 0, CLUSTER, QCOW_IO_FAST | QCOW_IO_UNMAP, &err), err);
	assert_ok(qcow_recover(b.image, &err), err);
	end_bench(&b);
	struct qcow_image *image = NULL;
	assert_ok(qcow_open(new_image(3, CLUSTER), NULL, &image, &err), err);
	assert_status(qcow_pwrite(image, "x", 1, 0, 0, &err), QCOW_E_READONLY, err);
	assert_status(qcow_flush(image, &err), QCOW_E_READONLY, err);
	qcow_close(image);
}

static void open_for_writing_may_fail_anywhere(void **state)
{
	(void)state;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.flags = QCOW_OPEN_WRITE;
	unsigned n = 0;
	for (enum qcow_status status = QCOW_E_NOMEM; status != QCOW_OK; n++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_image *image = NULL;
		struct qcow_store *store = new_image(3, CLUSTER);
		qkt_failmalloc_arm(n + 1, false);
		status = qcow_open(store, &o, &image, &err);
		qkt_failmalloc_arm(0, false);
		if (status != QCOW_OK)
			assert_status(status, QCOW_E_NOMEM, err);
		qcow_close(image);
	}
	assert_true(n > 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(flush_costs_one_where_nothing_is_allocated),
		cmocka_unit_test(full_stage_publishes_by_itself),
		cmocka_unit_test(begin_names_places_without_waiting),
		cmocka_unit_test(plan_joins_what_belongs_together),
		cmocka_unit_test(wrong_calls_are_refused),
		cmocka_unit_test(open_for_writing_may_fail_anywhere),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
