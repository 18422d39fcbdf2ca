/* SPDX-License-Identifier: MIT */
/*
 * sequence [--seed N] [--count N] [--qemu-only] [--data-files]: random sequences of operations on random images. We and qemu-io
 * take turns on one file; an array of bytes says what it must read as. Every write passes the order
 * checker. Sequence i has the seed N + i and a process of its own; a failure prints the command that repeats it.
 * --qemu-only: without our turns, to judge the bed itself. --data-files: all of version 3 have one.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bed.h"
#include "host.h"
#include "image.h"

#define SECTOR 512u

struct run {
	struct bed bed;
	struct qkt_rng rng;
	struct qkt_image im;
	uint8_t *buf;
	char what[120]; /* the step under way */
	bool is_full; /* the store said so: later steps may fail alike */
};

static void die(const struct run *r, const char *why, const struct qcow_error *err)
{
	printf("%s: %s%s%s\n", r->what, why, err != NULL ? ": " : "",
		err != NULL ? err->message : "");
	(void)fflush(stdout);
	abort();
}

static void begin(struct run *r)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image_options opt = {.is_fixed = r->bed.c.is_fixed,
		.passphrase = r->bed.c.crypt != NULL ? BED_PASSPHRASE : NULL};
	if (qkt_rng_below(&r->rng, 4) == 0)
		opt.stage_bytes = 1;
	/* every second one passes nothing on; version 2 has no zero clusters that could keep theirs */
	opt.discard = (uint32_t)qkt_rng_below(&r->rng, 32);
	opt.discard &= opt.discard < 16 ? 0 : r->bed.c.version == 2 ? 7 : 15;
	opt.prove = (enum qcow_prove)qkt_rng_below(&r->rng, 2);
	(void)snprintf(r->what, sizeof(r->what), "open");
	if (qkt_image_open(&r->im, r->bed.path, &opt, &err) != QCOW_OK)
		die(r, "failed", &err);
}

/* Is the sector at `off` of the read as it was (in `old`)? */
static bool is_old(const struct run *r, const uint8_t *old, size_t off, size_t len)
{
	return memcmp(r->buf + off, old + off, len) == 0;
}

/* After a step that may have done any of its sectors: each is old or new, take it over. `old` is the disk
 * before, the array is what it was to become. */
static void take_over(struct run *r, const uint8_t *old)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bed *bed = &r->bed;
	if (qcow_pread(r->im.image, r->buf, bed->c.size, 0, &err) != QCOW_OK)
		die(r, "reading after it failed", &err);
	for (size_t off = 0; off < bed->c.size; off += SECTOR) {
		size_t len = bed->c.size - off < SECTOR ? bed->c.size - off : SECTOR;
		if (memcmp(r->buf + off, bed->bytes + off, len) == 0)
			continue;
		if (!is_old(r, old, off, len))
			die(r, "a sector is neither old nor new after it failed", NULL);
		memcpy(bed->bytes + off, old + off, len);
	}
}

/* What a step answered: on success the array is right; out of space, or not fast, some of it was done. */
static void judge(struct run *r, enum qcow_status st, const uint8_t *old, bool may_refuse,
	const struct qcow_error *err)
{
	bool is_full = st == QCOW_E_NOSPC && r->bed.c.is_fixed;
	r->is_full = r->is_full || is_full;
	if (st == QCOW_OK)
		return;
	if (!is_full && !(st == QCOW_E_NOTSUP && may_refuse))
		die(r, "failed", err);
	take_over(r, old);
}

static uint8_t *copy_of_disk(const struct run *r)
{
	uint8_t *old = malloc(r->bed.c.size);
	if (old == NULL)
		abort();
	memcpy(old, r->bed.bytes, r->bed.c.size);
	return old;
}

static void new_bytes(struct run *r, size_t len)
{
	if (qkt_rng_below(&r->rng, 8) == 0)
		memset(r->buf, 0, len);
	else
		qkt_rng_fill(&r->rng, r->buf, len);
}

static unsigned some_fua(struct run *r)
{
	return qkt_rng_below(&r->rng, 8) == 0 ? QCOW_IO_FUA : 0;
}

static void do_write(struct run *r, size_t off, size_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *old = copy_of_disk(r);
	new_bytes(r, len);
	bed_touch(&r->bed, off, len);
	(void)snprintf(r->what, sizeof(r->what), "write %zu %zu", off, len);
	memcpy(r->bed.bytes + off, r->buf, len);
	judge(r, qcow_pwrite(r->im.image, r->buf, len, off, some_fua(r), &err), old, false, &err);
	free(old);
}

