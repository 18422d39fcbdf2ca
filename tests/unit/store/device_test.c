/* SPDX-License-Identifier: MIT */
/*
 * Block devices, by loop devices with blocks of 512 and 4096 bytes. Needs root and losetup.
 */
#include "cm.h"

#include <stdlib.h>
#include <unistd.h>

#include <qcowkit/store.h>

#include "host.h"
#include "model.h"
#include "rng.h"

#define SIZE ((size_t)8 << 20)

static struct qcow_error err;
static char device[64];
static int block;

static void detach(void)
{
	if (device[0] != '\0')
		(void)qkt_run("losetup -d %s", device);
	device[0] = '\0';
}

static bool attach(void)
{
	qkt_must("rm -f disk && truncate -s %zu disk", SIZE);
	if (qkt_run("losetup -b %d -f --show disk", block) != 0)
		return false;
	(void)snprintf(
		device, sizeof(device), "%.*s", (int)strcspn(qkt_stdout(), "\n"), qkt_stdout());
	return true;
}

static struct qcow_store *open_device(unsigned flags)
{
	struct qcow_store *s = NULL;
	assert_ok(qcow_file_open(device, QCOW_FILE_WRITE | flags, &s, &err), err);
	return s;
}

static void its_size_is_found_and_fixed(void **state)
{
	(void)state;
	struct qcow_store *s = open_device(0);
	struct qcow_store_caps caps;
	uint64_t size = 0;
	qcow_store_caps(s, &caps);
	assert_false(caps.can_grow);
	assert_true(caps.physical_block >= (uint32_t)block);
	assert_ok(qcow_store_size(s, &size, &err), err);
	assert_int_equal(size, SIZE);
	assert_ok(qcow_store_truncate(s, SIZE, &err), err);
	assert_status(qcow_store_truncate(s, SIZE + 1, &err), QCOW_E_NOSPC, err);
	assert_says(err, "No space left on device");
	assert_status(qcow_store_truncate(s, SIZE - 1, &err), QCOW_E_NOTSUP, err);
	uint8_t b[2] = {1, 2};
	assert_status(qcow_store_write(s, b, 2, SIZE - 1, &err), QCOW_E_NOSPC, err);
	assert_status(qcow_store_zero(s, SIZE - 1, 2, 0, &err), QCOW_E_NOSPC, err);
	assert_ok(qcow_store_write(s, b, 2, SIZE - 2, &err), err);
	assert_status(qcow_store_read(s, b, 2, SIZE - 1, &err), QCOW_E_RANGE, err);
	qcow_store_close(s);
}

static void a_second_writer_is_kept_out(void **state)
{
	(void)state;
	struct qcow_store *s = open_device(0), *t = NULL;
	assert_status(qcow_file_open(device, QCOW_FILE_WRITE, &t, &err), QCOW_E_LOCKED, err);
	qcow_store_close(s);
}

/* Cannot be made by opening: the name is no file of ours. */
static void exclusive_creation_is_refused(void **state)
{
	(void)state;
	struct qcow_store *s = NULL;
	assert_status(qcow_file_open(device, QCOW_FILE_WRITE | QCOW_FILE_CREATE | QCOW_FILE_EXCL,
			      &s, &err),
		QCOW_E_EXIST, err);
	assert_ok(qcow_file_open(device, QCOW_FILE_WRITE | QCOW_FILE_CREATE, &s, &err), err);
	qcow_store_close(s);
}

static void random_step(struct qcow_store *s, struct qkt_model *m, struct qkt_rng *rng)
{
	static uint8_t mem[100000 + 64];
	uint8_t *buf = mem + qkt_rng_below(rng, 64);
	size_t off = (size_t)qkt_rng_below(rng, SIZE);
	size_t len = (size_t)qkt_rng_below(rng, 100000) + 1;
	len = len < SIZE - off ? len : SIZE - off;
	switch (qkt_rng_below(rng, 5)) {
	case 0:
	case 1:
		qkt_rng_fill(rng, buf, len);
		qkt_model_write(m, buf, len, off);
		assert_ok(qcow_store_write(s, buf, len, off, &err), err);
		break;
	case 2:
		qkt_model_zero(m, len, off);
		assert_ok(qcow_store_zero(s, off, len,
				  qkt_rng_below(rng, 2) != 0 ? QCOW_ZERO_ALLOCATE : 0, &err),
			err);
		break;
	case 3:
		off &= ~(size_t)4095;
		len = 4096;
		if (qcow_store_punch(s, off, len, &err) == QCOW_OK)
			qkt_model_zero(m, len, off);
		break;
	default:
		assert_ok(qcow_store_read(s, buf, len, off, &err), err);
		assert_true(qkt_model_differs(m, buf, len, off) == SIZE_MAX);
	}
}

static void random_operations(unsigned flags)
{
	struct qkt_rng rng = qkt_rng_init(0x646576);
	struct qkt_model m = qkt_model_new(SIZE);
	struct qcow_store *s = open_device(flags);
	assert_ok(qcow_store_zero(s, 0, SIZE, 0, &err), err);
	for (int i = 0; i < 300; i++)
		random_step(s, &m, &rng);
	assert_ok(qcow_store_flush(s, &err), err);
	qcow_store_close(s);
	qkt_must("dd if=%s of=copy bs=1M status=none", device);
	size_t size = 0;
	uint8_t *all = qkt_slurp(qkt_path("copy"), &size);
	assert_int_equal(size, SIZE);
	assert_true(qkt_model_differs(&m, all, size, 0) == SIZE_MAX);
	free(all);
	qkt_model_free(&m);
}

static void random_operations_agree_with_an_array(void **state)
{
	(void)state;
	random_operations(0);
}

static void direct_operations_agree_with_an_array(void **state)
{
	(void)state;
	random_operations(QCOW_FILE_DIRECT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(its_size_is_found_and_fixed),
		cmocka_unit_test(a_second_writer_is_kept_out),
		cmocka_unit_test(exclusive_creation_is_refused),
		cmocka_unit_test(random_operations_agree_with_an_array),
		cmocka_unit_test(direct_operations_agree_with_an_array),
	};
	if (geteuid() != 0)
		qkt_skip("loop devices need root");
	qkt_need_program("losetup", "util-linux");
	(void)qkt_dir();
	(void)atexit(detach); /* runs before the folder goes */
	int failed = 0;
	for (block = 512; block <= 4096; block *= 8) {
		if (!attach())
			qkt_skip("no loop device can be had here");
		print_message("loop device with blocks of %d bytes\n", block);
		failed += cmocka_run_group_tests(tests, NULL, NULL);
		detach();
	}
	return failed;
}
