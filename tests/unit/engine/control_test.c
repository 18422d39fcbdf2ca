/* SPDX-License-Identifier: MIT */
/*
 * control: an operation that is alone moves the L1 table to another place. What was written before is there for it, what
 * is written afterwards goes through the new one, others read and write beside it, and wherever a call fails the
 * image is as it was or as it is to be.
 */
#include "cm.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "engine/control.h"
#include "engine/gate.h"
#include "engine/image.h"
#include "engine/rw.h"
#include "host.h"
#include "image_cm.h"

#define CLUSTER 4096u
#define SIZE	(UINT64_C(4) << 20)

/* ---- the operation ---- */

static enum qcow_status copy_l1(struct qcow_image *image, uint64_t off, struct qcow_error *err)
{
	uint8_t table[CLUSTER] = {0};
	enum qcow_status status = qcow_store_read(
		image->store, table, image->l1_entries * 8, image->l1_off, err);
	if (status != QCOW_OK)
		return status;
	return qcow_store_write(image->store, table, sizeof(table), off, err);
}

static enum qcow_status alone(struct qcow_image *image, struct qcow_error *err)
{
	const struct qk_space_want want = {.n = 1, .kind = QK_SPACE_L1};
	struct qk_space_run run = {0};
	uint64_t old = image->l1_off;
	uint8_t bytes[8];
	const struct qk_header_patch patch = {40, sizeof(bytes), bytes};
	enum qcow_status status = qk_space_take(image->rw->space, &want, &run, err);
	if (status != QCOW_OK)
		return status;
	status = copy_l1(image, run.off, err);
	qk_store64(bytes, run.off);
	if (status == QCOW_OK)
		status = qk_control_switch(image, &patch, 1, 0, err);
	if (status == QCOW_OK)
		return qk_space_drop(image->rw->space, old, 1, err);
	if (!qk_control_is_fenced(image))
		qk_space_give_back(image->rw->space, run.off, 1);
	return status;
}

static enum qcow_status move_l1(struct qcow_image *image, struct qcow_error *err)
{
	enum qcow_status status = qk_control_begin(image, err);
	if (status != QCOW_OK)
		return status;
	status = alone(image, err);
	return qk_control_end(image, status == QCOW_OK ? QK_RELOAD_HEADER : 0, status, err);
}

/* ---- tests ---- */

static void make(const char *options, const char *after)
{
	qkt_must("rm -f image && qemu-img create -q -f qcow2 -o cluster_size=%u%s image %u%s",
		CLUSTER, options, (unsigned)SIZE, after);
}

static void open_image(struct qkt_image *im, bool threads)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	const struct qkt_image_options options = {.threads = threads};
	assert_ok(qkt_image_open(im, qkt_path("image"), &options, &err), err);
}

static void the_switch_is_followed(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	make("", "");
	open_image(&im, false);
	for (int i = 1; i < 9; i++) {
		uint64_t was = im.image->header.l1_off;
		qkt_image_write(&im, CLUSTER, (uint64_t)i * 65536, i);
		assert_ok(move_l1(im.image, &err), err);
		assert_int_not_equal(im.image->header.l1_off, was);
		qkt_image_reads(&im, CLUSTER, (uint64_t)i * 65536, i);
		qkt_image_write(&im, CLUSTER, (uint64_t)i * 65536 + CLUSTER, i + 100);
		qkt_image_is_clean(&im);
	}
	assert_true(qkt_order_judged(im.order) > 20);
	qkt_image_close(&im);
	qkt_must("qemu-img check -q image");
	open_image(&im, false);
	for (int i = 1; i < 9; i++)
		qkt_image_reads(&im, CLUSTER, (uint64_t)i * 65536 + CLUSTER, i + 100);
	qkt_image_close(&im);
}

/* A refcount structure that is read anew is the one that was there. */
static void the_space_can_be_read_again(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	make("", "");
	open_image(&im, false);
	for (int i = 1; i < 5; i++) {
		qkt_image_write(&im, CLUSTER, (uint64_t)i * 65536, i);
		assert_ok(qk_control_begin(im.image, &err), err);
		assert_ok(
			qk_control_end(im.image, QK_RELOAD_HEADER | QK_RELOAD_SPACE, QCOW_OK, &err),
			err);
		qkt_image_reads(&im, CLUSTER, (uint64_t)i * 65536, i);
		qkt_image_is_clean(&im);
	}
	qkt_image_close(&im);
	qkt_must("qemu-img check -q image");
}

