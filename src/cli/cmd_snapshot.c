/* SPDX-License-Identifier: MIT */
/*
 * cmd_snapshot: lists, makes, applies, deletes and renames internal snapshots. Which snapshot a name means is as in
 * qemu-img: -a looks for an id first, -d for a name first; the personality's -d for a name alone.
 */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#include <qcowkit/manage.h>

#include "cli/snaplist.h"

/* One run of the command. */
struct job {
	struct cli *cli;
	const struct cli_args *args;
	const char *action; /* an option's name */
	const char **names; /* its arguments */
	size_t n;
	struct qcow_image *image;
	struct qcow_progress progress;
};

static int list_snapshots(struct cli *cli, struct qcow_image *image, bool as_json)
{
	bool damaged = false;
	struct cli_snapshots snapshots;
	cli_snapshots_init(&snapshots, cli, image, &damaged);
	int rc = 0;
	if (as_json)
		rc = cli_json_print(cli, cli_json_list(&snapshots.list));
	else
		cli_snapshot_table(&snapshots.list);
	return rc != 0 ? rc : damaged;
}

/* ---- what is asked for ---- */

static const char *const actions[] = {"list", "create", "apply", "delete", "rename"};

static bool is_action(const char *name)
{
	for (size_t k = 0; k < sizeof(actions) / sizeof(actions[0]); k++)
		if (strcmp(name, actions[k]) == 0)
			return true;
	return false;
}

/* The one action asked for ("list" without any) and its arguments. Several -d are one action, but not in QEMU's
 * words. False: reported. */
static bool choose_action(struct job *job)
{
	const struct cli_args *args = job->args;
	job->names = calloc(args->n_given + 1, sizeof(*job->names));
	if (job->names == NULL)
		cli_out_of_memory();
	for (size_t i = 0; i < args->n_given; i++) {
		const char *name = args->given[i].option->name;
		if (!is_action(name))
			continue;
		bool goes_on = job->action != NULL && !job->cli->qemu &&
			       strcmp(name, "delete") == 0 && strcmp(job->action, name) == 0;
		if (job->action != NULL && !goes_on) {
			(void)cli_usage(job->cli, "Cannot mix '-l', '-a', '-c', '-d'");
			return false;
		}
		job->action = name;
		job->names[job->n++] = args->given[i].value;
	}
	job->action = job->action != NULL ? job->action : "list";
	bool renames = strcmp(job->action, "rename") == 0;
	if (renames == (cli_arg(args, "name") != NULL))
		return true;
	(void)cli_usage(
		job->cli, renames ? "--rename needs --name NEW" : "--name goes with --rename only");
	return false;
}

static enum qcow_snapshot_key key_of(const struct job *job)
{
	if (strcmp(job->action, "delete") != 0)
		return QCOW_SNAPSHOT_ID_OR_NAME;
	return job->cli->qemu ? QCOW_SNAPSHOT_NAME : QCOW_SNAPSHOT_NAME_OR_ID;
}

/* ---- failures ---- */

static int fail(struct job *job, enum qcow_status status, const struct qcow_error *err)
{
	const char *name = job->names[0] != NULL ? job->names[0] : "";
	bool is_missing = status == QCOW_E_NOENT;
	if (status == QCOW_E_CANCELLED && cli_signals_caught())
		return 1;
	if (!job->cli->qemu)
		return cli_fail(job->cli, err, "Could not %s snapshot '%s' of '%s'", job->action,
			name, job->args->operands[0]);
	if (is_missing && strcmp(job->action, "delete") == 0)
		cli_error(job->cli, "Could not delete snapshot '%s': snapshot not found", name);
	else if (is_missing)
		cli_error(job->cli,
			"Could not apply snapshot '%s': Failed to load snapshot: No such file or "
			"directory",
			name);
	else
		cli_error(job->cli, "Could not %s snapshot '%s': %s", job->action, name,
			err->message);
	return 1;
}

/* ---- the plan ---- */

struct find {
	const char *key;
	bool by_id, found;
	json_t *snapshot;
};

static bool look(void *ctx, uint32_t index, const struct qcow_snapshot *s)
{
	struct find *f = ctx;
	const char *text = f->by_id ? s->id : s->name;
	(void)index;
	if (strcmp(text, f->key) != 0)
		return true;
	f->found = true;
	f->snapshot = json_object();
	cli_json_set(f->snapshot, "id", cli_json_stringn(s->id, s->id_bytes));
	cli_json_set(f->snapshot, "name", cli_json_stringn(s->name, s->name_bytes));
	return false;
}

