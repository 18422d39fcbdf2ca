/* SPDX-License-Identifier: MIT */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fill(struct qcow_error *err, const char *site, enum qcow_status status)
{
	err->status = status;
	err->os_errno = 0;
	err->finding = 0;
	err->host_off = QCOW_NO_OFFSET;
	err->guest_off = QCOW_NO_OFFSET;
	err->site = site;
}

enum qcow_status qk_err_set(
	struct qcow_error *err, const char *site, enum qcow_status status, const char *fmt, ...)
{
	if (err == NULL)
		return status;
	fill(err, site, status);
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(err->message, sizeof(err->message), fmt, ap);
	va_end(ap);
	return status;
}

enum qcow_status qk_err_set_at(struct qcow_error *err, const char *site, enum qcow_status status,
	unsigned finding, uint64_t host_off, uint64_t guest_off, const char *fmt, ...)
{
	if (err == NULL)
		return status;
	fill(err, site, status);
	err->finding = finding;
	err->host_off = host_off;
	err->guest_off = guest_off;
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(err->message, sizeof(err->message), fmt, ap);
	va_end(ap);
	return status;
}

enum qcow_status qk_status_from_errno(int os_errno)
{
	switch (os_errno) {
	case ENOMEM:
		return QCOW_E_NOMEM;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return QCOW_E_NOSPC;
	case ENOENT:
	case ENOTDIR:
		return QCOW_E_NOENT;
	case EEXIST:
		return QCOW_E_EXIST;
	case EACCES:
	case EPERM:
	case EROFS:
		return QCOW_E_ACCESS;
	case EOPNOTSUPP:
	case ENOSYS:
		return QCOW_E_NOTSUP;
	default:
		return QCOW_E_IO;
	}
}

enum qcow_status qk_err_set_os(
	struct qcow_error *err, const char *site, int os_errno, const char *fmt, ...)
{
	enum qcow_status status = qk_status_from_errno(os_errno);
	if (err == NULL)
		return status;
	fill(err, site, status);
	err->os_errno = os_errno;
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(err->message, sizeof(err->message), fmt, ap);
	va_end(ap);
	size_t used = strlen(err->message);
	char text[128] = "";
	const char *said = strerror_r(os_errno, text, sizeof(text));
	(void)snprintf(err->message + used, sizeof(err->message) - used, ": %s", said);
	return status;
}

void qk_err_context(struct qcow_error *err, const char *fmt, ...)
{
	if (err == NULL || err->status == QCOW_OK)
		return;
	char old[QCOW_ERROR_MESSAGE_BYTES];
	memcpy(old, err->message, sizeof(old));
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(err->message, sizeof(err->message), fmt, ap);
	va_end(ap);
	size_t used = strlen(err->message);
	(void)snprintf(err->message + used, sizeof(err->message) - used, ": %s", old);
}

void qk_err_complete(struct qcow_error *err, const char *site, enum qcow_status status)
{
	if (err == NULL || status == QCOW_OK || err->status == status)
		return;
	fill(err, site, status);
	(void)snprintf(err->message, sizeof(err->message), "%s", qcow_status_text(status));
}

void qk_err_clear(struct qcow_error *err)
{
	if (err == NULL)
		return;
	fill(err, NULL, QCOW_OK);
	err->message[0] = '\0';
}

void qk_bug(const char *site, const char *number, const char *condition)
{
#ifdef QK_ABORT_ON_BUG
	(void)fprintf(stderr, "%s: invariant %s does not hold: %s\n", site, number, condition);
	abort();
#else
	(void)site;
	(void)number;
	(void)condition;
#endif
}

static const struct {
	enum qcow_status status;
	const char *name, *text;
} statuses[] = {
	{QCOW_OK, "QCOW_OK", "success"},
	{QCOW_E_INVAL, "QCOW_E_INVAL", "invalid argument"},
	{QCOW_E_NOMEM, "QCOW_E_NOMEM", "out of memory"},
	{QCOW_E_IO, "QCOW_E_IO", "input/output error"},
	{QCOW_E_NOSPC, "QCOW_E_NOSPC", "no space left"},
	{QCOW_E_NOENT, "QCOW_E_NOENT", "not found"},
	{QCOW_E_EXIST, "QCOW_E_EXIST", "it exists already"},
	{QCOW_E_ACCESS, "QCOW_E_ACCESS", "permission denied"},
	{QCOW_E_LOCKED, "QCOW_E_LOCKED", "in use by another process"},
	{QCOW_E_NOT_QCOW2, "QCOW_E_NOT_QCOW2", "not a qcow2 image"},
	{QCOW_E_FORMAT, "QCOW_E_FORMAT", "malformed image"},
	{QCOW_E_UNSUPPORTED, "QCOW_E_UNSUPPORTED", "not supported"},
	{QCOW_E_CORRUPT, "QCOW_E_CORRUPT", "corrupt metadata"},
	{QCOW_E_RANGE, "QCOW_E_RANGE", "out of range"},
	{QCOW_E_READONLY, "QCOW_E_READONLY", "read-only"},
	{QCOW_E_POLICY, "QCOW_E_POLICY", "refused by policy"},
	{QCOW_E_LOOP, "QCOW_E_LOOP", "loop in the backing chain"},
	{QCOW_E_LIMIT, "QCOW_E_LIMIT", "limit exceeded"},
	{QCOW_E_CANCELLED, "QCOW_E_CANCELLED", "cancelled"},
	{QCOW_E_KEY, "QCOW_E_KEY", "wrong or missing secret"},
	{QCOW_E_NOTSUP, "QCOW_E_NOTSUP", "operation not supported by the store"},
	{QCOW_E_BUG, "QCOW_E_BUG", "bug in qcowkit"},
	{QCOW_E_WOULD_BLOCK, "QCOW_E_WOULD_BLOCK", "it would have to wait"},
};

const char *qcow_status_name(enum qcow_status status)
{
	for (size_t i = 0; i < sizeof(statuses) / sizeof(statuses[0]); i++)
		if (statuses[i].status == status)
			return statuses[i].name;
	return "?";
}

const char *qcow_status_text(enum qcow_status status)
{
	for (size_t i = 0; i < sizeof(statuses) / sizeof(statuses[0]); i++)
		if (statuses[i].status == status)
			return statuses[i].text;
	return "?";
}
