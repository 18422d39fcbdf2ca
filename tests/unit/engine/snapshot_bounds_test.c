/* SPDX-License-Identifier: MIT */
/*
 * What managing an image costs is bounded by the file, however its tables are arranged; and the file is not longer
 * afterwards than what is in it.
 */
#include "cm.h"
#include "qemu.h"

#include <qcowkit/manage.h>

#include "image.h"

#define N_ENTRIES (UINT64_C(1) << 20)

/* ---- an L1 table that names one L2 table a million times ---- */

static void name_one_table(const char *name, uint64_t l1)
{
	uint64_t *words = malloc(N_ENTRIES * sizeof(*words));
	uint64_t first = peek64(name, l1) & ~(UINT64_C(1) << 63);
	assert_non_null(words);
	assert_int_not_equal(first, 0);
	for (uint64_t i = 0; i < N_ENTRIES; i++)
		words[i] = __builtin_bswap64(first);
	poke(name, l1, words, N_ENTRIES * sizeof(*words));
	free(words);
}

static enum qcow_status create(struct qcow_image *image, struct qcow_error *err)
{
	return qcow_snapshot_create(image, NULL, err);
}

static enum qcow_status apply(struct qcow_image *image, struct qcow_error *err)
{
	return qcow_snapshot_apply(image, "s", QCOW_SNAPSHOT_NAME, NULL, err);
}

static enum qcow_status delete (struct qcow_image *image, struct qcow_error *err) {
	const char *key = "s";
		return qcow_snapshot_delete(image, &key, 1, QCOW_SNAPSHOT_NAME, NULL, err);
}

static enum qcow_status downgrade(struct qcow_image *image, struct qcow_error *err)
{
	struct qcow_amend_options o = QCOW_AMEND_OPTIONS_INIT;
	o.version = 2;
	return qcow_amend(image, &o, err);
}

static void refused(const char *name,
	enum qcow_status (*operation)(struct qcow_image *image, struct qcow_error *err))
{
	struct qkt_image_options o = {.unjudged = true, .prove = QCOW_PROVE_OFF};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	assert_ok(qkt_image_open(&im, in_dir(name), &o, &err), err);
	qkt_fault_arm(im.fault, QKT_ANY, UINT64_MAX, QKT_EIO, false);
	assert_status(operation(im.image, &err), QCOW_E_CORRUPT, err);
	/* a delete counts all references before */
	if (operation != delete || err.finding != QCOW_FINDING_REFCOUNT_TOO_LOW)
		assert_int_equal(err.finding, QCOW_FINDING_L2_TABLE_TWICE);
	assert_true(qkt_fault_count(im.fault, QKT_READ) < 4096);
	assert_int_equal(qkt_fault_count(im.fault, QKT_WRITE), 0);
	qkt_image_close(&im);
}

static void a_table_that_is_named_a_million_times_is_damage(void **state)
{
	(void)state;
	/* 4 KiB clusters: an L1 entry spans 2 MiB */
	sh("qemu-img create -q -f qcow2 -o cluster_size=4k img 2T && qemu-io -c 'write -q 0 512' "
	   "img && qemu-img snapshot -c s img && cp --sparse=always img both");
	uint64_t snapshots = peek64("img", 64);
	/* first the snapshot's, which apply and delete read; then the active one */
	name_one_table("img", peek64("img", snapshots));
	refused("img", apply);
	refused("img", delete);
	refused("img", downgrade);
	name_one_table("both", peek64("both", 40));
	refused("both", create);
	refused("both", apply);
	refused("both", delete);
	refused("both", downgrade);
	/* among others, and not side by side */
	sh("qemu-img create -q -f qcow2 -o cluster_size=512 img 100k && qemu-io -c 'write -q 0 "
	   "100k' img && qemu-img snapshot -c s img");
	uint64_t l1 = peek64("img", 40);
	poke64("img", l1 + 16, peek64("img", l1));
	refused("img", create);
	sh("rm img both");
}

/* ---- dry runs ---- */

