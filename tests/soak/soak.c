/* SPDX-License-Identifier: MIT */
/*
 * soak [--writes N] [--seed N] [--threads N] [--unjudged] [--data-files]: a process that writes is killed at random, again
 * and again.
 *
 * A child opens the image with the library and writes, zeroes, discards and flushes from 1 to 4 threads (or
 * N). Before and after each call it says so in a pipe, which the parent reads; after some thousand
 * records the parent kills it. Then the oracle (tests/oracle) checks the file and reads it, and every sector must
 * hold what its last flushed write left, or what any later one was to leave. The library reads the same.
 * Ends after N writes (default 20,000). Every twenty kills there is another image; --data-files: always with a data file.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "host.h"
#include "image.h"
#include "rng.h"

#define SECTOR	   512u
#define DISK_BYTES (UINT64_C(6) << 20)
#define N_SECTORS  (DISK_BYTES / SECTOR)
#define MAX_CALL   (UINT64_C(256) << 10)
#define NEVER	   UINT64_MAX

enum call {
	WRITE,
	ZERO,
	FLUSH
};

/* What the pipe carries: shorter than PIPE_BUF, so that no two mix. */
struct record {
	uint64_t id; /* of the call, > 0; what is written to its sectors */
	uint32_t call, is_end;
	uint32_t first, n; /* sectors */
};

/* A content that a sector may have. */
struct value {
	uint64_t id; /* 0: zeros */
	uint64_t call; /* that writes it */
	uint64_t begin, end; /* places of the records in the pipe; end NEVER: none came */
};

struct sector {
	struct value *values; /* at least one */
	uint32_t n, room;
};

struct flush {
	uint64_t id, begin;
};

struct soak {
	struct qkt_rng rng;
	struct sector *sectors;
	struct flush flushes[64];
	char path[300];
	unsigned cluster_bits, threads;
	bool unjudged, zeros_by_discard, data_files, is_raw_data;
	uint64_t place, next_id, writes, kills, flushed;
};

static void die(const char *what)
{
	printf("FAILED soak: %s\n", what);
	(void)fflush(stdout);
	exit(1);
}

/* ---- contents ---- */

static void stamp(uint8_t *sector, uint64_t id, uint64_t number)
{
	for (uint64_t i = 0; i < SECTOR / 8; i++) {
		uint64_t word = id == 0 ? 0 : id << 24 ^ number << 8 ^ i;
		memcpy(sector + i * 8, &word, 8);
	}
}

/* The id in a sector; NEVER where it is no stamp. */
static uint64_t stamp_of(const uint8_t *sector, uint64_t number)
{
	uint8_t want[SECTOR];
	uint64_t word, id;
	memcpy(&word, sector, 8);
	id = word == 0 ? 0 : (word ^ number << 8) >> 24;
	stamp(want, id, number);
	return memcmp(want, sector, SECTOR) == 0 ? id : NEVER;
}

static struct value *value_of(struct sector *s, uint64_t id)
{
	for (uint32_t i = s->n; i-- > 0;)
		if (s->values[i].id == id)
			return &s->values[i];
	return NULL;
}

static void add_value(struct sector *s, struct value v)
{
	if (s->n == s->room) {
		s->room = s->room != 0 ? s->room * 2 : 2;
		s->values = realloc(s->values, s->room * sizeof(*s->values));
		if (s->values == NULL)
			abort();
	}
	s->values[s->n++] = v;
}

/* Everything that ended before the place `begin` is durable: what was overwritten before is gone. */
static void settle(struct sector *s, uint64_t begin)
{
	uint64_t newest = 0; /* the latest begin of what is durable */
	for (uint32_t i = 0; i < s->n; i++)
		if (s->values[i].end < begin && s->values[i].begin > newest)
			newest = s->values[i].begin;
	uint32_t kept = 0;
	for (uint32_t i = 0; i < s->n; i++)
		if (s->values[i].end >= newest)
			s->values[kept++] = s->values[i];
	s->n = kept;
}

/* ---- the child ---- */

struct worker {
	struct soak *k;
	struct qcow_image *image;
	int fd;
	uint64_t id; /* the next, then + threads */
	struct qkt_rng rng;
};

static void say(const struct worker *w, struct record r, bool is_end)
{
	r.is_end = is_end;
	if (write(w->fd, &r, sizeof(r)) != (ssize_t)sizeof(r))
		abort();
}

static void must(enum qcow_status st, const struct qcow_error *err, const char *call)
{
	if (st == QCOW_OK)
		return;
	(void)fprintf(stderr, "%s: %s\n", call, err->message);
	abort();
}

