/* SPDX-License-Identifier: MIT */
/*
 * qcow rebase: put an overlay on another backing file.
 *
 * The library compares, copies and records (qcow_rebase, qcow_set_backing). A signal ends the copying; the image then
 * still has its old backing file and reads as before.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <qcowkit/manage.h>
#include <qcowkit/ops.h>

#include "base/mem.h"
#include "cli/cli.h"

struct rebase {
	struct cli *cli;
	const struct cli_args *args;
	const char *file;
	const char *name, *format; /* to record; NULL: none */
	bool unsafe, dry_run;
	struct qcow_image *image, *backing;
	struct qcow_rebase_result result;
};

static bool read_options(struct rebase *r)
{
	/* the last two are what QEMU takes for a format too */
	static const char *const known[] = {"qcow2", "raw", "luks", "file", "host_device"};
	size_t n = r->cli->qemu ? sizeof(known) / sizeof(known[0]) : 3;
	const char *name = cli_arg(r->args, "backing");
	r->unsafe = cli_flag(r->args, "backing-unsafe");
	r->dry_run = cli_flag(r->args, "dry-run");
	r->format = cli_arg(r->args, "backing-format");
	r->name = name != NULL && name[0] != '\0' ? name : NULL;
	if (name == NULL && !r->unsafe) {
		(void)cli_usage(r->cli, "Must specify backing file (-b) or use unsafe mode (-u)");
		return false;
	}
	for (size_t i = 0; r->format != NULL && i < n; i++)
		if (strcmp(r->format, known[i]) == 0)
			return true;
	if (r->format == NULL)
		return true;
	cli_error(r->cli, "Invalid format name: '%s'", r->format);
	cli_hint(r->cli, "backing files are qcow2, raw or luks");
	return false;
}

static bool open_image(struct rebase *r)
{
	struct cli_open_request request;
	unsigned flags = (r->dry_run ? 0 : (unsigned)CLI_OPEN_WRITE) |
			 (r->unsafe ? (unsigned)CLI_OPEN_NO_BACKING : 0);
	if (!cli_open_request_init(r->cli, r->args, r->file, flags, &request))
		return false;
	if (!r->dry_run) /* -U: what is written belongs to nobody else, the files below may */
		request.flags &= ~(unsigned)CLI_OPEN_SHARE;
	return cli_open(r->cli, &request, &r->image) == QCOW_OK;
}

/* By the name as it will be recorded: from the image's folder. */
static bool open_backing(struct rebase *r)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct cli_open_request request = {.operand.format = r->format};
	if (r->name == NULL || r->unsafe)
		return true;
	size_t n = 0;
	const char *from = qcow_store_name(qcow_image_store(r->image));
	char *path = cli_path_protocol(r->name, &n) ? qk_strndup(r->name, strlen(r->name))
						    : cli_join_path(from, r->name);
	if (path == NULL) {
		cli_error(r->cli, "Cannot allocate memory");
		return false;
	}
	request.operand.text = path;
	request.flags = (cli_flag(r->args, "force-share") ? (unsigned)CLI_OPEN_SHARE : 0) |
			(cli_flag(r->args, "probe") ? (unsigned)CLI_OPEN_PROBE : 0);
	if ((cli_cache_file_flags(cli_arg(r->args, "backing-cache")) & QCOW_FILE_DIRECT) != 0)
		request.flags |= CLI_OPEN_DIRECT;
	enum qcow_status status = cli_try_open(r->cli, &request, &r->backing, &err);
	if (status != QCOW_OK)
		cli_report_backing(r->cli, r->name, path, &err);
	free(path);
	return status == QCOW_OK;
}

/* QEMU's words for why the header could not be changed. */
static const char *why_not(const struct qcow_error *err)
{
	switch (err->status) {
	case QCOW_E_NOTSUP:
		return "Operation not supported";
	case QCOW_E_FORMAT:
	case QCOW_E_INVAL:
		return "Invalid argument";
	case QCOW_E_LIMIT:
		return "No space left on device";
	default:
		return NULL;
	}
}

static bool fail(struct rebase *r, const struct qcow_error *err)
{
	const char *name = r->name != NULL ? r->name : "";
	const char *why = r->cli->qemu ? why_not(err) : NULL;
	if (cli_signals_caught())
		return false;
	if (why != NULL)
		cli_error(r->cli, "Could not change the backing file to '%s': %s", name, why);
	else
		(void)cli_fail(r->cli, err, "Could not change the backing file to '%s'", name);
	return false;
}

/* A format that is not recorded would have every reader guess, and a guest choose the answer. */
static bool check_format(struct rebase *r)
{
	struct qcow_info info;
	struct qcow_error err = QCOW_ERROR_INIT;
	qcow_get_info(r->image, &info);
	if (strcmp(info.format, "qcow2") != 0) {
		(void)QK_FAIL(&err, QCOW_E_NOTSUP, "a %s image has no backing file", info.format);
		return fail(r, &err);
	}
	if (r->name == NULL || r->format != NULL)
		return true;
	cli_error(r->cli,
		"Could not change the backing file to '%s': backing format must be specified",
		r->name);
	cli_hint(r->cli, "say -F qcow2 or -F raw");
	return false;
}

