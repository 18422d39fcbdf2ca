/* SPDX-License-Identifier: MIT */
/*
 * differ: mutated images, read by the library, by the oracle of tests/ and by QEMU. Where two of them say
 * different things of an image or of a range, the difference is on the list in known.c with the reason, or it is
 * a failure.
 *
 * Usage: differ --seed N [--images N] [--seconds N] --work FOLDER [--keep FOLDER] IMAGE... [-- QEMU_IO...]
 * Image n of a run is made from seed N + n alone, so `--seed N+n --images 1` repeats it. FOLDER must be one
 * that nobody may enter; images go there. Without QEMU_IO the oracle alone is compared with.
 */
#include "differ.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../mutate.h"
#include "../qcow2_parse.h"
#include "known.h"

#define IMAGE_MAX (UINT32_C(1) << 18)
#define BASES_MAX 64
#define SHOWN_MAX 40

struct base {
	const char *name;
	uint8_t *data;
	size_t n;
};

struct run {
	uint64_t seed, images;
	double seconds;
	const char *work, *keep, *program;
	struct base bases[BASES_MAX];
	unsigned n_bases;
	struct qemu *qemu;
	uint64_t done, probes, agreed, known, unknown, opened, deaths, bad;
	bool current_is_bad;
};

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void stop(const char *what)
{
	perror(what);
	exit(1);
}

/* ---- images ---- */

static void load_base(struct run *run, const char *path)
{
	struct base *base = &run->bases[run->n_bases++];
	FILE *f = fopen(path, "rb");
	base->data = malloc(IMAGE_MAX);
	if (f == NULL || base->data == NULL)
		stop(path);
	base->n = fread(base->data, 1, IMAGE_MAX, f);
	base->name = path;
	fclose(f);
}

static void write_file(const char *path, const void *data, size_t n)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, data, n) != (ssize_t)n)
		stop(path);
	close(fd);
}

static void add_probe(struct subject *s, uint64_t off)
{
	off = off / PROBE_BYTES * PROBE_BYTES;
	if (off >= s->disk_bytes || s->n_probes == PROBES_MAX)
		return;
	uint64_t left = s->disk_bytes - off;
	s->probes[s->n_probes++] = (struct probe){
		off, left < PROBE_BYTES ? (unsigned)left : PROBE_BYTES};
}

/* A sector of every cluster (of every subcluster) of a small disk, else of the first ones; the end; some. */
static void choose_probes(struct subject *s, uint64_t seed)
{
	uint64_t bits = parse_get(s->data, 20, 4);
	uint64_t cluster = bits >= 9 && bits <= 21 ? UINT64_C(1) << bits : 65536;
	uint64_t unit = cluster >= 16384 ? cluster / 32 : cluster;
	s->disk_bytes = s->n >= 32 ? parse_get(s->data, 24, 8) : 0;
	if (s->disk_bytes > UINT64_C(1) << 62)
		s->disk_bytes = 0;
	for (uint64_t i = 0; i < PROBES_MAX - 8; i++)
		add_probe(s, i * unit + parse_below(&seed, unit));
	for (unsigned i = 0; i < 6 && s->disk_bytes != 0; i++)
		add_probe(s, parse_below(&seed, s->disk_bytes));
	if (s->disk_bytes != 0)
		add_probe(s, s->disk_bytes - 1);
}

static const struct base *make_subject(struct run *run, uint64_t seed, struct subject *s)
{
	const struct base *base = &run->bases[parse_below(&seed, run->n_bases)];
	memcpy(s->data, base->data, base->n);
	s->n = base->n;
	for (uint64_t i = 1 + parse_below(&seed, 2); i-- > 0;)
		s->n = mutate_image(s->data, s->n, IMAGE_MAX, parse_random(&seed));
	s->n_probes = 0;
	choose_probes(s, seed);
	write_file(s->path, s->data, s->n);
	return base;
}

/* ---- comparing ---- */

/* A difference: counted, and shown where nothing explains it; true then. */
static bool differs(struct run *run, const char *peer, const char *what, const char *why)
{
	if (known_reason(peer, what, why)) {
		run->known++;
		return false;
	}
	run->unknown++;
	run->current_is_bad = true;
	if (run->bad < SHOWN_MAX)
		printf("  %s: %s: %s\n", peer, what, why);
	return true;
}

static bool same_bytes(
	const struct subject *s, const struct reading *a, const struct reading *b, unsigned i)
{
	return memcmp(a->bytes[i], b->bytes[i], s->probes[i].len) == 0;
}

/* Words for a range of which a peer says something else. QEMU has no words of its own for the end of the disk. */
static const char *explain(const char *peer, const struct subject *s, const struct reading *ours,
	const struct reading *theirs, unsigned i)
{
	if (ours->outcome[i] == FAILED)
		return known_finding(ours->finding[i]);
	if (theirs->outcome[i] == READ)
		return "";
	if (s->probes[i].len < PROBE_BYTES && strcmp(peer, "QEMU") == 0)
		return "the disk ends within the sector";
	return ours->compressed[i] && strstr(theirs->why[i], "read failed") != NULL
		       ? "compressed"
		       : theirs->why[i];
}

static void compare_ranges(struct run *run, const char *peer, const struct subject *s,
	const struct reading *ours, const struct reading *theirs)
{
	char what[WORDS_MAX];
	bool is_bad = false;
	for (unsigned i = 0; i < s->n_probes && !is_bad; i++) { /* one range says enough */
		enum outcome a = ours->outcome[i], b = theirs->outcome[i];
		if (b == UNKNOWN)
			continue;
		run->probes++;
		if (a == b && (a == FAILED || same_bytes(s, ours, theirs, i))) {
			run->agreed++;
			continue;
		}
		snprintf(what, sizeof(what), "%s (offset %llu)",
			a == b	      ? "other bytes"
			: a == FAILED ? "we fail a range"
				      : "it fails a range",
			(unsigned long long)s->probes[i].off);
		is_bad = differs(run, peer, what, explain(peer, s, ours, theirs, i));
	}
}

