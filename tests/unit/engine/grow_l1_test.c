/* SPDX-License-Identifier: MIT */
/* L1 grows: the order checker judges the switch; what was there and what is written after it reads right. */
#include "cm.h"

#include <stdlib.h>

#include "engine/image.h"
#include "engine/publish.h"
#include "engine/rw.h"
#include "host.h"
#include "image_cm.h"

#define CLUSTER 512u
#define SIZE	(UINT64_C(64) << 20) /* 2,048 L1 entries of 32 KiB: 32 clusters */

static void grow_in(uint32_t version)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	struct qkt_image im;
	create.version = version;
	create.cluster_size = CLUSTER;
	create.virtual_size = SIZE;
	assert_ok(qcow_memory_open(0, &store, &err), err);
	assert_ok(qcow_create(store, NULL, &create, &err), err);
	assert_ok(qkt_image_open_store(&im, store, NULL, &err), err);
	qkt_image_write(&im, CLUSTER, 0, 1);
	qkt_image_write(&im, CLUSTER, SIZE - CLUSTER, 2);
	for (uint64_t n = 3000; n < 20000; n += 3000) {
		assert_ok(qk_publish_grow_l1(im.image->rw->publish, n, &err), err);
		qkt_image_write(&im, CLUSTER, n / 3000 * 40960, 3);
		qkt_image_write(&im, CLUSTER, 0, (int)(n / 3000));
		qkt_image_is_clean(&im);
	}
	qkt_image_reads(&im, CLUSTER, 0, 6);
	qkt_image_reads(&im, CLUSTER, SIZE - CLUSTER, 2);
	qkt_image_reads(&im, CLUSTER, 40960, 3);
	qkt_image_reads(&im, CLUSTER, 6 * 40960, 3);
	qkt_image_reads(&im, CLUSTER, SIZE / 2, 0);
	assert_true(qkt_order_judged(im.order) > 20);
	qkt_image_close(&im);
}

static void version_3(void **state)
{
	(void)state;
	grow_in(3);
}

static void version_2(void **state)
{
	(void)state;
	grow_in(2);
}

/* The nth call of that kind fails while L1 grows. After a recovery there is one table, which the header names: what is
 * written then is there when the image is opened again. False where there was no nth call. */
static bool fails_and_recovers(enum qkt_call call, enum qkt_failure failure, uint64_t nth)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	qkt_must("rm -f image && qemu-img create -q -f qcow2 -o cluster_size=512 image 64M");
	assert_ok(qkt_image_open(&im, qkt_path("image"), NULL, &err), err);
	qkt_image_write(&im, CLUSTER, 0, 1);
	assert_ok(qcow_flush(im.image, &err), err);
	qkt_fault_arm(im.fault, call, nth, failure, false);
	bool failed = qk_publish_grow_l1(im.image->rw->publish, 3000, &err) != QCOW_OK;
	qkt_fault_disarm(im.fault);
	assert_ok(qcow_recover(im.image, &err), err);
	qkt_image_write(&im, CLUSTER, SIZE / 2, 5);
	qkt_image_is_clean(&im);
	assert_ok(qk_publish_grow_l1(im.image->rw->publish, 4000, &err), err);
	qkt_image_write(&im, CLUSTER, SIZE / 4, 6);
	qkt_image_is_clean(&im);
	qkt_image_close(&im);
	assert_ok(qkt_image_open(&im, qkt_path("image"), NULL, &err), err);
	qkt_image_reads(&im, CLUSTER, 0, 1);
	qkt_image_reads(&im, CLUSTER, SIZE / 2, 5);
	qkt_image_reads(&im, CLUSTER, SIZE / 4, 6);
	qkt_image_close(&im);
	return failed;
}

static void a_failed_growth_is_finished(void **state)
{
	(void)state;
	uint64_t n = 1;
	while (fails_and_recovers(QKT_FLUSH, QKT_EIO, n))
		n++;
	assert_true(n > 3);
	for (n = 1; fails_and_recovers(QKT_WRITE, QKT_EIO, n);)
		n++;
	assert_true(n > 3);
	for (n = 1; fails_and_recovers(QKT_WRITE, QKT_ENOSPC, n);)
		n++;
	assert_true(n > 3);
}

int main(void)
{
	qkt_need_program("qemu-img", "qemu-utils");
	const struct CMUnitTest tests[] = {cmocka_unit_test(version_3), cmocka_unit_test(version_2),
		cmocka_unit_test(a_failed_growth_is_finished)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
