/* SPDX-License-Identifier: MIT */
/*
 * qemu-io reads its commands from its standard input and says "qemu-io> " after each, so one process serves all
 * images. It takes a line for each time that its input polls readable, and its buffer would swallow those that
 * came with it: a socket of packets, a line each, gives it one at a time however many are waiting. It runs as nobody in a network of its own, may not gain privileges, and has little of everything.
 */
#include "differ.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROMPT	   "qemu-io> "
#define SAID_MAX   (1U << 20)
#define PATIENCE_S 20
#define REOPENS	   6

struct qemu {
	char *const *argv;
	const char *folder;
	pid_t pid;
	int to, from;
	char *said;
	size_t n_said;
};

static void give_up(const char *what)
{
	perror(what);
	_exit(127);
}

/* Never as root: an image may name what root may write to. */
static void become_nobody(void)
{
	if (geteuid() != 0)
		return;
	const struct passwd *nobody = getpwnam("nobody");
	if (nobody == NULL)
		give_up("nobody");
	if (unshare(CLONE_NEWNET) != 0)
		fprintf(stderr, "no network of its own: %s\n", strerror(errno));
	if (setgroups(0, NULL) != 0 || setgid(nobody->pw_gid) != 0 || setuid(nobody->pw_uid) != 0)
		give_up("setuid");
	if (setuid(0) == 0)
		give_up("still root");
}

static void limit(int what, rlim_t most)
{
	struct rlimit r = {most, most};
	if (setrlimit((__rlimit_resource_t)what, &r) != 0)
		give_up("setrlimit");
}

static void run_qemu(const struct qemu *qemu, int in, int out)
{
	if (chdir(qemu->folder) != 0)
		give_up(qemu->folder);
	become_nobody();
	limit(RLIMIT_AS, (rlim_t)2 << 30);
	limit(RLIMIT_FSIZE, 1 << 20);
	limit(RLIMIT_CORE, 0);
	limit(RLIMIT_CPU, 600);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 ||
		dup2(out, 2) < 0)
		give_up("prctl");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execvp(qemu->argv[0], qemu->argv);
	give_up(qemu->argv[0]);
}

/* What it says until `prompts` prompts have come; false where it ends or is silent for too long. */
static bool listen_for(struct qemu *qemu, unsigned prompts)
{
	size_t scanned = 0;
	qemu->n_said = 0;
	qemu->said[0] = '\0';
	while (prompts > 0) {
		struct pollfd p = {.fd = qemu->from, .events = POLLIN};
		if (qemu->n_said == SAID_MAX || poll(&p, 1, PATIENCE_S * 1000) != 1)
			return false;
		ssize_t got = read(qemu->from, qemu->said + qemu->n_said, SAID_MAX - qemu->n_said);
		if (got <= 0)
			return false;
		qemu->n_said += (size_t)got;
		qemu->said[qemu->n_said] = '\0';
		for (const char *at = strstr(qemu->said + scanned, PROMPT); at && prompts > 0;
			at = strstr(qemu->said + scanned, PROMPT)) {
			scanned = (size_t)(at - qemu->said) + strlen(PROMPT);
			prompts--;
		}
	}
	return true;
}

static void launch(struct qemu *qemu)
{
	int in[2], out[2];
	int bytes = 1 << 18;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, in) != 0 ||
		pipe2(out, O_CLOEXEC) != 0)
		abort();
	fflush(NULL);
	qemu->pid = fork();
	if (qemu->pid < 0)
		abort();
	if (qemu->pid == 0)
		run_qemu(qemu, in[0], out[1]);
	setsockopt(in[1], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	close(in[0]);
	close(out[1]);
	qemu->to = in[1];
	qemu->from = out[0];
	if (!listen_for(qemu, 1)) {
		fprintf(stderr, "differ: %s does not start: %s\n", qemu->argv[0], qemu->said);
		exit(1);
	}
}

static void end_process(struct qemu *qemu)
{
	kill(qemu->pid, SIGKILL);
	waitpid(qemu->pid, NULL, 0);
	close(qemu->to);
	close(qemu->from);
}

struct qemu *qemu_start(char *const *argv, const char *folder)
{
	struct qemu *qemu = calloc(1, sizeof(*qemu));
	if (qemu == NULL)
		abort();
	qemu->argv = argv;
	qemu->folder = folder;
	qemu->said = malloc(SAID_MAX + 1);
	if (qemu->said == NULL)
		abort();
	launch(qemu);
	return qemu;
}

void qemu_stop(struct qemu *qemu)
{
	end_process(qemu);
	free(qemu->said);
	free(qemu);
}

/* ---- commands ---- */

static bool is_uniform(const uint8_t *p, unsigned n)
{
	return n > 0 && memcmp(p, p + 1, n - 1) == 0;
}

