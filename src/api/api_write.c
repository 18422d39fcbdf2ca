/* SPDX-License-Identifier: MIT */
/*
 * api_write: qcow_pwrite and its kin: argument checks, and the flush of QCOW_IO_FUA. All of them may run on one
 * image in any number of threads.
 */
#include <qcowkit/manage.h>

#include <inttypes.h>

#include "api/pass.h"
#include "base/err.h"
#include "engine/control.h"
#include "engine/compress.h"
#include "engine/image.h"
#include "engine/iov.h"
#include "engine/publish.h"
#include "engine/rw.h"
#include "engine/vm_state.h"
#include "engine/write.h"
#include "engine/zero.h"

static enum qcow_status check_writable(const struct qcow_image *image, struct qcow_error *err)
{
	if (QK_LIKELY(image != NULL && image->rw != NULL))
		return QCOW_OK;
	if (image == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "no image");
	return QK_FAIL(err, QCOW_E_READONLY, "'%s' is not open for writing",
		qcow_store_name(image->store));
}

static enum qcow_status check_call(
	const struct qcow_image *image, unsigned unknown_flags, struct qcow_error *err)
{
	QK_TRY(check_writable(image, err));
	if (unknown_flags != 0)
		return QK_FAIL(
			err, QCOW_E_INVAL, "flags 0x%x do not go with this call", unknown_flags);
	return QCOW_OK;
}

static enum qcow_status check_range(
	const struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	if (QK_LIKELY(qk_in_range(off, len, image->size)))
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_RANGE, 0, QCOW_NO_OFFSET, off,
		"%" PRIu64 " bytes at %" PRIu64 " lie beyond the disk of %" PRIu64 " bytes", len,
		off, image->size);
}

/* Leave the gate that was passed as `pass`, after a flush where the call was asked for one. */
static enum qcow_status finish(struct qcow_image *image, unsigned pass, unsigned flags,
	enum qcow_status status, struct qcow_error *err)
{
	if (status == QCOW_OK && (flags & QCOW_IO_FUA) != 0)
		status = qk_write_flush(image, err);
	qk_pass_leave(image, pass);
	return status;
}

enum qcow_status qcow_pwritev(struct qcow_image *image, const struct iovec *iov, int n_iov,
	uint64_t off, unsigned flags, struct qcow_error *err)
{
	uint64_t len = 0;
	if ((iov == NULL && n_iov != 0) || !qk_iov_sum(iov, n_iov, &len))
		return QK_FAIL(err, QCOW_E_INVAL, "a bad list of %d buffers", n_iov);
	QK_TRY(check_call(image, flags & ~(unsigned)QCOW_IO_FUA, err));
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = check_range(image, off, len, err);
	if (status == QCOW_OK)
		status = qk_write(image, iov, n_iov, off, err);
	return finish(image, pass, flags, status, err);
}

enum qcow_status qcow_pwrite(struct qcow_image *image, const void *buf, size_t len, uint64_t off,
	unsigned flags, struct qcow_error *err)
{
	const struct iovec iov = {(void *)(uintptr_t)buf, len};
	return qcow_pwritev(image, &iov, 1, off, flags, err);
}

static enum qcow_status check_whole(
	const struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	uint64_t cluster = image->is_raw ? 1 : image->geometry.cluster_size;
	if (qk_is_aligned(off, cluster) &&
		(qk_is_aligned(len, cluster) || off + len == image->size))
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_INVAL, 0, QCOW_NO_OFFSET, off,
		"compressed writes are whole clusters of %" PRIu64
		" bytes, or end with the disk: not %" PRIu64 " bytes at %" PRIu64,
		cluster, len, off);
}

enum qcow_status qcow_write_compressed(struct qcow_image *image, const void *buf, size_t len,
	uint64_t off, unsigned flags, struct qcow_error *err)
{
	QK_TRY(check_call(image, flags & ~(unsigned)QCOW_IO_FUA, err));
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = check_range(image, off, len, err);
	if (status == QCOW_OK)
		status = check_whole(image, off, len, err);
	if (status == QCOW_OK)
		status = qk_write_compressed(image, buf, len, off, err);
	return finish(image, pass, flags, status, err);
}

enum qcow_status qcow_zero(struct qcow_image *image, uint64_t off, uint64_t len, unsigned flags,
	struct qcow_error *err)
{
	const unsigned known = QCOW_IO_FUA | QCOW_IO_UNMAP | QCOW_IO_FAST | QCOW_IO_EXPLICIT;
	QK_TRY(check_call(image, flags & ~known, err));
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = check_range(image, off, len, err);
	if (status == QCOW_OK)
		status = qk_zero(image, off, len, flags, err);
	return finish(image, pass, flags, status, err);
}

enum qcow_status qcow_discard(struct qcow_image *image, uint64_t off, uint64_t len, unsigned flags,
	struct qcow_error *err)
{
	QK_TRY(check_call(image, flags & ~(unsigned)QCOW_IO_FUA, err));
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = check_range(image, off, len, err);
	if (status == QCOW_OK)
		status = qk_discard(image, off, len, err);
	return finish(image, pass, flags, status, err);
}

enum qcow_status qcow_flush(struct qcow_image *image, struct qcow_error *err)
{
	QK_TRY(check_writable(image, err));
	unsigned pass = qk_pass_enter(image);
	return finish(image, pass, QCOW_IO_FUA, QCOW_OK, err);
}

enum qcow_status qcow_recover(struct qcow_image *image, struct qcow_error *err)
{
	QK_TRY(check_writable(image, err));
	if (!image->is_raw)
		QK_TRY(qk_control_recover(image, err));
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = qk_publish_recover(image->rw->publish, err);
	qk_pass_leave(image, pass);
	return status;
}

enum qcow_status qcow_write_vm_state(
	struct qcow_image *image, const void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	QK_TRY(check_writable(image, err));
	return len != 0 ? qk_vm_state_write(image, buf, len, off, err) : QCOW_OK;
}
