/* SPDX-License-Identifier: MIT */
/*
 * qcow resize: the disk of an image becomes longer or shorter.
 */
#include "cli/cli.h"

#include <inttypes.h>
#include <string.h>

#include <qcowkit/manage.h>

#include "base/num.h"

#define SECTOR_BYTES 512U

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.name = "preallocation",
		.arg = "MODE",
		.help = "what a disk that grows gets: off (the default), metadata, falloc, full"},
	{.name = "shrink", .help = "the disk may become shorter: what lies past its end is lost"},
	CLI_OPT_DRY_RUN("say whether it could be done, and change nothing"),
	CLI_OPT_PROGRESS_QCOW,
	CLI_OPT_OUTPUT_QCOW,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_QUIET,
	CLI_OPTIONS_END,
};

struct job {
	struct cli *cli;
	const struct cli_args *args;
	const char *file;
	struct qcow_image *image;
	struct qcow_resize_options options;
	enum cli_sign sign;
	uint64_t amount; /* as typed, behind the sign */
	uint64_t old_size, new_size;
};

static bool read_mode(struct job *job)
{
	static const char *const words[] = {"off", "metadata", "falloc", "full"};
	const char *mode = cli_arg(job->args, "preallocation");
	for (unsigned i = 0; mode != NULL && i < sizeof(words) / sizeof(words[0]); i++)
		if (strcmp(mode, words[i]) == 0) {
			job->options.preallocation = (enum qcow_preallocation)i;
			return true;
		}
	if (mode == NULL)
		return true;
	cli_error(job->cli, "Invalid preallocation mode '%s'", mode);
	return false;
}

static bool read_amount(struct job *job)
{
	const char *text = job->args->operands[1];
	bool out_of_range = false;
	if (!job->cli->qemu)
		return cli_parse_size_signed(job->cli, "size", text, &job->sign, &job->amount);
	job->sign = text[0] == '+'   ? CLI_SIGN_PLUS
		    : text[0] == '-' ? CLI_SIGN_MINUS
				     : CLI_SIGN_NONE;
	if (cli_read_size(text + (job->sign != CLI_SIGN_NONE), &job->amount, &out_of_range) == NULL)
		return true;
	if (out_of_range) {
		cli_error(job->cli, "New image size must be positive");
		return false;
	}
	cli_error(job->cli, "Parameter 'size' expects a non-negative number below 2^64");
	cli_more(job->cli,
		"Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-");
	cli_more(job->cli, "and exabytes, respectively.");
	return false;
}

/* From what it has: QEMU counts raw disks in whole sectors. */
static bool find_sizes(struct job *job)
{
	struct qcow_info info;
	bool fits = true;
	qcow_get_info(job->image, &info);
	job->old_size = info.virtual_size;
	if (job->cli->qemu)
		job->old_size = qk_div_up(info.virtual_size, SECTOR_BYTES) * SECTOR_BYTES;
	if (job->sign == CLI_SIGN_PLUS)
		fits = qk_add(job->old_size, job->amount, &job->new_size) &&
		       job->new_size <= INT64_MAX;
	else if (job->sign == CLI_SIGN_MINUS)
		job->new_size = job->amount < job->old_size ? job->old_size - job->amount : 0;
	else
		job->new_size = job->amount;
	if (fits && job->new_size != 0)
		return true;
	cli_error(job->cli, "New image size must be positive");
	return false;
}

static bool may_shrink(struct job *job)
{
	if (job->cli->qemu && job->new_size <= job->old_size &&
		job->options.preallocation != QCOW_PREALLOC_OFF) {
		cli_error(job->cli, "Preallocation can only be used for growing images");
		return false;
	}
	if (job->new_size >= job->old_size || job->options.shrink)
		return true;
	cli_error(job->cli, "Use the --shrink option to perform a shrink operation.");
	if (job->cli->qemu)
		cli_error(job->cli,
			"warning: Shrinking an image will delete all data beyond the "
			"shrunken image's end. Before performing such an operation, make "
			"sure there is no important data there.");
	else
		cli_hint(job->cli, "what lies past byte %" PRIu64 " will be lost", job->new_size);
	return false;
}

/* What QEMU refuses and the library would do. */
static bool is_qemus(struct job *job)
{
	struct qcow_info info;
	qcow_get_info(job->image, &info);
	if (!job->cli->qemu || info.version == 0 || job->new_size % SECTOR_BYTES == 0)
		return true;
	cli_error(job->cli, "The new size must be a multiple of 512");
	return false;
}

static void print_result(const struct job *job)
{
	if (cli_wants_json(job->args)) {
		json_t *root = json_object();
		cli_json_set(root, "filename", cli_json_string(job->file));
		cli_json_set(root, "old-size", cli_json_u64(job->old_size));
		cli_json_set(root, "new-size", cli_json_u64(job->new_size));
		cli_json_set(root, "dry-run", json_boolean(job->options.dry_run));
		(void)cli_json_print(job->cli, root);
		return;
	}
	if (cli_flag(job->args, "quiet"))
		return;
	if (job->options.dry_run)
		(void)printf("Image can be resized from %" PRIu64 " to %" PRIu64 " bytes.\n",
			job->old_size, job->new_size);
	else
		(void)printf("Image resized.\n");
}

static int resize(struct job *job)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct cli_progress *progress = cli_progress_begin(
		job->cli, job->args, &job->options.progress);
	if (progress == NULL)
		return 1;
	cli_signals_catch(job->cli);
	enum qcow_status status = qcow_resize(job->image, job->new_size, &job->options, &err);
	if (status == QCOW_OK && !job->options.dry_run)
		status = qcow_flush(job->image, &err);
	cli_progress_end(progress, status == QCOW_OK);
	if (status == QCOW_OK) {
		print_result(job);
		return 0;
	}
	if (status == QCOW_E_CANCELLED && cli_signals_caught())
		return 1;
	return cli_fail(job->cli, &err, "%s", job->cli->qemu ? "" : "cannot resize");
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct job job = {.cli = cli,
		.args = args,
		.file = args->operands[0],
		.options = QCOW_RESIZE_OPTIONS_INIT};
	struct cli_open_request request;
	job.options.shrink = cli_flag(args, "shrink");
	job.options.dry_run = cli_flag(args, "dry-run");
	if (!read_amount(&job) || !read_mode(&job) ||
		!cli_open_request_init(cli, args, job.file,
			job.options.dry_run ? 0 : (unsigned)CLI_OPEN_WRITE, &request) ||
		cli_open(cli, &request, &job.image) != QCOW_OK)
		return 1;
	int rc = find_sizes(&job) && may_shrink(&job) && is_qemus(&job) ? resize(&job) : 1;
	return cli_close(cli, job.image, rc == 0) ? rc : 1;
}

const struct cli_command cli_cmd_resize = {
	.name = "resize",
	.summary = "Make the disk of an image longer or shorter",
	.synopsis =
		"[-f FMT | --image-opts] [--preallocation MODE] [--shrink] [--dry-run] [-p] [-q] "
		"FILE [+|-]SIZE",
	.about = "SIZE is the new size of the disk, or with + and - by how much it changes. What "
		 "is new\n"
		 "reads as zeros.",
	.options = options,
	.min_operands = 2,
	.max_operands = 2,
	.run = run,
};
