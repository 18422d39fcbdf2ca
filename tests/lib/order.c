/* SPDX-License-Identifier: MIT */
/* The order checker's store: passes calls on, and knows which writes are durable. */
#include "order.h"
#include "order_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOST UINT64_MAX /* of qko_write.done: no flush makes it durable any more */

struct qkt_order *qkt_order_new(const struct qkt_order_options *options)
{
	struct qkt_order *o = qko_need(calloc(1, sizeof(*o)));
	if (options != NULL)
		o->opt = *options;
	(void)pthread_mutex_init(&o->lock, NULL);
	return o;
}

void qkt_order_free(struct qkt_order *o)
{
	qko_unload(o);
	free(o->writes);
	free(o->acc);
	(void)pthread_mutex_destroy(&o->lock);
	free(o);
}

enum qkt_order_rule qkt_order_rule(const struct qkt_order *o)
{
	return o->rule;
}

uint64_t qkt_order_violations(const struct qkt_order *o)
{
	return o->n_violations;
}

const char *qkt_order_message(const struct qkt_order *o)
{
	return o->message;
}

uint64_t qkt_order_judged(const struct qkt_order *o)
{
	return o->n_judged;
}

/* ---- writes that are not durable ---- */

static void remember(struct qkt_order *o, uint64_t id, uint64_t off, uint64_t len, bool is_size)
{
	if (o->n_writes == o->room_writes) {
		o->room_writes = o->room_writes != 0 ? o->room_writes * 2 : 64;
		o->writes = qko_need(realloc(o->writes, o->room_writes * sizeof(*o->writes)));
	}
	o->writes[o->n_writes++] = (struct qko_write){
		.id = id, .off = off, .len = len, .is_size = is_size};
}