/* Whole clusters, or up to the end of the disk. */
static void do_write_compressed(struct run *r, size_t off, size_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t cluster = (size_t)1 << r->bed.c.cluster_bits, size = r->bed.c.size;
	if (!r->bed.c.may_compress)
		return;
	size_t end = (off + len + cluster - 1) / cluster * cluster;
	off = off / cluster * cluster;
	len = (end < size ? end : size) - off;
	uint8_t *old = copy_of_disk(r);
	new_bytes(r, len);
	/* half of it compresses well */
	if (qkt_rng_below(&r->rng, 3) != 0)
		memset(r->buf, 0x5c, len / 2);
	bed_touch(&r->bed, off, len);
	(void)snprintf(r->what, sizeof(r->what), "compressed write %zu %zu", off, len);
	memcpy(r->bed.bytes + off, r->buf, len);
	judge(r, qcow_write_compressed(r->im.image, r->buf, len, off, some_fua(r), &err), old,
		false, &err);
	free(old);
}

/* 1 to 5 buffers, some of them empty. */
static int split(struct run *r, struct iovec *iov, size_t len)
{
	int n = 0;
	size_t at = 0;
	for (; n < 4; n++) {
		size_t part = (size_t)qkt_rng_below(&r->rng, len - at + 1);
		iov[n] = (struct iovec){r->buf + at, part};
		at += part;
	}
	iov[n++] = (struct iovec){r->buf + at, len - at};
	return n;
}

static void do_writev(struct run *r, size_t off, size_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct iovec iov[5];
	uint8_t *old = copy_of_disk(r);
	new_bytes(r, len);
	int n = split(r, iov, len);
	bed_touch(&r->bed, off, len);
	(void)snprintf(r->what, sizeof(r->what), "writev %zu %zu", off, len);
	memcpy(r->bed.bytes + off, r->buf, len);
	judge(r, qcow_pwritev(r->im.image, iov, n, off, some_fua(r), &err), old, false, &err);
	free(old);
}

static void do_zero(struct run *r, size_t off, size_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	unsigned flags = some_fua(r);
	uint8_t *old = copy_of_disk(r);
	if (qkt_rng_below(&r->rng, 2))
		flags |= QCOW_IO_UNMAP;
	if (qkt_rng_below(&r->rng, 4) == 0)
		flags |= QCOW_IO_FAST;
	bed_touch(&r->bed, off, len);
	(void)snprintf(r->what, sizeof(r->what), "zero %zu %zu flags %u", off, len, flags);
	memset(r->bed.bytes + off, 0, len);
	judge(r, qcow_zero(r->im.image, off, len, flags, &err), old, (flags & QCOW_IO_FAST) != 0,
		&err);
	free(old);
}

static void do_discard(struct run *r, size_t off, size_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *old = copy_of_disk(r);
	size_t cluster = (size_t)1 << r->bed.c.cluster_bits, end = off + len;
	size_t first = (off + cluster - 1) / cluster * cluster;
	if (end != r->bed.c.size)
		end = end / cluster * cluster;
	bed_touch(&r->bed, off, len);
	(void)snprintf(r->what, sizeof(r->what), "discard %zu %zu", off, len);
	if (first < end && (r->bed.c.version >= 3 || r->bed.c.n_layers == 1))
		memset(r->bed.bytes + first, 0, end - first);
	judge(r, qcow_discard(r->im.image, off, len, some_fua(r), &err), old, false, &err);
	free(old);
}

static void do_read(struct run *r, size_t off, size_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct iovec iov[5];
	(void)snprintf(r->what, sizeof(r->what), "read %zu %zu", off, len);
	memset(r->buf, 0x5a, len);
	if (qcow_preadv(r->im.image, iov, split(r, iov, len), off, &err) != QCOW_OK)
		die(r, "failed", &err);
	for (size_t i = 0; i < len; i++)
		if (r->buf[i] != r->bed.bytes[off + i]) {
			printf("byte %zu is 0x%02x, not 0x%02x\n", off + i, r->buf[i],
				r->bed.bytes[off + i]);
			die(r, "wrong bytes", NULL);
		}
}

static void do_map(struct run *r, size_t off, size_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_extent e;
	size_t end = off + len;
	(void)snprintf(r->what, sizeof(r->what), "map %zu %zu", off, len);
	for (; off < end; off += (size_t)e.len) {
		if (qcow_map(r->im.image, off, end - off, UINT32_MAX, &e, &err) != QCOW_OK)
			die(r, "failed", &err);
		if (e.off != off || e.len == 0 || e.len > end - off)
			die(r, "an extent of a wrong shape", NULL);
		for (size_t i = 0; (e.flags & QCOW_EXTENT_ZERO) != 0 && i < e.len; i++)
			if (r->bed.bytes[off + i] != 0)
				die(r, "an extent is said to be zero and is not", NULL);
	}
}

static void do_flush(struct run *r)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	(void)snprintf(r->what, sizeof(r->what), "flush");
	enum qcow_status st = qcow_flush(r->im.image, &err);
	if (st != QCOW_OK && !(st == QCOW_E_NOSPC && r->is_full))
		die(r, "failed", &err);
}

