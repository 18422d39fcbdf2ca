/* SPDX-License-Identifier: MIT */
/*
 * The state of a machine: what QEMU puts behind the disk is read, of the image and of its snapshots, and stays with them
 * through everything that is done to snapshots; and both QEMUs read the disks.
 */
#include "cm.h"
#include "qemu.h"

#include <pthread.h>
#include <qcowkit/manage.h>
#include <stdatomic.h>

#include "host.h"
#include "image.h"

#define STATE_BYTES 153600U
#define SECRET	    "--object secret,id=s,data=open-sesame "
#define SNAPSHOT    "qemu-img snapshot " SECRET "--image-opts "
#define PLAIN	    "driver=qcow2,file.filename=img"
#define LUKS	    PLAIN ",encrypt.key-secret=s"

static const char *qemus[2];
static size_t n_qemus;

static struct qcow_image *open_at(const char *snapshot, bool is_encrypted)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	o.snapshot = snapshot;
	o.flags = QCOW_OPEN_NO_BACKING;
	if (is_encrypted)
		o.secret = (struct qcow_secret){"open-sesame", 11};
	assert_ok(try_open("img", &o, &image, &err), err);
	return image;
}

/* pattern -1: 11, and 12 in the bytes [512, 612). */
static void state_is(const char *snapshot, bool is_encrypted, int pattern)
{
	static uint8_t buf[STATE_BYTES + 4096];
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = open_at(snapshot, is_encrypted);
	assert_ok(qcow_read_vm_state(image, buf, STATE_BYTES, 0, &err), err);
	for (unsigned i = 0; i < STATE_BYTES; i++)
		assert_int_equal(buf[i], pattern < 0 && (i < 512 || i >= 612) ? 11
					 : pattern < 0			      ? 12
									      : pattern);
	/* what was never written is zeros, to the end of its cluster and far beyond the tables; a part of it */
	assert_ok(qcow_read_vm_state(image, buf, 4096, STATE_BYTES, &err), err);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(buf[i], 0);
	assert_ok(qcow_read_vm_state(image, buf, 100, UINT64_C(1) << 50, &err), err);
	assert_int_equal(buf[0] | buf[99], 0);
	assert_ok(qcow_read_vm_state(image, buf, 10, STATE_BYTES - 5, &err), err);
	assert_int_equal(buf[4], pattern < 0 ? 11 : pattern);
	assert_status(qcow_read_vm_state(image, buf, 10, INT64_MAX, &err), QCOW_E_RANGE, err);
	qcow_close(image);
}

static void change(const char *what, const char *key, bool is_encrypted)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	const struct qkt_image_options o = {.passphrase = is_encrypted ? "open-sesame" : NULL};
	assert_ok(qkt_image_open(&im, in_dir("img"), &o, &err), err);
	if (what[0] == 'c') {
		struct qcow_snapshot_create_options c = QCOW_SNAPSHOT_CREATE_OPTIONS_INIT;
		c.name = key;
		assert_ok(qcow_snapshot_create(im.image, &c, &err), err);
	} else if (what[0] == 'a') {
		assert_ok(qcow_snapshot_apply(im.image, key, QCOW_SNAPSHOT_NAME, NULL, &err), err);
	} else {
		assert_ok(qcow_snapshot_delete(im.image, &key, 1, QCOW_SNAPSHOT_NAME, NULL, &err),
			err);
	}
	qkt_image_close(&im);
}

/* Both QEMUs read the disk and the state that is active. */
static void qemu_reads(const char *image, int disk, int state)
{
	for (size_t i = 0; i < n_qemus; i++)
		sh("%sqemu-img check -q " SECRET "--image-opts %s && "
		   "%sqemu-io " SECRET "--image-opts -c 'read -P %d 0 1M' -c 'read -b -P %d 0 "
		   "%u' %s >out && ! grep -q 'failed' out",
			qemus[i], image, qemus[i], disk, state, STATE_BYTES, image);
}