/* The verdict of the dry run, of an image that is open read-only, is that of the run. */
static void foretold(enum qcow_snapshot_act act, const char *key,
	enum qcow_status (*operation)(struct qcow_image *image, struct qcow_error *err),
	enum qcow_status want)
{
	static const struct qkt_image_options read_only = {.read_only = true}, none = {0};
	for (unsigned i = 0; i < 3; i++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qkt_image im;
		assert_ok(
			qkt_image_open(&im, in_dir("img"), i == 0 ? &read_only : &none, &err), err);
		if (i < 2)
			assert_status(qcow_snapshot_judge(im.image, act, &key, key != NULL,
					      QCOW_SNAPSHOT_NAME, NULL, &err),
				want, err);
		else
			assert_status(operation(im.image, &err), want, err);
		qkt_image_close(&im);
		if (i < 2 || want != QCOW_OK)
			sh("cmp img before");
	}
}

static void a_dry_run_has_the_verdict_of_the_run(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	/* one reference is all that one bit holds */
	sh("rm -f img && qemu-img create -q -f qcow2 -o refcount_bits=1 img 1M && qemu-io -c "
	   "'write -q 0 64k' img && cp img before");
	foretold(QCOW_SNAPSHOT_CREATE, NULL, create, QCOW_E_LIMIT);
	sh("rm -f img && qemu-img create -q -f qcow2 -o refcount_bits=2 img 1M && qemu-io -c "
	   "'write -q 0 64k' img && qemu-img snapshot -c s img && qemu-img snapshot -c t img && "
	   "cp img before");
	foretold(QCOW_SNAPSHOT_CREATE, NULL, create, QCOW_E_LIMIT);
	foretold(QCOW_SNAPSHOT_APPLY, "s", apply, QCOW_OK);
	sh("cp img before");
	foretold(QCOW_SNAPSHOT_DELETE, "s", delete, QCOW_OK);
	sh("cp img before");
	foretold(QCOW_SNAPSHOT_DELETE, "s", delete, QCOW_E_NOENT);
	foretold(QCOW_SNAPSHOT_CREATE, NULL, create, QCOW_OK);
	/* arguments that do not go together */
	const char *key = "s";
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	assert_status(qcow_snapshot_judge(im.image, QCOW_SNAPSHOT_CREATE, &key, 1, QCOW_SNAPSHOT_ID,
			      NULL, &err),
		QCOW_E_INVAL, err);
	assert_status(qcow_snapshot_judge(
			      im.image, QCOW_SNAPSHOT_APPLY, NULL, 1, QCOW_SNAPSHOT_ID, NULL, &err),
		QCOW_E_INVAL, err);
	qkt_image_close(&im);
}

/* ---- what goes back to the file system ---- */

static void what_a_snapshot_alone_had_is_punched(void **state)
{
	(void)state;
	for (unsigned passes = 0; passes < 2; passes++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		const struct qkt_image_options o = {
			.discard = passes != 0 ? (uint32_t)QCOW_DISCARD_PASS_SNAPSHOT : 0};
		struct qkt_image im;
		sh("rm -f img && qemu-img create -q -f qcow2 img 20M && qemu-io -c 'write -q -P 1 "
		   "0 9M' img && qemu-img snapshot -c s img && qemu-io -c 'write -q -P 2 0 8M' "
		   "-c 'write -q -c -P 3 10M 64k' img");
		assert_ok(qkt_image_open(&im, in_dir("img"), &o, &err), err);
		qkt_fault_arm(im.fault, QKT_ANY, UINT64_MAX, QKT_EIO, false);
		assert_ok(delete (im.image, &err), err);
		assert_int_equal(qkt_fault_count(im.fault, QKT_PUNCH) != 0, passes);
		qkt_image_close(&im);
		/* 8 MiB of 17 MiB */
		sh("qemu-img check -q img && qemu-io -c 'read -P 2 0 8M' -c 'read -P 1 8M 1M' -c "
		   "'read -P 3 10M 64k' img >out && ! grep failed out && [ $(du -k img | cut -f "
		   "1) -%s 12000 ]",
			passes != 0 ? "lt" : "gt");
	}
}

/* ---- the end of the file ---- */

