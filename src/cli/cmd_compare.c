/* SPDX-License-Identifier: MIT */
/*
 * qcow compare: do two images hold the same disk?
 *
 * The library compares (qcow_compare); this tells what it found in QEMU's words.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <qcowkit/ops.h>

#include "base/num.h"
#include "cli/cli.h"
#include "cli/map.h"

enum {
	EXIT_SAME = 0,
	EXIT_DIFFERS = 1,
	EXIT_OPEN = 2,
	EXIT_MAP = 3,
	EXIT_READ = 4
};

struct side {
	struct qcow_image *image;
	char *name;
	struct map_judge judge;
};

struct compare {
	struct cli *cli;
	bool quiet, as_json;
	struct side sides[2];
	struct qcow_compare_options options;
	struct qcow_compare_result result;
};

static uint32_t strict_flags(void *ctx, unsigned side, const struct qcow_extent *extent)
{
	struct compare *c = ctx;
	return map_shown_flags(&c->sides[side].judge, extent);
}

/* ---- telling ---- */

static int put_json(struct compare *c)
{
	static const char *const words[] = {NULL, "size", "allocation", "content"};
	const struct qcow_compare_result *r = &c->result;
	json_t *o = json_object(), *images = json_array();
	for (size_t i = 0; i < 2; i++) {
		json_t *image = json_object();
		cli_json_set(image, "filename", cli_json_string(c->sides[i].name));
		cli_json_set(image, "virtual-size", cli_json_u64(r->sizes[i]));
		(void)json_array_append_new(images, image);
	}
	cli_json_set(o, "images", images);
	cli_json_set(o, "identical", json_boolean(r->difference == QCOW_DIFFERENCE_NONE));
	if (r->difference != QCOW_DIFFERENCE_NONE) {
		cli_json_set(o, "difference", json_string(words[r->difference]));
		cli_json_set(o, "offset", cli_json_u64(r->offset));
	}
	return cli_json_print(c->cli, o);
}

static void put_result(struct compare *c)
{
	const struct qcow_compare_result *r = &c->result;
	if (c->as_json)
		(void)put_json(c);
	else if (c->quiet)
		return;
	else if (r->difference == QCOW_DIFFERENCE_NONE)
		(void)printf("Images are identical.\n");
	else if (r->difference == QCOW_DIFFERENCE_SIZE)
		(void)printf("Strict mode: Image size mismatch!\n");
	else if (r->difference == QCOW_DIFFERENCE_ALLOCATION)
		(void)printf("Strict mode: Offset %" PRIu64 " block status mismatch!\n", r->offset);
	else
		(void)printf("Content mismatch at offset %" PRIu64 "!\n", r->offset);
}

/* The shorter disk was passed without a difference. */
static void warn_of_size(const struct compare *c, bool is_same)
{
	const struct qcow_compare_result *r = &c->result;
	uint64_t common = qk_min(r->sizes[0], r->sizes[1]);
	bool is_passed = is_same || r->offset >= common;
	if (r->sizes[0] != r->sizes[1] && !c->options.strict && is_passed && !c->quiet &&
		!c->as_json)
		(void)printf("Warning: Image size mismatch!\n");
}

static int fail(struct compare *c, const struct qcow_error *err)
{
	const struct qcow_compare_result *r = &c->result;
	const char *name = c->sides[r->failed_side].name;
	if (err->status == QCOW_E_CANCELLED || err->status == QCOW_E_INVAL)
		return cli_fail(c->cli, err, "compare"), EXIT_OPEN;
	if (!r->failed_to_read)
		return cli_fail(c->cli, err,
			       "Sector allocation test failed for %s at offset %" PRIu64, name,
			       r->offset),
		       EXIT_MAP;
	if (c->cli->qemu && err->os_errno != 0)
		cli_error(c->cli, "Error while reading offset %" PRIu64 " of %s: %s", r->offset,
			name, strerror(err->os_errno));
	else
		(void)cli_fail(c->cli, err, "Error while reading offset %" PRIu64 " of %s",
			r->offset, name);
	return EXIT_READ;
}

/* ---- the command ---- */

