/* SPDX-License-Identifier: MIT */
/*
 * rebase: an overlay keeps what it reads when another file is put below it, whatever sizes, formats and cluster sizes
 * they have; in every state that a crash may leave, and whichever call fails.
 */
#include "cm.h"

#include <stdlib.h>

#include <qcowkit/manage.h>
#include <qcowkit/ops.h>

#include "chain_lab.h"

#define KIB 1024u

enum {
	OVERLAY,
	OLD,
	NEW
};

struct row {
	uint32_t version, cluster, old_cluster,
		new_cluster; /* new_cluster 0: raw; old_cluster 0: raw */
	size_t size, old_size, new_size; /* new_size 0: no new backing file */
	bool compress, extended;
	bool alone; /* nothing lies below the overlay before */
};

static const struct row rows[] = {
	{3, 4096, 4096, 4096, 200 * KIB, 200 * KIB, 200 * KIB, false, false, false},
	{3, 512, 4096, 512, 100 * KIB, 60 * KIB, 90 * KIB, false, false, false},
	{2, 4096, 512, 65536, 150 * KIB, 90 * KIB, 200 * KIB, false, false, false},
	{3, 65536, 512, 0, 700 * KIB, 900 * KIB, 300 * KIB, false, false, false},
	{3, 4096, 0, 4096, 130 * KIB + 512, 130 * KIB + 512, 40 * KIB, true, false, false},
	{3, 4096, 4096, 0, 200 * KIB, 100 * KIB, 0, false, false, false},
	{2, 4096, 4096, 0, 200 * KIB, 100 * KIB, 0, true, false, false},
	{3, 16384, 512, 4096, 300 * KIB, 300 * KIB, 280 * KIB, false, true, false},
	{3, 16384, 512, 4096, 300 * KIB, 300 * KIB, 280 * KIB, true, true, false},
	{3, 4096, 0, 4096, 200 * KIB, 100 * KIB, 250 * KIB, false, false, true},
	{2, 4096, 0, 512, 200 * KIB, 100 * KIB, 150 * KIB, false, false, true},
	{3, 16384, 0, 512, 200 * KIB, 100 * KIB, 150 * KIB, false, true, true},
};

/* ---- making the files ---- */

static void finish(struct lab *lab, unsigned i, struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_flush(image, &err), err);
	lab_keep(lab, i, image);
	qcow_close(image);
}

/* Writes and zeros; the same places in old and new now and then get the same bytes. */
static void fill(struct lab *lab, struct qcow_image *image, struct qkt_model *m, unsigned n)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	static uint8_t buf[64 * KIB];
	for (unsigned i = 0; i < n; i++) {
		size_t off = qkt_rng_below(&lab->rng, m->size) / 512 * 512;
		size_t len = 512 * (1 + qkt_rng_below(&lab->rng, 50));
		len = len < m->size - off ? len : m->size - off;
		memset(buf, (int)(1 + qkt_rng_below(&lab->rng, 3)), len);
		if (qkt_rng_below(&lab->rng, 4) == 0) {
			qkt_model_zero(m, len, off);
			assert_ok(qcow_zero(image, off, len, 0, &err), err);
			continue;
		}
		qkt_model_write(m, buf, len, off);
		assert_ok(qcow_pwrite(image, buf, len, off, 0, &err), err);
	}
}

static void set_up(struct lab *lab, const struct row *r, struct qkt_model *want, uint64_t seed)
{
	struct qcow_image *image = NULL;
	struct qkt_model other = qkt_model_new(r->new_size);
	lab_init(lab, seed);
	*want = qkt_model_new(r->old_size);
	image = lab_make(lab, OLD, "old", 3, r->old_cluster, false, LAB_FILES, r->old_size);
	fill(lab, image, want, 10);
	finish(lab, OLD, image);
	if (r->new_size != 0) {
		image = lab_make(lab, NEW, "a new name that is longer", 3, r->new_cluster, false,
			LAB_FILES, r->new_size);
		/* much of it is the same */
		struct qcow_error err = QCOW_ERROR_INIT;
		size_t n = r->new_size < r->old_size ? r->new_size : r->old_size;
		assert_ok(qcow_pwrite(image, want->bytes, n, 0, 0, &err), err);
		fill(lab, image, &other, 4);
		finish(lab, NEW, image);
	}
	qkt_model_free(&other);
	qkt_model_resize(want, r->size);
	if (r->alone)
		qkt_model_zero(want, want->size, 0);
	image = lab_make(lab, OVERLAY, "overlay", r->version, r->cluster, r->extended,
		r->alone ? LAB_FILES : OLD, r->size);
	fill(lab, image, want, 5);
	finish(lab, OVERLAY, image);
	lab_expect(lab->files, OVERLAY, want);
}

