/* SPDX-License-Identifier: MIT */
/*
 * qcow bitmap: persistent bitmaps are added, removed, cleared, enabled, disabled, merged: all actions in their order, or
 * none of them.
 */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#include <qcowkit/manage.h>

#include "base/mem.h"

#define MIN_GRANULARITY 512U
#define MAX_GRANULARITY (UINT64_C(1) << 31)

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.name = "add", .help = "make BITMAP, clear and enabled: it records what is written"},
	{.letter = 'g',
		.name = "granularity",
		.arg = "SIZE",
		.help = "of what --add makes: a power of 2 from 512 to 2G"},
	{.name = "remove", .help = "remove BITMAP, also where it is inconsistent"},
	{.name = "remove-all", .help = "remove all bitmaps"},
	{.name = "clear", .help = "all of BITMAP is clean"},
	{.name = "enable", .help = "BITMAP records what is written from now on"},
	{.name = "disable", .help = "BITMAP stays as it is"},
	{.name = "merge",
		.arg = "SOURCE",
		.help = "what is dirty in SOURCE becomes dirty in BITMAP"},
	{.letter = 'b',
		.name = "source-file",
		.arg = "FILE",
		.choices = "@file",
		.help = "the image that has SOURCE, if it is another"},
	{.letter = 'F',
		.name = "source-format",
		.arg = "FMT",
		.choices = "@format",
		.help = "its format"},
	CLI_OPT_DRY_RUN("say whether it could be done, and change nothing"),
	CLI_OPT_PROGRESS_QCOW,
	CLI_OPT_OUTPUT_QCOW,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	{.letter = 'q', .name = "quiet", .flags = CLI_OPT_QCOW, .help = "write nothing but errors"},
	CLI_OPTIONS_END,
};

/* The words, in the order of enum qcow_bitmap_act. */
static const char *const words[] = {
	NULL, "add", "remove", "remove-all", "clear", "enable", "disable", "merge"};

struct job {
	struct cli *cli;
	const struct cli_args *args;
	const char *bitmap; /* or NULL */
	struct qcow_bitmap_action *actions;
	size_t n_actions;
	struct qcow_image *image, *source;
	struct qcow_bitmap_edit_options options;
};

static enum qcow_bitmap_act find_act(const char *option)
{
	for (size_t i = QCOW_BITMAP_ADD; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcmp(option, words[i]) == 0)
			return (enum qcow_bitmap_act)i;
	return 0;
}

static bool has_act(const struct job *job, enum qcow_bitmap_act act)
{
	for (size_t i = 0; i < job->n_actions; i++)
		if (job->actions[i].act == act)
			return true;
	return false;
}

/* ---- what was typed ---- */

static bool take_actions(struct job *job)
{
	job->actions = qk_calloc(job->args->n_given, sizeof(*job->actions));
	if (job->actions == NULL)
		cli_out_of_memory();
	for (size_t i = 0; i < job->args->n_given; i++) {
		const struct cli_given *given = &job->args->given[i];
		enum qcow_bitmap_act act = find_act(given->option->name);
		if (act != 0)
			job->actions[job->n_actions++] = (struct qcow_bitmap_action){
				.act = act, .name = job->bitmap, .source = given->value};
	}
	bool needs_name = job->n_actions == 0;
	for (size_t i = 0; i < job->n_actions; i++)
		needs_name = needs_name || job->actions[i].act != QCOW_BITMAP_REMOVE_ALL;
	if (job->bitmap == NULL && needs_name)
		cli_error(job->cli, "Expecting filename and bitmap name");
	else if (job->n_actions == 0)
		cli_error(job->cli, "Need at least one of --add, --remove, --remove-all, --clear, "
				    "--enable, --disable, or --merge");
	else
		return true;
	return false;
}

