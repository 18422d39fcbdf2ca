/* SPDX-License-Identifier: MIT */
/*
 * bitmap_list: the bitmap directory of an image in memory, to be changed and written anew. Extra data stays as it is, and
 * so does the order; new bitmaps come last. Memory: the directory (at most 64 MiB) and 160 bytes a bitmap.
 * Specification: "Bitmap directory".
 */
#ifndef QK_ENGINE_BITMAP_LIST_H
#define QK_ENGINE_BITMAP_LIST_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "engine/bitmap_write.h"
#include "format/bitmapext.h"

/* A bitmap as it will be. */
struct qk_bitmap_item {
	struct qk_bitmap_entry
		entry; /* spans into list->directory, or the caller's; table_off is not followed */
	struct qk_bitmap_target target;
	uint64_t old_off; /* its table as the disk names it; 0: it is new */
	uint32_t old_entries; /* of that table */
	uint64_t hash; /* of the name */
	bool is_removed;
};

struct qk_bitmap_list {
	struct qcow_image *image;
	uint8_t *directory; /* as read */
	struct qk_bitmap_item *items;
	uint32_t n, room;
	uint32_t n_kept; /* not removed */
};

#define QK_NO_BITMAP UINT32_MAX

/* As the image has them by now; a tracked one is not in use. Released by the caller, on failure too.
 * QCOW_E_CORRUPT (the directory changed meanwhile), QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status qk_bitmap_list_load(
	struct qk_bitmap_list *list, struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;
void qk_bitmap_list_release(struct qk_bitmap_list *list);

/* The one with this name that is not removed, or QK_NO_BITMAP. */
uint32_t qk_bitmap_list_find(const struct qk_bitmap_list *list, const char *name);

/* A new one, clear and enabled. `name` outlives the list and is in no item yet; the caller has checked it and the
 * granularity. QCOW_E_LIMIT (65,535 of them), QCOW_E_NOMEM. */
enum qcow_status qk_bitmap_list_add(struct qk_bitmap_list *list, const char *name,
	unsigned granularity_bits, uint32_t *index, struct qcow_error *err) QK_MUST_USE;

/* The directory that the items make, to fresh clusters; *out names it. Nothing for no items: n_bitmaps is then 0.
 * QCOW_E_LIMIT (64 MiB), errors of qk_fresh_take and of the store. */
enum qcow_status qk_bitmap_list_write(const struct qk_bitmap_list *list, struct qk_fresh *fresh,
	struct qk_bitmaps_ext *out, struct qcow_error *err) QK_MUST_USE;

/* The switch is stable: what the disk does not name any more is dropped, the old directory with it. */
void qk_bitmap_list_drop(const struct qk_bitmap_list *list);

#endif
