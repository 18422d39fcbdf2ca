/* SPDX-License-Identifier: MIT */
/*
 * io_aio: requests that run while the next commands do. Each has a thread of its own, so any number may stand at
 * breakpoints while others go on. A thread touches its request and the image; the main thread prints what became of
 * a request: at aio_flush, before the next line is run where it has ended, and at the close.
 *
 * Requests are reported in the order in which they were begun, of those that have ended.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "cli/io_args.h"

enum {
	STACK_BYTES = 256 << 10
};

struct io_request {
	struct io_request *next;
	struct io *io;
	pthread_t thread;
	enum {
		READ,
		WRITE,
		DISCARD
	} kind;
	struct io_flags flags;
	uint64_t off, len;
	void *whole; /* of buf, to be freed */
	uint8_t *buf;
	struct iovec *iov; /* how it is cut, or NULL */
	int n_iov;
	/* written by the thread, read once `ended` is true: */
	enum qcow_status status;
	struct qcow_error err;
	double seconds;
	atomic_bool ended;
};

static void free_request(struct io_request *r)
{
	free(r->whole);
	free(r->iov);
	free(r);
}

static void *run_request(void *ctx)
{
	struct io_request *r = ctx;
	struct io_bytes bytes = {r->buf, r->len, r->off, r->iov, r->n_iov};
	double begun = io_now();
	switch (r->kind) {
	case READ:
		r->status = io_move_read(r->io, &bytes, &r->err);
		break;
	case WRITE:
		r->status = io_move_write(r->io, &r->flags, &bytes, &r->err);
		break;
	default:
		r->status = io_move_discard(r->io, r->len, r->off, &r->err);
		break;
	}
	r->seconds = io_now() - begun;
	atomic_store(&r->ended, true);
	return NULL;
}

/* Run it; the request is the list's from here on. */
static int start(struct io *io, struct io_request *r)
{
	pthread_attr_t attr;
	int rc = pthread_attr_init(&attr);
	if (rc == 0) {
		(void)pthread_attr_setstacksize(&attr, STACK_BYTES);
		rc = pthread_create(&r->thread, &attr, run_request, r);
		(void)pthread_attr_destroy(&attr);
	}
	if (rc != 0) {
		cli_error(io->cli, "no thread for a request: %s", strerror(rc));
		free_request(r);
		return -1;
	}
	struct io_request **end = &io->requests;
	while (*end != NULL)
		end = &(*end)->next;
	*end = r;
	return 0;
}

static void report(struct io *io, struct io_request *r)
{
	static const char *const failed[] = {"readv", "aio_write", "aio_discard"};
	static const char *const verbs[] = {"read", "wrote", "discarded "};
	if (r->status != QCOW_OK) {
		(void)io_failed(io, failed[r->kind], &r->err);
		return;
	}
	for (uint64_t i = 0; r->kind == READ && r->flags.pattern >= 0 && i < r->len; i++)
		if (r->buf[i] != (uint8_t)r->flags.pattern) {
			(void)printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64
				     " bytes\n",
				r->off, r->len);
			break;
		}
	if (r->flags.quiet)
		return;
	if (r->kind == READ && r->flags.dump)
		io_put_dump(r->buf, r->len, r->off);
	io_put_report(&(struct io_report){.verb = verbs[r->kind],
		.off = r->off,
		.bytes = r->len,
		.seconds = r->seconds,
		.machine = r->flags.machine});
}

size_t io_aio_in_flight(const void *ctx)
{
	const struct io *io = ctx;
	size_t n = 0;
	for (const struct io_request *r = io->requests; r != NULL; r = r->next)
		n += atomic_load(&r->ended) ? 0 : 1;
	return n;
}

void io_aio_collect(struct io *io, bool wait)
{
	struct io_request **at = &io->requests;
	while (*at != NULL) {
		struct io_request *r = *at;
		if (!wait && !atomic_load(&r->ended)) {
			at = &r->next;
			continue;
		}
		(void)pthread_join(r->thread, NULL);
		*at = r->next;
		report(io, r);
		free_request(r);
	}
}

/* `lengths`: of the buffers, n words. */
static struct io_request *new_request(
	struct io *io, const struct io_request *from, char *const *lengths, int n)
{
	struct io_request *r = qk_calloc(1, sizeof(*r));
	int fill = from->kind == READ ? 0xab : from->flags.pattern < 0 ? 0xcd : from->flags.pattern;
	if (r == NULL) {
		cli_error(io->cli, "Cannot allocate memory");
		return NULL;
	}
	r->io = io;
	r->kind = from->kind;
	r->flags = from->flags;
	r->off = from->off;
	r->len = from->len;
	atomic_init(&r->ended, false);
	if (from->kind == DISCARD || from->flags.zero)
		return r;
	r->buf = io_buffer(io, r->len, fill, &r->whole);
	r->iov = r->buf != NULL ? io_cut(lengths, n, r->buf) : NULL;
	r->n_iov = n;
	if (r->iov == NULL) {
		cli_error(io->cli, "Cannot allocate memory");
		free_request(r);
		return NULL;
	}
	return r;
}

int io_cmd_aio_read(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct io_request r = {.kind = READ, .flags.pattern = -1};
	if (!io_take_flags(self, argc, argv, &r.flags))
		return -1;
	if (r.flags.invalid) {
		(void)printf("injecting invalid read request\n");
		return 0;
	}
	if (argc - optind < 2)
		return io_usage(self);
	if (!io_number(argv[optind], &r.off) ||
		!io_lengths(argv + optind + 1, argc - optind - 1, &r.len))
		return -1;
	struct io_request *own = new_request(io, &r, argv + optind + 1, argc - optind - 1);
	return own != NULL ? start(io, own) : -1;
}

static int refuse(const char *why)
{
	(void)printf("%s\n", why);
	return -1;
}

int io_cmd_aio_write(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct io_request r = {.kind = WRITE, .flags.pattern = -1};
	if (!io_take_flags(self, argc, argv, &r.flags))
		return -1;
	if (r.flags.invalid) {
		(void)printf("injecting invalid write request\n");
		return 0;
	}
	if (argc - optind < 2)
		return io_usage(self);
	if (r.flags.zero && argc - optind != 2)
		return refuse("-z supports only a single length parameter");
	if (r.flags.unmap && !r.flags.zero)
		return refuse("-u requires -z to be specified");
	if (!io_number(argv[optind], &r.off))
		return -1;
	if (r.flags.zero ? !io_number(argv[optind + 1], &r.len)
			 : !io_lengths(argv + optind + 1, argc - optind - 1, &r.len))
		return -1;
	struct io_request *own = new_request(io, &r, argv + optind + 1, argc - optind - 1);
	return own != NULL ? start(io, own) : -1;
}

int io_cmd_aio_discard(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct io_request r = {.kind = DISCARD, .flags.pattern = -1};
	if (!io_take_flags(self, argc, argv, &r.flags))
		return -1;
	if (argc - optind != 2)
		return io_usage(self);
	if (!io_number(argv[optind], &r.off) || !io_number(argv[optind + 1], &r.len))
		return -1;
	struct io_request *own = new_request(io, &r, argv + optind + 1, argc - optind - 1);
	return own != NULL ? start(io, own) : -1;
}

int io_cmd_aio_flush(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	(void)argv;
	io_aio_collect(io, true);
	return 0;
}
