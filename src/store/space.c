/* SPDX-License-Identifier: MIT */
/*
 * space: what the host stores for a file, and what it need not store: holes, zeros, shared blocks.
 *
 * Everything here is what a file system may or may not know. "Does not know" is never an error:
 * extents then answers data, and the others QCOW_E_NOTSUP, on which the wrapper writes zeros and
 * callers copy.
 */
#include "store/file.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/err.h"
#include "base/num.h"

/*
 * Two questions to the kernel, between which another process may change the file: every answer
 * that does not fit together is taken as data, which is right for any content.
 */
enum qcow_status qk_space_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	struct qk_file *f = ctx;
	(void)err;
	*out = (struct qcow_store_extent){off, len, false};
	off_t data = lseek(f->fd, (off_t)off, SEEK_DATA);
	if (data < 0) {
		/* no data from here to the end; EINVAL and others: the file system cannot say */
		out->is_hole = errno == ENXIO;
		return QCOW_OK;
	}
	if ((uint64_t)data > off) {
		out->is_hole = true;
		out->len = qk_min(len, (uint64_t)data - off);
		return QCOW_OK;
	}
	off_t hole = lseek(f->fd, (off_t)off, SEEK_HOLE);
	if (hole > data && (uint64_t)hole > off)
		out->len = qk_min(len, (uint64_t)hole - off);
	return QCOW_OK;
}

/* Is this errno of fallocate "cannot", rather than "failed"? */
static bool is_unable(int os_errno)
{
	switch (os_errno) {
	case EOPNOTSUPP:
	case ENOSYS:
	case EINVAL: /* a device: not whole blocks, or no such mode */
	case ENODEV:
	case ENOTTY:
	case EPERM: /* a sealed or append-only file */
	case ETXTBSY: /* a swap file */
		return true;
	default:
		return false;
	}
}

/* fallocate, 0 or an errno. */
static int change_space(const struct qk_file *f, int mode, uint64_t off, uint64_t len)
{
	int r = 0;
	do
		r = fallocate(f->fd, mode, (off_t)off, (off_t)len);
	while (r != 0 && errno == EINTR);
	return r == 0 ? 0 : errno;
}

static enum qcow_status judge(
	struct qk_file *f, int os_errno, const char *verb, uint64_t off, struct qcow_error *err)
{
	if (os_errno == 0)
		return qk_file_sync_change(f, err);
	if (is_unable(os_errno))
		return QK_FAIL(err, QCOW_E_NOTSUP,
			"%s at offset %" PRIu64 ": the file system cannot do it", verb, off);
	return QK_FAIL_OS(err, os_errno, "%s at offset %" PRIu64, verb, off);
}

static bool is_whole_blocks(const struct qk_file *f, uint64_t off, uint64_t len)
{
	return qk_is_aligned(off, f->logical_block) && qk_is_aligned(len, f->logical_block);
}

/* Allocated zeros: blocks marked as unwritten, or a hole that is then filled with such blocks. */
static int allocate_zeros(const struct qk_file *f, uint64_t off, uint64_t len)
{
	int e = change_space(f, FALLOC_FL_ZERO_RANGE, off, len);
	if (e == 0 || !is_unable(e) || f->is_device)
		return e;
	e = change_space(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
	return e == 0 ? change_space(f, 0, off, len) : e;
}

/* Zeros at the least cost: a hole; else blocks marked as unwritten. The file keeps its size. */
static int sparse_zeros(const struct qk_file *f, uint64_t off, uint64_t len)
{
	int e = change_space(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
	if (e == 0 || !is_unable(e))
		return e;
	return change_space(f, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, off, len);
}

/* A hole at the end. Extending first and punching then leaves no moment where old bytes show. */
static enum qcow_status extend_to(struct qk_file *f, uint64_t end, struct qcow_error *err)
{
	uint64_t size = 0;
	QK_TRY(qk_file_size(f, &size, err));
	if (end <= size)
		return QCOW_OK;
	/* allocating nothing, but unlike ftruncate never shortening what another thread has appended */
	int e = change_space(f, FALLOC_FL_ZERO_RANGE, end - 1, 1);
	if (e != 0 && is_unable(e))
		e = change_space(f, 0, end - 1, 1);
	return judge(f, e, "extending", end, err);
}

enum qcow_status qk_space_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct qk_file *f = ctx;
	if (!is_whole_blocks(f, off, len))
		return QK_FAIL(err, QCOW_E_NOTSUP, "zeroing parts of blocks");
	if ((flags & QCOW_ZERO_ALLOCATE) != 0)
		return judge(f, allocate_zeros(f, off, len), "allocating zeros", off, err);
	if (!f->is_device)
		QK_TRY(extend_to(f, off + len, err));
	return judge(f, sparse_zeros(f, off, len), "zeroing", off, err);
}

enum qcow_status qk_space_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct qk_file *f = ctx;
	if (!is_whole_blocks(f, off, len))
		return QK_FAIL(err, QCOW_E_NOTSUP, "punching parts of blocks");
	int e = change_space(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
	return judge(f, e, "punching", off, err);
}

/* EINVAL is "not whole blocks" or "one of the files is a device", EXDEV "two file systems". */
enum qcow_status qk_space_clone(
	void *ctx, uint64_t off, int src_fd, uint64_t src_off, uint64_t len, struct qcow_error *err)
{
	struct qk_file *f = ctx;
	struct file_clone_range range = {
		.src_fd = src_fd,
		.src_offset = src_off,
		.src_length = len,
		.dest_offset = off,
	};
	int r = 0;
	do
		r = ioctl(f->fd, FICLONERANGE, &range);
	while (r != 0 && errno == EINTR);
	if (r != 0 && (is_unable(errno) || errno == EXDEV || errno == EBADF || errno == EISDIR))
		return QK_FAIL(err, QCOW_E_NOTSUP, "the file system cannot share these blocks");
	return judge(f, r != 0 ? errno : 0, "sharing blocks", off, err);
}
