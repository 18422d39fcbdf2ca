/* SPDX-License-Identifier: MIT */
/*
 * io_table: the commands of `qcow io`, finding and running the one that a line names, and help.
 *
 * Names, aliases, letters and how the words are counted are those of qemu-io.
 */
#include "cli/io.h"

#include <string.h>
#include <unistd.h>

#define READ_LETTERS                                       \
	" -C  figures for programs, separated by commas\n" \
	" -P  the bytes must all be PATTERN\n"             \
	" -q  print nothing of success\n"                  \
	" -r  accepted, means nothing here\n"              \
	" -v  print the bytes\n"

#define WRITE_LETTERS                                      \
	" -C  figures for programs, separated by commas\n" \
	" -f  stable when the command ends\n"              \
	" -P  write bytes PATTERN instead of 0xcd\n"       \
	" -q  print nothing of success\n"                  \
	" -r  accepted, means nothing here\n"

#define AIO_NOTE                                                                             \
	" The next commands run at the same time; aio_flush waits for the end and reports\n" \
	" what became of it. A failure then does not count as a failed command.\n"

const struct io_command io_commands[] = {
	{.name = "abort",
		.flags = IO_ANYTIME,
		.run = io_cmd_abort,
		.summary = "end as of a crash: abort(3), nothing is flushed"},
	{.name = "aio_discard",
		.min_args = 2,
		.max_args = -1,
		.flags = IO_WRITES,
		.args = "[-Cq] off len",
		.options = "Cq",
		.run = io_cmd_aio_discard,
		.summary = "begin to discard a range",
		.about = AIO_NOTE
		" -C  figures for programs, separated by commas\n -q  print nothing of success\n"},
	{.name = "aio_flush",
		.run = io_cmd_aio_flush,
		.summary = "wait for everything that aio_ commands began"},
	{.name = "aio_read",
		.min_args = 2,
		.max_args = -1,
		.args = "[-Ciqrv] [-P pattern] off len [len..]",
		.options = "CiP:qrv",
		.run = io_cmd_aio_read,
		.summary = "begin to read a range",
		.about = AIO_NOTE READ_LETTERS
		" -i  do nothing, as for a request that is invalid\n"},
	{.name = "aio_write",
		.min_args = 2,
		.max_args = -1,
		.flags = IO_WRITES,
		.args = "[-Cfiqruz] [-P pattern] off len [len..]",
		.options = "CfiP:qruz",
		.run = io_cmd_aio_write,
		.summary = "begin to write a range",
		.about = AIO_NOTE WRITE_LETTERS
		" -i  do nothing, as for a request that is invalid\n"
		" -z  make the range read as zeros\n -u  with -z: clusters may be given up\n"},
	{.name = "alloc",
		.min_args = 1,
		.max_args = 2,
		.args = "offset [count]",
		.run = io_cmd_alloc,
		.summary = "count the bytes from an offset on that the file itself holds"},
	{.name = "break",
		.min_args = 2,
		.max_args = 2,
		.args = "event tag",
		.run = io_cmd_break,
		.summary = "let the next request that meets the event stop, under the name tag"},
	{.name = "close", .alias = "c", .run = io_cmd_close, .summary = "close the file"},
	{.name = "discard",
		.alias = "d",
		.min_args = 2,
		.max_args = -1,
		.flags = IO_WRITES,
		.args = "[-Cq] off len",
		.options = "Cq",
		.run = io_cmd_discard,
		.summary = "give up a range: its content is not needed",
		.about = " -C  figures for programs, separated by commas\n -q  print nothing of "
			 "success\n"},
	{.name = "flush",
		.alias = "f",
		.run = io_cmd_flush,
		.summary = "make everything that was written stable"},
	{.name = "help",
		.alias = "?",
		.max_args = 1,
		.flags = IO_ANYTIME,
		.args = "[command]",
		.run = io_cmd_help,
		.summary = "list the commands, or describe one"},
	{.name = "info", .alias = "i", .run = io_cmd_info, .summary = "say what the file is"},
	{.name = "length",
		.alias = "l",
		.run = io_cmd_length,
		.summary = "print the size of the disk"},
	{.name = "map",
		.args = "",
		.run = io_cmd_map,
		.summary = "list what the file itself holds and what not"},
	{.name = "open",
		.alias = "o",
		.min_args = 1,
		.max_args = -1,
		.flags = IO_ANYTIME,
		.args = "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
		.options = "snCro:ki:t:d:U",
		.run = io_cmd_open,
		.summary = "open a file",
		.about = " -r  for reading only\n -s  writes go to a temporary file, which the "
			 "close removes\n"
			 " -C  what is read from backing files is kept in the file\n"
			 " -n  past the host's cache, -t none in short\n"
			 " -U  although another process writes it; with -r only\n"
			 " -k  accepted, means nothing here, as is -i MODE\n"
			 " -t  none, writeback, writethrough (the default), directsync or unsafe\n"
			 " -d  off or unmap; accepted\n"
			 " -o  options: key=value,...; several are merged\n"},
	{.name = "quit",
		.alias = "q",
		.max_args = -1,
		.flags = IO_ANYTIME,
		.run = io_cmd_quit,
		.summary = "close the file and end"},
	{.name = "read",
		.alias = "r",
		.min_args = 2,
		.max_args = -1,
		.args = "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
		.options = "abCl:pP:qrs:v",
		.run = io_cmd_read,
		.summary = "read a range",
		.about = READ_LETTERS " -s  the pattern begins that many bytes behind off\n"
				      " -l  … and has that many bytes\n"
				      " -b  VM state instead of the disk\n"
				      " -a, -p  accepted, mean nothing here\n"},
	{.name = "readv",
		.min_args = 2,
		.max_args = -1,
		.args = "[-Cqrv] [-P pattern] off len [len..]",
		.options = "CP:qrv",
		.run = io_cmd_readv,
		.summary = "read a range into several buffers",
		.about = READ_LETTERS},
	{.name = "remove_break",
		.min_args = 1,
		.max_args = 1,
		.args = "tag",
		.run = io_cmd_remove_break,
		.summary = "remove a break and let its request go on"},
	{.name = "reopen",
		.max_args = -1,
		.args = "[(-r|-w)] [-c cache] [-o options]",
		.options = "c:o:rw",
		.run = io_cmd_reopen,
		.summary = "change how the file is open",
		.about = " -r  for reading only\n -w  for reading and writing\n -c  another cache "
			 "mode\n -o  other options\n"},
	{.name = "resume",
		.min_args = 1,
		.max_args = 1,
		.args = "tag",
		.run = io_cmd_resume,
		.summary = "let a request that stopped at a break go on"},
	{.name = "sigraise",
		.min_args = 1,
		.max_args = 1,
		.flags = IO_ANYTIME,
		.args = "signal",
		.run = io_cmd_sigraise,
		.summary = "send a signal, by its number, to the program itself"},
	{.name = "sleep",
		.min_args = 1,
		.max_args = 1,
		.run = io_cmd_sleep,
		.summary = "wait that many milliseconds"},
	{.name = "truncate",
		.alias = "t",
		.min_args = 1,
		.max_args = 3,
		.flags = IO_WRITES,
		.args = "[-m prealloc_mode] off",
		.options = "m:",
		.run = io_cmd_truncate,
		.summary = "change the size of the disk"},
	{.name = "wait_break",
		.min_args = 1,
		.max_args = 1,
		.args = "tag",
		.run = io_cmd_wait_break,
		.summary = "wait until a request has stopped at the break"},
	{.name = "write",
		.alias = "w",
		.min_args = 2,
		.max_args = -1,
		.flags = IO_WRITES,
		.args = "[-bcCfnqruz] [-P pattern | -s source_file] off len",
		.options = "bcCfnpP:qrs:uz",
		.run = io_cmd_write,
		.summary = "write a range",
		.about = WRITE_LETTERS
		" -s  write the bytes of a file, again and again\n"
		" -z  make the range read as zeros\n -u  with -z: clusters may be given up\n"
		" -n  with -z: fail rather than write zeros as data\n"
		" -c  as compressed clusters\n -b  VM state instead of the disk\n"
		" -p  accepted, means nothing here\n"},
	{.name = "writev",
		.min_args = 2,
		.max_args = -1,
		.flags = IO_WRITES,
		.args = "[-Cfqr] [-P pattern] off len [len..]",
		.options = "CfqrP:",
		.run = io_cmd_writev,
		.summary = "write a range from several buffers",
		.about = WRITE_LETTERS},
	{.name = NULL},
};

