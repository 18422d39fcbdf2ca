/* SPDX-License-Identifier: MIT */
/* Options of images are changed: both QEMUs find the image that they would have made, and every disk and snapshot the same. */
#include "cm.h"
#include "qemu.h"

#include <qcowkit/manage.h>

#include "failmalloc.h"
#include "image.h"

/* img with zero clusters of all kinds, over a backing file or over nothing, in two snapshots; `before` is its disk, and
 * `before.s` the disk of snapshot s. */
static void make_image(const char *options, bool has_backing, bool has_snapshots)
{
	sh("rm -f img base before before.s && qemu-img create -q -f raw base 700k && qemu-io -f "
	   "raw -c 'write -q -P 9 0 "
	   "700k' base && qemu-img create -q -f qcow2 -o %s %s img 700k",
		options, has_backing ? "-b $PWD/base -F raw" : "");
	sh("qemu-io -c 'write -q -P 1 0 300k' -c 'write -q -z 64k 64k' -c 'write -q -z -u 200k "
	   "64k' -c 'write -q -z 500k "
	   "64k' img");
	if (has_snapshots)
		sh("qemu-img snapshot -c s img && qemu-io -c 'write -q -P 2 100k 30k' -c 'write -q "
		   "-z 0 10k' -c 'write -q -z "
		   "-u 300k 100k' img && qemu-img snapshot -c t img && qemu-io -c 'write -q -P 3 "
		   "400k 70k' img && qemu-img "
		   "convert -l snapshot.name=s -O raw img before.s");
	sh("qemu-img convert -O raw img before");
}

static void same_as_before(bool has_snapshots)
{
	sh("qemu-img check -q img && qemu-img convert -O raw img after && cmp before after");
	if (has_snapshots)
		sh("qemu-img convert -l snapshot.name=s -O raw img after && cmp before.s after");
}

static void amend(const struct qcow_amend_options *o)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	assert_ok(qcow_amend(im.image, o, &err), err);
	/* it goes on */
	char was = 0;
	assert_ok(qcow_pread(im.image, &was, 1, 1000, &err), err);
	assert_ok(qcow_pwrite(im.image, "z", 1, 1000, 0, &err), err);
	assert_ok(qcow_pwrite(im.image, &was, 1, 1000, 0, &err), err);
	assert_ok(qcow_flush(im.image, &err), err);
	qkt_image_close(&im);
}

static void has(const char *words)
{
	sh("qemu-img info img | grep -q '%s'", words);
}

static void versions(void **state)
{
	static const char *const kinds[] = {
		"cluster_size=64k", "cluster_size=512", "cluster_size=4k"};
	(void)state;
	for (unsigned i = 0; i < 12; i += 1 + i % 2) {
		struct qcow_amend_options o = QCOW_AMEND_OPTIONS_INIT;
		make_image(kinds[i % 3], (i / 3) % 2 != 0, i / 6 != 0);
		o.version = 2;
		amend(&o);
		has("compat: 0.10");
		same_as_before(i / 6 != 0);
		o.version = 3;
		o.lazy_refcounts = QCOW_AMEND_ON;
		amend(&o);
		has("compat: 1.1");
		has("lazy refcounts: true");
		same_as_before(i / 6 != 0);
	}
}

static void widths(void **state)
{
	static const uint32_t bits[] = {8, 64, 2, 32, 4, 16, 1};
	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		make_image(i == 0   ? "cluster_size=64k"
			   : i == 1 ? "cluster_size=512"
				    : "extended_l2=on",
			i != 0, i != 1);
		for (size_t k = 0; k < sizeof(bits) / sizeof(bits[0]); k++) {
			struct qcow_amend_options o = QCOW_AMEND_OPTIONS_INIT;
			char words[32];
			o.refcount_bits = bits[k];
			if (bits[k] == 1 && i != 1)
				continue; /* snapshots need more */
			amend(&o);
			(void)snprintf(words, sizeof(words), "refcount bits: %u$", bits[k]);
			has(words);
			same_as_before(i != 1);
		}
	}
}

