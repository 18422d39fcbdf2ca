/* SPDX-License-Identifier: MIT */
/*
 * Regular files: what is refused, what is left alone, holes, and random operations against an array
 * of bytes in every mode.
 */
#include "cm.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <qcowkit/store.h>

#include "host.h"
#include "model.h"
#include "rng.h"

#define KIB(n) ((size_t)(n) << 10)
#define MIB(n) ((size_t)(n) << 20)
#define NEW    (QCOW_FILE_WRITE | QCOW_FILE_CREATE)

static struct qcow_error err;

static void skip_case(const char *why)
{
	print_message("SKIP %s\n", why);
	skip();
}

static struct qcow_store *open_file(const char *name, unsigned flags)
{
	struct qcow_store *s = NULL;
	assert_ok(qcow_file_open(qkt_path(name), flags, &s, &err), err);
	return s;
}

static struct qcow_store *open_empty(const char *name, unsigned flags)
{
	(void)unlink(qkt_path(name));
	return open_file(name, NEW | flags);
}

static struct stat stat_of(const char *name)
{
	struct stat st;
	assert_int_equal(stat(qkt_path(name), &st), 0);
	return st;
}

/* ---- opening ---- */

static void a_missing_file_is_named(void **state)
{
	(void)state;
	struct qcow_store *s = NULL;
	assert_status(qcow_file_open(qkt_path("none"), 0, &s, &err), QCOW_E_NOENT, err);
	assert_says(err, "/none: No such file or directory");
	assert_int_equal(err.os_errno, ENOENT);
}

static void exclusive_refuses_what_is_there(void **state)
{
	(void)state;
	struct qcow_store *s = open_empty("there", QCOW_FILE_EXCL);
	qcow_store_close(s);
	assert_status(qcow_file_open(qkt_path("there"), NEW | QCOW_FILE_EXCL, &s, &err),
		QCOW_E_EXIST, err);
	assert_int_equal(stat_of("there").st_size, 0);
}

static void create_keeps_what_is_there(void **state)
{
	(void)state;
	qkt_must("printf content > kept && chmod 0604 kept");
	struct stat before = stat_of("kept");
	struct qcow_store *s = open_file("kept", NEW);
	assert_ok(qcow_store_write(s, "C", 1, 0, &err), err);
	assert_ok(qcow_store_flush(s, &err), err);
	qcow_store_close(s);
	struct stat after = stat_of("kept");
	assert_int_equal(after.st_ino, before.st_ino);
	assert_int_equal(after.st_mode, before.st_mode);
	assert_int_equal(after.st_uid, before.st_uid);
	assert_int_equal(after.st_size, 7);
}

static void a_link_to_nothing_is_filled(void **state)
{
	(void)state;
	qkt_must("ln -s target dangling");
	qcow_store_close(open_file("dangling", NEW));
	assert_int_equal(stat_of("target").st_size, 0);
}

/* Neither opened nor waited for: an alarm ends the test where an open blocks. */
static void refuse(const char *path, const char *word)
{
	static const unsigned flags[] = {0, QCOW_FILE_WRITE, NEW};
	for (size_t i = 0; i < 3; i++) {
		struct qcow_store *s = NULL;
		(void)alarm(60);
		assert_status(qcow_file_open(path, flags[i], &s, &err), QCOW_E_INVAL, err);
		(void)alarm(0);
		assert_says(err, word);
	}
}

static void what_is_no_file_is_refused_without_blocking(void **state)
{
	(void)state;
	qkt_must("mkdir d && mkfifo f");
	refuse(qkt_path("d"), "it is a directory");
	refuse(qkt_path("f"), "it is a FIFO");
	refuse("/dev/null", "it is a character device");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", qkt_path("s"));
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	refuse(qkt_path("s"), "it is a socket");
	(void)close(fd);
}

static void flags_that_contradict_are_refused(void **state)
{
	(void)state;
	static const unsigned bad[] = {QCOW_FILE_CREATE, QCOW_FILE_EXCL | QCOW_FILE_WRITE,
		QCOW_FILE_SHARE | QCOW_FILE_WRITE, 1u << 20};
	for (size_t i = 0; i < 4; i++) {
		struct qcow_store *s = NULL;
		assert_status(
			qcow_file_open(qkt_path("never"), bad[i], &s, &err), QCOW_E_INVAL, err);
	}
	assert_int_not_equal(access(qkt_path("never"), F_OK), 0);
}

