/* SPDX-License-Identifier: MIT */
/*
 * serve_loop: the main thread, from readiness to the end. It sleeps until a signal comes, a client comes or leaves, the
 * command of --run ends, or somebody speaks at the control socket.
 *
 * The end: no more clients, what has arrived is answered, everything is flushed; then the images are closed.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/serve.h"

enum {
	REST_MS = 100, /* without descriptors for clients */
	ROWS = 128
};

/* Signals come by this descriptor, on this thread. */
static int open_signals(void)
{
	sigset_t set;
	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGINT);
	(void)sigaddset(&set, SIGTERM);
	(void)sigaddset(&set, SIGHUP);
	(void)sigaddset(&set, SIGCHLD);
	if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0)
		return -1;
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void collect_child(struct serve *s)
{
	int status = 0;
	if (s->child == 0 || waitpid(s->child, &status, WNOHANG) != s->child)
		return;
	s->child = 0;
	s->child_status = WIFEXITED(status)	? WEXITSTATUS(status)
			  : WIFSIGNALED(status) ? 128 + WTERMSIG(status)
						: 1;
	s->stops = true;
}

static void take_signals(struct serve *s, int fd)
{
	struct signalfd_siginfo in;
	while (read(fd, &in, sizeof(in)) == (ssize_t)sizeof(in)) {
		if (in.ssi_signo == SIGCHLD)
			collect_child(s);
		else
			s->stops = true;
	}
}

/* Has the last client left whom it was for? */
static void look_at_clients(struct serve *s)
{
	unsigned n_ended = atomic_load(&s->n_ended);
	bool is_alone = s->n_listeners > 0 || s->stdio ? n_ended >= s->n_clients
						       : atomic_load(&s->n_open) == 0;
	if (s->stdio && n_ended > 0)
		s->stops = true;
	if (!s->persistent && is_alone && atomic_load(&s->was_served))
		s->stops = true;
}

static bool may_accept(struct serve *s)
{
	return s->n_clients - atomic_load(&s->n_ended) < s->max_clients;
}

/* One sleep. False: the host does not let us. */
static bool turn(struct serve *s, int signals)
{
	struct pollfd fds[ROWS] = {
		{.fd = signals, .events = POLLIN}, {.fd = s->wake, .events = POLLIN}};
	size_t n = 2, n_accept = may_accept(s) && !s->rests ? s->n_listeners : 0;
	uint64_t ignored = 0;
	for (size_t i = 0; i < n_accept; i++)
		fds[n++] = (struct pollfd){.fd = s->listeners[i], .events = POLLIN};
	size_t n_ctl = serve_ctl_polls(s, fds + n, ROWS - n);
	int n_events = poll(fds, (nfds_t)(n + n_ctl), s->rests ? REST_MS : -1);
	if (n_events < 0)
		return errno == EINTR;
	s->rests = false;
	if (fds[1].revents != 0)
		(void)!read(s->wake, &ignored, sizeof(ignored));
	take_signals(s, signals);
	for (size_t i = 0; i < n_accept; i++)
		if (fds[2 + i].revents != 0 && may_accept(s))
			serve_accept(s, s->listeners[i]);
	serve_ctl_handle(s, fds + n, n_ctl);
	look_at_clients(s);
	return true;
}

/* Flushes what the server's own flush at the end may have lost the result of. */
static int flush_images(struct serve *s)
{
	int rc = 0;
	for (struct serve_image *i = s->images; i != NULL; i = i->next) {
		struct qcow_error err = QCOW_ERROR_INIT;
		if (i->writable && !i->shared->no_flush &&
			qcow_flush(i->shared->image, &err) != QCOW_OK)
			rc = cli_fail(s->cli, &err, "cannot make '%s' durable",
				qcow_store_name(qcow_image_store(i->shared->image)));
	}
	return rc;
}

int serve_loop(struct serve *s)
{
	int signals = s->signals;
	collect_child(s);
	while (!s->stops && turn(s, signals))
		;
	serve_tell_manager("STOPPING=1");
	serve_ctl_drop(s); /* a quiesce would last longer than the draining */
	s->front->stop(s);
	int rc = flush_images(s);
	if (s->child != 0) {
		(void)kill(s->child, SIGTERM);
		(void)waitpid(s->child, &s->child_status, 0);
		s->child_status = 1;
	}
	const char *pid_file = cli_arg(s->args, "pid-file");
	if (pid_file != NULL)
		(void)unlink(pid_file);
	return rc != 0 ? rc : s->child_status;
}

bool serve_catch_signals(struct serve *s)
{
	s->signals = open_signals();
	if (s->signals < 0)
		cli_error(s->cli, "cannot wait for signals: %s", strerror(errno));
	return s->signals >= 0;
}
