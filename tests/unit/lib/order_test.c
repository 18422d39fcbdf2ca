/* SPDX-License-Identifier: MIT */
/* The order checker judged: sequences of writes made by hand, right ones pass, each wrong one is named. */
#include "handmade.h"

#define PACKED (UINT64_C(1) << 62)
#define BLOCK  2048u /* clusters that a refcount block counts: CS * 8 / 16 */

enum base {
	V3,
	V2,
	SNAP, /* V3 with a snapshot that shares L2 table and data */
	COMP, /* V3, and guest cluster 3 is compressed at cluster 6 */
	BITMAP /* V3 with an enabled bitmap: directory, table and data at clusters 6 to 8 */
};

/* cluster 0 header, 1 refcount table, 2 refcount block, 3 L1, 4 L2, 5 data of guest cluster 0,
 * 6 compressed data, 7 and 8 snapshot table and L1, 9 nothing, but bytes of an earlier time */

static void l1(struct qcow_store *s, unsigned slot, uint64_t v)
{
	w64(s, 3 * CS + slot * 8, v);
}

static void flush(struct t *t)
{
	flush_store(t->s);
}

static void make_header(struct qcow_store *s, enum base base)
{
	uint8_t h[160] = "QFI\xfb";
	put(h + 4, base == V2 ? 2 : 3, 4);
	put(h + 20, 12, 4);
	put(h + 24, CS * 512 * 2, 8);
	put(h + 36, 2, 4);
	put(h + 40, 3 * CS, 8);
	put(h + 48, CS, 8);
	put(h + 56, 1, 4);
	if (base == SNAP) {
		put(h + 60, 1, 4);
		put(h + 64, 7 * CS, 8);
	}
	if (base == BITMAP) {
		h[95] = 1;
		put(h + 112, 0x23852875, 4);
		put(h + 116, 24, 4);
		put(h + 120, 1, 4);
		put(h + 128, 32, 8);
		put(h + 136, 6 * CS, 8);
	}
	if (base != V2) {
		put(h + 96, 4, 4);
		put(h + 100, 112, 4);
	}
	w(s, 0, h, sizeof(h));
}

static void make_snapshot(struct qcow_store *s)
{
	uint8_t e[48] = {0};
	put(e, 8 * CS, 8);
	put(e + 8, 2, 4);
	put(e + 12, 1, 2);
	put(e + 14, 1, 2);
	e[40] = '1';
	e[41] = 's';
	w(s, 7 * CS, e, sizeof(e));
	w64(s, 8 * CS, 4 * CS);
	rc(s, 7, 1);
	rc(s, 8, 1);
	rc(s, 4, 2);
	rc(s, 5, 2);
	l1(s, 0, 4 * CS);
	l2(s, 0, 5 * CS);
}

static void make_directory(struct qcow_store *s, uint64_t off, uint64_t table, unsigned flags)
{
	uint8_t e[32] = {0};
	put(e, table, 8);
	put(e + 8, 1, 4);
	put(e + 12, flags, 4);
	e[16] = 1;
	e[17] = 16;
	e[19] = 1;
	e[24] = 'b';
	w(s, off, e, sizeof(e));
}

static void make_bitmap(struct qcow_store *s)
{
	make_directory(s, 6 * CS, 7 * CS, 2);
	w64(s, 7 * CS, 8 * CS);
	fill(s, 8 * CS, CS, 0);
	for (unsigned i = 6; i < 9; i++)
		rc(s, i, 1);
}

static void make(struct t *t, enum base base)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *s = NULL;
	assert_ok(qcow_memory_open(0, &s, &err), err);
	make_header(s, base);
	w64(s, CS, 2 * CS);
	for (unsigned i = 0; i < 6; i++)
		rc(s, i, 1);
	l1(s, 0, 4 * CS | COPIED);
	l2(s, 0, 5 * CS | COPIED);
	fill(s, 5 * CS, CS, 0x55);
	fill(s, 9 * CS, CS, 0x99);
	if (base == COMP) {
		l2(s, 3, PACKED | (6 * CS + 100) | UINT64_C(1) << 58);
		rc(s, 6, 1);
		fill(s, 6 * CS, CS, 0x66);
	}
	if (base == SNAP)
		make_snapshot(s);
	if (base == BITMAP)
		make_bitmap(s);
	assert_ok(qcow_store_truncate(s, 64 * CS, &err), err);
	judge(t, s, NULL);
}