static void through_snapshots(const char *create, const char *image, bool is_encrypted)
{
	const char *write = "qemu-io " SECRET "--image-opts -c 'write -q -P %d 0 1M' -c 'write -q "
			    "-b -P %d 0 %u' %s";
	char script[512];
	sh("rm -f img && qemu-img create -q -f qcow2 " SECRET "%s img 3M", create);
	(void)snprintf(script, sizeof(script), write, 1, 11, STATE_BYTES, image);
	sh("%s && " SNAPSHOT "-c one %s", script, image);
	/* as a machine would have saved it: 32-bit and 64-bit length in the entry */
	uint64_t table = peek64("img", 64);
	poke32("img", table + 32, STATE_BYTES);
	poke64("img", table + 40, STATE_BYTES);
	(void)snprintf(script, sizeof(script), write, 2, 22, STATE_BYTES, image);
	sh("%s && " SNAPSHOT "-l %s | grep -q 'one *150 KiB'", script, image);
	state_is("one", is_encrypted, 11);
	state_is(NULL, is_encrypted, 22);
	change("create", "two", is_encrypted);
	state_is("two", is_encrypted, 22);
	(void)snprintf(script, sizeof(script), write, 3, 33, STATE_BYTES, image);
	sh("%s", script);
	change("apply", "one", is_encrypted);
	state_is(NULL, is_encrypted, 11);
	qemu_reads(image, 1, 11);
	change("apply", "two", is_encrypted);
	qemu_reads(image, 2, 22);
	change("delete", "two", is_encrypted);
	state_is("one", is_encrypted, 11);
	qemu_reads(image, 2, 22);
	sh(SNAPSHOT "-l %s | grep -q 'one *150 KiB' && " SNAPSHOT "-a one %s", image, image);
	qemu_reads(image, 1, 11);
	change("delete", "one", is_encrypted);
	qemu_reads(image, 1, 11);
}

static void it_stays_with_its_snapshot(void **state)
{
	(void)state;
	through_snapshots("", PLAIN, false);
	through_snapshots("-o compat=0.10", PLAIN, false);
	through_snapshots("-o cluster_size=4k,extended_l2=off,refcount_bits=64", PLAIN, false);
	through_snapshots("-o cluster_size=16k,extended_l2=on", PLAIN, false);
}

static void what_has_none_says_so(void **state)
{
	(void)state;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	char byte = 0;
	sh("rm -f img && truncate -s 1M img");
	o.format = "raw";
	assert_ok(try_open("img", &o, &image, &err), err);
	assert_status(qcow_read_vm_state(image, &byte, 1, 0, &err), QCOW_E_NOTSUP, err);
	qcow_close(image);
}

/* ---- ours writes ---- */

static void write_state(const char *path, bool is_encrypted, uint64_t off, size_t n, int pattern)
{
	static uint8_t buf[STATE_BYTES];
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	const struct qkt_image_options o = {.passphrase = is_encrypted ? "open-sesame" : NULL};
	memset(buf, pattern, sizeof(buf));
	assert_ok(qkt_image_open(&im, in_dir(path), &o, &err), err);
	assert_ok(qcow_write_vm_state(im.image, buf, n, off, &err), err);
	assert_ok(qcow_write_vm_state(im.image, buf, 0, off, &err), err);
	qkt_image_close(&im);
}

/* Only the state that is written changes: the disk, and a longer layer below, do not show in it, or it in them. */
static void what_is_written_is_the_state(const char *create, const char *image, bool is_encrypted)
{
	sh("rm -f img below && qemu-img create -q -f qcow2 below 900M && qemu-io -c 'write -q -P "
	   "99 0 "
	   "20M' -c 'write -q -P 99 512M 1M' below && qemu-img create -q -f qcow2 " SECRET
	   "%s -b \"$PWD/below\" -F qcow2 img 3M && "
	   "qemu-io " SECRET "--image-opts -c 'write -q -P 1 0 1M' %s",
		create, image);
	write_state("img", is_encrypted, 0, STATE_BYTES, 11);
	write_state("img", is_encrypted, 512, 100, 12);
	state_is(NULL, is_encrypted, -1);
	write_state("img", is_encrypted, 512, 100, 11);
	state_is(NULL, is_encrypted, 11);
	qemu_reads(image, 1, 11);
	/* far away: a longer L1 table */
	write_state("img", is_encrypted, UINT64_C(1) << 32, 3, 13);
	for (size_t i = 0; i < n_qemus; i++)
		sh("%sqemu-io " SECRET
		   "--image-opts -c 'read -b -P 13 -l 3 4G 512' -c 'read -b -P 0 -s "
		   "3 -l 509 4G 512' -c 'read -P 99 1M 2M' %s >out && ! grep -q failed out && "
		   "%sqemu-img check -q " SECRET "--image-opts %s",
			qemus[i], image, qemus[i], image);
	change("create", "one", is_encrypted);
	write_state("img", is_encrypted, 0, STATE_BYTES, 22);
	change("apply", "one", is_encrypted);
	state_is(NULL, is_encrypted, 11);
	qemu_reads(image, 1, 11);
}

static void ours_is_what_qemu_reads(void **state)
{
	(void)state;
	what_is_written_is_the_state("", PLAIN, false);
	what_is_written_is_the_state("-o compat=0.10,cluster_size=4k", PLAIN, false);
	what_is_written_is_the_state("-o cluster_size=16k,extended_l2=on", PLAIN, false);
}

