/* SPDX-License-Identifier: MIT */
/*
 * serve_listen: the sockets that clients connect to.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/serve.h"

enum {
	BACKLOG = 128,
	TELL_SECONDS = 10, /* between complaints of one kind */
	FIRST_INHERITED = 3 /* sd_listen_fds(3) */
};

static const char default_port[] = "10809";

/* Keep a listening socket: the server's, or ours where the number of clients is limited. */
static bool take(struct serve *s, int fd)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (s->max_clients == 0) {
		if (qk_nbd_server_listen(s->server, fd, &err) == QCOW_OK)
			return true;
		(void)cli_fail(s->cli, &err, "cannot listen");
		(void)close(fd);
		return false;
	}
	if (s->n_listeners == SERVE_LISTENERS) {
		(void)close(fd);
		cli_error(s->cli, "more than %d listening sockets", SERVE_LISTENERS);
		return false;
	}
	(void)fcntl(fd, F_SETFL, O_NONBLOCK);
	s->listeners[s->n_listeners++] = fd;
	return true;
}

/* ---- Unix ---- */

static bool unix_address(struct serve *s, const char *path, struct sockaddr_un *out)
{
	*out = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(out->sun_path)) {
		cli_error(s->cli, "UNIX socket path '%s' is too long: at most %zu bytes", path,
			sizeof(out->sun_path) - 1);
		return false;
	}
	memcpy(out->sun_path, path, strlen(path));
	return true;
}

/* Does nobody listen there? A socket of another type, or one that has no room for more clients, is somebody's. */
static bool is_left_over(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bool yes = fd >= 0 &&
		   connect(fd, (const struct sockaddr *)address, sizeof(*address)) != 0 &&
		   errno == ECONNREFUSED;
	if (fd >= 0)
		(void)close(fd);
	return yes;
}

static void remember(struct serve_socket *made, const char *path)
{
	made->path = realpath(path, NULL);
	if (made->path == NULL)
		made->path = strdup(path);
	made->file = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
}

/* Its inode number is nobody else's as long as `file` is open. */
void serve_unlink_socket(struct serve_socket *made)
{
	struct stat ours, there;
	if (made->path == NULL)
		return;
	if (made->file >= 0 && fstat(made->file, &ours) == 0 && lstat(made->path, &there) == 0 &&
		ours.st_dev == there.st_dev && ours.st_ino == there.st_ino)
		(void)unlink(made->path);
	if (made->file >= 0)
		(void)close(made->file);
	free(made->path);
	*made = (struct serve_socket){.path = NULL};
}

int serve_listen_unix(struct serve *s, const char *path, mode_t mode, struct serve_socket *made)
{
	struct sockaddr_un address;
	struct stat st;
	if (!unix_address(s, path, &address))
		return -1;
	if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode) && is_left_over(&address))
		(void)unlink(path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	mode_t old = umask(0777 & ~mode);
	bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 &&
		  listen(fd, BACKLOG) == 0;
	int error = errno;
	(void)umask(old);
	if (ok) {
		remember(made, path);
		return fd;
	}
	cli_error(s->cli, "Failed to bind socket to %s: %s", path, strerror(error));
	if (fd >= 0)
		(void)close(fd);
	return -1;
}

static bool parse_mode(struct serve *s, mode_t *mode)
{
	const char *text = cli_arg(s->args, "socket-mode");
	char *end = NULL;
	*mode = s->cli->qemu ? 0755 : 0600;
	if (text == NULL)
		return true;
	unsigned long n = strtoul(text, &end, 8);
	if (*text < '0' || *text > '7' || *end != '\0' || n > 0777) {
		(void)cli_usage(s->cli, "option --socket-mode: '%s' is no octal mode", text);
		return false;
	}
	*mode = (mode_t)n;
	return true;
}

static bool listen_unix(struct serve *s, const char *path)
{
	mode_t mode = 0;
	if (!parse_mode(s, &mode))
		return false;
	int fd = serve_listen_unix(s, path, mode, &s->socket);
	return fd >= 0 && take(s, fd);
}

/* ---- TCP ---- */

static int listen_at(const struct addrinfo *a)
{
	int on = 1, fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, a->ai_protocol);
	if (fd < 0)
		return -1;
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (a->ai_family == AF_INET6)
		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
	if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
		return fd;
	int error = errno;
	(void)close(fd);
	errno = error;
	return -1;
}

static bool listen_tcp(struct serve *s, const char *address, const char *port)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
	const char *host = address != NULL ? address : s->cli->qemu ? "0.0.0.0" : "localhost";
	int error = getaddrinfo(host, port, &hints, &list);
	if (error != 0) {
		cli_error(s->cli, "address resolution failed for %s:%s: %s", host, port,
			gai_strerror(error));
		return false;
	}
	unsigned n = 0;
	bool ok = true;
	for (struct addrinfo *a = list; a != NULL && ok; a = a->ai_next) {
		int fd = listen_at(a);
		if (fd < 0)
			continue;
		n++;
		ok = take(s, fd);
	}
	error = errno;
	freeaddrinfo(list);
	if (n == 0)
		cli_error(
			s->cli, "Failed to bind socket to %s:%s: %s", host, port, strerror(error));
	return ok && n > 0;
}

/* ---- sockets of a service manager ---- */

