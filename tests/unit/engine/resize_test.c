/* SPDX-License-Identifier: MIT */
/*
 * Disks that become longer and shorter: random sequences against an array of bytes, on every kind of image, with the order
 * checker on; snapshots, bitmaps, longer and shorter backing files; what fails and what is refused.
 */
#include "cm.h"
#include "qemu.h"

#include <sys/stat.h>

#include <qcowkit/manage.h>

#include "dirtymap.h"
#include "failmalloc.h"
#include "image.h"
#include "model.h"
#include "rng.h"

#define KIB UINT64_C(1024)

static void tell(void *ctx, const struct qcow_finding *f)
{
	(void)ctx;
	if (qcow_finding_severity(f->id) == QCOW_SEVERITY_CORRUPTION)
		print_message("%s at %#llx: %s, %#llx not %#llx\n", qcow_finding_name(f->id),
			(unsigned long long)f->host_off, f->where, (unsigned long long)f->stored,
			(unsigned long long)f->expected);
}

/* Clusters that were given up may wait for the close. */
static void check_clean(struct qkt_image *im)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_options options = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	options.on_finding = tell;
	assert_ok(qcow_flush(im->image, &err), err);
	assert_ok(qcow_check(im->image, &options, &result, &err), err);
	assert_int_equal(result.corruptions, 0);
	assert_int_equal(result.check_errors, 0);
}

static void assert_same(struct qcow_image *image, const struct qkt_model *m)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_int_equal(qcow_size(image), m->size);
	uint8_t *buf = malloc(m->size + 1);
	assert_non_null(buf);
	assert_ok(qcow_pread(image, buf, m->size, 0, &err), err);
	size_t at = qkt_model_differs(m, buf, m->size, 0);
	if (at != SIZE_MAX)
		fail_msg("byte %zu of %zu differs", at, m->size);
	free(buf);
}

static enum qcow_status resize(struct qcow_image *image, uint64_t size,
	enum qcow_preallocation preallocation, struct qcow_error *err)
{
	struct qcow_resize_options o = QCOW_RESIZE_OPTIONS_INIT;
	o.shrink = true;
	o.preallocation = preallocation;
	return qcow_resize(image, size, &o, err);
}

/* ---- random sequences ---- */

struct config {
	uint32_t version;
	uint64_t cluster_size;
	bool extended_l2;
	uint32_t refcount_bits;
	const char *setup; /* shell commands on img, which QEMU has made; NULL: we make it */
	bool is_fixed;
};

static const struct config configs[] = {
	{3, 65536, false, 16, NULL, false},
	{3, 512, false, 16, NULL, false},
	{3, 4096, false, 1, NULL, false},
	{3, 16384, true, 16, NULL, false},
	{3, 2 << 20, false, 64, NULL, false},
	{2, 65536, false, 16, NULL, false},
	{2, 512, false, 16, NULL, false},
	{2, 4096, false, 16, NULL, false},
	{3, 4096, false, 16,
		"qemu-img create -q -f qcow2 -o cluster_size=4k img 300k && qemu-io -c 'write -P 9 "
		"0 300k' img && "
		"qemu-img snapshot -c s img && qemu-io -c 'write -P 8 100k 70k' img && qemu-img "
		"snapshot -c t img",
		false},
	{3, 4096, false, 16,
		"head -c 300k /dev/urandom >raw && qemu-img convert -c -O qcow2 -o cluster_size=4k "
		"raw img",
		false},
	{3, 512, false, 16,
		"qemu-img create -q -f qcow2 -o cluster_size=512 img 300k && qemu-img bitmap --add "
		"-g 512 img b && "
		"qemu-io -c 'write -P 9 10k 100k' img && truncate -s 4M img",
		true},
	{3, 4096, false, 16,
		"qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=$PWD/data img 300k && "
		"qemu-io -c "
		"'write -P 9 10k 100k' img",
		false},
	{3, 65536, false, 16,
		"qemu-img create -q -f qcow2 -o data_file=$PWD/data,data_file_raw=on img 300k && "
		"qemu-io -c "
		"'write -P 9 10k 100k' img && head -c 4M /dev/urandom >>data && truncate -s 8M img",
		true},
	{3, 16384, true, 16,
		"qemu-img create -q -f qcow2 -o "
		"data_file=$PWD/data,extended_l2=on,cluster_size=16k img "
		"300k && qemu-io -c 'write -P 9 10k 100k' img",
		false},
};

