/* SPDX-License-Identifier: MIT */
/* options: option structs from callers that were built against another version of the library. */
#ifndef QK_API_OPTIONS_H
#define QK_API_OPTIONS_H

#include <stddef.h>
#include <qcowkit/qcowkit.h>

#include "base/err.h"

struct qk_options_kind {
	const char *what; /* "check options" */
	const char *init; /* "QCOW_CHECK_OPTIONS_INIT" */
	const void *defaults; /* the struct as that macro makes it */
	size_t size; /* of the struct; its first member is uint32_t struct_size */
	size_t least; /* a shorter one was never initialised */
};

/* *out, of kind->size bytes, gets what the caller's struct has: a shorter one has defaults in the rest, none at all (in NULL)
 * everywhere. A longer one comes from a later version: what this one does not know must be zero, for it cannot be
 * obeyed. QCOW_E_INVAL, QCOW_E_UNSUPPORTED. */
enum qcow_status qk_options_take(const struct qk_options_kind *kind, const void *in, void *out,
	struct qcow_error *err) QK_MUST_USE;

/* For a call that changes the image, unless it is a dry run: QCOW_E_READONLY. */
enum qcow_status qk_options_may_change(
	const struct qcow_image *image, bool is_dry, struct qcow_error *err) QK_MUST_USE;

#endif
