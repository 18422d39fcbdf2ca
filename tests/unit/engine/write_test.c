/* SPDX-License-Identifier: MIT */
/*
 * Random writes, zeros and discards on images made by qemu-img, beside an array of bytes; every write to the file is
 * judged by the order checker as it passes. In the end qemu-img must find the image clean and the disk equal
 * to the array.
 */
#include "beside.h"

#include "engine/image.h"

struct config {
	const char *name;
	const char *options; /* of qemu-img create */
	const char *setup; /* shell commands on img, or NULL */
	uint64_t size;
	const char *backing; /* bytes of a raw base file, or NULL */
	unsigned steps;
	uint64_t stage_bytes;
};

static const struct config configs[] = {
	{"plain", "", NULL, 50 << 20, NULL, 300, 0},
	{"odd size", "", NULL, (20 << 20) + 12345, NULL, 200, 0},
	{"odd size 512", "cluster_size=512,refcount_bits=1", NULL, (1 << 20) + 77, NULL, 300, 0},
	{"c512", "cluster_size=512", NULL, 4 << 20, NULL, 300, 0},
	{"c512 small stage", "cluster_size=512", NULL, 4 << 20, NULL, 300, 1},
	{"c4k refcount 64", "cluster_size=4k,refcount_bits=64", NULL, 30 << 20, NULL, 300, 0},
	{"c4k refcount 1", "cluster_size=4k,refcount_bits=1", NULL, 30 << 20, NULL, 300, 0},
	{"c2M", "cluster_size=2M", NULL, 100 << 20, NULL, 150, 0},
	{"v2", "compat=0.10", NULL, 20 << 20, NULL, 300, 0},
	{"v2 c512", "compat=0.10,cluster_size=512", NULL, 2 << 20, NULL, 300, 0},
	{"backing", "", NULL, 20 << 20, "12M", 300, 0},
	{"backing odd", "cluster_size=4k", NULL, 8 << 20, "5000001", 300, 0},
	{"v2 backing", "compat=0.10,cluster_size=4k", NULL, 8 << 20, "5000000", 300, 0},
	{"metadata", "preallocation=metadata", NULL, 20 << 20, NULL, 200, 0},
	{"snapshot", "cluster_size=4k",
		"qemu-io -c 'write -P 7 1M 3M' img && qemu-img snapshot -c s img", 8 << 20, NULL,
		300, 0},
	{"snapshot deleted", "cluster_size=64k",
		"qemu-io -c 'write -P 7 1M 3M' img && qemu-img snapshot -c s img &&"
		"qemu-io -c 'write -P 9 2M 3M' img && qemu-img snapshot -c t img && qemu-img "
		"snapshot -d s img",
		8 << 20, NULL, 300, 0},
	{"v2 snapshot", "compat=0.10,cluster_size=1k",
		"qemu-io -c 'write -P 7 1M 1M' img && qemu-img snapshot -c s img", 4 << 20, NULL,
		300, 0},
	{"compressed", "cluster_size=4k",
		"qemu-io -c 'write -P 7 0 3M' img && qemu-img convert -c -O qcow2 -o "
		"cluster_size=4k img i2 && mv i2 img",
		8 << 20, NULL, 300, 0},
	{"compressed zstd", "",
		"qemu-io -c 'write -P 7 0 6M' img &&"
		"qemu-img convert -c -O qcow2 -o compression_type=zstd img i2 && mv i2 img",
		8 << 20, NULL, 300, 0},
	{"zero clusters", "cluster_size=4k",
		"qemu-io -c 'write -P 7 0 3M' -c 'write -z 1M 1M' -c 'write -z -u 5M 1M' img",
		8 << 20, NULL, 300, 0},
	{"subclusters", "extended_l2=on", NULL, 20 << 20, NULL, 300, 0},
	{"subclusters of 512", "extended_l2=on,cluster_size=16k,refcount_bits=64", NULL,
		(6 << 20) + 777, NULL, 400, 1},
	{"subclusters of 64k", "extended_l2=on,cluster_size=2M", NULL, 60 << 20, NULL, 150, 0},
	{"subclusters backing", "extended_l2=on,cluster_size=32k", NULL, 12 << 20, "9000001", 400,
		0},
	{"subclusters metadata", "extended_l2=on,preallocation=metadata", NULL, 12 << 20, NULL, 200,
		0},
	{"subclusters snapshot", "extended_l2=on,cluster_size=16k",
		"qemu-io -c 'write -P 7 1M 3M' -c 'write -P 8 5M 2k' -c 'write -P 9 5128k 1k' img "
		"&&"
		"qemu-img snapshot -c s img && qemu-io -c 'write -z 2M 9k' img",
		8 << 20, NULL, 400, 0},
	{"subclusters backing snapshot", "extended_l2=on,cluster_size=16k",
		"qemu-io -c 'write -P 7 1M 1k' -c 'write -P 8 1030k 3k' -c 'write -P 9 2M 1M' img "
		"&&"
		"qemu-img snapshot -c s img",
		4 << 20, "3M", 400, 0},
	{"subclusters bitmap", "extended_l2=on",
		"qemu-img bitmap --add img b && qemu-io -c 'write -P 7 1M 100k' img", 8 << 20, NULL,
		200, 0},
	{"data file", "data_file=data", NULL, 20 << 20, NULL, 300, 0},
	{"data file c4k", "data_file=data,cluster_size=4k",
		"qemu-io -c 'write -P 7 1M 3M' -c 'write -z 2M 1M' -c 'discard 3M 64k' img",
		(8 << 20) + 1024, NULL, 400, 1},
	{"data file subclusters", "data_file=data,cluster_size=16k,extended_l2=on",
		"qemu-io -c 'write -P 7 1M 3M' -c 'write -z 2M 9k' img", 8 << 20, NULL, 400, 0},
	{"data file raw", "data_file=data,data_file_raw=on", NULL, 20 << 20, NULL, 300, 0},
	{"data file raw c4k", "data_file=data,data_file_raw=on,cluster_size=4k", NULL, 8 << 20,
		NULL, 300, 0},
	{"data file backing", "data_file=data,cluster_size=4k", NULL, 8 << 20, "5000001", 300, 0},
	{"subclusters compressed", "extended_l2=on,cluster_size=16k",
		"qemu-io -c 'write -P 7 0 3M' img && qemu-img convert -c -O qcow2 -o "
		"extended_l2=on,cluster_size=16k img i2 && mv i2 img",
		8 << 20, NULL, 400, 0},
};

