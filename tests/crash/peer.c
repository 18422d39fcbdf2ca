/* SPDX-License-Identifier: MIT */
/*
 * qemu-io takes its commands from a pipe and prints a prompt after each; the size of the log between two
 * prompts says which calls belong to which step.
 */
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <host.h>

#include "disk.h"
#include "explore.h"
#include "shim.h"

#define PROMPT "qemu-io> "

struct session {
	pid_t pid;
	FILE *in;
	int out;
	char answer[4096]; /* to the last command, cut where it is longer */
};

static _Noreturn void give_up(const char *what)
{
	(void)fprintf(stderr, "crash-peers: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void run_child(const char *qemu_io, const char *shim, int in, int out)
{
	if (chdir(qkt_dir()) != 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(127);
	char *log = strdup(qkt_path("peer.log")), *target = strdup(qkt_path("base.qcow2"));
	if (setenv("QKC_LOG", log, 1) != 0 || setenv("QKC_TARGET", target, 1) != 0 ||
		setenv("LD_PRELOAD", shim, 1) != 0)
		_exit(127);
	(void)execlp(qemu_io, "qemu-io", "-t", "writeback", "-d", "unmap", "-i", "threads",
		"base.qcow2", (char *)NULL);
	_exit(127);
}

/* Read up to the next prompt, or the end. */
static bool read_answer(struct session *s)
{
	size_t n = 0;
	for (;;) {
		ssize_t got = read(s->out, s->answer + n, sizeof(s->answer) - 1 - n);
		if (got <= 0)
			return false;
		n += (size_t)got;
		s->answer[n] = '\0';
		if (n >= sizeof(PROMPT) - 1 &&
			strcmp(s->answer + n + 1 - sizeof(PROMPT), PROMPT) == 0)
			return true;
		if (n > sizeof(s->answer) / 2) { /* keep the end, where the prompt will be */
			n = sizeof(PROMPT);
			memmove(s->answer, s->answer + strlen(s->answer) - n, n + 1);
		}
	}
}

static void start(struct session *s, const char *qemu_io, const char *shim)
{
	int in[2], out[2];
	(void)unlink(qkt_path("peer.log"));
	if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
		give_up("pipe");
	s->pid = fork();
	if (s->pid < 0)
		give_up("fork");
	if (s->pid == 0)
		run_child(qemu_io, shim, in[0], out[1]);
	(void)close(in[0]);
	(void)close(out[1]);
	s->in = fdopen(in[1], "w");
	s->out = out[0];
	if (!read_answer(s))
		give_up("qemu-io does not start");
}

static uint64_t log_size(void)
{
	struct stat st;
	return stat(qkt_path("peer.log"), &st) == 0 ? (uint64_t)st.st_size : 0;
}

static void save_content(const struct qkc_step *s, uint32_t number)
{
	uint8_t *buf = qkc_need((size_t)s->len, 1);
	qkc_content(number, s->off, buf, s->len);
	FILE *f = fopen(qkt_path("content"), "wb");
	if (f == NULL || fwrite(buf, (size_t)s->len, 1, f) != 1 || fclose(f) != 0)
		give_up("content");
	free(buf);
}

static bool do_step(struct session *s, const struct qkc_step *step, uint32_t number)
{
	static const char *const commands[] = {[QKC_DO_WRITE] = "write -s content",
		[QKC_DO_WRITE_FUA] = "write -f -s content",
		[QKC_DO_WRITE_COMPRESSED] = "write -c -s content",
		[QKC_DO_ZERO] = "write -z",
		[QKC_DO_ZERO_UNMAP] = "write -z -u",
		[QKC_DO_DISCARD] = "discard",
		[QKC_DO_FLUSH] = "flush"};
	if (step->act <= QKC_DO_WRITE_COMPRESSED)
		save_content(step, number);
	if (step->act == QKC_DO_FLUSH)
		(void)fprintf(s->in, "flush\n");
	else
		(void)fprintf(s->in, "%s %" PRIu64 " %" PRIu64 "\n", commands[step->act], step->off,
			step->len);
	(void)fflush(s->in);
	if (!read_answer(s))
		give_up("qemu-io ended");
	return strstr(s->answer, "failed") == NULL && strstr(s->answer, "rror") == NULL;
}

uint64_t qkc_end_flags(enum qkc_act act, bool is_done)
{
	return (is_done ? QKC_DONE : 0) |
	       (act == QKC_DO_FLUSH || act == QKC_DO_WRITE_STATE || qkc_is_operation(act)
			       ? QKC_IS_FLUSH
			       : 0) |
	       (act == QKC_DO_WRITE_FUA ? QKC_IS_FUA : 0);
}

/* Records of the shim's log in [from, to) to ours. */
static void take_records(struct qkc_log *log, const uint8_t *bytes, uint64_t from, uint64_t to)
{
	while (from + sizeof(struct qkc_record) <= to) {
		struct qkc_record r;
		memcpy(&r, bytes + from, sizeof(r));
		from += sizeof(r);
		qkc_log_add(log, (enum qkc_event_kind)r.kind, r.off, r.len,
			r.kind == QKC_WRITE ? bytes + from : NULL);
		if (r.kind == QKC_WRITE)
			from += r.len;
	}
}

void qkc_peer_run(const struct qkc_plan *p, const char *qemu_io, const char *shim,
	struct qkc_log *log, enum qkc_outcome *outcomes)
{
	struct session s = {0};
	uint64_t *sizes = qkc_need(p->n_steps + 1, sizeof(*sizes));
	int status = 0;
	start(&s, qemu_io, shim);
	for (size_t i = 0; i < p->n_steps; i++) {
		sizes[i] = log_size(); /* before it; what the open wrote comes before the first */
		outcomes[i] = do_step(&s, &p->steps[i], (uint32_t)i + 1) ? QKC_STEP_DONE
									 : QKC_STEP_FAILED;
	}
	sizes[p->n_steps] = log_size();
	(void)fprintf(s.in, "quit\n");
	(void)fclose(s.in);
	(void)close(s.out);
	(void)waitpid(s.pid, &status, 0);
	size_t n = 0;
	uint8_t *bytes = sizes[p->n_steps] != 0 ? qkt_slurp(qkt_path("peer.log"), &n) : NULL;
	take_records(log, bytes, 0, sizes[0]);
	for (size_t i = 0; i < p->n_steps; i++) {
		qkc_log_add(log, QKC_BEGIN, i + 1, 0, NULL);
		take_records(log, bytes, sizes[i], sizes[i + 1]);
		qkc_log_add(log, QKC_END, i + 1,
			qkc_end_flags(p->steps[i].act, outcomes[i] == QKC_STEP_DONE), NULL);
	}
	take_records(log, bytes, sizes[p->n_steps], n);
	free(bytes);
	free(sizes);
}