/* The first write in the list whose id is not smaller. */
static size_t first_of(const struct qkt_order *o, uint64_t id)
{
	size_t low = 0, high = o->n_writes;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		if (o->writes[mid].id < id)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static void set_done(struct qkt_order *o, uint64_t id, uint64_t done)
{
	for (size_t i = first_of(o, id); i < o->n_writes && o->writes[i].id == id; i++)
		o->writes[i].done = done;
}

bool qko_retires(const struct qkt_order *o, uint64_t id)
{
	size_t i = first_of(o, id);
	return i < o->n_writes && o->writes[i].id == id && o->writes[i].retires;
}

static void cover(struct qko_cluster *c, uint64_t sector, unsigned first, unsigned end)
{
	struct qko_mask *mask = NULL;
	for (uint32_t i = 0; i < c->n_masks; i++)
		if (c->masks[i].sector == sector)
			mask = &c->masks[i];
	if (mask == NULL) {
		c->masks = qko_need(realloc(c->masks, (c->n_masks + 1) * sizeof(*c->masks)));
		mask = &c->masks[c->n_masks++];
		memset(mask, 0, sizeof(*mask));
		mask->sector = sector;
	}
	for (unsigned i = first; i < end; i++)
		mask->bits[i / 8] |= (uint8_t)(1u << (i % 8));
}

void qko_peek(const struct qkt_order *o, void *buf, uint64_t len, uint64_t off)
{
	struct qcow_store *from = qko_is_data(off) ? o->data_peek : o->peek;
	uint64_t at = qko_is_data(off) ? off - QKO_DATA : off;
	if (qcow_store_read_padded(from, buf, (size_t)len, at, NULL) != QCOW_OK)
		abort();
}

/* Was it zeros, and durable? Asked before the first write that is not durable. */
static void note_blank(struct qkt_order *o, struct qko_cluster *c, uint64_t sector)
{
	static const uint8_t zeros[QKO_SECTOR];
	uint8_t b[QKO_SECTOR];
	uint64_t at = c->index * o->cs + sector * QKO_SECTOR;
	qko_peek(o, b, sizeof(b), at);
	if (c->blank == NULL)
		c->blank = qko_need(calloc(1, (size_t)(o->cs / QKO_SECTOR + 7) / 8));
	if (memcmp(b, zeros, sizeof(b)) == 0)
		c->blank[sector / 8] |= (uint8_t)(1u << (sector % 8));
	else
		c->blank[sector / 8] &= (uint8_t) ~(1u << (sector % 8));
}

/* Bytes [off, off + len) of a cluster are not durable. */
static void track(
	struct qkt_order *o, struct qko_cluster *c, uint64_t id, uint64_t off, uint64_t len)
{
	if (c->pending == NULL)
		c->pending = qko_need(calloc((size_t)(o->cs / QKO_SECTOR), sizeof(*c->pending)));
	uint64_t before = c->pending[off / QKO_SECTOR];
	for (uint64_t s = off / QKO_SECTOR; s * QKO_SECTOR < off + len; s++) {
		uint64_t first = s * QKO_SECTOR < off ? off % QKO_SECTOR : 0;
		uint64_t end = off + len - s * QKO_SECTOR;
		end = end < QKO_SECTOR ? end : QKO_SECTOR;
		if (o->opt.threads && c->pending[s] == 0)
			note_blank(o, c, s);
		c->pending[s] = id;
		if (first != 0 || end != QKO_SECTOR)
			cover(c, s, (unsigned)first, (unsigned)end);
	}
	remember(o, id, c->index * o->cs + off, len, false);
	o->writes[o->n_writes - 1].before = before;
}

static void retire_tracked(struct qkt_order *o, struct qko_cluster *c, const struct qko_write *w)
{
	uint64_t off = w->off % o->cs;
	if (c->pending == NULL)
		return;
	for (uint64_t s = off / QKO_SECTOR; s * QKO_SECTOR < off + w->len; s++) {
		if (c->pending[s] <= w->id)
			c->pending[s] = 0;
		if (s * QKO_SECTOR < off || (s + 1) * QKO_SECTOR > off + w->len || w->id < c->life)
			continue;
		if (c->alive == NULL)
			c->alive = qko_need(calloc(1, (size_t)(o->cs / QKO_SECTOR + 7) / 8));
		c->alive[s / 8] |= (uint8_t)(1u << (s % 8));
	}
}

/* Everything in one of the stores that returned before the sequence number `begin` is durable. */
static void retire(struct qkt_order *o, bool of_data, uint64_t begin)
{
	size_t n = o->n_writes, kept = 0;
	uint64_t last_size = 0;
	for (size_t i = 0; i < n; i++) {
		struct qko_write *w = &o->writes[i];
		w->retires = w->done != 0 && w->done < begin && qko_is_data(w->off) == of_data;
		if (w->retires && w->is_size) {
			o->base_size = w->off;
			last_size = w->id;
		}
	}
	for (size_t i = 0; i < n; i++) {
		const struct qko_write *w = &o->writes[i];
		if (!w->retires || w->is_size)
			continue;
		struct qko_cluster *c = qko_find(o, w->off / o->cs);
		if (c != NULL && c->table != NULL)
			qko_table_retire(o, c->table, w->off, w->len);
		else if (c != NULL)
			retire_tracked(o, c, w);
	}
	qko_bitmaps_retire(o);
	for (size_t i = 0; i < n; i++) {
		bool gone = o->writes[i].retires ||
			    (o->writes[i].is_size && o->writes[i].id < last_size);
		if (!gone)
			o->writes[kept++] = o->writes[i];
	}
	o->n_writes = kept;
}

/* ---- judging a change ---- */

/* A write within one cluster; `bytes` NULL: zeros. */
static void judge_piece(
	struct qkt_order *o, uint64_t id, uint64_t off, uint64_t len, const uint8_t *bytes)
{
	struct qko_cluster *c = qko_get(o, off / o->cs);
	if (c->table != NULL) {
		remember(o, id, off, len, false);
		if (bytes != NULL) {
			qko_table_write(o, c->table, id, off, len, bytes);
			return;
		}
		uint8_t *zeros = qko_need(calloc(1, (size_t)len));
		qko_table_write(o, c->table, id, off, len, zeros);
		free(zeros);
		return;
	}
	if (c->is_visible && qko_is_untracked(o) && !qko_is_behind(o, c, off % o->cs))
		qko_judge_tracked(o, off);
	if (c->n_static != 0 && !qko_bitmaps_write(o, id, off, len, bytes))
		qko_report(o, QKT_O4,
			"cluster 0x%" PRIx64 " of a bitmap or the encryption header is overwritten",
			c->index * o->cs);
	else if (c->n_refs != 0)
		qko_judge_overwrite(o, c, off % o->cs, len);
	if (!c->is_visible)
		track(o, c, id, off % o->cs, len);
}

uint64_t qko_judge_write(
	struct qkt_order *o, uint64_t off, uint64_t len, const uint8_t *bytes, bool is_punch)
{
	uint64_t id = ++o->seq;
	if (!qko_is_data(off) && off + len > o->size) {
		o->size = off + len;
		remember(o, id, o->size, 0, true);
	}
	for (uint64_t done = 0; o->has_geometry && done < len;) {
		uint64_t at = off + done, n = o->cs - at % o->cs;
		n = n < len - done ? n : len - done;
		const struct qko_cluster *c = qko_find(o, at / o->cs);
		/* who reads a raw data file alone has to find the zeros in it */
		bool may_punch = o->is_raw_data && qko_is_data(at);
		if (is_punch && !may_punch && c != NULL && qko_is_named(c) && !qko_is_zero(o, c))
			qko_report(o, QKT_O5,
				"cluster 0x%" PRIx64
				" is punched while a pointer to it may be there",
				c->index * o->cs);
		judge_piece(o, id, at, n, bytes != NULL ? bytes + done : NULL);
		done += n;
	}
	return id;
}

uint8_t *qko_gather(const struct iovec *iov, int n_iov, uint64_t *len)
{
	uint64_t at = 0;
	*len = 0;
	for (int i = 0; i < n_iov; i++)
		*len += iov[i].iov_len;
	uint8_t *bytes = qko_need(malloc((size_t)*len));
	for (int i = 0; i < n_iov; at += iov[i++].iov_len)
		if (iov[i].iov_len != 0)
			memcpy(bytes + at, iov[i].iov_base, iov[i].iov_len);
	return bytes;
}

/* The bytes of its first sector that a failed write did not touch are as durable as they were. */
static void keep_head(const struct qkt_order *o, struct qko_cluster *c, const struct qko_write *w)
{
	uint64_t s = w->off % o->cs / QKO_SECTOR;
	if (w->off % QKO_SECTOR != 0 && c->pending != NULL && c->pending[s] == w->id)
		c->pending[s] = w->before;
}

/* A failed write may have done all, a part or nothing: what is read now is one more content. */
static void look_again(struct qkt_order *o, uint64_t id)
{
	size_t first = first_of(o, id), n = 0;
	while (first + n < o->n_writes && o->writes[first + n].id == id)
		n++;
	for (size_t i = first; i < first + n; i++) {
		const struct qko_write w = o->writes[i];
		struct qko_cluster *c = w.is_size || !o->has_geometry ? NULL
								      : qko_find(o, w.off / o->cs);
		if (c != NULL && c->table == NULL)
			keep_head(o, c, &w);
		if (c == NULL || c->table == NULL)
			continue;
		uint8_t *bytes = qko_need(malloc((size_t)w.len));
		if (qcow_store_read_padded(o->peek, bytes, (size_t)w.len, w.off, NULL) != QCOW_OK)
			abort();
		o->is_looking = true;
		qko_table_write(o, c->table, id, w.off, w.len, bytes);
		o->is_looking = false;
		free(bytes);
	}
	if (qcow_store_size(o->peek, &o->size, NULL) != QCOW_OK)
		abort();
}

void qko_finish(struct qkt_order *o, uint64_t id, enum qcow_status st)
{
	(void)pthread_mutex_lock(&o->lock);
	o->seq++;
	set_done(o, id, st == QCOW_OK ? o->seq : LOST);
	if (st != QCOW_OK)
		look_again(o, id);
	(void)pthread_mutex_unlock(&o->lock);
}

void qko_flushed(struct qkt_order *o, bool of_data, uint64_t begin, enum qcow_status st)
{
	(void)pthread_mutex_lock(&o->lock);
	if (st == QCOW_OK) {
		retire(o, of_data, begin);
		if (!of_data && !o->has_geometry)
			qko_load(o);
	} else {
		/* the kernel may have dropped the pages: no later flush brings them back */
		for (size_t i = 0; i < o->n_writes; i++)
			if (o->writes[i].done != 0 && qko_is_data(o->writes[i].off) == of_data)
				o->writes[i].done = LOST;
	}
	(void)pthread_mutex_unlock(&o->lock);
}

/* ---- the store ---- */

static enum qcow_status order_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	return qcow_store_readv(o->inner, iov, n_iov, off, err);
}

