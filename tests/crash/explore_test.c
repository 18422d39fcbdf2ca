/* SPDX-License-Identifier: MIT */
/*
 * The crash explorer itself: it makes the states it should, and finds what is wrong in orders of writes that
 * were made wrong by hand. The toy writer works on an image made by qemu-img with one cluster of data: header
 * 0, refcount table 1, refcount block 2, L1 3, L2 4, data 5 (clusters of 64 KiB). It allocates cluster 6 for
 * guest cluster 1, or gives cluster 5 up.
 */
#include <cm.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <host.h>

#include "base.h"
#include "explore.h"
#include "guest.h"
#include "judge.h"
#include "plan.h"

#define CLUSTER	  UINT64_C(65536)
#define REFCOUNTS (2 * CLUSTER)
#define L2	  (4 * CLUSTER)
#define OLD_DATA  (5 * CLUSTER)
#define NEW_DATA  (6 * CLUSTER)
#define COPIED	  (UINT64_C(1) << 63)

struct toy {
	struct qkc_plan plan;
	struct qkc_base base;
	struct qkc_expect *expect;
	struct qkc_log log;
	struct qkc_disk *live;
	struct qkc_totals totals;
	char why[QKC_WHY_BYTES]; /* of the first bad state */
};

static void one_cluster(struct qkc_plan *p)
{
	qkc_plan_first(p, QKC_DO_WRITE, 0, CLUSTER);
}

static void one_cluster_beside(struct qkc_plan *p)
{
	p->has_data_file = true;
	p->disk_bytes = 16 * CLUSTER;
	one_cluster(p);
}

static struct toy toy_made(void (*make)(struct qkc_plan *p))
{
	const struct qkc_workload w = {"toy", make, 0, 0};
	const struct qkc_config c = {3, 16, 16};
	struct toy t = {.plan = qkc_plan_make(&w, &c, 1, 0)};
	char why[QKC_WHY_BYTES];
	qkt_need_program("qemu-io", "qemu-utils");
	t.base = qkc_base_make(&t.plan);
	t.expect = qkc_expect_new(t.base.image, NULL, 0, 0, why);
	t.base.plan = NULL; /* the plan moves with the toy */
	assert_non_null(t.expect);
	t.live = qkc_disk_copy(t.base.image);
	return t;
}

static struct toy toy_new(void)
{
	return toy_made(one_cluster);
}

static void toy_free(struct toy *t)
{
	qkc_set_free(&t->totals.contents);
	qkc_log_clear(&t->log);
	qkc_disk_free(t->live);
	qkc_expect_free(t->expect);
	qkc_base_free(&t->base);
	qkc_plan_clear(&t->plan);
}

static bool judge(void *ctx, struct qkc_disk *d, const struct qkc_state *s)
{
	struct toy *t = ctx;
	struct qkc_by_moment by = {qkc_expect_guest(t->expect), &s->at};
	char why[QKC_WHY_BYTES];
	bool good = qkc_judge_disk(t->expect, d, qkc_rule_at(&by), NULL, why);
	if (!good && t->why[0] == '\0')
		memcpy(t->why, why, sizeof(why));
	return good;
}

static uint64_t n_bad(struct toy *t)
{
	struct qkc_explore x = {.initial = t->base.image,
		.log = &t->log,
		.seed = 1,
		.subset_bits = 12,
		.n_random = 20,
		.n_cuts = 4,
		.judge = judge,
		.ctx = t};
	qkc_explore(&x, &t->totals);
	return t->totals.n_bad;
}

/* ---- the toy's writes ---- */

static void put(struct toy *t, const uint8_t *bytes, uint64_t len, uint64_t off)
{
	qkc_disk_write(t->live, bytes, len, off);
	qkc_log_add(&t->log, QKC_WRITE, off, len, bytes);
}

static void put_refcount(struct toy *t, uint64_t cluster, uint8_t n)
{
	uint8_t sector[QKC_SECTOR];
	memcpy(sector, qkc_disk_bytes(t->live) + REFCOUNTS, sizeof(sector));
	sector[cluster * 2 + 1] = n;
	put(t, sector, sizeof(sector), REFCOUNTS);
}

