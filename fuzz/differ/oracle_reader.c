/* SPDX-License-Identifier: MIT */
/*
 * The oracle ends its process where it refuses. Here it ends a thread, in a child of ours that takes its memory
 * along; the next range is read by another thread, which opens the image anew, for the caches hold whatever they
 * held then.
 */
#include "differ.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../tests/oracle/oracle.h"

static char refusal[WORDS_MAX];

_Noreturn void refuse(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(refusal, sizeof(refusal), format, args);
	va_end(args);
	pthread_exit(refusal);
}

/* Backing files are the canary, or there are none. */
static void read_backing(const struct image *img, const struct probe *probe, uint8_t *buf)
{
	memset(buf, 0, probe->len);
	if (!img->backing)
		return;
	if (strcmp(img->backing, CANARY_NAME) != 0 && strcmp(img->backing, DATA_NAME) != 0)
		refuse("a backing file '%s'", img->backing);
	for (unsigned i = 0; i < probe->len && probe->off + i < CANARY_BYTES; i++)
		buf[i] = CANARY_BYTE;
}

static void read_probe(struct image *img, const struct probe *probe, uint8_t *buf)
{
	struct view view = image_view(img, NULL);
	for (unsigned done = 0; done < probe->len;) {
		struct probe rest = {probe->off + done, probe->len - done};
		struct run run = resolve(img, &view, rest.off);
		if (run.bytes < rest.len)
			rest.len = (unsigned)run.bytes;
		if (run.kind == UNALLOCATED || run.kind == RESERVED)
			read_backing(img, &rest, buf + done);
		else
			read_run(img, &run, buf + done, rest.len);
		done += rest.len;
	}
}

/* What a thread works off; it ends early where the oracle refuses. */
struct work {
	const struct subject *subject;
	struct reading *out; /* shared memory */
	unsigned at; /* the probe that it is at */
	bool opened;
};

static void *read_on(void *ctx)
{
	struct work *work = ctx;
	struct image *img = image_open(work->subject->path);
	work->opened = true;
	for (; work->at < work->subject->n_probes; work->at++) {
		read_probe(img, &work->subject->probes[work->at], work->out->bytes[work->at]);
		work->out->outcome[work->at] = READ;
	}
	close(img->file.fd);
	return NULL;
}

static void read_all(const struct subject *subject, struct reading *out)
{
	struct work work = {.subject = subject, .out = out};
	while (work.at < subject->n_probes || !work.opened) {
		pthread_t thread;
		void *refused = NULL;
		if (pthread_create(&thread, NULL, read_on, &work) != 0)
			abort();
		pthread_join(thread, &refused);
		out->opened = work.opened;
		if (!work.opened) {
			memcpy(out->refusal, refusal, sizeof(refusal));
			return;
		}
		if (refused == NULL)
			return;
		out->outcome[work.at] = FAILED;
		memcpy(out->why[work.at], refusal, WHY_MAX - 1);
		work.at++;
	}
}

void read_oracle(const struct subject *subject, struct reading *out)
{
	static struct reading *shared;
	int status = 0;
	if (shared == NULL)
		shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		abort();
	memset(shared, 0, offsetof(struct reading, bytes));
	fflush(NULL);
	pid_t pid = fork();
	if (pid < 0)
		abort();
	if (pid == 0) {
		alarm(20);
		read_all(subject, shared);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	memcpy(out, shared, sizeof(*out));
	out->died = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}
