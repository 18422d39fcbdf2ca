/* SPDX-License-Identifier: MIT */
/*
 * The order checker judged where the header, or the end of the disk, decides: what lies behind the disk is the state of a machine, of
 * which no bitmap has to know and to which all else applies; a header of another version or another width of
 * refcounts; zeros that get another form. Right sequences of writes pass, each wrong one is named.
 */
#include "handmade.h"

/*
 * Cluster 0 header, 1 refcount table, 2 refcount block, 3 L1, 4 and 6 L2, 5 data of guest cluster 0, 7 to 9 an enabled bitmap, 10 bytes of
 * an earlier time, 11 a zero cluster with space. The disk: what one L2 table maps, but for half of its last cluster; slot 1
 * of L1 is behind it.
 */
#define STATE_L2  (6 * CS)
#define DISK	  (CS * 512 - CS / 2)
#define BITMAP	  1 /* has one */
#define OVER	  2 /* a backing file is recorded */
#define DIRECTORY (7 * CS)

static void make_header(struct qcow_store *s, unsigned how)
{
	uint8_t h[160] = "QFI\xfb";
	put(h + 4, 3, 4);
	put(h + 8, (how & OVER) != 0 ? 156 : 0, 8);
	put(h + 16, (how & OVER) != 0 ? 4 : 0, 4);
	put(h + 20, 12, 4);
	put(h + 24, DISK, 8);
	put(h + 36, 2, 4);
	put(h + 40, 3 * CS, 8);
	put(h + 48, CS, 8);
	put(h + 56, 1, 4);
	put(h + 96, 4, 4);
	put(h + 100, 112, 4);
	if ((how & BITMAP) != 0) {
		h[95] = 1;
		put(h + 112, 0x23852875, 4);
		put(h + 116, 24, 4);
		put(h + 120, 1, 4);
		put(h + 128, 32, 8);
		put(h + 136, DIRECTORY, 8);
	}
	w(s, 0, h, sizeof(h));
}

static void make_bitmap(struct qcow_store *s)
{
	uint8_t e[32] = {0};
	put(e, 8 * CS, 8);
	put(e + 8, 1, 4);
	put(e + 12, 2, 4);
	e[16] = 1;
	e[17] = 16;
	e[19] = 1;
	e[24] = 'b';
	w(s, DIRECTORY, e, sizeof(e));
	w64(s, 8 * CS, 9 * CS);
	fill(s, 9 * CS, CS, 0);
	for (unsigned i = 7; i < 10; i++)
		rc(s, i, 1);
}

static void make(struct t *t, unsigned how)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *s = NULL;
	assert_ok(qcow_memory_open(0, &s, &err), err);
	make_header(s, how);
	w64(s, CS, 2 * CS);
	for (unsigned i = 0; i < 7; i++)
		rc(s, i, 1);
	rc(s, 11, 1);
	w64(s, 3 * CS, 4 * CS | COPIED);
	w64(s, 3 * CS + 8, STATE_L2 | COPIED);
	l2(s, 0, 5 * CS | COPIED);
	l2(s, 3, 1);
	l2(s, 4, 11 * CS | COPIED | 1);
	fill(s, 5 * CS, CS, 0x55);
	fill(s, 10 * CS, CS, 0x99);
	fill(s, 11 * CS, CS, 0x77);
	if ((how & BITMAP) != 0)
		make_bitmap(s);
	assert_ok(qcow_store_truncate(s, 64 * CS, &err), err);
	judge(t, s, NULL);
}

static void flush(struct t *t)
{
	flush_store(t->s);
}

static void take(struct t *t, uint64_t cluster, int value)
{
	rc(t->s, cluster, 1);
	fill(t->s, cluster * CS, CS, value);
}

/* An entry behind the disk. */
static void state(struct t *t, unsigned slot, uint64_t v)
{
	w64(t->s, STATE_L2 + slot * 8, v);
}

/* ---- the state of a machine ---- */

static void right_state(struct t *t)
{
	take(t, 10, 1);
	flush(t);
	state(t, 0, 10 * CS | COPIED);
	flush(t);
	fill(t->s, 10 * CS + 512, 512, 2);
}

static void right_state_in_a_new_table(struct t *t)
{
	take(t, 12, 1);
	take(t, 13, 0);
	w64(t->s, 13 * CS, 12 * CS | COPIED);
	flush(t);
	w64(t->s, 3 * CS + 8, 13 * CS | COPIED);
}

