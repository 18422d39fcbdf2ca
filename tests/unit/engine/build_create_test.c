/* SPDX-License-Identifier: MIT */
/*
 * Empty images: byte for byte those of the newest qemu-img where that has one layout for them, and clean
 * for both QEMUs always.
 */
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <qcowkit/qcowkit.h>

#include "build_peer.h"
#include "cm.h"

static struct qcow_store *open_new(const char *path)
{
	struct qcow_store *store = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;

	(void)unlink(path);
	assert_ok(qcow_file_open(path, QCOW_FILE_WRITE | QCOW_FILE_CREATE, &store, &err), err);
	return store;
}

static void create(const char *path, const struct qcow_create_options *o)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = open_new(path);
	struct qcow_store *data = o->data_file_name != NULL ? open_new(o->data_file_name) : NULL;

	assert_ok(qcow_create(store, data, o, &err), err);
	qcow_store_close(store);
	qcow_store_close(data);
}

static const char *const prealloc_names[] = {"off", "metadata", "falloc", "full"};

/* qemu-img's options for ours. */
static void describe(const struct qcow_create_options *o, char *out, size_t room)
{
	int n = snprintf(out, room,
		"-o "
		"compat=%s,cluster_size=%llu,refcount_bits=%u,compression_type=%s,extended_l2=%s,"
		"lazy_refcounts=%s,preallocation=%s",
		o->version == 2 ? "0.10" : "1.1", (unsigned long long)o->cluster_size,
		o->refcount_bits, o->compression == QCOW_COMPRESSION_ZSTD ? "zstd" : "zlib",
		o->extended_l2 ? "on" : "off", o->lazy_refcounts ? "on" : "off",
		prealloc_names[o->preallocation]);
	if (o->data_file_name != NULL)
		n += snprintf(out + n, room - (size_t)n, ",data_file=%s,data_file_raw=%s",
			o->data_file_name, o->data_file_raw ? "on" : "off");
	if (o->backing_name != NULL)
		n += snprintf(out + n, room - (size_t)n, " -u -b %s -F %s", o->backing_name,
			o->backing_format);
	assert_in_range(n, 1, room - 1);
}

static void assert_same_as_qemu(const struct qcow_create_options *o)
{
	char text[700];

	describe(o, text, sizeof(text));
	create("ours", o);
	assert_true(peer_run("rm -f theirs; %s create -q -f qcow2 %s theirs %llu", peer_newest(),
		text, (unsigned long long)o->virtual_size));
	/* cmp would read the holes */
	if (!peer_run("test $(stat -c %%s ours) = $(stat -c %%s theirs) && "
		      "%s compare -f raw -F raw ours theirs",
		    peer_newest()))
		fail_msg("size %llu %s differs", (unsigned long long)o->virtual_size, text);
	peer_check_clean("ours", text);
}

static const uint64_t sizes[] = {0, 512, 65536, 1000448, 100ULL << 20, (1ULL << 30) + 512};

static void empty_images_are_those_of_qemu_at_every_cluster_size(void **state)
{
	(void)state;
	for (uint64_t cluster = 512; cluster <= 2U << 20; cluster *= 2) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		o.cluster_size = cluster;
		for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]);
			i += cluster == 65536 ? 1 : 2) {
			o.virtual_size = sizes[i];
			assert_same_as_qemu(&o);
		}
		o.version = 2;
		o.virtual_size = 3ULL << 20;
		assert_same_as_qemu(&o);
	}
}

static void empty_images_are_those_of_qemu_at_every_refcount_width(void **state)
{
	(void)state;
	for (uint32_t bits = 1; bits <= 64; bits *= 2) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		o.refcount_bits = bits;
		o.virtual_size = 5ULL << 30;
		assert_same_as_qemu(&o);
		o.cluster_size = 1024;
		o.virtual_size = 2ULL << 30;
		assert_same_as_qemu(&o);
	}
}

static void every_feature_is_written_as_qemu_writes_it(void **state)
{
	(void)state;
	assert_true(peer_run("mkdir -p base && truncate -s 1M base/disk.img"));
	for (unsigned bits = 0; bits < 16; bits++) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		o.virtual_size = 77ULL << 20;
		o.compression = (bits & 1) != 0 ? QCOW_COMPRESSION_ZSTD : QCOW_COMPRESSION_ZLIB;
		o.extended_l2 = (bits & 2) != 0;
		o.lazy_refcounts = (bits & 4) != 0;
		if ((bits & 8) != 0) {
			o.backing_name = "base/disk.img";
			o.backing_format = "raw";
		}
		assert_same_as_qemu(&o);
	}
	struct qcow_create_options v2 = QCOW_CREATE_OPTIONS_INIT;
	v2.version = 2;
	v2.virtual_size = 1U << 20;
	v2.backing_name = "base/disk.img";
	v2.backing_format = "raw";
	assert_same_as_qemu(&v2);
}