static enum qcow_status order_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	uint64_t len = 0;
	uint8_t *bytes = qko_gather(iov, n_iov, &len);
	(void)pthread_mutex_lock(&o->lock);
	uint64_t id = qko_judge_write(o, off, len, bytes, false);
	(void)pthread_mutex_unlock(&o->lock);
	free(bytes);
	enum qcow_status st = qcow_store_writev(o->inner, iov, n_iov, off, err);
	qko_finish(o, id, st);
	return st;
}

static enum qcow_status order_flush(void *ctx, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	(void)pthread_mutex_lock(&o->lock);
	uint64_t begin = ++o->seq;
	(void)pthread_mutex_unlock(&o->lock);
	enum qcow_status st = qcow_store_flush(o->inner, err);
	qko_flushed(o, false, begin, st);
	return st;
}

static enum qcow_status order_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	return qcow_store_size(o->inner, size_bytes, err);
}

static enum qcow_status order_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	(void)pthread_mutex_lock(&o->lock);
	uint64_t id = ++o->seq;
	if (o->has_geometry)
		qko_judge_truncate(o, size_bytes);
	o->size = size_bytes;
	remember(o, id, size_bytes, 0, true);
	(void)pthread_mutex_unlock(&o->lock);
	enum qcow_status st = qcow_store_truncate(o->inner, size_bytes, err);
	qko_finish(o, id, st);
	return st;
}

