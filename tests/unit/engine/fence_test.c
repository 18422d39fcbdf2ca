/* SPDX-License-Identifier: MIT */
/*
 * Want of room, from each write in turn, fences nothing. A flush of the store fails, each in turn: the image is fenced, its reads go on, and after qcow_recover it is as if
 * the writes since the last good flush had never been. The order checker takes what a failed flush was to make
 * durable for lost until it is written again, and stops the test where anything is linked to it.
 */
#include "cm.h"

#include <stdlib.h>

#include "image.h"

#define SIZE	 (UINT64_C(1) << 20)
#define N_STEPS	 24
#define CLUSTER	 4096u
#define N_BLOCKS 64u /* of a cluster, where the steps write */

struct t {
	struct qkt_image im;
	uint8_t old[N_BLOCKS], now[N_BLOCKS]; /* at the last good flush; as written */
};

static void begin(struct t *t, uint32_t version, uint64_t stage_bytes)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	const struct qkt_image_options opt = {.stage_bytes = stage_bytes};
	struct qcow_store *store = NULL;
	*t = (struct t){0};
	create.version = version;
	create.cluster_size = CLUSTER;
	create.virtual_size = SIZE;
	assert_ok(qcow_memory_open(0, &store, &err), err);
	assert_ok(qcow_create(store, NULL, &create, &err), err);
	assert_ok(qkt_image_open_store(&t->im, store, &opt, &err), err);
}

/* Step i: a write, zeros, a discard or a flush, always the same. */
static enum qcow_status step(struct t *t, unsigned i, struct qcow_error *err)
{
	uint8_t buf[CLUSTER];
	unsigned block = i * 29 % N_BLOCKS;
	uint64_t off = (uint64_t)block * CLUSTER;
	uint8_t value = i % 6 == 3 || i % 6 == 4 ? 0 : (uint8_t)(i + 1);
	if (i % 6 == 5) {
		enum qcow_status st = qcow_flush(t->im.image, err);
		if (st == QCOW_OK)
			memcpy(t->old, t->now, sizeof(t->old));
		return st;
	}
	t->now[block] = value;
	if (i % 6 == 3)
		return qcow_zero(t->im.image, off, CLUSTER, QCOW_IO_UNMAP, err);
	if (i % 6 == 4)
		return qcow_discard(t->im.image, off, CLUSTER, 0, err);
	memset(buf, value, sizeof(buf));
	return qcow_pwrite(t->im.image, buf, sizeof(buf), off, 0, err);
}

/* Each block is what it was at the last good flush, or what was written since. Takes it over. */
static void read_back(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t buf[CLUSTER];
	for (unsigned i = 0; i < N_BLOCKS; i++) {
		assert_ok(qcow_pread(t->im.image, buf, CLUSTER, (uint64_t)i * CLUSTER, &err), err);
		assert_memory_equal(buf, buf + 1, CLUSTER - 1);
		assert_true(buf[0] == t->old[i] || buf[0] == t->now[i]);
		t->now[i] = buf[0];
	}
	memcpy(t->old, t->now, sizeof(t->old));
}

/* All steps again, now that nothing fails. Closes the image. */
static void goes_on(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	for (unsigned i = 0; i < N_STEPS; i++)
		assert_ok(step(t, i, &err), err);
	assert_ok(qcow_flush(t->im.image, &err), err);
	read_back(t);
	struct qcow_check_options check = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	assert_ok(qcow_check(t->im.image, &check, &result, &err), err);
	assert_int_equal(result.corruptions, 0);
	qkt_image_close(&t->im);
}