/* The image stays as it is; the words are of the run. */
static void run_refuses(const char *setup, const struct qcow_amend_options *o,
	enum qcow_status want, const char *words)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	sh("rm -f img && %s && cp img fresh", setup);
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	assert_status(qcow_amend(im.image, o, &err), want, err);
	assert_says(err, words);
	qkt_image_close(&im);
	sh("cmp img fresh");
}

/* The same, and its dry run knows. */
static void refused(const char *setup, const struct qcow_amend_options *o, enum qcow_status want,
	const char *words)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	struct qkt_image_options read_only = {.read_only = true};
	struct qcow_amend_options dry = *o;
	dry.dry_run = true;
	run_refuses(setup, o, want, words);
	assert_ok(qkt_image_open(&im, in_dir("img"), &read_only, &err), err);
	assert_status(qcow_amend(im.image, &dry, &err), want, err);
	qkt_image_close(&im);
}

#define CREATE "qemu-img create -q -f qcow2 "

static void what_cannot_be_done_changes_nothing(void **state)
{
	struct qcow_amend_options two = QCOW_AMEND_OPTIONS_INIT, o = QCOW_AMEND_OPTIONS_INIT;
	(void)state;
	two.version = 2;
	refused(CREATE "-o refcount_bits=8 img 1M", &two, QCOW_E_UNSUPPORTED,
		"refcounts of 16 bits");
	refused(CREATE "-o compression_type=zstd img 1M", &two, QCOW_E_UNSUPPORTED,
		"incompatible features 0x8");
	refused(CREATE "-o extended_l2=on img 1M", &two, QCOW_E_UNSUPPORTED,
		"incompatible features 0x10");
	refused(CREATE "img 1M && qemu-img bitmap --add img b", &two, QCOW_E_UNSUPPORTED,
		"remove them first");
	refused(CREATE "img 1M && qemu-img snapshot -c s img && qemu-img resize -q img 2M", &two,
		QCOW_E_UNSUPPORTED, "snapshot 's'");
	/* an L2 table with a refcount of 2, which the active tree alone has: seen when its tree is counted */
	refused(CREATE "-o cluster_size=64k img 1M && qemu-io -c 'write -q 0 64k' -c 'write -q -z "
		       "64k 64k' img && "
		       "python3 -c \"import struct\n"
		       "b = bytearray(open('img', 'rb').read())\n"
		       "l1, table = struct.unpack('>QQ', b[40:56])\n"
		       "l2, = struct.unpack('>Q', b[l1:l1 + 8])\n"
		       "block, = struct.unpack('>Q', b[table:table + 8])\n"
		       "l2 &= ~(1 << 63)\n"
		       "b[l1:l1 + 8] = struct.pack('>Q', l2)\n"
		       "b[block + l2 // 65536 * 2 + 1] = 2\n"
		       "open('img', 'wb').write(b)\"",
		&two, QCOW_E_UNSUPPORTED, "repair the image first");
	o.refcount_bits = 3;
	refused(CREATE "img 1M", &o, QCOW_E_INVAL, "power of two");
	o.refcount_bits = 8;
	refused(CREATE "-o compat=0.10 img 1M", &o, QCOW_E_UNSUPPORTED, "need version 3");
	o.refcount_bits = 1;
	refused(CREATE "img 1M && qemu-io -c 'write -q 0 1M' img && qemu-img snapshot -c s img", &o,
		QCOW_E_LIMIT, "");
	/* the upgrade comes first, and must not come to pass */
	o.version = 3;
	refused(CREATE "-o compat=0.10 img 1M && qemu-io -c 'write -q 0 1M' img && qemu-img "
		       "snapshot -c s img",
		&o, QCOW_E_LIMIT, "");
	o = (struct qcow_amend_options)QCOW_AMEND_OPTIONS_INIT;
	o.version = 4;
	refused(CREATE "img 1M", &o, QCOW_E_INVAL, "2 or 3");
	o.version = 0;
	o.lazy_refcounts = QCOW_AMEND_ON;
	refused(CREATE "-o compat=0.10 img 1M", &o, QCOW_E_UNSUPPORTED, "version 3");
	o.lazy_refcounts = QCOW_AMEND_KEEP;
	o.data_file_name = "x";
	refused(CREATE "img 1M", &o, QCOW_E_UNSUPPORTED, "data-file");
	o.data_file_name = NULL;
	o.data_file_raw = QCOW_AMEND_ON;
	refused(CREATE "img 1M", &o, QCOW_E_UNSUPPORTED, "data-file-raw");
}