/* The snapshot that `key` means, or QCOW_E_NOENT. */
static enum qcow_status find_snapshot(
	struct job *job, const char *key, json_t **out, struct qcow_error *err)
{
	enum qcow_snapshot_key how = key_of(job);
	bool id_first = how == QCOW_SNAPSHOT_ID_OR_NAME;
	struct find f = {.key = key};
	for (int pass = 0; pass < 2 && !f.found; pass++) {
		f.by_id = (pass == 0) == id_first;
		if (pass == 1 && how == QCOW_SNAPSHOT_NAME)
			break;
		QK_TRY(qcow_each_snapshot(job->image, look, &f, err));
	}
	*out = f.snapshot;
	if (f.found)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_NOENT, "snapshot '%s' not found", key);
}

static void print_plan(json_t *snapshots, const struct job *job)
{
	size_t i = 0;
	json_t *s = NULL;
	json_array_foreach(snapshots, i, s)
	{
		const char *id = json_string_value(json_object_get(s, "id"));
		(void)printf("would %s snapshot ", job->action);
		if (id != NULL) {
			cli_put_escaped(stdout, id);
			(void)printf(" ");
		}
		(void)printf("'");
		cli_put_escaped(stdout, json_string_value(json_object_get(s, "name")));
		(void)printf("'\n");
	}
}

static int show(struct job *job, json_t *snapshots, bool is_dry)
{
	bool quiet = cli_flag(job->args, "quiet");
	if (cli_wants_json(job->args) && !quiet) {
		json_t *root = json_object();
		cli_json_set(root, "action", cli_json_string(job->action));
		cli_json_set(root, "dry-run", json_boolean(is_dry));
		cli_json_set(root, "snapshots", snapshots);
		return cli_json_print(job->cli, root);
	}
	if (is_dry && !quiet)
		print_plan(snapshots, job);
	json_decref(snapshots);
	return 0;
}

/* What the action means, by the list as it is now. NULL: reported. */
static json_t *make_plan(struct job *job)
{
	json_t *snapshots = json_array();
	for (size_t i = 0; i < job->n; i++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		json_t *s = NULL;
		enum qcow_status status = QCOW_OK;
		if (strcmp(job->action, "create") == 0) {
			s = json_object();
			cli_json_set(s, "name", cli_json_string(job->names[i]));
		} else {
			status = find_snapshot(job, job->names[i], &s, &err);
		}
		if (status != QCOW_OK) {
			job->names[0] = job->names[i];
			(void)fail(job, status, &err);
			json_decref(snapshots);
			return NULL;
		}
		(void)json_array_append_new(snapshots, s);
	}
	return snapshots;
}

/* ---- the actions ---- */

static enum qcow_status create(struct job *job, struct qcow_error *err)
{
	struct qcow_snapshot_create_options options = QCOW_SNAPSHOT_CREATE_OPTIONS_INIT;
	char cut[QCOW_SNAPSHOT_NAME_BYTES + 1] = "";
	options.name = job->names[0];
	options.progress = job->progress;
	if (job->cli->qemu && strlen(options.name) > QCOW_SNAPSHOT_NAME_BYTES) {
		memcpy(cut, options.name, QCOW_SNAPSHOT_NAME_BYTES);
		options.name = cut;
	}
	return qcow_snapshot_create(job->image, &options, err);
}

static enum qcow_status act(struct job *job, struct qcow_error *err)
{
	const char *name = job->names[0];
	if (strcmp(job->action, "create") == 0)
		return create(job, err);
	if (strcmp(job->action, "apply") == 0)
		return qcow_snapshot_apply(job->image, name, key_of(job), &job->progress, err);
	if (strcmp(job->action, "delete") == 0)
		return qcow_snapshot_delete(
			job->image, job->names, job->n, key_of(job), &job->progress, err);
	return qcow_snapshot_rename(job->image, name, key_of(job), cli_arg(job->args, "name"), err);
}

/* The verdict that the action would meet. */
static enum qcow_status judge(struct job *job, struct qcow_error *err)
{
	if (strcmp(job->action, "create") == 0)
		return qcow_snapshot_judge(
			job->image, QCOW_SNAPSHOT_CREATE, NULL, 0, QCOW_SNAPSHOT_ID, NULL, err);
	if (strcmp(job->action, "rename") == 0)
		return QCOW_OK;
	bool deletes = strcmp(job->action, "delete") == 0;
	return qcow_snapshot_judge(job->image, deletes ? QCOW_SNAPSHOT_DELETE : QCOW_SNAPSHOT_APPLY,
		job->names, job->n, key_of(job), NULL, err);
}

