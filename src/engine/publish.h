/* SPDX-License-Identifier: MIT */
/*
 * publish: what was written becomes stable. One publication at a time; calls that come while one is under way
 * share the next.
 */
#ifndef QK_ENGINE_PUBLISH_H
#define QK_ENGINE_PUBLISH_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"

struct qk_publish;

enum qcow_status qk_publish_new(
	struct qcow_image *image, struct qk_publish **out, struct qcow_error *err) QK_MUST_USE;
/* Frees memory, writes nothing. NULL is allowed. */
void qk_publish_free(struct qk_publish *p);

/* Everything that returned before is stable. Takes the publish lock; the caller is in no epoch. Any thread. */
enum qcow_status qk_publish_flush(struct qk_publish *p, struct qcow_error *err) QK_MUST_USE;

/* qcow_recover. */
enum qcow_status qk_publish_recover(struct qk_publish *p, struct qcow_error *err) QK_MUST_USE;

#endif
