/* SPDX-License-Identifier: MIT */
/*
 * A second refcount structure against an array of counts: every width, several cluster sizes, clusters for the structure
 * from the end of the file, strewn over holes, or from the space of an image; every call of the source and of the
 * store failing once. The reader of what was written is this file's own.
 */
#include "space_lab.h"

#include <stdlib.h>

#include "engine/shadow.h"

#define N 6000U /* clusters that the array knows */

struct source {
	struct qcow_store *store;
	uint64_t *want; /* what counts() answers */
	uint8_t *taken; /* by the structure */
	uint64_t end; /* first cluster behind those in use */
	bool holes; /* take in the holes of `want`, few at a time */
	uint64_t fail_at, n_calls;
	uint64_t next;
};

static bool fails(struct source *s)
{
	return ++s->n_calls == s->fail_at;
}

static enum qcow_status give_counts(
	void *ctx, uint64_t first, uint64_t n, uint64_t *out, struct qcow_error *err)
{
	struct source *s = ctx;

	(void)err;
	assert_true(n <= QK_SHADOW_COUNTS && first + n <= s->end);
	if (fails(s))
		return QCOW_E_IO;
	for (uint64_t i = 0; i < n; i++) {
		assert_int_equal(out[i], 0);
		/* a space would answer 1 for what it has given */
		out[i] = s->taken[first + i] ? 1 : s->want[first + i];
	}
	return QCOW_OK;
}

static bool is_free(const struct source *s, uint64_t c)
{
	return s->want[c] == 0 && s->taken[c] == 0;
}

static enum qcow_status give_clusters(void *ctx, uint64_t n, uint64_t min_n, uint64_t *first,
	uint64_t *n_taken, struct qcow_error *err)
{
	struct source *s = ctx;
	uint64_t c = s->holes ? 1 : s->end;

	(void)err;
	if (fails(s))
		return QCOW_E_NOSPC;
	if (s->holes)
		n = min_n > 3 ? min_n : n < 3 ? n : 3;
	for (; c + min_n <= N; c++) {
		uint64_t run = 0;
		while (run < n && c + run < N && is_free(s, c + run))
			run++;
		if (run < min_n || run == 0)
			continue;
		memset(s->taken + c, 1, run);
		*first = c;
		*n_taken = run;
		return QCOW_OK;
	}
	return QCOW_E_NOSPC;
}

static void take_back(void *ctx, uint64_t first, uint64_t n)
{
	struct source *s = ctx;

	for (uint64_t i = 0; i < n; i++) {
		assert_int_equal(s->taken[first + i], 1);
		s->taken[first + i] = 0;
	}
}

static uint64_t load_be(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++)
		v = v << 8 | p[i];
	return v;
}

static uint64_t count_at(const uint8_t *block, uint64_t i, unsigned bits)
{
	if (bits >= 8)
		return load_be(block + i * (bits / 8), bits / 8);
	return ((unsigned)block[i * bits / 8] >> (i * bits % 8)) & ((1U << bits) - 1);
}

/* What is stored is the array, and 1 for the structure; nothing else. */
static void judge(
	const struct source *s, const struct qk_shadow *sh, uint64_t cluster, unsigned bits)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t per = cluster * 8 / bits;
	uint64_t n_table = sh->rt_clusters * cluster / 8;
	uint8_t *block = malloc(cluster);
	uint8_t *table = malloc(sh->rt_clusters * cluster);

	assert_true(block != NULL && table != NULL && sh->n_entries <= n_table);
	assert_ok(
		qcow_store_read(s->store, table, sh->rt_clusters * cluster, sh->rt_off, &err), err);
	for (uint64_t c = 0; c < N || c < sh->n_entries * per; c++) {
		uint64_t off = c / per < n_table ? load_be(table + c / per * 8, 8) : 0;
		uint64_t want = c >= N ? 0 : s->taken[c] ? 1 : s->want[c];
		if (c % per == 0 && off != 0) {
			assert_ok(qcow_store_read(s->store, block, cluster, off, &err), err);
			assert_true(s->taken[off / cluster]);
		}
		uint64_t got = off == 0 ? 0 : count_at(block, c % per, bits);
		if (got != want)
			fail_msg("cluster %llu: refcount %llu, not %llu", (unsigned long long)c,
				(unsigned long long)got, (unsigned long long)want);
	}
	for (uint64_t i = sh->n_entries; i < n_table; i++)
		assert_int_equal(load_be(table + i * 8, 8), 0);
	free(table);
	free(block);
}

