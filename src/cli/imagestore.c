/* SPDX-License-Identifier: MIT */
#include "cli/imagestore.h"

#include <stdlib.h>

#include "base/mem.h"

struct image_store {
	struct qcow_image *image;
	enum qcow_status *failed; /* where a close that fails is told */
	bool writable;
};

static enum qcow_status image_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct image_store *s = ctx;
	return qcow_preadv(s->image, iov, n_iov, off, err);
}

static enum qcow_status image_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct image_store *s = ctx;
	return qcow_pwritev(s->image, iov, n_iov, off, 0, err);
}

static enum qcow_status image_flush(void *ctx, struct qcow_error *err)
{
	struct image_store *s = ctx;
	return qcow_flush(s->image, err);
}

static enum qcow_status image_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	(void)err;
	struct image_store *s = ctx;
	*size_bytes = qcow_size(s->image);
	return QCOW_OK;
}

static enum qcow_status image_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct image_store *s = ctx;
	return size_bytes == qcow_size(s->image)
		       ? QCOW_OK
		       : QK_FAIL(err, QCOW_E_NOTSUP, "the disk below cannot change its size");
}

static enum qcow_status image_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct image_store *s = ctx;
	(void)flags; /* clusters that are held are kept */
	return qcow_zero(s->image, off, len, 0, err);
}

/* What lies above asks for it where nothing needs the content any more: whole clusters go, the rest stays. */
static enum qcow_status image_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct image_store *s = ctx;
	return qcow_discard(s->image, off, len, 0, err);
}

static enum qcow_status image_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	struct image_store *s = ctx;
	struct qcow_extent e;
	QK_TRY(qcow_map(s->image, off, len, UINT32_MAX, &e, err));
	*out = (struct qcow_store_extent){
		.off = off, .len = e.len, .is_hole = (e.flags & QCOW_EXTENT_ZERO) != 0};
	return QCOW_OK;
}

static void image_caps(void *ctx, struct qcow_store_caps *out)
{
	struct image_store *s = ctx;
	*out = (struct qcow_store_caps){.request_align = 1,
		.physical_block = 512,
		.writable = s->writable,
		.can_punch = s->writable};
}

static void image_close(void *ctx)
{
	struct image_store *s = ctx;
	enum qcow_status status = qcow_close(s->image);
	if (*s->failed == QCOW_OK)
		*s->failed = status;
	free(s);
}

static const struct qcow_store_ops image_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "image",
	.preadv = image_preadv,
	.pwritev = image_pwritev,
	.flush = image_flush,
	.size = image_size,
	.truncate = image_truncate,
	.zero = image_zero,
	.punch = image_punch,
	.extents = image_extents,
	.caps = image_caps,
	.close = image_close,
};

enum qcow_status cli_image_store_new(struct cli *cli, struct qcow_image *image, bool writable,
	struct qcow_store **out, struct qcow_error *err)
{
	struct image_store *s = qk_calloc(1, sizeof(*s));
	struct qcow_store *store = NULL;
	enum qcow_status status = QCOW_OK;
	if (s == NULL) {
		qcow_close(image);
		return QK_FAIL_NOMEM(err);
	}
	*s = (struct image_store){image, &cli->close_status, writable};
	status = qcow_store_new(&image_ops, s, &store, err);
	if (status != QCOW_OK) {
		image_close(s);
		return status;
	}
	status = qcow_store_set_name(store, qcow_store_name(qcow_image_store(image)), err);
	if (status != QCOW_OK) {
		qcow_store_close(store);
		return status;
	}
	*out = store;
	return QCOW_OK;
}
