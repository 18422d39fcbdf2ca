/* SPDX-License-Identifier: MIT */
/*
 * The order checker beside a data file: its store, whose offsets begin at QKO_DATA, and the rules for entries that name
 * it. Specification: "external data file", "raw external data".
 */
#include "order.h"
#include "order_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- entries ---- */

/* [off, off + len) of the data file reads as zeros for whoever reads it alone, whatever a crash leaves. */
static bool is_blank(struct qkt_order *o, uint64_t off, uint64_t len)
{
	for (uint64_t at = off; at < off + len; at += QKO_SECTOR) {
		static const uint8_t zeros[QKO_SECTOR];
		uint8_t b[QKO_SECTOR];
		uint64_t n = off + len - at < QKO_SECTOR ? off + len - at : QKO_SECTOR;
		const struct qko_cluster *c = qko_find(o, (QKO_DATA + at) / o->cs);
		bool is_pending = c != NULL && c->pending != NULL &&
				  c->pending[at % o->cs / QKO_SECTOR] != 0;
		qko_peek(o, b, n, QKO_DATA + at);
		if (is_pending || memcmp(b, zeros, (size_t)n) != 0)
			return false;
	}
	return true;
}

/* Bit i: unit i of the cluster is shown as the data file has it. */
static uint32_t shown_units(const struct qkt_order *o, const struct qko_target *target)
{
	if (target->kind != QKO_PLAIN)
		return 0;
	if (o->is_extended)
		return target->subclusters;
	return target->is_zero ? 0 : 1;
}

void qko_judge_beside_data(struct qkt_order *o, const struct qko_table *t, uint64_t slot,
	const struct qko_target *target)
{
	uint64_t off = qko_guest_off(o, t, slot);
	if (o->is_loading || off == UINT64_MAX || target->kind == QKO_BAD)
		return;
	if (target->kind == QKO_PLAIN && target->off != QKO_DATA + off)
		qko_report(o, QKT_O8,
			"guest offset 0x%" PRIx64 " is at 0x%" PRIx64 " of the data file", off,
			target->off - QKO_DATA);
	if (!o->is_raw_data)
		return;
	uint32_t shown = shown_units(o, target);
	uint64_t unit = o->is_extended ? o->cs / 32 : o->cs, len = qko_guest_len(o, t, slot);
	for (uint64_t i = 0; i * unit < len; i++) {
		uint64_t n = len - i * unit < unit ? len - i * unit : unit;
		if ((shown >> i & 1) != 0 || is_blank(o, off + i * unit, n))
			continue;
		qko_report(o, QKT_O12,
			"guest offset 0x%" PRIx64 " reads as zeros, and the raw data file does not",
			off + i * unit);
		return;
	}
}

/* ---- the store ---- */

static void note_size(struct qkt_order *o, uint64_t end)
{
	o->data_size = end > o->data_size ? end : o->data_size;
	o->data_written = end > o->data_written ? end : o->data_written;
}

/* A call that writes begins. */
static uint64_t begin(
	struct qkt_order *o, uint64_t off, uint64_t len, const uint8_t *bytes, bool is_punch)
{
	(void)pthread_mutex_lock(&o->lock);
	if (!is_punch)
		note_size(o, off + len);
	uint64_t id = qko_judge_write(o, QKO_DATA + off, len, bytes, is_punch);
	(void)pthread_mutex_unlock(&o->lock);
	return id;
}

static enum qcow_status data_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	return qcow_store_readv(o->data, iov, n_iov, off, err);
}

static enum qcow_status data_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	uint64_t len = 0;
	uint8_t *bytes = qko_gather(iov, n_iov, &len);
	uint64_t id = begin(o, off, len, bytes, false);
	free(bytes);
	enum qcow_status st = qcow_store_writev(o->data, iov, n_iov, off, err);
	qko_finish(o, id, st);
	return st;
}

static enum qcow_status data_flush(void *ctx, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	(void)pthread_mutex_lock(&o->lock);
	uint64_t at = ++o->seq;
	(void)pthread_mutex_unlock(&o->lock);
	enum qcow_status st = qcow_store_flush(o->data, err);
	qko_flushed(o, true, at, st);
	return st;
}

static enum qcow_status data_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	return qcow_store_size(o->data, size_bytes, err);
}

/* What lies past the end of the disk is nobody's. */
static enum qcow_status data_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	(void)pthread_mutex_lock(&o->lock);
	if (size_bytes < o->data_written && size_bytes < qko_longest_disk(o))
		qko_report(o, QKT_O6, "the data file is cut to 0x%" PRIx64, size_bytes);
	o->data_size = size_bytes;
	o->data_written = o->data_written < size_bytes ? o->data_written : size_bytes;
	(void)pthread_mutex_unlock(&o->lock);
	return qcow_store_truncate(o->data, size_bytes, err);
}

static enum qcow_status data_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	uint64_t id = begin(o, off, len, NULL, false);
	enum qcow_status st = qcow_store_zero(o->data, off, len, flags, err);
	qko_finish(o, id, st);
	return st;
}

static enum qcow_status data_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	uint64_t id = begin(o, off, len, NULL, true);
	enum qcow_status st = qcow_store_punch(o->data, off, len, err);
	qko_finish(o, id, st);
	return st;
}

static enum qcow_status data_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	return qcow_store_extents(o->data, off, len, out, err);
}

static void data_caps(void *ctx, struct qcow_store_caps *out)
{
	struct qkt_order *o = ctx;
	qcow_store_caps(o->data, out);
	out->request_align = 1;
	out->memory_align = 1;
	out->can_clone = false;
}

static void data_close(void *ctx)
{
	struct qkt_order *o = ctx;
	qcow_store_close(o->data);
	o->data = NULL;
	o->data_peek = NULL;
}

static const struct qcow_store_ops data_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "order, data file",
	.preadv = data_preadv,
	.pwritev = data_pwritev,
	.flush = data_flush,
	.size = data_size,
	.truncate = data_truncate,
	.zero = data_zero,
	.punch = data_punch,
	.extents = data_extents,
	.caps = data_caps,
	.close = data_close,
};

struct qcow_store *qkt_order_wrap_data(
	struct qkt_order *o, struct qcow_store *inner, struct qcow_store *peek)
{
	struct qcow_store *store = NULL;
	qko_unload(o);
	o->data = inner;
	o->data_peek = peek;
	if (o->n_writes != 0 || qcow_store_size(peek, &o->data_size, NULL) != QCOW_OK ||
		qcow_store_new(&data_ops, o, &store, NULL) != QCOW_OK ||
		qcow_store_set_name(store, qcow_store_name(inner), NULL) != QCOW_OK) {
		(void)fprintf(stderr, "order checker: cannot wrap the data file\n");
		abort();
	}
	o->data_written = o->data_size;
	qko_load(o);
	return store;
}

struct qcow_store *qkt_guard_data(
	struct qkt_fault *f, struct qkt_order *o, struct qcow_store *base, unsigned id)
{
	return qkt_order_wrap_data(o, qkt_fault_wrap(f, base, id), base);
}
