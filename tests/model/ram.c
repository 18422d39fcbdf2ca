/* SPDX-License-Identifier: MIT */
/* ram: see ram.h. Bytes behind the end are zeros. */
#include "ram.h"

#include <stdlib.h>
#include <string.h>

static enum qcow_status ram_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	const struct qkt_ram *r = ctx;
	(void)err;
	for (int i = 0; i < n_iov; off += iov[i++].iov_len)
		if (iov[i].iov_len != 0)
			memcpy(iov[i].iov_base, r->bytes + off, iov[i].iov_len);
	return QCOW_OK;
}

static enum qcow_status ram_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct qkt_ram *r = ctx;
	(void)err;
	for (int i = 0; i < n_iov; off += iov[i++].iov_len) {
		if (off + iov[i].iov_len > QKT_RAM_BYTES)
			abort();
		if (iov[i].iov_len != 0)
			memcpy(r->bytes + off, iov[i].iov_base, iov[i].iov_len);
	}
	r->size = off > r->size ? off : r->size;
	return QCOW_OK;
}

static enum qcow_status ram_flush(void *ctx, struct qcow_error *err)
{
	(void)ctx;
	(void)err;
	return QCOW_OK;
}

static enum qcow_status ram_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	(void)err;
	*size_bytes = ((struct qkt_ram *)ctx)->size;
	return QCOW_OK;
}

static enum qcow_status ram_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct qkt_ram *r = ctx;
	(void)err;
	if (size_bytes > QKT_RAM_BYTES)
		abort();
	if (size_bytes < r->size)
		memset(r->bytes + size_bytes, 0, r->size - size_bytes);
	r->size = size_bytes;
	return QCOW_OK;
}

static enum qcow_status ram_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct qkt_ram *r = ctx;
	(void)flags;
	(void)err;
	if (off + len > QKT_RAM_BYTES)
		abort();
	memset(r->bytes + off, 0, len);
	r->size = off + len > r->size ? off + len : r->size;
	return QCOW_OK;
}

static enum qcow_status ram_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	(void)err;
	memset(((struct qkt_ram *)ctx)->bytes + off, 0, len);
	return QCOW_OK;
}

static void ram_caps(void *ctx, struct qcow_store_caps *out)
{
	(void)ctx;
	*out = (struct qcow_store_caps){.request_align = 1,
		.physical_block = 512,
		.writable = true,
		.can_grow = true,
		.reads_zero_past_end = true,
		.can_punch = true};
}

static void ram_close(void *ctx)
{
	(void)ctx;
}

static const struct qcow_store_ops ram_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "ram",
	.preadv = ram_preadv,
	.pwritev = ram_pwritev,
	.flush = ram_flush,
	.size = ram_size,
	.truncate = ram_truncate,
	.zero = ram_zero,
	.punch = ram_punch,
	.caps = ram_caps,
	.close = ram_close,
};

struct qcow_store *qkt_ram_store(struct qkt_ram *ram)
{
	struct qcow_store *s = NULL;
	if (qcow_store_new(&ram_ops, ram, &s, NULL) != QCOW_OK)
		abort();
	return s;
}

void qkt_ram_load(struct qkt_ram *ram, const uint8_t *bytes, uint64_t n)
{
	if (n > QKT_RAM_BYTES)
		abort();
	if (ram->bytes == NULL)
		ram->bytes = calloc(1, QKT_RAM_BYTES);
	if (ram->bytes == NULL)
		abort();
	memcpy(ram->bytes, bytes, n);
	if (ram->size > n)
		memset(ram->bytes + n, 0, ram->size - n);
	ram->size = n;
}