static void make_image(const struct config *c)
{
	sh("rm -f img base data");
	if (c->backing != NULL)
		sh("head -c %s /dev/urandom >base", c->backing);
	sh("qemu-img create -f qcow2 %s%s %s img %llu", c->options[0] != 0 ? "-o " : "", c->options,
		c->backing != NULL ? "-b base -F raw" : "", (unsigned long long)c->size);
	if (c->setup != NULL)
		sh("%s", c->setup);
}

static void step(struct qcow_image *image, struct disk *d, uint64_t *seed)
{
	uint64_t kind = next_random(seed) % 16;
	uint64_t off = next_random(seed) % d->size;
	uint64_t most = next_random(seed) % 3 == 0 ? MAX_LEN : 9000;
	uint64_t len = next_random(seed) % most;
	if (next_random(seed) % 3 == 0) {
		off &= ~(d->cluster - 1);
		len = (len + d->cluster) & ~(d->cluster - 1);
	}
	len = len > d->size - off ? d->size - off : len;
	unsigned fua = next_random(seed) % 16 == 0 ? QCOW_IO_FUA : 0;
	if (kind < 8) {
		for (size_t i = 0; i < len; i++)
			d->bytes[off + i] = (uint8_t)(next_random(seed) >> 8);
		disk_write(image, d, off, len, fua);
	} else if (kind < 11) {
		disk_zero(image, d, off, len, fua | (kind == 8 ? (unsigned)QCOW_IO_UNMAP : 0));
	} else if (kind < 12) {
		disk_discard(image, d, off, len, fua);
	} else if (kind < 15) {
		disk_read(image, d, off, len);
	} else {
		struct qcow_error err = QCOW_ERROR_INIT;
		assert_int_equal(qcow_flush(image, &err), QCOW_OK);
	}
}

