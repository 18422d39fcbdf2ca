/* SPDX-License-Identifier: MIT */
/*
 * The census against an array: counts and flags of random references, in one pass and in many, with narrow and
 * wide counters. And the two sets that it leans on, against arrays too.
 */
#include "cm.h"

#include "audit/census.h"
#include "audit/l2set.h"
#include "audit/sweep.h"
#include "base/mem.h"
#include "base/num.h"

#define N_CLUSTERS (4U << 20)
#define N_REFS	   60000U

struct ref {
	uint32_t cluster;
	uint32_t n;
	unsigned flags;
};

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* References that are spread thinly over the file, with some clusters met again and again. */
static struct ref *make_refs(uint64_t seed, uint32_t max_n)
{
	struct ref *refs = qk_calloc(N_REFS, sizeof(*refs));
	uint64_t s = seed;

	assert_non_null(refs);
	for (uint32_t i = 0; i < N_REFS; i++) {
		uint64_t r = next_random(&s);
		refs[i].cluster = (uint32_t)(r % (i % 3 == 0 ? 1000 : N_CLUSTERS));
		refs[i].n = 1 + (uint32_t)(r >> 32) % max_n;
		refs[i].flags = (r >> 60) == 0	 ? QK_CENSUS_EXCLUSIVE
				: (r >> 60) < 3	 ? QK_CENSUS_L2
				: (r >> 60) < 8	 ? QK_CENSUS_COPIED
				: (r >> 60) < 10 ? QK_CENSUS_UNCOPIED
						 : 0;
	}
	return refs;
}

static void add_all(struct qk_census *c, const struct ref *refs)
{
	for (uint32_t i = 0; i < N_REFS; i++) {
		if (refs[i].n == 1 && (refs[i].flags & (QK_CENSUS_L2 | QK_CENSUS_EXCLUSIVE)) == 0)
			qk_census_add_data(c, refs[i].cluster, 1, refs[i].flags);
		else
			qk_census_add(c, refs[i].cluster, refs[i].n, refs[i].flags);
	}
}

/* Shared legally only by L2 references, or by data references. */
struct oracle {
	uint64_t n_data, n_l2, n_exclusive;
	bool copied, uncopied;
};

static void compare_with(const struct qk_census *c, const struct oracle *o)
{
	for (uint64_t i = c->lo; i < c->hi && i < N_CLUSTERS; i++) {
		uint64_t v = qk_census_get(c, i);
		uint64_t n = o[i].n_data + o[i].n_l2 + o[i].n_exclusive;
		bool overlap = (o[i].n_exclusive > 0 && n > 1) ||
			       (o[i].n_l2 > 0 && o[i].n_data > 0);
		assert_int_equal(v & QK_CENSUS_WIDE_COUNT, n);
		assert_int_equal((v & QK_CENSUS_WIDE(QK_CENSUS_OVERLAP)) != 0, overlap);
		assert_int_equal((v & QK_CENSUS_WIDE(QK_CENSUS_COPIED)) != 0, o[i].copied);
		assert_int_equal((v & QK_CENSUS_WIDE(QK_CENSUS_UNCOPIED)) != 0, o[i].uncopied);
	}
}

static struct oracle *make_oracle(const struct ref *refs)
{
	struct oracle *o = qk_calloc(N_CLUSTERS, sizeof(*o));

	assert_non_null(o);
	for (uint32_t i = 0; i < N_REFS; i++) {
		struct oracle *at = &o[refs[i].cluster];
		if ((refs[i].flags & QK_CENSUS_EXCLUSIVE) != 0)
			at->n_exclusive += refs[i].n;
		else if ((refs[i].flags & QK_CENSUS_L2) != 0)
			at->n_l2 += refs[i].n;
		else
			at->n_data += refs[i].n;
		at->copied |= (refs[i].flags & QK_CENSUS_COPIED) != 0;
		at->uncopied |= (refs[i].flags & QK_CENSUS_UNCOPIED) != 0;
	}
	return o;
}

/* All passes; how many there were. */
static unsigned count_in_passes(uint64_t memory, const struct ref *refs, bool wide)
{
	struct oracle *o = make_oracle(refs);
	struct qk_census c;
	unsigned passes = 0;
	uint64_t lo = 0;

	assert_int_equal(qk_census_init(&c, memory, N_CLUSTERS, NULL), QCOW_OK);
	while (lo < N_CLUSTERS) {
		qk_census_begin(&c, lo, N_CLUSTERS, wide);
		add_all(&c, refs);
		assert_false(c.need_wide);
		assert_true(c.hi > lo);
		compare_with(&c, o);
		lo = c.hi;
		passes++;
	}
	qk_census_release(&c);
	free(o);
	return passes;
}

static void counts_are_exact_in_one_pass(void **state)
{
	(void)state;
	struct ref *refs = make_refs(1, 3);
	assert_int_equal(count_in_passes(64U << 20, refs, false), 1);
	free(refs);
}