/* ---- right ---- */

static void take(struct t *t, uint64_t cluster)
{
	rc(t->s, cluster, 1);
	fill(t->s, cluster * CS, CS, 0xaa);
}

static void right_allocate(struct t *t)
{
	take(t, 9);
	flush(t);
	l2(t->s, 1, 9 * CS | COPIED);
	flush(t);
	fill(t->s, 9 * CS + 512, 512, 1);
}

static void right_fresh_zeros(struct t *t)
{
	rc(t->s, 20, 1);
	fill(t->s, 20 * CS + 1000, 100, 1); /* the rest is known to be zeros */
	flush(t);
	l2(t->s, 1, 20 * CS | COPIED);
}

static void right_parts_of_sectors(struct t *t)
{
	rc(t->s, 9, 1);
	fill(t->s, 9 * CS, 1000, 1);
	fill(t->s, 9 * CS + 1000, 24, 2);
	fill(t->s, 9 * CS + 1024, CS - 1024, 3);
	flush(t);
	l2(t->s, 1, 9 * CS | COPIED);
}

static void right_new_l2(struct t *t)
{
	take(t, 11);
	rc(t->s, 10, 1);
	fill(t->s, 10 * CS, CS, 0);
	w64(t->s, 10 * CS + 8, 11 * CS | COPIED);
	flush(t);
	l1(t->s, 1, 10 * CS | COPIED);
	flush(t);
	w64(t->s, 10 * CS + 8, 0);
}

static void right_free_and_reuse(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	l2(t->s, 0, 1);
	flush(t);
	rc(t->s, 5, 0);
	assert_ok(qcow_store_punch(t->s, 5 * CS, CS, &err), err);
	rc(t->s, 5, 1);
	fill(t->s, 5 * CS, CS, 1);
	flush(t);
	l2(t->s, 7, 5 * CS | COPIED);
}

static void right_in_place(struct t *t)
{
	fill(t->s, 5 * CS + 5, 1234, 1);
	flush(t);
	fill(t->s, 5 * CS, CS, 2);
}

static void right_rewritten_before_link(struct t *t)
{
	take(t, 9);
	flush(t);
	fill(t->s, 9 * CS, 512, 2); /* old or new: both are the guest's */
	l2(t->s, 1, 9 * CS | COPIED);
}

/* The L2 table and one cluster are copied, then the old table loses a reference. */
static void right_copy_after_snapshot(struct t *t)
{
	take(t, 11);
	rc(t->s, 10, 1);
	fill(t->s, 10 * CS, CS, 0);
	w64(t->s, 10 * CS, 5 * CS);
	w64(t->s, 10 * CS + 8, 11 * CS | COPIED);
	flush(t);
	l1(t->s, 0, 10 * CS | COPIED);
	flush(t);
	rc(t->s, 4, 1);
	take(t, 12);
	flush(t);
	w64(t->s, 10 * CS, 12 * CS | COPIED);
	flush(t);
	rc(t->s, 5, 1);
	fill(t->s, 12 * CS, CS, 1);
}

static void right_new_refcount_block(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t at = BLOCK * CS;
	assert_ok(qcow_store_truncate(t->s, at + 4 * CS, &err), err);
	uint8_t counts[4] = {0, 1, 0, 1};
	w(t->s, at, counts, 4);
	fill(t->s, at + CS, CS, 1);
	flush(t);
	w64(t->s, CS + 8, at);
	flush(t);
	l2(t->s, 1, (at + CS) | COPIED);
}

