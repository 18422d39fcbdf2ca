/* SPDX-License-Identifier: MIT */
/*
 * track_store: tracked bitmaps go back to the image when it is closed.
 *
 *	data clusters with new bits, whole tables of bitmaps that have any, the whole directory, refcounts
 *	  || one write of 8 bytes of the bitmaps extension ||
 *	one reference less for the old directory, old tables, data clusters that were replaced
 *
 * A bitmap that cannot be stored (no space, damaged data) keeps its old table and stays in use; the others are stored.
 * Until the switch nothing names what was taken, and it is given back. One thread, behind everybody who wrote.
 */
#include "engine/track.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/log.h"
#include "engine/publish.h"
#include "engine/space.h"
#include "engine/table.h"
#include "format/bitmapext.h"

#define WINDOW_ENTRIES 512U
#define EXT_DIRECTORY  16U /* offset of the directory in the extension's data */
#define ENTRY_FLAGS    12U

/* Clusters taken and not named yet. */
struct runs {
	struct qk_space_run *v;
	uint32_t n, room;
};

/* What becomes of one bitmap. */
struct fate {
	bool is_stored; /* no longer in use */
	bool is_moved; /* its table is at table_off */
	uint64_t table_off;
};

struct storing {
	struct qcow_image *image;
	struct qk_track *track;
	struct fate *fates;
	struct runs runs; /* of all bitmaps stored so far, and the directory */
	uint8_t *data; /* one cluster */
	uint64_t near;
	uint64_t directory_off;
};

/* ---- clusters ---- */

static enum qcow_status take(struct storing *s, uint64_t n, uint64_t *off, struct qcow_error *err)
{
	const struct qk_space_want want = {
		.n = n, .min_n = n, .near = s->near, .kind = QK_SPACE_BITMAPS};
	struct qk_space_run run = {0};
	struct runs *runs = &s->runs;
	if (runs->n == runs->room) {
		uint32_t room = runs->room == 0 ? 64 : runs->room * 2;
		struct qk_space_run *v = qk_realloc(runs->v, room, sizeof(*v));
		if (v == NULL)
			return QK_FAIL_NOMEM(err);
		runs->v = v;
		runs->room = room;
	}
	QK_TRY(qk_table_take(s->image, &want, &run, err));
	struct qk_space_run *last = runs->n != 0 ? &runs->v[runs->n - 1] : NULL;
	s->near = run.off + run.n * s->image->geometry.cluster_size;
	*off = run.off;
	if (last != NULL && last->off + last->n * s->image->geometry.cluster_size == run.off)
		last->n += run.n;
	else
		runs->v[runs->n++] = run;
	return QCOW_OK;
}

/* Give back what was taken since there were `n` runs, the last of them with `n_last` clusters. */
static void give_back(struct storing *s, uint32_t n, uint64_t n_last)
{
	struct qk_space *space = s->image->rw->space;
	uint64_t cluster_size = s->image->geometry.cluster_size;
	while (s->runs.n > n) {
		const struct qk_space_run *run = &s->runs.v[--s->runs.n];
		qk_space_give_back(space, run->off, run->n);
	}
	if (n == 0 || s->runs.v[n - 1].n == n_last)
		return;
	struct qk_space_run *run = &s->runs.v[n - 1];
	qk_space_give_back(space, run->off + n_last * cluster_size, run->n - n_last);
	run->n = n_last;
}

static enum qcow_status write_fresh(
	struct storing *s, const uint8_t *bytes, uint64_t len, uint64_t off, struct qcow_error *err)
{
	QK_TRY(qk_space_check_overlap(s->image->rw->space, QK_SPACE_BITMAPS, off, len, err));
	return qcow_store_write(s->image->store, bytes, (size_t)len, off, err);
}

/* ---- one bitmap ---- */

/* The words of the bitmap that data cluster `idx` holds. */
struct piece {
	const _Atomic uint64_t *words;
	uint64_t n;
	bool has_new;
	bool is_full; /* a whole cluster, and all of it new */
};

static struct piece get_piece(
	const struct storing *s, const struct qk_track_bitmap *b, uint64_t idx)
{
	uint64_t per_cluster = s->image->geometry.cluster_size / 8;
	uint64_t n_words = qk_div_up(b->n_bits, 64);
	uint64_t first = idx * per_cluster;
	struct piece p = {.words = b->words + qk_min(first, n_words)};
	p.n = first < n_words ? qk_min(per_cluster, n_words - first) : 0;
	p.is_full = p.n == per_cluster;
	for (uint64_t i = 0; i < p.n; i++) {
		uint64_t word = atomic_load_explicit(&p.words[i], memory_order_relaxed);
		p.has_new = p.has_new || word != 0;
		p.is_full = p.is_full && word == UINT64_MAX;
	}
	return p;
}

