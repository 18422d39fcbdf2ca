/* SPDX-License-Identifier: MIT */
/*
 * commit: three layers, in which all combinations of sizes, formats and cluster sizes occur. The overlay reads the same
 * throughout, in every state that a crash may leave of both files and whichever call fails; the base then holds it.
 */
#include "cm.h"

#include <stdlib.h>

#include <qcowkit/ops.h>

#include "chain_lab.h"

#define KIB 1024u

enum {
	OVERLAY,
	MIDDLE,
	BASE
};

struct row {
	uint32_t version, cluster; /* of the overlay */
	uint32_t base_version, base_cluster; /* cluster 0: raw */
	size_t size, middle_size, base_size; /* middle_size 0: no layer between */
	bool extended, to_middle, keep;
};

static const struct row rows[] = {
	{3, 4096, 3, 4096, 200 * KIB, 0, 200 * KIB, false, false, false},
	{3, 512, 3, 65536, 100 * KIB, 0, 100 * KIB, false, false, false},
	{2, 4096, 2, 512, 150 * KIB, 0, 150 * KIB, false, false, false},
	{3, 16384, 3, 512, 300 * KIB, 0, 300 * KIB, true, false, false},
	{3, 4096, 3, 0, 200 * KIB, 0, 200 * KIB, false, false, false},
	/* a longer base, and a layer between that ends before both */
	{3, 4096, 3, 4096, 200 * KIB, 90 * KIB, 300 * KIB, false, false, true},
	{3, 4096, 3, 512, 200 * KIB, 120 * KIB, 90 * KIB, false, true, false},
	/* a shorter base grows */
	{3, 4096, 3, 512, 200 * KIB, 250 * KIB, 90 * KIB, false, false, true},
	{3, 4096, 3, 4096, 200 * KIB, 0, 90 * KIB, false, false, false},
	{3, 65536, 3, 0, 200 * KIB, 0, 90 * KIB, false, false, false},
};

/* Writes, zeros and compressed clusters; then it is closed. */
static void fill(struct lab *lab, unsigned i, struct qcow_image *image, struct qkt_model *m,
	uint32_t cluster)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	static uint8_t buf[64 * KIB];
	for (unsigned k = 0; k < 6; k++) {
		size_t off = qkt_rng_below(&lab->rng, m->size) / 512 * 512;
		size_t len = 512 * (1 + qkt_rng_below(&lab->rng, 50));
		uint64_t kind = qkt_rng_below(&lab->rng, 5);
		if (kind == 1 && cluster != 0) {
			off = off / cluster * cluster;
			len = cluster;
		}
		len = len < m->size - off ? len : m->size - off;
		memset(buf, (int)(1 + qkt_rng_below(&lab->rng, 200)), len);
		if (kind == 0) {
			qkt_model_zero(m, len, off);
			assert_ok(qcow_zero(image, off, len, 0, &err), err);
			continue;
		}
		qkt_model_write(m, buf, len, off);
		if (kind == 1 && cluster != 0)
			assert_ok(qcow_write_compressed(image, buf, len, off, 0, &err), err);
		else
			assert_ok(qcow_pwrite(image, buf, len, off, 0, &err), err);
	}
	assert_ok(qcow_flush(image, &err), err);
	lab_keep(lab, i, image);
	qcow_close(image);
}

struct disks {
	struct qkt_model overlay, base; /* base: what the base shall hold afterwards */
};

static unsigned target_of(const struct row *r)
{
	return r->middle_size != 0 && r->to_middle ? MIDDLE : BASE;
}

