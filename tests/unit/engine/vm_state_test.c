/* SPDX-License-Identifier: MIT */
/*
 * The state of a machine: what QEMU puts behind the disk is read, of the image and of its snapshots, and stays with them
 * through everything that is done to snapshots; and both QEMUs read the disks.
 */
#include "cm.h"
#include "qemu.h"

#include <qcowkit/manage.h>

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

static void state_is(const char *snapshot, bool is_encrypted, int pattern)
{
	static uint8_t buf[STATE_BYTES + 4096];
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = open_at(snapshot, is_encrypted);
	assert_ok(qcow_read_vm_state(image, buf, STATE_BYTES, 0, &err), err);
	for (unsigned i = 0; i < STATE_BYTES; i++)
		assert_int_equal(buf[i], pattern);
	/* what was never written is zeros, far beyond the tables too; a part of it */
	assert_ok(qcow_read_vm_state(image, buf, 100, UINT64_C(1) << 50, &err), err);
	assert_int_equal(buf[0] | buf[99], 0);
	assert_ok(qcow_read_vm_state(image, buf, 10, STATE_BYTES - 5, &err), err);
	assert_int_equal(buf[4], pattern);
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

int main(void)
{
	if (!has_qemu())
		return 77;
	n_qemus = qkt_qemus(qemus);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_stays_with_its_snapshot),
		cmocka_unit_test(what_has_none_says_so),
	};
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
