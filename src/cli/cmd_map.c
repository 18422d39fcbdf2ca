/* SPDX-License-Identifier: MIT */
/*
 * cmd_map: which layer holds which range of the disk, and where.
 *
 * The library's extents are joined into the runs that QEMU prints: neighbours with the same answer whose
 * places follow each other. Output is written as it is found; memory does not grow with the image.
 */
#include "cli/map.h"

#include <string.h>

#include "base/mem.h"
#include "base/num.h"
#include "cli/cli.h"
#include "cli/nbd_node.h"

struct run {
	uint64_t start, len, host_off;
	uint32_t depth, flags;
	struct qcow_image *layer;
};

struct map {
	struct cli *cli;
	struct qcow_image *image;
	bool json;
	uint64_t printed, most_runs;
	struct map_judge judge;
};

static bool continues(const struct run *run, const struct run *next)
{
	if (run->flags != next->flags || run->depth != next->depth || run->layer != next->layer)
		return false;
	return (run->flags & QCOW_EXTENT_OFFSET) == 0 || run->host_off + run->len == next->host_off;
}

static const char *yes(uint32_t flags, uint32_t bit)
{
	return (flags & bit) != 0 ? "true" : "false";
}

static void put_json(struct map *map, const struct run *r)
{
	(void)printf("%s{ \"start\": %llu, \"length\": %llu, \"depth\": %u, \"present\": %s, "
		     "\"zero\": %s, \"data\": %s, \"compressed\": %s",
		map->printed == 0 ? "[" : ",\n", (unsigned long long)r->start,
		(unsigned long long)r->len, r->depth, yes(r->flags, QCOW_EXTENT_PRESENT),
		yes(r->flags, QCOW_EXTENT_ZERO), yes(r->flags, QCOW_EXTENT_DATA),
		yes(r->flags, QCOW_EXTENT_COMPRESSED));
	if ((r->flags & QCOW_EXTENT_OFFSET) != 0)
		(void)printf(", \"offset\": %llu", (unsigned long long)r->host_off);
	(void)putchar('}');
}

/* False: the run has no plain place to name, which QEMU's human form cannot show; reported. */
static bool put_human(struct map *map, const struct run *r)
{
	bool is_plain = (r->flags & QCOW_EXTENT_OFFSET) != 0;
	bool is_compressed = (r->flags & QCOW_EXTENT_COMPRESSED) != 0;
	if ((r->flags & QCOW_EXTENT_DATA) == 0)
		return true;
	if (!is_plain && map->cli->qemu) {
		cli_error(map->cli, "File contains external, encrypted or compressed clusters.");
		cli_hint(map->cli, "'%s map --output json' shows them", map->cli->prog);
		return false;
	}
	if (is_plain && (r->flags & QCOW_EXTENT_ZERO) != 0)
		return true;
	struct qcow_store *data = qcow_image_data_store(r->layer);
	(void)printf("%#-16llx%#-16llx", (unsigned long long)r->start, (unsigned long long)r->len);
	if (is_plain)
		(void)printf("%#-16llx", (unsigned long long)r->host_off);
	else
		(void)printf("%-16s", is_compressed ? "compressed" : "not plain");
	cli_put_escaped(stdout, qcow_store_name(data != NULL ? data : qcow_image_store(r->layer)));
	(void)putchar('\n');
	return true;
}

/* False: stop, either because enough was printed or because of a failure (*failed). */
static bool put_run(struct map *map, const struct run *r, bool *failed)
{
	if (map->json)
		put_json(map, r);
	else if (!put_human(map, r)) {
		*failed = true;
		return false;
	}
	map->printed++;
	return map->printed < map->most_runs;
}

/* QEMU counts a raw disk in whole sectors: the rest of the last one reads as zeros. */
static uint64_t shown_size(const struct map *map)
{
	uint64_t size = qcow_size(map->image);
	struct qcow_info in;
	qcow_get_info(map->image, &in);
	bool rounds = map->cli->qemu && in.version == 0;
	return rounds ? (size + 511) / 512 * 512 : size;
}

/* The run at `off`, at most `len` bytes of it. */
static bool find_run(struct map *map, uint64_t off, uint64_t len, struct run *out)
{
	struct qcow_extent e;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t size = qcow_size(map->image);
	if (off >= size) {
		*out = (struct run){.start = off,
			.len = len,
			.host_off = off,
			.flags = QCOW_EXTENT_PRESENT | QCOW_EXTENT_ZERO | QCOW_EXTENT_OFFSET,
			.layer = map->image};
		return true;
	}
	len = qk_min(len, size - off);
	enum qcow_status status = qcow_map(map->image, off, len, UINT32_MAX, &e, &err);
	if (status == QCOW_OK)
		status = cli_nbd_refine(map->cli, &e, &err);
	if (status != QCOW_OK) {
		(void)cli_fail(map->cli, &err, "Failed to read the map of '%s' at offset %llu",
			qcow_store_name(qcow_image_store(map->image)), (unsigned long long)off);
		return false;
	}
	*out = (struct run){.start = e.off,
		.len = e.len,
		.host_off = e.host_off,
		.depth = e.depth,
		.flags = map_shown_flags(&map->judge, &e),
		.layer = e.layer};
	return true;
}

static int put_map(struct map *map, uint64_t start, uint64_t end)
{
	struct run run = {.start = start, .layer = map->image};
	bool have = false, failed = false;
	for (uint64_t off = start; off < end;) {
		struct run next;
		if (!find_run(map, off, end - off, &next))
			return 1;
		off += next.len;
		if (have && continues(&run, &next)) {
			run.len += next.len;
			continue;
		}
		if (have && !put_run(map, &run, &failed))
			return failed;
		run = next;
		have = true;
	}
	/* an empty range is one run of no bytes, as QEMU has it */
	(void)put_run(map, &run, &failed);
	return failed;
}

