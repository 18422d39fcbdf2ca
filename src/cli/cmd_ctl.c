/* SPDX-License-Identifier: MIT */
/*
 * cmd_ctl: `qcow ctl`: speaks to the control socket of a `qcow serve` that runs.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/cli.h"

static FILE *reach(struct cli *cli, const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(address.sun_path)) {
		cli_error(cli, "the path '%s' is too long for a socket", path);
		return NULL;
	}
	memcpy(address.sun_path, path, strlen(path));
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	FILE *stream = NULL;
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		stream = fdopen(fd, "r+");
	if (stream != NULL)
		return stream;
	cli_error(cli, "cannot connect to '%s': %s", path, strerror(errno));
	if (fd >= 0)
		(void)close(fd);
	return NULL;
}

/* COMMAND and KEY=VALUE words as a request. NULL: refused and reported. */
static json_t *request_of(struct cli *cli, const struct cli_args *args)
{
	json_t *request = json_object();
	cli_json_set(request, "command", cli_json_string(args->operands[1]));
	for (size_t i = 2; i < args->n_operands; i++) {
		const char *word = args->operands[i], *equals = strchr(word, '=');
		QK_AUTO_FREE char *key = qk_strndup(
			word, equals != NULL ? (size_t)(equals - word) : strlen(word));
		if (key == NULL)
			cli_out_of_memory();
		if (equals == word) {
			(void)cli_usage(cli, "'%s' is no KEY=VALUE", word);
			json_decref(request);
			return NULL;
		}
		cli_json_set(
			request, key, equals != NULL ? cli_json_string(equals + 1) : json_true());
	}
	return request;
}

/* Send a line, print its answer. 0, or 1 where it says no. */
static int ask(struct cli *cli, FILE *stream, const char *line)
{
	char *reply = NULL;
	size_t room = 0;
	json_error_t why;
	if (fprintf(stream, "%s\n", line) < 0 || fflush(stream) != 0 ||
		getline(&reply, &room, stream) < 0) {
		free(reply);
		cli_error(cli, "the server has gone away");
		return 1;
	}
	json_t *root = json_loads(reply, 0, &why);
	free(reply);
	if (!json_is_object(root)) {
		json_decref(root);
		cli_error(cli, "the server's answer cannot be read");
		return 1;
	}
	bool ok = json_is_true(json_object_get(root, "ok"));
	const char *error = json_string_value(json_object_get(root, "error"));
	if (ok) {
		(void)json_object_del(root, "ok");
		if (json_object_size(root) > 0)
			return cli_json_print(cli, root);
	} else {
		cli_error(cli, "%s", error != NULL ? error : "refused");
	}
	json_decref(root);
	return ok ? 0 : 1;
}

/* Each line of standard input, on one connection: a quiesce lasts until the last of them. */
static int ask_lines(struct cli *cli, FILE *stream)
{
	char *line = NULL;
	size_t room = 0;
	ssize_t n = 0;
	int rc = 0;
	while (rc == 0 && (n = getline(&line, &room, stdin)) > 0) {
		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		if (line[0] != '\0')
			rc = ask(cli, stream, line);
		(void)fflush(stdout);
	}
	free(line);
	return rc;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	json_t *request = NULL;
	if (args->n_operands > 1 && (request = request_of(cli, args)) == NULL)
		return 1;
	FILE *stream = reach(cli, args->operands[0]);
	int rc = 1;
	if (stream != NULL && request != NULL) {
		char *line = json_dumps(request, JSON_COMPACT);
		if (line == NULL)
			cli_out_of_memory();
		rc = ask(cli, stream, line);
		free(line);
	} else if (stream != NULL) {
		rc = ask_lines(cli, stream);
	}
	json_decref(request);
	if (stream != NULL)
		(void)fclose(stream);
	return rc;
}

static const struct cli_option options[] = {CLI_OPTIONS_END};

const struct cli_command cli_cmd_ctl = {
	.name = "ctl",
	.summary = "Ask or tell a 'qcow serve' or 'qcow mount' with --control that runs",
	.synopsis = "SOCKET [COMMAND [KEY=VALUE]…]",
	.about = "Commands: status, quiesce, resume, stop, export-add (name=, file=, format=, "
		 "snapshot=, read-only),\n"
		 "export-remove (name=, hard), snapshot-create, snapshot-delete and snapshot-apply "
		 "(export=, name=), bitmap-add\n"
		 "(export=, bitmap=, granularity=, disabled), bitmap-remove, -clear, -enable, "
		 "-disable (export=,\n"
		 "bitmap=), bitmap-merge (export=, bitmap=, source=), resize (export=, size=, "
		 "shrink).\n"
		 "Without a command, requests are read from standard input: JSON objects, a line "
		 "each.",
	.options = options,
	.flags = CLI_OPT_QCOW,
	.min_operands = 1,
	.max_operands = CLI_MANY,
	.run = run,
};
