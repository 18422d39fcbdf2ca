/* SPDX-License-Identifier: MIT */
/*
 * Persistent bitmaps of images that are open for writing. QEMU does the same steps on a copy, and both files are read
 * by an oracle that knows the specification alone (dirtymap.h); every write passes the order checker.
 */
#include "cm.h"
#include "qemu.h"

#include <pthread.h>

#include "dirtymap.h"
#include "failmalloc.h"
#include "image.h"

struct config {
	const char *name, *options, *size, *granularity;
	const char *setup; /* shell commands on img, or NULL */
	bool is_fixed;
};

static const struct config configs[] = {
	{"plain", "cluster_size=64k", "40M", "64k", NULL, false},
	{"several data clusters", "cluster_size=512", "8M", "512", NULL, false},
	{"odd size", "cluster_size=4k", "3000320", "512", NULL, false},
	{"c2M", "cluster_size=2M", "60M", "4k", NULL, false},
	{"refcount 1", "cluster_size=4k,refcount_bits=1", "20M", "1k", NULL, false},
	{"snapshot", "cluster_size=4k", "20M", "1k", "qemu-img snapshot -c s img", false},
	{"device", "cluster_size=4k", "20M", "1k", "truncate -s 60M img", true},
};

static uint64_t seed;

static uint64_t next(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* img with an enabled and a disabled bitmap, both with something in them. */
static void make_image(const struct config *c)
{
	sh("rm -f img && qemu-img create -q -f qcow2 -o %s img %s && qemu-io -c 'write 0 300k' img "
	   "&& qemu-img bitmap --add -g %s img on && qemu-img bitmap --add -g 64k img off && "
	   "qemu-io -c 'write 100k 100k' -c 'discard 1M 70k' img && qemu-img bitmap --disable img "
	   "off && %s",
		c->options, c->size, c->granularity, c->setup != NULL ? c->setup : "true");
}

static struct qkt_image open_image(bool is_fixed)
{
	const struct qkt_image_options o = {.is_fixed = is_fixed};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	if (qkt_image_open(&im, in_dir("img"), &o, &err) != QCOW_OK)
		fail_msg("%s", err.message);
	return im;
}

static void do_both(struct qcow_image *image, FILE *script)
{
	static uint8_t buf[300000];
	struct qcow_error err = QCOW_ERROR_INIT;
	unsigned kind = (unsigned)(next() % 8);
	uint64_t size = qcow_size(image), off = next() % size, len = 1 + next() % sizeof(buf);
	/* QEMU cannot do less than this with odd offsets everywhere */
	off &= ~UINT64_C(511);
	len = ((len > size - off ? size - off : len) + 511) & ~UINT64_C(511);
	if (kind < 3)
		len = len < 5000 ? len : 512 * (1 + len % 9);
	memset(buf, (int)(next() % 255) + 1, sizeof(buf));
	if (kind < 5) {
		(void)fprintf(script, "write -P %u %llu %llu\n", buf[0], (unsigned long long)off,
			(unsigned long long)len);
		assert_int_equal(qcow_pwrite(image, buf, len, off, 0, &err), QCOW_OK);
	} else if (kind < 7) {
		(void)fprintf(script, "write -z%s %llu %llu\n", kind == 5 ? " -u" : "",
			(unsigned long long)off, (unsigned long long)len);
		assert_int_equal(
			qcow_zero(image, off, len, kind == 5 ? QCOW_IO_UNMAP : 0, &err), QCOW_OK);
	} else {
		(void)fprintf(script, "discard %llu %llu\n", (unsigned long long)off,
			(unsigned long long)len);
		assert_int_equal(qcow_discard(image, off, len, 0, &err), QCOW_OK);
	}
}

static void compare_bitmaps(const char *what, uint64_t size)
{
	size_t n_ours = 0, n_theirs = 0;
	uint8_t *ours = slurp("img", &n_ours), *theirs = slurp("copy", &n_theirs);
	struct qkt_dirtymap a, b;
	uint32_t i = 0;
	for (; qkt_dirtymap_get(theirs, n_theirs, i, &b); i++) {
		assert_true(qkt_dirtymap_get(ours, n_ours, i, &a));
		assert_int_equal(a.in_use, b.in_use);
		assert_int_equal(a.is_auto, b.is_auto);
		assert_int_equal(a.name_bytes, b.name_bytes);
		assert_memory_equal(a.name, b.name, b.name_bytes);
		for (uint64_t off = 0; off < size; off += 512)
			if (qkt_dirtymap_at(&a, off) != qkt_dirtymap_at(&b, off))
				fail_msg("%s: bitmap %u differs at %llu", what, i,
					(unsigned long long)off);
	}
	assert_int_equal(i, 2);
	assert_false(qkt_dirtymap_get(ours, n_ours, i, &a));
	free(ours);
	free(theirs);
}

static void bitmaps_are_what_qemu_makes_of_the_same_steps(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
		const struct config *c = &configs[i];
		seed = 88172645463325252 + i;
		make_image(c);
		sh("cp img copy");
		FILE *script = fopen(in_dir("script"), "w");
		assert_non_null(script);
		uint64_t size = 0;
		for (unsigned turn = 0; turn < 3; turn++) {
			struct qkt_image im = open_image(c->is_fixed);
			size = qcow_size(im.image);
			for (unsigned k = 0; k < 12; k++)
				do_both(im.image, script);
			qkt_image_close(&im);
		}
		(void)fclose(script);
		sh("qemu-io copy <script >out && ! grep -i failed out");
		compare_bitmaps(c->name, size);
		sh("qemu-img compare img copy && qemu-img check img");
	}
}

