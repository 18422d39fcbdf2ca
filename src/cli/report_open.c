/* SPDX-License-Identifier: MIT */
/*
 * report_open: the sentence of a failed open, or close. The personality keeps the words that callers of QEMU look for.
 */
#include "cli/cli.h"

#include <string.h>

#include "base/mem.h"
#include "cli/driver.h"

enum {
	MOST_FRONTS = 6 /* of a long chain: the reason must stay in the message */
};

/* "PATH: why" of the store, where the path is what the sentence names already. */
static bool drop_path(const char *text, struct qcow_error *err)
{
	size_t n = strlen(text);
	if (strncmp(err->message, text, n) != 0 || strncmp(err->message + n, ": ", 2) != 0)
		return false;
	memmove(err->message, err->message + n + 2, strlen(err->message + n + 2) + 1);
	return true;
}

/* Behind QEMU's sentence for a driver that it has and we do not. */
static void hint_foreign(struct cli *cli, const char *message)
{
	static const char front[] = "Unknown driver '";
	const char *at = strstr(message, front);
	char name[32] = "";
	if (at == NULL || sscanf(at + strlen(front), "%31[a-z0-9]", name) != 1)
		return;
	if (cli_driver_is_foreign(name))
		cli_hint(cli, "%s", CLI_FOREIGN_HELP);
}

/* QEMU's sentence for a backing file that cannot be opened, which names no image between, in the place of the
 * library's "backing file 'x' of 'y': why". False: it was not one. */
static bool say_backing(const struct cli *cli, struct qcow_error *err)
{
	if (strncmp(err->message, "backing file '", strlen("backing file '")) != 0)
		return false;
	char why[QCOW_ERROR_MESSAGE_BYTES];
	char *reason = strstr(err->message, "': ");
	reason = reason != NULL ? reason + strlen("': ") : err->message;
	const char *says = err->os_errno != 0 ? strrchr(reason, ':') : NULL;
	if (err->status == QCOW_E_NOT_QCOW2)
		(void)snprintf(why, sizeof(why), "Image is not in qcow2 format");
	else if (says != NULL)
		(void)snprintf(why, sizeof(why), "Could not open '%.*s'%s", (int)(says - reason),
			reason, says);
	else
		(void)snprintf(why, sizeof(why), "%s", reason);
	(void)snprintf(err->message, sizeof(err->message), "%s", why);
	for (unsigned i = 0; i <= cli->depth && i < MOST_FRONTS; i++)
		qk_err_context(err, "Could not open backing file");
	return true;
}

/* `front` is said before the reason; `verb` is what could not be done to the file itself. */
static void report(struct cli *cli, const char *front, const char *verb, const char *text,
	struct qcow_error *err)
{
	char question[QCOW_ERROR_MESSAGE_BYTES] = "";
	if (err->message[0] == '\0')
		(void)snprintf(
			err->message, sizeof(err->message), "%s", qcow_status_text(err->status));
	bool is_own = drop_path(text, err);
	bool is_backing = cli->qemu && say_backing(cli, err);
	if (cli->qemu && !is_backing && err->status == QCOW_E_NOT_QCOW2)
		(void)snprintf(err->message, sizeof(err->message), "Image is not in qcow2 format");
	if (cli->qemu && err->status == QCOW_E_KEY &&
		strstr(err->message, "wrong passphrase") != NULL)
		(void)snprintf(err->message, sizeof(err->message),
			"Invalid password, cannot unlock any keyslot");
	if (cli->qemu && err->os_errno != 0 && is_own)
		qk_err_context(err, "Could not %s '%s'", verb, text);
	char *asks = strstr(err->message, ". Is another process using the image [");
	if (asks != NULL) {
		/* QEMU asks on a line of its own, and callers look for it there */
		(void)snprintf(question, sizeof(question), "%s", asks + strlen(". "));
		*asks = '\0';
	}
	(void)cli_fail(cli, err, "%s", front);
	hint_foreign(cli, err->message);
	if (question[0] == '\0')
		return;
	char *who = strstr(question, "? ");
	if (who != NULL)
		who[1] = '\0';
	cli_more(cli, "%s", question);
	if (who != NULL)
		cli_hint(cli, "%s; -U reads it as it is", who + 2);
}

void cli_report_open(struct cli *cli, const char *device, const char *text, struct qcow_error *err)
{
	QK_AUTO_FREE char *front = NULL;
	int n = 0;
	if (device == NULL)
		n = asprintf(&front, "%s '%s'", cli->traits->cannot_open, text);
	else
		n = asprintf(&front, device[0] != '\0' ? "can't open device %s" : "can't open%s",
			device);
	report(cli, n >= 0 ? front : "out of memory", "open", text, err);
}

void cli_report_backing(struct cli *cli, const char *name, const char *text, struct qcow_error *err)
{
	QK_AUTO_FREE char *front = NULL;
	int n = asprintf(&front,
		cli->qemu ? "Could not open new backing file '%s'"
			  : "cannot open the new backing file '%s'",
		name);
	report(cli, n >= 0 ? front : "out of memory", "open", text, err);
}

void cli_report_create(
	struct cli *cli, const char *during, const char *text, struct qcow_error *err)
{
	QK_AUTO_FREE char *front = NULL;
	if (!cli->qemu) {
		cli_report_open(cli, NULL, text, err);
		return;
	}
	int n = during == NULL ? asprintf(&front, "%s", text)
			       : asprintf(&front, "%s: error while %s", text, during);
	report(cli, n >= 0 ? front : "out of memory", "create", text, err);
}

bool cli_close(struct cli *cli, struct qcow_image *image, bool ok)
{
	QK_AUTO_FREE char *name = NULL;
	if (image == NULL)
		return ok;
	int n = asprintf(&name, "%s", qcow_store_name(qcow_image_store(image)));
	enum qcow_status status = qcow_close(image);
	status = status == QCOW_OK ? cli->close_status : status;
	if (status == QCOW_OK || !ok)
		return ok;
	cli_error(cli, "Failed to close '%s': %s", n >= 0 ? name : "", qcow_status_text(status));
	return false;
}
