/* SPDX-License-Identifier: MIT */
/* The order checker judged beside a data file: right sequences of writes pass, each wrong one is named. */
#include "handmade.h"

/* The image: cluster 0 header, 1 refcount table, 2 refcount block, 3 L1, 4 L2. The data file: guest clusters 0 and 5 are
 * there, 9 holds bytes of an earlier time unless it is raw, and it ends in cluster 20. */

static void punch(struct qcow_store *s, uint64_t off, uint64_t n)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_punch(s, off, n, &err), err);
}

static void make_image(struct qcow_store *s, bool is_raw)
{
	uint8_t h[112] = "QFI\xfb";
	put(h + 4, 3, 4);
	put(h + 20, 12, 4);
	put(h + 24, CS * 30 + 700, 8);
	put(h + 36, 1, 4);
	put(h + 40, 3 * CS, 8);
	put(h + 48, CS, 8);
	put(h + 56, 1, 4);
	h[79] = 4;
	h[95] = is_raw ? 2 : 0;
	put(h + 96, 4, 4);
	put(h + 100, 112, 4);
	w(s, 0, h, sizeof(h));
	w64(s, CS, 2 * CS);
	for (unsigned i = 0; i < 5; i++)
		w(s, 2 * CS + i * 2, (const uint8_t[]){0, 1}, 2);
	w64(s, 3 * CS, 4 * CS | COPIED);
	w64(s, 4 * CS, COPIED);
	w64(s, 4 * CS + 5 * 8, 5 * CS | COPIED);
	fill(s, 5 * CS - 1, 1, 0);
}

static void make(struct t *t, bool is_raw)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *s = NULL, *d = NULL;
	assert_ok(qcow_memory_open(0, &s, &err), err);
	assert_ok(qcow_memory_open(20 * CS + 100, &d, &err), err);
	make_image(s, is_raw);
	fill(d, 0, CS, 0x11);
	fill(d, 5 * CS, CS, 0x55);
	if (!is_raw)
		fill(d, 9 * CS, CS, 0x99);
	judge(t, s, d);
}

/* ---- right ---- */

static void right_allocate(struct t *t)
{
	fill(t->d, 9 * CS, CS, 1);
	flush_store(t->d);
	l2(t->s, 9, 9 * CS | COPIED);
	flush_store(t->s);
	fill(t->d, 9 * CS + 5, 700, 2);
}

static void right_past_the_end(struct t *t)
{
	fill(t->d, 25 * CS + 600, 100, 1); /* the rest is zeros: the file was shorter */
	flush_store(t->d);
	l2(t->s, 25, 25 * CS | COPIED);
}

static void right_rewritten_before_link(struct t *t)
{
	fill(t->d, 9 * CS, CS, 1);
	flush_store(t->d);
	fill(t->d, 9 * CS, 512, 2); /* old or new: both are the guest's */
	l2(t->s, 9, 9 * CS | COPIED);
}

static void right_last_cluster_is_cut(struct t *t)
{
	fill(t->d, 30 * CS, 700, 1);
	flush_store(t->d);
	l2(t->s, 30, 30 * CS | COPIED);
}

static void right_in_place(struct t *t)
{
	fill(t->d, 5 * CS + 5, 1234, 1);
	fill(t->d, 0, 1, 1);
	flush_store(t->d);
	flush_store(t->s);
	fill(t->d, 5 * CS, CS, 2);
}

static void right_discard(struct t *t)
{
	l2(t->s, 5, 1);
	l2(t->s, 0, 1);
	flush_store(t->s);
	punch(t->d, 5 * CS, CS);
	punch(t->d, 0, CS);
	fill(t->d, 5 * CS, CS, 1);
	flush_store(t->d);
	l2(t->s, 5, 5 * CS | COPIED);
}

/* A cluster has one place: nothing else can be in it before its unlinking is durable. */
static void right_written_again_at_once(struct t *t)
{
	l2(t->s, 5, 1);
	fill(t->d, 5 * CS, CS, 1);
	flush_store(t->d);
	l2(t->s, 5, 5 * CS | COPIED);
	flush_store(t->s);
}