/* RT at 20 with the old block, and header bytes 48 to 59 in one write. */
static void right_refcount_table_moves(struct t *t)
{
	uint8_t h[12] = {0};
	rc(t->s, 20, 1);
	rc(t->s, 21, 1);
	fill(t->s, 20 * CS, 2 * CS, 0);
	w64(t->s, 20 * CS, 2 * CS);
	flush(t);
	put(h, 20 * CS, 8);
	put(h + 8, 2, 4);
	w(t->s, 48, h, 12);
	flush(t);
	rc(t->s, 1, 0);
	take(t, 1);
}

static void right_l1_moves(struct t *t)
{
	uint8_t h[12];
	rc(t->s, 20, 1);
	fill(t->s, 20 * CS, CS, 0);
	w64(t->s, 20 * CS, 4 * CS | COPIED);
	flush(t);
	put(h, 3, 4);
	put(h + 4, 20 * CS, 8);
	w(t->s, 36, h, 12);
	flush(t);
	rc(t->s, 3, 0);
	take(t, 3);
	l2(t->s, 0, 1);
}

static void right_after_a_failed_write(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t zero[8] = {0};
	qkt_fault_arm(t->f, QKT_WRITE, 1, QKT_EIO, false);
	assert_status(qcow_store_write(t->s, zero, 8, 4 * CS, &err), QCOW_E_IO, err);
	fill(t->s, 5 * CS, 512, 1); /* it is linked still */
	l2(t->s, 0, 0);
	flush(t);
	rc(t->s, 5, 0);
}

static void right_cut_the_end(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_truncate(t->s, 6 * CS, &err), err);
}

static void right_replace_compressed(struct t *t)
{
	take(t, 9);
	flush(t);
	l2(t->s, 3, 9 * CS | COPIED);
	fill(t->s, 6 * CS + 1024, 512, 1); /* a part of the cluster that no extent has */
	flush(t);
	rc(t->s, 6, 0);
	fill(t->s, 6 * CS, CS, 1);
}

static void right_zero_cluster_is_written(struct t *t)
{
	l2(t->s, 0, 5 * CS | COPIED | 1);
	flush(t);
	fill(t->s, 5 * CS, CS, 1);
	flush(t);
	l2(t->s, 0, 5 * CS | COPIED);
}

/* ---- wrong ---- */

static void wrong_data_not_durable(struct t *t)
{
	rc(t->s, 9, 1);
	flush(t);
	fill(t->s, 9 * CS, CS, 1);
	l2(t->s, 1, 9 * CS | COPIED);
}

static void wrong_flush_failed(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	take(t, 20);
	qkt_fault_arm(t->f, QKT_FLUSH, 1, QKT_EIO, false);
	assert_status(qcow_store_flush(t->s, &err), QCOW_E_IO, err);
	flush(t); /* the kernel has dropped the pages */
	rc(t->s, 20, 2);
	rc(t->s, 20, 1);
	flush(t);
	l2(t->s, 1, 20 * CS | COPIED);
}

static void wrong_table_not_durable(struct t *t)
{
	rc(t->s, 20, 1);
	flush(t);
	fill(t->s, 20 * CS, CS, 0);
	l1(t->s, 1, 20 * CS | COPIED);
}

static void wrong_refcount_block_not_durable(struct t *t)
{
	uint8_t counts[2] = {0, 1};
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_truncate(t->s, BLOCK * CS + CS, &err), err);
	flush(t);
	w(t->s, BLOCK * CS, counts, 2);
	w64(t->s, CS + 8, BLOCK * CS);
}

static void wrong_beyond_durable_end(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	rc(t->s, 70, 1);
	flush(t);
	assert_ok(qcow_store_truncate(t->s, 80 * CS, &err), err);
	l2(t->s, 1, 70 * CS | COPIED);
}

static void wrong_refcount_not_durable(struct t *t)
{
	fill(t->s, 9 * CS, CS, 1);
	flush(t);
	rc(t->s, 9, 1);
	l2(t->s, 1, 9 * CS | COPIED);
}

static void wrong_lowered_before_unlinked(struct t *t)
{
	l2(t->s, 0, 0);
	rc(t->s, 5, 0);
}

static void wrong_second_reference(struct t *t)
{
	l2(t->s, 9, 5 * CS);
}

