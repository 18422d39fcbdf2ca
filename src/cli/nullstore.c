/* SPDX-License-Identifier: MIT */
/*
 * nullstore: the driver null-co: a disk for measuring what lies above it. It owns a size, nothing else.
 */
#include "cli/nullstore.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/num.h"
#include "cli/spec.h"

struct null_store {
	uint64_t size_bytes;
	bool writable;
};

static enum qcow_status null_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	(void)ctx;
	(void)off;
	(void)err;
	for (int i = 0; i < n_iov; i++)
		memset(iov[i].iov_base, 0, iov[i].iov_len);
	return QCOW_OK;
}

static enum qcow_status null_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	(void)ctx;
	(void)iov;
	(void)n_iov;
	(void)off;
	(void)err;
	return QCOW_OK;
}

static enum qcow_status null_flush(void *ctx, struct qcow_error *err)
{
	(void)ctx;
	(void)err;
	return QCOW_OK;
}

static enum qcow_status null_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	const struct null_store *s = ctx;
	(void)err;
	*size_bytes = s->size_bytes;
	return QCOW_OK;
}

static enum qcow_status null_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	const struct null_store *s = ctx;
	return size_bytes == s->size_bytes
		       ? QCOW_OK
		       : QK_FAIL(err, QCOW_E_NOTSUP, "a null-co disk keeps its size");
}

static enum qcow_status null_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	(void)ctx;
	(void)off;
	(void)len;
	(void)flags;
	(void)err;
	return QCOW_OK;
}

static void null_caps(void *ctx, struct qcow_store_caps *out)
{
	const struct null_store *s = ctx;
	*out = (struct qcow_store_caps){
		.request_align = 1, .physical_block = 512, .writable = s->writable};
}

static void null_close(void *ctx)
{
	free(ctx);
}

static const struct qcow_store_ops null_ops = {
	.abi = QCOW_STORE_ABI,
	.name = CLI_NULL_STORE_NAME,
	.preadv = null_preadv,
	.pwritev = null_pwritev,
	.flush = null_flush,
	.size = null_size,
	.truncate = null_truncate,
	.zero = null_zero,
	.caps = null_caps,
	.close = null_close,
};

enum qcow_status cli_null_store_open(struct cli *cli, const json_t *spec, bool writable,
	struct qcow_store **out, struct qcow_error *err)
{
	uint64_t size_bytes = QK_GIB(1);
	if (json_object_get(spec, "size") != NULL)
		QK_TRY(cli_spec_u64(cli, spec, "size", &size_bytes, err));
	struct null_store *s = qk_calloc(1, sizeof(*s));
	if (s == NULL)
		return QK_FAIL_NOMEM(err);
	*s = (struct null_store){size_bytes, writable};
	enum qcow_status status = qcow_store_new(&null_ops, s, out, err);
	if (status != QCOW_OK)
		free(s);
	return status;
}
