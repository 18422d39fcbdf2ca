/* SPDX-License-Identifier: MIT */
/*
 * How qcowkit calls fail.
 *
 * Every call that can fail returns an enum qcow_status: 0 is success, every failure is negative.
 * The caller may pass a struct qcow_error to learn more; NULL is always allowed. The library never
 * prints, never exits and keeps no "last error": the struct belongs to the caller.
 */
#ifndef QCOWKIT_ERROR_H
#define QCOWKIT_ERROR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define QCOW_EXPORT   __attribute__((visibility("default")))
#define QCOW_MUST_USE __attribute__((warn_unused_result))
#else
#define QCOW_EXPORT
#define QCOW_MUST_USE
#endif

enum qcow_status {
	QCOW_OK = 0,
	QCOW_E_INVAL = -1,	 /* an argument or option is wrong */
	QCOW_E_NOMEM = -2,	 /* out of memory */
	QCOW_E_IO = -3,		 /* the host failed to read or write; os_errno says how */
	QCOW_E_NOSPC = -4,	 /* the target is full (ENOSPC, EDQUOT, EFBIG) */
	QCOW_E_NOENT = -5,	 /* no such file, snapshot or bitmap */
	QCOW_E_EXIST = -6,	 /* it exists already */
	QCOW_E_ACCESS = -7,	 /* permission denied by the host */
	QCOW_E_LOCKED = -8,	 /* another process holds a lock that conflicts */
	QCOW_E_NOT_QCOW2 = -9,	 /* the magic is not that of qcow2 */
	QCOW_E_FORMAT = -10,	 /* a header, extension or table description is malformed: refused */
	QCOW_E_UNSUPPORTED = -11, /* a version, feature or option that this build does not know */
	QCOW_E_CORRUPT = -12,	 /* metadata is bad where the call needed it; `finding` says which */
	QCOW_E_RANGE = -13,	 /* outside the disk or the store */
	QCOW_E_READONLY = -14,	 /* opened read-only, or may be opened read-only at most */
	QCOW_E_POLICY = -15,	 /* a reference to another file that the caller does not allow */
	QCOW_E_LOOP = -16,	 /* the backing chain names itself, or is too deep */
	QCOW_E_LIMIT = -17,	 /* a stated bound would be exceeded */
	QCOW_E_CANCELLED = -18,	 /* the caller's cancel callback said so */
	QCOW_E_KEY = -19,	 /* a secret is missing or wrong */
	QCOW_E_NOTSUP = -20,	 /* this store cannot do that (punch, clone, grow) */
	QCOW_E_BUG = -21,	 /* an invariant of qcowkit itself does not hold */
	QCOW_E_WOULD_BLOCK = -22 /* a call that never waits would have to */
};

/* Offsets in struct qcow_error and struct qcow_finding that do not apply hold this value. */
#define QCOW_NO_OFFSET UINT64_MAX

#define QCOW_ERROR_MESSAGE_BYTES 512

struct qcow_error {
	enum qcow_status status;
	int os_errno;	    /* errno of the host's call, 0 if none */
	unsigned finding;   /* enum qcow_finding_id of findings.h, 0 if none */
	uint64_t host_off;  /* bytes into the image file, or QCOW_NO_OFFSET */
	uint64_t guest_off; /* bytes into the virtual disk, or QCOW_NO_OFFSET */
	const char *site;   /* "file.c:line" that detected it, static storage */
	char message[QCOW_ERROR_MESSAGE_BYTES]; /* one sentence, no final newline, NUL terminated */
};

/* A value to initialise a struct qcow_error with. */
#define QCOW_ERROR_INIT {QCOW_OK, 0, 0, QCOW_NO_OFFSET, QCOW_NO_OFFSET, (const char *)0, {0}}

/* The name of a status, "QCOW_E_IO". Static storage; "?" for a value that is no status. */
QCOW_EXPORT const char *qcow_status_name(enum qcow_status status);

/* A short English phrase for a status. Static storage. */
QCOW_EXPORT const char *qcow_status_text(enum qcow_status status);

#ifdef __cplusplus
}
#endif
#endif
