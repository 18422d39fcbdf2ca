/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of images with more clusters than are counted at a time: what is in them stays what it was, and the memory that
 * it takes is bounded, however large the image is.
 */
#include "cm.h"
#include "qemu.h"

#include <unistd.h>

#include <qcowkit/manage.h>

#include "failmalloc.h"
#include "image_cm.h"

/* More than the window of snapshot_count.c, and no more than every file system takes. */
#define FAR_OFF (UINT64_C(1700) << 30)
#define SPAN	65536u

static void snap(struct qkt_image *im, const char *name)
{
	struct qcow_snapshot_create_options o = QCOW_SNAPSHOT_CREATE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	o.name = name;
	assert_ok(qcow_snapshot_create(im->image, &o, &err), err);
}

static void unsnap(struct qkt_image *im, const char *name)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_snapshot_delete(im->image, &name, 1, QCOW_SNAPSHOT_NAME, NULL, &err), err);
}

/* The disk: n clusters near, and as many whose data lies far out in the file, in tables of their own and in the same ones. */
#define NEAR(i) ((uint64_t)(i) << 29)
#define FAR(i)	(NEAR(i) + 65536)

static void fill(struct qkt_image *im, uint64_t (*at)(unsigned i), unsigned n, int byte)
{
	for (unsigned i = 0; i < n; i++)
		qkt_image_write(im, SPAN, at(i), byte + (int)i);
}

static uint64_t near_at(unsigned i)
{
	return NEAR(i);
}

static uint64_t far_at(unsigned i)
{
	return FAR(i);
}

static void hold(struct qkt_image *im, unsigned n, int near, int far)
{
	for (unsigned i = 0; i < n; i++) {
		qkt_image_reads(im, SPAN, NEAR(i), near + (int)i);
		qkt_image_reads(im, SPAN, FAR(i), far + (int)i);
	}
}

