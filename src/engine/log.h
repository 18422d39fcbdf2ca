/* SPDX-License-Identifier: MIT */
/*
 * log: what an image says to its caller's log (struct qcow_open_options): what is noticed and does not fail.
 */
#ifndef QK_ENGINE_LOG_H
#define QK_ENGINE_LOG_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"

/* One sentence about `image`; nothing where the caller has no log. `finding` 0: none. */
void qk_log(const struct qcow_image *image, enum qcow_log_level level, unsigned finding,
	const char *fmt, ...) QK_PRINTF(4, 5);

/* Everything that is worth saying about a layer that was just opened. `was_probed`: nobody said which format
 * it has. */
void qk_log_layer(const struct qcow_image *image, bool was_probed);

#endif