static void set_up(struct lab *lab, const struct row *r, struct disks *d, uint64_t seed)
{
	unsigned below = BASE;
	lab_init(lab, seed);
	struct qkt_model m = qkt_model_new(r->base_size);
	fill(lab, BASE,
		lab_make(lab, BASE, "base", r->base_version, r->base_cluster, false, LAB_FILES,
			r->base_size),
		&m, r->base_cluster);
	size_t target_size = r->base_size;
	if (r->middle_size != 0) {
		below = MIDDLE;
		qkt_model_resize(&m, r->middle_size);
		fill(lab, MIDDLE,
			lab_make(lab, MIDDLE, "middle", 3, 4096, false, BASE, r->middle_size), &m,
			4096);
		target_size = r->to_middle ? r->middle_size : r->base_size;
	}
	/* past the end of the overlay the target keeps what it has */
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *target = lab_open(NULL, lab->files, target_of(r), 0, &err);
	d->base = qkt_model_new(target_size);
	assert_ok(qcow_pread(target, d->base.bytes, target_size, 0, &err), err);
	qcow_close(target);
	qkt_model_resize(&m, r->size);
	fill(lab, OVERLAY,
		lab_make(lab, OVERLAY, "overlay", r->version, r->cluster, r->extended, below,
			r->size),
		&m, r->cluster);
	if (target_size < r->size)
		qkt_model_resize(&d->base, r->size);
	memcpy(d->base.bytes, m.bytes, r->size);
	d->overlay = m;
	lab_expect(lab->files, OVERLAY, &d->overlay);
}

static void tear_down(struct lab *lab, struct disks *d)
{
	qkt_model_free(&d->overlay);
	qkt_model_free(&d->base);
	lab_release(lab);
}

static struct qcow_image *open_for(struct lab *lab, const struct row *r, struct qcow_image **base)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = lab_open(
		lab, lab->files, OVERLAY, 1u << OVERLAY | 1u << target_of(r), &err);
	if (image == NULL)
		fail_msg("%s", err.message);
	*base = qcow_backing(image);
	if (r->middle_size != 0 && !r->to_middle)
		*base = qcow_backing(*base);
	return image;
}

static enum qcow_status commit(const struct row *r, struct qcow_image *image,
	struct qcow_image *base, bool dry_run, struct qcow_commit_result *result,
	struct qcow_error *err)
{
	struct qcow_commit_options o = QCOW_COMMIT_OPTIONS_INIT;
	o.keep = r->keep;
	o.dry_run = dry_run;
	o.n_workers = 1;
	return qcow_commit(image, base, &o, result, err);
}

static void judge(void *ctx, const struct lab_file *files)
{
	lab_expect(files, OVERLAY, ctx);
}

static void everything_is_in_the_base_and_every_crash_state_reads_the_same(void **state)
{
	(void)state;
	unsigned n = 0;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct row *r = &rows[i];
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_commit_result result, counted;
		struct qcow_image *base = NULL;
		struct disks d;
		struct lab lab;
		set_up(&lab, r, &d, i + 1);
		struct qcow_image *image = open_for(&lab, r, &base);
		assert_ok(commit(r, image, base, true, &counted, &err), err);
		qkt_fault_log(lab.fault);
		assert_ok(commit(r, image, base, false, &result, &err), err);
		assert_int_equal(counted.bytes_copied, result.bytes_copied);
		assert_true(result.bytes_copied != 0);
		lab_crash(&lab, 4, judge, &d.overlay);
		assert_ok(qcow_flush(image, &err), err);
		lab_keep(&lab, OVERLAY, image);
		lab_keep(&lab, target_of(r), base);
		qcow_close(image);
		lab_expect(lab.files, OVERLAY, &d.overlay);
		lab_expect(lab.files, target_of(r), &d.base);
		n += lab.n_states;
		tear_down(&lab, &d);
	}
	print_message("%u states\n", n);
}

/* An overlay that was emptied holds nothing. */
static void the_overlay_is_empty(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_commit_result result;
	struct qcow_extent e;
	struct qcow_image *base = NULL;
	struct disks d;
	struct lab lab;
	set_up(&lab, &rows[0], &d, 77);
	struct qcow_image *image = open_for(&lab, &rows[0], &base);
	assert_ok(commit(&rows[0], image, base, false, &result, &err), err);
	assert_ok(qcow_map(image, 0, rows[0].size, 0, &e, &err), err);
	assert_true(e.len == rows[0].size && (e.flags & QCOW_EXTENT_PRESENT) == 0);
	/* and goes on to be written */
	uint8_t byte[512] = {5};
	assert_ok(qcow_pwrite(image, byte, sizeof(byte), 1024, QCOW_IO_FUA, &err), err);
	qkt_model_write(&d.overlay, byte, sizeof(byte), 1024);
	lab_keep(&lab, OVERLAY, image);
	lab_keep(&lab, BASE, base);
	qcow_close(image);
	lab_expect(lab.files, OVERLAY, &d.overlay);
	lab_expect(lab.files, BASE, &d.base);
	tear_down(&lab, &d);
}