static void put_entry(struct toy *t, uint64_t index, uint64_t entry)
{
	uint8_t sector[QKC_SECTOR];
	memcpy(sector, qkc_disk_bytes(t->live) + L2, sizeof(sector));
	for (unsigned i = 0; i < 8; i++)
		sector[index * 8 + i] = (uint8_t)(entry >> (56 - 8 * i));
	put(t, sector, sizeof(sector), L2);
}

/* Data of step `step` for guest cluster 1 into a host cluster. */
static void put_data(struct toy *t, uint32_t step, uint64_t off)
{
	static uint8_t buf[CLUSTER];
	qkc_content(step, CLUSTER, buf, CLUSTER);
	put(t, buf, CLUSTER, off);
}

static void barrier(struct toy *t)
{
	qkc_log_add(&t->log, QKC_FLUSH, 0, 0, NULL);
}

static void begin(struct toy *t, uint64_t step)
{
	qkc_log_add(&t->log, QKC_BEGIN, step, 0, NULL);
}

static void end(struct toy *t, uint64_t step, uint64_t flags)
{
	qkc_log_add(&t->log, QKC_END, step, flags, NULL);
}

/* Step 1 writes guest cluster 1: what the guest expects. */
static void expect_write(struct toy *t, uint32_t step)
{
	uint8_t buf[QKC_SECTOR];
	for (uint64_t s = CLUSTER / QKC_SECTOR; s < 2 * CLUSTER / QKC_SECTOR; s++) {
		qkc_content(step, s * QKC_SECTOR, buf, sizeof(buf));
		qkc_guest_write(
			qkc_expect_guest(t->expect), step, QKC_PLAIN, s, qkc_sector_hash(buf));
	}
}

static void expect_zeros(struct toy *t, uint32_t step)
{
	for (uint64_t s = 0; s < CLUSTER / QKC_SECTOR; s++)
		qkc_guest_write(qkc_expect_guest(t->expect), step, QKC_PLAIN, s, 0);
}

/* ---- orders ---- */

static void right_order_of_allocation_is_clean(void **state)
{
	(void)state;
	struct toy t = toy_new();
	begin(&t, 1);
	put_data(&t, 1, NEW_DATA);
	put_refcount(&t, 6, 1);
	expect_write(&t, 1);
	end(&t, 1, QKC_DONE);
	begin(&t, 2);
	barrier(&t);
	put_entry(&t, 1, NEW_DATA | COPIED);
	barrier(&t);
	end(&t, 2, QKC_DONE | QKC_IS_FLUSH);
	assert_int_equal(n_bad(&t), 0);
	assert_true(t.totals.n_distinct > 30);
	toy_free(&t);
}

/* Guest cluster 1 in a data file, and what is flushed before its entry: QKC_DATA_FILE, or 0 the image. */
static uint64_t n_bad_beside(uint64_t flushed_first)
{
	struct toy t = toy_made(one_cluster_beside);
	begin(&t, 1);
	put_data(&t, 1, QKC_DATA_FILE + CLUSTER);
	expect_write(&t, 1);
	end(&t, 1, QKC_DONE);
	begin(&t, 2);
	qkc_log_add(&t.log, QKC_FLUSH, flushed_first, 0, NULL);
	put_entry(&t, 1, CLUSTER | COPIED);
	barrier(&t);
	end(&t, 2, QKC_DONE | QKC_IS_FLUSH);
	uint64_t n = n_bad(&t);
	toy_free(&t);
	return n;
}

static void data_file_that_is_not_flushed_is_found(void **state)
{
	(void)state;
	assert_int_equal(n_bad_beside(QKC_DATA_FILE), 0);
	assert_true(n_bad_beside(0) > 0);
}

