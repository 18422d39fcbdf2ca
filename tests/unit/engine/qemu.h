/* SPDX-License-Identifier: MIT */
/*
 * qemu: images made and judged by qemu-img and qemu-io, for the tests of the engine: an implementation
 * that shares nothing with ours. Everything lives in one temporary directory a test program.
 */
#ifndef TEST_QEMU_H
#define TEST_QEMU_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <qcowkit/qcowkit.h>

static char test_dir[64];

/* Run a shell script in the directory; the test fails with the script where it fails. */
__attribute__((format(printf, 1, 2))) static inline void sh(const char *fmt, ...)
{
	static char script[65536];
	int n = snprintf(script, sizeof(script), "cd %s && { ", test_dir);
	va_list ap;
	va_start(ap, fmt);
	n += vsnprintf(script + n, sizeof(script) - (size_t)n, fmt, ap);
	va_end(ap);
	(void)snprintf(script + n, sizeof(script) - (size_t)n, "; } >log 2>&1");
	if (system(script) != 0) {
		static char show[65536 + 64];
		(void)snprintf(show, sizeof(show), "tail -5 %s/log >&2", test_dir);
		(void)!system(show);
		fail_msg("failed: %s", script);
	}
}

static inline int make_dir(void **state)
{
	(void)state;
	const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
	(void)snprintf(test_dir, sizeof(test_dir), "%s/qcowkit-test-XXXXXX", base);
	return mkdtemp(test_dir) != NULL ? 0 : -1;
}

static inline int remove_dir(void **state)
{
	(void)state;
	char cmd[128];
	(void)snprintf(cmd, sizeof(cmd), "rm -rf %s", test_dir);
	return system(cmd);
}

/* 77 ends a test program as skipped. */
static inline bool has_qemu(void)
{
	return system("qemu-img --version >/dev/null 2>&1 && qemu-io --version >/dev/null 2>&1") ==
	       0;
}

static inline const char *in_dir(const char *name)
{
	static char paths[8][512];
	static unsigned next;
	char *path = paths[next++ % 8];
	(void)snprintf(path, sizeof(paths[0]), "%s/%s", test_dir, name);
	return path;
}

static inline uint8_t *slurp(const char *name, size_t *n)
{
	FILE *f = fopen(in_dir(name), "rb");
	assert_non_null(f);
	struct stat st;
	assert_int_equal(fstat(fileno(f), &st), 0);
	*n = (size_t)st.st_size;
	uint8_t *p = malloc(*n + 1);
	assert_non_null(p);
	assert_int_equal(fread(p, 1, *n, f), *n);
	p[*n] = 0;
	fclose(f);
	return p;
}

/* Overwrite bytes of a file in the directory. */
static inline void poke(const char *name, uint64_t off, const void *bytes, size_t n)
{
	FILE *f = fopen(in_dir(name), "r+b");
	assert_non_null(f);
	assert_int_equal(fseek(f, (long)off, SEEK_SET), 0);
	assert_int_equal(fwrite(bytes, 1, n, f), n);
	fclose(f);
}

static inline void poke64(const char *name, uint64_t off, uint64_t v)
{
	v = __builtin_bswap64(v);
	poke(name, off, &v, sizeof(v));
}

static inline void poke32(const char *name, uint64_t off, uint32_t v)
{
	v = __builtin_bswap32(v);
	poke(name, off, &v, sizeof(v));
}

/* A word of a file in the directory. */
static inline uint64_t peek64(const char *name, uint64_t off)
{
	uint64_t word = 0;
	FILE *f = fopen(in_dir(name), "rb");
	assert_non_null(f);
	assert_int_equal(fseek(f, (long)off, SEEK_SET), 0);
	assert_int_equal(fread(&word, 1, sizeof(word), f), sizeof(word));
	assert_int_equal(fclose(f), 0);
	return __builtin_bswap64(word);
}

static inline struct qcow_store *open_file(const char *name)
{
	struct qcow_store *store = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_file_open(in_dir(name), 0, &store, &err) != QCOW_OK)
		fail_msg("%s: %s", name, err.message);
	return store;
}

/* A resolver of plain names in the directory. */
static inline enum qcow_status resolve_in_dir(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	unsigned *n_calls = ctx;
	if (n_calls != NULL)
		++*n_calls;
	return qcow_file_open(
		ref->name[0] == '/' ? ref->name : in_dir(ref->name), 0, &out->store, err);
}

static inline enum qcow_status try_open(const char *name, const struct qcow_open_options *options,
	struct qcow_image **out, struct qcow_error *err)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	if (options != NULL)
		o = *options;
	if (o.resolve == NULL)
		o.resolve = resolve_in_dir;
	return qcow_open(open_file(name), &o, out, err);
}

static inline struct qcow_image *must_open(
	const char *name, const struct qcow_open_options *options)
{
	struct qcow_image *image = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	if (try_open(name, options, &image, &err) != QCOW_OK)
		fail_msg("%s: %s (%s)", name, err.message, err.site);
	return image;
}

static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

#endif