static void write_some(struct worker *w, struct record r, uint8_t *buf)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	unsigned flags = qkt_rng_below(&w->rng, 50) == 0 ? QCOW_IO_FUA : 0;
	for (uint32_t i = 0; i < r.n; i++)
		stamp(buf + i * SECTOR, r.id, r.first + i);
	must(qcow_pwrite(w->image, buf, r.n * SECTOR, (uint64_t)r.first * SECTOR, flags, &err),
		&err, "write");
}

/* Zeros by zero, with and without unmap, or of whole clusters by discard. */
static void zero_some(struct worker *w, struct record r)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t off = (uint64_t)r.first * SECTOR, len = (uint64_t)r.n * SECTOR;
	uint64_t mask = (UINT64_C(1) << w->k->cluster_bits) - 1;
	bool is_whole = (off & mask) == 0 && (len & mask) == 0;
	if (is_whole && w->k->zeros_by_discard && qkt_rng_below(&w->rng, 2))
		must(qcow_discard(w->image, off, len, 0, &err), &err, "discard");
	else
		must(qcow_zero(w->image, off, len, qkt_rng_below(&w->rng, 2) ? QCOW_IO_UNMAP : 0,
			     &err),
			&err, "zero");
}

static struct record choose(struct worker *w)
{
	struct record r = {.id = w->id};
	uint64_t what = qkt_rng_below(&w->rng, 100);
	uint64_t per_cluster = (UINT64_C(1) << w->k->cluster_bits) / SECTOR;
	r.call = what < 70 ? WRITE : what < 90 ? ZERO : FLUSH;
	if (r.call == FLUSH)
		return r;
	uint64_t most = qkt_rng_below(&w->rng, 20) == 0 ? MAX_CALL / SECTOR : 16;
	r.n = 1 + (uint32_t)qkt_rng_below(&w->rng, most);
	r.first = (uint32_t)qkt_rng_below(&w->rng, N_SECTORS - r.n + 1);
	if (r.call == ZERO && qkt_rng_below(&w->rng, 2) && per_cluster <= MAX_CALL / SECTOR) {
		r.first = r.first / (uint32_t)per_cluster * (uint32_t)per_cluster;
		r.n = (uint32_t)per_cluster;
	}
	return r;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *buf = malloc(MAX_CALL);
	if (buf == NULL)
		abort();
	for (;; w->id += w->k->threads) {
		struct record r = choose(w);
		say(w, r, false);
		if (r.call == WRITE)
			write_some(w, r, buf);
		else if (r.call == ZERO)
			zero_some(w, r);
		else
			must(qcow_flush(w->image, &err), &err, "flush");
		say(w, r, true);
	}
	return NULL;
}

static void child(struct soak *k, int fd, uint64_t seed)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	struct qkt_image_options opt = {.threads = k->threads > 1, .unjudged = k->unjudged};
	struct worker workers[16];
	pthread_t threads[16];
	if (qkt_rng_below(&k->rng, 3) == 0)
		opt.stage_bytes = 4096;
	opt.discard = (uint32_t)qkt_rng_below(&k->rng, 8);
	must(qkt_image_open(&im, k->path, &opt, &err), &err, "open");
	for (unsigned i = 0; i < k->threads; i++) {
		workers[i] = (struct worker){
			k, im.image, fd, k->next_id + i, qkt_rng_fixed(seed + i)};
		if (pthread_create(&threads[i], NULL, work, &workers[i]) != 0)
			abort();
	}
	for (unsigned i = 0; i < k->threads; i++)
		(void)pthread_join(threads[i], NULL);
}

/* ---- the parent ---- */

static void began(struct soak *k, const struct record *r)
{
	if (r->call == FLUSH) {
		for (unsigned i = 0; i < 64; i++)
			if (k->flushes[i].id == 0) {
				k->flushes[i] = (struct flush){r->id, k->place};
				return;
			}
		abort();
	}
	k->writes++;
	uint64_t id = r->call == ZERO ? 0 : r->id;
	for (uint32_t i = 0; i < r->n; i++)
		add_value(&k->sectors[r->first + i], (struct value){id, r->id, k->place, NEVER});
}

static void ended(struct soak *k, const struct record *r)
{
	if (r->call != FLUSH) {
		for (uint32_t i = 0; i < r->n; i++) {
			struct sector *s = &k->sectors[r->first + i];
			for (uint32_t j = s->n; j-- > 0;)
				if (s->values[j].call == r->id)
					s->values[j].end = k->place;
		}
		return;
	}
	k->flushed++;
	for (unsigned i = 0; i < 64; i++)
		if (k->flushes[i].id == r->id) {
			for (uint64_t s = 0; s < N_SECTORS; s++)
				if (k->sectors[s].n > 1)
					settle(&k->sectors[s], k->flushes[i].begin);
			k->flushes[i].id = 0;
		}
}

