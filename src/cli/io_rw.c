/* SPDX-License-Identifier: MIT */
/*
 * io_rw: the commands that move bytes and wait for them: read, readv, write, writev, discard.
 */
#include "cli/io.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include <qcowkit/manage.h>

#include "cli/io_args.h"

/* The part of what was read that -P looks at. */
struct verify {
	uint64_t from, bytes;
	bool has_from, has_bytes;
};

/* Does `buf` hold the pattern? False: it says so, with the offset as QEMU counts it. */
static bool check_pattern(
	const struct io_flags *flags, const uint8_t *buf, const struct verify *v, uint64_t off)
{
	if (flags->pattern < 0)
		return true;
	for (uint64_t i = 0; i < v->bytes; i++)
		if (buf[v->from + i] != (uint8_t)flags->pattern) {
			(void)printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64
				     " bytes\n",
				off + v->from, v->bytes);
			return false;
		}
	return true;
}

/* Read, verify, dump, report. */
/* `lengths`: of the buffers, n words; NULL: it is one. */
static int do_read(struct io *io, const struct io_flags *flags, const char *what,
	const struct verify *verify, struct io_bytes bytes, char *const *lengths)
{
	uint64_t off = bytes.off, len = bytes.len;
	QK_AUTO_FREE struct iovec *iov = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	QK_AUTO_FREE void *whole = NULL;
	if (!flags->vm_state && io_check_range(io, len, off, &err) != QCOW_OK)
		return io_failed(io, what, &err);
	uint8_t *buf = io_buffer(io, len, 0xab, &whole);
	if (buf != NULL && lengths != NULL)
		iov = io_cut(lengths, bytes.n_iov, buf);
	bytes.buf = buf;
	bytes.iov = iov;
	if (buf == NULL || (lengths != NULL && iov == NULL)) {
		err.status = QCOW_E_NOMEM;
		return io_failed(io, what, &err);
	}
	double begun = io_now();
	enum qcow_status status = flags->vm_state
					  ? qcow_read_vm_state(io->image, buf, len, off, &err)
					  : io_move_read(io, &bytes, &err);
	double seconds = io_now() - begun;
	if (status != QCOW_OK)
		return io_failed(io, what, &err);
	bool same = check_pattern(flags, buf, verify, off);
	if (flags->quiet)
		return same ? 0 : -1;
	if (flags->dump)
		io_put_dump(buf, len, off);
	io_put_report(&(struct io_report){.verb = "read",
		.off = off,
		.bytes = len,
		.seconds = seconds,
		.machine = flags->machine});
	return same ? 0 : -1;
}

/* -b moves whole sectors. */
static bool is_aligned(const char *text, uint64_t value, const char *name)
{
	if (value % 512 == 0)
		return true;
	(void)printf("%s is not a sector-aligned value for '%s'\n", text, name);
	return false;
}

int io_cmd_read(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct io_flags flags = {.pattern = -1};
	struct verify verify = {0};
	int c = 0;
	while ((c = io_getopt(self, argc, argv)) != -1) {
		if (c == 'l') {
			verify.has_bytes = true;
			if (!io_number(optarg, &verify.bytes))
				return -1;
		} else if (c == 's') {
			verify.has_from = true;
			if (!io_number(optarg, &verify.from))
				return -1;
		} else if (!io_take_flag(&flags, c)) {
			return c == 'P' ? -1 : io_usage(self);
		}
	}
	uint64_t off = 0, len = 0;
	if (argc - optind != 2)
		return io_usage(self);
	if (!io_number(argv[optind], &off) || !io_length(argv[optind + 1], "", &len))
		return -1;
	if (flags.pattern < 0 && (verify.has_bytes || verify.has_from))
		return io_usage(self);
	if (!verify.has_bytes)
		verify.bytes = len - (verify.from < len ? verify.from : len);
	if (verify.from > len || verify.bytes > len - verify.from) {
		(void)printf("pattern verification range exceeds end of read data\n");
		return -1;
	}
	if (flags.vm_state && (!is_aligned(argv[optind], off, "offset") ||
				      !is_aligned(argv[optind + 1], len, "count")))
		return -1;
	return do_read(
		io, &flags, "read", &verify, (struct io_bytes){.len = len, .off = off}, NULL);
}

int io_cmd_readv(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct io_flags flags = {.pattern = -1};
	if (!io_take_flags(self, argc, argv, &flags))
		return -1;
	uint64_t off = 0;
	struct verify verify = {0};
	if (argc - optind < 2)
		return io_usage(self);
	if (!io_number(argv[optind], &off) ||
		!io_lengths(argv + optind + 1, argc - optind - 1, &verify.bytes))
		return -1;
	struct io_bytes bytes = {.len = verify.bytes, .off = off, .n_iov = argc - optind - 1};
	return do_read(io, &flags, "readv", &verify, bytes, argv + optind + 1);
}