static const struct config small = {"", "cluster_size=4k", "4M", "4k", NULL, false};

static void an_open_that_changes_nothing_writes_nothing(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t buf[512];
	make_image(&small);
	sh("cp img copy");
	struct qkt_image im = open_image(false);
	assert_int_equal(qcow_pread(im.image, buf, sizeof(buf), 0, &err), QCOW_OK);
	assert_int_equal(qcow_pwrite(im.image, buf, 0, 0, 0, &err), QCOW_OK);
	assert_int_equal(qcow_flush(im.image, &err), QCOW_OK);
	qkt_image_close(&im);
	sh("cmp img copy");
}

static void compressed_writes_are_marked(void **state)
{
	(void)state;
	static uint8_t buf[2 * 4096];
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_dirtymap map;
	size_t n = 0;
	make_image(&small);
	struct qkt_image im = open_image(false);
	memset(buf, 7, sizeof(buf));
	assert_int_equal(
		qcow_write_compressed(im.image, buf, sizeof(buf), 2 << 20, 0, &err), QCOW_OK);
	qkt_image_close(&im);
	uint8_t *bytes = slurp("img", &n);
	assert_true(qkt_dirtymap_get(bytes, n, 0, &map) && !map.in_use);
	assert_true(qkt_dirtymap_at(&map, 2 << 20) && qkt_dirtymap_at(&map, (2 << 20) + 8191));
	assert_false(qkt_dirtymap_at(&map, (2 << 20) + 8192));
	free(bytes);
	sh("qemu-img check img");
}

/* What a crash leaves: marked, not trusted by anybody, and marked for ever. */
static void a_bitmap_in_use_stays_in_use(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_dirtymap map;
	size_t n = 0;
	make_image(&small);
	struct qkt_image im = open_image(false);
	assert_int_equal(qcow_pwrite(im.image, "x", 1, 0, 0, &err), QCOW_OK);
	sh("cp img copy");
	qkt_image_close(&im);
	sh("qemu-img info copy | grep -q in-use && mv copy img");
	im = open_image(false);
	struct qcow_bitmap_reader *reader = NULL;
	assert_int_equal(qcow_bitmap_open(im.image, 0, &reader, &err), QCOW_E_CORRUPT);
	assert_int_equal(err.finding, QCOW_FINDING_BITMAP_INCONSISTENT);
	assert_int_equal(qcow_pwrite(im.image, "x", 1, 100000, 0, &err), QCOW_OK);
	qkt_image_close(&im);
	uint8_t *bytes = slurp("img", &n);
	assert_true(qkt_dirtymap_get(bytes, n, 0, &map) && map.in_use && map.is_auto);
	assert_true(qkt_dirtymap_get(bytes, n, 1, &map) && !map.in_use && !map.is_auto);
	free(bytes);
	sh("qemu-img check img");
}