static void right_raw_zeros(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_zero(t->d, 5 * CS, CS, 0, &err), err);
	punch(t->d, 0, CS);
	flush_store(t->d);
	l2(t->s, 5, 5 * CS | COPIED | 1);
	l2(t->s, 0, 0);
}

/* ---- wrong ---- */

static void wrong_data_not_durable(struct t *t)
{
	fill(t->d, 9 * CS, CS, 1);
	flush_store(t->s);
	l2(t->s, 9, 9 * CS | COPIED);
}

static void wrong_flush_failed(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	fill(t->d, 9 * CS, CS, 1);
	qkt_fault_arm(t->f, QKT_FLUSH, 1, QKT_EIO, false);
	assert_int_equal(qcow_store_flush(t->d, &err), QCOW_E_IO);
	qkt_fault_disarm(t->f);
	flush_store(t->d);
	l2(t->s, 9, 9 * CS | COPIED);
}

static void wrong_old_bytes(struct t *t)
{
	fill(t->d, 9 * CS, CS - 1, 1);
	flush_store(t->d);
	l2(t->s, 9, 9 * CS | COPIED);
}

static void wrong_old_bytes_again(struct t *t)
{
	l2(t->s, 5, 1);
	flush_store(t->s);
	fill(t->d, 5 * CS, 512, 1);
	flush_store(t->d);
	l2(t->s, 5, 5 * CS | COPIED);
}

static void wrong_punched_early(struct t *t)
{
	l2(t->s, 5, 1);
	punch(t->d, 5 * CS, CS);
	flush_store(t->s);
}

static void wrong_punched_in_use(struct t *t)
{
	punch(t->d, 0, CS);
}

static void wrong_cut(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_truncate(t->d, 20 * CS, &err), err);
}

static void wrong_place(struct t *t)
{
	fill(t->d, 9 * CS, CS, 1);
	flush_store(t->d);
	l2(t->s, 10, 9 * CS | COPIED);
}

static void wrong_raw_zeros_by_the_entry(struct t *t)
{
	l2(t->s, 5, 5 * CS | COPIED | 1);
}

static void wrong_raw_unlinked(struct t *t)
{
	l2(t->s, 0, 0);
}

static const struct sequence {
	const char *name;
	void (*run)(struct t *);
	bool is_raw;
	enum qkt_order_rule rule;
} sequences[] = {
#define S(name, raw, rule)             \
	{                              \
#name, name, raw, rule \
	}
	S(right_allocate, false, QKT_O_NONE),
	S(right_allocate, true, QKT_O_NONE),
	S(right_past_the_end, false, QKT_O_NONE),
	S(right_past_the_end, true, QKT_O_NONE),
	S(right_last_cluster_is_cut, false, QKT_O_NONE),
	S(right_in_place, false, QKT_O_NONE),
	S(right_in_place, true, QKT_O_NONE),
	S(right_discard, false, QKT_O_NONE),
	S(right_written_again_at_once, false, QKT_O_NONE),
	S(right_raw_zeros, true, QKT_O_NONE),
	S(wrong_data_not_durable, false, QKT_O1),
	S(wrong_data_not_durable, true, QKT_O1),
	S(wrong_flush_failed, false, QKT_O1),
	S(right_rewritten_before_link, false, QKT_O_NONE),
	S(wrong_old_bytes, false, QKT_O3),
	S(wrong_old_bytes_again, false, QKT_O3),
	S(wrong_punched_early, false, QKT_O5),
	S(wrong_punched_in_use, false, QKT_O5),
	S(wrong_cut, false, QKT_O6),
	S(wrong_place, false, QKT_O8),
	S(wrong_raw_zeros_by_the_entry, true, QKT_O12),
	S(wrong_raw_unlinked, true, QKT_O12),
#undef S
};

static void sequences_are_judged(void **state)
{
	(void)state;
	unsigned n_bad = 0;
	for (size_t i = 0; i < sizeof(sequences) / sizeof(sequences[0]); i++) {
		const struct sequence *q = &sequences[i];
		struct t t;
		make(&t, q->is_raw);
		q->run(&t);
		n_bad += not_judged(&t, q->name, q->is_raw, q->rule);
		done(&t);
	}
	assert_int_equal(n_bad, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sequences_are_judged),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