/* A table entry or a header field. */
static void put(FILE *f, uint64_t off, uint64_t value, unsigned bytes)
{
	uint8_t be[8];
	for (unsigned i = 0; i < bytes; i++)
		be[i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
	assert_int_equal(fseeko(f, (off_t)off, SEEK_SET), 0);
	assert_int_equal(fwrite(be, 1, bytes, f), bytes);
}

/* What FAR(i) means moves far out, with a refcount block there. False: the file system has no such long files. */
static bool move_far(unsigned n, int byte)
{
	uint64_t l1 = peek64("img", 40), rt = peek64("img", 48), block = peek64("img", rt);
	FILE *f = fopen(in_dir("img"), "r+b");
	uint64_t far = FAR_OFF;
	assert_non_null(f);
	assert_true(far % (UINT64_C(65536) * 32768) == 0);
	bool ok = ftruncate(fileno(f), (off_t)(far + (n + 1) * 65536)) == 0;
	if (ok) {
		put(f, rt + far / 65536 / 32768 * 8, far, 8);
		put(f, far, 1, 2);
	}
	for (unsigned i = 0; ok && i < n; i++) {
		uint64_t to = far + (i + 1) * 65536;
		uint64_t entry = (peek64("img", l1 + i * 8) & (UINT64_MAX >> 1)) + 8;
		uint64_t was = peek64("img", entry) & (UINT64_MAX >> 1);
		put(f, entry, to | UINT64_C(1) << 63, 8);
		put(f, block + was / 65536 * 2, 0, 2);
		put(f, far + (i + 1) * 2, 1, 2);
		for (unsigned k = 0; k < 65536; k += 8)
			put(f, to + k, (uint64_t)(byte + (int)i) * UINT64_C(0x0101010101010101), 8);
	}
	assert_int_equal(fclose(f), 0);
	return ok;
}

static void what_lies_beyond_the_first_window_is_counted(void **state)
{
	enum {
		N = 4
	};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	(void)state;
	sh("rm -f img && qemu-img create -q -f qcow2 img 2T");
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	fill(&im, near_at, N, 1);
	fill(&im, far_at, N, 11);
	qkt_image_close(&im);
	if (!move_far(N, 11))
		skip();
	sh("qemu-img check -q img");
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	snap(&im, "a");
	fill(&im, near_at, 2, 21);
	fill(&im, far_at, 2, 31);
	snap(&im, "b");
	fill(&im, far_at, 1, 41);
	qkt_image_close(&im);
	sh("qemu-img check -q img");
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	unsnap(&im, "a");
	qkt_image_reads(&im, SPAN, FAR(0), 41);
	qkt_image_reads(&im, SPAN, FAR(1), 32);
	qkt_image_reads(&im, SPAN, NEAR(0), 21);
	qkt_image_reads(&im, SPAN, FAR(3), 14);
	snap(&im, "c");
	assert_ok(qcow_snapshot_apply(im.image, "b", QCOW_SNAPSHOT_NAME, NULL, &err), err);
	qkt_image_reads(&im, SPAN, FAR(0), 31);
	qkt_image_close(&im);
	sh("qemu-img check -q img");
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	const char *const both[] = {"b", "c"};
	assert_ok(qcow_snapshot_delete(im.image, both, 2, QCOW_SNAPSHOT_NAME, NULL, &err), err);
	fill(&im, near_at, N, 51);
	fill(&im, far_at, N, 61);
	hold(&im, N, 51, 61);
	qkt_image_close(&im);
	/* COPIED is where it should be, and nothing leaks */
	sh("qemu-img check -q img && rm img");
}

/* ---- memory ---- */

#define CLUSTER	  (UINT64_C(2) << 20)
#define MOST	  (UINT64_C(64) << 20)
#define N_BLOCKS  64 /* refcounts of 128 TiB */
#define LONG_FILE (INT64_C(15) << 40)

/* A refcount block for every area of 128 TiB, behind the end of the file. */
static void count_all(void)
{
	uint64_t rt = peek64("img", 48), block = peek64("img", rt);
	struct stat st;
	FILE *f = fopen(in_dir("img"), "r+b");
	assert_non_null(f);
	assert_int_equal(fstat(fileno(f), &st), 0);
	uint64_t end = ((uint64_t)st.st_size + CLUSTER - 1) / CLUSTER;
	for (unsigned i = 1; i < N_BLOCKS; i++, end++) {
		put(f, rt + i * 8, end * CLUSTER, 8);
		put(f, block + end * 2, 1, 2);
	}
	assert_int_equal(fclose(f), 0);
	assert_int_equal(truncate(in_dir("img"), (off_t)(end * CLUSTER)), 0);
}

/* An L2 table for every half TiB. */
static bool make_large(void)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	sh("rm -f img && qemu-img create -q -f qcow2 -o cluster_size=2M img 64T");
	assert_ok(qkt_image_open(
			  &im, in_dir("img"), &(struct qkt_image_options){.unjudged = true}, &err),
		err);
	for (unsigned i = 0; i < 128; i++)
		qkt_image_write(&im, SPAN, (uint64_t)i << 39, 1);
	qkt_image_close(&im);
	count_all();
	return truncate(in_dir("img"), LONG_FILE) == 0;
}

static void amend(struct qkt_image *im)
{
	struct qcow_amend_options o = QCOW_AMEND_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	o.refcount_bits = 64;
	assert_ok(qcow_amend(im->image, &o, &err), err);
}

static void make_a(struct qkt_image *im)
{
	snap(im, "a");
}

static void apply_a(struct qkt_image *im)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_snapshot_apply(im->image, "a", QCOW_SNAPSHOT_NAME, NULL, &err), err);
}

static void delete_a(struct qkt_image *im)
{
	unsnap(im, "a");
}

static void takes_little(const char *what, void (*operation)(struct qkt_image *im))
{
	const struct qkt_image_options o = {.unjudged = true};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	qkt_failmalloc_start_peak();
	int64_t before = qkt_failmalloc_bytes();
	assert_ok(qkt_image_open(&im, in_dir("img"), &o, &err), err);
	operation(&im);
	qkt_image_close(&im);
	uint64_t took = (uint64_t)(qkt_failmalloc_peak() - before);
	if (took > MOST)
		fail_msg("%s takes %llu KiB", what, (unsigned long long)took / 1024);
	print_message("%s: %llu KiB\n", what, (unsigned long long)took / 1024);
}

static void memory_is_bounded_whatever_the_size(void **state)
{
	(void)state;
	if (!make_large())
		skip();
	takes_little("snapshot create", make_a);
	takes_little("snapshot apply", apply_a);
	takes_little("snapshot delete", delete_a);
	takes_little("amend", amend);
	sh("rm img");
}

int main(void)
{
	if (!has_qemu())
		return 77;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_lies_beyond_the_first_window_is_counted),
		cmocka_unit_test(memory_is_bounded_whatever_the_size),
	};
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
