/* SPDX-License-Identifier: MIT */
/*
 * What an image says wrongly is not believed, also where free space is not proved. COPIED is set in an L2 table
 * that a snapshot shares: whoever made the snapshot did it in place, and was stopped. Or a table has refcount 0.
 */
#include "cm.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "host.h"
#include "image.h"

#define CS	    4096u
#define OFFSET_MASK UINT64_C(0x00fffffffffffe00)

static void put_bit(const char *path, uint64_t off)
{
	uint8_t b = 0;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0 && pread(fd, &b, 1, (off_t)off) == 1);
	b |= 0x80;
	assert_true(pwrite(fd, &b, 1, (off_t)off) == 1 && close(fd) == 0);
}

static uint64_t get64(const char *path, uint64_t off)
{
	uint8_t b[8];
	uint64_t v = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0 && pread(fd, b, 8, (off_t)off) == 8 && close(fd) == 0);
	for (unsigned i = 0; i < 8; i++)
		v = v << 8 | b[i];
	return v;
}

static void write_at(struct qkt_image *im, uint64_t off, int value)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t b[512];
	memset(b, value, sizeof(b));
	assert_ok(qcow_pwrite(im->image, b, sizeof(b), off, QCOW_IO_FUA, &err), err);
}

static void a_shared_table_is_copied_without_it(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	qkt_must("qemu-img create -q -f qcow2 -o cluster_size=4096 image 64k && "
		 "qemu-io -c 'write -q -P 1 0 64k' image && qemu-img snapshot -c s image");
	const char *path = qkt_path("image");
	uint64_t l2 = get64(path, get64(path, 40)) & OFFSET_MASK;
	for (uint64_t i = 0; i < 16; i++)
		put_bit(path, l2 + i * 8);
	/* a proof would see it and refuse */
	const struct qkt_image_options opt = {.prove = QCOW_PROVE_OFF};
	assert_ok(qkt_image_open(&im, path, &opt, &err), err);
	write_at(&im, 3 * CS, 7); /* copies the table */
	write_at(&im, 5 * CS, 8);
	qkt_image_close(&im);
	/* the snapshot's own table may keep its bits: they are notes, no errors */
	qkt_must("qemu-img convert -l snapshot.name=s -O raw image old.raw");
	qkt_must("qemu-io -r -f raw -c 'read -q -P 1 0 64k' old.raw > said; ! grep -q . said");
	qkt_must("qemu-io -r -c 'read -q -P 1 0 12k' -c 'read -q -P 7 12k 512' -c 'read -q -P 8 "
		 "20k 512' image > said; "
		 "! grep -q . said");
}

/* The refcount of the L2 table is 0, and nothing is proved: the table is not given to the guest. */
static void table_with_refcount_0(const char *compat)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	const struct qkt_image_options opt = {.prove = QCOW_PROVE_OFF};
	uint8_t b[512] = {9};
	qkt_must("rm -f image && qemu-img create -q -f qcow2 -o compat=%s,cluster_size=4096 image "
		 "64k && "
		 "qemu-io -c 'write -q -P 1 0 4k' image",
		compat);
	const char *path = qkt_path("image");
	uint64_t l2 = get64(path, get64(path, 40)) & OFFSET_MASK;
	uint64_t block = get64(path, get64(path, 48));
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0 && pwrite(fd, "\0", 2, (off_t)(block + l2 / CS * 2)) == 2);
	assert_int_equal(close(fd), 0);
	assert_ok(qkt_image_open(&im, path, &opt, &err), err);
	assert_status(qcow_pwrite(im.image, b, sizeof(b), 8 * CS, 0, &err), QCOW_E_CORRUPT, err);
	assert_int_equal(err.finding, QCOW_FINDING_REFCOUNT_TOO_LOW);
	qkt_image_close(&im);
	qkt_must("qemu-io -r -c 'read -q -P 1 0 4k' -c 'read -q -P 0 4k 60k' image > said; ! grep "
		 "-q . said");
}

static void a_table_with_refcount_0_is_not_handed_out(void **state)
{
	(void)state;
	table_with_refcount_0("1.1");
	table_with_refcount_0("0.10"); /* no bit to say it */
}

int main(void)
{
	qkt_need_program("qemu-img", "qemu-utils");
	qkt_need_program("qemu-io", "qemu-utils");
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_shared_table_is_copied_without_it),
		cmocka_unit_test(a_table_with_refcount_0_is_not_handed_out),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
