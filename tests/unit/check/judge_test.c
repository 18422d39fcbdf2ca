/* SPDX-License-Identifier: MIT */
/*
 * The judge against an array of counts: images in memory, 512-byte clusters strewn over a sparse gigabyte, are
 * written entry by entry by this file; the findings about refcounts must be exactly those that the array
 * gives, with the default memory (one pass), with the least (many), and where counters must be wide.
 * Every refcount width is written by arithmetic of its own.
 */
#include "cm.h"

#include <stdlib.h>

#include <qcowkit/qcowkit.h>

#define CLUSTER	     512U
#define N_CLUSTERS   (2U << 20) /* of the file: 1 GiB */
#define L2_ENTRIES   64U
#define N_L2	     48U
#define COPIED	     (UINT64_C(1) << 63)
#define RT_CLUSTER   64U
#define L1_CLUSTER   40000U
#define FIRST_L2     50000U
#define FIRST_BLOCK  100000U
#define MAX_FINDINGS 20000U

struct image {
	struct qcow_store *store;
	unsigned order; /* of the refcounts */
	uint64_t *count; /* the oracle: references to each cluster */
	uint64_t *stored; /* what the image will say */
	uint64_t seed;
	struct qcow_finding *found;
	size_t n_found;
};

static uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static void put(struct image *im, uint64_t off, uint64_t value, unsigned bytes)
{
	uint8_t buf[8];
	struct qcow_error err = QCOW_ERROR_INIT;

	for (unsigned i = 0; i < bytes; i++)
		buf[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
	assert_ok(qcow_store_write(im->store, buf, bytes, off, &err), err);
}

static void init(struct image *im, unsigned order, uint64_t seed)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	*im = (struct image){.order = order, .seed = seed};
	im->count = calloc(N_CLUSTERS, sizeof(*im->count));
	im->stored = calloc(N_CLUSTERS, sizeof(*im->stored));
	im->found = calloc(MAX_FINDINGS, sizeof(*im->found));
	assert_non_null(im->count);
	assert_non_null(im->stored);
	assert_non_null(im->found);
	assert_ok(qcow_memory_open((uint64_t)N_CLUSTERS * CLUSTER, &im->store, &err), err);
}

/* References of one kind, and with them the image's entries. */
static void write_tree(struct image *im, unsigned n_same)
{
	for (uint32_t t = 0; t < N_L2; t++) {
		uint64_t l2 = FIRST_L2 + t;
		put(im, (uint64_t)L1_CLUSTER * CLUSTER + t * 8, l2 * CLUSTER | COPIED, 8);
		im->count[l2]++;
		for (uint32_t i = 0; i < L2_ENTRIES; i++) {
			uint64_t c = 200000 + next_random(&im->seed) % (N_CLUSTERS - 200000);
			if (t * L2_ENTRIES + i < n_same)
				c = N_CLUSTERS - 1;
			else if (i % 8 == 0)
				c = 200000 + next_random(&im->seed) % 16;
			put(im, l2 * CLUSTER + i * 8, c * CLUSTER | (i % 8 != 0 ? COPIED : 0), 8);
			im->count[c]++;
		}
	}
}

static void set_refcount(const struct image *im, uint8_t *block, uint64_t i, uint64_t v)
{
	unsigned bits = 1U << im->order;

	if (bits < 8) {
		block[i * bits / 8] |= (uint8_t)(v << (i * bits % 8));
		return;
	}
	for (unsigned b = 0; b < bits / 8; b++)
		block[i * (bits / 8) + b] = (uint8_t)(v >> (bits - 8 - 8 * b));
}

/* A refcount block for each range where something is stored or counted; blocks count themselves. */
static void write_refcounts(struct image *im)
{
	unsigned per = CLUSTER * 8 / (1U << im->order);
	unsigned n_blocks = N_CLUSTERS / per;
	uint64_t max = im->order == 6 ? UINT64_MAX : (UINT64_C(1) << (1U << im->order)) - 1;
	uint64_t next_block = FIRST_BLOCK;
	uint64_t *block_of = calloc(n_blocks, sizeof(*block_of));
	struct qcow_error err = QCOW_ERROR_INIT;

	assert_non_null(block_of);
	for (int again = 0; again < 2; again++)
		for (uint64_t c = 0; c < N_CLUSTERS; c++)
			if (im->count[c] != 0 && block_of[c / per] == 0) {
				block_of[c / per] = next_block;
				im->count[next_block++]++;
			}
	for (uint64_t c = 0; c < N_CLUSTERS; c++) {
		im->stored[c] = im->count[c] < max ? im->count[c] : max;
		if (im->count[c] != 0 && next_random(&im->seed) % 50 == 0)
			im->stored[c] = next_random(&im->seed) % 4 & max;
	}
	for (uint64_t b = 0; b < n_blocks; b++) {
		uint8_t block[CLUSTER] = {0};
		if (block_of[b] == 0)
			continue;
		for (uint64_t i = 0; i < per; i++)
			set_refcount(im, block, i, im->stored[b * per + i]);
		assert_ok(qcow_store_write(im->store, block, CLUSTER, block_of[b] * CLUSTER, &err),
			err);
		put(im, (uint64_t)RT_CLUSTER * CLUSTER + b * 8, block_of[b] * CLUSTER, 8);
	}
	free(block_of);
}

