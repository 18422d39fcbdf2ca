/* SPDX-License-Identifier: MIT */
/*
 * snapshot_int: what the files of snapshot (snapshot.h lists them) share. Nothing here writes to what is in use: new tables
 * go to clusters that nothing names, and what they are to replace stays as it is.
 */
#ifndef QK_ENGINE_SNAPSHOT_INT_H
#define QK_ENGINE_SNAPSHOT_INT_H

#include <qcowkit/manage.h>

#include "engine/fresh.h"
#include "engine/image.h"
#include "engine/shadow.h"
#include "engine/space.h"
#include "format/l1l2.h"
#include "format/snaptab.h"

/* ---- snapshot_table.c: the snapshot table in memory ---- */

struct qk_snaps {
	uint8_t *bytes; /* the table as stored; entries point into it */
	uint64_t n_bytes; /* … of it */
	struct qk_snapshot_entry *v;
	uint32_t n, room;
};

/* QCOW_E_CORRUPT, QCOW_E_IO, QCOW_E_NOMEM; released by the caller, on failure too. */
enum qcow_status qk_snaps_load(
	struct qcow_image *image, struct qk_snaps *out, struct qcow_error *err) QK_MUST_USE;
void qk_snaps_release(struct qk_snaps *s);
/* The entry `key` means, or QCOW_E_NOENT. */
enum qcow_status qk_snaps_find(const struct qk_snaps *s, const char *key,
	enum qcow_snapshot_key how, uint32_t *index, struct qcow_error *err) QK_MUST_USE;
/* Room for one more at the end, zeroed. QCOW_E_LIMIT, QCOW_E_NOMEM. */
enum qcow_status qk_snaps_add(
	struct qk_snaps *s, struct qk_snapshot_entry **out, struct qcow_error *err) QK_MUST_USE;
void qk_snaps_remove(struct qk_snaps *s, uint32_t index);
/* One more than the largest number that an id begins with. */
uint64_t qk_snaps_next_id(const struct qk_snaps *s);

/* ---- snapshot_new.c: tables in fresh clusters ---- */

/* qk_fresh_take for a table of this kind. */
enum qcow_status qk_snap_take(struct qk_fresh *f, uint64_t n, enum qk_space_kind kind,
	uint64_t *off, struct qcow_error *err) QK_MUST_USE;
/* The last n clusters of what was taken are not needed. */
void qk_snap_trim(struct qk_fresh *f, uint64_t n);

/* Write the table of all entries; *off is 0 where there is none. */
enum qcow_status qk_snaps_store(const struct qk_snaps *s, struct qk_fresh *fresh, uint64_t *off,
	struct qcow_error *err) QK_MUST_USE;
/* Write an L1 table of n entries (host order); *off is 0 where n is. */
enum qcow_status qk_l1_store(const uint64_t *l1, uint64_t n, enum qk_space_kind kind,
	struct qk_fresh *fresh, uint64_t *off, struct qcow_error *err) QK_MUST_USE;
/* Read one into *out, `n` entries and zeros up to `room`, each judged: QCOW_E_CORRUPT with its finding. No table is in
 * it twice. */
enum qcow_status qk_l1_read(struct qcow_image *image, uint64_t off, uint64_t n, uint64_t room,
	uint64_t **out, struct qcow_error *err) QK_MUST_USE;

/* ---- snapshot_count.c: refcounts after the switch ---- */

/* Where the entries of an L2 table point: groups of 64 Ki clusters [first, end). */
struct qk_reach {
	uint32_t first, end; /* end 0: the table has not been read */
};

/* What changes for one L2 table, or another cluster. */
struct qk_delta {
	uint64_t off; /* of the cluster */
	int32_t table; /* references to it */
	int32_t data; /* references to each cluster that its entries name; 0: it is not read */
	struct qk_reach reach;
	bool is_counted; /* in the window: what its entries name */
	bool is_freed; /* of qk_counter_punch */
};

