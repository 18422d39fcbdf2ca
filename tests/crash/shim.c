/* SPDX-License-Identifier: MIT */
/*
 * Preloaded before a program, records what it does to one file: $QKC_TARGET, in the log $QKC_LOG. Calls on it
 * are made one at a time, so that their order is the log's. What is not recorded: mappings, io_uring, libaio;
 * the program must be told not to use them.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "log.h"
#include "shim.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;

static void put(const void *bytes, size_t n)
{
	const char *p = bytes;
	while (n != 0) {
		long done = syscall(SYS_write, log_fd, p, n);
		if (done <= 0)
			abort();
		p += done;
		n -= (size_t)done;
	}
}

static void record(enum qkc_event_kind kind, off_t off, off_t len)
{
	struct qkc_record r = {kind, (uint64_t)off, (uint64_t)len};
	put(&r, sizeof(r));
}

/* Takes the lock where the descriptor is one of the target. */
static bool begin(int fd)
{
	const char *target = getenv("QKC_TARGET"), *log = getenv("QKC_LOG");
	struct stat a, b;
	int was = errno;
	bool is_target = target != NULL && log != NULL && fstat(fd, &a) == 0 &&
			 stat(target, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
	if (is_target) {
		(void)pthread_mutex_lock(&lock);
		if (log_fd < 0)
			log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		if (log_fd < 0)
			abort();
	}
	errno = was;
	return is_target;
}

static void end(void)
{
	int was = errno;
	(void)pthread_mutex_unlock(&lock);
	errno = was;
}

static void record_iov(const struct iovec *iov, int n_iov, off_t off, ssize_t done)
{
	record(QKC_WRITE, off, done);
	for (int i = 0; i < n_iov && done > 0; i++) {
		size_t n = iov[i].iov_len < (size_t)done ? iov[i].iov_len : (size_t)done;
		put(iov[i].iov_base, n);
		done -= (ssize_t)n;
	}
}

/* The call of the C library that NAME stands before. */
#define NEXT(name, type)   \
	static type *next; \
	if (next == NULL)  \
	*(void **)&next = dlsym(RTLD_NEXT, name)

typedef ssize_t pwritev_call(int, const struct iovec *, int, off_t);
typedef ssize_t pwritev2_call(int, const struct iovec *, int, off_t, int);
typedef ssize_t pwrite_call(int, const void *, size_t, off_t);
typedef int sync_call(int);
typedef int truncate_call(int, off_t);
typedef int fallocate_call(int, int, off_t, off_t);
typedef int posix_fallocate_call(int, off_t, off_t);
typedef ssize_t copy_call(int, off_t *, int, off_t *, size_t, unsigned);

static ssize_t do_pwritev(pwritev_call *next, int fd, const struct iovec *iov, int n, off_t off)
{
	bool is_target = begin(fd);
	ssize_t done = next(fd, iov, n, off);
	if (is_target) {
		if (done > 0)
			record_iov(iov, n, off, done);
		end();
	}
	return done;
}

ssize_t pwritev64(int fd, const struct iovec *iov, int n, off_t off)
{
	NEXT("pwritev64", pwritev_call);
	return do_pwritev(next, fd, iov, n, off);
}

ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
	NEXT("pwritev", pwritev_call);
	return do_pwritev(next, fd, iov, n, off);
}

static ssize_t do_pwritev2(
	pwritev2_call *next, int fd, const struct iovec *iov, int n, off_t off, int flags)
{
	bool is_target = begin(fd);
	ssize_t done = next(fd, iov, n, off, flags);
	if (is_target) {
		if (done > 0)
			record_iov(iov, n, off, done);
		end();
	}
	return done;
}

ssize_t pwritev64v2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
	NEXT("pwritev64v2", pwritev2_call);
	return do_pwritev2(next, fd, iov, n, off, flags);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
	NEXT("pwritev2", pwritev2_call);
	return do_pwritev2(next, fd, iov, n, off, flags);
}