static void write_header(struct image *im, uint32_t rt_clusters)
{
	put(im, 0, 0x514649fb, 4);
	put(im, 4, 3, 4);
	put(im, 20, 9, 4); /* cluster_bits */
	put(im, 24, (uint64_t)N_L2 * L2_ENTRIES * CLUSTER, 8);
	put(im, 36, N_L2, 4);
	put(im, 40, (uint64_t)L1_CLUSTER * CLUSTER, 8);
	put(im, 48, (uint64_t)RT_CLUSTER * CLUSTER, 8);
	put(im, 56, rt_clusters, 4);
	put(im, 96, im->order, 4);
	put(im, 100, 104, 4);
}

static void make(struct image *im, unsigned order, uint64_t seed, unsigned n_same)
{
	init(im, order, seed);
	uint32_t n_blocks = N_CLUSTERS / (CLUSTER * 8 / (1U << order));
	uint32_t rt_clusters = n_blocks * 8 / CLUSTER + (n_blocks * 8 % CLUSTER != 0);
	/* the widest table would run into the L1 table */
	assert_true(RT_CLUSTER + rt_clusters < L1_CLUSTER);
	im->count[0]++;
	for (uint32_t i = 0; i < rt_clusters; i++)
		im->count[RT_CLUSTER + i]++;
	im->count[L1_CLUSTER]++;
	write_tree(im, n_same);
	write_refcounts(im);
	write_header(im, rt_clusters);
}

static void keep(void *ctx, const struct qcow_finding *f)
{
	struct image *im = ctx;

	if (f->id != QCOW_FINDING_REFCOUNT_TOO_LOW && f->id != QCOW_FINDING_REFCOUNT_TOO_HIGH)
		return;
	assert_true(im->n_found < MAX_FINDINGS);
	im->found[im->n_found] = *f;
	im->found[im->n_found++].where = NULL;
}

/* Exactly the clusters that differ, each once, ascending or not. */
static void compare(const struct image *im)
{
	size_t expected = 0;
	uint8_t *seen = calloc(N_CLUSTERS, 1);

	assert_non_null(seen);
	for (uint64_t c = 0; c < N_CLUSTERS; c++)
		expected += im->count[c] != im->stored[c];
	assert_true(expected > 10);
	assert_int_equal(im->n_found, expected);
	for (size_t i = 0; i < im->n_found; i++) {
		const struct qcow_finding *f = &im->found[i];
		uint64_t c = f->host_off / CLUSTER;
		assert_int_equal(seen[c]++, 0);
		assert_int_equal(f->stored, im->stored[c]);
		assert_int_equal(f->expected, im->count[c]);
		assert_int_equal(f->id, im->stored[c] < im->count[c]
						? QCOW_FINDING_REFCOUNT_TOO_LOW
						: QCOW_FINDING_REFCOUNT_TOO_HIGH);
	}
	free(seen);
}

static struct qcow_check_result check(struct image *im, struct qcow_image *image, uint64_t memory)
{
	struct qcow_check_options o = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result r = {0};
	struct qcow_error err = QCOW_ERROR_INIT;

	im->n_found = 0;
	o.memory_bytes = memory;
	o.on_finding = keep;
	o.ctx = im;
	assert_ok(qcow_check(image, &o, &r, &err), err);
	compare(im);
	assert_int_equal(r.allocated_clusters, N_L2 * L2_ENTRIES);
	assert_int_equal(r.check_errors, 0);
	return r;
}

static void check_both_ways(unsigned order, uint64_t seed, unsigned n_same)
{
	struct image im;
	struct qcow_image *image = NULL;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;

	make(&im, order, seed, n_same);
	o.flags = QCOW_OPEN_CHECK;
	o.format = "qcow2";
	assert_ok(qcow_open(im.store, &o, &image, &err), err);
	struct qcow_check_result one = check(&im, image, 0);
	/* 1 MiB holds 600 pages of counters: less than the clusters are strewn over */
	struct qcow_check_result many = check(&im, image, 1);
	assert_memory_equal(&one, &many, sizeof(one));
	qcow_close(image);
	free(im.count);
	free(im.stored);
	free(im.found);
}

static void refcounts_of_every_width_are_compared(void **state)
{
	(void)state;
	for (unsigned order = 0; order <= 6; order++)
		check_both_ways(order, 11 + order, 0);
}

static void counts_beyond_narrow_counters_are_exact(void **state)
{
	(void)state;
	for (unsigned order = 3; order <= 6; order++)
		check_both_ways(order, 31 + order, 2500);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refcounts_of_every_width_are_compared),
		cmocka_unit_test(counts_beyond_narrow_counters_are_exact),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