static void command(const struct subject *s, const struct reading *ours, unsigned i, FILE *to)
{
	const struct probe *p = &s->probes[i];
	if (ours->outcome[i] == READ && is_uniform(ours->bytes[i], p->len))
		fprintf(to, "read -P %u %llu %u\n", ours->bytes[i][0], (unsigned long long)p->off,
			p->len);
	else
		fprintf(to, "read -v %llu %u\n", (unsigned long long)p->off, p->len);
}

/* A packet for each line. */
static bool send_lines(int fd, const char *text)
{
	for (const char *end = strchr(text, '\n'); end != NULL; end = strchr(text, '\n')) {
		size_t n = (size_t)(end + 1 - text);
		if (send(fd, text, n, MSG_NOSIGNAL) != (ssize_t)n)
			return false;
		text = end + 1;
	}
	return true;
}

/* Open, probes from `first` on, close: what it says to all of it is in qemu->said. */
static bool ask(
	struct qemu *qemu, const struct subject *s, const struct reading *ours, unsigned first)
{
	char *text = NULL;
	size_t n = 0;
	FILE *to = open_memstream(&text, &n);
	if (to == NULL)
		abort();
	fprintf(to, "open -r -o driver=qcow2 %s\n", s->path);
	for (unsigned i = first; i < s->n_probes; i++)
		command(s, ours, i, to);
	fputs("close\n", to);
	fclose(to);
	bool ok = send_lines(qemu->to, text) && listen_for(qemu, s->n_probes - first + 2);
	free(text);
	return ok;
}

/* ---- answers ---- */

/* Lines of read -v: "00000000:  43 43 …  text". */
static bool parse_dump(const char *said, uint8_t *bytes, unsigned len)
{
	unsigned n = 0;
	for (const char *line = said; n < len; line++) {
		const char *at = strchr(line, ':');
		const char *end = strchr(line, '\n');
		if (at == NULL || end == NULL || at > end)
			return false;
		at++;
		for (unsigned i = 0; i < 16 && n < len; i++) {
			char *after;
			bytes[n++] = (uint8_t)strtoul(at, &after, 16);
			if (after == at)
				return false;
			at = after;
		}
		line = end;
	}
	return true;
}

static enum outcome parse_answer(
	const char *said, const struct reading *ours, unsigned i, unsigned len, struct reading *out)
{
	bool uniform = ours->outcome[i] == READ && is_uniform(ours->bytes[i], len);
	if (strstr(said, "No medium found") != NULL || strstr(said, "no file open") != NULL)
		return UNKNOWN;
	const char *failed = strstr(said, "read failed: ");
	if (failed != NULL) {
		snprintf(out->why[i], WHY_MAX, "%.*s", (int)strcspn(failed, "\n"), failed);
		return FAILED;
	}
	if (uniform) {
		memcpy(out->bytes[i], ours->bytes[i], len);
		if (strstr(said, "Pattern verification failed") != NULL)
			out->bytes[i][0] ^= 0xff; /* something else, whatever it is */
		return READ;
	}
	return parse_dump(said, out->bytes[i], len) ? READ : FAILED;
}

/* The answers to one `ask`; gives the first probe that it left open. */
static unsigned parse_answers(struct qemu *qemu, const struct subject *s,
	const struct reading *ours, unsigned first, struct reading *out)
{
	char *at = qemu->said, *next = strstr(at, PROMPT);
	*next = '\0';
	const char *refusal = strstr(at, "an't open device");
	if (refusal != NULL) {
		refusal += strcspn(refusal, ":"); /* past the path */
		snprintf(out->refusal, sizeof(out->refusal), "%.*s", (int)strcspn(refusal, "\n"),
			refusal);
		return s->n_probes;
	}
	out->opened = true;
	for (unsigned i = first; i < s->n_probes; i++) {
		at = next + strlen(PROMPT);
		next = strstr(at, PROMPT);
		*next = '\0';
		out->outcome[i] = parse_answer(at, ours, i, s->probes[i].len, out);
		if (out->outcome[i] == UNKNOWN)
			return i;
	}
	return s->n_probes;
}

void read_qemu(
	struct qemu *qemu, const struct subject *s, const struct reading *ours, struct reading *out)
{
	unsigned first = 0;
	memset(out, 0, offsetof(struct reading, bytes));
	/* where it finds damage, it lets the image go: what comes after is asked of a new open */
	for (unsigned i = 0; i < REOPENS && (i == 0 || first < s->n_probes); i++) {
		if (!ask(qemu, s, ours, first)) {
			out->died = true;
			end_process(qemu);
			launch(qemu);
			return;
		}
		first = parse_answers(qemu, s, ours, first, out);
	}
}
