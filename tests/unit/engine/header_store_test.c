/* SPDX-License-Identifier: MIT */
/*
 * header_store on images of QEMU's, beside both of its versions: what a change of the backing file leaves is theirs byte
 * for byte, unknown extensions, header bytes and feature bits included. The order checker sees every write.
 */
#include "cm.h"

#include <stdlib.h>

#include "base/bytes.h"
#include "engine/header_store.h"
#include "engine/image.h"
#include "engine/rw.h"
#include "host.h"
#include "image.h"

static const struct config {
	const char *options;
	const char *unknown; /* bytes of an extension 0x1b2c3d4e, or NULL */
	bool bits; /* unknown compatible bits, and header bytes 112 to 119 */
	const char *setup;
} configs[] = {
	{"cluster_size=64k", NULL, false, "true"},
	{"cluster_size=512", NULL, false, "true"},
	{"cluster_size=4k", "something to keep", true, "true"},
	{"cluster_size=64k", "something to keep", true, "true"},
	{"cluster_size=2M", "x", false, "qemu-img snapshot -c s img"},
	{"cluster_size=64k,compat=0.10", "of version 2", false, "true"},
	{"cluster_size=64k", NULL, true, "qemu-img bitmap --add img b"},
	{"cluster_size=16k,extended_l2=on,compression_type=zstd", NULL, false, "true"},
};

/* Put the unknown parts in front of what is there. */
static void add_unknown(const struct config *c)
{
	size_t n = 0;
	const char *path = qkt_path("img");
	uint8_t *file = qkt_slurp(path, &n);
	uint32_t hl = qk_load32(file + 4) == 2 ? 72 : qk_load32(file + 100);
	uint32_t add = c->bits ? 8 : 0;
	size_t len = c->unknown != NULL ? strlen(c->unknown) : 0;
	size_t more = add + (len != 0 ? 8 + (len + 7) / 8 * 8 : 0);
	size_t cluster = (size_t)1 << qk_load32(file + 20);
	assert_int_equal(qk_load64(file + 8), 0);
	memmove(file + hl + more, file + hl, cluster - hl - more);
	memset(file + hl, 0, more);
	if (c->bits) {
		memcpy(file + hl, "unknown!", 8);
		qk_store32(file + 100, hl + 8);
		qk_store64(file + 80, UINT64_C(0x4000000000000010));
	}
	if (len != 0) {
		qk_store32(file + hl + add, 0x1b2c3d4e);
		qk_store32(file + hl + add + 4, (uint32_t)len);
		memcpy(file + hl + add + 8, c->unknown, len);
	}
	FILE *f = fopen(path, "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(file, 1, n, f), n);
	assert_int_equal(fclose(f), 0);
	free(file);
}

static void make(const struct config *c)
{
	qkt_must("rm -f img && qemu-img create -q -f qcow2 -o %s img 4M && %s", c->options,
		c->setup);
	if (c->unknown != NULL || c->bits)
		add_unknown(c);
	qkt_must("qemu-img check -q img");
}

static enum qcow_status set_backing(
	struct qkt_image *im, const char *name, const char *format, struct qcow_error *err)
{
	struct qk_header_area area;
	enum qcow_status status = qk_header_store_load(im->image, &area, err);
	if (status == QCOW_OK) {
		area.ext.backing_name = qk_header_store_text(name);
		area.ext.backing_format = qk_header_store_text(format);
		status = qk_header_store_write(im->image, &area, err);
	}
	qk_header_store_release(&area);
	return status;
}

static void open_alone(struct qkt_image *im)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	/* what the image names is not there */
	const struct qkt_image_options o = {.no_backing = true};
	assert_ok(qkt_image_open(im, qkt_path("img"), &o, &err), err);
}

static char long_name[1024];

/* QEMU stores bitmaps again and again, each time in another place. */
static void forget_directory(uint8_t *cluster0)
{
	static const uint8_t head[8] = {0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24};
	uint8_t *ext = memmem(cluster0, 65536, head, sizeof(head));
	assert_non_null(ext);
	memset(ext + 24, 0, 8);
}

static void expect_same(const struct config *c, size_t q)
{
	size_t n = 0;
	char theirs[32];
	if (strstr(c->setup, "bitmap") == NULL) {
		qkt_must("cmp img theirs%zu", q);
		return;
	}
	(void)snprintf(theirs, sizeof(theirs), "theirs%zu", q);
	uint8_t *a = qkt_slurp(qkt_path("img"), &n), *b = qkt_slurp(qkt_path(theirs), &n);
	forget_directory(a);
	forget_directory(b);
	assert_memory_equal(a, b, 65536);
	free(a);
	free(b);
}