static void writing_to_a_reader_is_refused(void **state)
{
	(void)state;
	qcow_store_close(open_empty("ro", 0));
	struct qcow_store *s = open_file("ro", 0);
	assert_status(qcow_store_write(s, "x", 1, 0, &err), QCOW_E_READONLY, err);
	assert_status(qcow_store_truncate(s, 5, &err), QCOW_E_READONLY, err);
	assert_status(qcow_store_zero(s, 0, 5, 0, &err), QCOW_E_READONLY, err);
	assert_status(qcow_store_punch(s, 0, 5, &err), QCOW_E_READONLY, err);
	assert_ok(qcow_store_flush(s, &err), err);
	qcow_store_close(s);
}

static void two_writers_of_one_process_are_kept_apart(void **state)
{
	(void)state;
	struct qcow_store *s = open_empty("twice", 0), *t = NULL;
	assert_status(
		qcow_file_open(qkt_path("twice"), QCOW_FILE_WRITE, &t, &err), QCOW_E_LOCKED, err);
	assert_says(err, "It is locked by this process");
	assert_status(qcow_file_open(qkt_path("twice"), 0, &t, &err), QCOW_E_LOCKED, err);
	qcow_store_close(s);
	qcow_store_close(open_file("twice", QCOW_FILE_WRITE));
}

static void a_refused_open_removes_no_old_file(void **state)
{
	(void)state;
	struct qcow_store *s = open_empty("mine", 0), *t = NULL;
	assert_status(qcow_file_open(qkt_path("mine"), NEW, &t, &err), QCOW_E_LOCKED, err);
	assert_int_equal(access(qkt_path("mine"), F_OK), 0);
	qcow_store_close(s);
}

static void descriptors_are_checked(void **state)
{
	(void)state;
	struct qcow_store *s = NULL;
	int ends[2];
	assert_int_equal(pipe(ends), 0);
	assert_status(qcow_file_open_fd(ends[0], 0, &s, &err), QCOW_E_INVAL, err);
	(void)close(ends[0]);
	(void)close(ends[1]);
	assert_status(qcow_file_open_fd(-1, 0, &s, &err), QCOW_E_IO, err);
	int fd = open(qkt_path("fd"), O_RDWR | O_CREAT | O_APPEND, 0600);
	assert_status(qcow_file_open_fd(fd, QCOW_FILE_WRITE, &s, &err), QCOW_E_INVAL, err);
	assert_says(err, "append");
	(void)close(fd);
	fd = open(qkt_path("fd"), O_RDONLY);
	assert_status(qcow_file_open_fd(fd, QCOW_FILE_WRITE, &s, &err), QCOW_E_READONLY, err);
	assert_status(qcow_file_open_fd(fd, NEW, &s, &err), QCOW_E_INVAL, err);
	(void)close(fd);
	fd = open(qkt_path("fd"), O_WRONLY);
	assert_status(qcow_file_open_fd(fd, 0, &s, &err), QCOW_E_INVAL, err);
	(void)close(fd);
	fd = open(qkt_path("fd"), O_RDWR);
	assert_ok(qcow_file_open_fd(fd, QCOW_FILE_WRITE, &s, &err), err);
	assert_ok(qcow_store_write(s, "abc", 3, 2, &err), err);
	assert_int_equal(qcow_store_fd(s), fd);
	qcow_store_close(s);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	assert_int_equal(stat_of("fd").st_size, 5);
}

/* ---- space ---- */

/* Bytes of [0, size) that extents calls data. */
static uint64_t data_bytes(struct qcow_store *s, uint64_t size)
{
	uint64_t data = 0;
	for (uint64_t off = 0; off < size;) {
		struct qcow_store_extent e;
		assert_ok(qcow_store_extents(s, off, size - off, &e, &err), err);
		assert_true(e.off == off && e.len > 0 && e.len <= size - off);
		data += e.is_hole ? 0 : e.len;
		off += e.len;
	}
	return data;
}

/* Can the file system of the test make and tell holes? */
static bool has_holes(void)
{
	struct qcow_store *s = open_empty("probe", 0);
	static uint8_t buf[MIB(1)];
	memset(buf, 1, sizeof(buf));
	assert_ok(qcow_store_write(s, buf, sizeof(buf), 0, &err), err);
	bool has = qcow_store_punch(s, 0, sizeof(buf), NULL) == QCOW_OK &&
		   data_bytes(s, sizeof(buf)) == 0;
	qcow_store_close(s);
	return has;
}

