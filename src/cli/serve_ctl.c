/* SPDX-License-Identifier: MIT */
/*
 * serve_ctl: the control socket. A client sends JSON objects, a line each, and gets one line back for each, in order:
 * {"ok": true, …} or {"ok": false, "error": "why"}. Whoever may open the socket may do everything, so its mode is 0600.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/serve.h"

enum {
	LINE_BYTES = 65536,
	CLIENTS = 64
};

struct serve_client {
	struct serve_client *next;
	int fd;
	size_t used; /* of `line` */
	unsigned holds; /* quiesces that it has not ended */
	char line[LINE_BYTES];
};

bool serve_ctl_open(struct serve *s, const char *path)
{
	s->ctl_listener = serve_listen_unix(s, path, 0600, &s->ctl_socket);
	return s->ctl_listener >= 0;
}

size_t serve_ctl_polls(struct serve *s, struct pollfd *fds, size_t room)
{
	size_t n = 0;
	if (s->ctl_listener >= 0 && room > 0 && !s->rests)
		fds[n++] = (struct pollfd){.fd = s->ctl_listener, .events = POLLIN};
	for (struct serve_client *c = s->clients; c != NULL && n < room; c = c->next)
		fds[n++] = (struct pollfd){.fd = c->fd, .events = POLLIN};
	return n;
}

static void accept_client(struct serve *s)
{
	const struct timeval patience = {.tv_sec = 5};
	unsigned n = 0;
	int fd = serve_take_client(s, s->ctl_listener);
	for (struct serve_client *c = s->clients; c != NULL; c = c->next)
		n++;
	struct serve_client *c = fd >= 0 && n < CLIENTS ? qk_calloc(1, sizeof(*c)) : NULL;
	if (c == NULL) {
		if (fd >= 0)
			(void)close(fd);
		return;
	}
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	c->fd = fd;
	c->next = s->clients;
	s->clients = c;
}

/* What it held back goes on. */
static void drop_client(struct serve *s, struct serve_client *gone)
{
	struct serve_client **at = &s->clients;
	while (*at != gone)
		at = &(*at)->next;
	*at = gone->next;
	serve_release(s, gone->holds);
	(void)close(gone->fd);
	free(gone);
}

/* False: it does not take its answers. */
static bool answer(struct serve_client *c, json_t *root)
{
	char *text = json_dumps(root, JSON_COMPACT | JSON_ENSURE_ASCII);
	json_decref(root);
	if (text == NULL)
		cli_out_of_memory();
	size_t n = strlen(text), done = 0;
	text[n++] = '\n'; /* in place of the NUL */
	while (done < n) {
		ssize_t put = send(c->fd, text + done, n - done, MSG_NOSIGNAL);
		if (put < 0 && errno != EINTR)
			break;
		done += put > 0 ? (size_t)put : 0;
	}
	free(text);
	return done == n;
}

static bool do_line(struct serve *s, struct serve_client *c, const char *line)
{
	json_error_t why;
	json_t *request = json_loads(line, JSON_REJECT_DUPLICATES, &why);
	json_t *reply = NULL;
	if (json_is_object(request)) {
		reply = serve_do(s, request, &c->holds);
	} else {
		reply = json_object();
		cli_json_set(reply, "ok", json_false());
		cli_json_set(reply, "error", json_string("not a JSON object"));
	}
	json_decref(request);
	return answer(c, reply);
}

/* False: it is gone, or to be. */
static bool read_client(struct serve *s, struct serve_client *c)
{
	ssize_t got = recv(c->fd, c->line + c->used, LINE_BYTES - c->used, MSG_DONTWAIT);
	if (got < 0)
		return errno == EAGAIN || errno == EINTR;
	if (got == 0)
		return false;
	c->used += (size_t)got;
	for (char *end = NULL; (end = memchr(c->line, '\n', c->used)) != NULL;) {
		*end = '\0';
		size_t n = (size_t)(end + 1 - c->line);
		if (n > 1 && !do_line(s, c, c->line))
			return false;
		c->used -= n;
		memmove(c->line, c->line + n, c->used);
	}
	return c->used < LINE_BYTES;
}

void serve_ctl_handle(struct serve *s, const struct pollfd *fds, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (fds[i].revents == 0)
			continue;
		if (fds[i].fd == s->ctl_listener) {
			accept_client(s);
			continue;
		}
		struct serve_client *c = s->clients;
		while (c != NULL && c->fd != fds[i].fd)
			c = c->next;
		if (c != NULL && !read_client(s, c))
			drop_client(s, c);
	}
}

void serve_ctl_drop(struct serve *s)
{
	while (s->clients != NULL)
		drop_client(s, s->clients);
}

void serve_ctl_close(struct serve *s)
{
	serve_ctl_drop(s);
	if (s->ctl_listener >= 0)
		(void)close(s->ctl_listener);
	serve_unlink_socket(&s->ctl_socket);
	s->ctl_listener = -1;
}
