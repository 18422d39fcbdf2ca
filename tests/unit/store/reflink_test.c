/* SPDX-License-Identifier: MIT */
/*
 * Sharing blocks, on an XFS made in a file and mounted by a loop device. Needs root and mkfs.xfs.
 */
#include "cm.h"

#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

#include <qcowkit/store.h>

#include "host.h"
#include "rng.h"

#define MIB(n) ((uint64_t)(n) << 20)
#define NEW    (QCOW_FILE_WRITE | QCOW_FILE_CREATE)

static struct qcow_error err;
static bool is_mounted;

static void unmount(void)
{
	if (is_mounted)
		(void)umount2(qkt_path("xfs"), MNT_DETACH);
}

static struct qcow_store *open_file(const char *name, unsigned flags)
{
	struct qcow_store *s = NULL;
	assert_ok(qcow_file_open(qkt_path(name), flags, &s, &err), err);
	return s;
}

/* 8 MiB of random bytes. */
static struct qcow_store *open_source(uint8_t *bytes)
{
	struct qkt_rng rng = qkt_rng_init(0x786673);
	struct qcow_store *s = open_file("xfs/source", NEW);
	qkt_rng_fill(&rng, bytes, MIB(8));
	assert_ok(qcow_store_write(s, bytes, MIB(8), 0, &err), err);
	assert_ok(qcow_store_flush(s, &err), err);
	return s;
}

static uint8_t want[8 << 20], got[8 << 20];

static void blocks_are_shared_and_no_space_is_taken(void **state)
{
	(void)state;
	struct qcow_store *src = open_source(want), *dst = open_file("xfs/target", NEW);
	struct qcow_store_caps caps;
	qcow_store_caps(dst, &caps);
	assert_true(caps.can_clone);
	assert_ok(qcow_store_clone(dst, MIB(2), src, MIB(1), MIB(4), &err), err);
	uint64_t size = 0;
	assert_ok(qcow_store_size(dst, &size, &err), err);
	assert_int_equal(size, MIB(6));
	assert_ok(qcow_store_read(dst, got, MIB(4), MIB(2), &err), err);
	assert_memory_equal(got, want + MIB(1), MIB(4));
	/* the kernel's word for it, not ours */
	assert_ok(qcow_store_flush(dst, &err), err);
	if (qkt_has_program("filefrag")) {
		qkt_must("filefrag -v xfs/target");
		assert_non_null(strstr(qkt_stdout(), "shared"));
	}
	/* a write to the one does not show in the other */
	assert_ok(qcow_store_write(dst, "changed", 7, MIB(2), &err), err);
	assert_ok(qcow_store_read(src, got, 8, MIB(1), &err), err);
	assert_memory_equal(got, want + MIB(1), 8);
	qcow_store_close(dst);
	qcow_store_close(src);
}

static void what_cannot_be_shared_says_so_and_changes_nothing(void **state)
{
	(void)state;
	struct qcow_store *src = open_source(want), *dst = open_file("xfs/other", NEW);
	struct qcow_store *outside = open_file("outside", NEW), *memory = NULL;
	assert_ok(qcow_memory_open(MIB(1), &memory, &err), err);
	assert_status(qcow_store_clone(dst, 0, src, 1, 4096, &err), QCOW_E_NOTSUP, err);
	assert_status(qcow_store_clone(dst, 100, src, 0, 4096, &err), QCOW_E_NOTSUP, err);
	assert_status(qcow_store_clone(outside, 0, src, 0, 4096, &err), QCOW_E_NOTSUP, err);
	assert_status(qcow_store_clone(memory, 0, src, 0, 4096, &err), QCOW_E_NOTSUP, err);
	assert_status(qcow_store_clone(dst, 0, memory, 0, 4096, &err), QCOW_E_NOTSUP, err);
	assert_status(qcow_store_clone(dst, 0, src, MIB(8) - 4096, 8192, &err), QCOW_E_RANGE, err);
	uint64_t size = 1;
	assert_ok(qcow_store_size(dst, &size, &err), err);
	assert_int_equal(size, 0);
	qcow_store_close(memory);
	qcow_store_close(outside);
	qcow_store_close(dst);
	qcow_store_close(src);
}

static void direct_requests_of_any_shape_work(void **state)
{
	(void)state;
	struct qcow_store *src = open_source(want);
	struct qcow_store *dst = open_file("xfs/direct", NEW | QCOW_FILE_DIRECT);
	assert_ok(qcow_store_clone(dst, 0, src, 0, MIB(1), &err), err);
	assert_ok(qcow_store_write(dst, "unaligned", 9, 777, &err), err);
	memcpy(want + 777, "unaligned", 9);
	assert_ok(qcow_store_write(dst, want, 99, MIB(1), &err), err);
	assert_ok(qcow_store_read(dst, got, MIB(1), 0, &err), err);
	assert_memory_equal(got, want, MIB(1));
	uint64_t size = 0;
	assert_ok(qcow_store_size(dst, &size, &err), err);
	assert_int_equal(size, MIB(1) + 99);
	qcow_store_close(dst);
	qcow_store_close(src);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocks_are_shared_and_no_space_is_taken),
		cmocka_unit_test(what_cannot_be_shared_says_so_and_changes_nothing),
		cmocka_unit_test(direct_requests_of_any_shape_work),
	};
	if (geteuid() != 0)
		qkt_skip("mounting needs root");
	qkt_need_program("mkfs.xfs", "xfsprogs");
	qkt_must("truncate -s 400M fs && mkfs.xfs -q -m reflink=1 fs && mkdir xfs");
	(void)atexit(unmount);
	if (qkt_run("mount -o loop fs xfs") != 0)
		qkt_skip("an XFS file system cannot be mounted by a loop device here");
	is_mounted = true;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
