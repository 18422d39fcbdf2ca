/* SPDX-License-Identifier: MIT */
/*
 * bitmaps: the persistent bitmaps of a source go over into a new image, or one that is there.
 */
#ifndef QK_OPS_BITMAPS_H
#define QK_OPS_BITMAPS_H

#include <qcowkit/ops.h>

#include "base/err.h"

/* May the bitmaps of the source be copied, all of them or those that are not skipped? Writes nothing.
 * QCOW_E_INVAL, QCOW_E_CORRUPT (a broken bitmap). */
enum qcow_status qk_bitmaps_check(const struct qcow_convert_options *options, bool is_raw,
	struct qcow_error *err) QK_MUST_USE;

/* Copy them, up to `size` bytes of the disk. */
enum qcow_status qk_bitmaps_copy(const struct qcow_convert_options *options, uint64_t size,
	struct qcow_builder *builder, struct qcow_error *err) QK_MUST_USE;

#endif