static void holes_are_found_and_data_is_not_missed(void **state)
{
	(void)state;
	if (!has_holes())
		skip_case("the file system of the test has no holes");
	struct qcow_store *s = open_empty("holes", 0);
	assert_ok(qcow_store_truncate(s, MIB(8), &err), err);
	assert_ok(qcow_store_write(s, "x", 1, MIB(2), &err), err);
	assert_ok(qcow_store_write(s, "y", 1, MIB(5) + 77, &err), err);
	struct qcow_store_extent e;
	assert_ok(qcow_store_extents(s, 0, MIB(8), &e, &err), err);
	assert_true(e.is_hole && e.len == MIB(2));
	assert_ok(qcow_store_extents(s, MIB(2), MIB(8), &e, &err), err);
	assert_true(!e.is_hole && e.len < MIB(1));
	assert_ok(qcow_store_extents(s, MIB(5) + 77, MIB(8), &e, &err), err);
	assert_false(e.is_hole);
	assert_ok(qcow_store_extents(s, MIB(7), MIB(8), &e, &err), err);
	assert_true(e.is_hole && e.len == MIB(1));
	assert_status(qcow_store_extents(s, MIB(8), 1, &e, &err), QCOW_E_RANGE, err);
	assert_true(data_bytes(s, MIB(8)) < KIB(256));
	qcow_store_close(s);
}

static void punching_gives_blocks_back(void **state)
{
	(void)state;
	if (!has_holes())
		skip_case("the file system of the test has no holes");
	struct qcow_store *s = open_empty("punch", 0);
	static uint8_t buf[MIB(4)];
	memset(buf, 1, sizeof(buf));
	assert_ok(qcow_store_write(s, buf, sizeof(buf), 0, &err), err);
	assert_ok(qcow_store_flush(s, &err), err);
	blkcnt_t before = stat_of("punch").st_blocks;
	assert_ok(qcow_store_punch(s, MIB(1), MIB(2), &err), err);
	assert_true(stat_of("punch").st_blocks <= before - (blkcnt_t)(MIB(2) / 512));
	assert_int_equal(stat_of("punch").st_size, MIB(4));
	assert_status(qcow_store_punch(s, MIB(3), MIB(2), &err), QCOW_E_RANGE, err);
	qcow_store_close(s);
}

static void zeroing_past_the_end_extends(void **state)
{
	(void)state;
	struct qcow_store *s = open_empty("zero", 0);
	uint8_t buf[3] = {1, 1, 1}, zero[3] = {0};
	assert_ok(qcow_store_write(s, buf, 3, KIB(4), &err), err);
	assert_ok(qcow_store_zero(s, KIB(4) + 1, MIB(16), 0, &err), err);
	uint64_t size = 0;
	assert_ok(qcow_store_size(s, &size, &err), err);
	assert_int_equal(size, KIB(4) + 1 + MIB(16));
	assert_ok(qcow_store_read(s, buf, 3, KIB(4), &err), err);
	assert_memory_equal(buf, "\1\0\0", 3);
	assert_ok(qcow_store_read(s, buf, 3, size - 3, &err), err);
	assert_memory_equal(buf, zero, 3);
	if (has_holes())
		assert_true(stat_of("zero").st_blocks < (blkcnt_t)(MIB(1) / 512));
	qcow_store_close(s);
}

static void allocating_zeros_takes_blocks(void **state)
{
	(void)state;
	struct qcow_store *s = open_empty("alloc", 0);
	assert_ok(qcow_store_write(s, "xyz", 3, KIB(64), &err), err);
	assert_ok(qcow_store_zero(s, 0, MIB(4), QCOW_ZERO_ALLOCATE, &err), err);
	assert_int_equal(stat_of("alloc").st_size, MIB(4));
	assert_true(stat_of("alloc").st_blocks >= (blkcnt_t)(MIB(4) / 512));
	uint8_t buf[3];
	assert_ok(qcow_store_read(s, buf, 3, KIB(64), &err), err);
	assert_memory_equal(buf, "\0\0", 3);
	qcow_store_close(s);
}

/* ---- reading and writing ---- */