static bool read_granularity(struct job *job)
{
	const char *text = cli_arg(job->args, "granularity");
	uint64_t size = 0;
	bool out_of_range = false;
	if (text == NULL)
		return true;
	if (!job->cli->qemu && !cli_parse_size(job->cli, "granularity", text, &size))
		return false;
	if (job->cli->qemu && cli_read_size(text, &size, &out_of_range) != NULL) {
		cli_error(job->cli, "Invalid granularity specified. You may use k, M, G, T, P or E "
				    "suffixes for ");
		cli_error(job->cli,
			"kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.");
		return false;
	}
	if (!has_act(job, QCOW_BITMAP_ADD)) {
		cli_error(job->cli, "granularity only supported with --add");
		return false;
	}
	if (size != 0 &&
		((size & (size - 1)) != 0 || size < MIN_GRANULARITY || size > MAX_GRANULARITY)) {
		cli_error(job->cli,
			"Operation add on bitmap %s failed: Granularity must be power of 2 and at "
			"least 512%s",
			job->bitmap, job->cli->qemu ? "" : ", and at most 2G");
		return false;
	}
	for (size_t i = 0; i < job->n_actions && size != 0; i++)
		if (job->actions[i].act == QCOW_BITMAP_ADD)
			job->actions[i].granularity_bits = (uint32_t)__builtin_ctzll(size);
	return true;
}

static bool check_source(const struct job *job)
{
	bool has_file = cli_flag(job->args, "source-file");
	if (has_file && !has_act(job, QCOW_BITMAP_MERGE))
		cli_error(job->cli, "Merge bitmap source file only supported with --merge");
	else if (!has_file && cli_flag(job->args, "source-format"))
		cli_error(job->cli, "-F only supported with -b");
	else
		return true;
	return false;
}

/* ---- opening ---- */

static bool open_source(struct job *job)
{
	struct cli_open_request request = {.operand = {.text = cli_arg(job->args, "source-file"),
						   .format = cli_arg(job->args, "source-format")},
		.flags = CLI_OPEN_ALONE};
	if (request.operand.text == NULL)
		return true;
	if (cli_open(job->cli, &request, &job->source) != QCOW_OK)
		return false;
	for (size_t i = 0; i < job->n_actions; i++)
		job->actions[i].source_image = job->source;
	return true;
}

static bool open_images(struct job *job)
{
	struct cli_open_request request;
	unsigned flags = CLI_OPEN_ALONE;
	if (!job->options.dry_run)
		flags |= CLI_OPEN_WRITE;
	return cli_open_request_init(
		       job->cli, job->args, job->args->operands[0], flags, &request) &&
	       cli_open(job->cli, &request, &job->image) == QCOW_OK && open_source(job);
}

/* ---- the work ---- */

/* QEMU's words for an image that has no place for bitmaps: there is none, and none can be made. */
static const char *placeless_words(const struct job *job, const struct qcow_bitmap_action *a,
	const struct qcow_error *err, char *text, size_t room)
{
	struct qcow_info info;
	qcow_get_info(job->image, &info);
	if (a->act == QCOW_BITMAP_ADD && info.version == 0)
		(void)snprintf(text, room,
			"Can't store persistent bitmaps to '%s': Operation not supported",
			job->args->operands[0]);
	else if (a->act == QCOW_BITMAP_ADD)
		(void)snprintf(text, room, "Can't make bitmap '%s' persistent in '%s': %s", a->name,
			job->args->operands[0], err->message);
	else
		(void)snprintf(text, room, "Dirty bitmap '%s' not found", a->name);
	return text;
}

