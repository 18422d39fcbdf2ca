/* SPDX-License-Identifier: MIT */
/*
 * qcow compare: do two images hold the same disk?
 *
 * Both are walked by their maps: what both know to be zeros is not read. Where one disk is longer, the rest
 * of it must read as zeros; with --strict sizes and the kind of every range must agree too.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
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

#define CHUNK_BYTES  (2U << 20)
#define SECTOR_BYTES 512U

struct side {
	struct qcow_image *image;
	char *name;
	uint64_t size; /* as compared */
	uint64_t end; /* of the run asked about last */
	uint32_t flags; /* of that run */
	struct map_judge judge;
	uint8_t *buf; /* CHUNK_BYTES */
};

struct compare {
	struct cli *cli;
	bool strict, quiet, as_json;
	struct side sides[2];
	const char *what; /* differs: "content", "size" or "allocation"; NULL while nothing does */
	uint64_t where; /* the offset of that */
	struct qcow_progress progress;
};

/* ---- one side ---- */

/* The run at `off`, kept until it is passed. */
static bool look(struct compare *c, struct side *s, uint64_t off)
{
	struct qcow_extent e;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t size = qcow_size(s->image);
	if (off < s->end)
		return true;
	if (off >= size) {
		/* past the disk, or in the last sector of a raw one */
		s->end = UINT64_MAX;
		s->flags = QCOW_EXTENT_PRESENT | QCOW_EXTENT_ZERO | QCOW_EXTENT_OFFSET;
		return true;
	}
	if (qcow_map(s->image, off, size - off, UINT32_MAX, &e, &err) != QCOW_OK) {
		(void)cli_fail(c->cli, &err,
			"Sector allocation test failed for %s at offset %" PRIu64, s->name, off);
		return false;
	}
	s->end = off + e.len;
	s->flags = map_shown_flags(&s->judge, &e);
	return true;
}

static bool is_zero_run(const struct side *s)
{
	return (s->flags & QCOW_EXTENT_ZERO) != 0;
}

static bool read_side(struct compare *c, struct side *s, uint64_t off, size_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_pread(s->image, s->buf, len, off, &err) == QCOW_OK)
		return true;
	if (c->cli->qemu && err.os_errno != 0)
		cli_error(c->cli, "Error while reading offset %" PRIu64 " of %s: %s", off, s->name,
			strerror(err.os_errno));
	else
		(void)cli_fail(
			c->cli, &err, "Error while reading offset %" PRIu64 " of %s", off, s->name);
	return false;
}

/* ---- comparing ---- */

static int differs(struct compare *c, const char *what, uint64_t where)
{
	c->what = what;
	c->where = where;
	return EXIT_DIFFERS;
}

/* The first byte of `n` that differs from `other`, or from 0 where that is NULL. */
static size_t first_difference(const uint8_t *p, const uint8_t *other, size_t n)
{
	size_t i = 0;
	while (i < n && p[i] == (other != NULL ? other[i] : 0))
		i++;
	return i;
}

/* [off, off + len) of a, against b or zeros (NULL), at most a chunk. */
static int compare_bytes(
	struct compare *c, struct side *a, struct side *b, uint64_t off, size_t len)
{
	if (!read_side(c, a, off, len) || (b != NULL && !read_side(c, b, off, len)))
		return EXIT_READ;
	bool same = b != NULL ? memcmp(a->buf, b->buf, len) == 0 : qk_is_zero(a->buf, len);
	if (same)
		return EXIT_SAME;
	uint64_t at = off + first_difference(a->buf, b != NULL ? b->buf : NULL, len);
	return differs(c, "content", c->cli->qemu ? at / SECTOR_BYTES * SECTOR_BYTES : at);
}

/* What both sides have at `off`: as much as has one answer on each, *len of at most that. */
static int compare_piece(struct compare *c, uint64_t off, uint64_t *len)
{
	struct side *a = &c->sides[0], *b = &c->sides[1];
	if (!look(c, a, off) || !look(c, b, off))
		return EXIT_MAP;
	if (c->strict && a->flags != b->flags)
		return differs(c, "allocation", off);
	*len = qk_min(*len, qk_min(a->end, b->end) - off);
	if (is_zero_run(a) && is_zero_run(b))
		return EXIT_SAME;
	*len = qk_min(*len, CHUNK_BYTES);
	if (is_zero_run(a))
		return compare_bytes(c, b, NULL, off, (size_t)*len);
	return compare_bytes(c, a, is_zero_run(b) ? NULL : b, off, (size_t)*len);
}

