/* SPDX-License-Identifier: MIT */
/*
 * io: what the files of `qcow io` share. The command reads lines such as "write -P 7 0 64k" from -c options, standard
 * input or a terminal, and does to one open image what they say.
 *
 *   cmd_io.c       options of the program, where lines come from
 *   io_table.c     the table of commands, finding and running one, help
 *   io_open.c      open, close
 *   io_reopen.c    reopen
 *   io_args.c      letters and words of the commands that move bytes
 *   io_text.c      numbers as they are typed and printed, reports, dumps
 *   io_move.c      the requests themselves: read, write, zero, discard of byte ranges
 *   io_span.c      which of them are alone in their range
 *   io_rw.c        read, readv, write, writev, discard
 *   io_aio.c       aio_read, aio_write, aio_discard, aio_flush: one thread a request
 *   io_state.c     alloc, map, length, info, truncate, flush
 *   io_control.c   break, resume, wait_break, remove_break, sleep, abort, sigraise, quit
 *   io_edit.c      lines from a terminal
 *
 * Threads: commands run on the main thread, and it alone prints (but for breaks, see blkdebug.h). Threads of aio requests touch their own request and
 * the image.
 */
#ifndef QK_CLI_IO_H
#define QK_CLI_IO_H

#include <time.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/io_span.h"

struct io_request;

/* How an image is opened. */
struct io_mode {
	const char *format; /* -f, or NULL */
	const char *cache; /* -t, or NULL */
	bool read_only, share, temporary, copy_on_read;
	bool keeps; /* -d ignore */
	bool image_opts; /* names are option strings */
};

struct io {
	struct cli *cli;
	struct io_mode mode; /* of the command line; `open` starts from it */
	bool misalign; /* -m: buffers begin at odd addresses */
	bool quit; /* `quit` was said */
	/* the open file: */
	struct qcow_image *image; /* NULL: none */
	struct io_mode opened;
	char *name, *options; /* as given to the open; each may be NULL */
	bool ignores_discards;
	bool compresses; /* the driver compress lies over it */
	bool guards_sector_0; /* a raw disk that was probed must not begin to look like another format */
	struct io_spans
		spans; /* of requests, where copy-on-read or the driver compress wants them */
	struct io_request *requests; /* aio that has not been reported, oldest first */
};

/* ---- commands ---- */

enum {
	IO_ANYTIME = 1, /* needs no open file */
	IO_WRITES = 2 /* refused where the file is open read-only */
};

struct io_command {
	const char *name, *alias; /* alias NULL: none */
	int min_args, max_args; /* words behind the name; max -1: any number */
	unsigned flags;
	const char *args, *summary; /* for help and usage lines */
	const char *options; /* of getopt, or NULL: the words are not looked at */
	const char *about; /* paragraphs of help, or NULL */
	/* argv[0] is the name, getopt has not run. 0, or -1: it failed and has said so. */
	int (*run)(struct io *io, const struct io_command *self, int argc, char **argv);
};

/* io_table.c: ordered by name, ended by a row without a name. */
extern const struct io_command io_commands[];

/* Run one line. 0 or -1. The line is cut into words in place. */
int io_run_line(struct io *io, char *line);

/* Print a command's usage line to stdout. Returns -1. */
int io_usage(const struct io_command *command);

/* io_edit.c: read lines until `quit` or the end of input; how many of them failed, at most 1 as exit code. */
int io_run_input(struct io *io);

/* ---- numbers and reports (io_text.c) ---- */

/* The longest a request may be: what 32 bits hold in whole sectors. */
#define IO_MAX_BYTES UINT64_C(2147483136)

/* A number with an optional suffix, of at most 2^63 - 1. False: said so on stdout. */
bool io_number(const char *text, uint64_t *out);
/* A byte, 0 to 255, decimal, octal or hexadecimal. False: said so on stdout. */
bool io_pattern(const char *text, int *out);
/* A number of at most IO_MAX_BYTES. `limit_note` stands in the sentence, "" or " without -n". */
bool io_length(const char *text, const char *limit_note, uint64_t *out);