/* The last cluster of the disk: what lies behind the end becomes zeros. */
static void right_tail_is_scrubbed(struct t *t)
{
	take(t, 10, 0);
	flush(t);
	l2(t->s, 511, 10 * CS | COPIED);
	flush(t);
	fill(t->s, 10 * CS + CS / 2, CS / 2, 0);
}

static void wrong_state_not_durable(struct t *t)
{
	rc(t->s, 10, 1);
	flush(t);
	fill(t->s, 10 * CS, CS, 1);
	state(t, 0, 10 * CS | COPIED);
}

static void wrong_state_shows_old_bytes(struct t *t)
{
	rc(t->s, 10, 1);
	flush(t);
	state(t, 0, 10 * CS | COPIED);
}

static void wrong_state_not_counted(struct t *t)
{
	fill(t->s, 10 * CS, CS, 1);
	flush(t);
	state(t, 0, 10 * CS | COPIED);
}

static void wrong_disk_beside_state(struct t *t)
{
	right_state(t);
	fill(t->s, 5 * CS, 512, 1);
}

static void wrong_tail_of_the_disk(struct t *t)
{
	take(t, 10, 0);
	fill(t->s, 10 * CS + 512, 512, 1);
	flush(t);
	l2(t->s, 511, 10 * CS | COPIED);
}

static void wrong_table_changes_the_disk(struct t *t)
{
	take(t, 12, 0);
	flush(t);
	w64(t->s, 3 * CS, 12 * CS | COPIED);
}

/* ---- headers ---- */

/* A second structure, of refcounts of 8 bits: table at 20, block at 21; one write of the header. */
static void make_narrow(struct t *t, unsigned n_counted)
{
	uint8_t counts[64] = {0};
	memset(counts, 1, n_counted);
	rc(t->s, 20, 1);
	rc(t->s, 21, 1);
	w64(t->s, 20 * CS, 21 * CS);
	fill(t->s, 20 * CS + 8, CS - 8, 0);
	fill(t->s, 21 * CS, CS, 0);
	counts[11] = counts[20] = counts[21] = 1;
	w(t->s, 21 * CS, counts, sizeof(counts));
	flush(t);
}

static void switch_width(struct t *t)
{
	uint8_t h[64] = {0};
	put(h, 20 * CS, 8);
	put(h + 8, 1, 4);
	put(h + 48, 3, 4);
	put(h + 52, 112, 4);
	w(t->s, 48, h, 56);
}

static void right_width(struct t *t)
{
	make_narrow(t, 7);
	switch_width(t);
	flush(t);
	/* the old structure is free, by the new one */
	w(t->s, 21 * CS + 1, (const uint8_t[]){0, 0}, 2);
	flush(t);
	fill(t->s, CS, CS, 0xaa);
}

/* What the failed write has left is known by nobody, until the old header is there again. */
static void right_width_put_back(struct t *t)
{
	uint8_t old[56] = {0};
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t h[56] = {0};
	put(old, CS, 8);
	put(old + 8, 1, 4);
	put(old + 48, 4, 4);
	put(old + 52, 112, 4);
	put(h, 20 * CS, 8);
	put(h + 8, 1, 4);
	put(h + 48, 3, 4);
	put(h + 52, 112, 4);
	make_narrow(t, 7);
	qkt_fault_arm(t->f, QKT_WRITE, 1, QKT_EIO, false);
	assert_status(qcow_store_write(t->s, h, sizeof(h), 48, &err), QCOW_E_IO, err);
	qkt_fault_disarm(t->f);
	w(t->s, 48, old, sizeof(old));
	flush(t);
	rc(t->s, 20, 0);
	rc(t->s, 21, 0);
}

static void wrong_width_lacks_counts(struct t *t)
{
	make_narrow(t, 6);
	switch_width(t);
}

static void wrong_old_width_given_up_early(struct t *t)
{
	make_narrow(t, 7);
	switch_width(t);
	fill(t->s, CS, CS, 0);
}

/* Version 2 from now on, whose header has no features. */
static void switch_version(struct t *t)
{
	w(t->s, 4, (const uint8_t[]){0, 0, 0, 2}, 4);
}