/* Fill buf with the bytes of a file, again and again. */
static bool fill_from_file(const char *path, uint8_t *buf, uint64_t len)
{
	FILE *f = fopen(path, "rbe");
	size_t n = f != NULL ? fread(buf, 1, len, f) : 0;
	if (f == NULL || ferror(f) != 0)
		(void)fprintf(stderr, "%s: %s\n", path, strerror(errno));
	else if (n == 0)
		(void)fprintf(stderr, "%s: file is empty\n", path);
	bool ok = f != NULL && ferror(f) == 0 && (n != 0 || len == 0);
	if (f != NULL)
		(void)fclose(f);
	for (uint64_t at = n; ok && at < len; at += n)
		memcpy(buf + at, buf, len - at < n ? len - at : n);
	return ok;
}

/* Write, report. `path`: where the bytes come from, or NULL. `lengths` as for reading. */
static int do_write(struct io *io, const struct io_flags *flags, const char *what, const char *path,
	struct io_bytes bytes, char *const *lengths)
{
	uint64_t off = bytes.off, len = bytes.len;
	QK_AUTO_FREE struct iovec *iov = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	QK_AUTO_FREE void *whole = NULL;
	uint8_t *buf = NULL;
	if (!flags->vm_state && io_check_range(io, len, off, &err) != QCOW_OK)
		return io_failed(io, what, &err);
	if (!flags->zero) {
		buf = io_buffer(io, len, flags->pattern < 0 ? 0xcd : flags->pattern, &whole);
		if (buf != NULL && lengths != NULL)
			iov = io_cut(lengths, bytes.n_iov, buf);
		if (buf == NULL || (lengths != NULL && iov == NULL)) {
			err.status = QCOW_E_NOMEM;
			return io_failed(io, what, &err);
		}
		if (path != NULL && !fill_from_file(path, buf, len))
			return -1;
	}
	bytes.buf = buf;
	bytes.iov = iov;
	double begun = io_now();
	enum qcow_status status = io_move_write(io, flags, &bytes, &err);
	double seconds = io_now() - begun;
	if (status != QCOW_OK)
		return io_failed(io, what, &err);
	if (!flags->quiet)
		io_put_report(&(struct io_report){.verb = "wrote",
			.off = off,
			.bytes = len,
			.seconds = seconds,
			.machine = flags->machine});
	return 0;
}

/* Which options of write exclude one another: a sentence, or NULL. */
static const char *write_conflict(const struct io_flags *f, const char *path)
{
	if (f->vm_state && f->zero)
		return "-b and -z cannot be specified at the same time";
	if (f->fua && (f->vm_state || f->compress))
		return "-f and -b or -c cannot be specified at the same time";
	if (f->no_fallback && !f->zero)
		return "-n requires -z to be specified";
	if (f->unmap && !f->zero)
		return "-u requires -z to be specified";
	if (f->zero + (f->pattern >= 0) + (path != NULL) > 1)
		return "Only one of -z, -P, and -s can be specified at the same time";
	return NULL;
}

int io_cmd_write(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct io_flags flags = {.pattern = -1};
	const char *path = NULL;
	int c = 0;
	while ((c = io_getopt(self, argc, argv)) != -1) {
		if (c == 's')
			path = optarg;
		else if (!io_take_flag(&flags, c))
			return c == 'P' ? -1 : io_usage(self);
	}
	if (argc - optind != 2)
		return io_usage(self);
	const char *conflict = write_conflict(&flags, path);
	if (conflict != NULL) {
		(void)printf("%s\n", conflict);
		return -1;
	}
	uint64_t off = 0, len = 0;
	if (!io_number(argv[optind], &off))
		return -1;
	if (flags.zero && flags.no_fallback ? !io_number(argv[optind + 1], &len)
					    : !io_length(argv[optind + 1], " without -n", &len))
		return -1;
	if ((flags.vm_state || flags.compress) &&
		(!is_aligned(argv[optind], off, "offset") ||
			!is_aligned(argv[optind + 1], len, "count")))
		return -1;
	/* with -z there is nothing to compress */
	flags.compress = flags.compress && !flags.zero;
	return do_write(io, &flags, "write", path, (struct io_bytes){.len = len, .off = off}, NULL);
}

int io_cmd_writev(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct io_flags flags = {.pattern = -1};
	if (!io_take_flags(self, argc, argv, &flags))
		return -1;
	uint64_t off = 0, len = 0;
	if (argc - optind < 2)
		return io_usage(self);
	if (!io_number(argv[optind], &off) ||
		!io_lengths(argv + optind + 1, argc - optind - 1, &len))
		return -1;
	struct io_bytes bytes = {.len = len, .off = off, .n_iov = argc - optind - 1};
	return do_write(io, &flags, "writev", NULL, bytes, argv + optind + 1);
}

int io_cmd_discard(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct io_flags flags = {.pattern = -1};
	struct qcow_error err = QCOW_ERROR_INIT;
	if (!io_take_flags(self, argc, argv, &flags))
		return -1;
	uint64_t off = 0, len = 0;
	if (argc - optind != 2)
		return io_usage(self);
	if (!io_number(argv[optind], &off) || !io_length(argv[optind + 1], "", &len))
		return -1;
	double begun = io_now();
	enum qcow_status status = io_move_discard(io, len, off, &err);
	double seconds = io_now() - begun;
	if (status != QCOW_OK)
		return io_failed(io, "discard", &err);
	if (!flags.quiet)
		io_put_report(&(struct io_report){.verb = "discard",
			.off = off,
			.bytes = len,
			.seconds = seconds,
			.machine = flags.machine});
	return 0;
}