static const struct io_command *find(const char *name)
{
	for (const struct io_command *c = io_commands; c->name != NULL; c++)
		if (strcmp(c->name, name) == 0 || (c->alias != NULL && strcmp(c->alias, name) == 0))
			return c;
	return NULL;
}

static void put_line(const struct io_command *c)
{
	(void)printf("%s%s%s -- %s\n", c->name, c->args != NULL ? " " : "",
		c->args != NULL ? c->args : "", c->summary);
}

int io_usage(const struct io_command *command)
{
	put_line(command);
	return -1;
}

int io_cmd_help(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)io;
	(void)self;
	if (argc == 1) {
		for (const struct io_command *c = io_commands; c->name != NULL; c++)
			put_line(c);
		(void)printf("\nUse 'help commandname' for extended help.\n");
		return 0;
	}
	const struct io_command *c = find(argv[1]);
	if (c == NULL) {
		(void)printf("command %s not found\n", argv[1]);
		return -1;
	}
	put_line(c);
	if (c->about != NULL)
		(void)printf("\n%s\n", c->about);
	return 0;
}

static bool count_is_right(const struct io_command *c, const char *name, int n)
{
	if (n >= c->min_args && (c->max_args < 0 || n <= c->max_args))
		return true;
	(void)fflush(stdout);
	if (c->max_args < 0)
		(void)fprintf(stderr,
			"bad argument count %d to %s, expected at least %d arguments\n", n, name,
			c->min_args);
	else if (c->min_args == c->max_args)
		(void)fprintf(stderr, "bad argument count %d to %s, expected %d arguments\n", n,
			name, c->min_args);
	else
		(void)fprintf(stderr,
			"bad argument count %d to %s, expected between %d and %d arguments\n", n,
			name, c->min_args, c->max_args);
	return false;
}

