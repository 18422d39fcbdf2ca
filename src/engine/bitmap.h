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

/* The public calls, arguments not NULL. */
enum qcow_status qk_bitmap_find(struct qcow_image *image, const char *name, uint32_t *index,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_bitmap_reader_new(struct qcow_image *image, uint32_t index,
	struct qcow_bitmap_reader **out, struct qcow_error *err) QK_MUST_USE;
void qk_bitmap_reader_free(struct qcow_bitmap_reader *reader);
enum qcow_status qk_bitmap_reader_next(struct qcow_bitmap_reader *reader, uint64_t off,
	uint64_t len, struct qcow_bitmap_extent *out, struct qcow_error *err) QK_MUST_USE;

#endif
