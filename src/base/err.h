/* SPDX-License-Identifier: MIT */
/*
 * err: filling a struct qcow_error, and the asserts for our own invariants.
 *
 * The first function that detects a failure fills the error (QK_FAIL…); callers on the way up only add
 * context (qk_err_context). All calls accept err == NULL.
 */
#ifndef QK_BASE_ERR_H
#define QK_BASE_ERR_H

#include <errno.h>
#include <qcowkit/error.h>

#define QK_STR2(x) #x
#define QK_STR(x)  QK_STR2(x)
#define QK_SITE	   (__FILE__ ":" QK_STR(__LINE__))

#define QK_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define QK_MUST_USE	__attribute__((warn_unused_result))
#define QK_LIKELY(x)	__builtin_expect(!!(x), 1)
#define QK_UNLIKELY(x)	__builtin_expect(!!(x), 0)

/* Fill *err and return status, so that `return QK_FAIL(err, QCOW_E_FORMAT, "…", …);` reads well. */
enum qcow_status qk_err_set(struct qcow_error *err, const char *site, enum qcow_status status,
	const char *fmt, ...) QK_PRINTF(4, 5);

/* The same with a finding and offsets (QCOW_NO_OFFSET where one does not apply). */
enum qcow_status qk_err_set_at(struct qcow_error *err, const char *site, enum qcow_status status,
	unsigned finding, uint64_t host_off, uint64_t guest_off, const char *fmt, ...)
	QK_PRINTF(7, 8);

/* The same from an errno: the status that fits it, and ": strerror" after the sentence. */
enum qcow_status qk_err_set_os(struct qcow_error *err, const char *site, int os_errno,
	const char *fmt, ...) QK_PRINTF(4, 5);

/* Put "context: " before the message of an error that is already set. */
void qk_err_context(struct qcow_error *err, const char *fmt, ...) QK_PRINTF(2, 3);

/* What a caller's function failed with: where it filled nothing in, the status in words. */
void qk_err_complete(struct qcow_error *err, const char *site, enum qcow_status status);

/* Clear to success. */
void qk_err_clear(struct qcow_error *err);

/* The status for an errno of a host call. */
enum qcow_status qk_status_from_errno(int os_errno);

#ifdef __clang_analyzer__
/* one file at a time, it cannot see that these return the failure that they were given */
#define QK_FAILED(call, status) ((void)(call), (status))
#else
#define QK_FAILED(call, status) (call)
#endif

#define QK_FAIL(err, status, ...) QK_FAILED(qk_err_set(err, QK_SITE, status, __VA_ARGS__), status)
#define QK_FAIL_OS(err, errnum, ...) \
	QK_FAILED(qk_err_set_os(err, QK_SITE, errnum, __VA_ARGS__), QCOW_E_IO)
#define QK_FAIL_AT(err, status, finding, host, guest, ...) \
	QK_FAILED(qk_err_set_at(err, QK_SITE, status, finding, host, guest, __VA_ARGS__), status)
#define QK_FAIL_NOMEM(err) QK_FAIL(err, QCOW_E_NOMEM, "out of memory")

/* Pass a failure on. */
#define QK_TRY(call)                                       \
	do {                                               \
		enum qcow_status qk_try_status = (call);   \
		if (QK_UNLIKELY(qk_try_status != QCOW_OK)) \
			return qk_try_status;              \
	} while (0)

/*
 * Our own invariants, never input. `number` names the invariant: 1-10 are those of the engine in
 * doc/ARCHITECTURE.md, others are listed at the head of the file that owns them. With QK_ABORT_ON_BUG
 * (all test builds) a failure aborts; a release returns QCOW_E_BUG from the function.
 */
void qk_bug(const char *site, const char *number, const char *condition);

#define QK_ASSERT(number, condition)                          \
	do {                                                  \
		if (QK_UNLIKELY(!(condition))) {              \
			qk_bug(QK_SITE, #number, #condition); \
			return QCOW_E_BUG;                    \
		}                                             \
	} while (0)

/* In functions that do not return a status: aborts in test builds, is nothing in a release. */
#define QK_ASSERT_VOID(number, condition)                     \
	do {                                                  \
		if (QK_UNLIKELY(!(condition)))                \
			qk_bug(QK_SITE, #number, #condition); \
	} while (0)

#endif
