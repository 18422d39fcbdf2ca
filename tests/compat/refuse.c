/* SPDX-License-Identifier: MIT */
/*
 * refuse: preloaded into a program, makes calls of one kind fail. REFUSE=locks: there are no open file description locks;
 * REFUSE=reads: every read is "Resource temporarily unavailable"; REFUSE=space: every write finds the device full.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int refuses(const char *what)
{
	const char *wanted = getenv("REFUSE");
	return wanted != NULL && strcmp(wanted, what) == 0;
}

/* with offsets of 64 bits the symbols are fcntl64 and preadv64 */
__attribute__((visibility("default"))) int fcntl(int fd, int cmd, ...)
{
	va_list ap;
	va_start(ap, cmd);
	void *arg = va_arg(ap, void *);
	va_end(ap);
	if ((cmd == F_OFD_SETLK || cmd == F_OFD_GETLK) && refuses("locks")) {
		errno = ENOLCK;
		return -1;
	}
	return (int)syscall(SYS_fcntl, fd, cmd, arg);
}

__attribute__((visibility("default"))) ssize_t preadv(
	int fd, const struct iovec *iov, int n, off_t off)
{
	if (refuses("reads")) {
		errno = EAGAIN;
		return -1;
	}
	return syscall(SYS_preadv, fd, iov, n, off, 0L);
}

__attribute__((visibility("default"))) ssize_t pwritev(
	int fd, const struct iovec *iov, int n, off_t off)
{
	if (refuses("space")) {
		errno = ENOSPC;
		return -1;
	}
	return syscall(SYS_pwritev, fd, iov, n, off, 0L);
}
