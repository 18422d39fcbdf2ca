/* SPDX-License-Identifier: MIT */
/*
 * help: --help of the program and of a command, from the tables alone.
 */
#include "cli/cli.h"

#include <string.h>

static void put_commands(const struct cli *cli, FILE *out)
{
	for (const struct cli_command *const *c = cli_commands; *c != NULL; c++)
		if (cli_flags_apply(cli, (*c)->flags))
			(void)fprintf(out, "  %-11s%s\n", (*c)->name, (*c)->summary);
}

/* QEMU's old form: callers look for a synopsis line a command. */
static void help_qemu(const struct cli *cli, FILE *out)
{
	(void)fprintf(out,
		"%s\nusage: qemu-img [standard options] command [command options]\n"
		"qcowkit disk image utility\n\n"
		"    '-h', '--help'       display this help and exit\n"
		"    '-V', '--version'    output version information and exit\n"
		"    '-T', '--trace'      accepted and ignored\n\n"
		"Command syntax:\n",
		cli->traits->version);
	for (const struct cli_command *const *c = cli_commands; *c != NULL; c++) {
		const char *synopsis = qk_compat_synopsis((*c)->name);
		if (synopsis != NULL && cli_flags_apply(cli, (*c)->flags))
			(void)fprintf(out, "  %s %s\n", (*c)->name, synopsis);
	}
	(void)fprintf(out, "\n'qemu-img COMMAND --help' describes a command.\n\n"
			   "Supported formats: file host_device qcow2 raw\n");
}

void cli_help_program(const struct cli *cli, FILE *out)
{
	if (cli->qemu) {
		help_qemu(cli, out);
		return;
	}
	(void)fprintf(out,
		"usage: %s COMMAND [OPTIONS] FILE…\n"
		"Read, write, check and convert qcow2 disk images.\n\nCommands:\n",
		cli->prog);
	put_commands(cli, out);
	(void)fprintf(out,
		"\nOptions:\n  -h, --help     print this help and exit\n"
		"  -V, --version  print the version and exit\n\n"
		"'%s COMMAND --help' describes a command, 'man qcow-COMMAND' in full.\n",
		cli->prog);
}

static void put_option(const struct cli_option *o, FILE *out)
{
	char left[96];
	int n = o->letter != 0 ? snprintf(left, sizeof(left), "  -%c, --%s", o->letter, o->name)
			       : snprintf(left, sizeof(left), "  --%s", o->name);
	if (o->arg != NULL && n > 0 && (size_t)n < sizeof(left)) {
		bool optional = (o->flags & CLI_OPT_ARG_OPTIONAL) != 0;
		(void)snprintf(
			left + n, sizeof(left) - (size_t)n, optional ? "[=%s]" : " %s", o->arg);
	}
	(void)fprintf(out, "%s\n     %s\n", left, o->help != NULL ? o->help : "");
}

void cli_help_command(const struct cli *cli, const struct cli_command *cmd, FILE *out)
{
	(void)fprintf(
		out, "usage: %s %s %s\n\n%s.\n", cli->prog, cmd->name, cmd->synopsis, cmd->summary);
	if (cmd->about != NULL)
		(void)fprintf(out, "\n%s\n", cmd->about);
	(void)fprintf(out, "\nOptions:\n  -h, --help\n     print this help and exit\n");
	for (const struct cli_option *o = cmd->options; o != NULL && o->name != NULL; o++)
		if (cli_flags_apply(cli, o->flags))
			put_option(o, out);
}