#define MOST_BYTES (3 << 20)

static void do_step(struct qkt_image *im, struct qkt_model *m, struct qkt_rng *rng)
{
	static uint8_t buf[200000];
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t kind = qkt_rng_below(rng, 10);
	if (kind < 4 || m->size < 2) {
		uint64_t most = qkt_rng_below(rng, 4) == 0 ? MOST_BYTES : 400000;
		uint64_t size = 1 + qkt_rng_below(rng, most);
		if (qkt_rng_below(rng, 2) == 0)
			size = (size + 511) & ~UINT64_C(511);
		enum qcow_preallocation how = size > m->size && size < 400000
						      ? (enum qcow_preallocation)qkt_rng_below(
								rng, 4)
						      : QCOW_PREALLOC_OFF;
		enum qcow_status status = resize(im->image, size, how, &err);
		if (status == QCOW_E_NOSPC)
			return;
		assert_ok(status, err);
		qkt_model_resize(m, (size_t)size);
		return;
	}
	uint64_t off = qkt_rng_below(rng, m->size), len = 1 + qkt_rng_below(rng, sizeof(buf));
	len = len < m->size - off ? len : m->size - off;
	qkt_rng_fill(rng, buf, 16);
	memset(buf + 16, buf[0], sizeof(buf) - 16);
	if (kind < 8) {
		enum qcow_status status = qcow_pwrite(im->image, buf, (size_t)len, off, 0, &err);
		/* of a full file: any of it may be written */
		if (status == QCOW_E_NOSPC) {
			assert_ok(
				qcow_pread(im->image, m->bytes + off, (size_t)len, off, &err), err);
			return;
		}
		assert_ok(status, err);
		qkt_model_write(m, buf, (size_t)len, (size_t)off);
	} else {
		enum qcow_status status = qcow_zero(
			im->image, off, len, kind == 9 ? QCOW_IO_UNMAP : 0, &err);
		if (status == QCOW_E_NOSPC) {
			assert_ok(
				qcow_pread(im->image, m->bytes + off, (size_t)len, off, &err), err);
			return;
		}
		assert_ok(status, err);
		qkt_model_zero(m, (size_t)len, (size_t)off);
	}
}

static void make_image(const struct config *c)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	sh("rm -f img raw data");
	if (c->setup != NULL) {
		sh("%s", c->setup);
		return;
	}
	create.version = c->version;
	create.cluster_size = c->cluster_size;
	create.extended_l2 = c->extended_l2;
	create.refcount_bits = c->refcount_bits;
	create.virtual_size = 100000;
	assert_ok(qcow_file_open(in_dir("img"), QCOW_FILE_WRITE | QCOW_FILE_CREATE, &store, &err),
		err);
	assert_ok(qcow_create(store, NULL, &create, &err), err);
	qcow_store_close(store);
}

static void run_config(const struct config *c, struct qkt_rng *rng)
{
	const struct qkt_image_options o = {.is_fixed = c->is_fixed};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	make_image(c);
	assert_ok(qkt_image_open(&im, in_dir("img"), &o, &err), err);
	struct qkt_model m = qkt_model_new((size_t)qcow_size(im.image));
	assert_ok(qcow_pread(im.image, m.bytes, m.size, 0, &err), err);
	for (unsigned i = 0; i < 60; i++) {
		do_step(&im, &m, rng);
		if (i % 10 == 9) {
			assert_same(im.image, &m);
			check_clean(&im);
		}
		if (i % 20 == 19) {
			qkt_image_close(&im);
			sh("qemu-img check -q img");
			assert_ok(qkt_image_open(&im, in_dir("img"), &o, &err), err);
		}
	}
	/* QEMU's disks are whole sectors */
	qkt_model_resize(&m, (m.size + 511) / 512 * 512);
	assert_ok(resize(im.image, m.size, QCOW_PREALLOC_OFF, &err), err);
	assert_same(im.image, &m);
	qkt_image_close(&im);
	FILE *f = fopen(in_dir("want"), "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(m.bytes, 1, m.size, f), m.size);
	assert_int_equal(fclose(f), 0);
	sh("qemu-img check -q img && qemu-img compare -q -f qcow2 -F raw img want");
	if (c->setup != NULL && strstr(c->setup, "data_file_raw") != NULL)
		sh("cmp -n %zu data want", m.size);
	qkt_model_free(&m);
}

static void random_sequences(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(1);
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++)
		run_config(&configs[i], &rng);
}

