/* SPDX-License-Identifier: MIT */
/*
 * luks_slots: passphrases are added to a LUKS image, and taken away.
 */
#ifndef QK_ENGINE_LUKS_SLOTS_H
#define QK_ENGINE_LUKS_SLOTS_H

#include <qcowkit/manage.h>

#include "base/err.h"

/* qcow_amend_keys; the options are whole. */
enum qcow_status qk_luks_slots_amend(struct qcow_image *image,
	const struct qcow_key_options *options, struct qcow_error *err) QK_MUST_USE;

#endif