static void wrong_old_table_lowered_early(struct t *t)
{
	rc(t->s, 10, 1);
	fill(t->s, 10 * CS, CS, 0);
	w64(t->s, 10 * CS, 5 * CS);
	flush(t);
	l1(t->s, 0, 10 * CS | COPIED);
	rc(t->s, 4, 1);
}

static void wrong_block_not_linked(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t at = BLOCK * CS;
	assert_ok(qcow_store_truncate(t->s, at + 4 * CS, &err), err);
	uint8_t counts[4] = {0, 1, 0, 1};
	w(t->s, at, counts, 4);
	fill(t->s, at + CS, CS, 1);
	flush(t);
	w64(t->s, CS + 8, at);
	l2(t->s, 1, (at + CS) | COPIED);
}

static void wrong_block_without_its_own_count(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_truncate(t->s, BLOCK * CS + CS, &err), err);
	flush(t);
	w64(t->s, CS + 8, BLOCK * CS);
}

static void wrong_table_moves_without_count(struct t *t)
{
	uint8_t h[12] = {0};
	fill(t->s, 20 * CS, CS, 0);
	w64(t->s, 20 * CS, 2 * CS);
	flush(t);
	put(h, 20 * CS, 8);
	put(h + 8, 1, 4);
	w(t->s, 48, h, 12);
}

static void wrong_old_bytes(struct t *t)
{
	rc(t->s, 9, 1);
	fill(t->s, 9 * CS, CS - 512, 1);
	flush(t);
	l2(t->s, 1, 9 * CS | COPIED);
}

static void wrong_reused_early(struct t *t)
{
	l2(t->s, 0, 0);
	fill(t->s, 5 * CS, CS, 1);
}

/* Its data is written before the barrier: seen at the link where threads are allowed to race. */
static void wrong_reused_early_with_threads(struct t *t)
{
	struct qkt_order_options opt = {.report = true, .threads = true};
	struct qcow_store *s = t->s;
	struct qkt_order *o = qkt_order_new(&opt);
	t->s = qkt_order_wrap(o, t->s, t->base);
	l2(t->s, 0, 0);
	fill(t->s, 5 * CS, CS, 1);
	flush(t);
	l2(t->s, 7, 5 * CS | COPIED);
	assert_int_equal(qkt_order_rule(o), QKT_O3);
	qcow_store_close(t->s);
	qkt_order_free(o);
	(void)s; /* closed with it */
	t->s = NULL;
}

static void wrong_snapshot_data_overwritten(struct t *t)
{
	fill(t->s, 5 * CS, 512, 1);
}

static void wrong_snapshot_table_overwritten(struct t *t)
{
	l2(t->s, 5, 1);
}

static void wrong_snapshot_l1_overwritten(struct t *t)
{
	w64(t->s, 8 * CS, 0);
}

static void wrong_compressed_overwritten(struct t *t)
{
	fill(t->s, 6 * CS + 512, 512, 1);
}

static void wrong_punched_early(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	l2(t->s, 0, 0);
	assert_ok(qcow_store_punch(t->s, 5 * CS, CS, &err), err);
}

static void wrong_cut(struct t *t)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_truncate(t->s, 6 * CS - 1, &err), err);
}

static void wrong_v2_dirty_bit(struct t *t)
{
	w64(t->s, 72, 1);
}

static void wrong_reserved_bits(struct t *t)
{
	l2(t->s, 1, 9 * CS | 2);
}

static void wrong_v2_zero_flag(struct t *t)
{
	l2(t->s, 1, 1);
}

static void wrong_unaligned_l1(struct t *t)
{
	l1(t->s, 1, 9 * CS + 512);
}

static void wrong_copied(struct t *t)
{
	l1(t->s, 0, 4 * CS | COPIED);
}

static void wrong_copied_twice(struct t *t)
{
	rc(t->s, 5, 2);
	flush(t);
	l2(t->s, 9, 5 * CS | COPIED);
}

static void wrong_data_is_table(struct t *t)
{
	rc(t->s, 1, 2);
	flush(t);
	l2(t->s, 1, CS);
}

