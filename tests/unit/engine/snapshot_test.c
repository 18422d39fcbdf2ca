/* SPDX-License-Identifier: MIT */
/*
 * Snapshots made, applied, deleted and renamed at random among writes, on images of all kinds: the disk and each
 * snapshot are what an array of bytes says, for us and for qemu-img, which takes turns, and the refcounts are exact.
 */
#include "snapshot_lab.h"

#include "base/bytes.h"

static const char *qemus[2];
static size_t n_qemus;

static void step(struct lab *l, unsigned number)
{
	char name[16];
	unsigned what = (unsigned)qkt_rng_below(&l->rng, 10);
	(void)snprintf(name, sizeof(name), "s%u", number);
	if (what < 3 && l->n < LAB_SNAPS)
		lab_create(l, name);
	else if (what < 5 && l->n != 0)
		lab_apply(l, (unsigned)qkt_rng_below(&l->rng, l->n));
	else if (what < 7 && l->n > 2)
		lab_delete(l, (unsigned)qkt_rng_below(&l->rng, UINT64_C(1) << l->n));
	else if (what == 7 && l->n != 0)
		lab_rename(l, (unsigned)qkt_rng_below(&l->rng, l->n), name);
	for (uint64_t i = qkt_rng_below(&l->rng, 5); i != 0; i--)
		lab_write(l);
}

struct way {
	bool compresses;
	enum qcow_prove prove; /* OFF: what a deletion must know it finds out by itself */
};

static void random_steps(const char *options, size_t cluster, size_t size, struct way way)
{
	struct lab l;
	struct qkt_rng seed = qkt_rng_init(cluster + size);
	lab_start(&l, options, cluster, size, qkt_rng_next(&seed));
	lab_close(&l);
	l.open.prove = way.prove;
	lab_open(&l);
	l.compresses = way.compresses;
	for (unsigned i = 0; i < 45; i++) {
		step(&l, i);
		lab_check(&l);
		if (i % 6 == 5)
			lab_turn(&l, qemus[i / 6 % n_qemus], i);
		if (i % 15 == 14)
			lab_judge(&l, qemus[i / 15 % n_qemus]);
	}
	lab_delete(&l, (1u << l.n) - 1);
	lab_check(&l);
	lab_judge(&l, "");
	lab_free(&l);
}

static const struct way packed = {.compresses = true}, plain = {.compresses = false};

static void version_3(void **state)
{
	(void)state;
	random_steps("", 65536, 3 << 20, packed);
	random_steps("", 4096, (1 << 20) + 1536, packed);
}

static void version_2(void **state)
{
	(void)state;
	random_steps(",compat=0.10", 65536, 3 << 20, packed);
	random_steps(",compat=0.10", 512, 150000 / 512 * 512, packed);
}

static void small_clusters(void **state)
{
	(void)state;
	random_steps("", 512, 200000 / 512 * 512, packed);
}

static void extended(void **state)
{
	(void)state;
	random_steps(",extended_l2=on", 16384, 1 << 20, packed);
}

static void widths(void **state)
{
	(void)state;
	random_steps(",refcount_bits=64", 1024, 300 * 1024, packed);
	random_steps(",refcount_bits=8", 2048, 300 * 1024, plain);
}

static void unproven(void **state)
{
	(void)state;
	static const struct way off = {.compresses = true, .prove = QCOW_PROVE_OFF};
	random_steps("", 65536, 3 << 20, off);
	random_steps(",compat=0.10", 4096, 1 << 20, off);
	random_steps(",refcount_bits=8", 512, 200000 / 512 * 512, off);
}

/* Neighbours in one table, of which some are the disk's alone once a snapshot is gone, and some another snapshot's too. */
static void a_row_of_entries_may_be_shared_in_part(void **state)
{
	(void)state;
	const size_t n = 4096;
	for (unsigned first = 0; first < 20; first += 3) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct lab l;
		lab_start(&l, "", n, 64 * n, 5);
		memset(l.disk, 7, 40 * n);
		assert_ok(qcow_pwrite(l.im.image, l.disk, 40 * n, 0, 0, &err), err);
		lab_create(&l, "all");
		assert_ok(qcow_zero(l.im.image, first * n, 5 * n, QCOW_IO_UNMAP, &err), err);
		memset(l.disk + first * n, 0, 5 * n);
		lab_create(&l, "some");
		lab_apply(&l, 0);
		lab_delete(&l, 1);
		lab_check(&l);
		lab_judge(&l, "");
		lab_free(&l);
	}
}

/* Clusters behind the last one, counted and not named by anything: they are free again, and count what lies in them then. */
static void what_leaked_is_taken_for_copies(void **state)
{
	(void)state;
	struct lab l;
	lab_start(&l, "", 4096, 1 << 20, 4);
	for (unsigned i = 0; i < 30; i++)
		lab_write(&l);
	lab_create(&l, "a");
	lab_close(&l);
	uint8_t word[8], ones[64];
	FILE *f = fopen(qkt_path("image"), "r+b");
	assert_non_null(f);
	assert_int_equal(fseek(f, 0, SEEK_END), 0);
	uint64_t end = ((uint64_t)ftell(f) + 4095) / 4096;
	assert_true(end + 32 <= 2048); /* of the first block */
	for (unsigned i = 0; i < sizeof(ones); i++)
		ones[i] = i % 2;
	assert_int_equal(fseek(f, 48, SEEK_SET), 0);
	assert_int_equal(fread(word, 1, 8, f), 8);
	assert_int_equal(fseek(f, (long)qk_load64(word), SEEK_SET), 0);
	assert_int_equal(fread(word, 1, 8, f), 8);
	assert_int_equal(fseek(f, (long)(qk_load64(word) + end * 2), SEEK_SET), 0);
	assert_int_equal(fwrite(ones, 1, sizeof(ones), f), sizeof(ones));
	assert_int_equal(fclose(f), 0);
	qkt_must("truncate -s %llu image", (unsigned long long)(end + 32) * 4096);
	l.open.prove = QCOW_PROVE_OFF;
	lab_open(&l);
	lab_delete(&l, 1);
	lab_check(&l);
	lab_judge(&l, "");
	lab_free(&l);
}

