/* SPDX-License-Identifier: MIT */
/*
 * What several entries name and cannot share is copied by a repair: an L2 table that two entries of the L1 table name, a
 * cluster that two entries name where refcounts have one bit. The disk reads as before after the repair, undone or
 * not, in every state that a crash leaves, and the image is clean.
 */
#include "cm.h"

#include <stdlib.h>

#include <qcowkit/manage.h>

#include "fault.h"
#include "host.h"
#include "image.h"
#include "model.h"
#include "rng.h"
#include "sick.h"

/* Sectors of 512 bytes: one L2 table is 64 clusters of the disk. */
#define CLUSTER 512U

static void get(const struct qkt_base *b, uint64_t at, uint8_t word[8])
{
	memcpy(word, b->bytes + at, 8);
}

static void put(struct qkt_sick *s, uint64_t at, const uint8_t word[8])
{
	memcpy(s->bytes + at, word, 8);
}

static uint64_t entry_of(const struct qkt_base *b, uint64_t guest)
{
	return b->l2[guest] * CLUSTER + guest % (CLUSTER / 8) * 8;
}

static struct qkt_sick copy_of(const struct qkt_base *b, bool fixed)
{
	struct qkt_sick s = {.base = b, .n = b->n, .fixed = fixed};

	s.n += fixed ? 512 * CLUSTER : 0; /* a device has room */
	s.bytes = calloc(1, s.n);
	assert_non_null(s.bytes);
	memcpy(s.bytes, b->bytes, b->n);
	return s;
}

/* L1 entries `to` name the table of entry 0. */
static void share_table(struct qkt_sick *s, unsigned to)
{
	uint8_t word[8];

	get(s->base, s->base->l1, word);
	put(s, s->base->l1 + to * 8ULL, word);
}

static void share_cluster(struct qkt_sick *s, uint64_t from, uint64_t to)
{
	uint8_t word[8];

	get(s->base, entry_of(s->base, from), word);
	put(s, entry_of(s->base, to), word);
}

/* ---- judging ---- */

static struct qcow_image *open_bytes(const uint8_t *bytes, size_t n)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;

	o.flags = QCOW_OPEN_CHECK | QCOW_OPEN_NO_BACKING;
	assert_ok(qcow_open(qkt_store_of(bytes, n), &o, &image, &err), err);
	return image;
}

static uint8_t *disk_of(const uint8_t *bytes, size_t n, size_t *size)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = open_bytes(bytes, n);

	*size = (size_t)qcow_size(image);
	uint8_t *disk = malloc(*size);
	assert_non_null(disk);
	assert_ok(qcow_pread(image, disk, *size, 0, &err), err);
	qcow_close(image);
	return disk;
}

static struct qcow_check_result check_of(const uint8_t *bytes, size_t n)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_result r;
	struct qcow_image *image = open_bytes(bytes, n);

	assert_ok(qcow_check(image, NULL, &r, &err), err);
	qcow_close(image);
	return r;
}

static void assert_disk(const struct qkt_sick *s, const struct qkt_model *m, const char *when)
{
	size_t n = 0;
	uint8_t *want = disk_of(s->bytes, s->n, &n);
	uint8_t *got = disk_of(m->bytes, m->size, &n);

	for (size_t i = 0; i < n; i++) {
		if (want[i] != got[i])
			fail_msg("%s: cluster %zu of the disk changed", when, i / CLUSTER);
	}
	free(want);
	free(got);
}

static void assert_clean(const struct qkt_sick *s, const struct qkt_model *m, const char *when)
{
	struct qcow_check_result r = check_of(m->bytes, m->size);

	if (r.corruptions != 0 || r.leaks != 0)
		fail_msg("%s: %llu corruptions, %llu leaks", when,
			(unsigned long long)r.corruptions, (unsigned long long)r.leaks);
	assert_disk(s, m, when);
}

/* ---- repairing ---- */

static struct qkt_model repaired(
	const struct qkt_sick *s, const struct qkt_model *m, struct qkt_fault *fault)
{
	struct qcow_repair_options o = QCOW_REPAIR_OPTIONS_INIT;
	struct qcow_repair_result result;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = qkt_store_of(m->bytes, m->size);
	struct qcow_store *undo = NULL;
	struct qkt_model after = qkt_model_new(0);
	uint64_t size = 0;

	if (s->fixed)
		store = qkt_fixed_wrap(store);
	if (fault != NULL)
		store = qkt_fault_wrap(fault, store, 0);
	assert_ok(qcow_memory_open(0, &undo, &err), err);
	o.undo = undo;
	assert_ok(qcow_repair(store, &o, &result, &err), err);
	assert_ok(qcow_store_size(store, &size, &err), err);
	qkt_model_resize(&after, (size_t)size);
	assert_ok(qcow_store_read(store, after.bytes, after.size, 0, &err), err);
	o.undo = NULL;
	uint64_t n_rounds = result.n_rounds;
	assert_ok(qcow_repair(store, &o, &result, &err), err);
	assert_int_equal(result.n_steps, 0);
	assert_true(n_rounds < 8);
	assert_ok(qcow_repair_undo(store, undo, &err), err);
	assert_ok(qcow_store_size(store, &size, &err), err);
	assert_int_equal(size, m->size);
	uint8_t *back = malloc((size_t)size);
	assert_ok(qcow_store_read(store, back, (size_t)size, 0, &err), err);
	assert_memory_equal(back, m->bytes, m->size);
	free(back);
	qcow_store_close(undo);
	qcow_store_close(store);
	return after;
}