static int run_command(struct io *io, const struct io_command *c, int argc, char **argv)
{
	if ((c->flags & IO_ANYTIME) == 0 && io->image == NULL) {
		(void)fflush(stdout);
		(void)fprintf(stderr, "no file open, try 'help open'\n");
		return -1;
	}
	if (!count_is_right(c, argv[0], argc - 1))
		return -1;
	if ((c->flags & IO_WRITES) != 0 && io->opened.read_only) {
		cli_error(io->cli, "Block node is read-only");
		return -1;
	}
	/* 0 and not 1: glibc then forgets the last command's words */
	optind = 0;
	(void)fflush(stdout);
	return c->run(io, c, argc, argv);
}

int io_run_line(struct io *io, char *line)
{
	char *words[64];
	int n = 0;
	char *save = NULL;
	io_aio_collect(io, false);
	for (char *w = strtok_r(line, " ", &save); w != NULL; w = strtok_r(NULL, " ", &save)) {
		if (n == 63) {
			cli_error(io->cli, "a command has at most 62 words");
			return -1;
		}
		words[n++] = w;
	}
	if (n == 0)
		return 0;
	words[n] = NULL;
	const struct io_command *c = find(words[0]);
	if (c == NULL) {
		(void)fflush(stdout);
		(void)fprintf(stderr, "command \"%s\" not found\n", words[0]);
		return -1;
	}
	return run_command(io, c, n, words);
}