/* What was in the file when it was opened stays part of it; what comes behind it is in use. */
static void grows_by_what_is_in_it(const char *setup,
	enum qcow_status (*operation)(struct qcow_image *image, struct qcow_error *err))
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	sh("%s && stat -c %%s img >before", setup);
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	assert_ok(operation(im.image, &err), err);
	qkt_image_close(&im);
	sh("qemu-img check --output=json img | sed -n 's/.*\"image-end-offset\": "
	   "\\([0-9]*\\).*/\\1/p' >end && "
	   "now=$(stat -c %%s img) && { [ $now -le $(cat end) ] || [ $now -le $(cat before) ]; }");
}

static void the_file_grows_by_what_is_in_it(void **state)
{
	static const char *const clusters[] = {"512", "64k", "2M"};
	(void)state;
	for (unsigned i = 0; i < sizeof(clusters) / sizeof(clusters[0]); i++) {
		sh("qemu-img create -q -f qcow2 -o cluster_size=%s img 20M && qemu-io -c 'write "
		   "-q 0 9M' img",
			clusters[i]);
		grows_by_what_is_in_it("true", create);
		grows_by_what_is_in_it("qemu-img snapshot -c s img", apply);
		grows_by_what_is_in_it("true", delete);
		/* no more than seven tables, 64 KiB clusters: not megabytes for later */
		if (i == 1)
			sh("[ $(cat end) -le $((9764864 + 20 * 65536)) ]");
	}
}

/* ---- where no space is left ---- */

static enum qcow_status widen(struct qcow_image *image, struct qcow_error *err)
{
	struct qcow_amend_options o = QCOW_AMEND_OPTIONS_INIT;
	o.refcount_bits = 64;
	return qcow_amend(image, &o, err);
}

/* The file cannot grow, or the file system is full from the nth write on: refused, and not a byte of the image is another. */
static bool is_refused_when_full(
	enum qcow_status (*operation)(struct qcow_image *image, struct qcow_error *err),
	uint64_t nth)
{
	/* what a failed switch to another width may leave is the amend test's */
	const struct qkt_image_options o = {.is_fixed = nth == 0, .unjudged = operation == widen};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	sh("cp before img");
	assert_ok(qkt_image_open(&im, in_dir("img"), &o, &err), err);
	if (nth != 0)
		qkt_fault_arm(im.fault, QKT_WRITE, nth, QKT_ENOSPC, true);
	enum qcow_status status = operation(im.image, &err);
	bool is_hit = nth == 0 || qkt_fault_count(im.fault, QKT_WRITE) >= nth;
	qkt_fault_disarm(im.fault);
	/* sector 0, the last of them, is not lost for want of space: it is there already */
	if (is_hit && nth < 3) {
		assert_status(status, QCOW_E_NOSPC, err);
		assert_non_null(strstr(err.message, "nothing was changed"));
	}
	qkt_image_close(&im);
	if (is_hit && nth < 3)
		sh("cmp img before");
	else
		sh("qemu-img check -q img");
	return is_hit;
}

static void a_full_file_system_is_told_before_anything_changes(void **state)
{
	static const char *const clusters[] = {"512", "64k"};
	enum qcow_status (*const operations[])(struct qcow_image *, struct qcow_error *) = {
		create, apply, delete, widen};
	(void)state;
	for (unsigned i = 0; i < sizeof(clusters) / sizeof(clusters[0]); i++) {
		sh("rm -f img && qemu-img create -q -f qcow2 -o cluster_size=%s before 1M && "
		   "qemu-io -c 'write -q 0 1M' before && qemu-img snapshot -c s before && "
		   "qemu-io -c 'write -q 0 64k' before",
			clusters[i]);
		for (unsigned k = 0; k < sizeof(operations) / sizeof(operations[0]); k++) {
			assert_true(is_refused_when_full(operations[k], 0));
			for (uint64_t nth = 1; is_refused_when_full(operations[k], nth); nth++)
				;
		}
	}
}

int main(void)
{
	if (!has_qemu())
		return 77;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_table_that_is_named_a_million_times_is_damage),
		cmocka_unit_test(a_dry_run_has_the_verdict_of_the_run),
		cmocka_unit_test(what_a_snapshot_alone_had_is_punched),
		cmocka_unit_test(the_file_grows_by_what_is_in_it),
		cmocka_unit_test(a_full_file_system_is_told_before_anything_changes),
	};
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