static int fail(struct job *job, size_t failed, const struct qcow_error *err)
{
	const struct qcow_bitmap_action *a = &job->actions[failed < job->n_actions ? failed : 0];
	char text[QCOW_ERROR_MESSAGE_BYTES + 4096];
	struct qcow_info info;
	if (failed == job->n_actions && !job->cli->qemu)
		return cli_fail(job->cli, err, "cannot change bitmaps");
	qcow_get_info(job->image, &info);
	if (job->cli->qemu && info.version < 3 && a->name != NULL) {
		cli_error(job->cli, "Operation %s on bitmap %s failed: %s", words[a->act], a->name,
			placeless_words(job, a, err, text, sizeof(text)));
		return 1;
	}
	if (err->finding == QCOW_FINDING_BITMAP_INCONSISTENT) {
		cli_error(job->cli, "Operation %s on bitmap %s failed: %s", words[a->act], a->name,
			err->message);
		if (job->cli->qemu)
			cli_more(job->cli,
				"Try block-dirty-bitmap-remove to delete this bitmap from disk");
		else
			cli_hint(job->cli, "it was in use when a program ended without saving it: "
					   "all that is left is --remove");
		return 1;
	}
	return cli_fail(job->cli, err, "Operation %s on bitmap %s failed", words[a->act],
		a->name != NULL ? a->name : "(all)");
}

static void print_result(const struct job *job)
{
	if (cli_wants_json(job->args)) {
		json_t *root = json_object(), *list = json_array();
		for (size_t i = 0; i < job->n_actions; i++) {
			const struct qcow_bitmap_action *a = &job->actions[i];
			json_t *action = json_object();
			cli_json_set(action, "action", cli_json_string(words[a->act]));
			if (a->act != QCOW_BITMAP_REMOVE_ALL)
				cli_json_set(action, "bitmap", cli_json_string(a->name));
			if (a->act == QCOW_BITMAP_MERGE)
				cli_json_set(action, "source", cli_json_string(a->source));
			(void)json_array_append_new(list, action);
		}
		cli_json_set(root, "filename", cli_json_string(job->args->operands[0]));
		cli_json_set(root, "actions", list);
		cli_json_set(root, "dry-run", json_boolean(job->options.dry_run));
		(void)cli_json_print(job->cli, root);
	} else if (job->options.dry_run && !cli_flag(job->args, "quiet")) {
		(void)printf("It can be done.\n");
	}
}

static int edit(struct job *job)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t failed = 0;
	struct cli_progress *progress = cli_progress_begin(
		job->cli, job->args, &job->options.progress);
	if (progress == NULL)
		return 1;
	cli_signals_catch(job->cli);
	enum qcow_status status = qcow_bitmap_edit(
		job->image, job->actions, job->n_actions, &job->options, &failed, &err);
	cli_progress_end(progress, status == QCOW_OK);
	if (status == QCOW_OK) {
		print_result(job);
		return 0;
	}
	if (status == QCOW_E_CANCELLED && cli_signals_caught())
		return 1;
	return fail(job, failed, &err);
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct job job = {.cli = cli,
		.args = args,
		.bitmap = args->n_operands == 2 ? args->operands[1] : NULL,
		.options = QCOW_BITMAP_EDIT_OPTIONS_INIT};
	int rc = 1;
	job.options.dry_run = cli_flag(args, "dry-run");
	if (args->n_operands == 0)
		cli_error(cli, "Expecting filename and bitmap name");
	else if (take_actions(&job) && read_granularity(&job) && check_source(&job) &&
		 open_images(&job))
		rc = edit(&job);
	bool ok = cli_close(cli, job.image, rc == 0);
	qcow_close(job.source);
	free(job.actions);
	return ok ? rc : 1;
}

const struct cli_command cli_cmd_bitmap = {
	.name = "bitmap",
	.summary = "Add, remove, clear, enable, disable and merge persistent bitmaps",
	.synopsis = "[-f FMT | --image-opts] (--add [-g SIZE] | --remove | --remove-all | --clear "
		    "| --enable | --disable | --merge SOURCE [-b FILE [-F FMT]])… [--dry-run] [-p] "
		    "[-q] FILE [BITMAP]",
	.about = "The actions are done in the order they are given: all of them, or where one "
		 "cannot be\n"
		 "done, none.",
	.options = options,
	.min_operands = 0,
	.max_operands = 2,
	.run = run,
};