static void right_version_2(struct t *t)
{
	l2(t->s, 3, 0);
	l2(t->s, 4, 0);
	flush(t);
	rc(t->s, 11, 0);
	flush(t);
	switch_version(t);
	flush(t);
	take(t, 10, 1);
	flush(t);
	l2(t->s, 3, 10 * CS | COPIED);
}

static void wrong_version_2_zero_flag(struct t *t)
{
	l2(t->s, 3, 0);
	l2(t->s, 4, 0);
	flush(t);
	switch_version(t);
	flush(t);
	l2(t->s, 6, 1);
}

/* ---- zeros in another form, in a table that a snapshot has too ---- */

/* Snapshot table at 30, its L1 at 31. */
static void share_table(struct t *t)
{
	uint8_t e[48] = {0}, fields[12];
	put(e, 31 * CS, 8);
	put(e + 8, 1, 4);
	put(e + 12, 1, 2);
	put(e + 14, 1, 2);
	e[40] = '1';
	e[41] = 's';
	w(t->s, 30 * CS, e, sizeof(e));
	fill(t->s, 31 * CS, CS, 0);
	w64(t->s, 31 * CS, 4 * CS);
	rc(t->s, 30, 1);
	rc(t->s, 31, 1);
	rc(t->s, 4, 2);
	rc(t->s, 5, 2);
	rc(t->s, 11, 2);
	/* by the book these clear COPIED alone */
	l2(t->s, 0, 5 * CS);
	l2(t->s, 4, 11 * CS | 1);
	w64(t->s, 3 * CS, 4 * CS);
	flush(t);
	put(fields, 1, 4);
	put(fields + 4, 30 * CS, 8);
	w(t->s, 60, fields, sizeof(fields));
	flush(t);
}

static void right_zeros_unlinked(struct t *t)
{
	share_table(t);
	l2(t->s, 3, 0);
	l2(t->s, 4, 0);
	flush(t);
	rc(t->s, 11, 0);
}

static void right_zeros_written(struct t *t)
{
	share_table(t);
	fill(t->s, 11 * CS, CS, 0);
	flush(t);
	l2(t->s, 4, 11 * CS);
}

static void wrong_zeros_show_the_backing(struct t *t)
{
	share_table(t);
	l2(t->s, 3, 0);
}

static void wrong_zeros_show_data(struct t *t)
{
	share_table(t);
	l2(t->s, 4, 11 * CS);
}

static const struct sequence {
	const char *name;
	void (*run)(struct t *t);
	unsigned how;
	enum qkt_order_rule rule;
} sequences[] = {
#define S(name, how, rule)             \
	{                              \
#name, name, how, rule \
	}
	S(right_state, 0, QKT_O_NONE),
	S(right_state, BITMAP, QKT_O_NONE),
	S(right_state_in_a_new_table, BITMAP, QKT_O_NONE),
	S(right_tail_is_scrubbed, BITMAP, QKT_O_NONE),
	S(wrong_state_not_durable, 0, QKT_O1),
	S(wrong_state_shows_old_bytes, BITMAP, QKT_O3),
	S(wrong_state_not_counted, 0, QKT_O2),
	S(wrong_disk_beside_state, BITMAP, QKT_O11),
	S(wrong_tail_of_the_disk, BITMAP, QKT_O11),
	S(wrong_table_changes_the_disk, BITMAP, QKT_O11),
	S(right_width, 0, QKT_O_NONE),
	S(right_width_put_back, 0, QKT_O_NONE),
	S(wrong_width_lacks_counts, 0, QKT_O2),
	S(wrong_old_width_given_up_early, 0, QKT_O4),
	S(right_version_2, 0, QKT_O_NONE),
	S(wrong_version_2_zero_flag, 0, QKT_O8),
	S(right_zeros_unlinked, 0, QKT_O_NONE),
	S(right_zeros_written, OVER, QKT_O_NONE),
	S(wrong_zeros_show_the_backing, OVER, QKT_O4),
	S(wrong_zeros_show_data, OVER, QKT_O4),
#undef S
};

static void sequences_are_judged(void **state)
{
	unsigned n_bad = 0;
	(void)state;
	for (size_t i = 0; i < sizeof(sequences) / sizeof(sequences[0]); i++) {
		const struct sequence *q = &sequences[i];
		struct t t;
		make(&t, q->how);
		q->run(&t);
		n_bad += not_judged(&t, q->name, q->how, q->rule);
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
