/* SPDX-License-Identifier: MIT */
/*
 * api_read: qcow_pread and qcow_map: argument checks. Both may run on one image in any number of threads.
 */
#include <qcowkit/manage.h>
#include <qcowkit/qcowkit.h>

#include <inttypes.h>

#include "api/pass.h"
#include "base/err.h"
#include "engine/image.h"
#include "engine/iov.h"
#include "engine/map.h"
#include "engine/read.h"
#include "engine/vm_state.h"
#include "engine/rw.h"

static enum qcow_status check_range(
	const struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	if (QK_LIKELY(qk_in_range(off, len, image->size)))
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_RANGE, 0, QCOW_NO_OFFSET, off,
		"%" PRIu64 " bytes at %" PRIu64 " lie beyond the disk of %" PRIu64 " bytes", len,
		off, image->size);
}

enum qcow_status qcow_pread(
	struct qcow_image *image, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = check_range(image, off, len, err);
	if (status == QCOW_OK)
		status = qk_read(image, buf, len, off, err);
	qk_pass_leave(image, pass);
	return status;
}

enum qcow_status qcow_pread_nowait(
	struct qcow_image *image, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	unsigned pass = 0;
	if (!qk_pass_try(image, &pass))
		return QK_FAIL(err, QCOW_E_WOULD_BLOCK, "somebody is alone with the image");
	enum qcow_status status = check_range(image, off, len, err);
	if (status == QCOW_OK)
		status = qk_read_nowait(image, buf, len, off, err);
	qk_pass_leave(image, pass);
	return status;
}

static enum qcow_status read_vm_state(
	struct qcow_image *image, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	uint64_t guest = 0;
	QK_TRY(qk_vm_state_place(image, off, len, &guest, err));
	return qk_read_past(image, buf, len, guest, err);
}

enum qcow_status qcow_read_vm_state(
	struct qcow_image *image, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = read_vm_state(image, buf, len, off, err);
	qk_pass_leave(image, pass);
	return status;
}

static enum qcow_status read_each(struct qcow_image *image, const struct iovec *iov, int n_iov,
	uint64_t off, struct qcow_error *err)
{
	for (int i = 0; i < n_iov; i++) {
		QK_TRY(qk_read(image, iov[i].iov_base, iov[i].iov_len, off, err));
		off += iov[i].iov_len;
	}
	return QCOW_OK;
}

enum qcow_status qcow_preadv(struct qcow_image *image, const struct iovec *iov, int n_iov,
	uint64_t off, struct qcow_error *err)
{
	uint64_t len = 0;
	if ((iov == NULL && n_iov != 0) || !qk_iov_sum(iov, n_iov, &len))
		return QK_FAIL(err, QCOW_E_INVAL, "a bad list of %d buffers", n_iov);
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = check_range(image, off, len, err);
	if (status == QCOW_OK)
		status = read_each(image, iov, n_iov, off, err);
	qk_pass_leave(image, pass);
	return status;
}

static enum qcow_status map(struct qcow_image *image, uint64_t off, uint64_t len,
	uint32_t max_depth, struct qcow_extent *out, struct qcow_error *err)
{
	QK_TRY(check_range(image, off, len, err));
	if (len == 0)
		return QK_FAIL(err, QCOW_E_INVAL, "a map of no bytes has no answer");
	const struct qk_map_request rq = {.image = image,
		.off.v = off,
		.len = len,
		.max_depth = max_depth,
		.may_block = true};
	if (image->rw == NULL)
		return qk_map_extent(&rq, out, err);
	/* as a read: a table that is being replaced is not given away under the walk */
	unsigned epoch = qk_epoch_enter(image->rw->epoch);
	enum qcow_status status = qk_map_extent(&rq, out, err);
	qk_epoch_leave(image->rw->epoch, epoch);
	return status;
}

enum qcow_status qcow_map(struct qcow_image *image, uint64_t off, uint64_t len, uint32_t max_depth,
	struct qcow_extent *out, struct qcow_error *err)
{
	unsigned pass = qk_pass_enter(image);
	enum qcow_status status = map(image, off, len, max_depth, out, err);
	qk_pass_leave(image, pass);
	return status;
}