#define IO_SIZE_BYTES 64
/* "1.500 KiB", "512 bytes". Returns buf. */
const char *io_size(double bytes, char buf[IO_SIZE_BYTES]);

/* What a finished request says: "wrote 512/512 bytes at offset 0" and its speed, or with `machine` a line of commas. */
struct io_report {
	const char *verb; /* "read", "wrote", "discard" */
	uint64_t off, bytes;
	double seconds;
	bool machine;
};
void io_put_report(const struct io_report *report);

void io_put_dump(const uint8_t *bytes, uint64_t n, uint64_t off);

/* The words of the host for a failed call, "Input/output error". */
const char *io_reason(const struct qcow_error *err);

double io_now(void); /* seconds of a steady clock */

/* ---- requests (io_move.c) ---- */

/* Options of a request, from its command's letters. */
struct io_flags {
	bool quiet, dump, machine; /* -q -v -C */
	bool zero, unmap, no_fallback, fua; /* -z -u -n -f */
	bool compress, vm_state; /* -c -b */
	bool invalid; /* -i */
	int pattern; /* -P; -1: none */
};

/* `bytes` of memory for the caller to free through *whole, or NULL. With -m it begins at an odd address. */
uint8_t *io_buffer(const struct io *io, uint64_t bytes, int fill, void **whole);

/* A range of the disk and the memory for it. */
struct io_bytes {
	void *buf;
	uint64_t len, off;
	const struct iovec *
		iov; /* how buf is cut into several buffers, one behind the other; NULL: it is one */
	int n_iov;
};

/* Move bytes. The disk ends with a whole sector of 512 bytes where it is raw, as QEMU counts it. Any thread. */
enum qcow_status io_move_read(
	struct io *io, const struct io_bytes *bytes, struct qcow_error *err) QK_MUST_USE;
enum qcow_status io_move_write(struct io *io, const struct io_flags *flags,
	const struct io_bytes *bytes, struct qcow_error *err) QK_MUST_USE;
enum qcow_status io_move_discard(
	struct io *io, uint64_t len, uint64_t off, struct qcow_error *err) QK_MUST_USE;

/* The size of the disk in whole sectors where it is raw. */
uint64_t io_disk_size(const struct io *io);

/* QCOW_E_RANGE where the range goes past io_disk_size. */
enum qcow_status io_check_range(
	const struct io *io, uint64_t len, uint64_t off, struct qcow_error *err) QK_MUST_USE;

/* "read failed: Input/output error" on stdout; `qcow` also says on stderr what the library found. Returns -1. */
int io_failed(const struct io *io, const char *what, const struct qcow_error *err);

/* ---- opening (io_open.c) ---- */

/* Open `name` (NULL: `options` say all). False: reported. */
bool io_open(struct io *io, const struct io_mode *mode, const char *name, const char *options);
/* Wait for aio, report it, flush and close. False: what was written may not be there, reported. */
bool io_close(struct io *io);
/* Open again what is open, with another mode or size. False: reported, and nothing may be open. */
bool io_open_again(struct io *io, const struct io_mode *mode);

/* ---- aio (io_aio.c) ---- */

/* Report the requests that have ended; wait for all where `wait`. */
void io_aio_collect(struct io *io, bool wait);
/* How many have not ended. ctx: the struct io. */
size_t io_aio_in_flight(const void *ctx);

/* ---- the commands ---- */

typedef int io_run(struct io *io, const struct io_command *self, int argc, char **argv);
io_run io_cmd_open, io_cmd_close, io_cmd_reopen;
io_run io_cmd_read, io_cmd_readv, io_cmd_write, io_cmd_writev, io_cmd_discard;
io_run io_cmd_aio_read, io_cmd_aio_write, io_cmd_aio_discard, io_cmd_aio_flush;
io_run io_cmd_alloc, io_cmd_map, io_cmd_length, io_cmd_info, io_cmd_truncate, io_cmd_flush;
io_run io_cmd_break, io_cmd_resume, io_cmd_wait_break, io_cmd_remove_break;
io_run io_cmd_sleep, io_cmd_abort, io_cmd_sigraise, io_cmd_quit, io_cmd_help;

#endif