static bool fails_once(const struct row *r, enum qkt_call call, uint64_t nth)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_commit_result result;
	struct qcow_image *base = NULL;
	struct disks d;
	struct lab lab;
	set_up(&lab, r, &d, 7);
	struct qcow_image *image = open_for(&lab, r, &base);
	qkt_fault_arm(lab.fault, call, nth, QKT_EIO, false);
	enum qcow_status status = commit(r, image, base, false, &result, &err);
	bool hit = qkt_fault_hits(lab.fault) != 0;
	qkt_fault_disarm(lab.fault);
	if (!hit)
		assert_ok(status, err);
	lab_keep(&lab, OVERLAY, image);
	lab_keep(&lab, target_of(r), base);
	qcow_close(image);
	lab_expect(lab.files, OVERLAY, &d.overlay);
	if (status == QCOW_OK)
		lab_expect(lab.files, target_of(r), &d.base);
	tear_down(&lab, &d);
	return hit;
}

static void any_call_may_fail(void **state)
{
	(void)state;
	static const enum qkt_call calls[] = {QKT_WRITE, QKT_FLUSH, QKT_READ, QKT_TRUNCATE};
	for (size_t i = 0; i < 4; i++) {
		uint64_t n = 1;
		while (fails_once(&rows[0], calls[i], n))
			n++;
		assert_true(n > 1);
	}
}

static void what_makes_no_sense_is_refused(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_commit_options o = QCOW_COMMIT_OPTIONS_INIT;
	struct {
		struct qcow_commit_options o;
		uint64_t later; /* of a version to come */
	} longer = {.o = QCOW_COMMIT_OPTIONS_INIT, .later = 1};
	struct qcow_commit_result result;
	struct qcow_image *base = NULL;
	struct disks d;
	struct lab lab;
	set_up(&lab, &rows[0], &d, 7);
	struct qcow_image *image = open_for(&lab, &rows[0], &base);
	assert_status(qcow_commit(image, image, &o, &result, &err), QCOW_E_INVAL, err);
	assert_status(qcow_commit(base, image, &o, &result, &err), QCOW_E_INVAL, err);
	o.struct_size = 4;
	assert_status(qcow_commit(image, base, &o, &result, &err), QCOW_E_INVAL, err);
	longer.o.struct_size = sizeof(longer);
	assert_status(qcow_commit(image, base, &longer.o, &result, &err), QCOW_E_UNSUPPORTED, err);
	longer.later = 0;
	longer.o.dry_run = true;
	assert_status(qcow_commit(image, base, &longer.o, &result, &err), QCOW_OK, err);
	o.struct_size = sizeof(o);
	qcow_close(image);
	image = lab_open(&lab, lab.files, OVERLAY, 1u << OVERLAY, &err);
	assert_status(
		qcow_commit(image, qcow_backing(image), &o, &result, &err), QCOW_E_READONLY, err);
	qcow_close(image);
	image = lab_open(&lab, lab.files, OVERLAY, 0, &err);
	o.dry_run = true;
	assert_ok(qcow_commit(image, qcow_backing(image), &o, &result, &err), err);
	qcow_close(image);
	lab_expect(lab.files, OVERLAY, &d.overlay);
	tear_down(&lab, &d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(everything_is_in_the_base_and_every_crash_state_reads_the_same),
		cmocka_unit_test(the_overlay_is_empty),
		cmocka_unit_test(any_call_may_fail),
		cmocka_unit_test(what_makes_no_sense_is_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
