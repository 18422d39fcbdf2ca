/* SPDX-License-Identifier: MIT */
/*
 * The Nth call, or the Nth allocation, fails while a snapshot is made, applied, deleted or renamed: the image is as before
 * (after a recovery, where it was fenced) or as after, never between, and goes on. On stores in memory; every write passes
 * the order checker.
 */
#include "cm.h"

#include <stdlib.h>

#include <qcowkit/manage.h>

#include "failmalloc.h"
#include "host.h"
#include "image_cm.h"

#define SIZE (UINT64_C(512) << 10)

static uint8_t *kept;
static size_t kept_bytes;
static uint64_t cluster;

/* ---- operations ---- */

static enum qcow_status create(struct qcow_image *image, struct qcow_error *err)
{
	return qcow_snapshot_create(image, NULL, err);
}

static enum qcow_status apply(struct qcow_image *image, struct qcow_error *err)
{
	return qcow_snapshot_apply(image, "first", QCOW_SNAPSHOT_NAME, NULL, err);
}

static enum qcow_status delete_both(struct qcow_image *image, struct qcow_error *err)
{
	const char *const names[] = {"second", "first"};
	return qcow_snapshot_delete(image, names, 2, QCOW_SNAPSHOT_NAME, NULL, err);
}

static enum qcow_status rename_one(struct qcow_image *image, struct qcow_error *err)
{
	return qcow_snapshot_rename(image, "1", QCOW_SNAPSHOT_ID, "another", err);
}

typedef enum qcow_status operation(struct qcow_image *image, struct qcow_error *err);

/* ---- what an image holds ---- */

struct holds {
	uint32_t n;
	uint8_t disk[SIZE];
	char names[4][32];
};

static void look(struct qcow_image *image, struct holds *out)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_info info;
	qcow_get_info(image, &info);
	memset(out, 0, sizeof(*out));
	out->n = info.n_snapshots;
	assert_true(out->n <= 4);
	assert_ok(qcow_pread(image, out->disk, SIZE, 0, &err), err);
	for (uint32_t i = 0; i < out->n; i++) {
		struct qcow_snapshot s;
		assert_ok(qcow_get_snapshot(image, i, &s, &err), err);
		(void)snprintf(out->names[i], sizeof(out->names[i]), "%s", s.name);
	}
}

static bool is_same(const struct holds *a, const struct holds *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

static void open_kept(struct qkt_image *im, bool unjudged)
{
	const struct qkt_image_options options = {.unjudged = unjudged};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	assert_ok(qcow_memory_open(kept_bytes, &store, &err), err);
	assert_ok(qcow_store_write(store, kept, kept_bytes, 0, &err), err);
	assert_ok(qkt_image_open_store(im, store, &options, &err), err);
}

/* ---- one failure ---- */

struct trial {
	operation *op;
	enum qkt_call call;
	enum qkt_failure failure;
	bool of_memory, for_ever;
	const struct holds *before, *after;
};

/* False where there was no nth call. */
static bool survives(const struct trial *t, uint64_t nth)
{
	static struct holds now;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	uint8_t b[512];
	/* the checker allocates too */
	open_kept(&im, t->of_memory);
	if (t->of_memory)
		qkt_failmalloc_arm(nth, t->for_ever);
	else
		qkt_fault_arm(im.fault, t->call, nth, t->failure, t->for_ever);
	enum qcow_status status = t->op(im.image, &err);
	uint64_t hits = t->of_memory ? qkt_failmalloc_hits() : qkt_fault_hits(im.fault);
	qkt_failmalloc_arm(0, false);
	qkt_fault_disarm(im.fault);
	assert_true(hits != 0 || status == QCOW_OK);
	assert_ok(qcow_recover(im.image, &err), err);
	look(im.image, &now);
	if (status == QCOW_OK)
		assert_true(is_same(&now, t->after));
	else /* where only the reading after the switch failed it is done */
		assert_true(is_same(&now, t->before) || is_same(&now, t->after));
	memset(b, 0x5a, sizeof(b));
	assert_ok(qcow_pwrite(im.image, b, sizeof(b), cluster, 0, &err), err);
	assert_ok(qcow_snapshot_create(im.image, NULL, &err), err);
	qkt_image_is_clean(&im);
	qkt_image_close(&im);
	return hits != 0;
}

static void try_all(const struct trial *t)
{
	uint64_t n = 1;
	while (survives(t, n))
		n++;
	assert_true(n > 2);
}

static void try_operation(operation *op)
{
	static struct holds before, after;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	open_kept(&im, false);
	look(im.image, &before);
	assert_ok(op(im.image, &err), err);
	look(im.image, &after);
	qkt_image_close(&im);
	assert_false(is_same(&before, &after));
	struct trial t = {.op = op, .before = &before, .after = &after};
	static const struct {
		enum qkt_call call;
		enum qkt_failure failure;
	} faults[] = {{QKT_WRITE, QKT_EIO}, {QKT_WRITE, QKT_ENOSPC}, {QKT_WRITE, QKT_SHORT},
		{QKT_FLUSH, QKT_EIO}, {QKT_READ, QKT_EIO}};
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
		t.call = faults[i].call;
		t.failure = faults[i].failure;
		t.for_ever = false;
		try_all(&t);
		t.for_ever = true;
		try_all(&t);
	}
	t.of_memory = true;
	t.for_ever = false;
	try_all(&t);
}

static void on(const char *options, uint64_t cluster_size, const char *more)
{
	cluster = cluster_size;
	qkt_must("rm -f image && qemu-img create -q -f qcow2 -o cluster_size=%u%s image 512K && "
		 "qemu-io -c 'write -q -P 1 0 100k' -c 'write -q -c -P 2 256k %u' image && "
		 "qemu-img snapshot -c first image && qemu-io -c 'write -q -P 3 0 64k' image && "
		 "qemu-img snapshot -c second image && qemu-io -c 'write -q -P 4 32k 64k' image%s",
		(unsigned)cluster_size, options, (unsigned)cluster_size, more);
	free(kept);
	kept = qkt_slurp(qkt_path("image"), &kept_bytes);
	try_operation(create);
	try_operation(apply);
	try_operation(delete_both);
	try_operation(rename_one);
}

static void version_3(void **state)
{
	(void)state;
	on("", 4096, " && qemu-img bitmap --add image b");
}

static void version_2(void **state)
{
	(void)state;
	on(",compat=0.10", 2048, "");
	free(kept);
	kept = NULL;
}

int main(void)
{
	qkt_need_program("qemu-img", "qemu-utils");
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(version_3), cmocka_unit_test(version_2)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
