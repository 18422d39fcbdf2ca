/* SPDX-License-Identifier: MIT */
/*
 * measure says what the newest qemu-img says, for empty disks and for images, and a full image is no larger.
 */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qcowkit/ops.h>

#include "../engine/build_peer.h"
#include "cm.h"

#define ABSENT UINT64_MAX

/* The number behind "key": in qemu-img's JSON. */
static uint64_t number_of(const char *json, const char *key)
{
	const char *at = strstr(json, key);

	if (at == NULL)
		return ABSENT;
	return strtoull(at + strlen(key) + 3, NULL, 10);
}

static bool ask_qemu(const char *options, const char *what, struct qcow_measure_result *out)
{
	char json[4096] = "";

	if (!peer_run("%s measure --output json -O qcow2 %s %s", peer_newest(), options, what))
		return false;
	FILE *f = fopen("peer.log", "rb");
	assert_non_null(f);
	size_t n = fread(json, 1, sizeof(json) - 1, f);
	(void)fclose(f);
	json[n] = '\0';
	out->required = number_of(json, "required");
	out->fully_allocated = number_of(json, "fully-allocated");
	out->bitmaps = number_of(json, "bitmaps");
	out->has_bitmaps = out->bitmaps != ABSENT;
	return true;
}

struct variant {
	const char *text;
	uint64_t cluster_size;
	uint32_t refcount_bits, version;
	bool extended_l2;
	enum qcow_preallocation preallocation;
};

static const struct variant variants[] = {
	{"", 65536, 16, 3, false, QCOW_PREALLOC_OFF},
	{"-o compat=0.10", 65536, 16, 2, false, QCOW_PREALLOC_OFF},
	{"-o cluster_size=512", 512, 16, 3, false, QCOW_PREALLOC_OFF},
	{"-o cluster_size=512,refcount_bits=64", 512, 64, 3, false, QCOW_PREALLOC_OFF},
	{"-o cluster_size=4k,refcount_bits=1", 4096, 1, 3, false, QCOW_PREALLOC_OFF},
	{"-o cluster_size=2M", 2U << 20, 16, 3, false, QCOW_PREALLOC_OFF},
	{"-o extended_l2=on", 65536, 16, 3, true, QCOW_PREALLOC_OFF},
	{"-o preallocation=metadata", 65536, 16, 3, false, QCOW_PREALLOC_METADATA},
	{"-o preallocation=full", 65536, 16, 3, false, QCOW_PREALLOC_FULL},
};
#define N_VARIANTS (sizeof(variants) / sizeof(variants[0]))

static struct qcow_create_options options_of(const struct variant *v)
{
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;

	o.cluster_size = v->cluster_size;
	o.refcount_bits = v->refcount_bits;
	o.version = v->version;
	o.extended_l2 = v->extended_l2;
	o.preallocation = v->preallocation;
	return o;
}

static void assert_same(const struct qcow_measure_result *ours,
	const struct qcow_measure_result *theirs, const char *options, const char *what)
{
	if (ours->required != theirs->required || ours->fully_allocated != theirs->fully_allocated)
		fail_msg("%s %s: required %llu, QEMU %llu; full %llu, QEMU %llu", what, options,
			(unsigned long long)ours->required, (unsigned long long)theirs->required,
			(unsigned long long)ours->fully_allocated,
			(unsigned long long)theirs->fully_allocated);
	assert_int_equal(ours->has_bitmaps, theirs->has_bitmaps);
	if (ours->has_bitmaps)
		assert_int_equal(ours->bitmaps, theirs->bitmaps);
}

static void empty_disks_measure_as_with_qemu(void **state)
{
	(void)state;
	static const uint64_t sizes[] = {0, 1, 512, 65536, 65537, 100ULL << 20, 1ULL << 30,
		(10ULL << 30) + 512, 1ULL << 40, (16ULL << 40) - 1, 100ULL << 40, 1ULL << 50};
	for (size_t v = 0; v < N_VARIANTS; v++) {
		for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			struct qcow_create_options o = options_of(&variants[v]);
			struct qcow_measure_result ours = {0};
			struct qcow_measure_result theirs = {0};
			struct qcow_error err = QCOW_ERROR_INIT;
			char what[40];
			if (sizes[i] > 1ULL << 36 && o.cluster_size < 65536)
				continue;
			(void)snprintf(
				what, sizeof(what), "--size %llu", (unsigned long long)sizes[i]);
			o.virtual_size = sizes[i];
			assert_ok(qcow_measure(NULL, "qcow2", &o, &ours, &err), err);
			assert_true(ask_qemu(variants[v].text, what, &theirs));
			assert_same(&ours, &theirs, variants[v].text, what);
		}
	}
}

static void disks_that_no_table_can_map_are_refused(void **state)
{
	(void)state;
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_measure_result out = {.required = 7};
	struct qcow_error err = QCOW_ERROR_INIT;

	o.cluster_size = 512;
	o.virtual_size = 1ULL << 40;
	assert_status(qcow_measure(NULL, "qcow2", &o, &out, &err), QCOW_E_LIMIT, err);
	assert_int_equal(out.required, 7);
	assert_status(qcow_measure(NULL, "vmdk", &o, &out, &err), QCOW_E_UNSUPPORTED, err);
	assert_says(err, "vmdk");
	assert_ok(qcow_measure(NULL, "raw", &o, &out, &err), err);
	assert_int_equal(out.required, 1ULL << 40);
	assert_int_equal(out.fully_allocated, 1ULL << 40);
}