/*
 * A count of the window is twice the number of references, and 1 more where there was one before: what is 1 lost the last.
 * It has 8 bits while they suffice.
 */
struct qk_counter {
	struct qcow_image *image;
	struct qk_space *sp; /* whose counts they are */
	const struct qcow_progress *progress;
	struct qk_delta *deltas;
	size_t n_deltas, room, n_sorted;
	struct qk_shadow_source space; /* the counts as they are */
	uint64_t end; /* of what has refcounts, in clusters */
	uint64_t lo, hi; /* the window: that of cluster lo + i is narrow[i], or wide[i] */
	uint8_t *narrow;
	int32_t *wide;
	void *memory; /* of either */
	uint64_t memory_bytes;
	bool is_wide;
	bool overflows; /* narrow cannot hold it */
	bool has_freed; /* some window had a cluster without its last reference */
	bool is_current; /* the window is of all clusters, and has all but the entries of tables not counted */
	uint8_t *table; /* table_bytes: a cluster, or several */
	uint64_t table_bytes;
};

enum qcow_status qk_counter_init(struct qk_counter *c, struct qcow_image *image,
	struct qk_space *sp, const struct qcow_progress *progress,
	struct qcow_error *err) QK_MUST_USE;
void qk_counter_release(struct qk_counter *c);
/* QCOW_E_NOMEM. Windows loaded before are worth nothing. */
enum qcow_status qk_counter_add(struct qk_counter *c, uint64_t off, int32_t table, int32_t data,
	struct qcow_error *err) QK_MUST_USE;
/* The clusters of a table of n entries at `off`. */
enum qcow_status qk_counter_add_run(struct qk_counter *c, uint64_t off, uint64_t bytes,
	int32_t delta, struct qcow_error *err) QK_MUST_USE;
/* Every L2 table of an L1 table. */
enum qcow_status qk_counter_add_tree(struct qk_counter *c, const uint64_t *l1, uint64_t n,
	int32_t table, int32_t data, struct qcow_error *err) QK_MUST_USE;
/* The change of a table, once they are settled, or NULL. */
struct qk_delta *qk_counter_find(const struct qk_counter *c, uint64_t off);
/* Clusters that were taken since the window was loaded have their one reference. */
void qk_counter_follow(struct qk_counter *c, const struct qk_fresh *fresh);
/* The host clusters [*first, *first + *n) of entry i of the table of `d`. QCOW_E_CORRUPT. */
enum qcow_status qk_counter_hosts(const struct qk_counter *c, const struct qk_delta *d,
	const uint8_t *table, uint32_t i, uint64_t *first, uint64_t *n,
	struct qcow_error *err) QK_MUST_USE;
/* As if nothing had been added. */
void qk_counter_reset(struct qk_counter *c);
/* Everything is added: begin with the counts as they are, where one window holds them all. Who reads an L2 table before the
 * next load shows it, and it is not read again. Errors as of the load. */
