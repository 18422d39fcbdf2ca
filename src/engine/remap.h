/* SPDX-License-Identifier: MIT */
/*
 * remap: writes that need a new cluster, or an entry changed.
 */
#ifndef QK_ENGINE_REMAP_H
#define QK_ENGINE_REMAP_H

#include <qcowkit/qcowkit.h>

#include "base/num.h"
#include "engine/iov.h"

/* Write [off, off + *done) from `from`: as much of `len` (> 0, within the image) as lies in one group of clusters.
 * Takes a stripe lock; the caller holds none and is in no epoch. Errors as qcow_pwrite; what was done before a
 * failure stays. */
enum qcow_status qk_remap_write(struct qcow_image *image, qk_goff off, uint64_t len,
	struct qk_iov *from, uint64_t *done, struct qcow_error *err);

#endif
