/* SPDX-License-Identifier: MIT */
/*
 * host: opening a file or block device, and learning what the host can do with it.
 *
 * What the path names is looked at before it is opened, for opening alone can block (a FIFO) or act
 * (a tape, a watchdog); what was opened is looked at again, for the path may have changed. A file
 * that this open has made, and only that, is removed again when the open fails. Owner, mode and
 * content of a file that is there are never touched.
 */
#include "store/file.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/num.h"

#define ALL_FLAGS                                                                            \
	((unsigned)(QCOW_FILE_WRITE | QCOW_FILE_CREATE | QCOW_FILE_EXCL | QCOW_FILE_DIRECT | \
		    QCOW_FILE_SHARE | QCOW_FILE_NO_LOCK | QCOW_FILE_SYNC | QCOW_FILE_NO_FLUSH))

/* How often a path that appears and disappears under our hands is tried. */
#define N_TRIES 4

struct opening {
	const char *path; /* for messages */
	unsigned flags;
	bool made; /* the file was not there before */
};

static enum qcow_status check_flags(unsigned flags, const char *path, struct qcow_error *err)
{
	if ((flags & ~ALL_FLAGS) != 0)
		return QK_FAIL(err, QCOW_E_INVAL, "%s: unknown flags 0x%x", path, flags);
	if ((flags & QCOW_FILE_CREATE) != 0 && (flags & QCOW_FILE_WRITE) == 0)
		return QK_FAIL(err, QCOW_E_INVAL, "%s: making a file needs write access", path);
	if ((flags & QCOW_FILE_EXCL) != 0 && (flags & QCOW_FILE_CREATE) == 0)
		return QK_FAIL(err, QCOW_E_INVAL, "%s: \"exclusive\" is for making a file", path);
	if ((flags & QCOW_FILE_SHARE) != 0 && (flags & QCOW_FILE_WRITE) != 0)
		return QK_FAIL(err, QCOW_E_INVAL,
			"%s: an image can be shared with a writer for reading only", path);
	return QCOW_OK;
}

static enum qcow_status check_kind(const struct stat *st, const char *path, struct qcow_error *err)
{
	const char *kind = "of an unknown kind";
	switch (st->st_mode & S_IFMT) {
	case S_IFREG:
	case S_IFBLK:
		return QCOW_OK;
	case S_IFDIR:
		kind = "a directory";
		break;
	case S_IFIFO:
		kind = "a FIFO";
		break;
	case S_IFSOCK:
		kind = "a socket";
		break;
	case S_IFCHR:
		kind = "a character device";
		break;
	default:
		break;
	}
	return QK_FAIL(
		err, QCOW_E_INVAL, "%s: it is %s, not a regular file or block device", path, kind);
}

static int open_flags(unsigned flags)
{
	/* O_NONBLOCK: should the path have become a FIFO since it was looked at */
	int o = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	o |= (flags & QCOW_FILE_WRITE) != 0 ? O_RDWR : O_RDONLY;
	o |= (flags & QCOW_FILE_DIRECT) != 0 ? O_DIRECT : 0;
	return o;
}

/* open(2), a descriptor or -1 with errno. */
static int open_again(const char *path, int o)
{
	int fd = -1;
	do
		fd = open(path, o, 0644);
	while (fd < 0 && errno == EINTR);
	return fd;
}

static enum qcow_status cannot_open(const struct opening *op, int os_errno, struct qcow_error *err)
{
	if (os_errno == EINVAL && (op->flags & QCOW_FILE_DIRECT) != 0)
		return QK_FAIL(err, QCOW_E_NOTSUP, "%s: the file system does not support O_DIRECT",
			op->path);
	if (os_errno == EISDIR)
		return QK_FAIL(err, QCOW_E_INVAL,
			"%s: it is a directory, not a regular file or block device", op->path);
	return QK_FAIL_OS(err, os_errno, "%s", op->path);
}

static enum qcow_status open_existing(struct opening *op, int *fd, struct qcow_error *err)
{
	struct stat st;
	if (stat(op->path, &st) != 0)
		return cannot_open(op, errno, err);
	QK_TRY(check_kind(&st, op->path, err));
	*fd = open_again(op->path, open_flags(op->flags));
	return *fd >= 0 ? QCOW_OK : cannot_open(op, errno, err);
}