/* ---- the operation ---- */

static enum qcow_status rebase(struct lab *lab, const struct row *r, struct qcow_image *overlay,
	bool dry_run, struct qcow_rebase_result *result, struct qcow_error *err)
{
	struct qcow_rebase_options o = QCOW_REBASE_OPTIONS_INIT;
	if (r->new_size != 0) {
		o.backing = lab_open(NULL, lab->files, NEW, 0, err);
		assert_non_null(o.backing);
		o.backing_name = lab->files[NEW].name;
		o.backing_format = lab->files[NEW].format;
	}
	o.compress = r->compress;
	o.dry_run = dry_run;
	o.n_workers = 1;
	enum qcow_status status = qcow_rebase(overlay, &o, result, err);
	qcow_close(o.backing);
	return status;
}

static void expect_named(struct qcow_image *image, const struct row *r, const struct lab *lab)
{
	struct qcow_info info;
	qcow_get_info(image, &info);
	if (r->new_size == 0) {
		assert_null(info.backing_name);
		return;
	}
	assert_string_equal(info.backing_name, lab->files[NEW].name);
	assert_string_equal(info.backing_format, lab->files[NEW].format);
}

/* ---- tests ---- */

struct judging {
	const struct qkt_model *want;
	bool ends_alone;
	unsigned n_old, n_new;
};

static void judge(void *ctx, const struct lab_file *files)
{
	struct judging *j = ctx;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_info info;
	lab_expect(files, OVERLAY, j->want);
	struct qcow_image *image = lab_open(NULL, files, OVERLAY, 0, &err);
	qcow_get_info(image, &info);
	if (info.backing_name == NULL ? !j->ends_alone : strcmp(info.backing_name, "old") == 0)
		j->n_old++;
	else
		j->n_new++;
	qcow_close(image);
}

static void it_reads_the_same_and_in_every_crash_state(void **state)
{
	(void)state;
	unsigned n = 0;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_rebase_result result, counted;
		struct qkt_model want;
		struct lab lab;
		set_up(&lab, &rows[i], &want, i + 1);
		struct qcow_image *image = lab_open(&lab, lab.files, OVERLAY, 1, &err);
		assert_non_null(image);
		assert_ok(rebase(&lab, &rows[i], image, true, &counted, &err), err);
		qkt_fault_log(lab.fault);
		assert_ok(rebase(&lab, &rows[i], image, false, &result, &err), err);
		expect_named(image, &rows[i], &lab);
		assert_int_equal(counted.bytes_copied, result.bytes_copied);
		assert_int_equal(counted.bytes_zeroed, result.bytes_zeroed);
		assert_true(result.bytes_copied + result.bytes_zeroed != 0);
		assert_true(result.bytes_copied + result.bytes_zeroed <= rows[i].size);
		qcow_close(image);
		struct judging j = {.want = &want, .ends_alone = rows[i].new_size == 0};
		lab_crash(&lab, 4, judge, &j);
		assert_true(j.n_old > 4 && j.n_new >= 2);
		n += lab.n_states;
		qkt_model_free(&want);
		lab_release(&lab);
	}
	print_message("%u states\n", n);
}