static void it_is_what_qemu_leaves(void **state)
{
	(void)state;
	static const struct {
		const char *name, *format;
	} turns[] = {{"base.img", "raw"}, {"another.qcow2", "qcow2"}, {long_name, "qcow2"},
		{"short", "raw"}, {NULL, NULL}, {"short", "raw"}};
	const char *prefixes[2];
	size_t n_qemus = qkt_qemus(prefixes);
	memset(long_name, 'n', 1000);
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
		make(&configs[i]);
		for (size_t q = 0; q < n_qemus; q++)
			qkt_must("cp img theirs%zu", q);
		for (size_t t = 0; t < sizeof(turns) / sizeof(turns[0]); t++) {
			struct qcow_error err = QCOW_ERROR_INIT;
			struct qkt_image im;
			const char *name = turns[t].name;
			if (name == long_name && strstr(configs[i].options, "=512") != NULL)
				continue;
			open_alone(&im);
			assert_ok(set_backing(&im, name, turns[t].format, &err), err);
			qkt_image_close(&im);
			for (size_t q = 0; q < n_qemus; q++) {
				if (name != NULL)
					qkt_must("%sqemu-img rebase -u -b '%s' -F %s theirs%zu",
						prefixes[q], name, turns[t].format, q);
				else
					qkt_must("%sqemu-img rebase -u -b '' theirs%zu",
						prefixes[q], q);
				expect_same(&configs[i], q);
			}
		}
	}
}

/* With a failure at each write and flush: the image says old or new, and is fenced unless it says so. */
static void a_failure_leaves_old_or_new(void **state)
{
	(void)state;
	static const enum qkt_call calls[] = {QKT_WRITE, QKT_FLUSH, QKT_READ};
	uint64_t failed = 0;
	memset(long_name, 'n', 1000);
	make(&configs[3]);
	qkt_must("qemu-img rebase -u -b '%s' -F qcow2 img && cp img before", long_name);
	for (size_t k = 0; k < 3; k++) {
		for (uint64_t nth = 1; nth < 20; nth++) {
			struct qcow_error err = QCOW_ERROR_INIT;
			struct qkt_image im;
			qkt_must("cp before img");
			long_name[0] = 'm';
			open_alone(&im);
			qkt_fault_arm(im.fault, calls[k], nth, QKT_EIO, false);
			enum qcow_status status = set_backing(&im, long_name, "raw", &err);
			bool hit = qkt_fault_hits(im.fault) != 0;
			qkt_fault_disarm(im.fault);
			assert_int_equal(status == QCOW_OK, !hit);
			bool is_fenced = qk_fence_check(&im.image->rw->fence, NULL) != QCOW_OK;
			assert_int_equal(is_fenced, hit && calls[k] != QKT_READ);
			qkt_image_close(&im);
			open_alone(&im);
			struct qcow_info info;
			qcow_get_info(im.image, &info);
			bool is_new = info.backing_name[0] == 'm';
			assert_string_equal(info.backing_format, is_new ? "raw" : "qcow2");
			assert_string_equal(info.backing_name + 1, long_name + 1);
			assert_true(is_new || hit);
			qkt_image_close(&im);
			failed += hit;
		}
	}
	/* 5 steps, 6 flushes, at least a read */
	assert_true(failed >= 12);
}

static void what_nobody_would_open_is_not_written(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	char name[1025];
	make(&configs[0]);
	qkt_must("cp img before");
	open_alone(&im);
	memset(name, 'x', sizeof(name));
	name[1024] = '\0';
	assert_status(set_backing(&im, name, "raw", &err), QCOW_E_FORMAT, err);
	assert_status(
		set_backing(&im, "a", "a format with many letters", &err), QCOW_E_FORMAT, err);
	assert_ok(set_backing(&im, NULL, NULL, &err), err);
	qkt_image_close(&im);
	qkt_must("cmp img before");
	make(&configs[1]);
	open_alone(&im);
	name[400] = '\0';
	assert_status(set_backing(&im, name, "raw", &err), QCOW_E_LIMIT, err);
	qkt_image_close(&im);
}

int main(void)
{
	qkt_need_program("qemu-img", "qemu-utils");
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_is_what_qemu_leaves),
		cmocka_unit_test(a_failure_leaves_old_or_new),
		cmocka_unit_test(what_nobody_would_open_is_not_written),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