/* ---- --bitmap ---- */

static void put_bitmap_run(struct map *map, const struct qcow_bitmap_extent *run)
{
	if (map->json)
		(void)printf("%s{ \"start\": %llu, \"length\": %llu, \"dirty\": %s}",
			map->printed == 0 ? "[" : ",\n", (unsigned long long)run->off,
			(unsigned long long)run->len, run->dirty ? "true" : "false");
	else if (run->dirty)
		(void)printf("%#-16llx%#llx\n", (unsigned long long)run->off,
			(unsigned long long)run->len);
	map->printed += map->json || run->dirty;
}

static int put_bitmap(
	struct map *map, struct qcow_bitmap_reader *reader, uint64_t start, uint64_t end)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_bitmap_extent run = {.off = start}, next;
	for (uint64_t off = start; off < end; off += next.len) {
		if (qcow_bitmap_read(reader, off, end - off, &next, &err) != QCOW_OK)
			return cli_fail(map->cli, &err, "Failed to read the bitmap at offset %llu",
				(unsigned long long)off);
		if (run.len != 0 && run.dirty != next.dirty) {
			put_bitmap_run(map, &run);
			if (map->printed == map->most_runs)
				return 0;
			run = next;
		} else {
			run.len += next.len;
			run.dirty = next.dirty;
		}
	}
	if (run.len != 0)
		put_bitmap_run(map, &run);
	return 0;
}

static int map_bitmap(struct map *map, const char *name, uint64_t start, uint64_t end)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_bitmap_reader *reader = NULL;
	uint32_t index = 0;
	if (qcow_bitmap_find(map->image, name, &index, &err) != QCOW_OK ||
		qcow_bitmap_open(map->image, index, &reader, &err) != QCOW_OK)
		return cli_fail(
			map->cli, &err, "%s", qcow_store_name(qcow_image_store(map->image)));
	if (!map->json)
		(void)printf("%-16s%s\n", "Offset", "Length");
	int rc = put_bitmap(map, reader, start, end);
	qcow_bitmap_close(reader);
	if (map->json)
		(void)printf("%s]\n", map->printed == 0 ? "[" : "");
	return rc;
}

static int map_layers(struct map *map, uint64_t start, uint64_t end)
{
	if (!map->json)
		(void)printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
	int rc = put_map(map, start, end);
	/* what was found before a failure is still whole JSON */
	if (map->json)
		(void)printf("%s]\n", map->printed == 0 ? "[" : "");
	return rc;
}

static bool parse_range(struct cli *cli, const struct cli_args *args, uint64_t *start,
	uint64_t *len, uint64_t *most_runs)
{
	const char *from = cli_arg(args, "start-offset"), *most = cli_arg(args, "max-length");
	const char *runs = cli_arg(args, "max-output");
	if (from != NULL && !cli_parse_size(cli, "start offset", from, start))
		return false;
	if (most != NULL && !cli_parse_size(cli, "max length", most, len))
		return false;
	return runs == NULL ||
	       cli_parse_number(cli, "number of --max-output", runs, 1, UINT64_MAX, most_runs);
}

static int run(struct cli *cli, const struct cli_args *args)
{
	uint64_t start = 0, len = INT64_MAX;
	struct map map = {.cli = cli, .json = cli_wants_json(args), .most_runs = UINT64_MAX};
	struct cli_open_request request;
	const char *bitmap = cli_arg(args, "bitmap");
	/* a bitmap is read without what the image names, and without its key */
	unsigned flags = bitmap != NULL ? CLI_OPEN_ALONE | CLI_OPEN_CHECK : 0;
	if (!parse_range(cli, args, &start, &len, &map.most_runs) ||
		!cli_open_request_init(cli, args, args->operands[0], flags, &request))
		return 1;
	request.sandbox = cli_sandbox_from_args(args, QK_MIB(128), 600);
	if (cli_open(cli, &request, &map.image) != QCOW_OK)
		return 1;
	uint64_t size = shown_size(&map);
	uint64_t end = start > size ? start : start + qk_min(len, size - start);
	int rc = bitmap != NULL ? map_bitmap(&map, bitmap, start, end)
				: map_layers(&map, start, end);
	qcow_close(map.image);
	return rc;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.letter = 's', .name = "start-offset", .arg = "OFFSET", .help = "start there"},
	{.letter = 'l',
		.name = "max-length",
		.arg = "LENGTH",
		.help = "cover at most that many bytes"},
	{.name = "bitmap",
		.arg = "NAME",
		.flags = CLI_OPT_QCOW,
		.help = "show what is dirty in a persistent bitmap instead"},
	{.name = "max-output", .arg = "N", .flags = CLI_OPT_QCOW, .help = "print at most N ranges"},
	CLI_OPT_OUTPUT,
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPT_SANDBOX,
	CLI_OPT_VERBOSE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_map = {
	.name = "map",
	.summary = "Show which file holds which range of the disk, and where",
	.synopsis = "[-f FMT | --image-opts] [--start-offset OFFSET] [--max-length LENGTH] "
		    "[--bitmap NAME] [--output human|json] [-U] FILE",
	.about = "The human form lists stored data only, compressed data as such. JSON covers the "
		 "whole range: depth is the "
		 "layer\n"
		 "(0 = FILE itself), present says that some layer decides the range, zero that it "
		 "reads\n"
		 "as zeros, data that bytes are stored, offset where.\n"
		 "With --bitmap the ranges are those that a persistent bitmap of FILE has marked "
		 "dirty;\n"
		 "JSON lists clean ones too.",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.run = run,
};