static void compare(struct run *run, const char *peer, const struct subject *s,
	const struct reading *ours, const struct reading *theirs)
{
	if (theirs->died) {
		run->deaths++;
		return;
	}
	if (ours->opened && theirs->opened) {
		compare_ranges(run, peer, s, ours, theirs);
		return;
	}
	run->probes++;
	if (!ours->opened && !theirs->opened)
		run->agreed++;
	else if (!ours->opened)
		(void)differs(run, peer, "we refuse the image", ours->refusal);
	else
		(void)differs(run, peer, "it refuses the image", theirs->refusal);
}

static void keep_image(const struct run *run, const struct subject *s, uint64_t seed)
{
	char path[4096];
	if (run->keep == NULL)
		return;
	snprintf(path, sizeof(path), "%s/%llu", run->keep, (unsigned long long)seed);
	write_file(path, s->data, s->n);
}

static void try_one(struct run *run, struct subject *s, uint64_t seed)
{
	static struct reading ours, theirs;
	const struct base *base = make_subject(run, seed, s);
	run->current_is_bad = false;
	read_ours(s, &ours);
	run->opened += ours.opened;
	read_oracle(s, &theirs);
	compare(run, "oracle", s, &ours, &theirs);
	if (run->qemu != NULL) {
		read_qemu(run->qemu, s, &ours, &theirs);
		compare(run, "QEMU", s, &ours, &theirs);
	}
	run->done++;
	if (!run->current_is_bad)
		return;
	run->bad++;
	keep_image(run, s, seed);
	if (run->bad > SHOWN_MAX)
		return;
	const char *slash = strrchr(base->name, '/');
	printf("FAILED seed %llu (%s)\n  again: %s --seed %llu --images 1\n",
		(unsigned long long)seed, slash != NULL ? slash + 1 : base->name, run->program,
		(unsigned long long)seed);
}

/* ---- the run ---- */

static void make_canaries(const struct run *run)
{
	static const char *const names[] = {CANARY_NAME, DATA_NAME};
	char path[4096], bytes[CANARY_BYTES];
	memset(bytes, CANARY_BYTE, sizeof(bytes));
	for (unsigned i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "%s/%s", run->work, names[i]);
		write_file(path, bytes, sizeof(bytes));
	}
}

static void check_canaries(const struct run *run)
{
	static const char *const names[] = {CANARY_NAME, DATA_NAME};
	char path[4096], bytes[CANARY_BYTES + 1];
	for (unsigned i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "%s/%s", run->work, names[i]);
		FILE *f = fopen(path, "rb");
		if (f == NULL || fread(bytes, 1, sizeof(bytes), f) != CANARY_BYTES ||
			bytes[0] != CANARY_BYTE ||
			memcmp(bytes, bytes + 1, CANARY_BYTES - 1) != 0) {
			printf("FAILED %s was changed\n1 failed\n", path);
			exit(1);
		}
		fclose(f);
	}
}

static int parse_options(struct run *run, int argc, char **argv)
{
	static const struct option options[] = {{"seed", required_argument, NULL, 's'},
		{"images", required_argument, NULL, 'n'}, {"seconds", required_argument, NULL, 't'},
		{"work", required_argument, NULL, 'w'}, {"keep", required_argument, NULL, 'k'},
		{NULL, 0, NULL, 0}};
	int c;
	while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		if (c == 's')
			run->seed = strtoull(optarg, NULL, 10);
		else if (c == 'n')
			run->images = strtoull(optarg, NULL, 10);
		else if (c == 't')
			run->seconds = strtod(optarg, NULL);
		else if (c == 'w')
			run->work = optarg;
		else if (c == 'k')
			run->keep = optarg;
		else
			exit(2);
	}
	return optind;
}

int main(int argc, char **argv)
{
	static struct run run = {.images = UINT64_MAX, .seconds = 1e9};
	static uint8_t data[IMAGE_MAX + 16];
	char image[4096];
	struct subject s = {.path = image, .data = data};
	run.program = argv[0];
	int i = parse_options(&run, argc, argv);
	for (; i < argc && strcmp(argv[i], "--") != 0 && run.n_bases < BASES_MAX; i++)
		load_base(&run, argv[i]);
	if (run.work == NULL || run.n_bases == 0) {
		fprintf(stderr, "differ: --work FOLDER and images are needed\n");
		return 2;
	}
	snprintf(image, sizeof(image), "%s/image", run.work);
	make_canaries(&run);
	if (i + 1 < argc)
		run.qemu = qemu_start(argv + i + 1, run.work);
	setvbuf(stdout, NULL, _IOLBF, 0);
	double start = now();
	while (run.done < run.images && now() - start < run.seconds)
		try_one(&run, &s, run.seed + run.done);
	if (run.qemu != NULL)
		qemu_stop(run.qemu);
	check_canaries(&run);
	known_print();
	printf("%llu images failed\n", (unsigned long long)run.bad);
	printf("%llu images, %.0f a second, %llu opened; %llu answers compared, %llu equal, %llu "
	       "differ for a "
	       "known reason, %llu for none; a reader died %llu times\n",
		(unsigned long long)run.done, (double)run.done / (now() - start + 1e-9),
		(unsigned long long)run.opened, (unsigned long long)run.probes,
		(unsigned long long)run.agreed, (unsigned long long)run.known,
		(unsigned long long)run.unknown, (unsigned long long)run.deaths);
	return run.unknown != 0 || run.agreed == 0;
}
