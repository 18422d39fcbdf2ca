/* SPDX-License-Identifier: MIT */
/*
 * bitmap_write: see bitmap_write.h.
 *
 *	stable table:  | D1 | 0  | D2 | ones |        its data stays
 *	fresh table:   | D1 | F1 | F2 | ones |        F2 = D2 | bits; F1, F2 are written over by the next call
 *
 * Invariants: B1 a data cluster is written over only where the table is fresh and the stable one does not have it at the
 * same place; B2 bits past the end of the disk are clear in every cluster that is written.
 * One thread.
 */
#include "engine/bitmap_write.h"

#include <inttypes.h>
#include <string.h>

#include "base/bits.h"
#include "base/bytes.h"
#include "base/mem.h"
#include "engine/image.h"
#include "engine/log.h"
#include "engine/rw.h"
#include "format/bitmapext.h"

#define WINDOW_ENTRIES UINT64_C(8192)
#define WINDOW_BYTES   (WINDOW_ENTRIES * 8)
#define PART_BYTES     QK_KIB(64)

enum qcow_status qk_bitmap_writer_init(struct qk_bitmap_writer *w, struct qcow_image *image,
	struct qk_fresh *fresh, struct qcow_error *err)
{
	size_t cluster_size = (size_t)image->geometry.cluster_size;
	*w = (struct qk_bitmap_writer){.image = image, .fresh = fresh};
	w->now = qk_malloc(WINDOW_BYTES, 1);
	w->stable = qk_malloc(WINDOW_BYTES, 1);
	w->data = qk_malloc(cluster_size, 1);
	w->more = qk_malloc(cluster_size, 1);
	if (w->now == NULL || w->stable == NULL || w->data == NULL || w->more == NULL)
		return QK_FAIL_NOMEM(err);
	return QCOW_OK;
}

void qk_bitmap_writer_release(struct qk_bitmap_writer *w)
{
	free(w->now);
	free(w->stable);
	free(w->data);
	free(w->more);
	*w = (struct qk_bitmap_writer){0};
}

static enum qcow_status check_cancelled(const struct qk_bitmap_writer *w, struct qcow_error *err)
{
	const struct qcow_progress *p = w->progress;
	if (p != NULL && p->cancelled != NULL && p->cancelled(p->ctx))
		return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
	return QCOW_OK;
}

static uint64_t table_clusters(const struct qcow_image *image, uint32_t n_entries)
{
	return qk_div_up((uint64_t)n_entries * 8, image->geometry.cluster_size);
}

static bool is_fresh(const struct qk_bitmap_target *t)
{
	return t->table_off != 0 && t->table_off != t->stable_off;
}

/* Entries [at, at + n) of the table, or zeros where there is none. */
static enum qcow_status load_window(const struct qk_bitmap_writer *w, uint64_t table_off,
	uint64_t at, uint64_t n, uint8_t *window, struct qcow_error *err)
{
	memset(window, 0, (size_t)n * 8);
	if (table_off == 0)
		return QCOW_OK;
	return qcow_store_read(w->image->store, window, (size_t)n * 8, table_off + at * 8, err);
}

/* ---- one data cluster ---- */

static enum qcow_status decode(const struct qk_bitmap_writer *w, uint64_t raw, uint64_t at,
	struct qk_bitmap_table_entry *out, struct qcow_error *err)
{
	uint64_t file_size = qk_space_file_size(w->image->rw->space);
	*out = qk_bitmap_table_decode(&w->image->geometry, raw);
	if (out->finding == 0 && out->off.v >= file_size)
		out->finding = QCOW_FINDING_BITMAP_TABLE;
	if (out->finding == 0)
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, out->finding, at, QCOW_NO_OFFSET,
		"the entry of a bitmap table at %" PRIu64 ", 0x%" PRIx64
		", names no cluster of the file (%" PRIu64 " bytes)",
		at, raw, file_size);
}

