/* SPDX-License-Identifier: MIT */
/*
 * cm: cmocka with the headers that it wants before it, and assertions on a status that show the message.
 */
#ifndef QKT_CM_H
#define QKT_CM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <qcowkit/error.h>

/* Built with AddressSanitizer or ThreadSanitizer: they keep freed memory, take several times as much, and are slow. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define QKT_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define QKT_SANITIZED 1
#endif
#endif
#ifndef QKT_SANITIZED
#define QKT_SANITIZED 0
#endif
/* Built with ThreadSanitizer, beneath which loops over all that may fail take too long: one step of so many. */
#if defined(__SANITIZE_THREAD__)
#define QKT_STRIDE 8U
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define QKT_STRIDE 8U
#endif
#endif
#ifndef QKT_STRIDE
#define QKT_STRIDE 1U
#endif

/* Meson's "skipped": what is missing has been printed. */
#define QKT_SKIP 77

static inline void qkt_check_status(enum qcow_status got, enum qcow_status want,
	const struct qcow_error *err, const char *call, const char *file, int line)
{
	if (got == want)
		return;
	print_error("%s\n  answered %s, not %s: %s\n", call, qcow_status_name(got),
		qcow_status_name(want), err != NULL ? err->message : "");
	_fail(file, line);
}

/* `err` (a struct qcow_error, not a pointer) is what the call was given. */
#define assert_ok(call, err) qkt_check_status((call), QCOW_OK, &(err), #call, __FILE__, __LINE__)
#define assert_status(call, want, err) \
	qkt_check_status((call), (want), &(err), #call, __FILE__, __LINE__)

/* The message says `words`. */
#define assert_says(err, words)                                                                 \
	do {                                                                                    \
		if (strstr((err).message, (words)) == NULL) {                                   \
			print_error(                                                            \
				"the message says \"%s\", not \"%s\"\n", (err).message, words); \
			fail();                                                                 \
		}                                                                               \
	} while (0)

#endif