/* False: there are no n flushes. */
static bool nth_flush_fails(uint32_t version, uint64_t stage_bytes, uint64_t n)
{
	struct t t;
	struct qcow_error err = QCOW_ERROR_INIT;
	begin(&t, version, stage_bytes);
	qkt_fault_arm(t.im.fault, QKT_FLUSH, n, QKT_EIO, false);
	enum qcow_status st = QCOW_OK;
	unsigned i = 0;
	for (; i < N_STEPS && st == QCOW_OK; i++)
		st = step(&t, i, &err);
	bool failed = qkt_fault_hits(t.im.fault) != 0;
	qkt_fault_disarm(t.im.fault);
	assert_int_equal(st, failed ? QCOW_E_IO : QCOW_OK);
	if (failed) {
		uint8_t b[512] = {1};
		struct qcow_error again = QCOW_ERROR_INIT;
		assert_status(
			qcow_pwrite(t.im.image, b, sizeof(b), 0, 0, &again), QCOW_E_IO, again);
		assert_status(qcow_flush(t.im.image, &again), QCOW_E_IO, again);
		assert_ok(qcow_pread(t.im.image, b, sizeof(b), 0, &again), again);
		assert_ok(qcow_recover(t.im.image, &again), again);
		read_back(&t);
	}
	goes_on(&t);
	return failed;
}

/* From the nth write on there is no room, tables in use included, as in holes of the file; then there is, and nobody has to
 * recover. False: there are no n writes. */
static bool room_ends(uint32_t version, uint64_t stage_bytes, uint64_t n)
{
	struct t t;
	struct qcow_error err = QCOW_ERROR_INIT;
	begin(&t, version, stage_bytes);
	qkt_fault_arm(t.im.fault, QKT_WRITE, n, QKT_ENOSPC, true);
	for (unsigned i = 0; i < N_STEPS; i++) {
		uint8_t before[N_BLOCKS];
		memcpy(before, t.now, sizeof(before));
		enum qcow_status st = step(&t, i, &err);
		assert_true(st == QCOW_OK || st == QCOW_E_NOSPC);
		if (st != QCOW_OK) /* of a block all is done or nothing */
			memcpy(t.now, before, sizeof(before));
	}
	bool failed = qkt_fault_hits(t.im.fault) != 0;
	qkt_fault_disarm(t.im.fault);
	assert_ok(qcow_flush(t.im.image, &err), err);
	read_back(&t);
	goes_on(&t);
	return failed;
}

static void sweep(uint32_t version, uint64_t stage_bytes)
{
	uint64_t n = 1;
	while (nth_flush_fails(version, stage_bytes, n))
		n++;
	assert_true(n > 6);
}

static void want_of_room_fences_nothing(void **state)
{
	(void)state;
	for (uint32_t version = 2; version <= 3; version++)
		for (uint64_t stage = 0; stage <= 1; stage++) {
			uint64_t n = 1;
			while (room_ends(version, stage, n))
				n++;
			assert_true(n > 20);
		}
}

static void each_flush_fails_in_turn(void **state)
{
	(void)state;
	sweep(3, 0);
	sweep(2, 0);
}

static void each_flush_fails_in_turn_with_a_small_stage(void **state)
{
	(void)state;
	sweep(3, 1);
}

/* The data of an allocating write does not fit: nothing is fenced, and nothing leaks. */
static void a_full_host_fences_nothing_and_leaks_nothing(void **state)
{
	(void)state;
	struct t t;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_options check = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	uint8_t buf[3 * CLUSTER];
	memset(buf, 1, sizeof(buf));
	begin(&t, 3, 0);
	assert_ok(qcow_pwrite(t.im.image, buf, 512, 0, QCOW_IO_FUA, &err), err);
	for (uint64_t i = 1; i < 4; i++) {
		qkt_fault_arm(t.im.fault, QKT_WRITE, 1, QKT_ENOSPC, false);
		assert_status(qcow_pwrite(t.im.image, buf, sizeof(buf), i * sizeof(buf), 0, &err),
			QCOW_E_NOSPC, err);
		assert_int_equal(qkt_fault_hits(t.im.fault), 1);
	}
	qkt_fault_disarm(t.im.fault);
	assert_ok(qcow_pwrite(t.im.image, buf, 512, 40 * CLUSTER, QCOW_IO_FUA, &err), err);
	assert_ok(qcow_check(t.im.image, &check, &result, &err), err);
	assert_int_equal(result.corruptions, 0);
	assert_int_equal(result.leaks, 0);
	qkt_image_close(&t.im);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_flush_fails_in_turn),
		cmocka_unit_test(want_of_room_fences_nothing),
		cmocka_unit_test(each_flush_fails_in_turn_with_a_small_stage),
		cmocka_unit_test(a_full_host_fences_nothing_and_leaks_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