static enum qcow_status record(struct rebase *r, struct qcow_error *err)
{
	struct qcow_backing_options options = QCOW_BACKING_OPTIONS_INIT;
	options.name = r->name;
	options.format = r->name != NULL ? r->format : NULL;
	return r->dry_run ? QCOW_OK : qcow_set_backing(r->image, &options, err);
}

static enum qcow_status copy_and_record(
	struct rebase *r, const struct qcow_progress *progress, struct qcow_error *err)
{
	struct qcow_rebase_options options = QCOW_REBASE_OPTIONS_INIT;
	options.backing = r->backing;
	options.backing_name = r->name;
	options.backing_format = r->name != NULL ? r->format : NULL;
	options.compress = cli_flag(r->args, "compress");
	options.dry_run = r->dry_run;
	options.progress = *progress;
	return qcow_rebase(r->image, &options, &r->result, err);
}

static bool put_result(struct rebase *r)
{
	const struct qcow_rebase_result *result = &r->result;
	if (cli_wants_json(r->args)) {
		json_t *o = json_object();
		cli_json_set(o, "filename", cli_json_string(r->file));
		cli_json_set(o, "backing-filename",
			r->name != NULL ? cli_json_string(r->name) : json_null());
		cli_json_set(o, "backing-filename-format",
			r->name != NULL ? cli_json_string(r->format) : json_null());
		cli_json_set(o, "bytes-copied", cli_json_u64(result->bytes_copied));
		cli_json_set(o, "bytes-zeroed", cli_json_u64(result->bytes_zeroed));
		cli_json_set(o, "dry-run", json_boolean(r->dry_run));
		return cli_json_print(r->cli, o) == 0;
	}
	if (r->dry_run && !cli_flag(r->args, "quiet"))
		(void)printf("%" PRIu64 " bytes would be copied, %" PRIu64 " zeroed\n",
			result->bytes_copied, result->bytes_zeroed);
	return true;
}

static bool run_rebase(struct rebase *r)
{
	struct qcow_progress shown = {0};
	struct qcow_error err = QCOW_ERROR_INIT;
	if (!open_image(r) || !open_backing(r) || !check_format(r))
		return false;
	cli_signals_catch(r->cli);
	struct cli_progress *progress = cli_progress_begin(r->cli, r->args, &shown);
	if (progress == NULL)
		return false;
	bool ok = (r->unsafe ? record(r, &err) : copy_and_record(r, &shown, &err)) == QCOW_OK;
	cli_progress_end(progress, ok);
	return ok ? put_result(r) : fail(r, &err);
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct rebase r = {.cli = cli, .args = args, .file = args->operands[0]};
	if (!read_options(&r))
		return 1;
	bool ok = run_rebase(&r);
	qcow_close(r.backing);
	ok = cli_close(cli, r.image, ok);
	if (!ok)
		cli_signals_end();
	return ok ? 0 : 1;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	CLI_OPT_CACHE,
	{.letter = 'b',
		.name = "backing",
		.arg = "FILE",
		.choices = "@file",
		.help = "the new backing file; \"\": none"},
	{.letter = 'F',
		.name = "backing-format",
		.arg = "FMT",
		.choices = "@format",
		.help = "its format, which is recorded"},
	{.letter = 'B',
		.name = "backing-fmt",
		.arg = "FMT",
		.key = "backing-format",
		.choices = "@format",
		.help = "the same as -F"},
	{.letter = 'T',
		.name = "backing-cache",
		.arg = "CACHE",
		.choices = "none|writeback|writethrough|directsync|unsafe",
		.help = "cache mode of the new backing file"},
	{.letter = 'u',
		.name = "backing-unsafe",
		.help = "only change the name: nothing is opened, compared or copied"},
	{.letter = 'c', .name = "compress", .help = "compress what is copied"},
	CLI_OPT_DRY_RUN("change nothing, say how much would be copied"),
	CLI_OPT_OUTPUT_QCOW,
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_PROGRESS,
	CLI_OPT_QUIET,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_rebase = {
	.name = "rebase",
	.summary = "put an overlay on another backing file",
	.synopsis = "[-f FMT | --image-opts] [-t CACHE] -b FILE [-F FMT] [-T CACHE] [-u] [-c] [-p] "
		    "[-q] "
		    "OVERLAY",
	.about =
		"The overlay reads the same afterwards: where old and new backing file differ, it\n"
		"gets a copy. With -u only the name changes, and the disk with it, unless both\n"
		"files hold the same. FILE is found from the overlay's folder.",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.run = run,
};
