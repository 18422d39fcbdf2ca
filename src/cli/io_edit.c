/* SPDX-License-Identifier: MIT */
/*
 * io_edit: lines from standard input. On a terminal, and with libedit built in, they can be edited, recalled, and the
 * names of commands completed.
 */
#include "cli/io.h"

#include <string.h>
#include <unistd.h>

#ifdef QK_LIBEDIT
#include <editline/readline.h>

/* The next command whose name begins with `text`, to be freed by the editor; state 0 begins anew. */
static char *complete(const char *text, int state)
{
	int seen = 0;
	for (const struct io_command *c = io_commands; c->name != NULL; c++)
		if (strncmp(c->name, text, strlen(text)) == 0 && seen++ == state)
			return strdup(c->name);
	return NULL;
}

static int run_edited(struct io *io, const char *prompt)
{
	int rc = 0;
	rl_readline_name = "qcow";
	rl_completion_entry_function = complete;
	while (!io->quit) {
		(void)fflush(stdout);
		QK_AUTO_FREE char *line = readline(prompt);
		if (line == NULL)
			break;
		if (line[0] != '\0')
			(void)add_history(line);
		rc |= io_run_line(io, line) != 0;
	}
	return rc;
}
#endif

static int run_plain(struct io *io, const char *prompt)
{
	QK_AUTO_FREE char *line = NULL;
	size_t room = 0;
	int rc = 0;
	while (!io->quit) {
		(void)printf("%s", prompt);
		(void)fflush(stdout);
		ssize_t n = getline(&line, &room, stdin);
		if (n < 0)
			break;
		if (n > 0 && line[n - 1] == '\n')
			line[n - 1] = '\0';
		rc |= io_run_line(io, line) != 0;
	}
	return rc;
}

int io_run_input(struct io *io)
{
	char prompt[64];
	(void)snprintf(prompt, sizeof(prompt), "%s> ", io->cli->prog);
#ifdef QK_LIBEDIT
	if (isatty(STDIN_FILENO) && isatty(STDOUT_FILENO))
		return run_edited(io, prompt);
#endif
	return run_plain(io, prompt);
}
