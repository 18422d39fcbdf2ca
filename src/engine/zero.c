/* SPDX-License-Identifier: MIT */
/*
 * zero: see zero.h.
 */
#include "engine/zero.h"

#include "base/num.h"
#include "engine/image.h"
#include "engine/rw.h"
#include "engine/write.h"

#define ZERO_BYTES 65536U
#define N_ZEROS	   32

/* Zeros to write from. */
static const uint8_t zeros[ZERO_BYTES];

static enum qcow_status write_zeros(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	while (len != 0) {
		struct iovec iov[N_ZEROS];
		uint64_t done = 0;
		int n = 0;
		while (n < N_ZEROS && done < len) {
			size_t take = (size_t)qk_min(len - done, ZERO_BYTES);
			iov[n++] = (struct iovec){(void *)(uintptr_t)zeros, take};
			done += take;
		}
		QK_TRY(qk_write(image, iov, n, off, err));
		off += done;
		len -= done;
	}
	return QCOW_OK;
}

enum qcow_status qk_zero(struct qcow_image *image, uint64_t off, uint64_t len, unsigned flags,
	struct qcow_error *err)
{
	if ((flags & QCOW_IO_FAST) != 0)
		return QK_FAIL(err, QCOW_E_NOTSUP, "zeros would have to be written as data");
	return write_zeros(image, off, len, err);
}

enum qcow_status qk_discard(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	(void)off;
	(void)len;
	return qk_fence_check(&image->rw->fence, err);
}