static void counts_are_exact_in_many_passes(void **state)
{
	(void)state;
	struct ref *refs = make_refs(2, 3);
	assert_true(count_in_passes(1U << 20, refs, false) > 3);
	assert_true(count_in_passes(64U << 10, refs, false) > 50);
	free(refs);
}

static void wide_counters_are_exact(void **state)
{
	(void)state;
	struct ref *refs = make_refs(3, 1U << 30);
	assert_int_equal(count_in_passes(64U << 20, refs, true), 1);
	assert_true(count_in_passes(1U << 20, refs, true) > 3);
	free(refs);
}

static void narrow_counters_say_when_they_do_not_suffice(void **state)
{
	(void)state;
	struct qk_census c;

	assert_int_equal(qk_census_init(&c, 1U << 20, 1000, NULL), QCOW_OK);
	for (unsigned i = 0; i < QK_CENSUS_COUNT_MASK - 1; i++)
		qk_census_add_data(&c, 7, 1, 0);
	assert_false(c.need_wide);
	assert_int_equal(qk_census_get(&c, 7), QK_CENSUS_COUNT_MASK - 1);
	qk_census_add_data(&c, 7, 1, 0);
	assert_true(c.need_wide);
	qk_census_begin(&c, 0, 1000, false);
	qk_census_add(&c, 7, UINT64_C(1) << 40, QK_CENSUS_L2);
	assert_true(c.need_wide);
	qk_census_release(&c);
}

static void sweep_counts_covers_of_every_byte(void **state)
{
	(void)state;
	uint8_t covers[2000] = {0};
	struct qk_sweep s = {0};
	struct qk_sweep_range range;
	uint64_t seed = 5;
	uint64_t end = 0;

	for (unsigned i = 0; i < 100; i++) {
		uint64_t off = next_random(&seed) % 1500;
		uint64_t len = next_random(&seed) % (i % 10 == 0 ? 500 : 7);
		assert_int_equal(qk_sweep_add(&s, off, len, NULL), QCOW_OK);
		for (uint64_t k = off; k < off + len; k++)
			covers[k]++;
	}
	qk_sweep_sort(&s);
	while (qk_sweep_next(&s, &range)) {
		assert_true(range.off >= end && range.len > 0);
		for (uint64_t k = end; k < range.off; k++)
			assert_int_equal(covers[k], 0);
		for (uint64_t k = 0; k < range.len; k++)
			assert_int_equal(covers[range.off + k], range.covers);
		end = range.off + range.len;
	}
	for (; end < sizeof(covers); end++)
		assert_int_equal(covers[end], 0);
	qk_sweep_release(&s);
}

#define N_TABLES 5000U

static void set_weighs_every_table_once(void **state)
{
	(void)state;
	uint32_t *weight = qk_calloc(N_TABLES, sizeof(*weight));
	uint32_t *first = qk_calloc(N_TABLES, sizeof(*first));
	struct qk_l2set s;
	uint64_t lo = 0;
	uint32_t seen = 0;
	unsigned batches = 0;

	assert_int_equal(qk_l2set_init(&s, 0, NULL), QCOW_OK);
	do {
		uint64_t seed = 9;
		memset(weight, 0, N_TABLES * sizeof(*weight));
		qk_l2set_begin(&s, lo);
		for (uint32_t i = 0; i < 20000; i++) {
			uint32_t t = (uint32_t)(next_random(&seed) % N_TABLES);
			struct qk_l2ref ref = {.off = t * 512ULL,
				.weight = 2,
				.l1_index = 30000 - i,
				.n_active = 1};
			first[t] = 30000 - i;
			weight[t] += 2;
			qk_l2set_add(&s, &ref);
		}
		qk_l2set_sort(&s);
		for (uint32_t i = 0; i < s.n; i++) {
			uint64_t t = s.v[i].off / 512;
			assert_true(s.v[i].off >= lo && s.v[i].off < s.hi);
			assert_true(i == 0 || s.v[i].off > s.v[i - 1].off);
			assert_int_equal(s.v[i].weight, weight[t]);
			assert_int_equal(s.v[i].n_active, weight[t] / 2);
			assert_int_equal(s.v[i].l1_index, first[t]);
		}
		seen += s.n;
		lo = s.hi;
		batches++;
	} while (lo != UINT64_MAX);
	for (uint32_t t = 0; t < N_TABLES; t++)
		seen -= weight[t] != 0;
	assert_int_equal(seen, 0);
	assert_true(batches > 3);
	qk_l2set_release(&s);
	free(weight);
	free(first);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(counts_are_exact_in_one_pass),
		cmocka_unit_test(counts_are_exact_in_many_passes),
		cmocka_unit_test(wide_counters_are_exact),
		cmocka_unit_test(narrow_counters_say_when_they_do_not_suffice),
		cmocka_unit_test(sweep_counts_covers_of_every_byte),
		cmocka_unit_test(set_weighs_every_table_once),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
