/* SPDX-License-Identifier: MIT */
/*
 * bitmap_list: see bitmap_list.h.
 *
 * Invariants: J1 the directory that is written holds whole entries. One thread.
 */
#include "engine/bitmap_list.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "engine/image.h"
#include "engine/track.h"

static uint64_t hash_name(const uint8_t *name, size_t n)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
	for (size_t i = 0; i < n; i++)
		h = (h ^ name[i]) * UINT64_C(0x100000001b3);
	return h;
}

static uint64_t count_bits(const struct qcow_image *image, unsigned granularity_bits)
{
	return qk_div_up(image->header.size, UINT64_C(1) << granularity_bits);
}

/* ---- loading ---- */

static struct qk_bitmap_item make_item(
	const struct qcow_image *image, uint32_t index, const struct qk_bitmap_entry *e)
{
	struct qk_bitmap_item item = {.entry = *e,
		.old_off = e->table_off.v,
		.old_entries = e->table_entries,
		.hash = hash_name(e->name.p, e->name.n)};
	if (qk_track_find(image, index) != NULL)
		item.entry.flags &= ~QK_BITMAP_IN_USE;
	item.target = (struct qk_bitmap_target){.granularity_bits = e->granularity_bits,
		.table_entries = e->table_entries,
		.n_bits = count_bits(image, e->granularity_bits),
		.stable_off = e->table_off.v,
		.table_off = e->table_off.v};
	return item;
}

static enum qcow_status decode(struct qk_bitmap_list *list, uint64_t bytes, struct qcow_error *err)
{
	const struct qcow_image *image = list->image;
	struct qk_reader r = qk_reader_init(list->directory, (size_t)bytes);
	for (uint32_t i = 0; i < image->bitmaps.n; i++) {
		struct qk_bitmap_entry e;
		if (!qk_bitmap_decode(&r, &e))
			return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_BITMAP_DIRECTORY,
				image->bitmaps.off, QCOW_NO_OFFSET,
				"bitmap %" PRIu32 " of %" PRIu32
				" overruns the directory of %" PRIu64 " bytes",
				i, image->bitmaps.n, bytes);
		list->items[list->n++] = make_item(image, i, &e);
	}
	list->n_kept = list->n;
	return QCOW_OK;
}

enum qcow_status qk_bitmap_list_load(
	struct qk_bitmap_list *list, struct qcow_image *image, struct qcow_error *err)
{
	uint64_t bytes = image->bitmaps.n != 0 ? image->ext.bitmaps.directory_size : 0;
	*list = (struct qk_bitmap_list){.image = image, .room = image->bitmaps.n};
	if (image->bitmaps.is_bad) {
		if (err != NULL)
			*err = image->bitmaps.why;
		return QCOW_E_CORRUPT;
	}
	list->items = qk_calloc(list->room, sizeof(*list->items));
	list->directory = qk_malloc(bytes, 1);
	if (list->items == NULL || list->directory == NULL)
		return QK_FAIL_NOMEM(err);
	/* the padding of the last entry may lie past the end of the file */
	if (bytes != 0)
		QK_TRY(qcow_store_read_padded(
			image->store, list->directory, (size_t)bytes, image->bitmaps.off, err));
	return decode(list, bytes, err);
}

void qk_bitmap_list_release(struct qk_bitmap_list *list)
{
	free(list->items);
	free(list->directory);
	*list = (struct qk_bitmap_list){0};
}

/* ---- changing ---- */

uint32_t qk_bitmap_list_find(const struct qk_bitmap_list *list, const char *name)
{
	size_t n = strlen(name);
	uint64_t hash = hash_name((const uint8_t *)name, n);
	for (uint32_t i = 0; i < list->n; i++) {
		const struct qk_bitmap_item *item = &list->items[i];
		if (!item->is_removed && item->hash == hash && item->entry.name.n == n &&
			memcmp(item->entry.name.p, name, n) == 0)
			return i;
	}
	return QK_NO_BITMAP;
}

