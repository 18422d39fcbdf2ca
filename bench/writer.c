/* SPDX-License-Identifier: MIT */
/*
 * writer FILE COUNT SIZE STEP THREADS FLUSH [PASSPHRASE]: what `qemu-img bench -w` does, by the library: COUNT writes of SIZE
 * bytes, each STEP bytes behind the one before, around the disk; from so many threads; a flush every
 * FLUSH writes (0: none but the last). Prints the seconds that the writes took, opening not counted.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <qcowkit/qcowkit.h>

struct bench {
	struct qcow_image *image;
	uint64_t count, size, step, flush, disk;
	_Atomic uint64_t next;
};

static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	(void)ctx;
	out->format = ref->format;
	return qcow_file_open(
		ref->name, ref->kind == QCOW_REF_DATA_FILE ? QCOW_FILE_WRITE : 0, &out->store, err);
}

static void must(enum qcow_status st, const struct qcow_error *err)
{
	if (st == QCOW_OK)
		return;
	(void)fprintf(stderr, "writer: %s\n", err->message);
	exit(1);
}

static void *work(void *arg)
{
	struct bench *b = arg;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t places = b->disk / b->size * b->size;
	uint8_t *buf = malloc(b->size);
	if (buf == NULL)
		exit(1);
	memset(buf, 0x5a, b->size);
	for (;;) {
		uint64_t i = atomic_fetch_add(&b->next, 1);
		if (i >= b->count)
			break;
		must(qcow_pwrite(b->image, buf, b->size, i * b->step % places, 0, &err), &err);
		if (b->flush != 0 && i % b->flush == b->flush - 1)
			must(qcow_flush(b->image, &err), &err);
	}
	free(buf);
	return NULL;
}

static double now(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	struct bench b = {0};
	pthread_t threads[64];
	if (argc != 7 && argc != 8) {
		(void)fprintf(
			stderr, "usage: writer FILE COUNT SIZE STEP THREADS FLUSH [PASSPHRASE]\n");
		return 2;
	}
	b.count = strtoull(argv[2], NULL, 0);
	b.size = strtoull(argv[3], NULL, 0);
	b.step = strtoull(argv[4], NULL, 0);
	b.flush = strtoull(argv[6], NULL, 0);
	unsigned n = (unsigned)strtoul(argv[5], NULL, 0);
	n = n < 1 ? 1 : n > 64 ? 64 : n;
	open.flags = QCOW_OPEN_WRITE;
	open.resolve = resolve;
	if (argc == 8)
		open.secret = (struct qcow_secret){argv[7], strlen(argv[7])};
	must(qcow_file_open(argv[1], QCOW_FILE_WRITE, &store, &err), &err);
	must(qcow_open(store, &open, &b.image, &err), &err);
	b.disk = qcow_size(b.image);
	if (b.size == 0 || b.size > b.disk)
		return 2;
	double start = now();
	for (unsigned i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, work, &b) != 0)
			return 1;
	for (unsigned i = 0; i < n; i++)
		(void)pthread_join(threads[i], NULL);
	must(qcow_flush(b.image, &err), &err);
	printf("%.6f seconds\n", now() - start);
	qcow_close(b.image);
	return 0;
}