static void entry_before_its_target_is_found(void **state)
{
	(void)state;
	struct toy t = toy_new();
	begin(&t, 1);
	put_data(&t, 1, NEW_DATA);
	put_refcount(&t, 6, 1);
	put_entry(&t, 1, NEW_DATA | COPIED); /* no barrier before it */
	expect_write(&t, 1);
	end(&t, 1, QKC_DONE);
	begin(&t, 2);
	barrier(&t);
	end(&t, 2, QKC_DONE | QKC_IS_FLUSH);
	assert_true(n_bad(&t) > 0);
	assert_non_null(strstr(t.why, "check: "));
	toy_free(&t);
}

/* Killed, not without power: the order of the calls alone is wrong. */
static void entry_issued_before_the_refcount_is_found_by_a_kill(void **state)
{
	(void)state;
	struct toy t = toy_new();
	begin(&t, 1);
	put_data(&t, 1, NEW_DATA);
	barrier(&t);
	put_entry(&t, 1, NEW_DATA | COPIED);
	barrier(&t);
	put_refcount(&t, 6, 1);
	barrier(&t);
	expect_write(&t, 1);
	assert_true(n_bad(&t) > 0);
	assert_non_null(strstr(t.why, "under-count"));
	toy_free(&t);
}

static void flush_that_does_nothing_is_found(void **state)
{
	(void)state;
	struct toy t = toy_new();
	begin(&t, 1);
	put_data(&t, 1, NEW_DATA);
	put_refcount(&t, 6, 1);
	barrier(&t);
	put_entry(&t, 1, NEW_DATA | COPIED);
	expect_write(&t, 1);
	end(&t, 1, QKC_DONE);
	begin(&t, 2);
	end(&t, 2, QKC_DONE | QKC_IS_FLUSH); /* the entry is not durable */
	assert_true(n_bad(&t) > 0);
	assert_non_null(strstr(t.why, "disk: sector 128 "));
	toy_free(&t);
}

static void punch_before_the_unlinking_is_durable_is_found(void **state)
{
	(void)state;
	struct toy t = toy_new();
	begin(&t, 1);
	put_entry(&t, 0, 1); /* zero cluster */
	put_refcount(&t, 5, 0);
	qkc_disk_write(t.live, NULL, CLUSTER, OLD_DATA);
	qkc_log_add(&t.log, QKC_PUNCH, OLD_DATA, CLUSTER, NULL);
	expect_zeros(&t, 1);
	end(&t, 1, QKC_DONE);
	barrier(&t);
	assert_true(n_bad(&t) > 0);
	toy_free(&t);
}

static void right_order_of_discard_is_clean(void **state)
{
	(void)state;
	struct toy t = toy_new();
	begin(&t, 1);
	put_entry(&t, 0, 1);
	expect_zeros(&t, 1);
	end(&t, 1, QKC_DONE);
	begin(&t, 2);
	barrier(&t);
	put_refcount(&t, 5, 0);
	qkc_disk_write(t.live, NULL, CLUSTER, OLD_DATA);
	qkc_log_add(&t.log, QKC_PUNCH, OLD_DATA, CLUSTER, NULL);
	end(&t, 2, QKC_DONE | QKC_IS_FLUSH);
	assert_int_equal(n_bad(&t), 0);
	toy_free(&t);
}

/* The old block shows the data of another: the table says nothing wrong, only the content does. */
static void cluster_reused_too_early_is_found(void **state)
{
	(void)state;
	struct toy t = toy_new();
	begin(&t, 1);
	put_entry(&t, 0, 1);
	expect_zeros(&t, 1);
	end(&t, 1, QKC_DONE);
	begin(&t, 2);
	put_data(&t, 2, OLD_DATA); /* guest cluster 1 gets the cluster of guest cluster 0 */
	expect_write(&t, 2);
	barrier(&t);
	put_entry(&t, 1, OLD_DATA | COPIED);
	end(&t, 2, QKC_DONE);
	barrier(&t);
	assert_true(n_bad(&t) > 0);
	assert_non_null(strstr(t.why, "disk: sector 0 "));
	toy_free(&t);
}