static void a_reader_sees_what_is_written_meanwhile(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_bitmap_reader *reader = NULL;
	struct qcow_bitmap_extent extent;
	make_image(&small);
	struct qkt_image im = open_image(false);
	assert_int_equal(qcow_pwrite(im.image, "x", 1, 2 << 20, 0, &err), QCOW_OK);
	assert_int_equal(qcow_bitmap_open(im.image, 0, &reader, &err), QCOW_OK);
	assert_int_equal(qcow_pwrite(im.image, "x", 1, (2 << 20) + 4096, 0, &err), QCOW_OK);
	const uint64_t at = (1 << 20) + 73728;
	assert_int_equal(qcow_bitmap_read(reader, at, (4 << 20) - at, &extent, &err), QCOW_OK);
	assert_false(extent.dirty);
	assert_int_equal(extent.len, (1 << 20) - 73728);
	assert_int_equal(qcow_bitmap_read(reader, 2 << 20, 2 << 20, &extent, &err), QCOW_OK);
	assert_true(extent.dirty);
	assert_int_equal(extent.len, 8192);
	qcow_bitmap_close(reader);
	qkt_image_close(&im);
}

static void refuses(enum qcow_status status, const char *word)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	sh("cp img copy");
	assert_int_equal(qkt_image_open(&im, in_dir("img"), NULL, &err), status);
	if (strstr(err.message, word) == NULL)
		fail_msg("%s", err.message);
	sh("cmp img copy");
}

static void what_cannot_be_tracked_is_refused(void **state)
{
	(void)state;
	size_t n = 0;
	struct qkt_dirtymap map;
	/* 384 MiB of bits each */
	sh("rm -f img && qemu-img create -q -f qcow2 img 1536G && for b in 1 2 3; do qemu-img "
	   "bitmap --add -g 512 img $b; done");
	refuses(QCOW_E_LIMIT, "402653184 bytes");
	/* eight bytes of the name become extra data */
	sh("rm -f img && qemu-img create -q -f qcow2 img 1M && qemu-img bitmap --add img "
	   "0123456789abcdef");
	uint8_t *bytes = slurp("img", &n);
	assert_true(qkt_dirtymap_get(bytes, n, 0, &map));
	const uint8_t lengths[6] = {0, 8, 0, 0, 0, 8};
	uint64_t entry = (uint64_t)(map.name - bytes) - 24;
	free(bytes);
	poke("img", entry + 18, lengths, sizeof(lengths));
	refuses(QCOW_E_UNSUPPORTED, "extra data");
	/* extra data that may be ignored is kept */
	poke32("img", entry + 12, 2 | 4);
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im = open_image(false);
	assert_int_equal(qcow_pwrite(im.image, "x", 1, 70000, 0, &err), QCOW_OK);
	qkt_image_close(&im);
	bytes = slurp("img", &n);
	assert_true(qkt_dirtymap_get(bytes, n, 0, &map));
	assert_memory_equal(map.name - 8, "0123456789abcdef", 16);
	assert_true(!map.in_use && qkt_dirtymap_at(&map, 70000) && !qkt_dirtymap_at(&map, 0));
	free(bytes);
}

/* With the autoclear bit clear nobody trusts them; their clusters are leaks. */
static void without_the_autoclear_bit_nothing_is_tracked(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	make_image(&small);
	poke64("img", 88, 0);
	struct qkt_image im = open_image(false);
	assert_int_equal(qcow_pwrite(im.image, "x", 1, 2 << 20, 0, &err), QCOW_OK);
	qkt_image_close(&im);
	sh("! qemu-img info img | grep -q bitmaps && { qemu-img check img || [ $? = 3 ]; }");
}