static void run_config(const struct config *c)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_info info;
	make_image(c);
	sh("qemu-img convert -O raw img before; qemu-img snapshot -l img >snaps");
	struct bench b = open_bench(&(struct bench_options){.stage_bytes = c->stage_bytes});
	struct disk d = disk_of(b.image, c->size);
	qcow_get_info(b.image, &info);
	d.discards = info.version == 3 || c->backing == NULL;
	uint64_t seed = 88172645463325252 + c->size;
	for (unsigned i = 0; i < c->steps; i++)
		step(b.image, &d, &seed);
	uint8_t *all = malloc(d.size);
	assert_int_equal(qcow_pread(b.image, all, d.size, 0, &err), QCOW_OK);
	assert_memory_equal(all, d.bytes, d.size);
	assert_int_equal(qcow_flush(b.image, &err), QCOW_OK);
	free(all);
	/* what is allocated from the start stays so */
	bool is_raw_data = strstr(c->options, "data_file_raw") != NULL;
	assert_true(qkt_order_judged(b.order) > 0 || is_raw_data);
	close_bench(&b);
	judge_by_qemu(d.bytes, d.size, c->name);
	if (is_raw_data)
		sh("head -c %llu data | cmp - truth && "
		   "qemu-img info img | grep -q 'data file raw: true'",
			(unsigned long long)c->size);
	disk_free(&d);
}

/* The L1 table moves when something is written past what it can map. */
static void l1_table_that_is_too_small_grows(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	const uint64_t size = 40 << 20;
	sh("rm -f img && qemu-img create -f qcow2 -o cluster_size=512 img 4M && qemu-io -c 'write "
	   "-P 3 1M 1M' img");
	struct bench b = open_bench(&(struct bench_options){0});
	/* such an image is refused; here the disk grows while it is open, as a resize will do it */
	b.image->size = size;
	uint8_t *bytes = calloc(1, size);
	memset(bytes + (1 << 20), 3, 1 << 20);
	memset(bytes + (35 << 20), 8, 70000);
	memset(bytes + size - 9, 7, 9);
	assert_int_equal(qcow_size(b.image), size);
	assert_int_equal(
		qcow_pwrite(b.image, bytes + (35 << 20), 70000, 35 << 20, 0, &err), QCOW_OK);
	assert_int_equal(
		qcow_pwrite(b.image, bytes + size - 9, 9, size - 9, QCOW_IO_FUA, &err), QCOW_OK);
	struct qcow_check_options o = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	assert_int_equal(qcow_check(b.image, &o, &result, &err), QCOW_OK);
	assert_int_equal(result.corruptions, 0);
	close_bench(&b);
	poke64("img", 24, size);
	judge_by_qemu(bytes, size, "grown L1");
	free(bytes);
}

/* A refcount table of one cluster names 64 blocks of 256 clusters of 512 bytes: 8 MiB. */
static void check_of_an_open_image_sees_tables_that_moved(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_options o = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	const uint64_t size = 12 << 20;
	sh("rm -f img && qemu-img create -f qcow2 -o cluster_size=512 img %llu",
		(unsigned long long)size);
	struct bench b = open_bench(&(struct bench_options){0});
	uint8_t *bytes = malloc(size);
	memset(bytes, 0x77, size);
	assert_int_equal(qcow_pwrite(b.image, bytes, size, 0, QCOW_IO_FUA, &err), QCOW_OK);
	assert_int_equal(qcow_check(b.image, &o, &result, &err), QCOW_OK);
	assert_int_equal(result.corruptions, 0);
	assert_int_equal(result.allocated_clusters, size / 512);
	close_bench(&b);
	judge_by_qemu(bytes, size, "grown refcount table");
	free(bytes);
}

