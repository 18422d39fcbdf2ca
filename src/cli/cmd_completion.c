/* SPDX-License-Identifier: MIT */
/*
 * cmd_completion: prints a completion script for bash, zsh or fish, made from the same tables that parse
 * the command line.
 */
#include "cli/cli.h"

#include <string.h>

typedef void command_printer(const struct cli *cli, const struct cli_command *cmd);

static bool hidden(const struct cli *cli, const struct cli_option *o)
{
	return !cli_flags_apply(cli, o->flags);
}

static void for_each_command(const struct cli *cli, command_printer *print)
{
	for (const struct cli_command *const *c = cli_commands; *c != NULL; c++)
		if (cli_flags_apply(cli, (*c)->flags))
			print(cli, *c);
}

/* "a|b" with another separator; nothing for "@file". */
static void put_choices(const char *choices, char separator)
{
	if (strcmp(choices, "@format") == 0)
		choices = "qcow2|raw|luks";
	for (; *choices != '\0'; choices++)
		(void)putchar(*choices == '|' ? separator : *choices);
}

/* Inside single quotes of a shell. */
static void put_quoted(const char *text)
{
	for (; *text != '\0'; text++)
		if (*text == '\'')
			(void)fputs("'\\''", stdout);
		else
			(void)putchar(*text);
}

static bool has_words(const struct cli_option *o)
{
	return o->choices != NULL && strcmp(o->choices, "@file") != 0;
}

/* ---- bash ---- */

static void bash_name(const struct cli *cli, const struct cli_command *cmd)
{
	(void)cli;
	(void)printf(" %s", cmd->name);
}

static void bash_command(const struct cli *cli, const struct cli_command *cmd)
{
	(void)printf("\t%s)\n\t\tcase $prev in\n", cmd->name);
	for (const struct cli_option *o = cmd->options; o != NULL && o->name != NULL; o++) {
		if (hidden(cli, o) || o->arg == NULL || (o->flags & CLI_OPT_ARG_OPTIONAL) != 0)
			continue;
		if (o->letter != 0)
			(void)printf("\t\t-%c | --%s)", o->letter, o->name);
		else
			(void)printf("\t\t--%s)", o->name);
		if (has_words(o)) {
			(void)printf(" any=1 words='");
			put_choices(o->choices, ' ');
			(void)printf("' ;;\n");
		} else {
			(void)printf(" return ;;\n");
		}
	}
	(void)printf("\t\t*) words='--help");
	for (const struct cli_option *o = cmd->options; o != NULL && o->name != NULL; o++)
		if (!hidden(cli, o)) {
			(void)printf(" --%s", o->name);
			if (o->letter != 0)
				(void)printf(" -%c", o->letter);
		}
	(void)printf("' ;;\n\t\tesac\n\t\t;;\n");
}

static void put_bash(const struct cli *cli)
{
	(void)printf("# bash completion for %s\n_%s()\n{\n", cli->prog, "qcow");
	(void)printf("\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} "
		     "words= any=\n"
		     "\tCOMPREPLY=()\n"
		     "\tif [ \"$COMP_CWORD\" -eq 1 ]; then\n"
		     "\t\twords='--help --version");
	for_each_command(cli, bash_name);
	(void)printf("'\n\t\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n\t\treturn\n\tfi\n"
		     "\tcase ${COMP_WORDS[1]} in\n");
	for_each_command(cli, bash_command);
	(void)printf("\tesac\n"
		     "\tif [[ -n $any || $cur == -* ]]; then\n"
		     "\t\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
		     "\tfi\n"
		     "}\ncomplete -o default -F _qcow %s\n",
		cli->prog);
}

/* ---- zsh ---- */

static void zsh_name(const struct cli *cli, const struct cli_command *cmd)
{
	(void)cli;
	(void)printf("\t\t\t'%s:", cmd->name);
	put_quoted(cmd->summary);
	(void)printf("'\n");
}

static void zsh_bracketed(const char *text)
{
	for (; *text != '\0'; text++) {
		if (strchr("[]:\\", *text) != NULL)
			(void)putchar('\\');
		if (*text == '\'')
			(void)fputs("'\\''", stdout);
		else
			(void)putchar(*text);
	}
}

