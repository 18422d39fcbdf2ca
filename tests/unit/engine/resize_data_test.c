/* SPDX-License-Identifier: MIT */
/*
 * Disks of images with a data file, longer and shorter: what qemu-img makes of the same image is the oracle; what is refused,
 * cancelled or fails leaves both files as they were.
 */
#include "cm.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <qcowkit/manage.h>

#include "host.h"
#include "image.h"

#define KIB UINT64_C(1024)

static const char *const modes[] = {"off", "metadata", "falloc", "full"};

static enum qcow_status resize(struct qcow_image *image, uint64_t size,
	enum qcow_preallocation preallocation, struct qcow_error *err)
{
	struct qcow_resize_options o = QCOW_RESIZE_OPTIONS_INIT;
	o.shrink = true;
	o.preallocation = preallocation;
	return qcow_resize(image, size, &o, err);
}

static void make(const char *options, uint64_t size, uint64_t filled)
{
	qkt_must("rm -f img data && qemu-img create -q -f qcow2 -o data_file=$PWD/data%s img "
		 "%" PRIu64 " && qemu-io -c 'write -q -P 5 0 %" PRIu64 "' img",
		options, size, filled);
}

static void resize_ours(uint64_t size, enum qcow_preallocation preallocation)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	assert_ok(qkt_image_open(&im, qkt_path("img"), NULL, &err), err);
	assert_ok(resize(im.image, size, preallocation, &err), err);
	qkt_image_close(&im);
}

/* What of both files is compared: lengths, blocks of the data file, map, content, a clean check. */
static void describe(const char *qemu, const char *into)
{
	qkt_must(
		"{ stat -c %%s data; echo $(( ($(stat -c %%b data) + 127) / 128 )); %sqemu-img map "
		"--output=json img; %sqemu-img check -q img; echo $?; %sqemu-img convert -O raw "
		"img all; cksum <all; cksum <data; } >%s 2>&1",
		qemu, qemu, qemu, into);
}

struct change {
	const char *options;
	uint64_t size, filled, to;
	unsigned n_modes;
};

/* To whole clusters: QEMU rounds a data file up to them that it preallocates. */
static const struct change changes[] = {
	{"", 1000 * KIB, 1000 * KIB, 3072 * KIB, 4},
	{"", 1024 * KIB, 300 * KIB, 3072 * KIB, 2},
	{",data_file_raw=on", 1000 * KIB, 1000 * KIB, 3072 * KIB, 4},
	/* preallocated, QEMU gives clusters their places and leaves the subclusters absent */
	{",extended_l2=on", 1000 * KIB, 600 * KIB, 3072 * KIB, 1},
	{",cluster_size=4k", 1000 * KIB, 1000 * KIB, 500 * KIB, 1},
	{",data_file_raw=on", 1000 * KIB, 1000 * KIB, 500 * KIB, 1},
};

static void it_is_as_with_qemu_img(void **state)
{
	const char *qemus[2];
	size_t n = qkt_qemus(qemus);
	(void)state;
	for (size_t i = 0; i < sizeof(changes) / sizeof(*changes); i++)
		for (unsigned mode = 0; mode < changes[i].n_modes; mode++) {
			const struct change *c = &changes[i];
			/* both versions take turns, not to run all twice */
			const char *qemu = qemus[(i + mode) % n];
			make(c->options, c->size, c->filled);
			qkt_must("%sqemu-img resize -q --shrink --preallocation=%s img %" PRIu64,
				qemu, modes[mode], c->to);
			describe(qemu, "theirs");
			make(c->options, c->size, c->filled);
			resize_ours(c->to, (enum qcow_preallocation)mode);
			describe(qemu, "ours");
			qkt_must("diff theirs ours");
		}
}