/* ---- what is read after a change ---- */

static struct qkt_image open_image(const struct qkt_image_options *o)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	assert_ok(qkt_image_open(&im, in_dir("img"), o, &err), err);
	return im;
}

static void reads(struct qcow_image *image, uint64_t off, uint64_t len, int value)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *buf = malloc((size_t)len);
	assert_non_null(buf);
	assert_ok(qcow_pread(image, buf, (size_t)len, off, &err), err);
	for (uint64_t i = 0; i < len; i++)
		if (buf[i] != value)
			fail_msg("byte %llu is %d, not %d", (unsigned long long)(off + i), buf[i],
				value);
	free(buf);
}

static void resize_to(uint64_t size, const struct qkt_image_options *o)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im = open_image(o);
	assert_ok(resize(im.image, size, QCOW_PREALLOC_OFF, &err), err);
	assert_int_equal(qcow_size(im.image), size);
	check_clean(&im);
	qkt_image_close(&im);
	sh("qemu-img check -q img");
}

static void a_longer_backing_file_is_hidden(void **state)
{
	static const char *const kinds[] = {"compat=1.1", "compat=0.10", "cluster_size=512",
		"compat=0.10,cluster_size=512", "extended_l2=on,cluster_size=16k"};
	(void)state;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		sh("rm -f img base && qemu-img create -q -f raw base 1M && qemu-io -f raw -c "
		   "'write -P 7 0 1M' base && "
		   "qemu-img create -q -f qcow2 -b $PWD/base -F raw -o %s img 100352",
			kinds[i]);
		resize_to(3 << 20, NULL);
		struct qkt_image im = open_image(NULL);
		reads(im.image, 0, 100352, 7);
		reads(im.image, 100352, (3 << 20) - 100352, 0);
		qkt_image_close(&im);
		resize_to(50001, NULL);
		resize_to(200 * KIB, NULL);
		im = open_image(NULL);
		reads(im.image, 0, 50001, 7);
		reads(im.image, 50001, 200 * KIB - 50001, 0);
		qkt_image_close(&im);
	}
}

static void a_shorter_backing_file_stays_seen(void **state)
{
	(void)state;
	sh("rm -f img base && qemu-img create -q -f raw base 50k && qemu-io -f raw -c 'write -P 7 "
	   "0 50k' base && "
	   "qemu-img create -q -f qcow2 -b $PWD/base -F raw img 100k");
	resize_to(MOST_BYTES, NULL);
	struct qkt_image im = open_image(NULL);
	struct qcow_extent e;
	struct qcow_error err = QCOW_ERROR_INIT;
	reads(im.image, 0, 50 * KIB, 7);
	reads(im.image, 50 * KIB, MOST_BYTES - 50 * KIB, 0);
	assert_ok(qcow_map(im.image, 64 * KIB, MOST_BYTES - 64 * KIB, 0, &e, &err), err);
	assert_int_equal(e.flags & QCOW_EXTENT_PRESENT, 0);
	assert_int_equal(e.len, MOST_BYTES - 64 * KIB);
	qkt_image_close(&im);
}

static void snapshots_keep_their_sizes(void **state)
{
	(void)state;
	sh("rm -f img && qemu-img create -q -f qcow2 -o cluster_size=4k img 1M && qemu-io -c "
	   "'write -P 1 0 1M' img && "
	   "qemu-img snapshot -c s img && qemu-img convert -l snapshot.name=s -O raw img before");
	resize_to(5000, NULL);
	resize_to(8 << 20, NULL);
	sh("qemu-img convert -l snapshot.name=s -O raw img after && cmp -n 1048576 before after");
	struct qkt_image im = open_image(NULL);
	reads(im.image, 0, 5000, 1);
	reads(im.image, 5000, (8 << 20) - 5000, 0);
	qkt_image_close(&im);
	sh("qemu-img snapshot -a s img && qemu-img check -q img && qemu-img convert -O raw img "
	   "after && "
	   "cmp before after");
}