static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	(void)ctx;
	out->format = ref->format;
	return qcow_file_open(ref->name, 0, &out->store, err);
}

static void image_measures_as_with_qemu(const char *path, const char *format)
{
	for (size_t v = 0; v < N_VARIANTS; v++) {
		struct qcow_create_options o = options_of(&variants[v]);
		struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
		struct qcow_measure_result ours = {0};
		struct qcow_measure_result theirs = {0};
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_store *store = NULL;
		struct qcow_image *image = NULL;
		char what[100];
		open.format = format;
		open.resolve = resolve;
		assert_ok(qcow_file_open(path, 0, &store, &err), err);
		assert_ok(qcow_open(store, &open, &image, &err), err);
		assert_ok(qcow_measure(image, "qcow2", &o, &ours, &err), err);
		qcow_close(image);
		(void)snprintf(what, sizeof(what), "-f %s %s", format, path);
		assert_true(ask_qemu(variants[v].text, what, &theirs));
		assert_same(&ours, &theirs, variants[v].text, what);
	}
}

static void images_measure_as_with_qemu(void **state)
{
	(void)state;
	const char *q = peer_newest();

	assert_true(peer_run(
		"truncate -s 10M r && printf abc | dd of=r bs=1 seek=5000000 conv=notrunc && "
		"dd if=/dev/urandom of=r bs=4k count=3 seek=100 conv=notrunc"));
	image_measures_as_with_qemu("r", "raw");
	assert_true(peer_run("%s convert -O qcow2 r q && %s convert -c -O qcow2 r c && "
			     "%s convert -O qcow2 -o cluster_size=1k,extended_l2=off r k",
		q, q, q));
	image_measures_as_with_qemu("q", "qcow2");
	image_measures_as_with_qemu("c", "qcow2");
	image_measures_as_with_qemu("k", "qcow2");
	assert_true(peer_run("%s create -q -f qcow2 -o preallocation=metadata m 300M", q));
	image_measures_as_with_qemu("m", "qcow2");
	assert_true(peer_run("%s create -q -f qcow2 -b k -F qcow2 o 12M && "
			     "%s bitmap --add o first && %s bitmap --add -g 512 o a-second-one && "
			     "%s create -q -f qcow2 -o compat=0.10 -b o -F qcow2 p 11M",
		q, q, q, q));
	image_measures_as_with_qemu("o", "qcow2");
	image_measures_as_with_qemu("p", "qcow2");
}

/* A granularity that no bitmap has is no shift: like one in use, such a bitmap is not copied. */
static void broken_bitmaps_are_not_measured(void **state)
{
	static const uint8_t granularities[] = {32, 63, 64, 255};
	(void)state;

	assert_true(peer_run("%s create -q -f qcow2 x 12M && %s bitmap --add x b", peer_newest(),
		peer_newest()));
	for (size_t i = 0; i < sizeof(granularities); i++) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		struct qcow_measure_result result = {.bitmaps = 1};
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_store *store = NULL;
		struct qcow_image *image = NULL;
		struct qcow_info info;
		for (int pass = 0; pass < 2; pass++) {
			assert_ok(qcow_file_open("x", QCOW_FILE_WRITE, &store, &err), err);
			assert_ok(qcow_open(store, NULL, &image, &err), err);
			qcow_get_info(image, &info);
			assert_int_equal(info.n_bitmaps, 1);
			if (pass == 0) /* behind table offset, entries, flags and type */
				assert_ok(qcow_store_write(store, &granularities[i], 1,
						  info.bitmap_directory_offset + 17, &err),
					err);
			else
				assert_ok(qcow_measure(image, "qcow2", &o, &result, &err), err);
			qcow_close(image);
		}
		assert_int_equal(result.bitmaps, 0);
	}
}

/* What is measured as full holds a full image: with preallocation the file is exactly as long. */
static void a_full_image_is_no_larger_than_measured(void **state)
{
	(void)state;
	for (uint64_t cluster = 512; cluster <= 2U << 20; cluster *= 8) {
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		struct qcow_measure_result r = {0};
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_store *store = NULL;
		uint64_t size = 0;
		o.cluster_size = cluster;
		o.virtual_size = 7ULL << 20;
		o.preallocation = QCOW_PREALLOC_METADATA;
		assert_ok(qcow_memory_open(0, &store, &err), err);
		assert_ok(qcow_create(store, NULL, &o, &err), err);
		assert_ok(qcow_store_size(store, &size, &err), err);
		assert_ok(qcow_measure(NULL, "qcow2", &o, &r, &err), err);
		assert_int_equal(size, r.fully_allocated);
		qcow_store_close(store);
	}
}

int main(void)
{
	const struct CMUnitTest alone[] = {
		cmocka_unit_test(disks_that_no_table_can_map_are_refused),
		cmocka_unit_test(a_full_image_is_no_larger_than_measured),
	};
	const struct CMUnitTest judged[] = {
		cmocka_unit_test(empty_disks_measure_as_with_qemu),
		cmocka_unit_test(images_measure_as_with_qemu),
		cmocka_unit_test(broken_bitmaps_are_not_measured),
	};
	int failed = cmocka_run_group_tests(alone, NULL, NULL);
	if (failed == 0)
		failed = cmocka_run_group_tests(judged, peer_enter, peer_leave);
	return peer_verdict(failed);
}