/* What was on the disk when the bitmap was made is not what the snapshot had. */
static void bitmaps_record_that_everything_changed(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_bitmap_reader *reader = NULL;
	struct qcow_bitmap_extent extent;
	struct lab l;
	lab_start(&l, "", 65536, 1 << 20, 1);
	lab_create(&l, "old");
	lab_close(&l);
	qkt_must("qemu-img bitmap --add image enabled && qemu-img bitmap --add --disable image "
		 "disabled");
	lab_open(&l);
	lab_apply(&l, 0);
	lab_check(&l);
	lab_close(&l);
	lab_open(&l);
	for (uint32_t i = 0; i < 2; i++) {
		assert_ok(qcow_bitmap_open(l.im.image, i, &reader, &err), err);
		assert_ok(qcow_bitmap_read(reader, 0, 1 << 20, &extent, &err), err);
		assert_int_equal(extent.dirty, i == 0);
		assert_int_equal(extent.len, 1 << 20);
		qcow_bitmap_close(reader);
	}
	lab_judge(&l, "");
	lab_free(&l);
}

/* A disk that was longer, and one that was shorter, when the snapshot was made. */
static void the_size_comes_back(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct lab l;
	lab_start(&l, "", 4096, 1 << 20, 2);
	for (unsigned i = 0; i < 9; i++)
		lab_write(&l);
	lab_create(&l, "short");
	lab_close(&l);
	qkt_must("qemu-img resize -q image 3M");
	l.disk = realloc(l.disk, 3 << 20);
	memset(l.disk + (1 << 20), 0, 2 << 20);
	l.size = 3 << 20;
	lab_open(&l);
	for (unsigned i = 0; i < 9; i++)
		lab_write(&l);
	lab_create(&l, "long");
	lab_apply(&l, 0);
	lab_check(&l);
	lab_judge(&l, "");
	lab_apply(&l, 1);
	lab_check(&l);
	lab_judge(&l, "");
	lab_close(&l);
	qkt_must("qemu-img bitmap --add image b");
	lab_open(&l);
	assert_status(qcow_snapshot_apply(l.im.image, "short", QCOW_SNAPSHOT_NAME, NULL, &err),
		QCOW_E_UNSUPPORTED, err);
	lab_check(&l);
	lab_free(&l);
}

/* What nobody here knows of an entry stays. */
static void extra_data_stays(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_snapshot s;
	struct lab l;
	uint8_t table[65536] = {0}, extra[40];
	lab_start(&l, "", 65536, 1 << 20, 3);
	lab_write(&l);
	lab_create(&l, "kept");
	lab_create(&l, "other");
	struct qcow_info info;
	qcow_get_info(l.im.image, &info);
	assert_ok(qcow_store_read(
			  qcow_image_store(l.im.image), table, 4096, info.snapshots_offset, &err),
		err);
	lab_close(&l);
	/* 16 bytes more of extra data in the first entry: id and name move */
	for (unsigned i = 0; i < 40; i++)
		extra[i] = i < 24 ? table[40 + i] : (uint8_t)(0xa0 + i);
	memmove(table + 40 + 40, table + 40 + 24, 4096);
	memcpy(table + 40, extra, sizeof(extra));
	table[39] = 40;
	FILE *f = fopen(qkt_path("image"), "r+b");
	assert_non_null(f);
	assert_int_equal(fseek(f, (long)info.snapshots_offset, SEEK_SET), 0);
	assert_int_equal(fwrite(table, 1, 4096, f), 4096);
	assert_int_equal(fclose(f), 0);
	lab_open(&l);
	lab_rename(&l, 1, "renamed");
	lab_delete(&l, 2);
	lab_create(&l, "third");
	lab_apply(&l, 0);
	assert_ok(qcow_get_snapshot(l.im.image, 0, &s, &err), err);
	assert_int_equal(s.extra_bytes, sizeof(extra));
	assert_memory_equal(s.extra, extra, sizeof(extra));
	lab_check(&l);
	lab_judge(&l, "");
	lab_free(&l);
}

int main(void)
{
	qkt_need_program("qemu-img", "qemu-utils");
	n_qemus = qkt_qemus(qemus);
	const struct CMUnitTest tests[] = {cmocka_unit_test(version_3), cmocka_unit_test(version_2),
		cmocka_unit_test(small_clusters), cmocka_unit_test(extended),
		cmocka_unit_test(widths), cmocka_unit_test(unproven),
		cmocka_unit_test(what_leaked_is_taken_for_copies),
		cmocka_unit_test(a_row_of_entries_may_be_shared_in_part),
		cmocka_unit_test(bitmaps_record_that_everything_changed),
		cmocka_unit_test(the_size_comes_back), cmocka_unit_test(extra_data_stays)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
