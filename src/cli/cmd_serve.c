/* SPDX-License-Identifier: MIT */
/*
 * cmd_serve: `qcow serve`, and all of qemu-nbd's personality: an NBD server for the disks of images.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/object.h"
#include "cli/serve.h"

/* ---- the server ---- */

/* From the server's threads. */
static void on_connection(void *ctx, unsigned n_open, bool opened, bool was_served)
{
	struct serve *s = ctx;
	uint64_t one = 1;
	atomic_store(&s->n_open, n_open);
	if (!opened) {
		if (was_served)
			atomic_store(&s->was_served, true);
		(void)atomic_fetch_add(&s->n_ended, 1);
	}
	(void)!write(s->wake, &one, sizeof(one));
}

static void on_log(void *ctx, enum qk_nbd_log_level level, const char *text)
{
	struct serve *s = ctx;
	/* qemu-nbd's -v says nothing of clients */
	bool tells_all = cli_flag(s->args, "verbose") && !s->cli->qemu;
	if (level >= (tells_all ? QK_NBD_LOG_DEBUG : QK_NBD_LOG_WARNING))
		cli_more(s->cli, "%s", text);
}

/* --tls-creds and --tls. `psk` gets the file's name, which is the caller's. */
static bool take_tls(struct serve *s, struct qk_nbd_options *o, char **psk)
{
	const char *id = cli_arg(s->args, "tls-creds"), *mode = cli_arg(s->args, "tls");
	if (id == NULL) {
		if (mode == NULL || strcmp(mode, "off") == 0)
			return true;
		(void)cli_usage(s->cli, "--tls=%s needs --tls-creds", mode);
		return false;
	}
	const struct cli_tls *tls = cli_tls_find(s->cli, id);
	if (tls == NULL) {
		cli_error(s->cli, "No TLS credentials with id '%s'", id);
		return false;
	}
	if (!tls->is_server) {
		cli_error(s->cli, "Expecting TLS credentials with a server endpoint");
		return false;
	}
	o->tls = mode == NULL || strcmp(mode, "require") == 0 ? QK_NBD_TLS_REQUIRE
		 : strcmp(mode, "allow") == 0		      ? QK_NBD_TLS_ALLOW
							      : QK_NBD_TLS_OFF;
	o->tls_priority = tls->priority;
	o->tls_verify_peer = tls->verify_peer;
	if (!tls->is_psk) {
		o->tls_dir = tls->dir;
		return true;
	}
	if (asprintf(psk, "%s/keys.psk", tls->dir) < 0)
		cli_out_of_memory();
	o->tls_psk_file = *psk;
	return true;
}

bool serve_handshake_limit(struct serve *s, unsigned *seconds)
{
	const char *limit = cli_arg(s->args, "handshake-limit");
	uint64_t n = 0;
	if (limit != NULL &&
		!cli_parse_number(s->cli, "option --handshake-limit", limit, 0, 86400, &n))
		return false;
	*seconds = (unsigned)n;
	return true;
}

static bool make_server(struct serve *s)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_nbd_options o = {.on_connection = on_connection, .log = on_log, .ctx = s};
	QK_AUTO_FREE char *psk = NULL;
	unsigned seconds = 0;
	if (!serve_handshake_limit(s, &seconds))
		return false;
	o.handshake_ms = seconds * 1000;
	if (!take_tls(s, &o, &psk))
		return false;
	if (qk_nbd_server_new(&o, &s->server, &err) == QCOW_OK)
		return true;
	(void)cli_fail(s->cli, &err, "cannot make the server");
	return false;
}

/* ---- what is refused ---- */

/* -c, -d and -L of qemu-nbd. */
static bool check_devices(struct serve *s)
{
	const char *device = cli_arg(s->args, "connect");
	if (device == NULL)
		device = cli_arg(s->args, "disconnect");
	if (device == NULL)
		return true;
	if (access(device, F_OK) != 0)
		cli_error(s->cli, "Failed to open %s: %s", device, strerror(errno));
	else
		cli_error(s->cli,
			"Failed to set up %s: the kernel's NBD client is not driven from here; "
			"nbd-client connects it to a socket (-k, -p)",
			device);
	return false;
}

static bool check_options(struct serve *s)
{
	const struct cli_args *args = s->args;
	const char *const one[] = {"run", "fork"};
	unsigned n = s->stdio;
	for (size_t i = 0; i < 2; i++)
		n += cli_flag(args, one[i]);
	if (n > 1) {
		(void)cli_usage(s->cli, "--run, --fork and '-' exclude each other");
		return false;
	}
	if (cli_flag(args, "snapshot") && cli_flag(args, "read-only")) {
		(void)cli_usage(s->cli, "--snapshot is for writing, --read-only is not");
		return false;
	}
	if (cli_flag(args, "load-snapshot") && cli_flag(args, "snapshots")) {
		(void)cli_usage(s->cli, "--load-snapshot shows one snapshot, --snapshots all");
		return false;
	}
	if (cli_flag(args, "bitmap") && cli_flag(args, "snapshot")) {
		(void)cli_usage(s->cli, "a temporary overlay has no bitmaps");
		return false;
	}
	return true;
}

