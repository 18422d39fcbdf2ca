/* SPDX-License-Identifier: MIT */
/*
 * args: from an argument vector and an option table to struct cli_args.
 *
 * The grammar is that of getopt_long: options may follow operands, "--" ends them, short flags may be
 * joined ("-pq"), a short option's argument may be attached or follow ("-e2", "-e 2", and "-e 2" as one
 * word), long names may be cut where they stay unique, and take "=ARG" or the next word. Nothing is
 * interpreted beyond the table: the last mention wins because cli_arg looks from the end.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <string.h>

#include "base/mem.h"

struct parse {
	struct cli *cli;
	const struct cli_command *cmd;
	int argc, at;
	char **argv;
	struct cli_given *given;
	char **operands;
	size_t n_given, n_operands;
	int exit; /* the exit code of what was reported, where it has one of its own */
};

bool cli_flags_apply(const struct cli *cli, unsigned flags)
{
	if ((flags & CLI_OPT_QCOW) != 0 && cli->qemu)
		return false;
	if ((flags & CLI_OPT_HELPER) != 0 && !cli->traits->forks)
		return false;
	return (flags & CLI_OPT_QEMU) == 0 || cli->qemu;
}

static const struct cli_option help_option = {
	.letter = 'h', .name = "help", .help = "print this help and exit"};

/* The row of an exact name, or of the only one that `name` begins. *ambiguous: several. */
static const struct cli_option *find_long(
	const struct parse *p, const char *name, size_t n, bool *ambiguous)
{
	const struct cli_option *found = NULL;
	*ambiguous = false;
	if (strncmp("help", name, n) == 0)
		found = &help_option;
	for (const struct cli_option *o = p->cmd->options; o != NULL && o->name != NULL; o++) {
		if (!cli_flags_apply(p->cli, o->flags) || strncmp(o->name, name, n) != 0)
			continue;
		if (strlen(o->name) == n) {
			*ambiguous = false;
			return o;
		}
		*ambiguous = found != NULL;
		found = o;
	}
	return found;
}

static const struct cli_option *find_short(const struct parse *p, char letter)
{
	for (const struct cli_option *o = p->cmd->options; o != NULL && o->name != NULL; o++)
		if (o->letter == letter && cli_flags_apply(p->cli, o->flags))
			return o;
	return letter == 'h' ? &help_option : NULL;
}

static bool choice_allowed(const char *choices, const char *value)
{
	size_t n = strlen(value);
	for (const char *c = choices; c != NULL; c = strchr(c, '|')) {
		c += *c == '|';
		if (strncmp(c, value, n) == 0 && (c[n] == '|' || c[n] == '\0') && n != 0)
			return true;
	}
	return false;
}

/* "--output expects 'human' or 'json', not 'x'" */
static void report_choice(
	struct parse *p, const struct cli_option *option, const char *choices, const char *value)
{
	char list[256] = "";
	if (p->cli->qemu && strstr(option->name, "cache") != NULL) {
		cli_error(p->cli, "Invalid %scache option: %s",
			option->letter == 'T' ? "source " : "", value);
		p->exit = p->cmd->cache_exit;
		return;
	}
	size_t used = 0;
	for (const char *c = choices; *c != '\0' && used + 16 < sizeof(list); c++) {
		bool is_last = strchr(c + 1, '|') == NULL;
		int n = snprintf(list + used, sizeof(list) - used, "%s",
			*c != '|' ? (char[2]){*c, '\0'}
			: is_last ? "' or '"
				  : "', '");
		used += n > 0 ? (size_t)n : 0;
	}
	char letter[8] = "";
	if (p->cli->qemu && option->letter != 0)
		(void)snprintf(letter, sizeof(letter), " (-%c)", option->letter);
	(void)cli_usage(p->cli, "--%s%s expects '%s', not '%s'", option->name, letter, list, value);
}

