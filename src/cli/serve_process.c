/* SPDX-License-Identifier: MIT */
/*
 * serve_process: the server among other processes: its parent, a service manager, the command that it serves.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/serve.h"

/* ---- --fork ---- */

/* The parent: until the child is ready, or has failed and said so. */
static int wait_for_child(struct serve *s, int fd, pid_t child)
{
	char byte = 0;
	ssize_t n = 0;
	int status = 0;
	do
		n = read(fd, &byte, 1);
	while (n < 0 && errno == EINTR);
	(void)close(fd);
	if (n == 1)
		return 0;
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFSIGNALED(status))
		cli_error(s->cli, "the server died of signal %d", WTERMSIG(status));
	return 1;
}

bool serve_fork(struct serve *s, int *exit_code)
{
	int fds[2] = {-1, -1};
	*exit_code = 1;
	if (pipe2(fds, O_CLOEXEC) != 0) {
		cli_error(s->cli, "cannot make a pipe: %s", strerror(errno));
		return false;
	}
	(void)fflush(NULL);
	pid_t child = fork();
	if (child < 0) {
		cli_error(s->cli, "Failed to fork: %s", strerror(errno));
		(void)close(fds[0]);
		(void)close(fds[1]);
		return false;
	}
	if (child > 0) {
		(void)close(fds[1]);
		*exit_code = wait_for_child(s, fds[0], child);
		return false;
	}
	(void)close(fds[0]);
	(void)setsid();
	s->ready_fd = fds[1];
	return true;
}

/* In the background nothing holds the terminal, or the pipes that the parent's caller waits for. */
static void let_go(struct serve *s)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null >= 0) {
		(void)dup2(null, STDIN_FILENO);
		(void)dup2(null, STDOUT_FILENO);
		if (!cli_flag(s->args, "verbose"))
			(void)dup2(null, STDERR_FILENO);
		if (null > STDERR_FILENO)
			(void)close(null);
	}
	char byte = 1;
	(void)!write(s->ready_fd, &byte, 1);
	(void)close(s->ready_fd);
	s->ready_fd = -1;
}

void serve_open_many_files(struct serve *s)
{
	if (getrlimit(RLIMIT_NOFILE, &s->files) != 0)
		return;
	struct rlimit limit = {.rlim_cur = s->files.rlim_max, .rlim_max = s->files.rlim_max};
	(void)setrlimit(RLIMIT_NOFILE, &limit);
}

/* ---- --exit-with-parent ---- */

bool serve_follow_parent(struct serve *s)
{
	if (!cli_flag(s->args, "exit-with-parent"))
		return true;
	pid_t parent = getppid();
	if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0) {
		cli_error(s->cli, "cannot follow the parent: %s", strerror(errno));
		return false;
	}
	if (getppid() == parent)
		return true;
	s->stops = true; /* it is gone already */
	return true;
}

/* ---- readiness ---- */

/* sd_notify(3): a datagram to the socket that the environment names. */
void serve_tell_manager(const char *line)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t n = path != NULL ? strlen(path) : 0;
	if (n < 2 || n >= sizeof(address.sun_path) || (path[0] != '/' && path[0] != '@'))
		return;
	memcpy(address.sun_path, path, n);
	if (path[0] == '@')
		address.sun_path[0] = '\0'; /* an abstract one */
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	(void)!sendto(fd, line, strlen(line), MSG_NOSIGNAL, (struct sockaddr *)&address,
		(socklen_t)(offsetof(struct sockaddr_un, sun_path) + n));
	(void)close(fd);
}

static bool write_pid(struct serve *s, const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd >= 0 && dprintf(fd, "%ld\n", (long)getpid()) > 0 && close(fd) == 0)
		return true;
	cli_error(s->cli, "Failed to create PID file '%s': %s", path, strerror(errno));
	return false;
}

bool serve_is_ready(struct serve *s)
{
	const char *path = cli_arg(s->args, "pid-file");
	if (path != NULL && !write_pid(s, path))
		return false;
	serve_tell_manager("READY=1");
	if (s->ready_fd >= 0)
		let_go(s);
	return true;
}

/* ---- --run ---- */

/* What `command` finds in its environment. */
static void be_child(struct serve *s, const char *command)
{
	size_t at = 0;
	const char *name = cli_arg_next(s->args, "export-name", &at);
	sigset_t none;
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)signal(SIGPIPE, SIG_DFL);
	(void)signal(SIGXFSZ, SIG_DFL);
	if (s->files.rlim_max != 0)
		(void)setrlimit(RLIMIT_NOFILE, &s->files);
	(void)setenv("uri", s->uri, 1);
	(void)setenv("exportname", name != NULL ? name : "", 1);
	(void)setenv("unixsocket", s->socket.path != NULL ? s->socket.path : "", 1);
	(void)setenv("port", cli_arg(s->args, "port") != NULL ? cli_arg(s->args, "port") : "", 1);
	(void)execl("/bin/sh", "sh", "-c", command, (char *)NULL);
	_exit(127);
}

bool serve_start_child(struct serve *s)
{
	const char *command = cli_arg(s->args, "run");
	if (command == NULL)
		return true;
	(void)fflush(NULL);
	pid_t child = fork();
	if (child == 0)
		be_child(s, command);
	if (child < 0)
		cli_error(s->cli, "Failed to fork: %s", strerror(errno));
	s->child = child > 0 ? child : 0;
	return child > 0;
}