/* What the data file holds past the end of the disk is not the disk's. */
static void old_bytes_past_the_end_are_never_seen(void **state)
{
	static const char *const kinds[] = {"", ",data_file_raw=on", ",cluster_size=4k"};
	(void)state;
	for (size_t i = 0; i < 3; i++)
		for (unsigned mode = 0; mode < 2; mode++) {
			make(kinds[i], 100 * KIB, 100 * KIB);
			qkt_must("head -c 1M /dev/zero | tr '\\0' '\\7' >>data");
			resize_ours(900 * KIB, (enum qcow_preallocation)mode);
			qkt_must("qemu-io -c 'read -P 5 0 100k' -c 'read -P 0 100k 800k' img >out "
				 "&& ! grep "
				 "-q Pattern out && qemu-img check -q img");
			if (i == 1)
				qkt_must("head -c 900k data | tail -c 800k | cmp -n 819200 - "
					 "/dev/zero");
		}
}

static void device_that_is_too_short_is_refused_at_once(void **state)
{
	const struct qkt_image_options device = {.is_fixed = true};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	(void)state;
	make("", 100 * KIB, 100 * KIB);
	qkt_must("truncate -s 1M img && truncate -s 200k data && cp img img.was && cp data "
		 "data.was");
	assert_ok(qkt_image_open(&im, qkt_path("img"), &device, &err), err);
	assert_status(resize(im.image, 201 * KIB, QCOW_PREALLOC_OFF, &err), QCOW_E_NOTSUP, err);
	assert_says(err, "fixed size");
	assert_int_equal(qcow_size(im.image), 100 * KIB);
	qkt_image_close(&im);
	qkt_must("cmp img img.was && cmp data data.was");
	/* it fits, to the byte */
	assert_ok(qkt_image_open(&im, qkt_path("img"), &device, &err), err);
	assert_ok(resize(im.image, 200 * KIB, QCOW_PREALLOC_FULL, &err), err);
	assert_ok(resize(im.image, 50 * KIB, QCOW_PREALLOC_OFF, &err), err);
	assert_ok(resize(im.image, 200 * KIB, QCOW_PREALLOC_METADATA, &err), err);
	qkt_image_close(&im);
	qkt_must("test $(stat -c %%s data) = 204800 && qemu-img check -q img && qemu-io -c 'read "
		 "-P 5 0 "
		 "50k' -c 'read -P 0 50k 150k' img >out && ! grep -q Pattern out");
}

static bool stop(void *ctx)
{
	unsigned *left = ctx;
	return (*left)-- == 0;
}

static void cancelled_leaves_both_files_as_long_as_they_were(void **state)
{
	unsigned left = 3;
	struct qcow_resize_options o = QCOW_RESIZE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	(void)state;
	o.preallocation = QCOW_PREALLOC_FULL;
	o.progress = (struct qcow_progress){.cancelled = stop, .ctx = &left};
	make(",cluster_size=4k", 100 * KIB, 100 * KIB);
	assert_ok(qkt_image_open(&im, qkt_path("img"), NULL, &err), err);
	assert_status(qcow_resize(im.image, 16 << 20, &o, &err), QCOW_E_CANCELLED, err);
	assert_int_equal(qcow_size(im.image), 100 * KIB);
	qkt_image_close(&im);
	qkt_must("test $(stat -c %%s data) = 102400 && qemu-img check -q img");
}

static void data_file_that_is_not_open_is_refused(void **state)
{
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_resize_options o = QCOW_RESIZE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	(void)state;
	make("", 100 * KIB, 100 * KIB);
	open.flags = QCOW_OPEN_NO_DATA_FILE;
	o.dry_run = true;
	assert_ok(qcow_file_open(qkt_path("img"), 0, &store, &err), err);
	assert_ok(qcow_open(store, &open, &image, &err), err);
	assert_status(qcow_resize(image, 200 * KIB, &o, &err), QCOW_E_POLICY, err);
	qcow_close(image);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_is_as_with_qemu_img),
		cmocka_unit_test(old_bytes_past_the_end_are_never_seen),
		cmocka_unit_test(device_that_is_too_short_is_refused_at_once),
		cmocka_unit_test(cancelled_leaves_both_files_as_long_as_they_were),
		cmocka_unit_test(data_file_that_is_not_open_is_refused),
	};
	qkt_need_program("qemu-io", "qemu-utils");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
