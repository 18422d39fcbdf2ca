/* SPDX-License-Identifier: MIT */
/* A flush that failed: what the page cache may hold and the medium does not is forgotten before the next one opens the file. */
#include "cm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>

#include <qcowkit/store.h>

#include "host.h"

static bool fails;
static unsigned n_forgotten;

/* The linker puts these before the real ones (meson.build). */
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_posix_fadvise(int fd, off_t off, off_t len, int advice);
int __wrap_posix_fadvise64(int fd, off_t off, off_t len, int advice);

int __wrap_fdatasync(int fd)
{
	if (!fails)
		return __real_fdatasync(fd);
	errno = EIO;
	return -1;
}

int __wrap_posix_fadvise(int fd, off_t off, off_t len, int advice)
{
	assert_true(fd >= 0 && off == 0 && len == 0 && advice == POSIX_FADV_DONTNEED);
	n_forgotten++;
	return 0;
}

int __wrap_posix_fadvise64(int fd, off_t off, off_t len, int advice)
{
	return __wrap_posix_fadvise(fd, off, len, advice);
}

static void close_after(uint32_t flags, bool does_fail, unsigned n)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *s = NULL;
	n_forgotten = 0;
	assert_ok(qcow_file_open(
			  qkt_path("file"), QCOW_FILE_WRITE | QCOW_FILE_CREATE | flags, &s, &err),
		err);
	assert_ok(qcow_store_truncate(s, 8192, &err), err);
	fails = does_fail;
	if ((flags & QCOW_FILE_SYNC) == 0)
		assert_status(qcow_store_flush(s, &err), does_fail ? QCOW_E_IO : QCOW_OK, err);
	else
		assert_status(
			qcow_store_truncate(s, 4096, &err), does_fail ? QCOW_E_IO : QCOW_OK, err);
	fails = false;
	assert_int_equal(n_forgotten, 0); /* readers of this store go on */
	qcow_store_close(s);
	assert_int_equal(n_forgotten, n);
}

static void a_failed_flush_is_forgotten_at_close(void **state)
{
	(void)state;
	close_after(0, true, 1);
	close_after(QCOW_FILE_SYNC, true, 1);
}

static void a_good_one_keeps_the_cache(void **state)
{
	(void)state;
	close_after(0, false, 0);
	close_after(QCOW_FILE_SYNC, false, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_failed_flush_is_forgotten_at_close),
		cmocka_unit_test(a_good_one_keeps_the_cache),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