static void bitmaps_do_not_know_of_it(void **state)
{
	(void)state;
	sh("rm -f img && qemu-img create -q -f qcow2 bitmap 3M && qemu-img bitmap --add bitmap b");
	write_state("bitmap", false, 0, STATE_BYTES, 11);
	sh("mv bitmap img && qemu-img check -q img && qemu-img info img | grep -q 'auto' && ! "
	   "qemu-img info img | grep "
	   "-q in-use");
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = open_at(NULL, false);
	struct qcow_bitmap_reader *reader = NULL;
	struct qcow_bitmap_extent run;
	assert_ok(qcow_bitmap_open(image, 0, &reader, &err), err);
	assert_ok(qcow_bitmap_read(reader, 0, UINT64_C(3) << 20, &run, &err), err);
	assert_false(run.dirty);
	assert_int_equal(run.len, UINT64_C(3) << 20);
	qcow_bitmap_close(reader);
	qcow_close(image);
}

static void no_longer_table_than_there_may_be(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	char byte = 1;
	sh("rm -f img && qemu-img create -q -f qcow2 -o cluster_size=512 img 3M");
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	assert_status(qcow_write_vm_state(im.image, &byte, 1, UINT64_C(1) << 37, &err),
		QCOW_E_LIMIT, err);
	assert_status(qcow_write_vm_state(im.image, &byte, 1, INT64_MAX, &err), QCOW_E_RANGE, err);
	/* and it goes on */
	assert_ok(qcow_write_vm_state(im.image, &byte, 1, 0, &err), err);
	assert_ok(qcow_pwrite(im.image, &byte, 1, 0, 0, &err), err);
	qkt_image_close(&im);
	sh("qemu-img check -q img");
}

/* Whatever call fails, the disk is what it was, and the image can be written to afterwards or after a recovery. */
static void a_failure_leaves_the_disk(void **state)
{
	(void)state;
	static uint8_t buf[STATE_BYTES];
	struct qcow_error err = QCOW_ERROR_INIT;
	sh("rm -f img && qemu-img create -q -f qcow2 -o cluster_size=512 clean 3M && qemu-io -c "
	   "'write "
	   "-q -P 1 0 1M' clean");
	bool failed = true;
	for (unsigned nth = 1; failed; nth++)
		for (unsigned call = QKT_WRITE; call <= QKT_FLUSH; call++) {
			struct qkt_image im;
			sh("cp clean img");
			assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
			qkt_fault_arm(im.fault, (enum qkt_call)call, nth, QKT_EIO, false);
			failed = qcow_write_vm_state(im.image, buf, 8192, 0, &err) != QCOW_OK;
			qkt_fault_disarm(im.fault);
			if (failed && call == QKT_FLUSH)
				assert_ok(qcow_recover(im.image, &err), err);
			if (qcow_write_vm_state(im.image, buf, 8192, 0, &err) != QCOW_OK) {
				assert_ok(qcow_recover(im.image, &err), err);
				assert_ok(qcow_write_vm_state(im.image, buf, 8192, 0, &err), err);
			}
			qkt_image_close(&im);
			sh("qemu-io -c 'read -P 1 0 1M' -c 'read -b -P 0 0 8k' img >out && ! grep "
			   "-q failed out");
		}
}

struct asker {
	struct qcow_image *image, *below;
	atomic_bool is_over, was_other;
};

static void *ask(void *ctx)
{
	struct asker *a = ctx;
	while (!atomic_load(&a->is_over))
		if (qcow_backing(a->image) != a->below)
			atomic_store(&a->was_other, true);
	return NULL;
}

/* That no layer below is looked at meanwhile is nobody else's to see. */
static void others_see_the_layer_below(void **state)
{
	(void)state;
	static uint8_t buf[STATE_BYTES];
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	struct asker a = {.is_over = false};
	pthread_t thread;
	sh("rm -f img below && qemu-img create -q -f qcow2 below 3M && qemu-img create -q -f qcow2 "
	   "-b \"$PWD/below\" -F qcow2 img 3M");
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	a.image = im.image;
	a.below = qcow_backing(im.image);
	assert_non_null(a.below);
	assert_int_equal(pthread_create(&thread, NULL, ask, &a), 0);
	for (unsigned i = 0; i < 200; i++)
		assert_ok(qcow_write_vm_state(im.image, buf, sizeof(buf), i * 8192, &err), err);
	atomic_store(&a.is_over, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_false(atomic_load(&a.was_other));
	qkt_image_close(&im);
}

int main(void)
{
	if (!has_qemu())
		return 77;
	n_qemus = qkt_qemus(qemus);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_stays_with_its_snapshot),
		cmocka_unit_test(what_has_none_says_so),
		cmocka_unit_test(ours_is_what_qemu_reads),
		cmocka_unit_test(bitmaps_do_not_know_of_it),
		cmocka_unit_test(no_longer_table_than_there_may_be),
		cmocka_unit_test(a_failure_leaves_the_disk),
		cmocka_unit_test(others_see_the_layer_below),
	};
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
