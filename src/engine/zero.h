/* SPDX-License-Identifier: MIT */
/*
 * zero: ranges that read as zeros, and ranges whose content is given up.
 */
#ifndef QK_ENGINE_ZERO_H
#define QK_ENGINE_ZERO_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"

/* qcow_zero and qcow_discard without QCOW_IO_FUA. The range lies within the disk. Any thread. */
enum qcow_status qk_zero(struct qcow_image *image, uint64_t off, uint64_t len, unsigned flags,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_discard(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err) QK_MUST_USE;

#endif