static void preallocation_allocates(void **state)
{
	static const char *const kinds[] = {
		"compat=1.1", "compat=0.10", "cluster_size=512", "extended_l2=on"};
	(void)state;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		for (int mode = QCOW_PREALLOC_METADATA; mode <= QCOW_PREALLOC_FULL; mode++) {
			struct qcow_error err = QCOW_ERROR_INIT;
			struct qcow_extent e;
			struct stat st;
			sh("rm -f img && qemu-img create -q -f qcow2 -o %s img 100k && qemu-io -c "
			   "'write -P 1 0 100k' -c "
			   "'discard 0 64k' img",
				kinds[i]);
			struct qkt_image im = open_image(NULL);
			assert_ok(resize(im.image, 4 << 20, (enum qcow_preallocation)mode, &err),
				err);
			reads(im.image, 100 * KIB, (4 << 20) - 100 * KIB, 0);
			for (uint64_t off = 128 * KIB; off < 4 << 20; off += e.len) {
				assert_ok(
					qcow_map(im.image, off, (4 << 20) - off, 0, &e, &err), err);
				assert_true((e.flags & QCOW_EXTENT_OFFSET) != 0);
			}
			qkt_image_close(&im);
			sh("qemu-img check -q img");
			assert_int_equal(stat(in_dir("img"), &st), 0);
			assert_true(st.st_size >= 3 << 20);
			if (mode != QCOW_PREALLOC_METADATA)
				assert_true(st.st_blocks * 512 >= 3 << 20);
		}
}

/* ---- bitmaps ---- */

/* Bits of the bitmap in `img` as the oracle reads them: [from, to) of granules are `value`. */
static void bits_are(uint32_t index, uint64_t granularity, uint64_t from, uint64_t to, int value)
{
	size_t n = 0;
	uint8_t *bytes = slurp("img", &n);
	struct qkt_dirtymap map;
	assert_true(qkt_dirtymap_get(bytes, n, index, &map));
	assert_false(map.in_use);
	for (uint64_t i = from; i < to; i++)
		if (qkt_dirtymap_at(&map, i * granularity) != (value != 0))
			fail_msg("bit %llu is not %d", (unsigned long long)i, value);
	free(bytes);
}

/* 4,096 bits a data cluster: 4 of them, then 2, then 20. */
static void bitmaps_follow(void **state)
{
	static const char *const names[] = {"", "-o extended_l2=on", "-o refcount_bits=1"};
	(void)state;
	for (size_t i = 0; i < 3; i++) {
		uint64_t cluster = i == 1 ? 16384 : 512;
		uint64_t per = cluster * 8;
		sh("rm -f img && qemu-img create -q -f qcow2 %s -o cluster_size=%llu img %llu && "
		   "qemu-img bitmap --add -g "
		   "512 img on && qemu-img bitmap --add -g 512 img off",
			names[i], (unsigned long long)cluster, (unsigned long long)(4 * per * 512));
		sh("qemu-io -c 'write 0 5k' -c 'write %llu 100k' img && qemu-img bitmap --disable "
		   "img off",
			(unsigned long long)(2 * per * 512 - 50 * KIB));
		bits_are(0, 512, 10, 2 * per - 100, 0);
		bits_are(0, 512, 2 * per - 100, 2 * per + 100, 1);
		resize_to(2 * per * 512 - 10 * KIB - 100,
			NULL); /* the last granule is cut: 2 * per - 20 of them */
		for (uint32_t k = 0; k < 2; k++) {
			bits_are(k, 512, 0, 10, 1);
			bits_are(k, 512, 10, 2 * per - 100, 0);
			bits_are(k, 512, 2 * per - 100, 2 * per - 20, 1);
		}
		resize_to(20 * per * 512 + 512, NULL);
		bits_are(0, 512, 2 * per - 100, 20 * per + 1, 1);
		bits_are(0, 512, 10, 2 * per - 100, 0);
		bits_are(1, 512, 2 * per - 100, 2 * per - 20, 1);
		bits_are(1, 512, 2 * per - 20, 20 * per + 1, 0);
		/* they go on to record */
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qkt_image im = open_image(NULL);
		assert_ok(resize(im.image, 5 * per * 512, QCOW_PREALLOC_OFF, &err), err);
		assert_ok(qcow_pwrite(im.image, "x", 1, 50 * 512, 0, &err), err);
		qkt_image_close(&im);
		bits_are(0, 512, 50, 51, 1);
		bits_are(0, 512, 51, 2 * per - 100, 0);
		sh("qemu-img check -q img && qemu-img bitmap --merge off img on && qemu-img check "
		   "-q img");
	}
}