static void three_thousand_buffers_are_one_write(void **state)
{
	(void)state;
	enum {
		N = 3 * IOV_MAX + 7
	};
	static uint8_t out[N * 3], in[N * 3];
	static struct iovec iov[N];
	struct qkt_rng rng = qkt_rng_init(0x696f76);
	struct qcow_store *s = open_empty("iov", 0);
	qkt_rng_fill(&rng, out, sizeof(out));
	size_t at = 0;
	for (size_t i = 0; i < N; i++) {
		size_t n = i == N - 1 ? sizeof(out) - at : (size_t)qkt_rng_below(&rng, 4);
		iov[i] = (struct iovec){out + at, n};
		at += n;
	}
	assert_ok(qcow_store_writev(s, iov, N, 5, &err), err);
	assert_ok(qcow_store_read(s, in, sizeof(in), 5, &err), err);
	assert_memory_equal(in, out, sizeof(in));
	memset(in, 0, sizeof(in));
	for (size_t i = 0; i < N; i++)
		iov[i].iov_base = in + ((uint8_t *)iov[i].iov_base - out);
	assert_ok(qcow_store_readv(s, iov, N, 5, &err), err);
	assert_memory_equal(in, out, sizeof(in));
	qcow_store_close(s);
}

/* The kernel moves at most 2 GiB - 4 KiB a call: the rest starts in the middle of a buffer. */
static void a_read_of_more_than_the_kernel_does_is_continued(void **state)
{
	(void)state;
	enum {
		N = 520
	};
	static uint8_t buf[MIB(4)];
	struct iovec iov[N];
	struct qcow_store *s = open_empty("huge", 0);
	for (size_t i = 0; i < N; i++)
		iov[i] = (struct iovec){buf, i < N - 2 ? sizeof(buf) : KIB(4)};
	uint8_t tail[8] = "the end";
	iov[N - 1] = (struct iovec){tail, sizeof(tail)};
	uint64_t total = (uint64_t)(N - 2) * sizeof(buf) + KIB(4) + sizeof(tail);
	assert_ok(qcow_store_write(s, tail, sizeof(tail), total - sizeof(tail), &err), err);
	memset(tail, 0, sizeof(tail));
	assert_ok(qcow_store_readv(s, iov, N, 0, &err), err);
	assert_string_equal((const char *)tail, "the end");
	qcow_store_close(s);
}

static void a_file_shortened_by_others_fails_precisely(void **state)
{
	(void)state;
	struct qcow_store *s = open_empty("short", 0);
	uint8_t buf[100] = {1};
	assert_ok(qcow_store_write(s, buf, 100, 0, &err), err);
	assert_int_equal(truncate(qkt_path("short"), 60), 0);
	assert_status(qcow_store_read(s, buf, 100, 0, &err), QCOW_E_IO, err);
	assert_says(err, "short: the file ends before offset 60");
	assert_ok(qcow_store_read(s, buf, 60, 0, &err), err);
	memset(buf, 5, sizeof(buf));
	uint64_t size = 0;
	assert_ok(qcow_store_size(s, &size, &err), err);
	assert_ok(qcow_store_read_padded(s, buf, 100, 0, &err), err);
	assert_int_equal(buf[60] | buf[99], 0);
	qcow_store_close(s);
}

static void a_full_target_says_so(void **state)
{
	(void)state;
	struct qcow_store *s = open_empty("full", 0);
	struct rlimit old, small;
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = old;
	small.rlim_cur = KIB(64);
	(void)signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	static uint8_t buf[KIB(128)];
	enum qcow_status st = qcow_store_write(s, buf, sizeof(buf), 0, &err);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_status(st, QCOW_E_NOSPC, err);
	assert_int_equal(err.os_errno, EFBIG);
	assert_says(err, "writing at offset 65536");
	qcow_store_close(s);
}

static void offsets_past_the_largest_are_refused(void **state)
{
	(void)state;
	struct qcow_store *s = open_empty("far", 0);
	uint8_t b = 0;
	assert_status(qcow_store_write(s, &b, 1, UINT64_MAX, &err), QCOW_E_RANGE, err);
	assert_status(qcow_store_write(s, &b, 1, INT64_MAX, &err), QCOW_E_RANGE, err);
	assert_status(qcow_store_truncate(s, UINT64_C(1) << 63, &err), QCOW_E_RANGE, err);
	assert_status(qcow_store_zero(s, 1, UINT64_MAX, 0, &err), QCOW_E_RANGE, err);
	assert_status(qcow_store_read(s, &b, 1, UINT64_MAX, &err), QCOW_E_RANGE, err);
	qcow_store_close(s);
}

