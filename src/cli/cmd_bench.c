/* SPDX-License-Identifier: MIT */
/*
 * qcow bench: how fast requests of one size go through an image.
 *
 * A thread stands for a request in flight. All of them take the next request from one place, struct bench, under its
 * lock; nothing else is shared but the image. A flush that drains keeps new requests back, waits for those in flight, and
 * runs alone; else it runs beside them. The first failure ends the run.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/num.h"
#include "cli/cli.h"

enum {
	MAX_THREADS = 512,
	STACK_BYTES = 256 << 10,
	BUFFER_ALIGN = 4096
};

/* Buffers of all threads together; a deeper queue of large requests has fewer in flight. */
#define MAX_BUFFERS_BYTES QK_GIB(1)

struct bench {
	struct cli *cli;
	struct qcow_image *image;
	uint64_t count, depth, offset, buffer_bytes, step, flush_interval, pattern;
	unsigned write_flags; /* QCOW_IO_… */
	bool is_write, drains;
	uint8_t *pattern_buf; /* of writes, read by every thread */

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	uint64_t n_taken, n_since_flush, n_in_flight, next_off;
	bool is_flushing; /* and keeps the others back */
	enum qcow_status status;
	struct qcow_error err; /* of the first failure */
};

static double now(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- the requests ---- */

/* Under the lock. */
static void note_failure(struct bench *b, enum qcow_status status, const struct qcow_error *err)
{
	if (status == QCOW_OK || b->status != QCOW_OK)
		return;
	b->status = status;
	b->err = *err;
}

/* Under the lock, which it leaves for the flush. */
static void flush(struct bench *b)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	b->n_since_flush = 0;
	b->is_flushing = b->drains;
	(void)pthread_mutex_unlock(&b->lock);
	enum qcow_status status = qcow_flush(b->image, &err);
	(void)pthread_mutex_lock(&b->lock);
	b->is_flushing = false;
	note_failure(b, status, &err);
	(void)pthread_cond_broadcast(&b->changed);
}

/* The next request, or the flush that is due before it. False: there is none. Under the lock. */
static bool take(struct bench *b, uint64_t *off)
{
	uint64_t size = qcow_size(b->image);
	while (b->status == QCOW_OK) {
		bool is_due = b->flush_interval != 0 && b->n_since_flush == b->flush_interval;
		if (b->is_flushing || (is_due && b->drains && b->n_in_flight != 0)) {
			(void)pthread_cond_wait(&b->changed, &b->lock);
			continue;
		}
		if (is_due) {
			flush(b);
			continue;
		}
		if (b->n_taken == b->count)
			return false;
		*off = b->next_off;
		b->next_off += b->step;
		if (b->next_off > size || b->buffer_bytes > size - b->next_off)
			b->next_off = 0;
		b->n_taken++;
		b->n_since_flush++;
		b->n_in_flight++;
		return true;
	}
	return false;
}

static void *run_requests(void *ctx)
{
	struct bench *b = ctx;
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = QCOW_OK;
	uint64_t off = 0;
	QK_AUTO_FREE uint8_t *own = b->is_write ? NULL
						: qk_malloc_aligned(BUFFER_ALIGN, b->buffer_bytes);
	if (!b->is_write && own == NULL)
		status = QK_FAIL_NOMEM(&err);
	(void)pthread_mutex_lock(&b->lock);
	note_failure(b, status, &err);
	while (take(b, &off)) {
		(void)pthread_mutex_unlock(&b->lock);
		if (b->is_write)
			status = qcow_pwrite(b->image, b->pattern_buf, b->buffer_bytes, off,
				b->write_flags, &err);
		else
			status = qcow_pread(b->image, own, b->buffer_bytes, off, &err);
		(void)pthread_mutex_lock(&b->lock);
		b->n_in_flight--;
		note_failure(b, status, &err);
		if (b->n_in_flight == 0 || status != QCOW_OK)
			(void)pthread_cond_broadcast(&b->changed);
	}
	(void)pthread_mutex_unlock(&b->lock);
	return NULL;
}