static void wrong_zero_flag_cleared_early(struct t *t)
{
	l2(t->s, 0, 5 * CS | COPIED | 1);
	flush(t);
	fill(t->s, 5 * CS, CS, 1);
	l2(t->s, 0, 5 * CS | COPIED);
}

/* ---- bitmaps ---- */

static void mark_in_use(struct t *t, uint64_t directory)
{
	const uint8_t flags[4] = {0, 0, 0, 3};
	w(t->s, directory + 12, flags, sizeof(flags));
}

static void use_bitmap(struct t *t)
{
	mark_in_use(t, 6 * CS);
	flush(t);
}

/* New directory, table and data at clusters 20 to 22. */
static void store_bitmap(struct t *t)
{
	make_directory(t->s, 20 * CS, 21 * CS, 2);
	w64(t->s, 21 * CS, 22 * CS);
	fill(t->s, 22 * CS, CS, 1);
	for (unsigned i = 20; i < 23; i++)
		rc(t->s, i, 1);
}

static void right_bitmap(struct t *t)
{
	use_bitmap(t);
	fill(t->s, 5 * CS, 512, 1);
	take(t, 9);
	flush(t);
	l2(t->s, 1, 9 * CS | COPIED);
	store_bitmap(t);
	flush(t);
	w64(t->s, 136, 20 * CS);
	flush(t);
	for (unsigned i = 6; i < 9; i++)
		rc(t->s, i, 0);
	flush(t);
	take(t, 7);
	flush(t);
	mark_in_use(t, 20 * CS);
	flush(t);
	l2(t->s, 2, 7 * CS | COPIED);
}

static void wrong_bitmap_not_in_use(struct t *t)
{
	fill(t->s, 5 * CS, 512, 1);
}

static void wrong_bitmap_mark_not_durable(struct t *t)
{
	take(t, 9);
	flush(t);
	mark_in_use(t, 6 * CS);
	l2(t->s, 1, 9 * CS | COPIED);
}

static void wrong_bitmap_changed_in_place(struct t *t)
{
	use_bitmap(t);
	fill(t->s, 8 * CS, 512, 1);
}

static void wrong_bitmap_not_durable(struct t *t)
{
	use_bitmap(t);
	store_bitmap(t);
	w64(t->s, 136, 20 * CS);
}

static void wrong_bitmap_freed_early(struct t *t)
{
	use_bitmap(t);
	store_bitmap(t);
	flush(t);
	w64(t->s, 136, 20 * CS);
	rc(t->s, 7, 0);
}

static void wrong_write_after_bitmap_is_stored(struct t *t)
{
	use_bitmap(t);
	store_bitmap(t);
	flush(t);
	w64(t->s, 136, 20 * CS);
	flush(t);
	fill(t->s, 5 * CS, 512, 1);
}

