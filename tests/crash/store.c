/* SPDX-License-Identifier: MIT */
#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct on_disk {
	struct qkc_disk *d; /* NULL: on bytes */
	struct qkc_log *log;
	struct qkc_fault *fault;
	const uint8_t *bytes;
	uint64_t n_bytes;
	uint64_t base; /* QKC_DATA_FILE, or 0 */
	bool can_grow;
	size_t flushed; /* mark of the last flush */
};

static bool is_to_fail(struct on_disk *s, bool is_flush)
{
	struct qkc_fault *f = s->fault;
	if (f == NULL || f->what == QKC_FAIL_NONE ||
		(f->what == QKC_FAIL_FLUSH || f->what == QKC_FAIL_FLUSH_DROP) != is_flush)
		return false;
	if (f->file != QKC_ANY_FILE && (f->file == QKC_ONLY_DATA_FILE) != (s->base != 0))
		return false;
	f->count++;
	return f->count == f->nth || (f->what == QKC_FAIL_SPACE && f->count > f->nth);
}

static enum qcow_status fail(struct on_disk *s, struct qcow_error *err)
{
	bool full = s->fault->what == QKC_FAIL_SPACE;
	enum qcow_status st = full ? QCOW_E_NOSPC : QCOW_E_IO;
	if (err == NULL)
		return st;
	*err = (struct qcow_error)QCOW_ERROR_INIT;
	err->status = st;
	err->os_errno = full ? ENOSPC : EIO;
	err->site = "crash store";
	(void)snprintf(err->message, sizeof(err->message), "a failure on purpose");
	return st;
}

static enum qcow_status disk_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	const struct on_disk *s = ctx;
	const uint8_t *bytes = s->d != NULL ? qkc_disk_bytes(s->d) : s->bytes;
	(void)err;
	for (int i = 0; i < n_iov; off += iov[i++].iov_len)
		memcpy(iov[i].iov_base, bytes + s->base + off, iov[i].iov_len);
	return QCOW_OK;
}

static void do_write(struct on_disk *s, const uint8_t *bytes, uint64_t len, uint64_t off)
{
	qkc_disk_write(s->d, bytes, len, s->base + off);
	qkc_log_add(s->log, QKC_WRITE, s->base + off, len, bytes);
}

/* Bytes up to a sector's end near the middle: a sector is never torn. */
static uint64_t half_of(uint64_t off, uint64_t len)
{
	uint64_t end = (off + len / 2) / QKC_SECTOR * QKC_SECTOR;
	return end > off ? end - off : 0;
}

static enum qcow_status disk_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct on_disk *s = ctx;
	bool fails = is_to_fail(s, false);
	uint64_t len = 0, at = 0;
	for (int i = 0; i < n_iov; i++)
		len += iov[i].iov_len;
	uint8_t *bytes = qkc_need((size_t)len, 1);
	for (int i = 0; i < n_iov; at += iov[i++].iov_len)
		memcpy(bytes + at, iov[i].iov_base, iov[i].iov_len);
	if (!fails)
		do_write(s, bytes, len, off);
	else if (s->fault->count == s->fault->nth && half_of(off, len) != 0)
		do_write(s, bytes, half_of(off, len), off);
	free(bytes);
	return fails ? fail(s, err) : QCOW_OK;
}

static enum qcow_status disk_flush(void *ctx, struct qcow_error *err)
{
	struct on_disk *s = ctx;
	bool fails = is_to_fail(s, true);
	bool drops = fails && s->fault->what == QKC_FAIL_FLUSH_DROP;
	if (drops)
		qkc_disk_drop(s->d, s->flushed, s->base);
	s->flushed = qkc_disk_mark(s->d);
	qkc_log_add(s->log,
		drops	? QKC_FLUSH_DROPPED
		: fails ? QKC_FLUSH_FAILED
			: QKC_FLUSH,
		s->base, 0, NULL);
	return fails ? fail(s, err) : QCOW_OK;
}

static enum qcow_status disk_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	const struct on_disk *s = ctx;
	(void)err;
	*size_bytes = s->d != NULL ? qkc_disk_end(s->d, s->base) - s->base : s->n_bytes;
	return QCOW_OK;
}

static enum qcow_status disk_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct on_disk *s = ctx;
	uint64_t end = s->base + size_bytes;
	if (end > qkc_disk_end(s->d, s->base) && is_to_fail(s, false))
		return fail(s, err);
	qkc_disk_resize(s->d, end);
	qkc_log_add(s->log, QKC_TRUNCATE, s->base, end, NULL);
	return QCOW_OK;
}

static enum qcow_status disk_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct on_disk *s = ctx;
	(void)flags;
	if (is_to_fail(s, false))
		return fail(s, err);
	qkc_disk_write(s->d, NULL, len, s->base + off);
	qkc_log_add(s->log, QKC_ZERO, s->base + off, len, NULL);
	return QCOW_OK;
}

static enum qcow_status disk_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct on_disk *s = ctx;
	uint64_t size = qkc_disk_end(s->d, s->base) - s->base;
	(void)err;
	if (off >= size)
		return QCOW_OK;
	qkc_disk_write(s->d, NULL, len < size - off ? len : size - off, s->base + off);
	qkc_log_add(s->log, QKC_PUNCH, s->base + off, len, NULL);
	return QCOW_OK;
}

static void disk_caps(void *ctx, struct qcow_store_caps *out)
{
	const struct on_disk *s = ctx;
	*out = (struct qcow_store_caps){.request_align = 1,
		.physical_block = QKC_SECTOR,
		.writable = s->log != NULL,
		.can_grow = s->can_grow,
		.reads_zero_past_end = true,
		.can_punch = true,
		.memory_align = 1};
}

static void disk_close(void *ctx)
{
	free(ctx);
}

static const struct qcow_store_ops disk_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "crash",
	.preadv = disk_preadv,
	.pwritev = disk_pwritev,
	.flush = disk_flush,
	.size = disk_size,
	.truncate = disk_truncate,
	.zero = disk_zero,
	.punch = disk_punch,
	.caps = disk_caps,
	.close = disk_close,
};

static struct qcow_store *make(struct on_disk from)
{
	struct on_disk *s = qkc_need(1, sizeof(*s));
	struct qcow_store *store = NULL;
	*s = from;
	if (qcow_store_new(&disk_ops, s, &store, NULL) == QCOW_OK)
		return store;
	(void)fprintf(stderr, "crash: no store\n");
	abort();
}

struct qcow_store *qkc_disk_store(
	struct qkc_disk *d, struct qkc_log *log, struct qkc_fault *fault, bool can_grow)
{
	return make((struct on_disk){.d = d,
		.log = log,
		.fault = fault,
		.can_grow = can_grow,
		.flushed = qkc_disk_mark(d)});
}

struct qcow_store *qkc_disk_data_store(
	struct qkc_disk *d, struct qkc_log *log, struct qkc_fault *fault, bool can_grow)
{
	return make((struct on_disk){.d = d,
		.log = log,
		.fault = fault,
		.base = QKC_DATA_FILE,
		.can_grow = can_grow,
		.flushed = qkc_disk_mark(d)});
}

struct qcow_store *qkc_bytes_store(const uint8_t *bytes, uint64_t n_bytes)
{
	return make((struct on_disk){.bytes = bytes, .n_bytes = n_bytes});
}