/* ---- what fails ---- */

struct failing {
	const char *setup;
	uint64_t size;
	enum qcow_preallocation preallocation;
};

static const struct failing failing[] = {
	{"qemu-img create -q -f qcow2 -o cluster_size=512 img 200k && qemu-io -c 'write -P 3 0 "
	 "200k' img",
		3000000, QCOW_PREALLOC_OFF},
	{"qemu-img create -q -f qcow2 -o cluster_size=512 img 200k && qemu-io -c 'write -P 3 0 "
	 "200k' img && qemu-img "
	 "snapshot -c s img",
		70001, QCOW_PREALLOC_OFF},
	{"qemu-img create -q -f qcow2 -o cluster_size=4k,compat=0.10 img 200k && qemu-io -c 'write "
	 "-P 3 0 200k' img",
		300 * KIB, QCOW_PREALLOC_METADATA},
	{"qemu-img create -q -f qcow2 -o cluster_size=512 img 200k && qemu-img bitmap --add -g 512 "
	 "img b && qemu-io -c "
	 "'write -P 3 0 200k' img",
		70001, QCOW_PREALLOC_OFF},
	{"qemu-img create -q -f qcow2 -o cluster_size=64k img 200k && qemu-img bitmap --add -g 512 "
	 "img b && qemu-io -c "
	 "'write -P 3 0 200k' img",
		400 * KIB, QCOW_PREALLOC_OFF},
	{"qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=$PWD/data,data_file_raw=on img "
	 "200k && qemu-io -c 'write -P 3 0 200k' img && head -c 99999 /dev/urandom >>data",
		400 * KIB, QCOW_PREALLOC_OFF},
	{"qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=$PWD/data img 200k && qemu-io "
	 "-c 'write -P 3 0 200k' img",
		70001, QCOW_PREALLOC_OFF},
};

static void make_fresh(const struct failing *f)
{
	sh("rm -f img data data.fresh && %s && mv img fresh && if test -e data; then mv data "
	   "data.fresh; fi",
		f->setup);
}

static void renew(void)
{
	sh("cp fresh img && if test -e data.fresh; then cp data.fresh data; fi");
}

/* The disk is what it was, or what it was to become. */
static void is_before_or_after(const struct failing *f, bool is_done)
{
	struct qkt_image im = open_image(NULL);
	uint64_t size = qcow_size(im.image), kept = f->size < 200 * KIB ? f->size : 200 * KIB;
	assert_true(size == 200 * KIB || size == f->size);
	assert_true(!is_done || size == f->size);
	reads(im.image, 0, size < kept ? size : kept, 3);
	if (size > 200 * KIB)
		reads(im.image, 200 * KIB, size - 200 * KIB, 0);
	check_clean(&im);
	qkt_image_close(&im);
}