/* w->data: what the cluster holds, without bits past the end. */
static enum qcow_status load_data(const struct qk_bitmap_writer *w,
	const struct qk_bitmap_table_entry *e, uint64_t n_bits, struct qcow_error *err)
{
	size_t bytes = (size_t)w->image->geometry.cluster_size;
	memset(w->data, 0, bytes);
	if (e->off.v != 0)
		QK_TRY(qcow_store_read_padded(w->image->store, w->data, bytes, e->off.v, err));
	qk_bits_clear(w->data, n_bits, bytes * 8);
	return QCOW_OK;
}

/* Store w->data, and what the entry becomes. `own` is a cluster that may be written over, or 0. */
static enum qcow_status store_data(
	const struct qk_bitmap_writer *w, uint64_t own, uint8_t *entry, struct qcow_error *err)
{
	uint64_t cluster_size = w->image->geometry.cluster_size, off = own;
	if (qk_bits_all(w->data, (size_t)cluster_size, 0xff)) {
		if (own != 0)
			QK_TRY(qk_fresh_spare(w->fresh, own, 1, err));
		qk_store64(entry, qk_bitmap_table_encode((qk_hoff){0}, true));
		return QCOW_OK;
	}
	if (own == 0)
		QK_TRY(qk_fresh_take(w->fresh, 1, &off, err));
	QK_TRY(qk_fresh_write(w->fresh, w->data, cluster_size, off, err));
	qk_store64(entry, qk_bitmap_table_encode((qk_hoff){off}, false));
	return QCOW_OK;
}

/* Entry `idx`, at `k` of the windows. */
static enum qcow_status merge_entry(const struct qk_bitmap_writer *w,
	const struct qk_bitmap_target *t, const struct qk_bitmap_bits *bits, uint64_t idx,
	uint64_t k, struct qcow_error *err)
{
	uint8_t *entry = w->now + k * 8;
	size_t bytes = (size_t)w->image->geometry.cluster_size;
	uint64_t first = idx * bytes * 8;
	uint64_t n_bits = qk_min(bytes * 8, t->n_bits - first);
	struct qk_bitmap_table_entry e;
	QK_TRY(decode(w, qk_load64(entry), t->table_off + idx * 8, &e, err));
	if (e.all_ones)
		return QCOW_OK;
	memset(w->more, 0, bytes);
	QK_TRY(bits->add(bits->ctx, first, n_bits, w->more, err));
	QK_TRY(load_data(w, &e, n_bits, err));
	if (!qk_bits_adds(w->data, w->more, bytes))
		return QCOW_OK;
	qk_bits_or(w->data, w->more, bytes);
	bool is_own = is_fresh(t) && e.off.v != 0 &&
		      qk_load64(entry) != qk_load64(w->stable + k * 8);
	return store_data(w, is_own ? e.off.v : 0, entry, err);
}

/* ---- a table ---- */

enum qcow_status qk_bitmap_write(struct qk_bitmap_writer *w, struct qk_bitmap_target *t,
	const struct qk_bitmap_bits *bits, struct qcow_error *err)
{
	uint64_t per_cluster = w->image->geometry.cluster_size * 8, bit = 0, to = t->table_off;
	if (!is_fresh(t))
		QK_TRY(qk_fresh_take(
			w->fresh, table_clusters(w->image, t->table_entries), &to, err));
	QK_TRY(bits->skip(bits->ctx, 0, &bit, err));
	for (uint64_t at = 0; at < t->table_entries; at += WINDOW_ENTRIES) {
		uint64_t n = qk_min(WINDOW_ENTRIES, t->table_entries - at);
		if (is_fresh(t) && bit / per_cluster >= at + n)
			continue;
		QK_TRY(load_window(w, t->table_off, at, n, w->now, err));
		if (is_fresh(t))
			QK_TRY(load_window(w, t->stable_off, at, n, w->stable, err));
		while (bit < t->n_bits && bit / per_cluster < at + n) {
			uint64_t idx = bit / per_cluster;
			QK_TRY(check_cancelled(w, err));
			QK_TRY(merge_entry(w, t, bits, idx, idx - at, err));
			QK_TRY(bits->skip(bits->ctx, (idx + 1) * per_cluster, &bit, err));
		}
		QK_TRY(qk_fresh_write(w->fresh, w->now, n * 8, to + at * 8, err));
	}
	t->table_off = to;
	return QCOW_OK;
}