static void fill(struct source *s, struct qkt_rng *rng, unsigned bits, bool holes)
{
	uint64_t max = bits >= 16 ? 1000 : (1U << bits) - 1;

	*s = (struct source){.holes = holes,
		.want = calloc(N, sizeof(*s->want)),
		.taken = calloc(N, 1),
		.end = holes ? N : 1 + qkt_rng_below(rng, N / 2)};
	assert_true(s->want != NULL && s->taken != NULL);
	/* stretches in use, and areas where nothing is */
	for (uint64_t c = 0; c < s->end;) {
		uint64_t n = 1 + qkt_rng_below(rng, 400);
		bool used = qkt_rng_below(rng, 2) == 0;
		for (; n != 0 && c < s->end; n--, c++)
			s->want[c] = used && qkt_rng_below(rng, 5) != 0
					     ? 1 + qkt_rng_below(rng, max)
					     : 0;
	}
	s->want[0] = 1;
}

static void drop(struct source *s)
{
	qcow_store_close(s->store);
	free(s->want);
	free(s->taken);
}

static void geometry_of(struct qk_geometry *g, uint64_t cluster, unsigned bits)
{
	qk_geometry_init(g, 3, qk_log2(cluster), qk_log2(bits), false);
}

static enum qcow_status build(
	struct source *s, const struct qk_geometry *g, struct qk_shadow *sh, struct qcow_error *err)
{
	struct qk_shadow_source src = {s, give_counts, give_clusters, take_back};
	struct qk_shadow_request rq = {
		.store = s->store, .geometry = g, .source = &src, .end = s->end};

	return qk_shadow_build(&rq, sh, err);
}

static void every_width_is_the_array(void **state)
{
	static const uint64_t sizes[] = {512, 4096, 65536};
	struct qkt_rng rng = qkt_rng_init(11);
	struct qcow_error err = QCOW_ERROR_INIT;

	(void)state;
	for (unsigned i = 0; i < 3 * 7 * 4; i++) {
		unsigned bits = 1U << i / 3 % 7;
		struct qk_geometry g;
		struct qk_shadow sh;
		struct source s;

		geometry_of(&g, sizes[i % 3], bits);
		fill(&s, &rng, bits, i / 21 % 2 == 1);
		assert_ok(qcow_memory_open(s.holes ? N * sizes[i % 3] : 0, &s.store, &err), err);
		assert_ok(build(&s, &g, &sh, &err), err);
		judge(&s, &sh, sizes[i % 3], bits);
		qk_shadow_release(&sh);
		drop(&s);
	}
}

static void every_failure_gives_all_back(void **state)
{
	struct qkt_rng rng = qkt_rng_fixed(5);
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_geometry g;
	struct source s;
	uint64_t at = 1;

	(void)state;
	geometry_of(&g, 512, 16);
	fill(&s, &rng, 16, true);
	struct qk_shadow_source src = {&s, give_counts, give_clusters, take_back};
	struct qkt_fault *fault = qkt_fault_new();
	assert_ok(qcow_memory_open(N * UINT64_C(512), &s.store, &err), err);
	s.store = qkt_fault_wrap(fault, s.store, 0);
	for (int of_store = 0; of_store < 2; of_store++) {
		for (at = 1;; at++) {
			struct qk_shadow sh;
			s.n_calls = 0;
			s.fail_at = of_store ? 0 : at;
			if (of_store)
				qkt_fault_arm(fault, QKT_ANY, at, QKT_EIO, false);
			enum qcow_status status = build(&s, &g, &sh, &err);
			qkt_fault_disarm(fault);
			if (status == QCOW_OK)
				judge(&s, &sh, 512, 16);
			qk_shadow_undo(&src, &sh);
			qk_shadow_release(&sh);
			for (unsigned c = 0; c < N; c++)
				assert_int_equal(s.taken[c], 0);
			/* where a row is refused, half of it may be had */
			if (status == QCOW_OK && (of_store || s.n_calls < at))
				break;
		}
		assert_true(at > (of_store ? 6 : 20));
	}
	drop(&s);
	qkt_fault_free(fault);
}

static void counts_that_do_not_fit_are_named(void **state)
{
	struct qkt_rng rng = qkt_rng_fixed(6);
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_geometry g;
	struct qk_shadow sh;
	struct source s;

	(void)state;
	geometry_of(&g, 4096, 2);
	fill(&s, &rng, 2, false);
	s.end = 5000 < N ? 5000 : N;
	s.want[4321] = 4;
	assert_ok(qcow_memory_open(0, &s.store, &err), err);
	assert_status(build(&s, &g, &sh, &err), QCOW_E_LIMIT, err);
	assert_int_equal(err.host_off, 4321 * 4096);
	assert_says(err, "more than 2-bit refcounts hold");
	qk_shadow_release(&sh);
	drop(&s);
}

