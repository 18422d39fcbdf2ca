/* SPDX-License-Identifier: MIT */
/*
 * passphrase: where the key of an encrypted image comes from: the secret that the operand names, else
 * --secret-file, else the person at the terminal.
 *
 * While the prompt waits the terminal does not show what is typed. Signals that end the program, or stop
 * it, are held until the terminal is as it was.
 */
#include "cli/object.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/mem.h"

enum {
	PASSPHRASE_BYTES = 512
};

/* Set by the handler, which can do nothing else. */
static volatile sig_atomic_t caught;

static void on_signal(int signal_number)
{
	caught = signal_number;
}

static const int held[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP};
#define N_HELD (sizeof(held) / sizeof(held[0]))

/* One line of at most PASSPHRASE_BYTES. False: it ended early, was too long, or a signal came. */
static bool read_line(int fd, char *out, size_t *n)
{
	char c = '\0';
	ssize_t got = 0;
	*n = 0;
	while ((got = read(fd, &c, 1)) == 1 && c != '\n') {
		if (*n == PASSPHRASE_BYTES)
			return false;
		out[(*n)++] = c;
	}
	return got == 1;
}

static bool ask(int fd, const char *name, char *out, size_t *n)
{
	struct termios was, silent;
	struct sigaction old[N_HELD], action = {.sa_handler = on_signal};
	if (tcgetattr(fd, &was) != 0)
		return false;
	silent = was;
	silent.c_lflag &= ~(tcflag_t)(ECHO | ECHONL);
	caught = 0;
	(void)sigemptyset(&action.sa_mask);
	for (size_t i = 0; i < N_HELD; i++)
		(void)sigaction(held[i], &action, &old[i]);
	(void)tcsetattr(fd, TCSAFLUSH, &silent);
	(void)dprintf(fd, "Passphrase for ");
	FILE *shown = fdopen(dup(fd), "w");
	if (shown != NULL) {
		cli_put_escaped(shown, name);
		(void)fclose(shown);
	}
	(void)dprintf(fd, ": ");
	bool ok = read_line(fd, out, n);
	(void)dprintf(fd, "\n");
	(void)tcsetattr(fd, TCSAFLUSH, &was);
	for (size_t i = 0; i < N_HELD; i++)
		(void)sigaction(held[i], &old[i], NULL);
	if (caught != 0)
		(void)raise(caught);
	return ok && caught == 0;
}

/* NULL: out of memory. */
static char *typed_id(const char *name)
{
	char *id = NULL;
	return asprintf(&id, CLI_SECRET_TYPED "%s", name) >= 0 ? id : NULL;
}

static enum qcow_status prompt(
	struct cli *cli, const char *name, const struct cli_secret **out, struct qcow_error *err)
{
	int fd = isatty(STDIN_FILENO) != 0 ? open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY) : -1;
	if (fd < 0)
		return QK_FAIL(err, QCOW_E_KEY,
			"the image is encrypted: give its passphrase with --secret-file FILE, or "
			"name a "
			"secret (--object secret,id=ID,… and encrypt.key-secret=ID)");
	char line[PASSPHRASE_BYTES];
	size_t n = 0;
	bool ok = ask(fd, name, line, &n);
	QK_AUTO_FREE char *id = typed_id(name);
	(void)close(fd);
	*out = ok && id != NULL ? cli_secret_add(cli, id, line, n) : NULL;
	explicit_bzero(line, sizeof(line));
	if (!ok)
		return QK_FAIL(err, QCOW_E_KEY, "no passphrase was typed");
	return *out != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

static _Thread_local bool knows_all;

void cli_passphrase_ask_no_more(bool yes)
{
	knows_all = yes;
}

enum qcow_status cli_passphrase(void *ctx, const struct qcow_secret_request *rq,
	struct qcow_secret *out, struct qcow_error *err)
{
	struct cli *cli = ctx;
	const struct cli_secret *s = cli_secret_find(cli, CLI_SECRET_FILE);
	if (s == NULL && cli->qemu)
		return QK_FAIL(
			err, QCOW_E_KEY, "Parameter 'encrypt.key-secret' is required for cipher");
	if (s == NULL && knows_all) {
		QK_AUTO_FREE char *id = typed_id(rq->name);
		s = id != NULL ? cli_secret_find(cli, id) : NULL;
		if (s == NULL)
			return QK_FAIL(err, QCOW_E_KEY, "nobody typed its passphrase");
	}
	if (s == NULL)
		QK_TRY(prompt(cli, rq->name, &s, err));
	*out = (struct qcow_secret){s->data, s->bytes};
	return QCOW_OK;
}
