/* SPDX-License-Identifier: MIT */
/*
 * file: the calls of store.h on an open regular file or block device.
 *
 * A call does the whole range or fails: what the kernel does in part is continued here, what a
 * signal interrupts is taken up again. Nothing is cached, no file position is used, so any number
 * of threads may call at once. Ranges, alignment and names in messages are the wrapper's.
 */
#include "store/file.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/num.h"

/* The list that is left when the kernel has done a part of it. */
struct rest {
	const struct iovec *iov;
	int n;
	size_t done_of_first;
	uint64_t off;
};

static void advance(struct rest *r, size_t n)
{
	r->off += n;
	while (r->n > 0 && n >= r->iov->iov_len - r->done_of_first) {
		n -= r->iov->iov_len - r->done_of_first;
		r->done_of_first = 0;
		r->iov++;
		r->n--;
	}
	r->done_of_first += n;
}

/* The buffers that one call is given: the list itself, or what is left of its first entry. */
static const struct iovec *head_of(const struct rest *r, struct iovec *partial, int *n)
{
	*n = r->n;
	if (r->done_of_first == 0)
		return r->iov;
	partial->iov_base = (uint8_t *)r->iov->iov_base + r->done_of_first;
	partial->iov_len = r->iov->iov_len - r->done_of_first;
	*n = 1;
	return partial;
}

/* What lies past the end, which only the wrapper's widened requests ask for, reads as zeros. */
static void zero_rest(struct rest *r)
{
	while (r->n > 0) {
		size_t n = r->iov->iov_len - r->done_of_first;
		if (n != 0)
			memset((uint8_t *)r->iov->iov_base + r->done_of_first, 0, n);
		advance(r, n);
	}
}

static uint64_t left_in(const struct rest *r)
{
	uint64_t len = 0;
	for (int i = 0; i < r->n; i++)
		len += r->iov[i].iov_len;
	return len - r->done_of_first;
}

/* The kernel read nothing at r->off. */
static enum qcow_status end_of_file(struct qk_file *f, struct rest *r, struct qcow_error *err)
{
	uint64_t size = 0, up = 0;
	QK_TRY(qk_file_size(f, &size, err));
	if (qk_align_up(size, f->request_align, &up) && r->off >= size &&
		r->off + left_in(r) <= up) {
		zero_rest(r);
		return QCOW_OK;
	}
	return QK_FAIL(err, QCOW_E_IO,
		"the file ends before offset %" PRIu64 ", it was shortened while open", r->off);
}

static enum qcow_status file_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct qk_file *f = ctx;
	struct rest r = {iov, n_iov, 0, off};
	advance(&r, 0);
	while (r.n > 0) {
		struct iovec partial;
		int n = 0;
		const struct iovec *head = head_of(&r, &partial, &n);
		ssize_t got = preadv(f->fd, head, n, (off_t)r.off);
		if (got > 0)
			advance(&r, (size_t)got);
		else if (got == 0)
			return end_of_file(f, &r, err);
		else if (errno != EINTR)
			return QK_FAIL_OS(err, errno, "reading at offset %" PRIu64, r.off);
	}
	return QCOW_OK;
}

static enum qcow_status file_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct qk_file *f = ctx;
	struct rest r = {iov, n_iov, 0, off};
	int flags = f->is_sync ? RWF_DSYNC : 0;
	advance(&r, 0);
	while (r.n > 0) {
		struct iovec partial;
		int n = 0;
		const struct iovec *head = head_of(&r, &partial, &n);
		ssize_t put = flags != 0 ? pwritev2(f->fd, head, n, (off_t)r.off, flags)
					 : pwritev(f->fd, head, n, (off_t)r.off);
		if (put > 0)
			advance(&r, (size_t)put);
		else if (put == 0)
			return QK_FAIL(err, QCOW_E_IO,
				"writing at offset %" PRIu64 ": the host wrote nothing", r.off);
		else if (errno != EINTR)
			return QK_FAIL_OS(err, errno, "writing at offset %" PRIu64, r.off);
	}
	return QCOW_OK;
}

/* Never tried again: after a failure the kernel takes the pages for written, which they are not. */
static enum qcow_status file_flush(void *ctx, struct qcow_error *err)
{
	struct qk_file *f = ctx;
	if (f->skips_flush || fdatasync(f->fd) == 0)
		return QCOW_OK;
	atomic_store(&f->has_lost, true);
	return QK_FAIL_OS(err, errno, "making the data durable");
}

enum qcow_status qk_file_sync_change(struct qk_file *f, struct qcow_error *err)
{
	if (!f->is_sync || fdatasync(f->fd) == 0)
		return QCOW_OK;
	atomic_store(&f->has_lost, true);
	return QK_FAIL_OS(err, errno, "making the change durable");
}

/* Who opens the file next must not believe, and build on, what the medium never got: pages that the kernel wrongly takes
 * for written are read again from the medium. Those that nobody has tried to write stay. */
static void forget_what_was_lost(struct qk_file *f)
{
	if (atomic_load(&f->has_lost))
		(void)posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
}

enum qcow_status qk_file_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	struct qk_file *f = ctx;
	if (f->is_device) {
		uint64_t bytes = 0;
		if (ioctl(f->fd, BLKGETSIZE64, &bytes) != 0)
			return QK_FAIL_OS(err, errno, "asking the device for its size");
		*size_bytes = bytes;
		return QCOW_OK;
	}
	struct stat st;
	if (fstat(f->fd, &st) != 0)
		return QK_FAIL_OS(err, errno, "asking for the file's size");
	*size_bytes = (uint64_t)st.st_size;
	return QCOW_OK;
}

static enum qcow_status file_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct qk_file *f = ctx;
	int r = 0;
	do
		r = ftruncate(f->fd, (off_t)size_bytes);
	while (r != 0 && errno == EINTR);
	if (r != 0)
		return QK_FAIL_OS(err, errno, "setting the size to %" PRIu64 " bytes", size_bytes);
	return qk_file_sync_change(f, err);
}

static int file_fd(void *ctx)
{
	return ((struct qk_file *)ctx)->fd;
}

static void file_caps(void *ctx, struct qcow_store_caps *out)
{
	struct qk_file *f = ctx;
	*out = (struct qcow_store_caps){
		.request_align = f->request_align,
		.memory_align = f->memory_align,
		.physical_block = f->physical_block,
		.writable = f->writable,
		.can_grow = f->writable && !f->is_device,
		.reads_zero_past_end = !f->is_device,
		.can_punch = f->writable,
		.can_clone = f->writable && !f->is_device,
	};
}

static void file_close(void *ctx)
{
	struct qk_file *f = ctx;
	forget_what_was_lost(f);
	/* the descriptor may have been duplicated before it became ours */
	if (f->has_locks)
		qk_lock_drop(f->fd);
	(void)close(f->fd);
	free(f);
}

const struct qcow_store_ops qk_file_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "file",
	.preadv = file_preadv,
	.pwritev = file_pwritev,
	.flush = file_flush,
	.size = qk_file_size,
	.truncate = file_truncate,
	.zero = qk_space_zero,
	.punch = qk_space_punch,
	.extents = qk_space_extents,
	.clone = qk_space_clone,
	.fd = file_fd,
	.caps = file_caps,
	.close = file_close,
};