static bool open_side(struct compare *c, const struct cli_args *args, size_t i, const char *format)
{
	struct side *s = &c->sides[i];
	struct cli_open_request request;
	if (!cli_open_request_init(c->cli, args, args->operands[i], 0, &request))
		return false;
	request.operand.format = format;
	if (cli_open(c->cli, &request, &s->image) != QCOW_OK)
		return false;
	s->name = cli_display_name(c->cli, &request.operand, s->image);
	if (s->name == NULL) {
		cli_error(c->cli, "Cannot allocate memory");
		return false;
	}
	return true;
}

static int run_compare(struct compare *c, const struct cli_args *args)
{
	if (!open_side(c, args, 0, cli_arg(args, "format")) ||
		!open_side(c, args, 1, cli_arg(args, "b-format")))
		return EXIT_OPEN;
	struct cli_progress *progress = cli_progress_begin(c->cli, args, &c->options.progress);
	if (progress == NULL)
		return EXIT_OPEN;
	struct qcow_error err = QCOW_ERROR_INIT;
	bool ok = qcow_compare(c->sides[0].image, c->sides[1].image, &c->options, &c->result,
			  &err) == QCOW_OK;
	bool is_same = ok && c->result.difference == QCOW_DIFFERENCE_NONE;
	int rc = is_same ? EXIT_SAME : EXIT_DIFFERS;
	if (!ok)
		rc = fail(c, &err);
	warn_of_size(c, is_same);
	if (ok)
		put_result(c);
	cli_progress_end(progress, is_same);
	return rc;
}

static bool read_options(struct compare *c, const struct cli_args *args)
{
	const char *workers = cli_arg(args, "parallel");
	uint64_t n = 0;
	c->options = (struct qcow_compare_options)QCOW_COMPARE_OPTIONS_INIT;
	c->options.strict = cli_flag(args, "strict");
	c->options.whole_sectors = c->cli->qemu;
	c->options.strict_flags = strict_flags;
	c->options.ctx = c;
	if (workers != NULL && !cli_parse_number(c->cli, "number of workers", workers, 1, 16, &n))
		return false;
	c->options.n_workers = (unsigned)n;
	return true;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct compare c = {
		.cli = cli, .quiet = cli_flag(args, "quiet"), .as_json = cli_wants_json(args)};
	if (args->n_operands != 2)
		return cli_usage(cli, "Expecting two image file names");
	if (!read_options(&c, args))
		return EXIT_OPEN;
	int rc = run_compare(&c, args);
	for (size_t i = 0; i < 2; i++) {
		qcow_close(c.sides[i].image);
		free(c.sides[i].name);
	}
	return rc;
}

static const struct cli_option options[] = {
	{.letter = 'f',
		.name = "format",
		.arg = "FMT",
		.choices = "@format",
		.help = "format of FILE1; probed where it is not given"},
	{.name = "a-format", .arg = "FMT", .key = "format", .help = "the same as -f"},
	{.letter = 'F',
		.name = "b-format",
		.arg = "FMT",
		.choices = "@format",
		.help = "format of FILE2; probed where it is not given"},
	CLI_OPT_IMAGE_OPTS,
	{.letter = 's',
		.name = "strict",
		.help = "sizes and the kind of every range must agree too"},
	{.name = "output",
		.arg = "human|json",
		.choices = "human|json",
		.flags = CLI_OPT_QCOW,
		.help = "output for people (the default) or for programs"},
	{.letter = 'T',
		.name = "cache",
		.arg = "CACHE",
		.choices = "none|writeback|writethrough|directsync|unsafe",
		.help = "cache mode of the images"},
	{.letter = 'm',
		.name = "parallel",
		.arg = "N",
		.flags = CLI_OPT_QCOW,
		.help = "number of workers, 1 to 16"},
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_PROGRESS,
	CLI_OPT_QUIET,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPT_UNTRUSTED,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_compare = {
	.name = "compare",
	.summary = "Say whether two images hold the same disk",
	.synopsis = "[-f FMT] [-F FMT] [--image-opts] [-s] [-T CACHE] [-U] [-p] [-q] FILE1 FILE2",
	.about = "Where one disk is longer, the rest of it must read as zeros.\n"
		 "Exit codes: 0 identical, 1 different, 2 an image cannot be opened, 3 a map and\n"
		 "4 data cannot be read.",
	.options = options,
	.min_operands = 0,
	.max_operands = CLI_MANY,
	.cache_exit = EXIT_OPEN,
	.run = run,
};