/* The stored bits and the new ones to s->data. */
static enum qcow_status merge(
	struct storing *s, const struct piece *p, qk_hoff old, struct qcow_error *err)
{
	size_t bytes = (size_t)s->image->geometry.cluster_size;
	memset(s->data, 0, bytes);
	if (old.v != 0)
		QK_TRY(qcow_store_read_padded(s->image->store, s->data, bytes, old.v, err));
	for (uint64_t i = 0; i < p->n; i++) {
		uint64_t word = atomic_load_explicit(&p->words[i], memory_order_relaxed);
		for (unsigned k = 0; k < 8; k++)
			s->data[i * 8 + k] |= (uint8_t)(word >> (8 * k));
	}
	return QCOW_OK;
}

/* What entry `idx` becomes. */
static enum qcow_status store_entry(struct storing *s, const struct qk_track_bitmap *b,
	uint64_t idx, uint8_t *entry, struct qcow_error *err)
{
	struct piece p = get_piece(s, b, idx);
	uint64_t raw = qk_load64(entry), off = 0;
	struct qk_bitmap_table_entry e = qk_bitmap_table_decode(&s->image->geometry, raw);
	if (e.finding == 0 && e.off.v >= qk_space_file_size(s->image->rw->space))
		e.finding = QCOW_FINDING_BITMAP_TABLE;
	if (e.finding != 0)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, e.finding, b->table_off + idx * 8,
			QCOW_NO_OFFSET, "entry %" PRIu64 " of a bitmap table is 0x%" PRIx64, idx,
			raw);
	if (!p.has_new || (e.off.v == 0 && e.all_ones))
		return QCOW_OK;
	if (p.is_full) {
		qk_store64(entry, qk_bitmap_table_encode((qk_hoff){0}, true));
		return QCOW_OK;
	}
	QK_TRY(merge(s, &p, e.off, err));
	QK_TRY(take(s, 1, &off, err));
	QK_TRY(write_fresh(s, s->data, s->image->geometry.cluster_size, off, err));
	qk_store64(entry, qk_bitmap_table_encode((qk_hoff){off}, false));
	return QCOW_OK;
}

static enum qcow_status store_table(struct storing *s, const struct qk_track_bitmap *b,
	struct fate *fate, struct qcow_error *err)
{
	uint8_t window[WINDOW_ENTRIES * 8];
	uint64_t clusters = qk_div_up(
		(uint64_t)b->table_entries * 8, s->image->geometry.cluster_size);
	QK_TRY(take(s, clusters, &fate->table_off, err));
	for (uint64_t at = 0; at < b->table_entries; at += WINDOW_ENTRIES) {
		uint64_t n = qk_min(WINDOW_ENTRIES, b->table_entries - at);
		QK_TRY(qcow_store_read(
			s->image->store, window, (size_t)n * 8, b->table_off + at * 8, err));
		for (uint64_t i = 0; i < n; i++)
			QK_TRY(store_entry(s, b, at + i, window + i * 8, err));
		QK_TRY(write_fresh(s, window, n * 8, fate->table_off + at * 8, err));
	}
	fate->is_moved = true;
	return QCOW_OK;
}

static bool has_new(const struct qk_track_bitmap *b)
{
	uint64_t n = qk_div_up(b->n_bits, 64);
	for (uint64_t i = 0; i < n; i++)
		if (atomic_load_explicit(&b->words[i], memory_order_relaxed) != 0)
			return true;
	return false;
}

static void store_bitmap(struct storing *s, uint32_t i)
{
	const struct qk_track_bitmap *b = &s->track->bitmaps[i];
	struct fate *fate = &s->fates[i];
	struct qcow_error err = QCOW_ERROR_INIT;
	uint32_t n = s->runs.n;
	uint64_t n_last = n != 0 ? s->runs.v[n - 1].n : 0;
	enum qcow_status status = has_new(b) && b->table_entries != 0
					  ? store_table(s, b, fate, &err)
					  : QCOW_OK;
	fate->is_stored = status == QCOW_OK;
	if (fate->is_stored)
		return;
	give_back(s, n, n_last);
	qk_log(s->image, QCOW_LOG_WARNING, QCOW_FINDING_BITMAP_INCONSISTENT,
		"bitmap %" PRIu32 " could not be stored and stays in use: %s", b->index,
		err.message);
}

/* ---- the directory, and the switch ---- */

static enum qcow_status write_directory(struct storing *s, struct qcow_error *err)
{
	const struct qcow_image *image = s->image;
	uint64_t bytes = image->ext.bitmaps.directory_size;
	uint8_t *directory QK_AUTO_FREE = qk_malloc(bytes, 1);
	if (directory == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qcow_store_read(image->store, directory, (size_t)bytes, image->bitmaps.off, err));
	for (uint32_t i = 0; i < s->track->n; i++) {
		const struct qk_track_bitmap *b = &s->track->bitmaps[i];
		uint8_t *entry = directory + image->bitmaps.starts[b->index];
		if (s->fates[i].is_stored)
			qk_store32(entry + ENTRY_FLAGS, b->flags);
		if (s->fates[i].is_moved)
			qk_store64(entry, s->fates[i].table_off);
	}
	QK_TRY(take(s, qk_div_up(bytes, image->geometry.cluster_size), &s->directory_off, err));
	return write_fresh(s, directory, bytes, s->directory_off, err);
}

