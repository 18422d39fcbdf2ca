/* SPDX-License-Identifier: MIT */
/*
 * resize_bitmap: the bitmaps of a disk that becomes longer or shorter. Each has a table whose length follows from the disk's;
 * all get new tables, and a directory that names them, in fresh clusters, and data clusters stay where they are but for one:
 *
 *	bits  |---- kept ----|-- of the cluster of the cut: 0, or where enabled and growing 1 --|
 *	      data clusters stay   ^ a new data cluster, for nobody keeps what lies past the end
 *
 * A bitmap in use says nothing that can be trusted, and its length may be outdated: it stays as it is.
 * Specification: "Bitmaps".
 */
#include "engine/resize_private.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "engine/bitmap.h"
#include "engine/image.h"
#include "engine/log.h"
#include "engine/rw.h"
#include "engine/track.h"
#include "format/bitmapext.h"

#define WINDOW_ENTRIES 512U
#define ENTRY_SIZE_OFF 8U /* of the number of table entries, in a directory entry */

/* One bitmap on its way. */
struct change {
	uint64_t old_off, new_off; /* of the table */
	uint64_t n_old, n_new; /* entries */
	uint64_t old_bits, new_bits;
	uint64_t cut; /* bits from here on are not kept */
	bool is_marked; /* … and become 1 */
};

static uint64_t bits_of(uint64_t size, unsigned granularity_bits)
{
	uint64_t mask = (UINT64_C(1) << granularity_bits) - 1;
	return (size >> granularity_bits) + ((size & mask) != 0);
}

static bool follows(const struct qcow_bitmap *b)
{
	return !b->in_use;
}

static struct change plan(const struct qk_resize_bitmaps *b, const struct qcow_bitmap *bitmap)
{
	const struct qk_geometry *g = &b->image->geometry;
	unsigned shift = bitmap->granularity_bits;
	bool grows = b->new_size > b->old_size;
	struct change c = {.old_off = bitmap->table_offset,
		.n_old = bitmap->table_entries,
		.n_new = qk_bitmap_table_entries(g, b->new_size, shift),
		.old_bits = bits_of(b->old_size, shift),
		.new_bits = bits_of(b->new_size, shift),
		.is_marked = grows && bitmap->is_auto};
	c.cut = qk_min(c.old_bits, c.new_bits);
	if (c.is_marked)
		c.cut = b->old_size >> shift;
	return c;
}

/* ---- may they follow? ---- */

struct judging {
	struct qcow_image *image;
	uint64_t new_size, tracked_bytes;
	enum qcow_status status;
	struct qcow_error *err;
};

static enum qcow_status judge(struct judging *j, const struct qcow_bitmap *b, unsigned finding)
{
	uint64_t entries = qk_bitmap_table_entries(
		&j->image->geometry, j->new_size, b->granularity_bits);
	uint64_t words = qk_div_up(bits_of(j->new_size, b->granularity_bits), 64);
	if (!follows(b))
		return QCOW_OK;
	if (finding != 0)
		return QK_FAIL_AT(j->err, QCOW_E_CORRUPT, finding, QCOW_NO_OFFSET, QCOW_NO_OFFSET,
			"bitmap '%s' cannot follow a new size: %s", b->name,
			qcow_finding_text(finding));
	if (b->extra_bytes != 0 && !b->extra_data_compatible)
		return QK_FAIL(j->err, QCOW_E_UNSUPPORTED,
			"bitmap '%s' has extra data that are not known here: it cannot follow a "
			"new "
			"size",
			b->name);
	if (entries == 0 || entries * 8 > QK_MAX_BITMAP_TABLE_BYTES)
		return QK_FAIL(j->err, QCOW_E_LIMIT,
			"bitmap '%s' would have a table of %" PRIu64 " entries: at least 1, at "
			"most %" PRIu64,
			b->name, entries, (uint64_t)QK_MAX_BITMAP_TABLE_BYTES / 8);
	if (!qk_bitmap_is_read_by_qemu(&j->image->geometry, j->new_size, b->granularity_bits))
		return QK_FAIL(j->err, QCOW_E_UNSUPPORTED,
			"with %" PRIu64
			" bytes QEMU could not open the image: bitmap '%s' would have a table "
			"entry for "
			"less than a sector",
			j->new_size, b->name);
	if (!b->is_auto)
		return QCOW_OK;
	j->tracked_bytes += words * 8;
	if (words * 8 > QK_TRACK_BYTES || j->tracked_bytes > QK_TRACK_TOTAL_BYTES)
		return QK_FAIL(j->err, QCOW_E_LIMIT,
			"bitmap '%s' is enabled and would take %" PRIu64
			" bytes to track: at most %" PRIu64 " for one, %" PRIu64
			" for all enabled ones",
			b->name, words * 8, (uint64_t)QK_TRACK_BYTES,
			(uint64_t)QK_TRACK_TOTAL_BYTES);
	return QCOW_OK;
}

