/* SPDX-License-Identifier: MIT */
/*
 * resize: the disk of an image that is open for writing becomes longer or shorter.
 *
 *   resize.c         what may be done, the order
 *   resize_tail.c    entries past the end of the disk
 *   resize_file.c    the file of a raw image, the data file
 *   resize_fill.c    what lies between the old end and the new one
 *   resize_bitmap.c  bitmaps of the new length
 */
#ifndef QK_ENGINE_RESIZE_H
#define QK_ENGINE_RESIZE_H

#include <qcowkit/manage.h>

#include "base/err.h"

struct qk_resize_request {
	uint64_t size;
	enum qcow_preallocation preallocation;
	bool may_shrink;
	bool is_dry; /* judge, and change nothing */
	const struct qcow_progress *progress; /* or NULL */
};

/* qcow_resize. */
enum qcow_status qk_resize(struct qcow_image *image, const struct qk_resize_request *rq,
	struct qcow_error *err) QK_MUST_USE;

#endif