static void step(struct run *r)
{
	size_t off = 0, len = 0;
	size_t most = qkt_rng_below(&r->rng, 6) == 0 ? r->bed.c.size
						     : (size_t)3 << r->bed.c.cluster_bits;
	unsigned what = (unsigned)qkt_rng_below(&r->rng, 100);
	bed_range(&r->bed, qkt_rng_below(&r->rng, 2) != 0, most, &off, &len);
	if (len == 0)
		return;
	if (what < 28)
		do_write(r, off, len);
	else if (what < 34)
		do_write_compressed(r, off, len);
	else if (what < 44)
		do_writev(r, off, len);
	else if (what < 58)
		do_zero(r, off, len);
	else if (what < 68)
		do_discard(r, off, len);
	else if (what < 80)
		do_read(r, off, len);
	else if (what < 84)
		do_map(r, off, len);
	else if (what < 94)
		do_flush(r);
	else {
		do_flush(r);
		qkt_image_close(&r->im);
		begin(r);
	}
}

static void our_turn(struct run *r)
{
	begin(r);
	for (unsigned i = 4 + (unsigned)qkt_rng_below(&r->rng, 30); i > 0; i--)
		step(r);
	do_read(r, 0, r->bed.c.size);
	do_flush(r);
	qkt_image_close(&r->im);
	(void)snprintf(r->what, sizeof(r->what), "after our turn");
	bed_check(&r->bed, false, r->is_full);
}

struct options {
	bool qemu_only, data_files;
};

static void sequence(uint64_t seed, const struct options *options)
{
	struct run r = {.rng = qkt_rng_fixed(seed)};
	struct bed_config c = bed_config_random(&r.rng, options->data_files);
	bed_config_print(&c);
	bed_make(&r.bed, &c, &r.rng);
	r.buf = malloc(c.size);
	if (r.buf == NULL)
		abort();
	for (unsigned turn = 0; turn < 4; turn++) {
		if (!options->qemu_only)
			our_turn(&r);
		if (!c.is_fixed)
			bed_qemu_steps(&r.bed, 1 + (unsigned)qkt_rng_below(&r.rng, 5));
		if (c.n_snapshots != 0 && qkt_rng_below(&r.rng, 3) == 0 && !c.is_fixed)
			bed_snapshot(&r.bed);
	}
	bed_check(&r.bed, true, r.is_full);
	free(r.buf);
	bed_free(&r.bed);
}

/* In a process of its own, its output kept; true: it passed. */
static bool passes(uint64_t seed, const struct options *options, const char *program)
{
	(void)fflush(stdout);
	pid_t pid = fork();
	int status = 0;
	if (pid == 0) {
		if (freopen(qkt_path("output"), "w", stdout) == NULL ||
			dup2(STDOUT_FILENO, STDERR_FILENO) < 0)
			_exit(99);
		(void)setvbuf(stdout, NULL, _IONBF, 0);
		sequence(seed, options);
		_exit(0);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return true;
	printf("FAILED sequence %" PRIu64 "\n", seed);
	size_t n = 0;
	uint8_t *said = qkt_slurp(qkt_path("output"), &n);
	(void)fwrite(said, 1, n, stdout);
	free(said);
	printf("  again: ORACLE=%s %s --seed %" PRIu64 " --count 1%s\n", getenv("ORACLE"), program,
		seed, options->data_files ? " --data-files" : "");
	return false;
}

/* Beside us in the build folder, unless the environment says where. */
static void find_oracle(const char *program)
{
	char dir[PATH_MAX], path[PATH_MAX + 20];
	if (getenv("ORACLE") != NULL || realpath(program, dir) == NULL)
		return;
	*strrchr(dir, '/') = '\0';
	(void)snprintf(path, sizeof(path), "%s/../oracle/oracle", dir);
	(void)setenv("ORACLE", path, 1);
}

int main(int argc, char **argv)
{
	const char *given = getenv("QK_SEED");
	uint64_t seed = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
	unsigned long count = 20, passed = 0, failed = 0;
	struct options options = {0};
	for (int i = 1; i < argc; i++) {
		bool has_value = i + 1 < argc;
		if (strcmp(argv[i], "--seed") == 0 && has_value)
			seed = strtoull(argv[++i], NULL, 0);
		else if (strcmp(argv[i], "--count") == 0 && has_value)
			count = strtoul(argv[++i], NULL, 0);
		else if (strcmp(argv[i], "--qemu-only") == 0)
			options.qemu_only = true;
		else if (strcmp(argv[i], "--data-files") == 0)
			options.data_files = true;
		else {
			(void)fprintf(stderr, "usage: sequence [--seed N] [--count N] "
					      "[--qemu-only] [--data-files]\n");
			return 2;
		}
	}
	qkt_need_program("qemu-img", "qemu-utils");
	find_oracle(argv[0]);
	(void)qkt_dir();
	printf("seed %" PRIu64 "\n", seed);
	for (unsigned long i = 0; i < count; i++) {
		if (passes(seed + i, &options, argv[0]))
			passed++;
		else
			failed++;
	}
	printf("%lu passed, %lu failed\n", passed, failed);
	return failed == 0 ? 0 : 1;
}