/* False: there was no nth call. */
static bool fails_once(const struct failing *f, enum qkt_call call, enum qkt_failure how,
	uint64_t nth, bool recover)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	renew();
	print_message(
		"call %d how %d nth %d recover %d\n", (int)call, (int)how, (int)nth, (int)recover);
	struct qkt_image im = open_image(NULL);
	qkt_fault_arm(im.fault, call, nth, how, !recover);
	bool is_done = resize(im.image, f->size, f->preallocation, &err) == QCOW_OK;
	bool was_hit = qkt_fault_hits(im.fault) != 0;
	if (recover)
		qkt_fault_disarm(im.fault);
	if (recover) {
		assert_ok(qcow_recover(im.image, &err), err);
		check_clean(&im);
		assert_ok(qcow_pwrite(im.image, "\3", 1, 100, 0, &err), err);
		assert_ok(qcow_flush(im.image, &err), err);
	}
	qkt_image_close(&im);
	is_before_or_after(f, is_done);
	return was_hit;
}

static void every_failure_leaves_the_old_disk_or_the_new(void **state)
{
	static const struct {
		enum qkt_call call;
		enum qkt_failure how;
	} kinds[] = {{QKT_FLUSH, QKT_EIO}, {QKT_WRITE, QKT_EIO}, {QKT_ANY, QKT_EIO},
		{QKT_TRUNCATE, QKT_ENOSPC}, {QKT_WRITE, QKT_ENOSPC}};
	(void)state;
	for (size_t i = 0; i < sizeof(failing) / sizeof(failing[0]); i++) {
		make_fresh(&failing[i]);
		for (size_t k = 0; k < 2 * sizeof(kinds) / sizeof(kinds[0]); k++) {
			uint64_t nth = 1;
			while (fails_once(
				&failing[i], kinds[k / 2].call, kinds[k / 2].how, nth, k % 2 != 0))
				nth += 1 + nth / 4;
			assert_true(nth > 1 || kinds[k / 2].call == QKT_TRUNCATE);
		}
	}
}

static void every_allocation_may_fail(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(failing) / sizeof(failing[0]); i++) {
		bool was_hit = true;
		make_fresh(&failing[i]);
		for (uint64_t nth = 1; was_hit; nth += 1 + nth / 4) {
			struct qcow_error err = QCOW_ERROR_INIT;
			/* the checker's own memory would fail */
			const struct qkt_image_options unjudged = {.unjudged = true};
			renew();
			struct qkt_image im = open_image(&unjudged);
			qkt_failmalloc_arm(nth, false);
			bool is_done = resize(im.image, failing[i].size, failing[i].preallocation,
					       &err) == QCOW_OK;
			was_hit = qkt_failmalloc_hits() != 0;
			qkt_failmalloc_arm(0, false);
			assert_ok(qcow_recover(im.image, &err), err);
			qkt_image_close(&im);
			is_before_or_after(&failing[i], is_done);
		}
	}
}

/* ---- refused, and raw ---- */

static void refused(const char *setup, uint64_t size, const struct qcow_resize_options *o,
	enum qcow_status want, const char *words)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	sh("rm -f img base && %s && cp img fresh", setup);
	struct qkt_image im = open_image(NULL);
	assert_status(qcow_resize(im.image, size, o, &err), want, err);
	assert_says(err, words);
	qkt_image_close(&im);
	sh("cmp img fresh");
}

#define CREATE "qemu-img create -q -f qcow2 "

static void what_cannot_be_done_changes_nothing(void **state)
{
	struct qcow_resize_options o = QCOW_RESIZE_OPTIONS_INIT;
	(void)state;
	refused(CREATE "img 1M", 1000, NULL, QCOW_E_INVAL, "shrinking was not asked for");
	refused(CREATE "img 1M", UINT64_C(1) << 63, NULL, QCOW_E_LIMIT, "at most");
	refused(CREATE "-o cluster_size=512 img 1M", UINT64_C(1) << 40, NULL, QCOW_E_LIMIT,
		"L1 table");
	refused(CREATE "-o compat=0.10 img 1M && qemu-img snapshot -c s img", 2 << 20, NULL,
		QCOW_E_UNSUPPORTED, "version 2");
	o.shrink = true;
	o.preallocation = QCOW_PREALLOC_FULL;
	refused(CREATE "img 1M", 1000, &o, QCOW_E_INVAL, "preallocation");
	o.preallocation = (enum qcow_preallocation)9;
	refused(CREATE "img 1M", 2 << 20, &o, QCOW_E_INVAL, "not known");
	o = (struct qcow_resize_options)QCOW_RESIZE_OPTIONS_INIT;
	o.struct_size = 4;
	refused(CREATE "img 1M", 2 << 20, &o, QCOW_E_INVAL, "RESIZE_OPTIONS_INIT");
	o = (struct qcow_resize_options)QCOW_RESIZE_OPTIONS_INIT;
	o.dry_run = true;
	sh("rm -f img && " CREATE "img 1M && cp img fresh");
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im = open_image(&(struct qkt_image_options){.read_only = true});
	assert_ok(qcow_resize(im.image, 5 << 20, &o, &err), err);
	assert_int_equal(qcow_size(im.image), 1 << 20);
	assert_status(qcow_resize(im.image, 5 << 20, NULL, &err), QCOW_E_READONLY, err);
	qkt_image_close(&im);
	sh("cmp img fresh");
}