static void a_reader_is_refused(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	const struct qkt_image_options options = {.read_only = true};
	struct qkt_image im;
	make("", "");
	assert_ok(qkt_image_open(&im, qkt_path("image"), &options, &err), err);
	assert_int_equal(qk_control_begin(im.image, &err), QCOW_E_READONLY);
	qkt_image_close(&im);
}

static void bitmaps_record_before_and_after(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_bitmap_reader *reader = NULL;
	struct qcow_bitmap_extent extent;
	struct qkt_image im;
	make("", " && qemu-img bitmap --add -g 65536 image b");
	open_image(&im, false);
	qkt_image_write(&im, CLUSTER, 0, 1);
	assert_ok(move_l1(im.image, &err), err);
	assert_ok(move_l1(im.image, &err), err);
	qkt_image_write(&im, CLUSTER, 65536, 2);
	qkt_image_is_clean(&im);
	qkt_image_close(&im);
	open_image(&im, false);
	assert_ok(qcow_bitmap_open(im.image, 0, &reader, &err), err);
	assert_ok(qcow_bitmap_read(reader, 0, SIZE, &extent, &err), err);
	assert_true(extent.dirty);
	assert_int_equal(extent.len, 2 * 65536);
	qcow_bitmap_close(reader);
	qkt_image_close(&im);
	qkt_must("qemu-img check -q image");
}

/* ---- others beside it ---- */

struct worker {
	struct qkt_image *im;
	uint64_t off;
	_Atomic bool *stop;
	uint64_t n;
	bool is_good;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	uint8_t in[CLUSTER], out[CLUSTER];
	w->is_good = true;
	while (w->is_good && (!atomic_load(w->stop) || w->n < 50)) {
		uint64_t off = w->off + w->n % 200 * CLUSTER;
		memset(in, (int)(w->n++ & 0xff), sizeof(in));
		w->is_good = qcow_pwrite(w->im->image, in, sizeof(in), off, 0, NULL) == QCOW_OK &&
			     qcow_pread(w->im->image, out, sizeof(out), off, NULL) == QCOW_OK &&
			     memcmp(in, out, sizeof(in)) == 0 && qcow_size(w->im->image) == SIZE;
	}
	return NULL;
}

static void others_wait_and_go_on(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	pthread_t threads[3];
	struct worker workers[3];
	_Atomic bool stop = false;
	make("", "");
	open_image(&im, true);
	for (unsigned i = 0; i < 3; i++) {
		workers[i] = (struct worker){
			.im = &im, .off = UINT64_C(1048576) * i, .stop = &stop};
		assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
	}
	for (int i = 0; i < 60; i++)
		assert_ok(move_l1(im.image, &err), err);
	atomic_store(&stop, true);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		assert_true(workers[i].is_good);
	}
	qkt_image_is_clean(&im);
	qkt_image_close(&im);
	qkt_must("qemu-img check -q image");
}

/* ---- who waits at the gate ---- */

/* One other thread, which says where it has come to: that it waits for something, or that it went on without. */
static struct {
	struct qkt_image *im;
	sem_t arrived;
	_Atomic bool is_watched, waited;
	enum qcow_status status;
} other;

static void arrived(bool waits)
{
	if (!atomic_exchange(&other.is_watched, false))
		return;
	atomic_store(&other.waited, waits);
	(void)sem_post(&other.arrived);
}

/* The linker puts it before the real one (meson.build). */
int __real_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock);

int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock)
{
	arrived(true);
	return __real_pthread_cond_wait(cond, lock);
}

static void *operate(void *unused)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	(void)unused;
	other.status = qk_control_begin(other.im->image, &err);
	arrived(false);
	if (other.status == QCOW_OK)
		other.status = qk_control_end(other.im->image, 0, QCOW_OK, &err);
	return NULL;
}