/* ---- random operations in every mode ---- */

#define SPAN  KIB(600)
#define PIECE KIB(150)

static void random_step(struct qcow_store *s, struct qkt_model *m, struct qkt_rng *rng)
{
	static uint8_t mem[PIECE + 64];
	uint8_t *buf = mem + qkt_rng_below(rng, 64);
	bool whole_blocks = qkt_rng_below(rng, 3) == 0;
	size_t off = (size_t)qkt_rng_below(rng, SPAN);
	size_t len = (size_t)qkt_rng_below(rng, qkt_rng_below(rng, 2) != 0 ? PIECE : 700) + 1;
	if (whole_blocks) {
		off &= ~(size_t)4095;
		len = (len + 4095) & ~(size_t)4095;
		len = len < PIECE ? len : KIB(4);
	}
	switch (qkt_rng_below(rng, 7)) {
	case 0:
	case 1:
	case 2:
		qkt_rng_fill(rng, buf, len);
		qkt_model_write(m, buf, len, off);
		assert_ok(qcow_store_write(s, buf, len, off, &err), err);
		break;
	case 3:
		qkt_model_zero(m, len, off);
		assert_ok(qcow_store_zero(s, off, len,
				  qkt_rng_below(rng, 2) != 0 ? QCOW_ZERO_ALLOCATE : 0, &err),
			err);
		break;
	case 4:
		if (off + len > m->size)
			break;
		if (qcow_store_punch(s, off, len, &err) == QCOW_OK)
			qkt_model_zero(m, len, off);
		else
			assert_ok(qcow_store_write(s, m->bytes + off, len, off, &err), err);
		break;
	case 5:
		qkt_model_resize(m, off);
		assert_ok(qcow_store_truncate(s, off, &err), err);
		break;
	default:
		if (off >= m->size)
			break;
		len = len < m->size - off ? len : m->size - off;
		assert_ok(qcow_store_read(s, buf, len, off, &err), err);
		assert_true(qkt_model_differs(m, buf, len, off) == SIZE_MAX);
	}
	uint64_t size = 0;
	assert_ok(qcow_store_size(s, &size, &err), err);
	assert_int_equal(size, m->size);
}

/* The file, read by the C library, is the array; extents calls nothing a hole that is not. */
static void compare_all(struct qcow_store *s, const struct qkt_model *m, const char *name)
{
	size_t size = 0;
	uint8_t *all = qkt_slurp(qkt_path(name), &size);
	assert_int_equal(size, m->size);
	assert_true(qkt_model_differs(m, all, size, 0) == SIZE_MAX);
	for (uint64_t off = 0; off < size;) {
		struct qcow_store_extent e;
		assert_ok(qcow_store_extents(s, off, size, &e, &err), err);
		for (uint64_t i = 0; e.is_hole && i < e.len; i++)
			assert_int_equal(all[off + i], 0);
		off += e.len;
	}
	free(all);
}

static void random_operations(const char *name, unsigned flags, int n, uint64_t seed)
{
	struct qkt_rng rng = qkt_rng_init(seed);
	struct qcow_store *s = open_empty(name, flags);
	struct qkt_model m = qkt_model_new(0);
	for (int i = 0; i < n; i++)
		random_step(s, &m, &rng);
	compare_all(s, &m, name);
	qkt_model_free(&m);
	qcow_store_close(s);
}

static void random_operations_agree_with_an_array(void **state)
{
	(void)state;
	random_operations("random", 0, 2000, 0x66696c65);
}

static void synchronous_operations_agree_with_an_array(void **state)
{
	(void)state;
	random_operations("sync", QCOW_FILE_SYNC, 60, 0x73796e63);
}

/* The descriptor is closed behind the store's back: who asks the host for a flush fails. */
static void without_flushes_the_host_is_not_asked(void **state)
{
	(void)state;
	for (int i = 0; i < 2; i++) {
		struct qcow_store *s = open_empty("unflushed", i == 1 ? QCOW_FILE_NO_FLUSH : 0);
		int fd = qcow_store_fd(s), other = dup(fd);
		assert_true(other >= 0);
		assert_ok(qcow_store_write(s, "abc", 3, 0, &err), err);
		assert_int_equal(close(fd), 0);
		assert_int_equal(qcow_store_flush(s, &err), i == 1 ? QCOW_OK : QCOW_E_IO);
		assert_int_equal(dup2(other, fd), fd);
		assert_int_equal(close(other), 0);
		qcow_store_close(s);
	}
}