/* As many as there are requests in flight at most; where the host has no more threads, fewer. */
static bool run_threads(struct bench *b)
{
	pthread_t threads[MAX_THREADS];
	pthread_attr_t attr;
	uint64_t fit = qk_max(1, MAX_BUFFERS_BYTES / b->buffer_bytes);
	uint64_t wanted = qk_min(qk_min(b->depth, b->count), qk_min(fit, MAX_THREADS));
	size_t n = 0;
	int rc = pthread_attr_init(&attr);
	if (rc == 0) {
		(void)pthread_attr_setstacksize(&attr, STACK_BYTES);
		while (n < wanted && rc == 0) {
			rc = pthread_create(&threads[n], &attr, run_requests, b);
			n += rc == 0;
		}
		(void)pthread_attr_destroy(&attr);
	}
	for (size_t i = 0; i < n; i++)
		(void)pthread_join(threads[i], NULL);
	if (n == 0)
		cli_error(b->cli, "no thread for a request: %s", strerror(rc));
	return n != 0;
}

/* ---- the command ---- */

static bool read_number(struct bench *b, const struct cli_args *args, const char *option,
	const char *what, uint64_t min, uint64_t max, uint64_t *out)
{
	const char *text = cli_arg(args, option);
	return text == NULL || cli_parse_number(b->cli, what, text, min, max, out);
}

static bool read_size(struct bench *b, const struct cli_args *args, const char *option,
	const char *what, uint64_t min, uint64_t max, uint64_t *out)
{
	const char *text = cli_arg(args, option);
	if (text == NULL)
		return true;
	if (!cli_parse_size(b->cli, what, text, out))
		return false;
	if (*out >= min && *out <= max)
		return true;
	cli_error(b->cli, "Invalid %s specified. Must be between %" PRIu64 " and %" PRIu64 ".",
		what, min, max);
	return false;
}

static bool read_options(struct bench *b, const struct cli_args *args)
{
	b->count = 75000;
	b->depth = 64;
	b->buffer_bytes = 4096;
	b->is_write = cli_flag(args, "write");
	b->drains = !cli_flag(args, "no-drain");
	if (!read_number(b, args, "count", "request count", 1, INT_MAX, &b->count) ||
		!read_number(b, args, "depth", "queue depth", 1, INT_MAX, &b->depth) ||
		!read_size(b, args, "offset", "offset", 0, INT64_MAX, &b->offset) ||
		!read_size(b, args, "buffer-size", "buffer size", 1, INT_MAX, &b->buffer_bytes) ||
		!read_size(b, args, "step-size", "step size", 0, INT_MAX, &b->step) ||
		!read_number(b, args, "flush-interval", "flush interval", 0, INT_MAX,
			&b->flush_interval) ||
		!read_number(b, args, "pattern", "pattern byte", 0, 255, &b->pattern))
		return false;
	if (b->step == 0)
		b->step = b->buffer_bytes;
	b->next_off = b->offset;
	if (!b->is_write && b->flush_interval != 0) {
		cli_error(b->cli, "--flush-interval is only available in write tests");
		return false;
	}
	if (b->flush_interval != 0 && b->flush_interval < b->depth) {
		cli_error(b->cli, "Flush interval can't be smaller than depth");
		return false;
	}
	if ((cli_cache_file_flags(cli_arg(args, "cache")) & (unsigned)QCOW_FILE_SYNC) != 0)
		b->write_flags |= QCOW_IO_FUA;
	return true;
}

static bool open_image(struct bench *b, const struct cli_args *args)
{
	struct cli_open_request request;
	unsigned flags = b->is_write ? (unsigned)CLI_OPEN_WRITE : 0;
	if (!cli_open_request_init(b->cli, args, args->operands[0], flags, &request))
		return false;
	if (b->is_write && (request.flags & CLI_OPEN_SHARE) != 0) {
		cli_error(b->cli,
			"Could not open '%s': force-share=on can only be used with read-only "
			"images",
			args->operands[0]);
		return false;
	}
	if (cli_open(b->cli, &request, &b->image) != QCOW_OK)
		return false;
	if (!b->is_write)
		return true;
	b->pattern_buf = qk_malloc_aligned(BUFFER_ALIGN, b->buffer_bytes);
	if (b->pattern_buf == NULL) {
		cli_error(b->cli, "Cannot allocate memory");
		return false;
	}
	memset(b->pattern_buf, (int)b->pattern, b->buffer_bytes);
	return true;
}

static void put_start(const struct bench *b)
{
	(void)printf("Sending %" PRIu64 " %s requests, %" PRIu64 " bytes each, %" PRIu64
		     " in parallel (starting at offset %" PRIu64 ", step size %" PRIu64 ")\n",
		b->count, b->is_write ? "write" : "read", b->buffer_bytes, b->depth, b->offset,
		b->step);
	if (b->flush_interval != 0)
		(void)printf("Sending flush every %" PRIu64 " requests\n", b->flush_interval);
	(void)fflush(stdout);
}

