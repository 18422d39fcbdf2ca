/* SPDX-License-Identifier: MIT */
/*
 * report: errors and hints on stderr, and the nearest word to a misspelt one.
 *
 * The first line of a failure is "PROGRAM: sentence"; what helps further comes below it. In the qemu-img
 * personality the first line keeps the words that callers of QEMU look for.
 */
#include "cli/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "compat/words.h"

enum {
	LINE_BYTES = 2048
};

static void put_line(const struct cli *cli, const char *label, const char *colour, const char *text)
{
	char *safe = cli_escape(text, strlen(text));
	(void)fflush(stdout);
	(void)fprintf(stderr, "%s%s%s%s\n", cli->colour ? colour : "", label,
		cli->colour ? "\033[0m" : "", safe != NULL ? safe : "Cannot allocate memory");
	free(safe);
}

static void put_error(const struct cli *cli, const char *text)
{
	char label[64];
	(void)snprintf(label, sizeof(label), "%s: ", cli->prog);
	put_line(cli, label, "\033[1;31m", text);
}

void cli_error(struct cli *cli, const char *fmt, ...)
{
	char text[LINE_BYTES];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	put_error(cli, text);
}

void cli_more(struct cli *cli, const char *fmt, ...)
{
	char text[LINE_BYTES];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	put_line(cli, "", "", text);
}

void cli_hint(struct cli *cli, const char *fmt, ...)
{
	char text[LINE_BYTES];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	put_line(cli, "hint: ", "\033[36m", text);
}

static void hint_for(struct cli *cli, const struct qcow_error *err)
{
	switch (err->status) {
	case QCOW_E_CORRUPT:
		cli_hint(cli, "'%s check FILE' lists what is wrong with an image", cli->prog);
		break;
	case QCOW_E_NOT_QCOW2:
		if (strstr(err->message, "backing file") != NULL)
			cli_hint(cli, "'%s rebase -u -b FILE -F FMT FILE' records another format",
				cli->prog);
		else
			cli_hint(cli, "leave -f out to have the format probed, or say -f raw");
		break;
	case QCOW_E_NOTSUP:
		if (strstr(err->message, "switch locking off") != NULL)
			cli_hint(cli,
				"--image-opts driver=qcow2,file.filename=FILE,file.locking=off "
				"takes no locks");
		break;
	case QCOW_E_BUG:
		cli_hint(cli, "this is a bug in qcowkit (%s): please report it",
			err->site != NULL ? err->site : "?");
		break;
	default:
		break;
	}
}

int cli_fail(struct cli *cli, const struct qcow_error *err, const char *fmt, ...)
{
	char text[LINE_BYTES];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	const char *why = err->message[0] != '\0' ? err->message : qcow_status_text(err->status);
	char words[QCOW_ERROR_MESSAGE_BYTES];
	if (cli->qemu && qk_compat_words(why, words, sizeof(words)))
		why = words;
	if (n >= 0 && (size_t)n < sizeof(text))
		(void)snprintf(text + n, sizeof(text) - (size_t)n, "%s%s", n > 0 ? ": " : "", why);
	put_error(cli, text);
	hint_for(cli, err);
	return 1;
}

int cli_usage(struct cli *cli, const char *fmt, ...)
{
	char text[LINE_BYTES];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	put_error(cli, text);
	const char *blank = cli->command != NULL ? " " : "";
	const char *name = cli->command != NULL ? cli->command->name : "";
	if (cli->traits->command != NULL)
		cli_more(cli, "Try '%s --help' for more information", cli->prog);
	else if (cli->qemu)
		cli_more(cli, "Try 'qemu-img%s%s --help' for more information", blank, name);
	else
		cli_hint(cli, "'%s%s%s --help' shows how it is used", cli->prog, blank, name);
	return cli->command != NULL && cli->command->usage_exit != 0 ? cli->command->usage_exit : 1;
}

void cli_out_of_memory(void)
{
	(void)fprintf(stderr, "%s: Cannot allocate memory\n", program_invocation_short_name);
	exit(1);
}

/* Edits (insert, delete, change, swap neighbours) between two words of less than 32 letters. */
static unsigned distance(const char *a, const char *b)
{
	enum {
		MOST = 32
	};
	unsigned d[MOST + 1][MOST + 1];
	size_t na = strlen(a), nb = strlen(b);
	if (na > MOST || nb > MOST)
		return MOST;
	for (size_t i = 0; i <= na; i++)
		for (size_t j = 0; j <= nb; j++) {
			if (i == 0 || j == 0) {
				d[i][j] = (unsigned)(i + j);
				continue;
			}
			unsigned best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
			best = d[i - 1][j] + 1 < best ? d[i - 1][j] + 1 : best;
			best = d[i][j - 1] + 1 < best ? d[i][j - 1] + 1 : best;
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
				d[i - 2][j - 2] + 1 < best)
				best = d[i - 2][j - 2] + 1;
			d[i][j] = best;
		}
	return d[na][nb];
}

const char *cli_nearest(const char *typed, const char *const *words, size_t n)
{
	const char *best = NULL;
	unsigned least = (unsigned)strlen(typed) / 3 + 2;
	for (size_t i = 0; i < n; i++) {
		unsigned d = distance(typed, words[i]);
		if (d < least) {
			least = d;
			best = words[i];
		}
	}
	return best;
}