static void zsh_option(const struct cli_option *o, bool as_letter)
{
	(void)printf("\t\t\t'*%s", as_letter ? "-" : "--");
	if (as_letter)
		(void)putchar(o->letter);
	else
		(void)printf("%s", o->name);
	bool takes = o->arg != NULL && (o->flags & CLI_OPT_ARG_OPTIONAL) == 0;
	(void)printf("%s[", takes && !as_letter ? "=" : takes ? "+" : "");
	zsh_bracketed(o->help != NULL ? o->help : o->name);
	(void)putchar(']');
	if (takes) {
		(void)putchar(':');
		zsh_bracketed(o->arg);
		(void)putchar(':');
		if (has_words(o)) {
			(void)putchar('(');
			put_choices(o->choices, ' ');
			(void)putchar(')');
		} else {
			(void)printf("_files");
		}
	}
	(void)printf("' \\\n");
}

static void zsh_command(const struct cli *cli, const struct cli_command *cmd)
{
	(void)printf(
		"\t\t%s)\n\t\t_arguments -S '(-)--help[print this help and exit]' \\\n", cmd->name);
	for (const struct cli_option *o = cmd->options; o != NULL && o->name != NULL; o++) {
		if (hidden(cli, o))
			continue;
		zsh_option(o, false);
		if (o->letter != 0)
			zsh_option(o, true);
	}
	(void)printf("\t\t\t'*:file:_files' ;;\n");
}

static void put_zsh(const struct cli *cli)
{
	(void)printf("#compdef %s\n_qcow()\n{\n\tlocal -a commands\n\tif (( CURRENT == 2 )); then\n"
		     "\t\tcommands=(\n",
		cli->prog);
	for_each_command(cli, zsh_name);
	(void)printf("\t\t)\n\t\t_describe command commands\n\t\treturn\n\tfi\n"
		     "\tlocal command=$words[2]\n\tshift words\n\t(( CURRENT-- ))\n"
		     "\tcase $command in\n");
	for_each_command(cli, zsh_command);
	(void)printf("\tesac\n}\n_qcow \"$@\"\n");
}

/* ---- fish ---- */

static void fish_command(const struct cli *cli, const struct cli_command *cmd)
{
	(void)printf("complete -c %s -n __fish_use_subcommand -f -a %s -d '", cli->prog, cmd->name);
	put_quoted(cmd->summary);
	(void)printf("'\n");
	for (const struct cli_option *o = cmd->options; o != NULL && o->name != NULL; o++) {
		if (hidden(cli, o))
			continue;
		(void)printf("complete -c %s -n '__fish_seen_subcommand_from %s' -l %s", cli->prog,
			cmd->name, o->name);
		if (o->letter != 0)
			(void)printf(" -s %c", o->letter);
		if (o->arg != NULL && (o->flags & CLI_OPT_ARG_OPTIONAL) == 0)
			(void)printf(" -r");
		if (has_words(o)) {
			(void)printf(" -f -a '");
			put_choices(o->choices, ' ');
			(void)putchar('\'');
		}
		(void)printf(" -d '");
		put_quoted(o->help != NULL ? o->help : "");
		(void)printf("'\n");
	}
}

static void put_fish(const struct cli *cli)
{
	(void)printf("# fish completion for %s\n", cli->prog);
	for_each_command(cli, fish_command);
}

static int run(struct cli *cli, const struct cli_args *args)
{
	static const struct {
		const char *shell;
		void (*put)(const struct cli *cli);
	} shells[] = {{"bash", put_bash}, {"zsh", put_zsh}, {"fish", put_fish}};
	for (size_t i = 0; i < sizeof(shells) / sizeof(shells[0]); i++)
		if (strcmp(args->operands[0], shells[i].shell) == 0) {
			shells[i].put(cli);
			return 0;
		}
	return cli_usage(cli, "no completions for '%s': say bash, zsh or fish", args->operands[0]);
}

static const struct cli_option options[] = {CLI_OPTIONS_END};

const struct cli_command cli_cmd_completion = {
	.name = "completion",
	.summary = "Print the completions of this program for a shell",
	.synopsis = "bash|zsh|fish",
	.about = "Load them with:\n"
		 "  bash   source <(qcow completion bash)\n"
		 "  zsh    qcow completion zsh > \"${fpath[1]}/_qcow\"\n"
		 "  fish   qcow completion fish | source",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.flags = CLI_OPT_QCOW,
	.run = run,
};