/* What a failed flush lost stays lost, though the next one succeeds. */
static void flush_tried_again_is_found(void **state)
{
	(void)state;
	struct toy t = toy_new();
	begin(&t, 1);
	put_data(&t, 1, NEW_DATA);
	put_refcount(&t, 6, 1);
	qkc_log_add(&t.log, QKC_FLUSH_FAILED, 0, 0, NULL);
	barrier(&t);
	put_entry(&t, 1, NEW_DATA | COPIED);
	barrier(&t);
	expect_write(&t, 1);
	end(&t, 1, QKC_DONE);
	assert_true(n_bad(&t) > 0);
	toy_free(&t);
}

static void writing_again_after_a_failed_flush_is_clean(void **state)
{
	(void)state;
	struct toy t = toy_new();
	begin(&t, 1);
	expect_write(&t, 1);
	put_data(&t, 1, NEW_DATA);
	put_refcount(&t, 6, 1);
	qkc_log_add(&t.log, QKC_FLUSH_FAILED, 0, 0, NULL);
	put_data(&t, 1, NEW_DATA);
	put_refcount(&t, 6, 1);
	barrier(&t);
	put_entry(&t, 1, NEW_DATA | COPIED);
	barrier(&t);
	end(&t, 1, QKC_DONE);
	assert_int_equal(n_bad(&t), 0);
	toy_free(&t);
}

/* ---- the states themselves ---- */

struct counted {
	struct qkc_disk *initial;
	struct qkc_log log;
	struct qkc_totals totals;
	uint64_t wanted_hash; /* was a state with this content seen? */
	bool was_seen;
};

static bool count(void *ctx, struct qkc_disk *d, const struct qkc_state *s)
{
	struct counted *c = ctx;
	(void)s;
	c->was_seen = c->was_seen || qkc_disk_hash(d) == c->wanted_hash;
	return true;
}

static void count_states(struct counted *c, unsigned subset_bits, unsigned n_random)
{
	struct qkc_explore x = {.initial = c->initial,
		.log = &c->log,
		.seed = 1,
		.subset_bits = subset_bits,
		.n_random = n_random,
		.n_cuts = 4,
		.judge = count,
		.ctx = c};
	qkc_explore(&x, &c->totals);
	qkc_set_free(&c->totals.contents);
	qkc_log_clear(&c->log);
	qkc_disk_free(c->initial);
}

static void add_sectors(struct qkc_log *log, uint64_t first, unsigned n, uint8_t value)
{
	uint8_t bytes[16 * QKC_SECTOR];
	memset(bytes, value, sizeof(bytes));
	qkc_log_add(log, QKC_WRITE, first * QKC_SECTOR, n * QKC_SECTOR, bytes);
}

static void every_subset_of_an_epoch_is_a_state(void **state)
{
	(void)state;
	uint8_t zeros[QKC_SECTOR] = {0};
	struct counted c = {.initial = qkc_disk_new(zeros, sizeof(zeros))};
	qkc_disk_grow(c.initial, 100 * QKC_SECTOR);
	for (uint8_t i = 0; i < 10; i++)
		add_sectors(&c.log, 2u * i, 1, (uint8_t)(i + 1));
	qkc_log_add(&c.log, QKC_FLUSH, 0, 0, NULL);
	add_sectors(&c.log, 50, 1, 99);
	count_states(&c, 12, 0);
	assert_int_equal(c.totals.n_distinct, 1024 + 1);
}

static void flush_orders_the_writes_to_its_own_file_alone(void **state)
{
	(void)state;
	const uint64_t data = QKC_DATA_FILE / QKC_SECTOR;
	uint8_t zeros[QKC_SECTOR] = {0};
	struct counted c = {.initial = qkc_disk_new(zeros, sizeof(zeros))};
	qkc_disk_grow(c.initial, 100 * QKC_SECTOR);
	qkc_disk_grow(c.initial, QKC_DATA_FILE + 100 * QKC_SECTOR);
	for (uint8_t i = 0; i < 5; i++) {
		add_sectors(&c.log, 2u * i, 1, (uint8_t)(i + 1));
		add_sectors(&c.log, data + 2u * i, 1, (uint8_t)(i + 1));
	}
	qkc_log_add(&c.log, QKC_FLUSH, 0, 0, NULL);
	add_sectors(&c.log, 50, 1, 99); /* with any of the data: 32 more */
	qkc_log_add(&c.log, QKC_FLUSH, QKC_DATA_FILE, 0, NULL);
	add_sectors(&c.log, 51, 1, 99); /* with all of it, and sector 50 or not */
	count_states(&c, 12, 0);
	assert_int_equal(c.totals.n_distinct, 1024 + 32 + 2);
}

