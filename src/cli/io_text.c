/* SPDX-License-Identifier: MIT */
/*
 * io_text: numbers as people type them, and what `qcow io` prints about requests. The forms are those of qemu-io:
 * scripts filter and compare them.
 */
#include "cli/io.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

bool io_number(const char *text, uint64_t *out)
{
	bool out_of_range = false;
	if (cli_read_size(text, out, &out_of_range) == NULL)
		return true;
	if (out_of_range)
		(void)printf("Parsing error: argument too large -- %s\n", text);
	else
		(void)printf("Parsing error: non-numeric argument, or extraneous/unrecognized "
			     "suffix -- %s\n",
			text);
	return false;
}

bool io_pattern(const char *text, int *out)
{
	char *end = NULL;
	errno = 0;
	long v = strtol(text, &end, 0);
	if (end == text || *end != '\0' || errno != 0 || v < 0 || v > 255) {
		(void)printf("%s is not a valid pattern byte\n", text);
		return false;
	}
	*out = (int)v;
	return true;
}

bool io_length(const char *text, const char *limit_note, uint64_t *out)
{
	if (!io_number(text, out))
		return false;
	if (*out <= IO_MAX_BYTES)
		return true;
	(void)printf(
		"length cannot exceed %" PRIu64 "%s, given %s\n", IO_MAX_BYTES, limit_note, text);
	return false;
}

const char *io_size(double bytes, char buf[IO_SIZE_BYTES])
{
	static const char *const units[] = {"EiB", "PiB", "TiB", "GiB", "MiB", "KiB"};
	double unit = 0x1p60;
	size_t i = 0, n = sizeof(units) / sizeof(units[0]);
	while (i < n && bytes < unit) {
		unit /= 1024;
		i++;
	}
	char digits[48];
	int used = snprintf(digits, sizeof(digits), i < n ? "%.3f" : "%f", bytes / unit);
	/* a whole number has no point */
	char *point = memchr(digits, '.', (size_t)used);
	if (point != NULL && strspn(point + 1, "0") == strlen(point + 1))
		*point = '\0';
	(void)snprintf(buf, IO_SIZE_BYTES, "%s %s", digits, i < n ? units[i] : "bytes");
	return buf;
}

/* "00.01 sec", "12:00.01", "3:12:00.01"; `fixed`: always the last form. */
static void put_time(double seconds, bool fixed, char *out, size_t room)
{
	uint64_t hundredths = (uint64_t)(seconds * 100);
	unsigned cs = (unsigned)(hundredths % 100), s = (unsigned)(hundredths / 100 % 60);
	unsigned m = (unsigned)(hundredths / 6000 % 60);
	unsigned long h = (unsigned long)(hundredths / 360000);
	if (fixed || h != 0)
		(void)snprintf(out, room, "%lu:%02u:%02u.%02u", h, m, s, cs);
	else if (m != 0)
		(void)snprintf(out, room, "%02u:%02u.%02u", m, s, cs);
	else
		(void)snprintf(out, room, "%02u.%02u sec", s, cs);
}

void io_put_report(const struct io_report *r)
{
	char time_text[64], total[IO_SIZE_BYTES], speed[IO_SIZE_BYTES];
	double seconds = r->seconds > 0 ? r->seconds : 1e-9;
	put_time(r->seconds, r->machine, time_text, sizeof(time_text));
	if (r->machine) {
		(void)printf("%" PRIu64 ",1,%s,%.3f,%.3f\n", r->bytes, time_text,
			(double)r->bytes / seconds, 1 / seconds);
		return;
	}
	(void)printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", r->verb, r->bytes,
		r->bytes, r->off);
	(void)printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n", io_size((double)r->bytes, total),
		time_text, io_size((double)r->bytes / seconds, speed), 1 / seconds);
}

void io_put_dump(const uint8_t *bytes, uint64_t n, uint64_t off)
{
	for (uint64_t at = 0; at < n; at += 16) {
		uint64_t row = n - at < 16 ? n - at : 16;
		(void)printf("%08" PRIx64 ":  ", off + at);
		for (uint64_t i = 0; i < row; i++)
			(void)printf("%02x ", bytes[at + i]);
		(void)putchar(' ');
		for (uint64_t i = 0; i < row; i++) {
			uint8_t c = bytes[at + i];
			(void)putchar(c < 0x80 && isalnum(c) ? c : '.');
		}
		(void)putchar('\n');
	}
}

const char *io_reason(const struct qcow_error *err)
{
	if (err->os_errno != 0)
		return strerror(err->os_errno);
	switch (err->status) {
	case QCOW_E_NOMEM:
		return strerror(ENOMEM);
	case QCOW_E_NOSPC:
		return strerror(ENOSPC);
	case QCOW_E_READONLY:
		return strerror(EPERM);
	case QCOW_E_UNSUPPORTED:
	case QCOW_E_NOTSUP:
		return strerror(ENOTSUP);
	case QCOW_E_INVAL:
		return strerror(EINVAL);
	default:
		return strerror(EIO);
	}
}

double io_now(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
