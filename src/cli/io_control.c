/* SPDX-License-Identifier: MIT */
/*
 * io_control: breakpoints of blkdebug, and what concerns the run itself: sleep, abort, sigraise, quit.
 */
#include "cli/io.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cli/blkdebug.h"

int io_cmd_break(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	int rc = cli_blkdebug_break(io->cli, argv[1], argv[2]);
	if (rc == 0)
		return 0;
	(void)printf("Could not set breakpoint: %s\n", strerror(rc));
	return -1;
}

int io_cmd_remove_break(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	int rc = cli_blkdebug_remove_break(io->cli, argv[1]);
	if (rc == 0)
		return 0;
	(void)printf("Could not remove breakpoint %s: %s\n", argv[1], strerror(rc));
	return -1;
}

int io_cmd_resume(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	int rc = cli_blkdebug_resume(io->cli, argv[1]);
	if (rc == 0)
		return 0;
	(void)printf("Could not resume request: %s\n", strerror(rc));
	return -1;
}

int io_cmd_wait_break(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	(void)fflush(stdout);
	int rc = cli_blkdebug_wait(io->cli, argv[1], io_aio_in_flight, io);
	if (rc == 0)
		return 0;
	(void)printf("Could not wait for breakpoint %s: %s\n", argv[1],
		rc == ENOENT ? "no request can reach it" : strerror(rc));
	return -1;
}

int io_cmd_sleep(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)io;
	(void)self;
	(void)argc;
	char *end = NULL;
	errno = 0;
	long ms = strtol(argv[1], &end, 0);
	if (end == argv[1] || *end != '\0' || errno != 0 || ms < 0) {
		(void)printf("%s is not a valid number\n", argv[1]);
		return -1;
	}
	(void)fflush(stdout);
	struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
	while (nanosleep(&left, &left) != 0 && errno == EINTR)
		;
	return 0;
}

/* The end as of a crash: nothing is flushed, neither image nor output. */
int io_cmd_abort(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)io;
	(void)self;
	(void)argc;
	(void)argv;
	abort();
}

int io_cmd_sigraise(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)io;
	(void)self;
	(void)argc;
	uint64_t number = 0;
	if (!io_number(argv[1], &number))
		return -1;
	if (number > NSIG) {
		(void)printf(
			"signal argument '%s' is too large to be a valid signal number\n", argv[1]);
		return -1;
	}
	/* what was printed is not lost with us */
	(void)fflush(stdout);
	(void)raise((int)number);
	return 0;
}

int io_cmd_quit(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	(void)argv;
	io->quit = true;
	return 0;
}