static ssize_t do_pwrite(pwrite_call *next, int fd, const void *buf, size_t n, off_t off)
{
	bool is_target = begin(fd);
	ssize_t done = next(fd, buf, n, off);
	if (is_target) {
		struct iovec iov = {(void *)(uintptr_t)buf, n};
		if (done > 0)
			record_iov(&iov, 1, off, done);
		end();
	}
	return done;
}

ssize_t pwrite64(int fd, const void *buf, size_t n, off_t off)
{
	NEXT("pwrite64", pwrite_call);
	return do_pwrite(next, fd, buf, n, off);
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t off)
{
	NEXT("pwrite", pwrite_call);
	return do_pwrite(next, fd, buf, n, off);
}

static int do_sync(sync_call *next, int fd)
{
	bool is_target = begin(fd);
	int rc = next(fd);
	if (is_target) {
		record(rc == 0 ? QKC_FLUSH : QKC_FLUSH_FAILED, 0, 0);
		end();
	}
	return rc;
}

int fdatasync(int fd)
{
	NEXT("fdatasync", sync_call);
	return do_sync(next, fd);
}

int fsync(int fd)
{
	NEXT("fsync", sync_call);
	return do_sync(next, fd);
}

static int do_truncate(truncate_call *next, int fd, off_t size)
{
	bool is_target = begin(fd);
	int rc = next(fd, size);
	if (is_target) {
		if (rc == 0)
			record(QKC_TRUNCATE, 0, size);
		end();
	}
	return rc;
}

int ftruncate64(int fd, off_t size)
{
	NEXT("ftruncate64", truncate_call);
	return do_truncate(next, fd, size);
}

int ftruncate(int fd, off_t size)
{
	NEXT("ftruncate", truncate_call);
	return do_truncate(next, fd, size);
}

/* Space that is only reserved changes no byte; but it may make the file longer. */
static void record_fallocate(int fd, int mode, off_t off, off_t len)
{
	struct stat st;
	if (mode & FALLOC_FL_PUNCH_HOLE) {
		record(QKC_PUNCH, off, len);
	} else if (mode & FALLOC_FL_ZERO_RANGE) {
		record(mode & FALLOC_FL_KEEP_SIZE ? QKC_PUNCH : QKC_ZERO, off, len);
	} else if (mode == 0 && fstat(fd, &st) == 0) {
		record(QKC_TRUNCATE, 0, st.st_size);
	} else if (mode != FALLOC_FL_KEEP_SIZE) {
		abort(); /* a kind of fallocate that the log has no word for */
	}
}

static int do_fallocate(fallocate_call *next, int fd, int mode, off_t off, off_t len)
{
	bool is_target = begin(fd);
	int rc = next(fd, mode, off, len);
	if (is_target) {
		if (rc == 0)
			record_fallocate(fd, mode, off, len);
		end();
	}
	return rc;
}

int fallocate64(int fd, int mode, off_t off, off_t len)
{
	NEXT("fallocate64", fallocate_call);
	return do_fallocate(next, fd, mode, off, len);
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
	NEXT("fallocate", fallocate_call);
	return do_fallocate(next, fd, mode, off, len);
}

static int do_posix_fallocate(posix_fallocate_call *next, int fd, off_t off, off_t len)
{
	bool is_target = begin(fd);
	int rc = next(fd, off, len);
	if (is_target) {
		if (rc == 0)
			record_fallocate(fd, 0, off, len);
		end();
	}
	return rc;
}

int posix_fallocate64(int fd, off_t off, off_t len)
{
	NEXT("posix_fallocate64", posix_fallocate_call);
	return do_posix_fallocate(next, fd, off, len);
}

int posix_fallocate(int fd, off_t off, off_t len)
{
	NEXT("posix_fallocate", posix_fallocate_call);
	return do_posix_fallocate(next, fd, off, len);
}

/* Bytes that go around this log: said not to be supported, so that the program writes them. */
ssize_t copy_file_range(int in, off_t *in_off, int out, off_t *out_off, size_t n, unsigned flags)
{
	NEXT("copy_file_range", copy_call);
	if (begin(out)) {
		end();
		errno = ENOSYS;
		return -1;
	}
	return next(in, in_off, out, out_off, n, flags);
}