enum qcow_status qk_counter_open(struct qk_counter *c, struct qcow_error *err) QK_MUST_USE;
void qk_counter_show(struct qk_counter *c, uint64_t off, const uint8_t *table);
/* The counts are those of `sp` from here on; what was begun goes on where the counts are the same. */
void qk_counter_move(struct qk_counter *c, struct qk_space *sp, bool are_same);
/* Count the window that begins at cluster `lo`. QCOW_E_CORRUPT with the finding of a bad entry, or where references
 * were not counted; QCOW_E_LIMIT where the width is full; QCOW_E_CANCELLED, QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status qk_counter_load(
	struct qk_counter *c, uint64_t lo, struct qcow_error *err) QK_MUST_USE;
static inline int64_t qk_counter_at(const struct qk_counter *c, uint64_t cluster)
{
	int64_t v = c->is_wide ? c->wide[cluster - c->lo] : c->narrow[cluster - c->lo];
	return (v - (v & 1)) / 2;
}
/* Of the counts as they are stored, in a loop without a branch for the width. */
static inline bool qk_counter_is_single(const struct qk_counter *c, uint64_t i, bool is_wide)
{
	return ((is_wide ? c->wide[i] : c->narrow[i]) | 1) == 3;
}
/* What loops over entries of 8 bytes need, in registers: nearly all are 0, or a plain cluster and nothing else. */
struct qk_plain {
	uint64_t bad_bits; /* set in none of those */
	uint64_t lo, n; /* the window */
	unsigned cluster_bits;
	bool applies; /* the entries have 8 bytes */
};
static inline struct qk_plain qk_plain_init(const struct qk_counter *c)
{
	const struct qk_geometry *g = &c->image->geometry;
	/* compressed, reserved, the zero flag; what is not aligned */
	const uint64_t unusual = UINT64_C(0x7f000000000001ff);
	return (struct qk_plain){unusual | (QK_OFFSET_MASK & (g->cluster_size - 1)), c->lo,
		c->hi - c->lo, g->cluster_bits, !g->extended_l2};
}
/* Is there more than one window? */
static inline bool qk_counter_is_cut(const struct qk_counter *c)
{
	return c->lo != 0 || c->hi < c->end;
}
/* Where the entries of the table point. */
struct qk_reach qk_reach_of(const struct qk_geometry *g, const uint8_t *table);
/* May an entry of the table point into the window? */
bool qk_counter_is_reached(const struct qk_counter *c, const struct qk_reach *reach);
/* The source for qk_shadow_build: the counts of the counter, clusters of the space. */
void qk_counter_source(struct qk_counter *c, struct qk_shadow_source *out);

/* ---- snapshot_punch.c ---- */

/* After the switch: what is not counted any more goes back to the file system, where the image passes that on. The counts
 * are of no use afterwards. */
void qk_counter_punch(struct qk_counter *c);

/* ---- snapshot_copy.c: L2 tables whose COPIED bits change ---- */

struct qk_copy {
	struct qcow_image *image;
	struct qk_fresh *fresh;
	const uint64_t *base; /* the L1 table as it is: entries of L2 tables, host order */
	uint64_t *
		l1; /* as it becomes, without COPIED: where it differs from base the table is a copy */
	bool *is_single; /* after qk_copy_judged: the table has one reference */
	struct qk_reach *reach; /* of the tables */
	uint64_t n;
	uint64_t spare, n_spare; /* clusters taken and not used yet: offset */
	uint64_t n_left; /* tables not looked at yet */
	uint8_t *table; /* the one that is looked at, in … */
	uint8_t *
		tables; /* … as many as go into batch_room: n_read of them, that of entry read_at first */
	uint64_t read_at, n_read;
	uint8_t *batch; /* copies that lie next to each other, not written yet */
	uint64_t batch_off, batch_bytes, batch_room;
};

enum qcow_status qk_copy_init(struct qk_copy *c, struct qcow_image *image, struct qk_fresh *fresh,
	const uint64_t *base, uint64_t n, struct qcow_error *err) QK_MUST_USE;
void qk_copy_release(struct qk_copy *c);
/* Is the table of entry i a copy? */
bool qk_copy_is_fresh(const struct qk_copy *c, uint64_t i);
/* No entry is COPIED any more. Each table is shown to `counter`, or it is NULL. */
enum qcow_status qk_copy_cleared(struct qk_copy *c, struct qk_counter *counter,
	const struct qcow_progress *progress, struct qcow_error *err) QK_MUST_USE;
/* COPIED where the refcount is 1, of tables too, for all clusters of the counter's window. */
enum qcow_status qk_copy_judged(
	struct qk_copy *c, const struct qk_counter *counter, struct qcow_error *err) QK_MUST_USE;

/* QCOW_E_CANCELLED where the caller wants no more. */
enum qcow_status qk_snapshot_goes_on(
	const struct qcow_progress *progress, struct qcow_error *err) QK_MUST_USE;
/* A bad L2 entry. */
enum qcow_status qk_snapshot_bad_entry(
	uint64_t table_off, uint32_t index, uint64_t raw, unsigned finding, struct qcow_error *err);

#endif