static enum qcow_status make_room(struct qk_bitmap_list *list, struct qcow_error *err)
{
	if (list->n < list->room)
		return QCOW_OK;
	uint32_t room = list->room == 0 ? 16 : list->room * 2;
	struct qk_bitmap_item *items = qk_realloc(list->items, room, sizeof(*items));
	if (items == NULL)
		return QK_FAIL_NOMEM(err);
	list->items = items;
	list->room = room;
	return QCOW_OK;
}

enum qcow_status qk_bitmap_list_add(struct qk_bitmap_list *list, const char *name,
	unsigned granularity_bits, uint32_t *index, struct qcow_error *err)
{
	const struct qcow_image *image = list->image;
	uint32_t entries = (uint32_t)qk_bitmap_table_entries(
		&image->geometry, image->header.size, granularity_bits);
	if (list->n_kept >= QK_MAX_BITMAPS)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"Maximum number of persistent bitmaps is already reached: an image holds "
			"at most %u",
			QK_MAX_BITMAPS);
	QK_TRY(make_room(list, err));
	struct qk_bitmap_item item = {.entry = {.table_entries = entries,
					      .flags = QK_BITMAP_AUTO,
					      .type = 1,
					      .granularity_bits = (uint8_t)granularity_bits,
					      .name = {(const uint8_t *)name, strlen(name)}}};
	item.hash = hash_name(item.entry.name.p, item.entry.name.n);
	item.target = (struct qk_bitmap_target){.granularity_bits = granularity_bits,
		.table_entries = entries,
		.n_bits = count_bits(image, granularity_bits)};
	*index = list->n;
	list->items[list->n++] = item;
	list->n_kept++;
	return QCOW_OK;
}

/* ---- writing ---- */

static uint64_t count_bytes(const struct qk_bitmap_list *list)
{
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < list->n; i++) {
		const struct qk_bitmap_item *item = &list->items[i];
		if (!item->is_removed)
			bytes += qk_bitmap_entry_bytes(item->entry.extra.n, item->entry.name.n);
	}
	return bytes;
}

enum qcow_status qk_bitmap_list_write(const struct qk_bitmap_list *list, struct qk_fresh *fresh,
	struct qk_bitmaps_ext *out, struct qcow_error *err)
{
	uint64_t bytes = count_bytes(list), off = 0;
	*out = (struct qk_bitmaps_ext){.n_bitmaps = list->n_kept, .directory_size = bytes};
	if (list->n_kept == 0)
		return QCOW_OK;
	if (bytes > QK_MAX_BITMAP_DIRECTORY_BYTES)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"the bitmap directory would take %" PRIu64 " bytes, over %" PRIu64, bytes,
			(uint64_t)QK_MAX_BITMAP_DIRECTORY_BYTES);
	uint8_t *directory QK_AUTO_FREE = qk_malloc(bytes, 1);
	if (directory == NULL)
		return QK_FAIL_NOMEM(err);
	struct qk_writer w = qk_writer_init(directory, (size_t)bytes);
	for (uint32_t i = 0; i < list->n; i++) {
		struct qk_bitmap_entry e = list->items[i].entry;
		e.table_off.v = list->items[i].target.table_off;
		if (!list->items[i].is_removed)
			qk_bitmap_encode(&w, &e);
	}
	QK_ASSERT(J1, !w.bad && w.at == bytes);
	QK_TRY(qk_fresh_take(
		fresh, qk_div_up(bytes, list->image->geometry.cluster_size), &off, err));
	out->directory_off = off;
	return qk_fresh_write(fresh, directory, bytes, off, err);
}

void qk_bitmap_list_drop(const struct qk_bitmap_list *list)
{
	for (uint32_t i = 0; i < list->n; i++) {
		const struct qk_bitmap_item *item = &list->items[i];
		uint64_t now = item->is_removed ? 0 : item->target.table_off;
		if (item->old_off != 0 && now != item->old_off)
			qk_bitmap_drop(list->image, item->old_off, now, item->old_entries);
	}
	qk_bitmap_drop_directory(list->image);
}