static void heal(const struct qkt_sick *s, const struct qkt_model *m, const char *when)
{
	struct qkt_model after = repaired(s, m, NULL);

	assert_clean(s, &after, when);
	qkt_model_free(&after);
}

static void judge_state(const struct qkt_sick *s, const struct qkt_model *m,
	const struct qcow_check_result *before, const char *when)
{
	struct qcow_check_result r = check_of(m->bytes, m->size);

	if (r.corruptions > before->corruptions)
		fail_msg("%s: %llu corruptions, %llu before", when,
			(unsigned long long)r.corruptions, (unsigned long long)before->corruptions);
	assert_disk(s, m, when);
	heal(s, m, when);
}

/* All of the log up to entry `end`, or of what no flush has made stable what the random numbers say. */
static struct qkt_model state_after(const struct qkt_sick *s, struct qkt_fault *fault, size_t end,
	uint64_t epoch, struct qkt_rng *rng)
{
	struct qkt_model m = qkt_model_new(0);

	qkt_model_write(&m, s->bytes, s->n, 0);
	for (size_t i = 0; i <= end; i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(fault, i);
		uint64_t n = e->len / 512 + 1;
		if (rng == NULL || e->epoch < epoch || qkt_rng_below(rng, 2) == 0)
			qkt_log_apply(e, &m, 0, UINT64_MAX);
		else if (e->call == QKT_WRITE)
			qkt_log_apply(e, &m, qkt_rng_below(rng, n), 1 + qkt_rng_below(rng, n));
	}
	return m;
}

/* Repaired, and interrupted after each write but those of the undoing. */
static void try_sick(const struct qkt_sick *s, struct qkt_rng *rng)
{
	struct qkt_model start = {s->bytes, s->n};
	struct qkt_fault *fault = qkt_fault_new();
	struct qcow_check_result before = check_of(s->bytes, s->n);
	char when[96];

	assert_true(before.corruptions != 0);
	qkt_fault_log(fault);
	struct qkt_model after = repaired(s, &start, fault);
	assert_clean(s, &after, "repaired");
	size_t n = qkt_fault_log_count(fault);
	for (size_t i = 0; i < n; i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(fault, i);
		uint64_t epoch = e->epoch;
		if (e->call == QKT_FLUSH)
			continue;
		struct qkt_model m = state_after(s, fault, i, epoch, NULL);
		(void)snprintf(when, sizeof(when), "killed after call %zu of %zu", i + 1, n);
		bool is_done = m.size == after.size && memcmp(m.bytes, after.bytes, m.size) == 0;
		judge_state(s, &m, &before, when);
		qkt_model_free(&m);
		if (is_done)
			break;
		m = state_after(s, fault, i, epoch, rng);
		(void)snprintf(when, sizeof(when), "power lost after call %zu of %zu", i + 1, n);
		judge_state(s, &m, &before, when);
		qkt_model_free(&m);
	}
	qkt_model_free(&after);
	qkt_fault_free(fault);
}

/* ---- tests ---- */

static const unsigned widths[] = {16, 1, 64, 2};

static void each_width(struct qkt_rng *rng, bool of_tables)
{
	for (unsigned w = 0; w < 4; w++) {
		struct qkt_base b;
		qkt_make_base(&b, CLUSTER, widths[w], 3);
		for (unsigned fixed = 0; fixed < 2; fixed++) {
			struct qkt_sick s = copy_of(&b, fixed != 0);
			if (of_tables) {
				share_table(&s, 5);
				share_table(&s, 6);
			} else {
				share_cluster(&s, 1, 2);
				share_cluster(&s, 1, 300);
				share_cluster(&s, 310, 4);
			}
			try_sick(&s, rng);
			free(s.bytes);
		}
		qkt_drop_base(&b);
	}
}

static void a_table_that_two_entries_name_is_copied(void **state)
{
	struct qkt_rng rng = qkt_rng_init(1);

	(void)state;
	each_width(&rng, true);
}

static void clusters_that_cannot_be_counted_are_copied(void **state)
{
	struct qkt_rng rng = qkt_rng_init(2);

	(void)state;
	each_width(&rng, false);
}

/* What is saved is made durable for many copies at once. */
static void copies_are_saved_together(void **state)
{
	struct qcow_repair_options o = QCOW_REPAIR_OPTIONS_INIT;
	struct qcow_repair_result result;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_fault *fault = qkt_fault_new();
	struct qkt_base b;
	uint64_t n_flushes = 0;

	(void)state;
	qkt_make_base(&b, CLUSTER, 1, 3);
	struct qkt_sick s = copy_of(&b, false);
	for (uint64_t i = 0; i < 100; i++)
		share_cluster(&s, 100 + 5 * (i / 3), 101 + 5 * (i / 3) + i % 3 % 2);
	struct qcow_store *store = qkt_store_of(s.bytes, s.n);
	assert_ok(qcow_memory_open(0, &o.undo, &err), err);
	qkt_fault_log(fault);
	o.undo = qkt_fault_wrap(fault, o.undo, 0);
	assert_ok(qcow_repair(store, &o, &result, &err), err);
	for (size_t i = 0; i < qkt_fault_log_count(fault); i++)
		n_flushes += qkt_fault_log_entry(fault, i)->call == QKT_FLUSH;
	assert_true(result.n_steps > 60);
	assert_in_range(n_flushes, 3, 20);
	qcow_store_close(o.undo);
	qcow_store_close(store);
	free(s.bytes);
	qkt_drop_base(&b);
	qkt_fault_free(fault);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(copies_are_saved_together),
		cmocka_unit_test(a_table_that_two_entries_name_is_copied),
		cmocka_unit_test(clusters_that_cannot_be_counted_are_copied),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
