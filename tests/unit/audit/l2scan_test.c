/* SPDX-License-Identifier: MIT */
/*
 * Tables of rows of clusters that follow each other, with metadata among them: the census is that of the entries one by one,
 * and metadata in each row costs no more than the table is long.
 */
#include "cm.h"

#include "audit/l2scan.h"
#include "base/bytes.h"
#include "base/mem.h"
#include "rng.h"

#define CENSUS_BYTES ((uint64_t)64 << 20)
#define PAGE	     512U /* counters side by side */

struct bed {
	struct qk_geometry g;
	struct qk_header header;
	struct qk_audit audit;
	struct qk_census census;
	struct qk_l2scan scan;
	uint8_t *table;
	uint64_t n_clusters;
};

static void report(void *ctx, const struct qcow_finding *f)
{
	(void)ctx;
	(void)f;
}

static void make(struct bed *b, unsigned cluster_bits, uint64_t n_clusters)
{
	*b = (struct bed){.n_clusters = n_clusters};
	qk_geometry_init(&b->g, 3, cluster_bits, 4, false);
	b->header.size = n_clusters << cluster_bits;
	b->audit = (struct qk_audit){.header = &b->header,
		.geometry = &b->g,
		.file_size = n_clusters << cluster_bits,
		.report = report,
		.quiet = true};
	b->scan = (struct qk_l2scan){.a = &b->audit, .census = &b->census, .want_stats = true};
	b->table = qk_calloc(1, (size_t)b->g.cluster_size);
	assert_non_null(b->table);
	assert_int_equal(qk_census_init(&b->census, CENSUS_BYTES, n_clusters, NULL), QCOW_OK);
}

static void release(struct bed *b)
{
	qk_census_release(&b->census);
	free(b->table);
}

static void set_entry(struct bed *b, uint32_t i, uint64_t cluster, bool is_copied)
{
	qk_store64(b->table + (size_t)i * 8,
		cluster << b->g.cluster_bits | (is_copied ? UINT64_C(1) << 63 : 0));
}

/* Rows of any length from anywhere, some of one cluster, and nothing here and there. */
static void fill(struct bed *b, struct qkt_rng *rng)
{
	uint64_t cluster = 0, left = 0;
	bool is_copied = false;
	for (uint32_t i = 0; i < b->g.l2_entries; i++, cluster++, left--) {
		if (left == 0) {
			left = 1 + qkt_rng_below(rng, qkt_rng_below(rng, 3) == 0 ? 9 : 1200);
			cluster = 1 + qkt_rng_below(rng, b->n_clusters);
			is_copied = qkt_rng_below(rng, 2) == 0;
		}
		bool is_gone = cluster >= b->n_clusters || qkt_rng_below(rng, 300) == 0;
		set_entry(b, i, is_gone ? 0 : cluster, is_copied && !is_gone);
	}
}

static void add_metadata(struct qk_census *c, const uint64_t *clusters, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		qk_census_add(c, clusters[i], 1, i % 2 == 0 ? QK_CENSUS_EXCLUSIVE : QK_CENSUS_L2);
}

static void add_one_by_one(const struct bed *b, struct qk_census *c, const struct qk_l2ref *ref)
{
	for (uint32_t i = 0; i < b->g.l2_entries; i++) {
		uint64_t raw = qk_load64(b->table + (size_t)i * 8);
		unsigned flag = raw >> 63 != 0 ? QK_CENSUS_COPIED : QK_CENSUS_UNCOPIED;
		if (raw != 0)
			qk_census_add(c, (raw & ~(UINT64_C(1) << 63)) >> b->g.cluster_bits,
				ref->weight, ref->n_active != 0 ? flag : 0);
	}
}

static void rows_are_counted_as_their_entries(void **state)
{
	struct qkt_rng rng = qkt_rng_init(1);
	struct qk_census want;
	struct bed b;
	(void)state;
	make(&b, 16, 20000);
	assert_int_equal(qk_census_init(&want, CENSUS_BYTES, b.n_clusters, NULL), QCOW_OK);
	for (unsigned round = 0; round < 40; round++) {
		uint64_t metadata[64];
		for (unsigned i = 0; i < 64; i++)
			metadata[i] = qkt_rng_below(&rng, b.n_clusters);
		qk_census_begin(&b.census, 0, b.n_clusters, false);
		qk_census_begin(&want, 0, b.n_clusters, false);
		add_metadata(&b.census, metadata, round % 2 == 0 ? 64 : 0);
		add_metadata(&want, metadata, round % 2 == 0 ? 64 : 0);
		for (unsigned n = 0; n < 4; n++) {
			const struct qk_l2ref ref = {.weight = 1 + qkt_rng_below(&rng, 20),
				.l1_index = QK_L2SET_NO_INDEX,
				.n_active = (uint32_t)qkt_rng_below(&rng, 2)};
			fill(&b, &rng);
			qk_l2scan_count(&b.scan, &ref, b.table);
			add_one_by_one(&b, &want, &ref);
		}
		for (uint64_t c = 0; c < b.n_clusters; c++)
			assert_int_equal(qk_census_get(&b.census, c), qk_census_get(&want, c));
	}
	qk_census_release(&want);
	release(&b);
}

/* One row from end to end, with metadata in each page of counters: where each entry looked at all of its row this would take
 * many minutes. */
static void metadata_in_a_row_is_passed_once(void **state)
{
	const struct qk_l2ref ref = {.weight = 1, .l1_index = QK_L2SET_NO_INDEX, .n_active = 1};
	struct bed b;
	(void)state;
	make(&b, 21, (2U << 20) / 8);
	for (uint32_t i = 1; i < b.g.l2_entries; i++)
		set_entry(&b, i, i, false);
	qk_census_begin(&b.census, 0, b.n_clusters, false);
	for (uint64_t c = PAGE - 1; c < b.n_clusters; c += PAGE)
		qk_census_add(&b.census, c, 1, QK_CENSUS_EXCLUSIVE);
	for (unsigned n = 0; n < 100; n++)
		qk_l2scan_count(&b.scan, &ref, b.table);
	assert_int_equal(qk_census_get(&b.census, 1) & QK_CENSUS_WIDE_COUNT, 100);
	assert_int_equal(qk_census_get(&b.census, PAGE - 1) & QK_CENSUS_WIDE_COUNT, 101);
	assert_int_equal(b.scan.stats.allocated, 100 * (b.g.l2_entries - UINT64_C(1)));
	release(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rows_are_counted_as_their_entries),
		cmocka_unit_test(metadata_in_a_row_is_passed_once),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