static const struct sequence {
	const char *name;
	void (*run)(struct t *);
	enum base base;
	enum qkt_order_rule rule;
} sequences[] = {
#define S(name, base, rule)             \
	{                               \
#name, name, base, rule \
	}
	S(right_allocate, V3, QKT_O_NONE),
	S(right_allocate, V2, QKT_O_NONE),
	S(right_fresh_zeros, V3, QKT_O_NONE),
	S(right_parts_of_sectors, V3, QKT_O_NONE),
	S(right_new_l2, V3, QKT_O_NONE),
	S(right_free_and_reuse, V3, QKT_O_NONE),
	S(right_in_place, V3, QKT_O_NONE),
	S(right_rewritten_before_link, V3, QKT_O_NONE),
	S(right_copy_after_snapshot, SNAP, QKT_O_NONE),
	S(right_new_refcount_block, V3, QKT_O_NONE),
	S(right_refcount_table_moves, V3, QKT_O_NONE),
	S(right_l1_moves, V3, QKT_O_NONE),
	S(right_after_a_failed_write, V3, QKT_O_NONE),
	S(right_cut_the_end, V3, QKT_O_NONE),
	S(right_replace_compressed, COMP, QKT_O_NONE),
	S(right_zero_cluster_is_written, V3, QKT_O_NONE),
	S(wrong_data_not_durable, V3, QKT_O1),
	S(wrong_flush_failed, V3, QKT_O1),
	S(wrong_table_not_durable, V3, QKT_O1),
	S(wrong_refcount_block_not_durable, V3, QKT_O1),
	S(wrong_beyond_durable_end, V3, QKT_O1),
	S(wrong_refcount_not_durable, V3, QKT_O2),
	S(wrong_lowered_before_unlinked, V3, QKT_O2),
	S(wrong_second_reference, V3, QKT_O2),
	S(wrong_old_table_lowered_early, SNAP, QKT_O2),
	S(wrong_block_not_linked, V3, QKT_O2),
	S(wrong_block_without_its_own_count, V3, QKT_O2),
	S(wrong_table_moves_without_count, V3, QKT_O2),
	S(wrong_old_bytes, V3, QKT_O3),
	S(wrong_reused_early, V3, QKT_O4),
	S(wrong_reused_early_with_threads, V3, QKT_O_NONE), /* judged by its own checker */
	S(wrong_snapshot_data_overwritten, SNAP, QKT_O4),
	S(wrong_snapshot_table_overwritten, SNAP, QKT_O4),
	S(wrong_snapshot_l1_overwritten, SNAP, QKT_O4),
	S(wrong_compressed_overwritten, COMP, QKT_O4),
	S(wrong_punched_early, V3, QKT_O5),
	S(wrong_cut, V3, QKT_O6),
	S(wrong_v2_dirty_bit, V2, QKT_O7),
	S(wrong_reserved_bits, V3, QKT_O8),
	S(wrong_v2_zero_flag, V2, QKT_O8),
	S(wrong_unaligned_l1, V3, QKT_O8),
	S(wrong_copied, SNAP, QKT_O9),
	S(wrong_copied_twice, V3, QKT_O9),
	S(wrong_data_is_table, V3, QKT_O10),
	S(wrong_zero_flag_cleared_early, V3, QKT_O1),
	S(right_bitmap, BITMAP, QKT_O_NONE),
	S(wrong_bitmap_not_in_use, BITMAP, QKT_O11),
	S(wrong_bitmap_mark_not_durable, BITMAP, QKT_O11),
	S(wrong_bitmap_changed_in_place, BITMAP, QKT_O4),
	S(wrong_bitmap_not_durable, BITMAP, QKT_O1),
	S(wrong_bitmap_freed_early, BITMAP, QKT_O2),
	S(wrong_write_after_bitmap_is_stored, BITMAP, QKT_O11),
#undef S
};

static void sequences_are_judged(void **state)
{
	(void)state;
	unsigned n_bad = 0;
	for (size_t i = 0; i < sizeof(sequences) / sizeof(sequences[0]); i++) {
		const struct sequence *q = &sequences[i];
		struct t t;
		make(&t, q->base);
		q->run(&t);
		if (q->run != wrong_reused_early_with_threads)
			n_bad += not_judged(&t, q->name, (unsigned)q->base, q->rule);
		done(&t);
	}
	assert_int_equal(n_bad, 0);
}

/* Ten thousand allocations pass and cost little. */
static void many_allocations_are_cheap(void **state)
{
	(void)state;
	struct t t;
	make(&t, V3);
	for (unsigned i = 1; i < 512; i++)
		for (unsigned round = 0; round < 20; round++) {
			rc(t.s, 20 + i, 1);
			fill(t.s, (20 + i) * CS, CS, (int)round + 1);
			flush(&t);
			l2(t.s, i, (20 + i) * CS | COPIED);
			flush(&t);
			if (round == 19)
				break;
			l2(t.s, i, 1);
			flush(&t);
			rc(t.s, 20 + i, 0);
		}
	assert_string_equal(qkt_order_message(t.o), "");
	assert_true(qkt_order_judged(t.o) >= 10000);
	done(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sequences_are_judged),
		cmocka_unit_test(many_allocations_are_cheap),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