/* ---- failures ---- */

#define N_WRITES 5U

struct trial {
	enum qkt_call call;
	enum qkt_failure how;
	uint64_t nth;
	bool for_ever, of_memory;
};

/* Write, and close, while calls fail; a bitmap that is not in use knows all writes that were answered well. */
static bool survives(const struct trial *t)
{
	static const uint64_t at[N_WRITES] = {0, 2 << 20, 70000, 3 << 20, (2 << 20) + 5};
	struct qcow_error err = QCOW_ERROR_INIT;
	bool is_done[N_WRITES] = {false};
	struct qkt_dirtymap map;
	size_t n = 0;
	sh("cp copy img");
	/* the order checker needs memory itself */
	const struct qkt_image_options o = {.unjudged = t->of_memory};
	struct qkt_image im;
	assert_int_equal(qkt_image_open(&im, in_dir("img"), &o, &err), QCOW_OK);
	if (t->of_memory)
		qkt_failmalloc_arm(t->nth, t->for_ever);
	else
		qkt_fault_arm(im.fault, t->call, t->nth, t->how, t->for_ever);
	for (unsigned i = 0; i < N_WRITES; i++)
		is_done[i] = qcow_pwrite(im.image, "abcdef", 6, at[i], 0, &err) == QCOW_OK;
	bool is_flushed = qcow_flush(im.image, &err) == QCOW_OK;
	bool is_closed = qcow_close(im.image) == QCOW_OK;
	uint64_t hits = t->of_memory ? qkt_failmalloc_hits() : qkt_fault_hits(im.fault);
	qkt_failmalloc_arm(0, false);
	im.image = NULL;
	qkt_image_close(&im);
	sh("qemu-img check img || [ $? = 3 ]");
	uint8_t *bytes = slurp("img", &n);
	assert_true(qkt_dirtymap_get(bytes, n, 0, &map));
	for (unsigned i = 0; i < N_WRITES; i++)
		assert_true(map.in_use || !is_done[i] || qkt_dirtymap_at(&map, at[i]));
	assert_true(map.in_use || qkt_dirtymap_at(&map, 100 << 10));
	assert_true(hits != 0 || (is_flushed && is_closed && !map.in_use));
	/* the close knows whether they were stored */
	assert_true(!is_closed || !map.in_use);
	assert_true(qkt_dirtymap_get(bytes, n, 1, &map) && !map.in_use);
	free(bytes);
	return hits != 0;
}

static void every_failure_leaves_supersets(void **state)
{
	(void)state;
	static const struct trial trials[] = {
		{QKT_WRITE, QKT_EIO, 1, false, false},
		{QKT_WRITE, QKT_SHORT, 1, false, false},
		{QKT_WRITE, QKT_ENOSPC, 1, true, false},
		{QKT_FLUSH, QKT_EIO, 1, false, false},
		{QKT_READ, QKT_EIO, 1, false, false},
		{QKT_TRUNCATE, QKT_ENOSPC, 1, true, false},
		{QKT_ANY, QKT_EIO, 1, false, true},
		{QKT_ANY, QKT_EIO, 1, true, true},
	};
	make_image(&small);
	sh("mv img copy");
	for (size_t i = 0; i < sizeof(trials) / sizeof(trials[0]); i++) {
		struct trial t = trials[i];
		while (survives(&t))
			t.nth++;
		assert_true(t.nth > (t.call == QKT_TRUNCATE ? 1U : 3U));
	}
}

/* A device without room for the new tables: the bitmap stays in use, and nothing leaks. */
static void a_bitmap_without_room_stays_in_use(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_dirtymap map;
	size_t n = 0;
	make_image(&small);
	struct qkt_image im = open_image(true);
	enum qcow_status status = QCOW_OK;
	for (uint64_t at = 0; status == QCOW_OK; at += 4096)
		status = qcow_pwrite(im.image, "x", 1, at, QCOW_IO_FUA, &err);
	assert_int_equal(status, QCOW_E_NOSPC);
	qkt_image_close(&im);
	uint8_t *bytes = slurp("img", &n);
	assert_true(qkt_dirtymap_get(bytes, n, 0, &map) && map.in_use);
	free(bytes);
	sh("qemu-img check img");
}

