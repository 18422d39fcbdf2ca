/* SPDX-License-Identifier: MIT */
/*
 * plan: one round of a repair, thought through before anything is written.
 *
 *   plan.c           the image as it is on the disk; the order of the steps below
 *   plan_tables.c    the header's tables and lists: what is out of bounds, what lies on something else
 *   plan_entries.c   entries of L1, L2 and bitmap tables: what is wrong in them; COPIED
 *   plan_conflicts.c entries that name what something else needs
 *   plan_copies.c    what several entries name and cannot share: copies for all but the first
 *   plan_counts.c    refcounts, word by word, where the structure is sound
 *   plan_changes.c   the words that will change, and the image as it will read
 *
 * A round is right by itself: a plan that does not fit its memory is cut, and the next round plans the rest. Unlinking
 * lowers the number of references and never raises it, so whatever was decided by counts of before is too careful at
 * worst: a leak for the next round, never a refcount below its references.
 */
#ifndef QK_CHECK_PLAN_H
#define QK_CHECK_PLAN_H

#include "audit/refs.h"
#include "check/plan_changes.h"

#define QK_N_FINDINGS 64U

/* L2 tables, by ascending offset. */
struct qk_plan_table {
	uint64_t off;
	uint32_t index; /* of the first active L1 entry that names it */
};

struct qk_plan_tables {
	struct qk_plan_table *v;
	size_t n, room;
};

/* What an entry names, and is to be copied for it. */
struct qk_plan_copy {
	uint64_t entry_off, raw; /* of the entry */
	uint64_t first, n; /* clusters */
	uint64_t weight; /* how often the entry counts */
	uint64_t new_first; /* where the copy is, when it was written */
	uint16_t finding; /* why */
	uint8_t kind; /* enum qcow_repair_kind of the entry */
};

struct qk_plan_copies {
	struct qk_plan_copy *v;
	size_t n, room;
};

struct qk_plan {
	/* given */
	struct qcow_store *store;
	const struct qcow_progress *progress;
	uint64_t memory_bytes;
	enum qcow_repair_mode mode;
	uint64_t found[QK_N_FINDINGS]; /* by the check before this round */
	uint64_t copy_bytes; /* what may still be copied, and when planned what may be after it */

	/* the image */
	uint8_t *cluster0;
	struct qk_header disk; /* as it is */
	struct qk_header header; /* as it will be, but for the places of what is written anew */
	struct qk_extensions ext;
	struct qk_geometry g;
	uint64_t file_size;

	/* decided */
	struct qk_changes changes;
	bool new_refcounts, new_l1, new_snapshots;
	bool l1_is_lost; /* nothing of the active L1 table can be used */
	struct qk_plan_copies copies;
	uint64_t *skip_snapshots; /* a bit each: its L1 table lies on something else; or NULL */

	/* while it is made */
	struct qcow_store *view; /* the image with the changes */
	struct qk_audit audit; /* of the view and `header` */
	struct qk_refs refs;
	struct qk_census census;
	uint64_t n_clusters; /* of the file */
	uint64_t seen[QK_N_FINDINGS]; /* by the lists of tables */
	struct qk_plan_tables twice; /* L2 tables that several active L1 entries name */
	struct qk_plan_tables
		bogus; /* what L1 entries name, and something else needs, and is no table */
	struct qk_plan_over
		*over; /* clusters of the window with more references than a refcount holds */
	size_t n_over, over_room;
};

/* Fill in the image. Errors as qcow_open for the header. */
enum qcow_status qk_plan_init(struct qk_plan *p, struct qcow_error *err) QK_MUST_USE;
void qk_plan_release(struct qk_plan *p);

/* Plan the round. QCOW_E_IO where a table cannot be read, QCOW_E_CANCELLED, QCOW_E_NOMEM. Afterwards the changes are
 * in the order of the writes. */
enum qcow_status qk_plan_make(struct qk_plan *p, struct qcow_error *err) QK_MUST_USE;

/* Is there nothing to do? */
bool qk_plan_is_empty(const struct qk_plan *p);

/* An audit of `store`, silent, for a walk of the file with `header`. */
void qk_plan_audit(struct qk_plan *p, struct qcow_store *store, const struct qk_header *header,
	struct qk_audit *out);

/* Sector 0 with `header`, as it is to be written in one piece. */
void qk_plan_sector0(const struct qk_plan *p, uint8_t sector[QK_SECTOR]);

/* ---- between the files of plan ---- */

/* Count the references to the clusters of the file from `lo` on, as many as the census holds. */
enum qcow_status qk_plan_count(struct qk_plan *p, uint64_t lo, struct qcow_error *err) QK_MUST_USE;

/* One change. */
enum qcow_status qk_plan_change(
	struct qk_plan *p, const struct qk_change *change, struct qcow_error *err) QK_MUST_USE;

/* plan_tables.c: settle `header` and the three decisions, until the lists agree with it. Leaves p->refs made. */
enum qcow_status qk_plan_tables(struct qk_plan *p, struct qcow_error *err) QK_MUST_USE;
/* The words of the header that change, places of new structures included, as changes of phase HEADER. */
enum qcow_status qk_plan_header(struct qk_plan *p, struct qcow_error *err) QK_MUST_USE;

/*
 * plan_entries.c, plan_conflicts.c. Nothing may be changed in an L2 table before it is known to be one: first what names tables, in the whole
 * file, then entries of L2 tables.
 *
 * Entries of L1 and bitmap tables that are wrong in themselves, or beyond the file.
 */
enum qcow_status qk_plan_table_faults(struct qk_plan *p, struct qcow_error *err) QK_MUST_USE;
/* Of the window that the census has: tables that share their cluster and do not look like tables are noted. */
enum qcow_status qk_plan_find_bogus(struct qk_plan *p, struct qcow_error *err) QK_MUST_USE;
/* Of the window: L1 entries that name a structure or what is no table, bitmap entries that share a
 * cluster. *changed is set where the census has to be counted anew. */
enum qcow_status qk_plan_table_conflicts(
	struct qk_plan *p, bool *changed, struct qcow_error *err) QK_MUST_USE;
/* Entries of L2 tables that are wrong in themselves. */
enum qcow_status qk_plan_entry_faults(struct qk_plan *p, struct qcow_error *err) QK_MUST_USE;
/* Of the window: entries that lie on a structure or an L2 table, or are more than a refcount holds. */
enum qcow_status qk_plan_entry_conflicts(
	struct qk_plan *p, bool *changed, struct qcow_error *err) QK_MUST_USE;
/* Of the window: COPIED. With `set_only` it is only set, and only where the stored refcount will be 1. */
enum qcow_status qk_plan_copied(
	struct qk_plan *p, bool set_only, struct qcow_error *err) QK_MUST_USE;

/* plan_copies.c: a copy for the entry. *stays: it has one, or another round will look at it again; else it goes. */
enum qcow_status qk_plan_copy(struct qk_plan *p, const struct qk_plan_copy *copy, bool *stays,
	struct qcow_error *err) QK_MUST_USE;
/* All entries are judged: copies for those that go, or that this round cannot make, are dropped. */
void qk_plan_settle_copies(struct qk_plan *p);
/* The entries with what they name when the copies are written, as changes of phase RELINK, in place of all others. */
enum qcow_status qk_plan_relink(struct qk_plan *p, struct qcow_error *err) QK_MUST_USE;

/* plan_counts.c: of the window; or new_refcounts is set. */
enum qcow_status qk_plan_counts(struct qk_plan *p, struct qcow_error *err) QK_MUST_USE;

#endif
