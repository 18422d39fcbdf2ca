/* SPDX-License-Identifier: MIT */
/*
 * qcow measure: how large a file a new image would need.
 */
#include "cli/cli.h"

#include <inttypes.h>
#include <string.h>

#include <qcowkit/ops.h>

#include "base/num.h"
#include "cli/create_opts.h"
#include "cli/driver.h"

#define SECTOR_BYTES 512U

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.letter = 'l',
		.name = "snapshot",
		.arg = "SNAPSHOT",
		.help = "measure for an internal snapshot: its id or name, snapshot.id=ID, "
			"snapshot.name=NAME"},
	{.letter = 'O',
		.name = "target-format",
		.arg = "FMT",
		.choices = "@format",
		.help = "format of the new image, qcow2, raw or luks"},
	{.letter = 'o',
		.name = "options",
		.arg = "KEY=VALUE,…",
		.help = "options of the new image; -o help lists them"},
	{.letter = 's',
		.name = "size",
		.arg = "SIZE",
		.help = "measure for an empty disk of SIZE instead of FILE"},
	CLI_OPT_OUTPUT,
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPT_UNTRUSTED,
	CLI_OPTIONS_END,
};

struct job {
	struct cli *cli;
	const struct cli_args *args;
	const char *format; /* of the new image */
	struct cli_keyvals keyvals;
	struct cli_create_opts opts;
	struct qcow_image *image; /* NULL with --size */
};

static bool read_operands(struct job *job)
{
	const char *size = cli_arg(job->args, "size");
	bool has_file = job->args->n_operands > 0;
	if (job->args->n_operands > 1) {
		cli_error(job->cli, "At most one filename argument is allowed.");
		return false;
	}

	if (size != NULL && has_file) {
		cli_error(job->cli, "--size N cannot be used together with a filename.");
		return false;
	}
	if (!has_file &&
		(cli_flag(job->args, "image-opts") || cli_arg(job->args, "format") != NULL ||
			cli_arg(job->args, "snapshot") != NULL)) {
		cli_error(job->cli, "--image-opts, -f, and -l require a filename argument.");
		return false;
	}
	if (size == NULL && !has_file) {
		cli_error(job->cli, "Either --size N or one filename must be specified.");
		return false;
	}
	if (size != NULL)
		return cli_parse_size(job->cli, "image size", size, &job->opts.create.virtual_size);
	struct cli_open_request request;
	if (!cli_open_request_init(job->cli, job->args, job->args->operands[0], 0, &request))
		return false;
	request.snapshot = cli_arg(job->args, "snapshot");
	return cli_open(job->cli, &request, &job->image) == QCOW_OK;
}

/* What LUKS costs depends on no passphrase; QEMU wants to see one all the same. */
static bool check_luks(struct job *job)
{
	if (!job->cli->qemu ||
		(!job->opts.luks && job->opts.create.encryption != QCOW_ENCRYPTION_LUKS))
		return true;
	if (job->opts.create.luks_detached_header) {
		cli_error(job->cli, "Parameter 'detached-header' is unexpected");
		return false;
	}
	return cli_create_opts_find_secret(job->cli, &job->opts, "");
}

static bool read_options(struct job *job)
{
	job->format = cli_arg(job->args, "target-format");
	if (job->format == NULL)
		job->format = job->cli->qemu ? "raw" : "qcow2";
	if (strcmp(job->format, "qcow2") != 0 && strcmp(job->format, "raw") != 0 &&
		strcmp(job->format, "luks") != 0) {
		if (job->cli->qemu && !cli_driver_is_foreign(job->format))
			cli_error(job->cli, "Unknown file format '%s'", job->format);
		else
			cli_error(job->cli, "Block driver '%s' does not support size measurement",
				job->format);
		cli_hint(job->cli, "qcow2, raw and luks can be measured");
		return false;
	}
	return cli_keyvals_from_args(job->cli, job->args, "options", &job->keyvals) &&
	       cli_create_opts_parse(job->cli, job->format, &job->keyvals, &job->opts) &&
	       !cli_create_opts_refused(job->cli, &job->opts, "") && check_luks(job);
}

static int print_json(struct cli *cli, const struct qcow_measure_result *r)
{
	json_t *root = json_object();

	/* QEMU's order */
	if (r->has_bitmaps)
		cli_json_set(root, "bitmaps", cli_json_u64(r->bitmaps));
	cli_json_set(root, "required", cli_json_u64(r->required));
	cli_json_set(root, "fully-allocated", cli_json_u64(r->fully_allocated));
	return cli_json_print(cli, root);
}

static int print_human(const struct qcow_measure_result *r)
{
	(void)printf("required size: %" PRIu64 "\n", r->required);
	(void)printf("fully allocated size: %" PRIu64 "\n", r->fully_allocated);
	if (r->has_bitmaps)
		(void)printf("bitmaps size: %" PRIu64 "\n", r->bitmaps);
	return 0;
}

/* QEMU's raw disks are whole sectors. */
static void round_up(struct cli *cli, struct qcow_measure_result *r)
{
	if (!cli->qemu)
		return;
	r->required = qk_div_up(r->required, SECTOR_BYTES) * SECTOR_BYTES;
	r->fully_allocated = qk_div_up(r->fully_allocated, SECTOR_BYTES) * SECTOR_BYTES;
}

static int fail(struct cli *cli, struct qcow_error *err)
{
	if (!cli->qemu)
		return cli_fail(cli, err, "cannot measure");
	if (strncmp(err->message, "a virtual size of ", strlen("a virtual size of ")) == 0)
		(void)snprintf(err->message, sizeof(err->message),
			"The image size is too large (try using a larger cluster size)");
	return cli_fail(cli, err, "%s", "");
}

static int run_job(struct job *job)
{
	struct qcow_measure_result result = {0};
	struct qcow_error err = QCOW_ERROR_INIT;

	if (!read_options(job) || !read_operands(job))
		return 1;
	if (job->image == NULL && job->opts.create.virtual_size > INT64_MAX) {
		cli_error(job->cli,
			"Invalid image size specified. Must be between 0 and %" PRId64 ".",
			INT64_MAX);
		return 1;
	}
	if (qcow_measure(job->image, job->format, &job->opts.create, &result, &err) != QCOW_OK)
		return fail(job->cli, &err);
	round_up(job->cli, &result);
	if (cli_wants_json(job->args))
		return print_json(job->cli, &result);
	return print_human(&result);
}

static int run(struct cli *cli, const struct cli_args *args)
{
	if (cli_create_opts_help(cli, args, cli_arg(args, "target-format")))
		return 0;
	if (!cli_objects_add_all(cli, args))
		return 1;
	struct job job = {.cli = cli, .args = args};
	int rc = run_job(&job);
	qcow_close(job.image);
	cli_keyvals_release(&job.keyvals);
	return rc;
}

const struct cli_command cli_cmd_measure = {
	.name = "measure",
	.summary = "say how large a file a new image would need",
	.synopsis = "[-f FMT | --image-opts] [-l SNAPSHOT] [-O FMT] [-o KEY=VALUE,…] [-U] "
		    "(--size SIZE | FILE)",
	.about = "The required size is what converting FILE takes at most; the fully allocated "
		 "size\n"
		 "is what the image can grow to.",
	.options = options,
	.min_operands = 0,
	.max_operands = CLI_MANY,
	.run = run,
};