/* The part of the longer disk that the shorter one has not. */
static int compare_rest(struct compare *c, struct side *s, uint64_t off, uint64_t *len)
{
	if (!look(c, s, off))
		return EXIT_MAP;
	*len = qk_min(*len, s->end - off);
	if (is_zero_run(s))
		return EXIT_SAME;
	*len = qk_min(*len, CHUNK_BYTES);
	return compare_bytes(c, s, NULL, off, (size_t)*len);
}

static int compare_images(struct compare *c)
{
	struct side *a = &c->sides[0], *b = &c->sides[1];
	struct side *longer = a->size > b->size ? a : b;
	uint64_t common = qk_min(a->size, b->size);
	int rc = EXIT_SAME;
	if (a->size != b->size && c->strict)
		return differs(c, "size", common);
	for (uint64_t off = 0; off < longer->size && rc == EXIT_SAME;) {
		if (off == common && !c->quiet && !c->as_json)
			(void)printf("Warning: Image size mismatch!\n");
		uint64_t len = (off < common ? common : longer->size) - off;
		rc = off < common ? compare_piece(c, off, &len)
				  : compare_rest(c, longer, off, &len);
		off += len;
		if (rc == EXIT_SAME && c->progress.report != NULL)
			c->progress.report(c->progress.ctx, off, longer->size);
	}
	return rc;
}

/* ---- telling ---- */

static int put_json(struct compare *c)
{
	json_t *o = json_object(), *images = json_array();
	for (size_t i = 0; i < 2; i++) {
		json_t *image = json_object();
		cli_json_set(image, "filename", cli_json_string(c->sides[i].name));
		cli_json_set(image, "virtual-size", cli_json_u64(c->sides[i].size));
		(void)json_array_append_new(images, image);
	}
	cli_json_set(o, "images", images);
	cli_json_set(o, "identical", json_boolean(c->what == NULL));
	if (c->what != NULL) {
		cli_json_set(o, "difference", json_string(c->what));
		cli_json_set(o, "offset", cli_json_u64(c->where));
	}
	return cli_json_print(c->cli, o);
}

static void put_result(struct compare *c)
{
	if (c->as_json)
		(void)put_json(c);
	else if (c->quiet)
		return;
	else if (c->what == NULL)
		(void)printf("Images are identical.\n");
	else if (strcmp(c->what, "size") == 0)
		(void)printf("Strict mode: Image size mismatch!\n");
	else if (strcmp(c->what, "allocation") == 0)
		(void)printf("Strict mode: Offset %" PRIu64 " block status mismatch!\n", c->where);
	else
		(void)printf("Content mismatch at offset %" PRIu64 "!\n", c->where);
}

/* ---- the command ---- */

static bool open_side(struct compare *c, const struct cli_args *args, size_t i, const char *format)
{
	struct side *s = &c->sides[i];
	struct cli_open_request request;
	struct qcow_info info;
	if (!cli_open_request_init(c->cli, args, args->operands[i], 0, &request))
		return false;
	request.operand.format = format;
	if (cli_open(c->cli, &request, &s->image) != QCOW_OK)
		return false;
	qcow_get_info(s->image, &info);
	s->size = qcow_size(s->image);
	/* QEMU counts a raw disk in whole sectors */
	if (c->cli->qemu && info.version == 0)
		s->size = qk_div_up(s->size, SECTOR_BYTES) * SECTOR_BYTES;
	s->name = cli_display_name(c->cli, &request.operand, s->image);
	s->buf = qk_malloc(1, CHUNK_BYTES);
	if (s->name == NULL || s->buf == NULL) {
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
	struct cli_progress *progress = cli_progress_begin(c->cli, args, &c->progress);
	if (progress == NULL)
		return EXIT_OPEN;
	int rc = compare_images(c);
	if (rc == EXIT_SAME || rc == EXIT_DIFFERS)
		put_result(c);
	cli_progress_end(progress, rc == EXIT_SAME);
	return rc;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct compare c = {.cli = cli,
		.strict = cli_flag(args, "strict"),
		.quiet = cli_flag(args, "quiet"),
		.as_json = cli_wants_json(args)};
	if (args->n_operands != 2)
		return cli_usage(cli, "Expecting two image file names");
	int rc = run_compare(&c, args);
	for (size_t i = 0; i < 2; i++) {
		qcow_close(c.sides[i].image);
		free(c.sides[i].name);
		free(c.sides[i].buf);
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
	.run = run,
};