/* One call fails: what was told to be done is done, and the overlay reads the same in any case. */
static bool fails_once(const struct row *r, enum qkt_call call, uint64_t nth)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_rebase_result result;
	struct qkt_model want;
	struct lab lab;
	set_up(&lab, r, &want, 7);
	struct qcow_image *image = lab_open(&lab, lab.files, OVERLAY, 1, &err);
	qkt_fault_arm(lab.fault, call, nth, QKT_EIO, false);
	enum qcow_status status = rebase(&lab, r, image, false, &result, &err);
	bool hit = qkt_fault_hits(lab.fault) != 0;
	qkt_fault_disarm(lab.fault);
	if (!hit)
		assert_ok(status, err);
	if (status == QCOW_OK)
		expect_named(image, r, &lab);
	if (status != QCOW_OK && nth % 2 == 0) {
		/* a recovery, and again */
		assert_ok(qcow_recover(image, &err), err);
		assert_ok(rebase(&lab, r, image, false, &result, &err), err);
		expect_named(image, r, &lab);
	}
	struct qkt_model now = lab_take(qcow_image_store(image));
	qcow_close(image);
	qkt_model_free(&lab.files[OVERLAY].bytes);
	lab.files[OVERLAY].bytes = now;
	lab_expect(lab.files, OVERLAY, &want);
	qkt_model_free(&want);
	lab_release(&lab);
	return hit;
}

static void any_call_may_fail(void **state)
{
	(void)state;
	static const enum qkt_call calls[] = {QKT_WRITE, QKT_FLUSH, QKT_READ};
	for (size_t i = 0; i < 3; i++) {
		uint64_t n = 1;
		while (fails_once(&rows[0], calls[i], n))
			n++;
		assert_true(n > 3);
	}
}

static bool at_once(void *ctx)
{
	return ++*(unsigned *)ctx > 2;
}

static void cancelling_leaves_the_old_file(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_rebase_options o = QCOW_REBASE_OPTIONS_INIT;
	struct qcow_rebase_result result;
	struct qcow_info info;
	struct qkt_model want;
	struct lab lab;
	unsigned n = 0;
	set_up(&lab, &rows[3], &want, 3);
	struct qcow_image *image = lab_open(&lab, lab.files, OVERLAY, 1, &err);
	o.progress.cancelled = at_once;
	o.progress.ctx = &n;
	assert_status(qcow_rebase(image, &o, &result, &err), QCOW_E_CANCELLED, err);
	qcow_get_info(image, &info);
	assert_string_equal(info.backing_name, "old");
	finish(&lab, OVERLAY, image);
	lab_expect(lab.files, OVERLAY, &want);
	qkt_model_free(&want);
	lab_release(&lab);
}

static void what_makes_no_sense_is_refused(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_rebase_options o = QCOW_REBASE_OPTIONS_INIT;
	struct qcow_backing_options b = QCOW_BACKING_OPTIONS_INIT;
	struct qcow_rebase_result result;
	struct qkt_model want;
	struct lab lab;
	char name[1100];
	set_up(&lab, &rows[3], &want, 3);
	struct qcow_image *image = lab_open(&lab, lab.files, OVERLAY, 1, &err);
	o.backing_name = "x";
	assert_status(qcow_rebase(image, &o, &result, &err), QCOW_E_INVAL, err);
	assert_status(qcow_rebase(image, NULL, &result, &err), QCOW_E_INVAL, err);
	memset(name, 'x', sizeof(name));
	name[1024] = '\0';
	b.name = name;
	assert_status(qcow_set_backing(image, &b, &err), QCOW_E_FORMAT, err);
	b.name = NULL;
	b.format = "raw";
	assert_status(qcow_set_backing(image, &b, &err), QCOW_E_INVAL, err);
	b.name = "";
	assert_status(qcow_set_backing(image, &b, &err), QCOW_E_INVAL, err);
	assert_status(qcow_set_backing(NULL, &b, &err), QCOW_E_INVAL, err);
	b.name = "x";
	qcow_close(image);
	image = lab_open(&lab, lab.files, OVERLAY, 0, &err);
	assert_status(qcow_set_backing(image, &b, &err), QCOW_E_READONLY, err);
	qcow_close(image);
	image = lab_open(&lab, lab.files, NEW, 1u << NEW, &err);
	assert_status(qcow_set_backing(image, &b, &err), QCOW_E_NOTSUP, err);
	assert_status(qcow_rebase(image, &(struct qcow_rebase_options)QCOW_REBASE_OPTIONS_INIT,
			      &result, &err),
		QCOW_E_NOTSUP, err);
	qcow_close(image);
	qkt_model_free(&want);
	lab_release(&lab);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_reads_the_same_and_in_every_crash_state),
		cmocka_unit_test(any_call_may_fail),
		cmocka_unit_test(cancelling_leaves_the_old_file),
		cmocka_unit_test(what_makes_no_sense_is_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
