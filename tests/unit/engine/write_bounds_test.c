/* SPDX-License-Identifier: MIT */
/*
 * What writing takes has bounds: clusters that were given up are used again though nobody flushes; an entry that is
 * wrong sends no allocation to the end of the world; a file that may not grow is filled where it is free.
 */
#include "cm.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "host.h"
#include "image.h"

#define CS 4096u

static uint64_t length_of(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t end = lseek(fd, 0, SEEK_END);
	assert_true(fd >= 0 && end >= 0 && close(fd) == 0);
	return (uint64_t)end;
}

static uint64_t get64(int fd, uint64_t off)
{
	uint8_t b[8];
	uint64_t v = 0;
	assert_true(pread(fd, b, 8, (off_t)off) == 8);
	for (unsigned i = 0; i < 8; i++)
		v = v << 8 | b[i];
	return v;
}

static void write_at(struct qkt_image *im, uint64_t off, int value, size_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t b[CS];
	memset(b, value, sizeof(b));
	assert_ok(qcow_pwrite(im->image, b, len, off, 0, &err), err);
}

/* 20,000 times 512 bytes are written and discarded; the file stays at what the memory of 64 KiB allows. */
static void discarded_clusters_come_back_without_a_flush(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	const struct qkt_image_options opt = {.stage_bytes = 65536};
	qkt_must("rm -f image && qemu-img create -q -f qcow2 -o cluster_size=512 image 64k");
	assert_ok(qkt_image_open(&im, qkt_path("image"), &opt, &err), err);
	for (unsigned i = 0; i < 20000; i++) {
		write_at(&im, 512 * (i % 8), (int)i, 512);
		assert_ok(qcow_discard(im.image, 512 * (i % 8), 512, 0, &err), err);
	}
	assert_true(length_of(qkt_path("image")) < 4000000);
	qkt_image_close(&im);
	qkt_must("qemu-img check -q image");
}

/* The entry before the one that is written points to 2^42, far past the end. */
static void an_entry_far_away_attracts_nothing(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	const struct qkt_image_options opt = {.prove = QCOW_PROVE_OFF};
	qkt_must("rm -f image && qemu-img create -q -f qcow2 -o cluster_size=4096 image 64k && "
		 "qemu-io -c 'write -q -P 1 0 4k' image");
	static const uint8_t far[8] = {0x80, 0, 4};
	int fd = open(qkt_path("image"), O_RDWR | O_CLOEXEC);
	uint64_t l2 = get64(fd, get64(fd, 40)) & UINT64_C(0x00fffffffffffe00);
	assert_true(pwrite(fd, far, 8, (off_t)l2) == 8 && close(fd) == 0);
	assert_ok(qkt_image_open(&im, qkt_path("image"), &opt, &err), err);
	write_at(&im, CS, 2, 512);
	assert_ok(qcow_flush(im.image, &err), err);
	assert_true(length_of(qkt_path("image")) < 1000000);
	qkt_image_close(&im);
}

/* The cluster before lies at the end of the file, which cannot become longer; in front of it there is room. */
static void a_file_that_may_not_grow_is_filled(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	qkt_must("rm -f image && qemu-img create -q -f qcow2 -o cluster_size=4096 image 64k && "
		 "qemu-io -c 'write -q -P 1 0 16k' -c 'discard -q 0 8k' image");
	assert_ok(qkt_image_open(&im, qkt_path("image"), NULL, &err), err);
	qkt_fault_arm(im.fault, QKT_TRUNCATE, 1, QKT_ENOSPC, true);
	write_at(&im, 4 * CS, 2, CS);
	qkt_fault_disarm(im.fault);
	qkt_image_close(&im);
	qkt_must("qemu-img check -q image");
}

/* The nth flush says that the disk is full: whichever it was, nothing goes on before a recovery. */
static bool full_flush_fences(uint64_t nth)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	bool failed = false;
	qkt_must("rm -f image && qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 "
		 "image 2M");
	assert_ok(qkt_image_open(&im, qkt_path("image"), NULL, &err), err);
	qkt_fault_arm(im.fault, QKT_FLUSH, nth, QKT_ENOSPC, false);
	for (uint64_t off = 0; off < 40 * 49152 && !failed; off += 49152) {
		static const uint8_t b[49152] = {1};
		failed = qcow_pwrite(im.image, b, sizeof(b), off, QCOW_IO_FUA, &err) != QCOW_OK;
	}
	assert_true(failed == (qkt_fault_hits(im.fault) != 0));
	if (failed) {
		assert_status(qcow_flush(im.image, &err), QCOW_E_NOSPC, err);
		assert_ok(qcow_recover(im.image, &err), err);
	}
	write_at(&im, 0, 2, 512);
	assert_ok(qcow_flush(im.image, &err), err);
	qkt_image_close(&im);
	return failed;
}

static void a_flush_without_room_fences(void **state)
{
	(void)state;
	uint64_t n = 1;
	while (full_flush_fences(n))
		n += n < 60 ? 1 : 17;
	assert_true(n > 30);
}

int main(void)
{
	qkt_need_program("qemu-img", "qemu-utils");
	qkt_need_program("qemu-io", "qemu-utils");
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(discarded_clusters_come_back_without_a_flush),
		cmocka_unit_test(an_entry_far_away_attracts_nothing),
		cmocka_unit_test(a_file_that_may_not_grow_is_filled),
		cmocka_unit_test(a_flush_without_room_fences),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