enum qcow_status qk_bitmap_write_clear(
	struct qk_bitmap_writer *w, struct qk_bitmap_target *t, struct qcow_error *err)
{
	uint64_t off = 0;
	QK_TRY(qk_fresh_take(w->fresh, table_clusters(w->image, t->table_entries), &off, err));
	memset(w->now, 0, WINDOW_BYTES);
	for (uint64_t at = 0; at < t->table_entries; at += WINDOW_ENTRIES) {
		uint64_t n = qk_min(WINDOW_ENTRIES, t->table_entries - at);
		QK_TRY(qk_fresh_write(w->fresh, w->now, n * 8, off + at * 8, err));
	}
	t->table_off = off;
	return QCOW_OK;
}

enum qcow_status qk_bitmap_write_undo(
	struct qk_bitmap_writer *w, struct qk_bitmap_target *t, struct qcow_error *err)
{
	if (!is_fresh(t))
		return QCOW_OK;
	for (uint64_t at = 0; at < t->table_entries; at += WINDOW_ENTRIES) {
		uint64_t n = qk_min(WINDOW_ENTRIES, t->table_entries - at);
		QK_TRY(load_window(w, t->table_off, at, n, w->now, err));
		QK_TRY(load_window(w, t->stable_off, at, n, w->stable, err));
		for (uint64_t i = 0; i < n * 8; i += 8) {
			uint64_t raw = qk_load64(w->now + i);
			uint64_t off = qk_bitmap_table_decode(&w->image->geometry, raw).off.v;
			if (off != 0 && raw != qk_load64(w->stable + i))
				QK_TRY(qk_fresh_spare(w->fresh, off, 1, err));
		}
	}
	QK_TRY(qk_fresh_spare(
		w->fresh, t->table_off, table_clusters(w->image, t->table_entries), err));
	t->table_off = t->stable_off;
	return QCOW_OK;
}

/* ---- bits of another bitmap ---- */

