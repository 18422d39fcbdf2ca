/* SPDX-License-Identifier: MIT */
/*
 * codec: how long the codec alone takes for all data of a disk, with every core: the bound of a
 * compressing or decompressing convert. Works on at most 256 MiB of clusters that are not zero, taken
 * evenly over the disk and held in memory, and scales to all of them.
 *
 * Usage: codec zlib|zstd|unzlib|unzstd DISK
 * Prints microseconds.
 */
#include <qcowkit/qcowkit.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/mem.h"

#define CLUSTER	     ((size_t)65536)
#define MOST_SAMPLES ((size_t)4096)
#define MAX_THREADS  64

struct sample {
	uint8_t *data, *packed;
	size_t packed_bytes; /* 0: does not shrink */
};

struct bench {
	enum qcow_compression compression;
	bool decode;
	struct sample *samples;
	size_t n_samples;
	atomic_size_t next;
	atomic_bool failed;
};

static double now_seconds(void)
{
	struct timespec ts = {0};
	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* One pass over the samples by one thread. */
static void *run(void *arg)
{
	struct bench *bench = arg;
	struct qcow_codec *codec = NULL;
	QK_AUTO_FREE uint8_t *out = qk_malloc(1, CLUSTER);
	if (out == NULL || qcow_codec_new(bench->compression, CLUSTER, -1, &codec, NULL) != QCOW_OK)
		atomic_store(&bench->failed, true);
	while (!atomic_load(&bench->failed)) {
		size_t i = atomic_fetch_add(&bench->next, 1);
		if (i >= bench->n_samples)
			break;
		struct sample *s = &bench->samples[i];
		enum qcow_status status = QCOW_OK;
		if (!bench->decode)
			status = qcow_codec_compress(codec, s->data, out, &s->packed_bytes, NULL);
		else if (s->packed_bytes != 0)
			status = qcow_codec_decompress(
				codec, s->packed, s->packed_bytes, out, NULL);
		if (status != QCOW_OK)
			atomic_store(&bench->failed, true);
	}
	qcow_codec_free(codec);
	return NULL;
}

static double run_all(struct bench *bench)
{
	pthread_t ids[MAX_THREADS];
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	size_t want = cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (size_t)cores, made = 0;
	double start = now_seconds();
	atomic_store(&bench->next, 0);
	while (made + 1 < want && pthread_create(&ids[made], NULL, run, bench) == 0)
		made++;
	(void)run(bench);
	for (size_t i = 0; i < made; i++)
		(void)pthread_join(ids[i], NULL);
	return now_seconds() - start;
}

/* Does the cluster at `off` hold anything? It is read to `buf`. */
static bool read_cluster(int fd, off_t off, uint8_t *buf)
{
	memset(buf, 0, CLUSTER);
	return pread(fd, buf, CLUSTER, off) > 0 && !qk_is_zero(buf, CLUSTER);
}

/* How many clusters hold data; every `step`th of them goes into the samples (step 0: only count). */
static size_t walk(struct bench *bench, int fd, off_t size, size_t step)
{
	QK_AUTO_FREE uint8_t *buf = qk_malloc(1, CLUSTER);
	size_t n = 0;
	for (off_t off = 0; buf != NULL && off < size; off += (off_t)CLUSTER) {
		off_t data = lseek(fd, off, SEEK_DATA);
		if (data < 0)
			break;
		off = data & ~(off_t)(CLUSTER - 1);
		if (!read_cluster(fd, off, buf))
			continue;
		if (step != 0 && n % step == 0 && bench->n_samples < MOST_SAMPLES) {
			struct sample *s = &bench->samples[bench->n_samples];
			s->data = qk_malloc(1, CLUSTER);
			if (s->data == NULL)
				return n;
			memcpy(s->data, buf, CLUSTER);
			bench->n_samples++;
		}
		n++;
	}
	return n;
}

/* Compress every sample for the decoders. */
static bool pack(struct bench *bench)
{
	struct qcow_codec *codec = NULL;
	if (qcow_codec_new(bench->compression, CLUSTER, -1, &codec, NULL) != QCOW_OK)
		return false;
	bool ok = true;
	for (size_t i = 0; i < bench->n_samples && ok; i++) {
		struct sample *s = &bench->samples[i];
		s->packed = qk_malloc(1, CLUSTER);
		ok = s->packed != NULL && qcow_codec_compress(codec, s->data, s->packed,
						  &s->packed_bytes, NULL) == QCOW_OK;
	}
	qcow_codec_free(codec);
	return ok;
}

static void release(struct bench *bench)
{
	for (size_t i = 0; bench->samples != NULL && i < bench->n_samples; i++) {
		free(bench->samples[i].data);
		free(bench->samples[i].packed);
	}
	free(bench->samples);
}

int main(int argc, char **argv)
{
	struct bench bench = {0};
	struct stat st;
	int fd = argc == 3 ? open(argv[2], O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0 || fstat(fd, &st) != 0) {
		(void)fprintf(stderr, "usage: codec zlib|zstd|unzlib|unzstd DISK\n");
		return 1;
	}
	bench.decode = strncmp(argv[1], "un", 2) == 0;
	bench.compression = strstr(argv[1], "zstd") != NULL ? QCOW_COMPRESSION_ZSTD
							    : QCOW_COMPRESSION_ZLIB;
	bench.samples = qk_calloc(MOST_SAMPLES, sizeof(*bench.samples));
	size_t n = walk(&bench, fd, st.st_size, 0);
	bool ok = bench.samples != NULL && n > 0;
	if (ok)
		(void)walk(&bench, fd, st.st_size, n / MOST_SAMPLES + 1);
	ok = ok && bench.n_samples > 0 && (!bench.decode || pack(&bench));
	double took = ok ? run_all(&bench) : 0;
	ok = ok && !atomic_load(&bench.failed);
	if (ok)
		(void)printf("%.0f\n", took * 1e6 * (double)n / (double)bench.n_samples);
	release(&bench);
	(void)close(fd);
	return ok ? 0 : 1;
}