static void preallocated_metadata_is_that_of_qemu(void **state)
{
	(void)state;
	static const uint64_t disk[] = {512, 3ULL << 20, 1000448, 600ULL << 20};
	for (size_t i = 0; i < sizeof(disk) / sizeof(disk[0]); i++) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		o.preallocation = QCOW_PREALLOC_METADATA;
		o.virtual_size = disk[i];
		assert_same_as_qemu(&o);
		o.extended_l2 = true;
		assert_same_as_qemu(&o);
		o.cluster_size = 2U << 20;
		assert_same_as_qemu(&o);
		o.extended_l2 = false;
		o.version = 2;
		assert_same_as_qemu(&o);
	}
	/* a second refcount block in the middle of the data */
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
	o.preallocation = QCOW_PREALLOC_METADATA;
	o.virtual_size = 2ULL << 30;
	assert_same_as_qemu(&o);
}

static void data_files_are_recorded_as_qemu_records_them(void **state)
{
	(void)state;
	for (unsigned bits = 0; bits < 4; bits++) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		o.virtual_size = 40ULL << 20;
		o.data_file_name = "disk.raw";
		o.data_file_raw = (bits & 1) != 0;
		o.preallocation = (bits & 2) != 0 ? QCOW_PREALLOC_METADATA : QCOW_PREALLOC_OFF;
		assert_same_as_qemu(&o);
		struct stat st = {0};
		create("ours", &o);
		assert_int_equal(stat("disk.raw", &st), 0);
		assert_int_equal(st.st_size, o.virtual_size);
	}
}

/* Layouts that are ours: clean, and the disk reads as zeros. */
static void every_preallocation_is_clean_and_reads_as_zeros(void **state)
{
	(void)state;
	for (uint64_t cluster = 512; cluster <= 2U << 20; cluster *= 8) {
		for (unsigned mode = QCOW_PREALLOC_METADATA; mode <= QCOW_PREALLOC_FULL; mode++) {
			struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
			o.virtual_size = (23ULL << 20) + 512;
			o.cluster_size = cluster;
			o.preallocation = (enum qcow_preallocation)mode;
			for (unsigned bits = mode == QCOW_PREALLOC_METADATA ? 1 : 16; bits <= 64;
				bits *= 8) {
				struct stat st = {0};
				char what[100];
				o.refcount_bits = bits;
				(void)snprintf(what, sizeof(what), "cluster %u mode %u bits %u",
					(unsigned)cluster, mode, bits);
				create("ours", &o);
				peer_check_clean("ours", what);
				assert_int_equal(stat("ours", &st), 0);
				assert_true(st.st_size >= (off_t)o.virtual_size);
				if (mode >= QCOW_PREALLOC_FALLOC)
					assert_true(st.st_blocks * 512 >= (off_t)o.virtual_size);
				assert_true(peer_run(
					"truncate -s %llu zeros && %s compare -f qcow2 -F raw "
					"ours zeros",
					(unsigned long long)o.virtual_size, peer_newest()));
			}
		}
	}
}

static void preallocation_with_extended_l2_shows_the_backing_file(void **state)
{
	(void)state;
	assert_true(peer_run("head -c 3000320 /dev/urandom >base.raw"));
	for (unsigned mode = QCOW_PREALLOC_METADATA; mode <= QCOW_PREALLOC_FULL; mode++) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		o.virtual_size = 3000320;
		o.extended_l2 = true;
		o.backing_name = "base.raw";
		o.backing_format = "raw";
		o.preallocation = (enum qcow_preallocation)mode;
		create("ours", &o);
		peer_check_clean("ours", prealloc_names[mode]);
		assert_true(peer_run("%s compare -f qcow2 -F raw ours base.raw", peer_newest()));
	}
}