static void *call(void *unused)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t b[CLUSTER];
	(void)unused;
	other.status = qcow_pread(other.im->image, b, sizeof(b), 0, &err);
	arrived(false);
	return NULL;
}

static pthread_t start_other(void *(*what)(void *), struct qkt_image *im)
{
	pthread_t thread;
	other.im = im;
	atomic_store(&other.is_watched, true);
	assert_int_equal(sem_init(&other.arrived, 0, 0), 0);
	assert_int_equal(pthread_create(&thread, NULL, what, NULL), 0);
	while (sem_wait(&other.arrived) != 0)
		continue;
	return thread;
}

static void has_waited(pthread_t thread)
{
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(sem_destroy(&other.arrived), 0);
	assert_true(atomic_load(&other.waited));
	assert_int_equal(other.status, QCOW_OK);
}

static void an_operation_waits_for_calls_under_way(void **state)
{
	(void)state;
	struct qkt_image im;
	make("", "");
	open_image(&im, true);
	unsigned pass = qk_gate_enter(im.image->rw->gate);
	pthread_t thread = start_other(operate, &im);
	qk_gate_leave(im.image->rw->gate, pass);
	has_waited(thread);
	qkt_image_close(&im);
}

static void a_call_waits_for_the_operation(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	make("", "");
	open_image(&im, true);
	assert_ok(qk_control_begin(im.image, &err), err);
	pthread_t thread = start_other(call, &im);
	assert_ok(qk_control_end(im.image, 0, QCOW_OK, &err), err);
	has_waited(thread);
	qkt_image_close(&im);
}

/* ---- failures ---- */

/* The nth call of that kind fails. False where there was none. */
static bool fails_and_recovers(enum qkt_call call, enum qkt_failure failure, uint64_t nth)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	qkt_must("cp kept image");
	open_image(&im, false);
	qkt_image_write(&im, CLUSTER, 0, 1);
	assert_ok(qcow_flush(im.image, &err), err);
	qkt_fault_arm(im.fault, call, nth, failure, false);
	bool failed = move_l1(im.image, &err) != QCOW_OK;
	bool hit = qkt_fault_hits(im.fault) != 0;
	qkt_fault_disarm(im.fault);
	assert_true(hit || !failed);
	assert_ok(qcow_recover(im.image, &err), err);
	qkt_image_reads(&im, CLUSTER, 0, 1);
	qkt_image_write(&im, CLUSTER, 65536, 5);
	assert_ok(move_l1(im.image, &err), err);
	qkt_image_write(&im, CLUSTER, 2 * 65536, 6);
	qkt_image_is_clean(&im);
	qkt_image_close(&im);
	qkt_must("qemu-img check -q image || test $? = 3");
	open_image(&im, false);
	qkt_image_reads(&im, CLUSTER, 0, 1);
	qkt_image_reads(&im, CLUSTER, 65536, 5);
	qkt_image_reads(&im, CLUSTER, 2 * 65536, 6);
	qkt_image_close(&im);
	return hit;
}

static void loop(enum qkt_call call, enum qkt_failure failure)
{
	uint64_t n = 1;
	while (fails_and_recovers(call, failure, n))
		n++;
	assert_true(n > 2);
}

static void a_failure_leaves_one_of_two(void **state)
{
	(void)state;
	make("", " && qemu-img bitmap --add image b && cp image kept");
	loop(QKT_WRITE, QKT_EIO);
	loop(QKT_WRITE, QKT_ENOSPC);
	loop(QKT_FLUSH, QKT_EIO);
	loop(QKT_READ, QKT_EIO);
}

int main(void)
{
	qkt_need_program("qemu-img", "qemu-utils");
	const struct CMUnitTest tests[] = {cmocka_unit_test(the_switch_is_followed),
		cmocka_unit_test(the_space_can_be_read_again),
		cmocka_unit_test(a_reader_is_refused),
		cmocka_unit_test(bitmaps_record_before_and_after),
		cmocka_unit_test(others_wait_and_go_on),
		cmocka_unit_test(an_operation_waits_for_calls_under_way),
		cmocka_unit_test(a_call_waits_for_the_operation),
		cmocka_unit_test(a_failure_leaves_one_of_two)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