enum qcow_status qk_bitmap_copy_init(struct qk_bitmap_copy *copy, struct qcow_bitmap_reader *reader,
	unsigned granularity_bits, struct qcow_error *err)
{
	*copy = (struct qk_bitmap_copy){.reader = reader, .granularity_bits = granularity_bits};
	copy->part = qk_malloc(PART_BYTES, 1);
	return copy->part != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

void qk_bitmap_copy_release(struct qk_bitmap_copy *copy)
{
	free(copy->part);
	*copy = (struct qk_bitmap_copy){0};
}

/* How many bits of the target one bit of the source stands for, as a power of 2. */
static int get_shift(const struct qk_bitmap_copy *c)
{
	return (int)qk_bitmap_reader_granularity(c->reader) - (int)c->granularity_bits;
}

/* Scale a bit's number; past the end of any bitmap stays there. */
static uint64_t scale_up(uint64_t bit, unsigned shift)
{
	return bit > (UINT64_MAX >> shift) ? UINT64_MAX : bit << shift;
}

static enum qcow_status skip_copy(void *ctx, uint64_t bit, uint64_t *next, struct qcow_error *err)
{
	const struct qk_bitmap_copy *c = ctx;
	int shift = get_shift(c);
	unsigned by = (unsigned)(shift > 0 ? shift : -shift);
	uint64_t from = shift > 0 ? bit >> by : scale_up(bit, by), to = 0;
	QK_TRY(qk_bitmap_reader_skip(c->reader, from, &to, err));
	/* a source of several bits for one may go on within it */
	*next = qk_max(bit, shift > 0 ? scale_up(to, by) : to >> by);
	return QCOW_OK;
}

static enum qcow_status add_copy(
	void *ctx, uint64_t first, uint64_t n, uint8_t *p, struct qcow_error *err)
{
	const struct qk_bitmap_copy *c = ctx;
	const struct qk_bits_part to = {p, first, n};
	int shift = get_shift(c);
	unsigned by = (unsigned)(shift > 0 ? shift : -shift);
	if (shift == 0)
		return qk_bitmap_reader_or(c->reader, first, n, p, err);
	uint64_t at = shift > 0 ? first >> by : first << by;
	uint64_t end = shift > 0 ? ((first + n - 1) >> by) + 1 : (first + n) << by;
	for (at = qk_align_down(at, 8); at < end; at += PART_BYTES * 8) {
		uint64_t next = 0;
		QK_TRY(qk_bitmap_reader_skip(c->reader, at, &next, err));
		at = qk_align_down(next, 8);
		if (at >= end)
			break;
		uint64_t bits = qk_min(end - at, PART_BYTES * 8);
		memset(c->part, 0, (size_t)qk_div_up(bits, 8));
		QK_TRY(qk_bitmap_reader_or(c->reader, at, qk_div_up(bits, 8) * 8, c->part, err));
		qk_bits_scale(&to, c->part, at, bits, shift);
	}
	return QCOW_OK;
}

struct qk_bitmap_bits qk_bitmap_copy_bits(struct qk_bitmap_copy *copy)
{
	return (struct qk_bitmap_bits){skip_copy, add_copy, copy};
}

/* ---- what was replaced ---- */

/* A reference that cannot be taken away is a leak. */
static void drop(struct qcow_image *image, uint64_t off, uint64_t n)
{
	if (n == 0 || qk_space_drop(image->rw->space, off, n, NULL) == QCOW_OK)
		return;
	qk_log(image, QCOW_LOG_WARNING, 0, "clusters of a bitmap at %" PRIu64 " are leaked", off);
}

/* A window of a table that may not be there; false: it cannot be read. */
static bool load_dropped(
	const struct qcow_image *image, uint64_t off, uint64_t at, size_t bytes, uint8_t *window)
{
	memset(window, 0, bytes);
	return off == 0 ||
	       qcow_store_read(image->store, window, bytes, off + at * 8, NULL) == QCOW_OK;
}

void qk_bitmap_drop(
	struct qcow_image *image, uint64_t old_off, uint64_t now_off, uint32_t table_entries)
{
	enum {
		ENTRIES = 512
	};
	uint8_t old[ENTRIES * 8], now[ENTRIES * 8];
	uint64_t file_size = qk_space_file_size(image->rw->space);
	for (uint64_t at = 0; at < table_entries; at += ENTRIES) {
		size_t bytes = (size_t)qk_min(ENTRIES, table_entries - at) * 8;
		if (!load_dropped(image, old_off, at, bytes, old) ||
			!load_dropped(image, now_off, at, bytes, now)) {
			qk_log(image, QCOW_LOG_WARNING, 0,
				"the bitmap table at %" PRIu64 " and its data are leaked", old_off);
			return;
		}
		for (size_t i = 0; i < bytes; i += 8) {
			struct qk_bitmap_table_entry e = qk_bitmap_table_decode(
				&image->geometry, qk_load64(old + i));
			if (e.off.v == 0 || qk_load64(old + i) == qk_load64(now + i))
				continue;
			if (e.finding == 0 && e.off.v < file_size)
				drop(image, e.off.v, 1);
		}
	}
	drop(image, old_off, table_clusters(image, table_entries));
}

void qk_bitmap_drop_directory(struct qcow_image *image)
{
	const struct qk_bitmaps_ext *ext = &image->ext.bitmaps;
	if (image->bitmaps.n != 0)
		drop(image, ext->directory_off,
			qk_div_up(ext->directory_size, image->geometry.cluster_size));
}