static bool judge_next(void *ctx, uint32_t index, const struct qcow_bitmap *b, unsigned finding)
{
	struct judging *j = ctx;
	(void)index;
	j->status = judge(j, b, finding);
	return j->status == QCOW_OK;
}

enum qcow_status qk_resize_bitmaps_judge(
	struct qcow_image *image, uint64_t new_size, struct qcow_error *err)
{
	struct judging j = {.image = image, .new_size = new_size, .err = err};
	if (image->bitmaps.n == 0)
		return QCOW_OK;
	QK_TRY(qk_bitmaps_each(image, judge_next, &j, err));
	return j.status;
}

/* ---- tables ---- */

/* Bits [from, to) of data become `value`. */
static void set_bits(uint8_t *data, uint64_t from, uint64_t to, bool value)
{
	for (uint64_t i = from; i < to;) {
		if (i % 8 == 0 && to - i >= 8) {
			memset(data + i / 8, value ? 0xff : 0, (size_t)((to - i) / 8));
			i += (to - i) / 8 * 8;
			continue;
		}
		uint8_t bit = (uint8_t)(1U << (i % 8));
		data[i / 8] = (uint8_t)(value ? data[i / 8] | bit : data[i / 8] & ~bit);
		i++;
	}
}

/* The data cluster in which the bits are cut: raw is its old entry, and becomes the new one. */
static enum qcow_status cut_cluster(struct qk_resize_bitmaps *b, const struct change *c,
	uint64_t idx, uint64_t *raw, struct qcow_error *err)
{
	const struct qk_geometry *g = &b->image->geometry;
	uint64_t per_cluster = g->cluster_size * 8, first = idx * per_cluster, off = 0;
	struct qk_bitmap_table_entry e = qk_bitmap_table_decode(g, *raw);
	memset(b->data, e.all_ones ? 0xff : 0, (size_t)g->cluster_size);
	if (e.off.v != 0)
		QK_TRY(qcow_store_read_padded(
			b->image->store, b->data, (size_t)g->cluster_size, e.off.v, err));
	set_bits(b->data, c->cut - first, per_cluster, false);
	if (c->is_marked)
		set_bits(b->data, c->cut - first, qk_min(c->new_bits - first, per_cluster), true);
	QK_TRY(qk_fresh_take(&b->fresh, 1, &off, err));
	QK_TRY(qk_fresh_write(&b->fresh, b->data, g->cluster_size, off, err));
	*raw = qk_bitmap_table_encode((qk_hoff){off}, false);
	return QCOW_OK;
}

/* Entry `idx` of the new table; *raw is the old one, 0 past its end. */
static enum qcow_status new_entry(struct qk_resize_bitmaps *b, const struct change *c, uint64_t idx,
	uint64_t *raw, struct qcow_error *err)
{
	const struct qk_geometry *g = &b->image->geometry;
	uint64_t per_cluster = g->cluster_size * 8;
	uint64_t first = idx * per_cluster, end = first + per_cluster;
	struct qk_bitmap_table_entry e = qk_bitmap_table_decode(g, *raw);
	if (e.finding == 0 && e.off.v >= qk_space_file_size(b->image->rw->space))
		e.finding = QCOW_FINDING_BITMAP_TABLE;
	if (e.finding != 0)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, e.finding, c->old_off + idx * 8,
			QCOW_NO_OFFSET, "entry %" PRIu64 " of a bitmap table is 0x%" PRIx64, idx,
			*raw);
	if (first >= c->cut) {
		*raw = qk_bitmap_table_encode((qk_hoff){0}, c->is_marked);
		return QCOW_OK;
	}
	/* what ones there are past the end is nobody's to see */
	bool stays = c->cut >= end || (e.off.v == 0 && e.all_ones == c->is_marked) ||
		     (e.all_ones && c->new_bits < c->old_bits);
	return stays ? QCOW_OK : cut_cluster(b, c, idx, raw, err);
}

static enum qcow_status read_old(struct qk_resize_bitmaps *b, const struct change *c, uint64_t at,
	uint64_t n, uint8_t *window, struct qcow_error *err)
{
	uint64_t has = at < c->n_old ? qk_min(n, c->n_old - at) : 0;
	memset(window + has * 8, 0, (size_t)(n - has) * 8);
	if (has == 0)
		return QCOW_OK;
	return qcow_store_read(b->image->store, window, (size_t)has * 8, c->old_off + at * 8, err);
}

static enum qcow_status build_table(
	struct qk_resize_bitmaps *b, struct change *c, struct qcow_error *err)
{
	uint8_t window[WINDOW_ENTRIES * 8];
	uint64_t clusters = qk_div_up(c->n_new * 8, b->image->geometry.cluster_size);
	QK_TRY(qk_fresh_take(&b->fresh, clusters, &c->new_off, err));
	for (uint64_t at = 0; at < c->n_new; at += WINDOW_ENTRIES) {
		uint64_t n = qk_min(WINDOW_ENTRIES, c->n_new - at);
		QK_TRY(read_old(b, c, at, n, window, err));
		for (uint64_t i = 0; i < n; i++) {
			uint64_t raw = qk_load64(window + i * 8);
			QK_TRY(new_entry(b, c, at + i, &raw, err));
			qk_store64(window + i * 8, raw);
		}
		QK_TRY(qk_fresh_write(&b->fresh, window, n * 8, c->new_off + at * 8, err));
	}
	return QCOW_OK;
}

