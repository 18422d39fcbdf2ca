/* SPDX-License-Identifier: MIT */
/*
 * Tables of entries of every length, read one by one: each is what a decoder says that has all of the table before it, and
 * what is passed over is not read.
 */
#include "cm.h"

#include <stdlib.h>

#include "audit/snapread.h"
#include "format/limits.h"
#include "rng.h"

#define FILE_BYTES ((size_t)8 << 20)

struct file {
	uint8_t *bytes;
	uint64_t end, n_read, fails_at;
};

static enum qcow_status read_part(
	void *ctx, uint8_t *buf, size_t n, uint64_t off, struct qcow_error *err)
{
	struct file *f = ctx;
	(void)err;
	if (off < f->fails_at && f->fails_at - off < n)
		return QCOW_E_IO;
	assert_true(off + n <= f->end);
	memcpy(buf, f->bytes + off, n);
	f->n_read += n;
	return QCOW_OK;
}

static struct qk_snapread reader(struct file *f, uint8_t *window)
{
	return (struct qk_snapread){.read = read_part, .ctx = f, .end = f->end, .buf = window};
}

/* An entry with these lengths at `at`: its end. */
static uint64_t put(struct file *f, uint64_t at, struct qkt_rng *rng, const size_t len[3])
{
	uint8_t *p = f->bytes + at;
	uint64_t bytes = qk_snapshot_entry_bytes(len[0], len[1], len[2]);
	assert_true(at + bytes <= FILE_BYTES);
	qkt_rng_fill(rng, p, (size_t)bytes);
	qk_store16(p + 12, (uint16_t)len[1]);
	qk_store16(p + 14, (uint16_t)len[2]);
	qk_store32(p + 36, (uint32_t)len[0]);
	return at + bytes;
}

static size_t any_length(struct qkt_rng *rng, size_t most)
{
	static const size_t few[] = {0, 1, 7, 8, 24};
	return qkt_rng_below(rng, 3) == 0 ? (size_t)qkt_rng_below(rng, most)
					  : few[qkt_rng_below(rng, 5)];
}

static uint64_t fill(struct file *f, struct qkt_rng *rng, unsigned n)
{
	uint64_t at = 0;
	for (unsigned i = 0; i < n; i++) {
		const size_t len[] = {any_length(rng, qkt_rng_below(rng, 4) == 0 ? 120000 : 3000),
			any_length(rng, 3000),
			any_length(rng, qkt_rng_below(rng, 9) == 0 ? 65536 : 99)};
		at = put(f, at, rng, len);
	}
	return at;
}

static void same_span(struct qk_span a, struct qk_span b, size_t n)
{
	assert_int_equal(a.n, b.n);
	assert_memory_equal(a.p, b.p, n);
}

static void same_entry(const struct qk_snapshot_entry *a, const struct qk_snapshot_entry *b)
{
	same_span(a->id, b->id, a->id.n);
	same_span(a->name, b->name, a->name.n);
	same_span(a->extra, b->extra, a->extra.n < 1024 ? a->extra.n : 1024);
	assert_true(a->l1_off.v == b->l1_off.v && a->l1_entries == b->l1_entries);
	assert_true(a->vm_clock_nsec == b->vm_clock_nsec);
	assert_true(a->has_disk_size == b->has_disk_size && a->disk_size == b->disk_size);
	assert_true(a->has_icount == b->has_icount && a->icount == b->icount);
}

static void entries_are_those_of_the_whole_table(void **state)
{
	struct file f = {.bytes = malloc(FILE_BYTES), .fails_at = UINT64_MAX};
	uint8_t *window = malloc(QK_SNAPREAD_BYTES);
	struct qkt_rng rng = qkt_rng_init(1);
	(void)state;
	for (unsigned round = 0; round < 60; round++) {
		unsigned n = 1 + (unsigned)qkt_rng_below(&rng, 60);
		f.end = fill(&f, &rng, n);
		struct qk_snapread r = reader(&f, window);
		struct qk_reader all = qk_reader_init(f.bytes, (size_t)f.end);
		struct qk_snapshot_entry got, want;
		bool is_whole = false;
		for (unsigned i = 0; i < n; i++) {
			assert_int_equal(qk_snapread_next(&r, &got, &is_whole, NULL), QCOW_OK);
			assert_true(is_whole && qk_snapshot_decode(&all, &want));
			assert_int_equal(r.off, all.at);
			same_entry(&got, &want);
		}
		assert_int_equal(qk_snapread_next(&r, &got, &is_whole, NULL), QCOW_OK);
		assert_false(is_whole);
	}
	free(window);
	free(f.bytes);
}

/* The end of the file after each byte of the last entry, and failing reads. */
static void what_is_cut_short_is_told(void **state)
{
	static const size_t lens[][3] = {{24, 1, 5}, {1024, 0, 0}, {1025, 3, 4}, {2000, 0, 0}};
	struct file f = {.bytes = malloc(FILE_BYTES), .fails_at = UINT64_MAX};
	uint8_t *window = malloc(QK_SNAPREAD_BYTES);
	struct qkt_rng rng = qkt_rng_init(2);
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		uint64_t end = put(&f, 0, &rng, lens[i]);
		struct qk_snapshot_entry e;
		bool is_whole = true;
		for (f.end = 0; f.end <= end; f.end++) {
			struct qk_snapread r = reader(&f, window);
			assert_int_equal(qk_snapread_next(&r, &e, &is_whole, NULL), QCOW_OK);
			assert_int_equal(is_whole, f.end == end);
		}
		f.end = end;
		f.fails_at = 3;
		struct qk_snapread r = reader(&f, window);
		assert_int_equal(qk_snapread_next(&r, &e, &is_whole, NULL), QCOW_E_IO);
		f.fails_at = UINT64_MAX;
	}
	/* longer than every limit */
	qk_store32(f.bytes + 36, UINT32_MAX);
	f.end = FILE_BYTES;
	struct qk_snapread r = reader(&f, window);
	struct qk_snapshot_entry e;
	bool is_whole = true;
	assert_int_equal(qk_snapread_next(&r, &e, &is_whole, NULL), QCOW_OK);
	assert_true(!is_whole && r.off == 0);
	free(window);
	free(f.bytes);
}

/* A sparse table may be as long as its author likes. */
static void what_is_passed_over_is_not_read(void **state)
{
	struct file f = {.bytes = malloc(FILE_BYTES), .fails_at = UINT64_MAX};
	uint8_t *window = malloc(QK_SNAPREAD_BYTES);
	struct qkt_rng rng = qkt_rng_init(3);
	unsigned n = 0;
	(void)state;
	for (uint64_t at = 0; at < FILE_BYTES - 300000; n++) {
		const size_t len[] = {n % 2 == 0 ? 250000 : 24, 1, 1};
		at = f.end = put(&f, at, &rng, len);
	}
	struct qk_snapread r = reader(&f, window);
	struct qk_snapshot_entry e;
	bool is_whole = true;
	while (is_whole)
		assert_int_equal(qk_snapread_next(&r, &e, &is_whole, NULL), QCOW_OK);
	assert_true(r.off == f.end && f.n_read <= n * UINT64_C(8192));
	free(window);
	free(f.bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(entries_are_those_of_the_whole_table),
		cmocka_unit_test(what_is_cut_short_is_told),
		cmocka_unit_test(what_is_passed_over_is_not_read),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