static enum qcow_status order_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	(void)pthread_mutex_lock(&o->lock);
	uint64_t id = qko_judge_write(o, off, len, NULL, false);
	(void)pthread_mutex_unlock(&o->lock);
	enum qcow_status st = qcow_store_zero(o->inner, off, len, flags, err);
	qko_finish(o, id, st);
	return st;
}

static enum qcow_status order_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	(void)pthread_mutex_lock(&o->lock);
	uint64_t id = qko_judge_write(o, off, len, NULL, true);
	(void)pthread_mutex_unlock(&o->lock);
	enum qcow_status st = qcow_store_punch(o->inner, off, len, err);
	qko_finish(o, id, st);
	return st;
}

static enum qcow_status order_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	struct qkt_order *o = ctx;
	return qcow_store_extents(o->inner, off, len, out, err);
}

static void order_caps(void *ctx, struct qcow_store_caps *out)
{
	struct qkt_order *o = ctx;
	qcow_store_caps(o->inner, out);
	out->request_align = 1;
	out->memory_align = 1;
	out->can_clone = false;
}

static void order_close(void *ctx)
{
	struct qkt_order *o = ctx;
	qcow_store_close(o->inner);
	o->inner = NULL;
	o->peek = NULL;
}

static const struct qcow_store_ops order_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "order",
	.preadv = order_preadv,
	.pwritev = order_pwritev,
	.flush = order_flush,
	.size = order_size,
	.truncate = order_truncate,
	.zero = order_zero,
	.punch = order_punch,
	.extents = order_extents,
	.caps = order_caps,
	.close = order_close,
};

struct qcow_store *qkt_order_wrap(
	struct qkt_order *o, struct qcow_store *inner, struct qcow_store *peek)
{
	struct qcow_store *store = NULL;
	qko_unload(o);
	o->n_writes = 0;
	o->inner = inner;
	o->peek = peek;
	if (qcow_store_size(peek, &o->size, NULL) != QCOW_OK ||
		qcow_store_new(&order_ops, o, &store, NULL) != QCOW_OK ||
		qcow_store_set_name(store, qcow_store_name(inner), NULL) != QCOW_OK) {
		(void)fprintf(stderr, "order checker: cannot wrap the store\n");
		abort();
	}
	o->base_size = o->size;
	qko_load(o);
	return store;
}

struct qcow_store *qkt_guard(
	struct qkt_fault *f, struct qkt_order *o, struct qcow_store *base, unsigned id)
{
	return qkt_order_wrap(o, qkt_fault_wrap(f, base, id), base);
}