/* ---- the directory ---- */

struct building {
	struct qk_resize_bitmaps *b;
	enum qcow_status status;
	struct qcow_error *err;
};

static bool build_next(
	void *ctx, uint32_t index, const struct qcow_bitmap *bitmap, unsigned finding)
{
	struct building *building = ctx;
	struct qk_resize_bitmaps *b = building->b;
	uint8_t *entry = b->directory + b->image->bitmaps.starts[index];
	(void)finding;
	if (!follows(bitmap))
		return true;
	struct change c = plan(b, bitmap);
	building->status = build_table(b, &c, building->err);
	qk_store64(entry, c.new_off);
	qk_store32(entry + ENTRY_SIZE_OFF, (uint32_t)c.n_new);
	return building->status == QCOW_OK;
}

enum qcow_status qk_resize_bitmaps_build(struct qk_resize_bitmaps *b, struct qcow_error *err)
{
	struct qcow_image *image = b->image;
	struct building building = {.b = b, .err = err};
	uint64_t bytes = image->ext.bitmaps.directory_size, off = 0;
	uint64_t cluster_size = image->geometry.cluster_size;
	qk_fresh_init(&b->fresh, image, QK_SPACE_BITMAPS);
	if (image->bitmaps.n == 0)
		return QCOW_OK;
	b->directory = qk_malloc(bytes, 1);
	b->data = qk_malloc((size_t)cluster_size, 1);
	if (b->directory == NULL || b->data == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qcow_store_read(image->store, b->directory, (size_t)bytes, image->bitmaps.off, err));
	QK_TRY(qk_bitmaps_each(image, build_next, &building, err));
	QK_TRY(building.status);
	QK_TRY(qk_fresh_take(&b->fresh, qk_div_up(bytes, cluster_size), &off, err));
	QK_TRY(qk_fresh_write(&b->fresh, b->directory, bytes, off, err));
	b->directory_off = off;
	return QCOW_OK;
}

/* ---- what is not named any more ---- */

static void drop(struct qk_resize_bitmaps *b, uint64_t off, uint64_t n)
{
	if (n == 0 || off == 0 || qk_space_drop(b->image->rw->space, off, n, NULL) == QCOW_OK)
		return;
	qk_log(b->image, QCOW_LOG_WARNING, 0, "clusters of a bitmap at %" PRIu64 " are leaked",
		off);
}

/* Data clusters that the old table names and the new one does not. */
static void drop_data(struct qk_resize_bitmaps *b, const struct change *c)
{
	uint8_t old[WINDOW_ENTRIES * 8], now[WINDOW_ENTRIES * 8];
	const struct change fresh = {.old_off = c->new_off, .n_old = c->n_new};
	for (uint64_t at = 0; at < c->n_old; at += WINDOW_ENTRIES) {
		uint64_t n = qk_min(WINDOW_ENTRIES, c->n_old - at);
		if (read_old(b, c, at, n, old, NULL) != QCOW_OK ||
			read_old(b, &fresh, at, n, now, NULL) != QCOW_OK)
			return;
		for (uint64_t i = 0; i < n; i++) {
			uint64_t raw = qk_load64(old + i * 8);
			if (raw != qk_load64(now + i * 8))
				drop(b, qk_bitmap_table_decode(&b->image->geometry, raw).off.v, 1);
		}
	}
}

static bool drop_next(void *ctx, uint32_t index, const struct qcow_bitmap *bitmap, unsigned finding)
{
	struct qk_resize_bitmaps *b = ctx;
	(void)finding;
	if (!follows(bitmap))
		return true;
	struct change c = plan(b, bitmap);
	c.new_off = qk_load64(b->directory + b->image->bitmaps.starts[index]);
	drop_data(b, &c);
	drop(b, c.old_off, qk_div_up(c.n_old * 8, b->image->geometry.cluster_size));
	return true;
}

void qk_resize_bitmaps_drop_old(struct qk_resize_bitmaps *b)
{
	struct qcow_image *image = b->image;
	if (b->directory_off == 0)
		return;
	if (qk_bitmaps_each(image, drop_next, b, NULL) != QCOW_OK)
		qk_log(image, QCOW_LOG_WARNING, 0, "tables of bitmaps are leaked");
	drop(b, image->bitmaps.off,
		qk_div_up(image->ext.bitmaps.directory_size, image->geometry.cluster_size));
}

void qk_resize_bitmaps_give_back(struct qk_resize_bitmaps *b)
{
	qk_fresh_give_back(&b->fresh, NULL);
}

void qk_resize_bitmaps_release(struct qk_resize_bitmaps *b)
{
	qk_fresh_release(&b->fresh);
	free(b->directory);
	free(b->data);
}
