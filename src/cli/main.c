/* SPDX-License-Identifier: MIT */
/*
 * main: picks the personality by argv[0] and the command by argv[1], runs it, and turns a failed write
 * to stdout into a failure.
 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct cli_command *find_command(const struct cli *cli, const char *name)
{
	for (const struct cli_command *const *c = cli_commands; *c != NULL; c++)
		if (strcmp((*c)->name, name) == 0 && cli_flags_apply(cli, (*c)->flags))
			return *c;
	return NULL;
}

static int unknown_command(struct cli *cli, const char *name)
{
	const char *names[64];
	size_t n = 0;
	for (const struct cli_command *const *c = cli_commands; *c != NULL && n < 64; c++)
		if (cli_flags_apply(cli, (*c)->flags))
			names[n++] = (*c)->name;
	if (cli->qemu)
		return cli_usage(cli, "Command not found: %s", name);
	const char *near = cli_nearest(name, names, n);
	if (near != NULL)
		return cli_usage(cli, "unknown command '%s'; did you mean '%s'?", name, near);
	return cli_usage(cli, "unknown command '%s'", name);
}

static int run_command(struct cli *cli, const struct cli_command *cmd, int argc, char **argv)
{
	struct cli_args args;
	cli->command = cmd;
	int rc = cli_args_parse(cli, cmd, argc, argv, &args);
	if (rc != 0)
		return rc > 0 ? 0 : -rc;
	rc = cmd->run(cli, &args);
	cli_args_release(&args);
	cli_objects_release(cli);
	return rc;
}

/* Options before the command: how many words they take, or -1 where main is done (*exit_code). */
static int program_options(struct cli *cli, int argc, char **argv, int *exit_code)
{
	int at = 1;
	*exit_code = 0;
	while (at < argc && argv[at][0] == '-') {
		const char *word = argv[at];
		if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) {
			cli_help_program(cli, stdout);
			return -1;
		}
		if (strcmp(word, "-V") == 0 || strcmp(word, "--version") == 0) {
			(void)printf("%s\n", cli->traits->version);
			return -1;
		}
		bool trace = cli->qemu && (strncmp(word, "-T", 2) == 0 ||
						  strncmp(word, "--trace", strlen("--trace")) == 0);
		if (!trace) {
			*exit_code = cli_usage(cli, "unrecognized option '%s'", word);
			return -1;
		}
		at += strcmp(word, "-T") == 0 || strcmp(word, "--trace") == 0 ? 2 : 1;
	}
	if (at < argc)
		return at;
	*exit_code = cli_usage(cli, "%s", cli->qemu ? "Not enough arguments" : "no command given");
	return -1;
}

/* A personality that is one command: --version is the program's. */
static int run_only_command(struct cli *cli, int argc, char **argv)
{
	const struct cli_command *cmd = NULL;
	for (const struct cli_command *const *c = cli_commands; *c != NULL; c++)
		if (strcmp((*c)->name, cli->traits->command) == 0)
			cmd = *c;
	if (argc == 2 && (strcmp(argv[1], "-V") == 0 || strcmp(argv[1], "--version") == 0)) {
		(void)printf("%s\n", cli->traits->version);
		return 0;
	}
	return cmd != NULL ? run_command(cli, cmd, argc - 1, argv + 1)
			   : unknown_command(cli, cli->traits->command);
}

static int finish(struct cli *cli, int rc)
{
	if (fflush(stdout) == 0 && ferror(stdout) == 0)
		return rc;
	if (errno == EPIPE)
		return rc != 0 ? rc : 1;
	cli_error(cli, "cannot write to standard output: %s", strerror(errno));
	return rc != 0 ? rc : 1;
}

/* A closed 0, 1 or 2 would be the descriptor of the next file that is opened, an image, and what is printed
 * would land in it. Here it becomes one that can be neither read nor written. */
static bool hold_standard_descriptors(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/", O_PATH | O_DIRECTORY) != fd)
			return false;
	return true;
}

int main(int argc, char **argv)
{
	if (!hold_standard_descriptors())
		return 1;
	const struct compat_traits *traits = qk_compat_traits(argc > 0 ? argv[0] : NULL);
	struct cli cli = {.traits = traits, .qemu = traits->qemu, .prog = traits->program};
	const char *no_colour = getenv("NO_COLOR");
	cli.colour = !cli.qemu && (no_colour == NULL || no_colour[0] == '\0') &&
		     isatty(STDERR_FILENO) != 0;
	/* a closed pipe or a file size limit is an error to report, not a death */
	(void)signal(SIGPIPE, SIG_IGN);
	(void)signal(SIGXFSZ, SIG_IGN);
	cli_json_init();
	int rc = 0;
	if (traits->command != NULL)
		return finish(&cli, run_only_command(&cli, argc, argv));
	int at = program_options(&cli, argc, argv, &rc);
	if (at < 0)
		return finish(&cli, rc);
	const struct cli_command *cmd = find_command(&cli, argv[at]);
	if (cmd == NULL)
		return unknown_command(&cli, argv[at]);
	return finish(&cli, run_command(&cli, cmd, argc - at - 1, argv + at + 1));
}
