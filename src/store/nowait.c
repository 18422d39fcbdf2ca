/* SPDX-License-Identifier: MIT */
/*
 * nowait: see nowait.h. What the host can do is asked once a store.
 */
#include "store/nowait.h"

#include <errno.h>
#include <linux/magic.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "store/wrap.h"

enum {
	UNKNOWN = 0,
	FLAG, /* RWF_NOWAIT is known to the file system */
	MEMORY, /* no read of it waits for a disk */
	NEVER
};

static int ask(int fd)
{
	struct statfs fs;
	if (fstatfs(fd, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC))
		return MEMORY;
	return FLAG;
}

static int kind_of(struct qcow_store *store, int fd)
{
	int kind = atomic_load_explicit(&store->nowait, memory_order_relaxed);
	if (kind != UNKNOWN)
		return kind;
	kind = fd < 0 || qk_align_is_needed(store) ? NEVER : ask(fd);
	atomic_store_explicit(&store->nowait, kind, memory_order_relaxed);
	return kind;
}

bool qk_store_read_nowait(struct qcow_store *store, void *buf, size_t len, uint64_t off)
{
	int fd = qcow_store_fd(store);
	int kind = kind_of(store, fd);
	const struct iovec iov = {buf, len};
	if (kind == NEVER)
		return false;
	ssize_t got = preadv2(fd, &iov, 1, (off_t)off, kind == FLAG ? RWF_NOWAIT : 0);
	if (got < 0 && (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS))
		atomic_store_explicit(&store->nowait, NEVER, memory_order_relaxed);
	return got >= 0 && (size_t)got == len;
}