/* How many there are for this process; the environment forgets them. -1: none were meant for us. */
static int inherited(void)
{
	const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");
	char *end = NULL;
	if (pid == NULL || n == NULL || strtol(pid, &end, 10) != (long)getpid() || *end != '\0')
		return -1;
	long count = strtol(n, &end, 10);
	bool is_number = *n != '\0' && *end == '\0' && count > 0 && count < 1024;
	(void)unsetenv("LISTEN_PID");
	(void)unsetenv("LISTEN_FDS");
	(void)unsetenv("LISTEN_FDNAMES");
	return is_number ? (int)count : -1;
}

static bool take_inherited(struct serve *s, int n)
{
	for (int fd = FIRST_INHERITED; fd < FIRST_INHERITED + n; fd++) {
		int type = 0, listens = 0;
		socklen_t bytes = sizeof(type), more = sizeof(listens);
		if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) != 0 ||
			getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &more) != 0 ||
			type != SOCK_STREAM || listens == 0) {
			cli_error(s->cli, "descriptor %d of LISTEN_FDS is no listening socket", fd);
			return false;
		}
		if (!take(s, fd))
			return false;
	}
	return true;
}

/* ---- all of them ---- */

/* --run without -k and -p: a socket in a folder of its own. */
static bool listen_for_child(struct serve *s)
{
	const char *folder = getenv("TMPDIR");
	QK_AUTO_FREE char *path = NULL;
	if (asprintf(&s->temporary_folder, "%s/qcow-serve-XXXXXX",
		    folder != NULL && folder[0] != '\0' ? folder : "/tmp") < 0)
		cli_out_of_memory();
	if (mkdtemp(s->temporary_folder) == NULL) {
		cli_error(s->cli, "cannot make '%s': %s", s->temporary_folder, strerror(errno));
		free(s->temporary_folder);
		s->temporary_folder = NULL;
		return false;
	}
	if (asprintf(&path, "%s/socket", s->temporary_folder) < 0)
		cli_out_of_memory();
	return listen_unix(s, path);
}

/* The first export's name as a part of a URI. */
static char *escaped_name(const char *name)
{
	static const char plain[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/@";
	char *out = qk_malloc(strlen(name) * 3 + 1, 1), *at = out;
	if (out == NULL)
		cli_out_of_memory();
	for (; *name != '\0'; name++) {
		if (strchr(plain, *name) != NULL)
			*at++ = *name;
		else
			at += snprintf(at, 4, "%%%02x", (unsigned)(unsigned char)*name);
	}
	*at = '\0';
	return out;
}

static void make_uri(struct serve *s, const char *address, const char *port)
{
	size_t at = 0;
	const char *name = cli_arg_next(s->args, "export-name", &at);
	QK_AUTO_FREE char *export = escaped_name(name != NULL ? name : "");
	const char *tls = cli_arg(s->args, "tls-creds") != NULL ? "s" : "";
	int n = s->socket.path != NULL
			? asprintf(&s->uri, "nbd%s+unix:///%s?socket=%s", tls, export,
				  s->socket.path)
			: asprintf(&s->uri, "nbd%s://%s:%s/%s", tls,
				  address != NULL ? address : "localhost", port, export);
	if (n < 0)
		cli_out_of_memory();
}

bool serve_listen(struct serve *s)
{
	const char *path = cli_arg(s->args, "socket"), *port = cli_arg(s->args, "port");
	const char *address = cli_arg(s->args, "bind");
	int n = inherited();
	if (n > 0) {
		if (path == NULL && port == NULL && address == NULL)
			return take_inherited(s, n);
		cli_error(s->cli, "Unix socket, port and address can't be set when using socket "
				  "activation");
		return false;
	}
	bool tcp = port != NULL || address != NULL;
	if (path != NULL && tcp && s->cli->qemu) {
		cli_error(s->cli, "Can't use both unix socket and TCP");
		return false;
	}
	bool ok = true;
	if (path != NULL)
		ok = listen_unix(s, path);
	else if (!tcp && cli_flag(s->args, "run"))
		ok = listen_for_child(s);
	else
		tcp = true;
	port = port != NULL ? port : default_port;
	if (ok && tcp)
		ok = listen_tcp(s, address, port);
	if (ok)
		make_uri(s, address, port);
	return ok;
}

int serve_take_client(struct serve *s, int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
		int error = errno;
		time_t now = time(NULL);
		bool is_due = s->told_at == 0 || now - s->told_at >= TELL_SECONDS;
		s->rests = true;
		if (is_due) {
			cli_more(s->cli, "cannot accept clients: %s", strerror(error));
			s->told_at = now;
		}
	}
	return fd;
}

void serve_accept(struct serve *s, int listener)
{
	int fd = serve_take_client(s, listener);
	if (fd < 0)
		return;
	s->n_clients++;
	if (qk_nbd_server_connect(s->server, fd, fd, NULL) == QCOW_OK)
		return;
	s->n_clients--;
	(void)close(fd);
}

void serve_unlisten(struct serve *s)
{
	while (s->n_listeners > 0)
		(void)close(s->listeners[--s->n_listeners]);
	serve_unlink_socket(&s->socket);
	if (s->temporary_folder != NULL)
		(void)rmdir(s->temporary_folder);
	free(s->temporary_folder);
	free(s->uri);
	s->temporary_folder = s->uri = NULL;
}
