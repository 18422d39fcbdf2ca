/* SPDX-License-Identifier: MIT */
/*
 * bitmap: the content of a persistent bitmap as runs of clean and dirty guest bytes. Reads a window of the
 * bitmap's table and a piece of its data at a time: memory does not grow with the disk.
 * Specification: "Bitmap table", "Bitmap data".
 */
#ifndef QK_ENGINE_BITMAP_H
#define QK_ENGINE_BITMAP_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "format/bitmapext.h"

/* The public calls, arguments not NULL. */
enum qcow_status qk_bitmap_find(struct qcow_image *image, const char *name, uint32_t *index,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_bitmap_reader_new(struct qcow_image *image, uint32_t index,
	struct qcow_bitmap_reader **out, struct qcow_error *err) QK_MUST_USE;
void qk_bitmap_reader_free(struct qcow_bitmap_reader *reader);
enum qcow_status qk_bitmap_reader_next(struct qcow_bitmap_reader *reader, uint64_t off,
	uint64_t len, struct qcow_bitmap_extent *out, struct qcow_error *err) QK_MUST_USE;

/* ---- for those who make bitmaps ---- */

/* Where a bitmap that fits the disk lies: one of the directory, or one in the making. */
struct qk_bitmap_place {
	unsigned granularity_bits;
	uint32_t table_entries;
	uint64_t table_off;
};

/* Whatever is tracked since the open is not looked at. QCOW_E_NOMEM. */
enum qcow_status qk_bitmap_reader_on(struct qcow_image *image, const struct qk_bitmap_place *place,
	struct qcow_bitmap_reader **out, struct qcow_error *err) QK_MUST_USE;

unsigned qk_bitmap_reader_granularity(const struct qcow_bitmap_reader *reader);

/* The first bit from `bit` on that may be set: what lies before is clear. The number of bits where none is. Errors as
 * qk_bitmap_reader_next. */
enum qcow_status qk_bitmap_reader_skip(struct qcow_bitmap_reader *reader, uint64_t bit,
	uint64_t *out, struct qcow_error *err) QK_MUST_USE;

/* Or bits [first, first + n), as far as there are any, into p. `first` is a multiple of 8. */
enum qcow_status qk_bitmap_reader_or(struct qcow_bitmap_reader *reader, uint64_t first, uint64_t n,
	uint8_t *p, struct qcow_error *err) QK_MUST_USE;

/* QEMU takes a disk for its whole sectors, and opens no image with a bitmap whose table is longer than those need. */
static inline bool qk_bitmap_is_read_by_qemu(
	const struct qk_geometry *g, uint64_t disk_size, unsigned granularity_bits)
{
	return qk_bitmap_table_entries(g, disk_size, granularity_bits) ==
	       qk_bitmap_table_entries(g, disk_size / QK_SECTOR * QK_SECTOR, granularity_bits);
}

#endif