/* Follow `key` to the row it stands for, and note the option. False: reported. */
static bool take(struct parse *p, const struct cli_option *option, const char *value)
{
	const struct cli_option *row = option;
	for (const struct cli_option *o = p->cmd->options; option->key != NULL; o++) {
		if (o->name == NULL) {
			cli_error(p->cli, "the option table of '%s' names no '%s'", p->cmd->name,
				option->key);
			return false;
		}
		if (strcmp(o->name, option->key) == 0) {
			row = o;
			break;
		}
	}
	if (value != NULL && row->choices != NULL && row->choices[0] != '@' &&
		!choice_allowed(row->choices, value)) {
		report_choice(p, option, row->choices, value);
		return false;
	}
	p->given[p->n_given++] = (struct cli_given){row, value};
	return true;
}

static void report_unknown_long(struct parse *p, const char *name, size_t n)
{
	const char *names[64];
	size_t count = 0;
	for (const struct cli_option *o = p->cmd->options; o != NULL && o->name != NULL; o++)
		if (cli_flags_apply(p->cli, o->flags) && count < 64)
			names[count++] = o->name;
	QK_AUTO_FREE char *typed = qk_strndup(name, n);
	const char *near = typed != NULL ? cli_nearest(typed, names, count) : NULL;
	if (near != NULL)
		(void)cli_usage(p->cli, "unrecognized option '--%.*s'; did you mean '--%s'?",
			(int)n, name, near);
	else
		(void)cli_usage(p->cli, "unrecognized option '--%.*s'", (int)n, name);
}

/* One "--name", "--name=value" or "--name value". 0, 1 (help) or -1 (reported). */
static int parse_long(struct parse *p, const char *word)
{
	const char *name = word + 2;
	const char *equals = strchr(name, '=');
	size_t n = equals != NULL ? (size_t)(equals - name) : strlen(name);
	bool ambiguous = false;
	const struct cli_option *o = find_long(p, name, n, &ambiguous);
	if (o == NULL || ambiguous) {
		if (ambiguous)
			(void)cli_usage(p->cli, "option '--%.*s' is ambiguous", (int)n, name);
		else
			report_unknown_long(p, name, n);
		return -1;
	}
	if (o == &help_option)
		return 1;
	const char *value = equals != NULL ? equals + 1 : NULL;
	if (o->arg == NULL && value != NULL) {
		(void)cli_usage(p->cli, "option '--%s' takes no argument", o->name);
		return -1;
	}
	if (o->arg != NULL && value == NULL && (o->flags & CLI_OPT_ARG_OPTIONAL) == 0) {
		if (p->at == p->argc) {
			(void)cli_usage(
				p->cli, "option '--%s' needs an argument (%s)", o->name, o->arg);
			return -1;
		}
		value = p->argv[p->at++];
	}
	return take(p, o, value) ? 0 : -1;
}

/* One word of joined short options: "-U", "-pq", "-fqcow2", "-f qcow2". */
static int parse_short(struct parse *p, const char *word)
{
	for (const char *c = word + 1; *c != '\0'; c++) {
		const struct cli_option *o = find_short(p, *c);
		if (o == NULL) {
			(void)cli_usage(p->cli, "unrecognized option '-%c'", *c);
			return -1;
		}
		if (o == &help_option)
			return 1;
		if (o->arg == NULL || (o->flags & CLI_OPT_ARG_OPTIONAL) != 0) {
			if (!take(p, o, NULL))
				return -1;
			continue;
		}
		const char *value = c[1] != '\0' ? c + 1 : NULL;
		if (value == NULL && p->at == p->argc) {
			(void)cli_usage(p->cli, "option '-%c' needs an argument (%s)", *c, o->arg);
			return -1;
		}
		if (value == NULL)
			value = p->argv[p->at++];
		return take(p, o, value) ? 0 : -1;
	}
	return 0;
}

