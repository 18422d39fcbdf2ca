/* SPDX-License-Identifier: MIT */
/*
 * qcow commit: write what an overlay holds into a layer below it.
 *
 * The library copies and empties (qcow_commit). Where -b names a layer, the chain is first opened for reading, to find
 * out how deep it lies. A signal ends the copying; the overlay then reads as before.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <qcowkit/ops.h>

#include "base/mem.h"
#include "cli/cli.h"

struct commit {
	struct cli *cli;
	const struct cli_args *args;
	const char *file, *base_name;
	bool dry_run;
	unsigned depth; /* of the base */
	struct qcow_image *image, *base;
	struct qcow_commit_options options;
	struct qcow_commit_result result;
};

static bool read_options(struct commit *c)
{
	const char *rate = cli_arg(c->args, "rate-limit");
	c->options = (struct qcow_commit_options)QCOW_COMMIT_OPTIONS_INIT;
	c->base_name = cli_arg(c->args, "base");
	c->dry_run = cli_flag(c->args, "dry-run");
	c->options.dry_run = c->dry_run;
	/* an overlay on something that is no longer what it was would be of no use, empty or not */
	c->options.keep = cli_flag(c->args, "drop") || c->base_name != NULL;
	return rate == NULL ||
	       cli_parse_size(c->cli, "rate limit", rate, &c->options.rate_bytes_per_sec);
}

static bool open_image(struct commit *c, unsigned flags)
{
	struct cli_open_request request;
	if (!cli_open_request_init(c->cli, c->args, c->file, flags, &request))
		return false;
	request.write_depth = c->depth;
	return cli_open(c->cli, &request, &c->image) == QCOW_OK;
}

/* ---- the base ---- */

static bool is_path_of(const char *path, const struct qcow_image *layer)
{
	struct stat a, b;
	int fd = qcow_store_fd(qcow_image_store(layer));
	return fd >= 0 && stat(path, &a) == 0 && fstat(fd, &b) == 0 && a.st_dev == b.st_dev &&
	       a.st_ino == b.st_ino;
}

/* By the name that the layer above records, or by a path to its file: from the image's folder, and unless QEMU's
 * rules hold from here too. */
static bool is_named(
	struct commit *c, const struct qcow_image *above, const struct qcow_image *layer)
{
	struct qcow_info info;
	qcow_get_info(above, &info);
	if (info.backing_name != NULL && strcmp(info.backing_name, c->base_name) == 0)
		return true;
	QK_AUTO_FREE char *beside = cli_join_path(
		qcow_store_name(qcow_image_store(c->image)), c->base_name);
	return (!c->cli->qemu && is_path_of(c->base_name, layer)) ||
	       (beside != NULL && is_path_of(beside, layer));
}

/* Sets c->depth, and c->base to that layer of c->image. */
static bool find_base(struct commit *c)
{
	const struct qcow_image *above = c->image;
	c->depth = 1;
	for (c->base = qcow_backing(above); c->base != NULL; c->base = qcow_backing(above)) {
		if (c->base_name == NULL || is_named(c, above, c->base))
			return true;
		above = c->base;
		c->depth++;
	}
	if (c->base_name == NULL)
		cli_error(c->cli,
			c->cli->qemu ? "Image does not have a backing file"
				     : "'%s' has no backing file",
			c->file);
	else
		cli_error(c->cli, "Did not find '%s' in the backing chain of '%s'", c->base_name,
			c->file);
	return false;
}

static bool open_chain(struct commit *c)
{
	if (c->base_name != NULL || c->dry_run) {
		if (!open_image(c, 0) || !find_base(c))
			return false;
		if (c->dry_run)
			return true;
		qcow_close(c->image);
		c->image = NULL;
	} else {
		c->depth = 1;
	}
	return open_image(c, CLI_OPEN_WRITE) && find_base(c);
}

/* ---- the command ---- */

static bool fail(struct commit *c, const struct qcow_error *err)
{
	if (cli_signals_caught())
		return false;
	if (c->cli->qemu && err->os_errno != 0)
		cli_error(c->cli, "Block job failed: %s", strerror(err->os_errno));
	else
		(void)cli_fail(c->cli, err, "cannot commit '%s' to '%s'", c->file,
			qcow_store_name(qcow_image_store(c->base)));
	return false;
}

/* When all is closed: `base` is a copy of its name. */
static bool put_result(const struct commit *c, const char *base)
{
	if (cli_wants_json(c->args)) {
		json_t *o = json_object();
		cli_json_set(o, "filename", cli_json_string(c->file));
		cli_json_set(o, "base", cli_json_string(base));
		cli_json_set(o, "bytes-copied", cli_json_u64(c->result.bytes_copied));
		cli_json_set(o, "bytes-zeroed", cli_json_u64(c->result.bytes_zeroed));
		cli_json_set(o, "emptied", json_boolean(!c->dry_run && !c->options.keep));
		cli_json_set(o, "dry-run", json_boolean(c->dry_run));
		return cli_json_print(c->cli, o) == 0;
	}
	if (cli_flag(c->args, "quiet"))
		return true;
	if (c->dry_run)
		(void)printf("%" PRIu64 " bytes would be copied, %" PRIu64 " zeroed\n",
			c->result.bytes_copied, c->result.bytes_zeroed);
	else
		(void)printf("Image committed.\n");
	return true;
}

static bool run_commit(struct commit *c)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (!open_chain(c))
		return false;
	cli_signals_catch(c->cli);
	struct cli_progress *progress = cli_progress_begin(c->cli, c->args, &c->options.progress);
	if (progress == NULL)
		return false;
	bool ok = qcow_commit(c->image, c->base, &c->options, &c->result, &err) == QCOW_OK;
	/* what was emptied is free for the host when it is closed; whether that comes to pass is told here */
	if (ok && !c->dry_run && !c->options.keep)
		ok = qcow_flush(c->image, &err) == QCOW_OK;
	cli_progress_end(progress, ok);
	return ok || fail(c, &err);
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct commit c = {.cli = cli, .args = args, .file = args->operands[0]};
	if (!read_options(&c))
		return 1;
	bool ok = run_commit(&c);
	char *base = strdup(c.base != NULL ? qcow_store_name(qcow_image_store(c.base)) : "");
	if (base == NULL)
		cli_out_of_memory();
	ok = cli_close(cli, c.image, ok) && put_result(&c, base);
	free(base);
	if (!ok)
		cli_signals_end();
	return ok ? 0 : 1;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	CLI_OPT_CACHE,
	{.letter = 'b',
		.name = "base",
		.arg = "BASE",
		.choices = "@file",
		.help = "commit to this layer of the chain, not the next; implies -d"},
	{.letter = 'd', .name = "drop", .help = "do not empty FILE afterwards"},
	{.letter = 'r', .name = "rate-limit", .arg = "RATE", .help = "bytes a second at most"},
	CLI_OPT_DRY_RUN("change nothing, say how much would be copied"),
	CLI_OPT_OUTPUT_QCOW,
	CLI_OPT_PROGRESS,
	CLI_OPT_QUIET,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_commit = {
	.name = "commit",
	.summary = "write what an overlay holds into a layer below it",
	.synopsis = "[-f FMT | --image-opts] [-t CACHE] [-b BASE] [-d] [-r RATE] [-p] [-q] FILE",
	.about = "The backing file then holds what FILE reads, and FILE is emptied: it reads the\n"
		 "same from below. A shorter backing file grows. Other overlays of the backing "
		 "file\n"
		 "are of no use afterwards.",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.run = run,
};