static bool say_yes(void *ctx)
{
	(void)ctx;
	return true;
}

static void cancelling_ends_it(void **state)
{
	struct qkt_rng rng = qkt_rng_fixed(7);
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_progress progress = {.cancelled = say_yes};
	struct qk_geometry g;
	struct qk_shadow sh;
	struct source s;

	(void)state;
	geometry_of(&g, 4096, 16);
	fill(&s, &rng, 16, false);
	struct qk_shadow_source src = {&s, give_counts, give_clusters, take_back};
	assert_ok(qcow_memory_open(0, &s.store, &err), err);
	struct qk_shadow_request rq = {.store = s.store,
		.geometry = &g,
		.source = &src,
		.end = s.end,
		.progress = &progress};
	assert_status(qk_shadow_build(&rq, &sh, &err), QCOW_E_CANCELLED, err);
	qk_shadow_release(&sh);
	drop(&s);
}

/* ---- over the space of an image ---- */

static void switch_to(struct lab *lab, const struct qk_shadow *sh)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t bytes[QK_SHADOW_HEADER_BYTES];
	struct qk_header_patch patch = {QK_SHADOW_HEADER_OFF, sizeof(bytes), bytes};

	qk_shadow_header(sh, bytes);
	assert_ok(qcow_store_flush(lab->store, &err), err);
	assert_ok(qk_space_write_header(lab->sp, &patch, &err), err);
	assert_ok(qcow_store_flush(lab->store, &err), err);
}

static void use_space(struct lab *lab, struct qkt_rng *rng)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;

	/* enough in a row for a reservation */
	for (unsigned i = 0; i < 80; i++)
		assert_ok(lab_take(lab, 1 + qkt_rng_below(rng, 20), 1, &run, &err), err);
	for (unsigned i = 0; i < 200; i++) {
		uint64_t c = 1 + qkt_rng_below(rng, lab->top);
		if (lab->counts[c] != 0 && lab->counts[c] < lab->max && qkt_rng_below(rng, 3) == 0)
			assert_ok(lab_raise(lab, c, &err), err);
		else if (lab->counts[c] != 0)
			assert_ok(lab_drop(lab, c, &err), err);
	}
	assert_ok(lab_publish(lab, &err), err);
}

static void over_a_space(const struct lab_options *o, uint64_t seed)
{
	struct qkt_rng rng = qkt_rng_fixed(seed);
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_shadow_source src;
	struct qk_shadow sh;
	struct lab lab;

	lab_open(&lab, o);
	for (unsigned round = 0; round < 3; round++) {
		use_space(&lab, &rng);
		qk_shadow_of_space(lab.sp, &src);
		struct qk_shadow_request rq = {.store = lab.store,
			.geometry = &lab.image->geometry,
			.source = &src,
			.end = qk_shadow_space_end(lab.sp)};
		assert_ok(qk_shadow_build(&rq, &sh, &err), err);
		switch_to(&lab, &sh);
		qk_shadow_release(&sh);
		qk_space_free(lab.sp);
		assert_ok(lab_space(&lab, o, &err), err);
		lab_judge(&lab, true);
	}
	lab_free(&lab);
}

static void a_space_goes_on_with_it(void **state)
{
	(void)state;
	over_a_space(
		&(struct lab_options){
			.cluster_size = 512, .refcount_bits = 16, .prove = QCOW_PROVE_OFF},
		1);
	over_a_space(
		&(struct lab_options){
			.cluster_size = 65536, .refcount_bits = 2, .prove = QCOW_PROVE_OFF},
		2);
	over_a_space(
		&(struct lab_options){
			.cluster_size = 512, .refcount_bits = 64, .prove = QCOW_PROVE_OFF},
		3);
	over_a_space(&(struct lab_options){.cluster_size = 512,
			     .refcount_bits = 16,
			     .fixed_clusters = 9000,
			     .prove = QCOW_PROVE_OFF},
		4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_width_is_the_array),
		cmocka_unit_test(every_failure_gives_all_back),
		cmocka_unit_test(counts_that_do_not_fit_are_named),
		cmocka_unit_test(cancelling_ends_it),
		cmocka_unit_test(a_space_goes_on_with_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
