/* SPDX-License-Identifier: MIT */
/*
 * api_bitmap: the public calls that read what a persistent bitmap says. Each reader belongs to one thread at a
 * time; any number of them may read one image.
 */
#include <qcowkit/qcowkit.h>

#include "engine/bitmap.h"

enum qcow_status qcow_bitmap_find(
	struct qcow_image *image, const char *name, uint32_t *index, struct qcow_error *err)
{
	if (image == NULL || name == NULL || index == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_bitmap_find: an argument is NULL");
	return qk_bitmap_find(image, name, index, err);
}

enum qcow_status qcow_bitmap_open(struct qcow_image *image, uint32_t index,
	struct qcow_bitmap_reader **out, struct qcow_error *err)
{
	if (image == NULL || out == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_bitmap_open: an argument is NULL");
	return qk_bitmap_reader_new(image, index, out, err);
}

enum qcow_status qcow_bitmap_read(struct qcow_bitmap_reader *reader, uint64_t off, uint64_t len,
	struct qcow_bitmap_extent *out, struct qcow_error *err)
{
	if (reader == NULL || out == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_bitmap_read: an argument is NULL");
	return qk_bitmap_reader_next(reader, off, len, out, err);
}

void qcow_bitmap_close(struct qcow_bitmap_reader *reader)
{
	qk_bitmap_reader_free(reader);
}
