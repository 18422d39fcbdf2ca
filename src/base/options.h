/* SPDX-License-Identifier: MIT */
/* options: option structs from callers that were built against another version of the library. */
#ifndef QK_BASE_OPTIONS_H
#define QK_BASE_OPTIONS_H

#include <stddef.h>

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

/* A static function name(in, out, err): qk_options_take for a struct `type`, made by the macro `init`, that has had all up
 * to the member `last` since its first version. */
#define QK_TAKE_OPTIONS(name, type, what, init, last)                                             \
	static enum qcow_status name(                                                             \
		const struct type *in, struct type *out, struct qcow_error *err)                  \
	{                                                                                         \
		static const struct type defaults = init;                                         \
		static const struct qk_options_kind kind = {                                      \
			(what), #init, &defaults, sizeof(defaults), offsetof(struct type, last)}; \
		return qk_options_take(&kind, in, out, err);                                      \
	}

#endif
