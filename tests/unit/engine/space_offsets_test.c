/* SPDX-License-Identifier: MIT */
/*
 * One thread on a fresh image gets the host offsets that qemu-io gets: the same writes by both leave files that are the
 * same byte for byte.
 */
#include "qemu.h"

#include "host.h"

struct writes {
	const char *options;
	const char *size;
	uint64_t len, stride;
	unsigned n;
};

static void write_ours(const struct writes *w, bool flush)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	struct qcow_store *store = NULL;
	uint8_t *buf = malloc(w->len);

	assert_non_null(buf);
	memset(buf, 0xcd, w->len);
	o.flags = QCOW_OPEN_WRITE;
	if (qcow_file_open(in_dir("ours"), QCOW_FILE_WRITE, &store, &err) != QCOW_OK ||
		qcow_open(store, &o, &image, &err) != QCOW_OK)
		fail_msg("%s", err.message);
	for (unsigned i = 0; i < w->n; i++) {
		if (qcow_pwrite(image, buf, w->len, i * w->stride, 0, &err) != QCOW_OK)
			fail_msg("%s", err.message);
		if (flush && i % 7 == 6)
			assert_int_equal(qcow_flush(image, NULL), QCOW_OK);
	}
	qcow_close(image);
	free(buf);
}

static void write_theirs(const struct writes *w)
{
	FILE *f = fopen(in_dir("script"), "w");

	assert_non_null(f);
	for (unsigned i = 0; i < w->n; i++)
		fprintf(f, "write -q %llu %llu\n", (unsigned long long)(i * w->stride),
			(unsigned long long)w->len);
	fclose(f);
	sh("qemu-io theirs <script >/dev/null");
}

static void same_file(const struct writes *w, bool flush)
{
	size_t n[2] = {0};

	sh("rm -f ours theirs && qemu-img create -q -f qcow2 -o %s ours %s && cp ours theirs",
		w->options, w->size);
	write_ours(w, flush);
	write_theirs(w);
	sh("qemu-img check -q ours");
	uint8_t *ours = slurp("ours", &n[0]);
	uint8_t *theirs = slurp("theirs", &n[1]);
	size_t common = n[0] < n[1] ? n[0] : n[1];
	for (size_t i = 0; i < common; i++) {
		if (ours[i] != theirs[i])
			fail_msg("%s, %u writes of %llu: byte %zu is 0x%02x, theirs 0x%02x",
				w->options, w->n, (unsigned long long)w->len, i, ours[i],
				theirs[i]);
	}
	for (size_t i = common; i < n[0]; i++)
		assert_int_equal(ours[i], 0);
	for (size_t i = common; i < n[1]; i++)
		assert_int_equal(theirs[i], 0);
	free(ours);
	free(theirs);
}

static void offsets_are_those_of_qemu(void **state)
{
	(void)state;
	static const struct writes all[] = {
		{"cluster_size=512", "4M", 512, 512, 1200},
		{"cluster_size=512", "4M", 8192, 8192, 200},
		{"cluster_size=512", "4M", 32768, 32768, 60},
		{"cluster_size=512", "4M", 512, 40000, 100},
		{"cluster_size=512,refcount_bits=64", "4M", 512, 512, 1500},
		{"cluster_size=512,refcount_bits=64", "4M", 3584, 3584, 300},
		{"cluster_size=512,refcount_bits=1", "4M", 1024, 1024, 2000},
		{"cluster_size=4k,refcount_bits=64", "16M", 4096, 4096, 2000},
		{"cluster_size=4k,compat=0.10", "64M", 65536, 65536, 600},
		{"cluster_size=64k", "64M", 4096, 65536, 200},
		{"cluster_size=64k", "64M", 65536, 65536, 900},
		{"cluster_size=2M", "64M", 1 << 20, 1 << 20, 40},
	};
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		same_file(&all[i], false);
		same_file(&all[i], true);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(offsets_are_those_of_qemu)};

	qkt_need_program("qemu-io", "qemu-utils");
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