/* Of two bitmaps one is marked, for the other there is no room: the write fails, nothing is fenced, and neither stays in use. */
static void half_of_the_marks_are_taken_away(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_dirtymap map;
	size_t n = 0;
	for (unsigned goes_on = 0; goes_on < 2; goes_on++) {
		make_image(&small);
		sh("qemu-img bitmap --add img second");
		struct qkt_image im = open_image(false);
		qkt_fault_arm(im.fault, QKT_WRITE, 2, QKT_ENOSPC, false);
		assert_status(qcow_pwrite(im.image, "x", 1, 100 << 10, 0, &err), QCOW_E_NOSPC, err);
		assert_int_equal(qkt_fault_hits(im.fault), 1);
		qkt_fault_disarm(im.fault);
		if (goes_on != 0)
			assert_ok(qcow_pwrite(im.image, "x", 1, 100 << 10, 0, &err), err);
		qkt_image_close(&im);
		uint8_t *bytes = slurp("img", &n);
		for (uint32_t i = 0; i < 2; i++) {
			assert_true(qkt_dirtymap_get(bytes, n, i, &map) && !map.in_use);
			assert_true(goes_on == 0 || qkt_dirtymap_at(&map, 100 << 10));
		}
		free(bytes);
		sh("qemu-img check -q img");
	}
}

/* ---- threads ---- */

struct worker {
	struct qcow_image *image;
	unsigned number;
	pthread_t thread;
};

static void *work(void *ctx)
{
	const struct worker *w = ctx;
	struct qcow_error err = QCOW_ERROR_INIT;
	for (uint64_t i = w->number; i < 256; i += 4)
		if (qcow_pwrite(w->image, "x", 1, i * 8192, 0, &err) != QCOW_OK)
			return ctx;
	return NULL;
}

static void writers_in_threads_mark_all(void **state)
{
	(void)state;
	const struct qkt_image_options o = {.threads = true};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct worker workers[4];
	struct qkt_dirtymap map;
	struct qkt_image im;
	size_t n = 0;
	make_image(&small);
	assert_int_equal(qkt_image_open(&im, in_dir("img"), &o, &err), QCOW_OK);
	for (unsigned i = 0; i < 4; i++) {
		workers[i] = (struct worker){.image = im.image, .number = i};
		assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		void *answer = NULL;
		assert_int_equal(pthread_join(workers[i].thread, &answer), 0);
		assert_null(answer);
	}
	qkt_image_close(&im);
	uint8_t *bytes = slurp("img", &n);
	assert_true(qkt_dirtymap_get(bytes, n, 0, &map) && !map.in_use);
	for (uint64_t i = 0; i < 256; i++)
		assert_true(qkt_dirtymap_at(&map, i * 8192));
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bitmaps_are_what_qemu_makes_of_the_same_steps),
		cmocka_unit_test(an_open_that_changes_nothing_writes_nothing),
		cmocka_unit_test(compressed_writes_are_marked),
		cmocka_unit_test(a_bitmap_in_use_stays_in_use),
		cmocka_unit_test(a_reader_sees_what_is_written_meanwhile),
		cmocka_unit_test(what_cannot_be_tracked_is_refused),
		cmocka_unit_test(without_the_autoclear_bit_nothing_is_tracked),
		cmocka_unit_test(every_failure_leaves_supersets),
		cmocka_unit_test(a_bitmap_without_room_stays_in_use),
		cmocka_unit_test(half_of_the_marks_are_taken_away),
		cmocka_unit_test(writers_in_threads_mark_all),
	};
	if (!has_qemu()) {
		print_message("SKIP qemu-img or qemu-io is missing (Debian: qemu-utils)\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