static bool has_direct(void)
{
	struct qcow_store *s = NULL;
	(void)unlink(qkt_path("direct"));
	if (qcow_file_open(qkt_path("direct"), NEW | QCOW_FILE_DIRECT, &s, &err) != QCOW_OK) {
		assert_int_equal(err.status, QCOW_E_NOTSUP);
		return false;
	}
	qcow_store_close(s);
	return true;
}

static void unaligned_direct_operations_agree_with_an_array(void **state)
{
	(void)state;
	if (!has_direct())
		skip_case("the file system of the test has no O_DIRECT");
	random_operations("direct", QCOW_FILE_DIRECT, 600, 0x646972);
}

/* Threads that share every block, each writing its own bytes of it. */
#define N_THREADS 4
#define STRIPE	  100
#define N_STRIPES 60

struct writer {
	struct qcow_store *store;
	unsigned number;
	bool failed;
};

static void *write_stripes(void *arg)
{
	struct writer *w = arg;
	uint8_t buf[STRIPE];
	memset(buf, (int)w->number + 1, sizeof(buf));
	for (uint64_t i = 0; i < N_STRIPES; i++)
		if (qcow_store_write(w->store, buf, STRIPE, (i * N_THREADS + w->number) * STRIPE,
			    NULL) != QCOW_OK)
			w->failed = true;
	return NULL;
}

static void writers_of_one_block_do_not_lose_bytes(void **state)
{
	(void)state;
	if (!has_direct())
		skip_case("the file system of the test has no O_DIRECT");
	struct qcow_store *s = open_empty("shared", QCOW_FILE_DIRECT);
	pthread_t threads[N_THREADS];
	struct writer writers[N_THREADS];
	for (unsigned i = 0; i < N_THREADS; i++) {
		writers[i] = (struct writer){s, i, false};
		assert_int_equal(pthread_create(&threads[i], NULL, write_stripes, &writers[i]), 0);
	}
	for (unsigned i = 0; i < N_THREADS; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		assert_false(writers[i].failed);
	}
	qcow_store_close(s);
	size_t size = 0;
	uint8_t *all = qkt_slurp(qkt_path("shared"), &size);
	assert_int_equal(size, (size_t)N_THREADS * STRIPE * N_STRIPES);
	for (size_t i = 0; i < size; i++)
		assert_int_equal(all[i], i / STRIPE % N_THREADS + 1);
	free(all);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_missing_file_is_named),
		cmocka_unit_test(exclusive_refuses_what_is_there),
		cmocka_unit_test(create_keeps_what_is_there),
		cmocka_unit_test(a_link_to_nothing_is_filled),
		cmocka_unit_test(what_is_no_file_is_refused_without_blocking),
		cmocka_unit_test(flags_that_contradict_are_refused),
		cmocka_unit_test(writing_to_a_reader_is_refused),
		cmocka_unit_test(two_writers_of_one_process_are_kept_apart),
		cmocka_unit_test(a_refused_open_removes_no_old_file),
		cmocka_unit_test(descriptors_are_checked),
		cmocka_unit_test(holes_are_found_and_data_is_not_missed),
		cmocka_unit_test(punching_gives_blocks_back),
		cmocka_unit_test(zeroing_past_the_end_extends),
		cmocka_unit_test(allocating_zeros_takes_blocks),
		cmocka_unit_test(three_thousand_buffers_are_one_write),
		cmocka_unit_test(a_read_of_more_than_the_kernel_does_is_continued),
		cmocka_unit_test(a_file_shortened_by_others_fails_precisely),
		cmocka_unit_test(a_full_target_says_so),
		cmocka_unit_test(offsets_past_the_largest_are_refused),
		cmocka_unit_test(random_operations_agree_with_an_array),
		cmocka_unit_test(synchronous_operations_agree_with_an_array),
		cmocka_unit_test(without_flushes_the_host_is_not_asked),
		cmocka_unit_test(unaligned_direct_operations_agree_with_an_array),
		cmocka_unit_test(writers_of_one_block_do_not_lose_bytes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