static enum qcow_status open_new(struct opening *op, int *fd, struct qcow_error *err)
{
	*fd = open_again(op->path, open_flags(op->flags) | O_CREAT | O_EXCL);
	if (*fd < 0 && errno == EEXIST)
		return QK_FAIL(err, QCOW_E_EXIST, "%s: it is there already", op->path);
	if (*fd < 0)
		return cannot_open(op, errno, err);
	op->made = true;
	return QCOW_OK;
}

/* O_CREAT without O_EXCL would not say who made the file. */
static enum qcow_status open_or_make(struct opening *op, int *fd, struct qcow_error *err)
{
	enum qcow_status st = QCOW_OK;
	for (int i = 0; i < N_TRIES; i++) {
		st = open_existing(op, fd, err);
		if (st != QCOW_E_NOENT)
			return st;
		st = open_new(op, fd, err);
		if (st != QCOW_E_EXIST)
			return st;
	}
	/* it is there, and it is not: a symbolic link to nothing */
	*fd = open_again(op->path, open_flags(op->flags) | O_CREAT);
	return *fd >= 0 ? QCOW_OK : cannot_open(op, errno, err);
}

/* ---- what the host can do ---- */

/* Does the host read `align` bytes at `align` into memory of that alignment? */
static bool can_read_aligned(int fd, uint32_t align)
{
	uint8_t *buf = qk_malloc_aligned(QK_KIB(64) * 2, QK_KIB(64) * 2);
	if (buf == NULL)
		return false;
	/* off a larger alignment by exactly `align`, so that a host that wants more says so */
	ssize_t n = pread(fd, buf + align, align, 0);
	free(buf);
	return n > 0;
}

/* O_DIRECT: what must be aligned to what. 4096 fits nearly everything where the host does not say. */
static void probe_direct(struct qk_file *f, const struct stat *st)
{
	f->request_align = 4096;
	f->memory_align = 4096;
#ifdef STATX_DIOALIGN
	struct statx sx;
	if (statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 &&
		(sx.stx_mask & STATX_DIOALIGN) != 0 && qk_is_pow2(sx.stx_dio_offset_align)) {
		f->request_align = sx.stx_dio_offset_align;
		f->memory_align = (uint32_t)qk_max(sx.stx_dio_mem_align, 1);
		return;
	}
#endif
	if (f->is_device) {
		f->request_align = f->logical_block;
		f->memory_align = (uint32_t)qk_max(f->logical_block, 512);
		return;
	}
	if (st->st_size < (off_t)QK_KIB(64))
		return;
	for (uint32_t align = 512; align <= QK_KIB(64); align *= 2) {
		if (can_read_aligned(f->fd, align)) {
			f->request_align = f->memory_align = align;
			return;
		}
	}
}

static void probe(struct qk_file *f, const struct stat *st)
{
	f->request_align = f->memory_align = f->logical_block = 1;
	f->physical_block = 512;
	if (f->is_device) {
		int logical = 0;
		unsigned physical = 0;
		if (ioctl(f->fd, BLKSSZGET, &logical) == 0 && logical > 0 &&
			qk_is_pow2((uint64_t)logical))
			f->logical_block = (uint32_t)logical;
		if (ioctl(f->fd, BLKPBSZGET, &physical) == 0 && qk_is_pow2(physical))
			f->physical_block = physical;
	}
	if (f->is_direct)
		probe_direct(f, st);
	f->physical_block = (uint32_t)qk_max(f->physical_block, f->request_align);
}

/* ---- from a descriptor to a store ---- */

/* Blocking again; O_DIRECT where it was asked for on a descriptor that came from outside. */
static enum qcow_status settle_flags(
	const struct opening *op, int fd, int *now, struct qcow_error *err)
{
	int have = fcntl(fd, F_GETFL);
	if (have < 0)
		return QK_FAIL_OS(err, errno, "%s: descriptor %d", op->path, fd);
	int want = have & ~O_NONBLOCK;
	want |= (op->flags & QCOW_FILE_DIRECT) != 0 ? O_DIRECT : 0;
	if (want != have && fcntl(fd, F_SETFL, want) != 0)
		return cannot_open(op, errno, err);
	*now = want;
	return QCOW_OK;
}

