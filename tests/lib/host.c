/* SPDX-License-Identifier: MIT */
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define COMMAND_BYTES 8192

static char dir[300];
static pid_t dir_owner;
static char *said[2];

static void die(const char *what)
{
	(void)fprintf(stderr, "%s: %s\n", what, strerror(errno));
	abort();
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static void remove_dir(void)
{
	for (int i = 0; i < 2; i++) {
		free(said[i]);
		said[i] = NULL;
	}
	/* not in a child that exits */
	if (dir[0] != '\0' && getpid() == dir_owner)
		(void)nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

const char *qkt_dir(void)
{
	if (dir[0] != '\0')
		return dir;
	const char *parent = getenv("QK_TEST_DIR");
	if (parent == NULL)
		parent = getenv("TMPDIR");
	(void)snprintf(dir, sizeof(dir), "%s/qcowkit-XXXXXX", parent != NULL ? parent : "/tmp");
	if (mkdtemp(dir) == NULL)
		die(dir);
	dir_owner = getpid();
	(void)atexit(remove_dir);
	return dir;
}

const char *qkt_path(const char *name)
{
	static char paths[8][600];
	static unsigned next;
	char *path = paths[next++ % 8];
	(void)snprintf(path, sizeof(paths[0]), "%s/%s", qkt_dir(), name);
	return path;
}

bool qkt_has_program(const char *name)
{
	if (strchr(name, '/') != NULL)
		return access(name, X_OK) == 0;
	const char *path = getenv("PATH");
	char *copy = strdup(path != NULL ? path : "");
	char full[4096], *rest = NULL;
	bool found = false;
	if (copy == NULL)
		die("strdup");
	for (char *d = strtok_r(copy, ":", &rest); d != NULL && !found;
		d = strtok_r(NULL, ":", &rest)) {
		(void)snprintf(full, sizeof(full), "%s/%s", d, name);
		found = access(full, X_OK) == 0;
	}
	free(copy);
	return found;
}

void qkt_skip(const char *why)
{
	(void)printf("SKIP %s\n", why);
	exit(77);
}

void qkt_need_program(const char *name, const char *package)
{
	char why[200];
	if (qkt_has_program(name))
		return;
	(void)snprintf(why, sizeof(why), "%s is missing (package %s)", name, package);
	qkt_skip(why);
}

uint8_t *qkt_slurp(const char *path, size_t *size)
{
	FILE *f = fopen(path, "rb");
	struct stat st;
	if (f == NULL || fstat(fileno(f), &st) != 0)
		die(path);
	size_t n = (size_t)st.st_size;
	uint8_t *bytes = malloc(n + 1);
	if (bytes == NULL || fread(bytes, 1, n, f) != n)
		die(path);
	bytes[n] = 0;
	(void)fclose(f);
	if (size != NULL)
		*size = n;
	return bytes;
}

static int run_in_dir(const char *command)
{
	static const char *const names[2] = {".stdout", ".stderr"};
	char path[2][400];
	(void)qkt_dir();
	for (int i = 0; i < 2; i++)
		(void)snprintf(path[i], sizeof(path[i]), "%s/%s", dir, names[i]);
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		int out = open(path[0], O_WRONLY | O_CREAT | O_TRUNC, 0600);
		int err = open(path[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
		if (chdir(dir) != 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
			_exit(126);
		(void)execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	int status = 0;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	for (int i = 0; i < 2; i++) {
		free(said[i]);
		said[i] = (char *)qkt_slurp(path[i], NULL);
		(void)unlink(path[i]);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

const char *qkt_stdout(void)
{
	return said[0] != NULL ? said[0] : "";
}

const char *qkt_stderr(void)
{
	return said[1] != NULL ? said[1] : "";
}

int qkt_run(const char *fmt, ...)
{
	char command[COMMAND_BYTES];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	return run_in_dir(command);
}

void qkt_must(const char *fmt, ...)
{
	char command[COMMAND_BYTES];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	int status = run_in_dir(command);
	if (status == 0)
		return;
	(void)fprintf(
		stderr, "%s\n  exit status %d\n%s%s", command, status, qkt_stdout(), qkt_stderr());
	abort();
}

static void child_starts(const char *command, int out)
{
	char with_exec[COMMAND_BYTES + 8];
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails stops nothing */
	(void)snprintf(with_exec, sizeof(with_exec), "exec %s", command);
	if (chdir(dir) != 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(126);
	(void)execl("/bin/sh", "sh", "-c", with_exec, (char *)NULL);
	_exit(127);
}

pid_t qkt_start(const char *ready, const char *fmt, ...)
{
	char command[COMMAND_BYTES], line[4096];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	(void)qkt_dir();
	int ends[2];
	if (pipe2(ends, O_CLOEXEC) != 0)
		die("pipe");
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0)
		child_starts(command, ends[1]);
	(void)close(ends[1]);
	FILE *f = fdopen(ends[0], "r");
	if (f == NULL)
		die("fdopen");
	bool is_ready = false;
	while (!is_ready && fgets(line, sizeof(line), f) != NULL) {
		is_ready = strstr(line, ready) != NULL;
		if (!is_ready)
			(void)fputs(line, stderr);
	}
	(void)fclose(f);
	if (!is_ready) {
		(void)fprintf(stderr, "%s\n  ended before it said \"%s\"\n", command, ready);
		abort();
	}
	return pid;
}

void qkt_stop(pid_t pid)
{
	(void)kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

size_t qkt_qemus(const char *prefixes[2])
{
	static char newer[400];
	char img[500], io[500];
	size_t n = 0;
	if (qkt_has_program("qemu-img") && qkt_has_program("qemu-io"))
		prefixes[n++] = "";
	const char *given = getenv("QK_PEERS"), *home = getenv("HOME");
	if (given != NULL)
		(void)snprintf(newer, sizeof(newer), "%s/", given);
	else
		(void)snprintf(newer, sizeof(newer), "%s/.cache/qcowkit-peers/bin/",
			home != NULL ? home : "");
	(void)snprintf(img, sizeof(img), "%sqemu-img", newer);
	(void)snprintf(io, sizeof(io), "%sqemu-io", newer);
	if (qkt_has_program(img) && qkt_has_program(io))
		prefixes[n++] = newer;
	return n;
}