/* ---- from start to end ---- */

static bool open_all(struct serve *s)
{
	size_t at = 0;
	const char *name = cli_arg_next(s->args, "export-name", &at);
	unsigned n_images = 0;
	for (size_t i = 0; i < s->args->n_operands; i++)
		n_images += strcmp(s->args->operands[i], "-") != 0;
	if (n_images == 0) {
		(void)cli_usage(s->cli, "no image given");
		return false;
	}
	for (size_t i = 0; i < s->args->n_operands; i++) {
		const char *text = s->args->operands[i], *slash = strrchr(text, '/');
		if (strcmp(text, "-") == 0)
			continue;
		struct serve_operand operand = {.text = text,
			.name = name != NULL	? name
				: n_images == 1 ? ""
				: slash != NULL ? slash + 1
						: text,
			.format = cli_arg(s->args, "format"),
			.image_opts = cli_flag(s->args, "image-opts"),
			.read_only = cli_flag(s->args, "read-only"),
			.temporary = cli_flag(s->args, "snapshot"),
			.snapshot = cli_arg(s->args, "load-snapshot")};
		if (!serve_open(s, &operand))
			return false;
		name = cli_arg_next(s->args, "export-name", &at);
	}
	return true;
}

/* The descriptors of the client, out of the way of what prints. */
static bool take_stdio(struct serve *s, int fds[2])
{
	fds[0] = dup(STDIN_FILENO);
	fds[1] = dup(STDOUT_FILENO);
	if (fds[0] >= 0 && fds[1] >= 0 && dup2(STDERR_FILENO, STDOUT_FILENO) == STDOUT_FILENO)
		return freopen("/dev/null", "r", stdin) != NULL;
	cli_error(s->cli, "cannot use standard input and output: %s", strerror(errno));
	return false;
}

static int serve_images(struct serve *s)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	int fds[2] = {-1, -1};
	const char *ctl = cli_arg(s->args, "control");
	if ((s->stdio && !take_stdio(s, fds)) || !serve_catch_signals(s) ||
		!serve_follow_parent(s) || !make_server(s) || !open_all(s) ||
		(!s->stdio && !serve_listen(s)) || (ctl != NULL && !serve_ctl_open(s, ctl)))
		return 1;
	if (s->stdio && qk_nbd_server_connect(s->server, fds[0], fds[1], &err) != QCOW_OK)
		return cli_fail(s->cli, &err, "standard input and output");
	if (qk_nbd_server_start(s->server, &err) != QCOW_OK)
		return cli_fail(s->cli, &err, "cannot start the server");
	if (!serve_is_ready(s) || !serve_start_child(s))
		return 1;
	return serve_loop(s);
}