static int put_result(const struct bench *b, const struct cli_args *args, double seconds)
{
	double done = (double)b->count, bytes = done * (double)b->buffer_bytes;
	double per = seconds > 0 ? 1 / seconds : 0;
	if (cli_wants_json(args)) {
		json_t *o = json_object();
		cli_json_set(o, "requests", cli_json_u64(b->count));
		cli_json_set(o, "bytes", cli_json_u64(b->count * b->buffer_bytes));
		cli_json_set(o, "seconds", json_real(seconds));
		return cli_json_print(b->cli, o);
	}
	if (cli_flag(args, "quiet") && !b->cli->qemu)
		return 0;
	(void)printf("Run completed in %3.3f seconds.\n", seconds);
	if (!b->cli->qemu)
		(void)printf("%.0f requests and %.1f MiB a second\n", done * per,
			bytes * per / (1 << 20));
	return 0;
}

static int run_bench(struct bench *b, const struct cli_args *args)
{
	bool is_quiet = cli_wants_json(args) || (cli_flag(args, "quiet") && !b->cli->qemu);
	if (!read_options(b, args) || !open_image(b, args))
		return 1;
	if (!is_quiet)
		put_start(b);
	double begun = now();
	if (!run_threads(b))
		return 1;
	double seconds = now() - begun;
	/* what follows is no part of what was measured */
	if (b->status == QCOW_OK && b->is_write)
		b->status = qcow_flush(b->image, &b->err);
	if (b->status == QCOW_OK)
		return put_result(b, args, seconds);
	if (b->cli->qemu)
		cli_error(b->cli, "Failed request: %s",
			strerror(b->err.os_errno != 0	     ? b->err.os_errno
				 : b->status == QCOW_E_NOMEM ? ENOMEM
							     : EIO));
	else
		(void)cli_fail(b->cli, &b->err, "a request failed");
	return 1;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct bench b = {.cli = cli, .lock = PTHREAD_MUTEX_INITIALIZER, .err = QCOW_ERROR_INIT};
	if (pthread_cond_init(&b.changed, NULL) != 0) {
		cli_error(cli, "Cannot allocate memory");
		return 1;
	}
	int rc = run_bench(&b, args);
	rc = cli_close(cli, b.image, rc == 0) ? rc : 1;
	free(b.pattern_buf);
	(void)pthread_cond_destroy(&b.changed);
	return rc;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	CLI_OPT_CACHE,
	{.letter = 'c',
		.name = "count",
		.arg = "COUNT",
		.help = "number of requests (the default is 75000)"},
	{.letter = 'd',
		.name = "depth",
		.arg = "DEPTH",
		.help = "requests in flight at a time (64)"},
	{.letter = 'o', .name = "offset", .arg = "OFFSET", .help = "where the first one goes"},
	{.letter = 's', .name = "buffer-size", .arg = "SIZE", .help = "bytes of a request (4k)"},
	{.letter = 'S',
		.name = "step-size",
		.arg = "SIZE",
		.help = "from the start of one to that of the next (the size of a request)"},
	{.letter = 'w', .name = "write", .help = "write; the data of the disk is lost"},
	{.name = "pattern", .arg = "BYTE", .help = "write this byte, not 0"},
	{.name = "flush-interval", .arg = "COUNT", .help = "flush after that many writes"},
	{.name = "no-drain", .help = "a flush does not wait for the writes in flight"},
	{.letter = 'i',
		.name = "aio",
		.arg = "MODE",
		.choices = "threads|native|io_uring",
		.help = "accepted, threads are used"},
	{.letter = 'n', .name = "native", .help = "accepted, means nothing here"},
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_QUIET,
	CLI_OPT_OUTPUT_QCOW,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_bench = {
	.name = "bench",
	.summary = "measure how fast requests go through an image",
	.synopsis =
		"[-f FMT | --image-opts] [-t CACHE] [-c COUNT] [-d DEPTH] [-o OFFSET] [-s SIZE] "
		"[-S STEP] [-w [--pattern BYTE] [--flush-interval COUNT [--no-drain]]] [-U] "
		"[-q] FILE",
	.about = "Reads, or with -w writes, requests of one size, one behind the other. Where the\n"
		 "next one would go past the end of the disk it begins again at 0.",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.run = run,
};