/* Where the extension keeps the directory's offset; eight bytes of one sector, for all of it is aligned to 8. */
static uint64_t find_field(const struct qcow_image *image)
{
	struct qk_ext ext;
	for (size_t at = 0; qk_ext_next(&image->ext, &at, &ext);)
		if (ext.type == QK_EXT_BITMAPS)
			return (uint64_t)(ext.data.p - image->cluster0) + EXT_DIRECTORY;
	return 0;
}

static enum qcow_status switch_directory(void *ctx, struct qcow_error *err)
{
	const struct storing *s = ctx;
	struct qk_space *space = s->image->rw->space;
	uint8_t bytes[8];
	uint64_t at = find_field(s->image);
	QK_ASSERT(I3, at != 0 && at % 8 == 0);
	qk_store64(bytes, s->directory_off);
	if (at < QK_SECTOR) {
		const struct qk_header_patch patch = {(uint32_t)at, sizeof(bytes), bytes};
		return qk_space_write_header(space, &patch, err);
	}
	QK_TRY(qk_space_check_overlap(space, QK_SPACE_HEADER, at, sizeof(bytes), err));
	return qcow_store_write(s->image->store, bytes, sizeof(bytes), at, err);
}

/* ---- what was replaced ---- */

/* A reference that cannot be taken away is a leak. */
static void drop(struct storing *s, uint64_t off, uint64_t n)
{
	if (n == 0 || qk_space_drop(s->image->rw->space, off, n, NULL) == QCOW_OK)
		return;
	qk_log(s->image, QCOW_LOG_WARNING, 0, "clusters of a bitmap at %" PRIu64 " are leaked",
		off);
}

static void drop_old(struct storing *s, const struct qk_track_bitmap *b, const struct fate *fate)
{
	uint8_t old[WINDOW_ENTRIES * 8], now[WINDOW_ENTRIES * 8];
	const struct qk_geometry *g = &s->image->geometry;
	for (uint64_t at = 0; at < b->table_entries; at += WINDOW_ENTRIES) {
		size_t bytes = (size_t)qk_min(WINDOW_ENTRIES, b->table_entries - at) * 8;
		if (qcow_store_read(s->image->store, old, bytes, b->table_off + at * 8, NULL) !=
				QCOW_OK ||
			qcow_store_read(s->image->store, now, bytes, fate->table_off + at * 8,
				NULL) != QCOW_OK)
			return;
		for (size_t i = 0; i < bytes; i += 8) {
			uint64_t off = qk_bitmap_table_decode(g, qk_load64(old + i)).off.v;
			if (off != 0 && qk_load64(old + i) != qk_load64(now + i))
				drop(s, off, 1);
		}
	}
	drop(s, b->table_off, qk_div_up((uint64_t)b->table_entries * 8, g->cluster_size));
}

static void drop_replaced(struct storing *s)
{
	for (uint32_t i = 0; i < s->track->n; i++)
		if (s->fates[i].is_moved)
			drop_old(s, &s->track->bitmaps[i], &s->fates[i]);
	drop(s, s->image->bitmaps.off,
		qk_div_up(s->image->ext.bitmaps.directory_size, s->image->geometry.cluster_size));
}

/* ---- all of it ---- */

static enum qcow_status store_all(struct storing *s, struct qcow_error *err)
{
	enum qcow_status status = QCOW_OK;
	for (uint32_t i = 0; i < s->track->n; i++)
		store_bitmap(s, i);
	status = write_directory(s, err);
	if (status == QCOW_OK)
		status = qk_publish_through(s->image->rw->publish, true, switch_directory, s, err);
	else
		give_back(s, 0, 0);
	if (status == QCOW_OK)
		drop_replaced(s);
	return status;
}

enum qcow_status qk_track_store(struct qcow_image *image, struct qcow_error *err)
{
	struct qk_track *t = image->rw->track;
	struct storing s = {.image = image, .track = t};
	if (t == NULL || !atomic_load_explicit(&t->is_in_use, memory_order_acquire))
		return QCOW_OK;
	s.fates = qk_calloc(t->n, sizeof(*s.fates));
	s.data = qk_malloc((size_t)image->geometry.cluster_size, 1);
	enum qcow_status status = s.fates == NULL || s.data == NULL ? QK_FAIL_NOMEM(err)
								    : store_all(&s, err);
	free(s.fates);
	free(s.data);
	free(s.runs.v);
	return status;
}