static int parse_words(struct parse *p)
{
	bool only_operands = false;
	while (p->at < p->argc) {
		char *word = p->argv[p->at++];
		int rc = 0;
		if (!only_operands && strcmp(word, "--") == 0)
			only_operands = true;
		else if (only_operands || word[0] != '-' || word[1] == '\0' ||
			 isdigit((unsigned char)word[1]))
			p->operands[p->n_operands++] = word;
		else
			rc = word[1] == '-' ? parse_long(p, word) : parse_short(p, word);
		if (rc != 0)
			return rc;
	}
	return 0;
}

static bool count_is_right(struct parse *p)
{
	const struct cli_command *cmd = p->cmd;
	if (p->n_operands >= cmd->min_operands && p->n_operands <= cmd->max_operands)
		return true;
	if (cmd->min_operands == 1 && cmd->max_operands == 1)
		(void)cli_usage(p->cli, "Expecting one image file name");
	else if (p->n_operands > cmd->max_operands && p->cli->qemu)
		(void)cli_usage(p->cli, "Unexpected argument: %s", p->operands[cmd->max_operands]);
	else if (p->n_operands > cmd->max_operands)
		(void)cli_usage(p->cli, "%s: '%s' is one operand too many", cmd->name,
			p->operands[cmd->max_operands]);
	else if (p->cli->qemu && cmd->min_operands == 2)
		(void)cli_usage(p->cli, "Expecting image file name and size");
	else
		(void)cli_usage(p->cli, "%s: expecting %s", cmd->name, cmd->synopsis);
	return false;
}

int cli_args_parse(struct cli *cli, const struct cli_command *cmd, int argc, char **argv,
	struct cli_args *args)
{
	/* a word of n letters names at most n options */
	uint64_t most = 1;
	for (int i = 0; i < argc; i++)
		most += strlen(argv[i]) + 1;
	struct parse p = {.cli = cli, .cmd = cmd, .argc = argc, .argv = argv};
	p.given = qk_calloc(most, sizeof(*p.given));
	p.operands = qk_calloc((uint64_t)argc + 1, sizeof(*p.operands));
	*args = (struct cli_args){.given = p.given, .operands = p.operands};
	int rc = -1;
	if (p.given == NULL || p.operands == NULL)
		cli_error(cli, "Cannot allocate memory");
	else
		rc = parse_words(&p);
	args->n_given = p.n_given;
	args->n_operands = p.n_operands;
	if (rc == 1)
		cli_help_command(cli, cmd, stdout);
	else if (rc == 0 && !count_is_right(&p))
		rc = -1;
	if (rc != 0)
		cli_args_release(args);
	if (rc >= 0)
		return rc;
	return p.exit != 0 ? -p.exit : cmd->usage_exit != 0 ? -cmd->usage_exit : -1;
}

void cli_args_release(struct cli_args *args)
{
	free((void *)args->given);
	free((void *)args->operands);
	*args = (struct cli_args){0};
}

static const struct cli_given *last(const struct cli_args *args, const char *name)
{
	for (size_t i = args->n_given; i > 0; i--)
		if (strcmp(args->given[i - 1].option->name, name) == 0)
			return &args->given[i - 1];
	return NULL;
}

bool cli_flag(const struct cli_args *args, const char *name)
{
	return last(args, name) != NULL;
}

const char *cli_arg(const struct cli_args *args, const char *name)
{
	const struct cli_given *g = last(args, name);
	return g != NULL ? g->value : NULL;
}

const char *cli_arg_next(const struct cli_args *args, const char *name, size_t *at)
{
	while (*at < args->n_given) {
		const struct cli_given *g = &args->given[(*at)++];
		if (strcmp(g->option->name, name) == 0)
			return g->value;
	}
	return NULL;
}

bool cli_wants_json(const struct cli_args *args)
{
	const char *output = cli_arg(args, "output");
	return output != NULL && strcmp(output, "json") == 0;
}