static bool stop(void *ctx)
{
	unsigned *left = ctx;
	return (*left)-- == 0;
}

static void cancelled_leaves_the_disk_as_it_was(void **state)
{
	unsigned left = 5;
	struct qcow_resize_options o = QCOW_RESIZE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	(void)state;
	o.preallocation = QCOW_PREALLOC_FULL;
	o.progress = (struct qcow_progress){.cancelled = stop, .ctx = &left};
	sh("rm -f img && " CREATE "-o cluster_size=4k img 1M");
	struct qkt_image im = open_image(NULL);
	assert_status(qcow_resize(im.image, 16 << 20, &o, &err), QCOW_E_CANCELLED, err);
	assert_int_equal(qcow_size(im.image), 1 << 20);
	check_clean(&im);
	qkt_image_close(&im);
	sh("qemu-img check -q img");
}

static void raw_disks_too(void **state)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	struct stat st;
	(void)state;
	sh("rm -f img && head -c 100001 /dev/zero | tr '\\0' x >img");
	open.format = "raw";
	open.flags = QCOW_OPEN_WRITE;
	assert_ok(qcow_file_open(in_dir("img"), QCOW_FILE_WRITE, &store, &err), err);
	assert_ok(qcow_open(store, &open, &image, &err), err);
	assert_ok(resize(image, 200001, QCOW_PREALLOC_OFF, &err), err);
	reads(image, 0, 100001, 'x');
	reads(image, 100001, 100000, 0);
	assert_ok(resize(image, 50001, QCOW_PREALLOC_OFF, &err), err);
	assert_ok(resize(image, 60001, QCOW_PREALLOC_OFF, &err), err);
	reads(image, 0, 50001, 'x');
	reads(image, 50001, 10000, 0);
	assert_ok(resize(image, 1 << 20, QCOW_PREALLOC_FALLOC, &err), err);
	assert_ok(resize(image, 2 << 20, QCOW_PREALLOC_FULL, &err), err);
	reads(image, 50001, (2 << 20) - 50001, 0);
	assert_ok(qcow_pwrite(image, "y", 1, (2 << 20) - 1, 0, &err), err);
	assert_status(
		resize(image, 3 << 20, QCOW_PREALLOC_METADATA, &err), QCOW_E_UNSUPPORTED, err);
	qcow_close(image);
	assert_int_equal(stat(in_dir("img"), &st), 0);
	assert_int_equal(st.st_size, 2 << 20);
	assert_true(st.st_blocks * 512 >= 2000000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_sequences),
		cmocka_unit_test(a_longer_backing_file_is_hidden),
		cmocka_unit_test(a_shorter_backing_file_stays_seen),
		cmocka_unit_test(snapshots_keep_their_sizes),
		cmocka_unit_test(preallocation_allocates),
		cmocka_unit_test(bitmaps_follow),
		cmocka_unit_test(every_failure_leaves_the_old_disk_or_the_new),
		cmocka_unit_test(every_allocation_may_fail),
		cmocka_unit_test(what_cannot_be_done_changes_nothing),
		cmocka_unit_test(cancelled_leaves_the_disk_as_it_was),
		cmocka_unit_test(raw_disks_too),
	};
	if (!has_qemu()) {
		print_message("SKIP qemu-img or qemu-io is missing (Debian: qemu-utils)\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