/* Make a store of `fd`, which stays the caller's on failure. */
static enum qcow_status wrap(
	const struct opening *op, int fd, struct qcow_store **out, struct qcow_error *err)
{
	struct stat st;
	int status_flags = 0;
	if (fstat(fd, &st) != 0)
		return QK_FAIL_OS(err, errno, "%s: descriptor %d", op->path, fd);
	QK_TRY(check_kind(&st, op->path, err));
	QK_TRY(settle_flags(op, fd, &status_flags, err));
	QK_AUTO_FREE struct qk_file *f = qk_calloc(1, sizeof(*f));
	if (f == NULL)
		return QK_FAIL_NOMEM(err);
	f->fd = fd;
	f->writable = (op->flags & QCOW_FILE_WRITE) != 0;
	f->is_device = S_ISBLK(st.st_mode);
	f->is_direct = (status_flags & O_DIRECT) != 0;
	f->is_sync = (op->flags & QCOW_FILE_SYNC) != 0;
	f->skips_flush = (op->flags & QCOW_FILE_NO_FLUSH) != 0;
	probe(f, &st);
	if ((op->flags & QCOW_FILE_NO_LOCK) == 0) {
		bool sharing = (op->flags & QCOW_FILE_SHARE) != 0;
		QK_TRY(qk_lock_take(fd, f->writable, sharing, op->path, err));
		f->has_locks = true;
	}
	enum qcow_status made = qcow_store_new(&qk_file_ops, f, out, err);
	if (made != QCOW_OK && f->has_locks)
		qk_lock_drop(fd);
	if (made == QCOW_OK)
		f = NULL; /* the store's */
	return made;
}

static enum qcow_status open_path(struct opening *op, int *fd, struct qcow_error *err)
{
	if ((op->flags & QCOW_FILE_EXCL) != 0)
		return open_new(op, fd, err);
	if ((op->flags & QCOW_FILE_CREATE) != 0)
		return open_or_make(op, fd, err);
	return open_existing(op, fd, err);
}

enum qcow_status qcow_file_open(
	const char *path, unsigned flags, struct qcow_store **out, struct qcow_error *err)
{
	if (path == NULL || out == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "no path, or nowhere to put the store");
	QK_TRY(check_flags(flags, path, err));
	struct opening op = {path, flags, false};
	struct qcow_store *store = NULL;
	int fd = -1;
	QK_TRY(open_path(&op, &fd, err));
	enum qcow_status st = wrap(&op, fd, &store, err);
	if (st != QCOW_OK) {
		(void)close(fd);
	} else {
		st = qcow_store_set_name(store, path, err);
		if (st != QCOW_OK)
			qcow_store_close(store);
	}
	if (st != QCOW_OK && op.made)
		(void)unlink(path);
	if (st == QCOW_OK)
		*out = store;
	return st;
}

/* The descriptor's own mode must allow what the store will do. */
static enum qcow_status check_descriptor(int fd, unsigned flags, struct qcow_error *err)
{
	int have = fcntl(fd, F_GETFL);
	if (have < 0)
		return QK_FAIL_OS(err, errno, "descriptor %d", fd);
	if ((have & O_PATH) != 0)
		return QK_FAIL(err, QCOW_E_INVAL, "descriptor %d gives no access to the file", fd);
	if ((have & O_ACCMODE) == O_WRONLY)
		return QK_FAIL(err, QCOW_E_INVAL, "descriptor %d cannot be read from", fd);
	if ((flags & QCOW_FILE_WRITE) != 0 && (have & O_ACCMODE) != O_RDWR)
		return QK_FAIL(err, QCOW_E_READONLY, "descriptor %d is open for reading only", fd);
	if ((flags & QCOW_FILE_WRITE) != 0 && (have & O_APPEND) != 0)
		return QK_FAIL(err, QCOW_E_INVAL,
			"descriptor %d is in append mode: all writes would land at the end", fd);
	return QCOW_OK;
}

enum qcow_status qcow_file_open_fd(
	int fd, unsigned flags, struct qcow_store **out, struct qcow_error *err)
{
	struct opening op = {"file descriptor", flags, false};
	if (out == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "nowhere to put the store");
	if ((flags & (QCOW_FILE_CREATE | QCOW_FILE_EXCL)) != 0)
		return QK_FAIL(err, QCOW_E_INVAL, "descriptor %d is open already", fd);
	QK_TRY(check_flags(flags, op.path, err));
	QK_TRY(check_descriptor(fd, flags, err));
	return wrap(&op, fd, out, err);
}