static void a_kept_data_file_is_the_disk(void **state)
{
	(void)state;
	for (unsigned raw = 0; raw < 2; raw++) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_store *store = open_new("ours");
		struct qcow_store *data = NULL;
		assert_true(
			peer_run("head -c 3000320 /dev/urandom >kept.raw; cp kept.raw copy.raw"));
		assert_ok(qcow_file_open("kept.raw", QCOW_FILE_WRITE, &data, &err), err);
		o.virtual_size = 3000320;
		o.data_file_name = "kept.raw";
		o.keep_data_file = true;
		o.data_file_raw = raw == 1;
		o.preallocation = raw == 1 ? QCOW_PREALLOC_OFF : QCOW_PREALLOC_METADATA;
		assert_ok(qcow_create(store, data, &o, &err), err);
		qcow_store_close(store);
		qcow_store_close(data);
		assert_true(peer_run("cmp kept.raw copy.raw"));
		assert_true(peer_run("%s compare -f qcow2 -F raw ours copy.raw", peer_newest()));
	}
}

static void odd_sizes_are_kept(void **state)
{
	(void)state;
	static const uint64_t odd[] = {1, 511, 513, 1000, 1234567};
	for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		struct qcow_store *store = NULL;
		struct qcow_error err = QCOW_ERROR_INIT;
		uint8_t head[32];
		uint8_t want[8];
		o.virtual_size = odd[i];
		create("ours", &o);
		assert_ok(qcow_file_open("ours", 0, &store, &err), err);
		assert_ok(qcow_store_read(store, head, sizeof(head), 0, &err), err);
		qcow_store_close(store);
		for (int k = 0; k < 8; k++)
			want[k] = (uint8_t)(odd[i] >> (56 - 8 * k));
		assert_memory_equal(head + 24, want, 8);
		peer_check_clean("ours", "odd size");
	}
}

static double cpu_seconds_since(const struct timespec *begin)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (double)(now.tv_sec - begin->tv_sec) + (double)(now.tv_nsec - begin->tv_nsec) / 1e9;
}

static void a_pebibyte_takes_no_time_and_no_space(void **state)
{
	(void)state;
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
	struct timespec begin;
	struct stat st = {0};

	o.virtual_size = 1ULL << 50;
	(void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
	create("ours", &o);
	assert_true(cpu_seconds_since(&begin) < 0.5); /* it takes 4 milliseconds */
	assert_int_equal(stat("ours", &st), 0);
	assert_true(st.st_blocks * 512 < 1 << 20);
	peer_check_clean("ours", "1 PiB");
}

static void assert_refused(
	const struct qcow_create_options *o, enum qcow_status status, const char *words)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	assert_status(qcow_create_validate(o, &err), status, err);
	assert_says(err, words);
	struct qcow_store *store = NULL;
	assert_ok(qcow_memory_open(0, &store, &err), err);
	assert_status(qcow_create(store, NULL, o, &err), status, err);
	uint64_t size = 1;
	assert_ok(qcow_store_size(store, &size, &err), err);
	assert_int_equal(size, 0);
	qcow_store_close(store);
}

#define REFUSED(status, words, ...)                                      \
	do {                                                             \
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT; \
		o.virtual_size = 1 << 20;                                \
		__VA_ARGS__;                                             \
		assert_refused(&o, status, words);                       \
	} while (0)