/* ---- what fails ---- */

static const struct {
	uint32_t version, refcount_bits;
} changes[] = {{2, 0}, {3, 0}, {0, 64}, {0, 4}};

static void is_whole(bool is_done, unsigned i)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	struct qcow_info info;
	assert_ok(qkt_image_open(&im, in_dir("img"), NULL, &err), err);
	qcow_get_info(im.image, &info);
	qkt_image_close(&im);
	if (is_done && changes[i].version != 0)
		assert_int_equal(info.version, changes[i].version);
	if (is_done && changes[i].refcount_bits != 0)
		assert_int_equal(info.refcount_bits, changes[i].refcount_bits);
	/* clusters may have leaked */
	sh("{ qemu-img check -q img || [ $? = 3 ]; } && qemu-img convert -O raw img after && cmp "
	   "before after");
}

static bool fails_once(unsigned i, enum qkt_call call, uint64_t nth, bool recover)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_amend_options o = QCOW_AMEND_OPTIONS_INIT;
	struct qkt_image im;
	/* the checker's own memory would fail */
	const struct qkt_image_options how = {.unjudged = call == QKT_N_CALLS};
	o.version = changes[i].version;
	o.refcount_bits = changes[i].refcount_bits;
	sh("cp fresh img");
	assert_ok(qkt_image_open(&im, in_dir("img"), &how, &err), err);
	if (call == QKT_N_CALLS)
		qkt_failmalloc_arm(nth, false);
	else
		qkt_fault_arm(im.fault, call, nth, QKT_EIO, !recover);
	bool is_done = qcow_amend(im.image, &o, &err) == QCOW_OK;
	bool was_hit = call == QKT_N_CALLS ? qkt_failmalloc_hits() != 0
					   : qkt_fault_hits(im.fault) != 0;
	qkt_failmalloc_arm(0, false);
	if (recover) {
		qkt_fault_disarm(im.fault);
		assert_ok(qcow_recover(im.image, &err), err);
	}
	qkt_image_close(&im);
	is_whole(is_done, i);
	return was_hit;
}

static void every_failure_leaves_it_whole(void **state)
{
	static const enum qkt_call calls[] = {QKT_FLUSH, QKT_WRITE, QKT_N_CALLS};
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		make_image(
			changes[i].version == 3 ? "compat=0.10,cluster_size=4k" : "cluster_size=4k",
			true, true);
		sh("mv img fresh");
		for (unsigned k = 0; k < 6; k++) {
			uint64_t nth = 1;
			if (calls[k / 2] == QKT_N_CALLS && k % 2 == 0)
				continue;
			while (fails_once(i, calls[k / 2], nth, k % 2 != 0))
				nth += 1 + nth;
			assert_true(nth > 1);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(versions),
		cmocka_unit_test(widths),
		cmocka_unit_test(what_cannot_be_done_changes_nothing),
		cmocka_unit_test(every_failure_leaves_it_whole),
	};
	if (!has_qemu()) {
		print_message("SKIP qemu-img or qemu-io is missing (Debian: qemu-utils)\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