/* What the lost file had is gone; what was written to the other may be there or not. */
static void dropped_cache_is_that_of_one_file(void **state)
{
	(void)state;
	const uint64_t data = QKC_DATA_FILE / QKC_SECTOR;
	uint8_t zeros[QKC_SECTOR] = {0};
	for (unsigned of_data = 0; of_data < 2; of_data++) {
		struct counted c = {.initial = qkc_disk_new(zeros, sizeof(zeros))};
		qkc_disk_grow(c.initial, 100 * QKC_SECTOR);
		qkc_disk_grow(c.initial, QKC_DATA_FILE + 100 * QKC_SECTOR);
		for (uint8_t i = 0; i < 3; i++) {
			add_sectors(&c.log, 2u * i, 1, (uint8_t)(i + 1));
			add_sectors(&c.log, data + 2u * i, 1, (uint8_t)(i + 1));
		}
		qkc_log_add(&c.log, QKC_FLUSH_DROPPED, of_data ? QKC_DATA_FILE : 0, 0, NULL);
		/* with none of the one and any of the other: 8 more */
		add_sectors(&c.log, of_data ? data + 50 : 50, 1, 99);
		count_states(&c, 12, 0);
		assert_int_equal(c.totals.n_distinct, 64 + 8);
	}
}

/* The same of the disk on which the library works. */
static void dropping_restores_one_file_and_keeps_marks(void **state)
{
	(void)state;
	uint8_t one[QKC_SECTOR], two[QKC_SECTOR], zeros[QKC_SECTOR] = {0};
	memset(one, 1, sizeof(one));
	memset(two, 2, sizeof(two));
	struct qkc_disk *d = qkc_disk_new(one, sizeof(one));
	qkc_disk_write(d, one, sizeof(one), QKC_DATA_FILE);
	qkc_disk_settle(d);
	uint64_t before = qkc_disk_hash(d);
	size_t start = qkc_disk_mark(d);
	qkc_disk_write(d, two, sizeof(two), 0);
	size_t later = qkc_disk_mark(d);
	qkc_disk_write(d, two, sizeof(two), QKC_DATA_FILE + QKC_SECTOR);
	qkc_disk_write(d, zeros, sizeof(zeros), QKC_DATA_FILE);
	qkc_disk_write(d, one, sizeof(one), QKC_SECTOR);
	qkc_disk_drop(d, start, QKC_DATA_FILE);
	assert_int_equal(qkc_disk_data_end(d), QKC_DATA_FILE + QKC_SECTOR);
	assert_memory_equal(qkc_disk_bytes(d) + QKC_DATA_FILE, one, sizeof(one));
	assert_memory_equal(qkc_disk_bytes(d), two, sizeof(two));
	assert_int_equal(qkc_disk_size(d), 2 * QKC_SECTOR);
	qkc_disk_drop(d, later, 0);
	assert_memory_equal(qkc_disk_bytes(d), two, sizeof(two));
	assert_int_equal(qkc_disk_size(d), QKC_SECTOR);
	qkc_disk_undo(d, start);
	assert_true(qkc_disk_hash(d) == before);
	qkc_disk_free(d);
}

static void torn_write_keeps_any_prefix_or_suffix(void **state)
{
	(void)state;
	uint8_t zeros[QKC_SECTOR] = {0};
	struct counted c = {.initial = qkc_disk_new(zeros, sizeof(zeros))};
	qkc_disk_grow(c.initial, 100 * QKC_SECTOR);
	add_sectors(&c.log, 0, 5, 7);
	count_states(&c, 12, 0);
	/* none, all, 4 prefixes, 4 suffixes */
	assert_int_equal(c.totals.n_distinct, 10);
}