static bool take_numbers(struct serve *s)
{
	const char *shared = cli_arg(s->args, "shared");
	uint64_t n = s->cli->qemu ? 1 : 0;
	if (shared != NULL && !cli_parse_number(s->cli, "option --shared", shared, 0, 1000000, &n))
		return false;
	s->max_clients = (unsigned)n;
	s->persistent = cli_flag(s->args, "persistent") || cli_flag(s->args, "run");
	for (size_t i = 0; i < s->args->n_operands; i++)
		s->stdio = s->stdio || strcmp(s->args->operands[i], "-") == 0;
	return true;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct serve s = {.cli = cli,
		.args = args,
		.front = &serve_front_nbd,
		.ready_fd = -1,
		.ctl_listener = -1,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.released = PTHREAD_COND_INITIALIZER};
	int exit_code = 1;
	s.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s.wake < 0) {
		cli_error(cli, "cannot wait for events: %s", strerror(errno));
		return 1;
	}
	serve_open_many_files(&s);
	if (cli_flag(args, "list"))
		return cli_objects_add_all(cli, args) ? serve_list(&s) : 1;
	if (!cli_objects_add_all(cli, args) || !take_numbers(&s) || !check_options(&s) ||
		!check_devices(&s))
		return 1;
	if (cli_flag(args, "fork") && !serve_fork(&s, &exit_code))
		return exit_code;
	exit_code = serve_images(&s);
	serve_unlisten(&s);
	serve_ctl_close(&s);
	qk_nbd_server_free(s.server);
	if (!serve_forget_all(&s))
		exit_code = 1;
	(void)close(s.wake);
	if (s.signals > 0)
		(void)close(s.signals);
	return exit_code;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.letter = 'k',
		.name = "socket",
		.arg = "PATH",
		.choices = "@file",
		.help = "listen at this Unix socket, which is made, and removed at the end"},
	{.name = "socket-mode",
		.arg = "OCTAL",
		.flags = CLI_OPT_QCOW,
		.help = "who may connect to it: its mode, 600 if not given"},
	{.letter = 'p',
		.name = "port",
		.arg = "PORT",
		.help = "listen at this TCP port, 10809 if not given"},
	{.letter = 'b',
		.name = "bind",
		.arg = "ADDRESS",
		.help = "listen at this address; qcow: only localhost if not given"},
	{.letter = 'x',
		.name = "export-name",
		.arg = "NAME",
		.help = "the export's name; again for the next image"},
	{.letter = 'D',
		.name = "description",
		.arg = "TEXT",
		.help = "what clients are told of the exports"},
	{.letter = 'r', .name = "read-only", .help = "let nobody write"},
	{.letter = 's',
		.name = "snapshot",
		.help = "write to a temporary file, which is gone at the end"},
	{.letter = 'l',
		.name = "load-snapshot",
		.arg = "SNAPSHOT",
		.help = "show this internal snapshot, read-only"},
	{.letter = 'o',
		.name = "offset",
		.arg = "OFFSET",
		.help = "the export begins at this byte of the disk"},
	{.name = "snapshots",
		.flags = CLI_OPT_QCOW,
		.help = "export every internal snapshot too, as NAME@SNAPSHOT"},
	{.name = "layers",
		.flags = CLI_OPT_QCOW,
		.help = "export every layer of the backing chain too, as NAME~1, NAME~2, …"},
	{.name = "partitions",
		.flags = CLI_OPT_QCOW,
		.help = "export every partition too, as NAME/p1, …"},
	{.letter = 't', .name = "persistent", .help = "go on when the last client has left"},
	{.letter = 'e',
		.name = "shared",
		.arg = "N",
		.help = "let at most N clients connect at once; 0: any number"},
	{.letter = 'B',
		.name = "bitmap",
		.arg = "NAME",
		.help = "show this bitmap as qemu:dirty-bitmap:NAME; qcow: all if not given"},
	{.letter = 'A',
		.name = "allocation-depth",
		.help = "show which layer holds what, as qemu:allocation-depth"},
	{.name = "cache",
		.arg = "CACHE",
		.choices = "none|writeback|writethrough|directsync|unsafe",
		.help = "cache mode of the images"},
	{.letter = 'n', .name = "nocache", .help = "the same as --cache=none"},
	{.name = "aio", .arg = "MODE", .help = "accepted, means nothing here"},
	{.name = "discard",
		.arg = "MODE",
		.choices = "ignore|off|unmap|on",
		.help = "may clients give up space? qcow: unmap, qemu-nbd: ignore"},
	{.name = "detect-zeroes",
		.arg = "MODE",
		.choices = "off|on|unmap",
		.help = "store writes of zeros as zeros; unmap: and give up the space"},
	{.name = "tls-creds",
		.arg = "ID",
		.help = "TLS with these credentials (--object tls-creds-…,endpoint=server)"},
	{.name = "tls",
		.arg = "MODE",
		.choices = "off|allow|require",
		.flags = CLI_OPT_QCOW,
		.help = "with --tls-creds: may clients do without it? require if not given"},
	{.name = "handshake-limit",
		.arg = "SECONDS",
		.help = "time for a client to choose an export"},
	{.name = "control",
		.arg = "PATH",
		.choices = "@file",
		.flags = CLI_OPT_QCOW,
		.help = "take commands of 'qcow ctl' at this socket"},
	{.name = "run",
		.arg = "COMMAND",
		.flags = CLI_OPT_QCOW,
		.help = "serve while this shell command runs, which finds \"$uri\""},
	{.name = "exit-with-parent",
		.flags = CLI_OPT_QCOW,
		.help = "end when the process that started this one ends"},
	{.name = "fork", .help = "go into the background; return when clients can connect"},
	{.name = "pid-file",
		.arg = "FILE",
		.choices = "@file",
		.help = "write the server's process id there when clients can connect"},
	{.letter = 'L',
		.name = "list",
		.flags = CLI_OPT_QEMU,
		.help = "print what the server at -k or -b and -p exports"},
	{.letter = 'c',
		.name = "connect",
		.arg = "DEV",
		.flags = CLI_OPT_QEMU,
		.help = "not built in: the kernel's NBD client"},
	{.letter = 'd',
		.name = "disconnect",
		.arg = "DEV",
		.flags = CLI_OPT_QEMU,
		.help = "not built in: the kernel's NBD client"},
	{.letter = 'T',
		.name = "trace",
		.arg = "PATTERN",
		.flags = CLI_OPT_QEMU,
		.help = "accepted, means nothing here"},
	{.letter = 'v', .name = "verbose", .help = "say on stderr who connects and what fails"},
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_serve = {
	.name = "serve",
	.summary = "Serve the disks of images over NBD",
	.synopsis = "[-k PATH | -p PORT] [-r] [-t] [-x NAME]… [--run COMMAND] [-] FILE…",
	.about = "Clients see each image's disk, and with --snapshots, --layers and --partitions "
		 "more of "
		 "it.\n"
		 "With '-' among the operands the one client is at standard input and output.",
	.options = options,
	.flags = CLI_OPT_QCOW,
	.min_operands = 0,
	.max_operands = CLI_MANY,
	.run = run,
};
