/* SPDX-License-Identifier: MIT */
/*
 * qcow_pread_nowait: what is at hand is what qcow_pread reads, what is not is refused. The image lies in a memfd, whose pages
 * are always at hand.
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <qcowkit/qcowkit.h>

#include "cm.h"

#define CLUSTER 65536U
#define SIZE	(UINT64_C(64) * CLUSTER)

static struct qcow_error err = QCOW_ERROR_INIT;

static struct qcow_image *open_again(int fd, unsigned flags)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	options.flags = flags;
	unsigned access = (flags & QCOW_OPEN_WRITE) != 0 ? QCOW_FILE_WRITE : 0;
	assert_ok(qcow_file_open_fd(dup(fd), access | QCOW_FILE_NO_LOCK, &store, &err), err);
	assert_ok(qcow_open(store, &options, &image, &err), err);
	return image;
}

/* Cluster 0: data, 1: nothing, 2: zeros, 3: compressed, 4: data. */
static int make(void)
{
	static uint8_t bytes[CLUSTER];
	struct qcow_create_options options = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	int fd = memfd_create("image", MFD_CLOEXEC);
	assert_true(fd >= 0);
	options.virtual_size = SIZE;
	assert_ok(
		qcow_file_open_fd(dup(fd), QCOW_FILE_WRITE | QCOW_FILE_NO_LOCK, &store, &err), err);
	assert_ok(qcow_create(store, NULL, &options, &err), err);
	qcow_store_close(store);
	struct qcow_image *image = open_again(fd, QCOW_OPEN_WRITE);
	memset(bytes, 'd', sizeof(bytes));
	assert_ok(qcow_pwrite(image, bytes, CLUSTER, 0, 0, &err), err);
	assert_ok(qcow_pwrite(image, bytes, CLUSTER, 4 * CLUSTER, 0, &err), err);
	assert_ok(qcow_zero(image, 2 * CLUSTER, CLUSTER, 0, &err), err);
	assert_ok(qcow_write_compressed(image, bytes, CLUSTER, 3 * CLUSTER, 0, &err), err);
	qcow_close(image);
	return fd;
}

/* The same bytes as qcow_pread, or a refusal; *out tells which. */
static bool is_read(struct qcow_image *image, uint64_t off, size_t len)
{
	static uint8_t now[SIZE], then[SIZE];
	memset(now, 0xee, sizeof(now));
	enum qcow_status status = qcow_pread_nowait(image, now, len, off, &err);
	if (status != QCOW_OK) {
		assert_int_equal(status, QCOW_E_WOULD_BLOCK);
		return false;
	}
	assert_ok(qcow_pread(image, then, len, off, &err), err);
	assert_memory_equal(now, then, len);
	return true;
}

static void what_is_at_hand_is_read(void **state)
{
	(void)state;
	uint8_t byte = 0;
	int fd = make();
	for (unsigned i = 0; i < 2; i++) {
		struct qcow_image *image = open_again(fd, i == 0 ? 0 : QCOW_OPEN_WRITE);
		assert_false(is_read(image, 0, CLUSTER)); /* no table was read yet */
		assert_ok(qcow_pread(image, &byte, 1, 0, &err), err);
		assert_true(is_read(image, 0, CLUSTER));
		assert_true(is_read(image, 100, 3 * CLUSTER - 100)); /* data, nothing, zeros */
		assert_true(is_read(image, 5, 1));
		assert_true(is_read(image, 4 * CLUSTER, 2 * CLUSTER));
		assert_true(is_read(image, SIZE, 0));
		assert_false(is_read(image, 3 * CLUSTER, 1));
		assert_false(is_read(image, 2 * CLUSTER, 2 * CLUSTER));
		assert_int_equal(qcow_pread_nowait(image, &byte, 1, SIZE, &err), QCOW_E_RANGE);
		qcow_close(image);
	}
	close(fd);
}

static void what_was_just_written_is_read(void **state)
{
	(void)state;
	static uint8_t bytes[CLUSTER];
	int fd = make();
	struct qcow_image *image = open_again(fd, QCOW_OPEN_WRITE);
	memset(bytes, 'n', sizeof(bytes));
	assert_ok(qcow_pwrite(image, bytes, 4096, 9 * CLUSTER + 512, 0, &err), err);
	assert_true(is_read(image, 9 * CLUSTER, CLUSTER));
	assert_ok(qcow_discard(image, 4 * CLUSTER, CLUSTER, 0, &err), err);
	assert_true(is_read(image, 4 * CLUSTER, CLUSTER));
	assert_ok(qcow_flush(image, &err), err);
	assert_true(is_read(image, 9 * CLUSTER, CLUSTER));
	qcow_close(image);
	close(fd);
}

static void a_store_without_a_descriptor_is_never_at_hand(void **state)
{
	(void)state;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	uint8_t byte = 0;
	options.format = "raw";
	assert_ok(qcow_memory_open(4096, &store, &err), err);
	assert_ok(qcow_open(store, &options, &image, &err), err);
	assert_ok(qcow_pread(image, &byte, 1, 0, &err), err);
	assert_false(is_read(image, 0, 4096));
	qcow_close(image);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_at_hand_is_read),
		cmocka_unit_test(what_was_just_written_is_read),
		cmocka_unit_test(a_store_without_a_descriptor_is_never_at_hand),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