static void follow(struct soak *k, int fd, pid_t pid, uint64_t n_records)
{
	struct record r;
	uint64_t n = 0;
	ssize_t got;
	size_t have = 0;
	while ((got = read(fd, (uint8_t *)&r + have, sizeof(r) - have)) > 0) {
		have += (size_t)got;
		if (have < sizeof(r))
			continue;
		have = 0;
		k->place++;
		if (r.id >= k->next_id)
			k->next_id = r.id + 1;
		if (r.is_end)
			ended(k, &r);
		else
			began(k, &r);
		if (++n == n_records)
			(void)kill(pid, SIGKILL);
	}
}

/* The library reads what the oracle reads. */
static void we_read_the_same(struct soak *k, const uint8_t *want)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	struct qkt_image_options opt = {.read_only = true};
	uint8_t *buf = malloc(DISK_BYTES);
	if (buf == NULL || qkt_image_open(&im, k->path, &opt, &err) != QCOW_OK ||
		qcow_pread(im.image, buf, DISK_BYTES, 0, &err) != QCOW_OK)
		die(err.message);
	if (memcmp(buf, want, DISK_BYTES) != 0)
		die("the library reads other bytes than the oracle");
	qkt_image_close(&im);
	free(buf);
}

/* Who reads the raw data file alone reads the same. */
static void raw_data_is(const uint8_t *want)
{
	size_t n = 0;
	uint8_t *bytes = qkt_slurp(qkt_path("data"), &n);
	if (n != DISK_BYTES || memcmp(bytes, want, DISK_BYTES) != 0)
		die("the raw data file is not the disk");
	free(bytes);
}

static void judge(struct soak *k)
{
	size_t n = 0;
	int status = qkt_run("%s check %s", getenv("ORACLE"), k->path);
	if (status != 0 && status != 3) {
		printf("after kill %" PRIu64 ":\n%s%s", k->kills, qkt_stdout(), qkt_stderr());
		die("the oracle finds corruption");
	}
	qkt_must("rm -f dump; %s read %s -o dump", getenv("ORACLE"), k->path);
	uint8_t *bytes = qkt_slurp(qkt_path("dump"), &n);
	if (n != DISK_BYTES)
		die("a disk of another size");
	for (uint64_t s = 0; s < N_SECTORS; s++) {
		uint64_t id = stamp_of(bytes + s * SECTOR, s);
		if (id == NEVER || value_of(&k->sectors[s], id) == NULL) {
			printf("sector %" PRIu64 " after kill %" PRIu64 " holds write %" PRId64
			       "; allowed:",
				s, k->kills, (int64_t)id);
			for (uint32_t i = 0; i < k->sectors[s].n; i++)
				printf(" %" PRIu64, k->sectors[s].values[i].id);
			printf("\n");
			die("a sector that no order of the writes allows");
		}
		k->sectors[s].n = 0;
		add_value(&k->sectors[s], (struct value){.id = id});
	}
	we_read_the_same(k, bytes);
	if (k->is_raw_data)
		raw_data_is(bytes);
	free(bytes);
	if (k->kills % 10 == 0) {
		status = qkt_run("qemu-img check -f qcow2 %s", k->path);
		if (status != 0 && status != 3)
			die("qemu-img finds corruption");
	}
}

