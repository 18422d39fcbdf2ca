/* SPDX-License-Identifier: MIT */
/*
 * cmd_snapshot: lists internal snapshots. Making, applying and deleting them is not built in yet and is
 * refused before anything is opened.
 */
#include "cli/cli.h"

#include <string.h>

#include "cli/snaplist.h"

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

/* The one action asked for ("list" without any), or NULL where several were: reported. */
static const char *chosen_action(struct cli *cli, const struct cli_args *args)
{
	static const char *const actions[] = {"list", "create", "apply", "delete"};
	const char *action = NULL;
	for (size_t i = 0; i < args->n_given; i++) {
		const char *name = args->given[i].option->name;
		for (size_t k = 0; k < sizeof(actions) / sizeof(actions[0]); k++) {
			if (strcmp(name, actions[k]) != 0)
				continue;
			if (action != NULL) {
				(void)cli_usage(cli, "Cannot mix '-l', '-a', '-c', '-d'");
				return NULL;
			}
			action = actions[k];
		}
	}
	return action != NULL ? action : "list";
}

static int run(struct cli *cli, const struct cli_args *args)
{
	const char *action = chosen_action(cli, args);
	if (action == NULL)
		return 1;
	if (strcmp(action, "list") != 0) {
		cli_error(cli,
			"cannot %s snapshot '%s' of '%s': this version of qcowkit only lists them",
			action, cli_arg(args, action), args->operands[0]);
		return 1;
	}
	struct cli_open_request request;
	if (!cli_open_request_init(
		    cli, args, args->operands[0], CLI_OPEN_ALONE | CLI_OPEN_CHECK, &request))
		return 1;
	struct qcow_image *image = NULL;
	if (cli_open(cli, &request, &image) != QCOW_OK)
		return 1;
	int rc = list_snapshots(cli, image, cli_wants_json(args));
	qcow_close(image);
	return rc;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.letter = 'l', .name = "list", .help = "list the snapshots (the default)"},
	{.letter = 'c', .name = "create", .arg = "SNAPSHOT", .help = "make one; not built in yet"},
	{.letter = 'a',
		.name = "apply",
		.arg = "SNAPSHOT",
		.help = "go back to one; not built in yet"},
	{.letter = 'd',
		.name = "delete",
		.arg = "SNAPSHOT",
		.help = "delete one; not built in yet"},
	{.name = "output",
		.arg = "human|json",
		.choices = "human|json",
		.flags = CLI_OPT_QCOW,
		.help = "output for people (the default) or for programs"},
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_QUIET,
	CLI_OPT_OBJECT,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_snapshot = {
	.name = "snapshot",
	.summary = "List the internal snapshots of an image",
	.synopsis = "[-f FMT | --image-opts] [-l | -a|-c|-d SNAPSHOT] [-U] [-q] FILE",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.run = run,
};