static void older_version_of_a_sector_may_survive(void **state)
{
	(void)state;
	uint8_t zeros[QKC_SECTOR] = {0}, once[QKC_SECTOR];
	struct counted c = {.initial = qkc_disk_new(zeros, sizeof(zeros))};
	struct qkc_disk *want = qkc_disk_new(zeros, sizeof(zeros));
	memset(once, 1, sizeof(once));
	qkc_disk_write(want, once, sizeof(once), 0);
	c.wanted_hash = qkc_disk_hash(want);
	qkc_disk_free(want);
	add_sectors(&c.log, 0, 1, 1);
	add_sectors(&c.log, 0, 1, 2);
	add_sectors(&c.log, 0, 1, 3);
	count_states(&c, 12, 0);
	assert_int_equal(c.totals.n_distinct, 4);
	assert_true(c.was_seen);
}

static void undo_restores_bytes_size_and_hash(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(1);
	uint8_t *bytes = qkc_need(64, QKC_SECTOR);
	qkt_rng_fill(&rng, bytes, 64 * QKC_SECTOR);
	struct qkc_disk *d = qkc_disk_new(bytes, 60 * QKC_SECTOR + 100);
	uint64_t hash = qkc_disk_hash(d), size = qkc_disk_size(d);
	uint8_t *before = qkc_need((size_t)size, 1);
	memcpy(before, qkc_disk_bytes(d), (size_t)size);
	for (unsigned round = 0; round < 200; round++) {
		size_t mark = qkc_disk_mark(d);
		for (unsigned i = 0; i < 1 + qkt_rng_below(&rng, 5); i++) {
			uint64_t off = qkt_rng_below(&rng, 100000), len = qkt_rng_below(&rng, 3000);
			off += qkt_rng_below(&rng, 3) == 0 ? QKC_DATA_FILE : 0;
			if (qkt_rng_below(&rng, 4) == 0)
				qkc_disk_resize(d, off);
			else
				qkc_disk_write(d, qkt_rng_next(&rng) & 1 ? bytes : NULL, len, off);
		}
		struct qkc_disk *same = qkc_disk_copy(d);
		assert_true(qkc_disk_hash(same) == qkc_disk_hash(d));
		qkc_disk_free(same);
		qkc_disk_undo(d, mark);
		assert_true(qkc_disk_hash(d) == hash && qkc_disk_size(d) == size);
		assert_true(qkc_disk_data_end(d) == 0);
		assert_memory_equal(qkc_disk_bytes(d), before, (size_t)size);
	}
	free(before);
	free(bytes);
	qkc_disk_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(right_order_of_allocation_is_clean),
		cmocka_unit_test(data_file_that_is_not_flushed_is_found),
		cmocka_unit_test(entry_before_its_target_is_found),
		cmocka_unit_test(entry_issued_before_the_refcount_is_found_by_a_kill),
		cmocka_unit_test(flush_that_does_nothing_is_found),
		cmocka_unit_test(punch_before_the_unlinking_is_durable_is_found),
		cmocka_unit_test(right_order_of_discard_is_clean),
		cmocka_unit_test(cluster_reused_too_early_is_found),
		cmocka_unit_test(flush_tried_again_is_found),
		cmocka_unit_test(writing_again_after_a_failed_flush_is_clean),
		cmocka_unit_test(every_subset_of_an_epoch_is_a_state),
		cmocka_unit_test(flush_orders_the_writes_to_its_own_file_alone),
		cmocka_unit_test(dropped_cache_is_that_of_one_file),
		cmocka_unit_test(dropping_restores_one_file_and_keeps_marks),
		cmocka_unit_test(torn_write_keeps_any_prefix_or_suffix),
		cmocka_unit_test(older_version_of_a_sector_may_survive),
		cmocka_unit_test(undo_restores_bytes_size_and_hash),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