static void refuse(const char *make, const struct qcow_open_options *options, unsigned file_flags,
	enum qcow_status want, const char *words)
{
	struct qcow_open_options o = *options;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	sh("rm -f img data && %s && cp img before", make);
	o.flags = QCOW_OPEN_WRITE;
	o.resolve = resolve_in_dir;
	assert_int_equal(qcow_file_open(in_dir("img"), file_flags, &store, &err), QCOW_OK);
	assert_int_equal(qcow_open(store, &o, &image, &err), want);
	if (strstr(err.message, words) == NULL)
		fail_msg("%s: no '%s' in '%s'", make, words, err.message);
	sh("cmp img before");
}

static void what_cannot_be_written_is_refused(void **state)
{
	(void)state;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	refuse("qemu-img create -f qcow2 img 1M", &o, 0, QCOW_E_READONLY, "reading only");
	refuse("qemu-img create --object secret,id=s,data=x -f qcow2 "
	       "-o encrypt.format=aes,encrypt.key-secret=s img 1M",
		&o, QCOW_FILE_WRITE, QCOW_E_KEY, "encrypted");
	o.snapshot = "s";
	refuse("qemu-img create -f qcow2 img 1M && qemu-img snapshot -c s img", &o, QCOW_FILE_WRITE,
		QCOW_E_READONLY, "snapshot");
}

/* Bitmaps that record nothing stay as they are. */
static void disabled_bitmap_survives_writes(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	sh("rm -f img && qemu-img create -f qcow2 img 4M && qemu-img bitmap --add img b &&"
	   "qemu-io -c 'write 1M 1M' img && qemu-img bitmap --disable img b");
	struct bench b = open_bench(&(struct bench_options){0});
	for (uint64_t off = 0; off < 4 << 20; off += 100000)
		assert_int_equal(qcow_pwrite(b.image, "abc", 3, off, 0, &err), QCOW_OK);
	assert_int_equal(qcow_flush(b.image, &err), QCOW_OK);
	close_bench(&b);
	sh("qemu-img check img && qemu-img info img | grep -q 'name: b'");
}

static void raw_disk_is_written_in_place(void **state)
{
	(void)state;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	const uint64_t size = (3 << 20) + 100;
	sh("rm -f raw && truncate -s %llu raw", (unsigned long long)size);
	assert_int_equal(qcow_file_open(in_dir("raw"), QCOW_FILE_WRITE, &store, &err), QCOW_OK);
	o.flags = QCOW_OPEN_WRITE;
	o.format = "raw";
	assert_int_equal(qcow_open(store, &o, &image, &err), QCOW_OK);
	struct disk d = disk_of(image, size);
	d.cluster = 1;
	d.discards = true; /* of a file on tmpfs: holes are punched */
	uint64_t seed = 4711;
	for (unsigned i = 0; i < 300; i++)
		step(image, &d, &seed);
	qcow_close(image);
	size_t n = 0;
	uint8_t *got = slurp("raw", &n);
	assert_int_equal(n, size);
	assert_memory_equal(got, d.bytes, size);
	free(got);
	disk_free(&d);
}

static void random_steps_agree_with_an_array(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++)
		if (is_wanted_config(configs[i].name))
			run_config(&configs[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(l1_table_that_is_too_small_grows),
		cmocka_unit_test(check_of_an_open_image_sees_tables_that_moved),
		cmocka_unit_test(what_cannot_be_written_is_refused),
		cmocka_unit_test(disabled_bitmap_survives_writes),
		cmocka_unit_test(raw_disk_is_written_in_place),
		cmocka_unit_test(random_steps_agree_with_an_array),
	};
	if (!has_qemu()) {
		print_message("SKIP qemu-img or qemu-io is missing (Debian: qemu-utils)\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