/* QEMU's words for an image that can have no snapshots. */
static bool is_refused(struct job *job)
{
	struct qcow_info info;
	qcow_get_info(job->image, &info);
	if (!job->cli->qemu || strcmp(info.format, "qcow2") == 0)
		return false;
	if (strcmp(job->action, "create") == 0)
		cli_error(job->cli, "Could not create snapshot '%s': Operation not supported",
			job->names[0]);
	else if (strcmp(job->action, "apply") == 0)
		cli_error(job->cli,
			"Could not apply snapshot '%s': Block driver does not support snapshots",
			job->names[0]);
	else
		return false;
	return true;
}

static int change(struct job *job)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (is_refused(job))
		return 1;
	json_t *plan = make_plan(job);
	if (plan == NULL)
		return 1;
	if (cli_flag(job->args, "dry-run")) {
		enum qcow_status status = judge(job, &err);
		if (status == QCOW_OK)
			return show(job, plan, true);
		json_decref(plan);
		return fail(job, status, &err);
	}
	struct cli_progress *progress = cli_progress_begin(job->cli, job->args, &job->progress);
	if (progress == NULL) {
		json_decref(plan);
		return 1;
	}
	enum qcow_status status = act(job, &err);
	cli_progress_end(progress, status == QCOW_OK);
	if (status == QCOW_OK)
		return show(job, plan, false);
	json_decref(plan);
	return fail(job, status, &err);
}

/* ---- the command ---- */

static int run_action(struct job *job)
{
	bool lists = strcmp(job->action, "list") == 0;
	bool writes = !lists && !cli_flag(job->args, "dry-run");
	struct cli_open_request request;
	if (writes && cli_flag(job->args, "force-share")) {
		cli_error(job->cli,
			"Could not open '%s': force-share=on can only be used with read-only "
			"images",
			job->args->operands[0]);
		return 1;
	}
	if (!cli_open_request_init(job->cli, job->args, job->args->operands[0],
		    CLI_OPEN_ALONE | (writes ? CLI_OPEN_WRITE : CLI_OPEN_CHECK), &request))
		return 1;
	if (writes)
		cli_signals_catch(job->cli);
	if (cli_open(job->cli, &request, &job->image) != QCOW_OK)
		return 1;
	int rc = lists ? list_snapshots(job->cli, job->image, cli_wants_json(job->args))
		       : change(job);
	bool ok = cli_close(job->cli, job->image, rc == 0);
	if (writes)
		cli_signals_end();
	return ok ? rc : 1;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct job job = {.cli = cli, .args = args};
	int rc = choose_action(&job) ? run_action(&job) : 1;
	free((void *)job.names);
	return rc;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.letter = 'l', .name = "list", .help = "list the snapshots (the default)"},
	{.letter = 'c', .name = "create", .arg = "NAME", .help = "make a snapshot of the disk"},
	{.letter = 'a',
		.name = "apply",
		.arg = "SNAPSHOT",
		.help = "the disk becomes what it was at SNAPSHOT (an id, or a name)"},
	{.letter = 'd',
		.name = "delete",
		.arg = "SNAPSHOT",
		.help = "delete SNAPSHOT (a name, or an id); may be given several times"},
	{.name = "rename",
		.arg = "SNAPSHOT",
		.flags = CLI_OPT_QCOW,
		.help = "give SNAPSHOT (an id, or a name) another name"},
	{.name = "name", .arg = "NEW", .flags = CLI_OPT_QCOW, .help = "the name for --rename"},
	CLI_OPT_DRY_RUN("say what would be done, and change nothing"),
	CLI_OPT_OUTPUT_QCOW,
	CLI_OPT_PROGRESS_QCOW,
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_QUIET,
	CLI_OPT_OBJECT,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_snapshot = {
	.name = "snapshot",
	.summary = "List, make, apply, delete the internal snapshots of an image",
	.synopsis = "[-f FMT | --image-opts] [-l | -c NAME | -a SNAPSHOT | -d SNAPSHOT... |\n"
		    "    --rename SNAPSHOT --name NEW] [--dry-run] [-p] [-U] [-q] FILE",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.run = run,
};