static void round_of(struct soak *k)
{
	int fds[2], status = 0;
	uint64_t n_records = 50 + qkt_rng_below(&k->rng, qkt_rng_below(&k->rng, 2) ? 1000 : 20000);
	uint64_t seed = qkt_rng_next(&k->rng);
	(void)fflush(stdout);
	if (pipe(fds) != 0)
		abort();
	pid_t pid = fork();
	if (pid == 0) {
		(void)close(fds[0]);
		child(k, fds[1], seed);
		_exit(0);
	}
	(void)close(fds[1]);
	follow(k, fds[0], pid, n_records);
	(void)close(fds[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		die("the writing process ended by itself");
	k->kills++;
	memset(k->flushes, 0, sizeof(k->flushes));
	judge(k);
}

/* Another image; the sectors of a backing file are stamped too. */
static void make_image(struct soak *k)
{
	static const unsigned bits[] = {9, 12, 16, 16, 21};
	unsigned version = qkt_rng_below(&k->rng, 4) == 0 && !k->data_files ? 2 : 3;
	bool has_data_file = version == 3 && (qkt_rng_below(&k->rng, 3) == 0 || k->data_files);
	k->is_raw_data = has_data_file && qkt_rng_below(&k->rng, 2) == 0;
	bool has_backing = qkt_rng_below(&k->rng, 3) == 0 && !k->is_raw_data,
	     has_snapshot = qkt_rng_below(&k->rng, 3) == 0 && !has_data_file;
	char data_file[400] = "";
	k->cluster_bits = bits[qkt_rng_below(&k->rng, 5)];
	k->zeros_by_discard = version == 3 || !has_backing;
	qkt_must("rm -f image data base base.raw");
	(void)snprintf(k->path, sizeof(k->path), "%s/image", qkt_dir());
	FILE *f = fopen(qkt_path("base.raw"), "wb");
	uint8_t b[SECTOR];
	if (f == NULL)
		abort();
	for (uint64_t s = 0; s < N_SECTORS; s++) {
		uint64_t id = has_backing && s % 3 != 0 ? k->next_id : 0;
		stamp(b, id, s);
		(void)fwrite(b, 1, SECTOR, f);
		k->sectors[s].n = 0;
		add_value(&k->sectors[s], (struct value){.id = id});
	}
	if (fclose(f) != 0)
		abort();
	k->next_id++;
	/* the library takes names as they are recorded */
	if (has_data_file)
		(void)snprintf(data_file, sizeof(data_file), ",data_file=%s%s", qkt_path("data"),
			k->is_raw_data ? ",data_file_raw=on" : "");
	qkt_must("qemu-img create -q -f qcow2 -o compat=%s,cluster_size=%u%s %s image %" PRIu64,
		version == 2 ? "0.10" : "1.1", 1u << k->cluster_bits, data_file,
		has_backing ? "-F raw -b base.raw" : "", DISK_BYTES);
	if (has_snapshot)
		qkt_must("qemu-io -c 'write -q -z 0 1M' image && qemu-img snapshot -c one image");
	for (uint64_t s = 0; has_snapshot && s < (UINT64_C(1) << 20) / SECTOR; s++)
		k->sectors[s].values[0].id = 0;
	if (has_backing)
		qkt_must("qemu-img rebase -u -F raw -b %s/base.raw image", qkt_dir());
}

int main(int argc, char **argv)
{
	struct soak k = {.next_id = 1};
	uint64_t writes = 20000, seed = (uint64_t)time(NULL), started = (uint64_t)time(NULL);
	unsigned threads = 0;
	const char *given = getenv("QK_SEED");
	char dir[PATH_MAX], path[PATH_MAX + 20];
	if (given != NULL)
		seed = strtoull(given, NULL, 0);
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--writes") == 0 && i + 1 < argc)
			writes = strtoull(argv[++i], NULL, 0);
		else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
			seed = strtoull(argv[++i], NULL, 0);
		else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
			threads = (unsigned)strtoul(argv[++i], NULL, 0) % 17;
		else if (strcmp(argv[i], "--unjudged") == 0)
			k.unjudged = true;
		else if (strcmp(argv[i], "--data-files") == 0)
			k.data_files = true;
		else {
			(void)fprintf(stderr, "usage: soak [--writes N] [--seed N] [--threads N] "
					      "[--unjudged] [--data-files]\n");
			return 2;
		}
	}
	qkt_need_program("qemu-img", "qemu-utils");
	if (getenv("ORACLE") == NULL && realpath(argv[0], dir) != NULL) {
		*strrchr(dir, '/') = '\0';
		(void)snprintf(path, sizeof(path), "%s/../oracle/oracle", dir);
		(void)setenv("ORACLE", path, 1);
	}
	printf("seed %" PRIu64 "\n", seed);
	k.rng = qkt_rng_fixed(seed);
	k.sectors = calloc(N_SECTORS, sizeof(*k.sectors));
	if (k.sectors == NULL)
		abort();
	while (k.writes < writes) {
		if (k.kills % 20 == 0)
			make_image(&k);
		k.threads = threads != 0 ? threads : 1 + (unsigned)qkt_rng_below(&k.rng, 4);
		round_of(&k);
	}
	printf("%" PRIu64 " writes, %" PRIu64 " flushes, %" PRIu64 " kills, %" PRIu64 " s: 0 bad\n",
		k.writes, k.flushed, k.kills, (uint64_t)time(NULL) - started);
	printf("1 passed, 0 failed\n");
	for (uint64_t s = 0; s < N_SECTORS; s++)
		free(k.sectors[s].values);
	free(k.sectors);
	return 0;
}
