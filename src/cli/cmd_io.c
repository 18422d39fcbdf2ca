/* SPDX-License-Identifier: MIT */
/*
 * cmd_io: `qcow io`, and all of qemu-io's personality. Does what lines of commands say to one open image.
 */
#include <string.h>

#include "cli/io_args.h"

static bool take_mode(struct io *io, const struct cli_args *args)
{
	struct io_mode *mode = &io->mode;
	mode->format = cli_arg(args, "format");
	mode->read_only = cli_flag(args, "read-only");
	mode->temporary = cli_flag(args, "snapshot");
	mode->copy_on_read = cli_flag(args, "copy-on-read");
	mode->share = cli_flag(args, "force-share");
	mode->image_opts = cli_flag(args, "image-opts");
	io->misalign = cli_flag(args, "misalign");
	if (cli_flag(args, "nocache"))
		mode->cache = "none";
	const char *cache = cli_arg(args, "cache"), *aio = cli_arg(args, "aio");
	const char *discard = cli_arg(args, "discard");
	if (mode->image_opts && mode->format != NULL) {
		cli_error(io->cli, "--image-opts and -f are mutually exclusive");
		return false;
	}
	return (cache == NULL || io_take_cache(io, cache, mode)) &&
	       (aio == NULL || io_check_words(io, 'i', aio, mode)) &&
	       (discard == NULL || io_check_words(io, 'd', discard, mode));
}

/* Every -c in turn; where there is none, lines from standard input. */
static int run_lines(struct io *io, const struct cli_args *args)
{
	size_t at = 0;
	int rc = 0;
	if (cli_arg(args, "cmd") == NULL)
		return io_run_input(io);
	for (const char *text = cli_arg_next(args, "cmd", &at); text != NULL && !io->quit;
		text = cli_arg_next(args, "cmd", &at)) {
		QK_AUTO_FREE char *line = strdup(text);
		if (line == NULL)
			cli_out_of_memory();
		rc |= io_run_line(io, line) != 0;
	}
	return rc;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct io io = {.cli = cli, .spans = IO_SPANS_INIT};
	if (!cli_objects_add_all(cli, args) || !take_mode(&io, args))
		return 1;
	if (args->n_operands == 1 && !io_open(&io, &io.mode, args->operands[0], NULL))
		return 1;
	int rc = run_lines(&io, args);
	return io_close(&io) ? rc : 1;
}

static const struct cli_option options[] = {
	{.letter = 'c',
		.name = "cmd",
		.arg = "COMMAND",
		.help = "run that line; several are run in turn"},
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.letter = 'r', .name = "read-only", .help = "open the image for reading only"},
	{.letter = 's',
		.name = "snapshot",
		.help = "write to a temporary file, which is gone at the end"},
	{.letter = 'n', .name = "nocache", .help = "past the host's cache: -t none"},
	{.letter = 't',
		.name = "cache",
		.arg = "CACHE",
		.help = "none, writeback, writethrough (the default), directsync or unsafe"},
	{.letter = 'C',
		.name = "copy-on-read",
		.help = "keep in the image what is read from its backing files"},
	CLI_OPT_FORCE_SHARE,
	{.letter = 'm', .name = "misalign", .help = "buffers begin at odd addresses"},
	{.letter = 'd', .name = "discard", .arg = "MODE", .help = "off or unmap; accepted"},
	{.letter = 'i',
		.name = "aio",
		.arg = "MODE",
		.help = "threads, native or io_uring; accepted, threads are used"},
	{.letter = 'k', .name = "native-aio", .help = "accepted, means nothing here"},
	{.letter = 'T', .name = "trace", .arg = "PATTERN", .help = "accepted, means nothing here"},
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_io = {
	.name = "io",
	.summary = "Read and write ranges of a disk by commands, for tests and repairs by hand",
	.synopsis = "[-c COMMAND]… [-f FMT | --image-opts] [-r] [-s] [-U] [-t CACHE] [FILE]",
	.about = "Without -c the commands come from standard input, a line each. '-c help' lists "
		 "them.",
	.options = options,
	.min_operands = 0,
	.max_operands = 1,
	.run = run,
};