static void options_that_do_not_go_together_are_refused_by_name(void **state)
{
	(void)state;
	char name[1025];
	memset(name, 'n', sizeof(name));
	name[1024] = '\0';
	REFUSED(QCOW_E_UNSUPPORTED, "version 4", o.version = 4);
	REFUSED(QCOW_E_UNSUPPORTED, "version 1", o.version = 1);
	REFUSED(QCOW_E_INVAL, "not 1000", o.cluster_size = 1000);
	REFUSED(QCOW_E_INVAL, "not 256", o.cluster_size = 256);
	REFUSED(QCOW_E_INVAL, "not 4194304", o.cluster_size = 4U << 20);
	REFUSED(QCOW_E_INVAL, "not 0", o.cluster_size = 0);
	REFUSED(QCOW_E_INVAL, "3 is not", o.refcount_bits = 3);
	REFUSED(QCOW_E_INVAL, "0 is not", o.refcount_bits = 0);
	REFUSED(QCOW_E_INVAL, "128 is not", o.refcount_bits = 128);
	REFUSED(QCOW_E_INVAL, "16384", o.extended_l2 = true; o.cluster_size = 8192);
	REFUSED(QCOW_E_UNSUPPORTED, "type 2", o.compression = (enum qcow_compression)2);
	REFUSED(QCOW_E_INVAL, "refcount width", o.version = 2; o.refcount_bits = 8);
	REFUSED(QCOW_E_INVAL, "zlib", o.version = 2; o.compression = QCOW_COMPRESSION_ZSTD);
	REFUSED(QCOW_E_INVAL, "extended L2", o.version = 2; o.extended_l2 = true);
	REFUSED(QCOW_E_INVAL, "lazy", o.version = 2; o.lazy_refcounts = true);
	REFUSED(QCOW_E_INVAL, "data file", o.version = 2; o.data_file_name = "d");
	REFUSED(QCOW_E_INVAL, "data_file_raw requires", o.data_file_raw = true);
	REFUSED(QCOW_E_INVAL, "keep_data_file requires data_file", o.keep_data_file = true);
	REFUSED(QCOW_E_INVAL, "not be visible", o.keep_data_file = true; o.data_file_name = "d");
	REFUSED(QCOW_E_INVAL, "overwrite", o.keep_data_file = true; o.data_file_name = "d";
		o.data_file_raw = true; o.preallocation = QCOW_PREALLOC_FULL);
	REFUSED(QCOW_E_INVAL, "Backing file and data_file_raw", o.backing_name = "b";
		o.data_file_name = "d"; o.data_file_raw = true);
	REFUSED(QCOW_E_INVAL, "extended_l2 is on", o.backing_name = "b";
		o.preallocation = QCOW_PREALLOC_METADATA);
	REFUSED(QCOW_E_INVAL, "mode 7", o.preallocation = (enum qcow_preallocation)7);
	REFUSED(QCOW_E_INVAL, "requires a backing file", o.backing_format = "raw");
	REFUSED(QCOW_E_INVAL, "1024 bytes", o.backing_name = name);
	REFUSED(QCOW_E_INVAL, "is empty", o.backing_name = "");
	REFUSED(QCOW_E_INVAL, "16 bytes", o.backing_name = "b";
		o.backing_format = "0123456789abcdef");
	REFUSED(QCOW_E_LIMIT, "over", o.virtual_size = 1ULL << 63);
	REFUSED(QCOW_E_LIMIT, "L1", o.virtual_size = 1ULL << 62);
	REFUSED(QCOW_E_LIMIT, "L1", o.virtual_size = 1ULL << 40; o.cluster_size = 512);
	REFUSED(QCOW_E_LIMIT, "", o.cluster_size = 512; o.backing_name = name + 600);
	REFUSED(QCOW_E_INVAL, "INIT", o.struct_size = 4);
	struct {
		struct qcow_create_options o;
		uint64_t later; /* of a version to come */
	} longer = {.o = QCOW_CREATE_OPTIONS_INIT, .later = 1};
	struct qcow_error err = QCOW_ERROR_INIT;
	longer.o.struct_size = sizeof(longer);
	longer.o.virtual_size = 65536;
	assert_status(qcow_create_validate(&longer.o, &err), QCOW_E_UNSUPPORTED, err);
	assert_status(qcow_create_validate(NULL, &err), QCOW_E_INVAL, err);
	longer.later = 0;
	assert_status(qcow_create_validate(&longer.o, &err), QCOW_OK, err);
}

int main(void)
{
	const struct CMUnitTest alone[] = {
		cmocka_unit_test(options_that_do_not_go_together_are_refused_by_name),
	};
	const struct CMUnitTest judged[] = {
		cmocka_unit_test(empty_images_are_those_of_qemu_at_every_cluster_size),
		cmocka_unit_test(empty_images_are_those_of_qemu_at_every_refcount_width),
		cmocka_unit_test(every_feature_is_written_as_qemu_writes_it),
		cmocka_unit_test(preallocated_metadata_is_that_of_qemu),
		cmocka_unit_test(data_files_are_recorded_as_qemu_records_them),
		cmocka_unit_test(every_preallocation_is_clean_and_reads_as_zeros),
		cmocka_unit_test(preallocation_with_extended_l2_shows_the_backing_file),
		cmocka_unit_test(a_kept_data_file_is_the_disk),
		cmocka_unit_test(odd_sizes_are_kept),
		cmocka_unit_test(a_pebibyte_takes_no_time_and_no_space),
	};
	int failed = cmocka_run_group_tests(alone, NULL, NULL);
	if (failed == 0)
		failed = cmocka_run_group_tests(judged, peer_enter, peer_leave);
	return peer_verdict(failed);
}
