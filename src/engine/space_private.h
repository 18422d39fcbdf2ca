/* SPDX-License-Identifier: MIT */
/*
 * space_private: what the files of space (space.h lists them) share. Everything below is called and changed with
 * the space lock held, except where a comment says otherwise.
 *
 * Invariants:
 *   X1  a cluster handed out had refcount 0 and lay in no known structure, in no quarantine
 *   X2  a block that the disk's table does not name yet (NEW, LINKING) stays in the cache
 *   X3  a block leaves the cache only when all its sectors are stable: clean, and behind a flush
 *   X4  every cluster whose refcount is not 0 in memory has a block, and table_entries covers it
 *   X5  n_dirty and n_unstable count the bits of their maps
 *   X6  refcounts of the reservation are 1, and nobody was given its clusters
 *   X7  one publication at a time
 *   X8  new blocks count one another without a circle
 */
#ifndef QK_ENGINE_SPACE_PRIVATE_H
#define QK_ENGINE_SPACE_PRIVATE_H

#include "engine/space.h"

#include <pthread.h>
#include <stdatomic.h>

#include "audit/audit.h"
#include "base/num.h"

#define QK_SPACE_BUCKETS     1024U
#define QK_SPACE_SECTOR_MAX  (4096U / 64U) /* words: sectors of a block of 2 MiB, a bit each */
#define QK_SPACE_FILTER_BITS 65536U

/* ---- space_blocks.c: the cache ---- */

enum qk_refblock_state {
	QK_REFBLOCK_LINKED, /* the disk's refcount table names it */
	QK_REFBLOCK_NEW, /* only the table in memory does */
	QK_REFBLOCK_LINKING /* the publication under way links it */
};

struct qk_refblock {
	uint64_t idx; /* of its refcount table entry */
	uint64_t off;
	uint8_t *bytes; /* cluster_size */
	uint64_t *dirty; /* a bit a sector: memory is newer than what was written */
	uint64_t *unstable; /* written, and no flush since that is known to have succeeded */
	uint32_t n_dirty, n_unstable;
	uint32_t pins;
	enum qk_refblock_state state;
	bool is_ready; /* of start_round */
	bool is_named; /* the disk's table may name it: its link was written, and that publication failed */
	unsigned link_round; /* of the publication, from 1; 0: its turn has not come */
	struct qk_refblock *next_hash;
	struct qk_refblock *newer, *older; /* by use */
	struct qk_refblock *next_publish; /* of the publication under way */
	struct qk_refblock *next_busy;
	bool is_busy;
};

/* ---- sets of clusters ---- */

struct qk_cluster_slot {
	uint64_t cluster; /* + 1; 0 = empty */
	uint64_t kind;
};

/* Open addressing; never more than half full. */
struct qk_cluster_set {
	struct qk_cluster_slot *v;
	uint64_t n, mask;
};

/* Clusters [first, end) belong to a structure that lies in one piece. */
struct qk_space_range {
	uint64_t first, end;
	enum qk_space_kind kind;
};

struct qk_space_ranges {
	struct qk_space_range *v; /* by first */
	size_t n, cap;
};

struct qk_space_deferred {
	uint64_t first, n;
};

/* ---- the space ---- */

enum qk_table_state {
	QK_TABLE_SETTLED, /* the table of the header has all entries */
	QK_TABLE_WANTED, /* table_entries grew; the new table has no place yet */
	QK_TABLE_PLACED, /* next_off and next_clusters are taken */
	QK_TABLE_WRITTEN /* by the publication under way */
};

struct qk_space {
	pthread_mutex_t lock;
	struct qcow_store *store;
	const struct qk_geometry *g;
	struct qk_header header; /* a copy; rt_off and rt_clusters as on disk, or uncertain */
	const struct qk_extensions *ext;
	bool can_grow, grows_zeroed;
	uint32_t passes; /* QCOW_DISCARD_PASS_ bits */
	_Atomic bool cannot_punch; /* the store said so */
	bool flush_failed; /* since it was last asked for; under the publish lock */
	bool is_corrupt; /* nothing is taken or published any more */
	bool is_broken; /* a quarantine could not be remembered: nothing is taken any more */
	uint8_t sector0[QK_SECTOR];

	/* the refcount table, space_table.c */
	uint64_t *table; /* offset of each block, 0 none */
	uint64_t table_entries;
	uint64_t *full; /* a bit an entry: no free cluster in there */
	enum qk_table_state table_state;
	uint64_t next_off, next_clusters; /* of the table that will replace the header's */
	uint64_t stale_off, stale_clusters; /* of the one that was replaced; 0: none */
	bool is_publishing; /* begun and not done: what it wrote may be lost */
	bool is_switching; /* the publication under way replaces the table */
	bool header_uncertain; /* bytes 48-59 were written and not known to be stable */

	/* the cache, space_blocks.c */
	struct qk_refblock *buckets[QK_SPACE_BUCKETS];
	struct qk_refblock *newest, *oldest;
	struct qk_refblock
		*busy; /* every block that is dirty, unstable or not linked, and maybe others */
	uint64_t n_blocks, max_blocks;
	struct qk_refblock *idle_block; /* memory of one that left */
	struct qk_refblock *publishing; /* list, pinned */
	uint8_t *scratch; /* cluster_size, of the publication */

	/* allocation, space_alloc.c. In clusters */
	uint64_t cursor; /* every cluster from floor to here is taken, or was skipped on purpose */
	uint64_t floor; /* below it nothing is handed out: its refcounts are not proven */
	bool skipped;
	bool is_proven;
	bool was_changed; /* a refcount, since the open */
	bool only_blocks; /* areas without a refcount block count as taken */
	uint64_t limit; /* the first that cannot be: end of a device, or of what entries can name */
	uint64_t open_size; /* of the file, in bytes */
	bool may_cut; /* … and below that; guarded by lock */
	uint64_t
		pristine; /* from here on no cluster was ever handed out, nor in the file at open */
	uint64_t reserved, reserved_end; /* the reservation */
	uint64_t last_end,
		n_consecutive; /* of the last run; calls that went on from one to the next */
	_Atomic uint64_t file_size; /* bytes */
	struct qk_cluster_set quarantine;
	struct qk_space_deferred *deferred; /* given back while their block was not cached */
	size_t n_deferred, cap_deferred;

	/* structures, space_overlap.c */
	struct qk_space_ranges ranges;
	struct qk_cluster_set singles; /* L2 tables and refcount blocks */
	bool knows_all_l2; /* of the active tree and the snapshots' */
	uint64_t l1_bytes, n_l2; /* all L1 tables that were read, and L2 tables known */
	_Atomic uint64_t filter[QK_SPACE_FILTER_BITS / 64];
	uint64_t counting[QK_SPACE_FILTER_BITS /
			  64]; /* groups of clusters that may hold refcounts */
};

static inline uint64_t qk_space_cluster(const struct qk_space *sp, uint64_t off)
{
	return off >> sp->g->cluster_bits;
}

/* The first corruption that a walk of the audit room reported. */
struct qk_space_noted {
	unsigned id; /* 0: none */
	uint64_t host_off, guest_off;
	char where[QK_AUDIT_WHERE_BYTES];
};
/* A report callback; ctx is a struct qk_space_noted. */
void qk_space_note(void *ctx, const struct qcow_finding *f);
/* QCOW_E_CORRUPT with the finding, or QCOW_OK. */
enum qcow_status qk_space_noted_error(
	const struct qk_space_noted *n, struct qcow_error *err) QK_MUST_USE;

/* QCOW_E_CORRUPT where nothing may be taken or published any more. */
enum qcow_status qk_space_usable(const struct qk_space *sp, struct qcow_error *err) QK_MUST_USE;

/* ---- space_blocks.c ---- */

/* The block of table entry `idx` (which names one), pinned. QCOW_E_IO with TABLE_READ_FAILED, QCOW_E_NOMEM. */
enum qcow_status qk_refblock_get(struct qk_space *sp, uint64_t idx, struct qk_refblock **out,
	struct qcow_error *err) QK_MUST_USE;
/* The same where it is cached, not pinned; else NULL. */
struct qk_refblock *qk_refblock_peek(struct qk_space *sp, uint64_t idx);
void qk_refblock_put(struct qk_refblock *b);
/* A block of zeros that is NEW, pinned; the table is the caller's. QCOW_E_NOMEM. */
enum qcow_status qk_refblock_new(struct qk_space *sp, uint64_t idx, uint64_t off,
	struct qk_refblock **out, struct qcow_error *err) QK_MUST_USE;
/* Of one that qk_refblock_new made and nobody wrote. */
void qk_refblock_unmake(struct qk_space *sp, struct qk_refblock *b);
uint64_t qk_refblock_at(const struct qk_space *sp, const struct qk_refblock *b, uint64_t cluster);
/* Sets it and marks the sector. */
void qk_refblock_set(struct qk_space *sp, struct qk_refblock *b, uint64_t cluster, uint64_t value);
/* What was written and is not known to be stable is dirty again. */
void qk_refblock_requeue(struct qk_refblock *b);
/* Leave out of the list of busy blocks those that no longer are, and keep to the budget again. */
void qk_refblocks_tidy(struct qk_space *sp);
/* What was written is stable. */
void qk_refblock_settle(struct qk_refblock *b);
/* Takes the lock by itself, for copying only. Write the dirty sectors of a pinned block. */
enum qcow_status qk_refblock_write(
	struct qk_space *sp, struct qk_refblock *b, struct qcow_error *err) QK_MUST_USE;
void qk_refblocks_release(struct qk_space *sp);

/* ---- space_count.c ---- */

enum qk_count_op {
	QK_COUNT_TAKE, /* 0 -> 1 */
	QK_COUNT_RAISE, /* + 1 */
	QK_COUNT_DROP, /* - 1 */
	QK_COUNT_CLEAR /* 1 -> 0 of what was never used */
};

/* All or nothing, for clusters [first, first + n) whose blocks exist. */
enum qcow_status qk_space_count(struct qk_space *sp, enum qk_count_op op, uint64_t first,
	uint64_t n, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_space_get(
	struct qk_space *sp, uint64_t cluster, uint64_t *out, struct qcow_error *err) QK_MUST_USE;
/* Do what qk_space_give_back put off, as far as that is possible now. */
void qk_space_settle_deferred(struct qk_space *sp);

/* ---- space_alloc.c ---- */

/* The lowest run of at least min_n (at most n) free clusters from `from` on. The reservation is not free.
 * QCOW_E_NOSPC where there is none below the limit. */
struct qk_space_search {
	uint64_t from, n, min_n;
	uint64_t avoid, avoid_end; /* these do not count as free */
	bool here; /* the run begins at `from` or there is none */
};
enum qcow_status qk_space_find(struct qk_space *sp, const struct qk_space_search *s,
	uint64_t *first, uint64_t *n, struct qcow_error *err) QK_MUST_USE;
/* Make the file at least this long, in clusters. */
enum qcow_status qk_space_extend(
	struct qk_space *sp, uint64_t end, struct qcow_error *err) QK_MUST_USE;
/* Clusters [first, first + n) are in use: past them only is pristine. */
void qk_space_used(struct qk_space *sp, uint64_t first, uint64_t n);
void qk_space_freed(struct qk_space *sp, uint64_t cluster);
enum qcow_status qk_space_unreserve(struct qk_space *sp, struct qcow_error *err) QK_MUST_USE;

/* ---- space_punch.c: takes the lock by itself ---- */

/* Before a drop: punch those of the clusters of which it is the last reference. */
void qk_space_punch_last(struct qk_space *sp, unsigned freed, uint64_t off, uint64_t n);

/* ---- space_table.c ---- */

/* Make blocks for all of [first, first + n). What it made stays where a later step fails. */
enum qcow_status qk_space_cover(
	struct qk_space *sp, uint64_t first, uint64_t n, struct qcow_error *err) QK_MUST_USE;
/* Give a table that has grown its place. */
enum qcow_status qk_space_place_table(struct qk_space *sp, struct qcow_error *err) QK_MUST_USE;

/* begin, flush, link, flush, done. For open and close. */
enum qcow_status qk_space_publish_now(struct qk_space *sp, struct qcow_error *err) QK_MUST_USE;

/* ---- space_prove.c ---- */

/* As rq->prove says. Also settles where clusters may be taken. */
enum qcow_status qk_space_prove(
	struct qk_space *sp, const struct qk_space_request *rq, struct qcow_error *err) QK_MUST_USE;

/* ---- space_map.c ---- */

enum qcow_status qk_cluster_set_add(struct qk_cluster_set *s, uint64_t cluster, uint64_t kind,
	struct qcow_error *err) QK_MUST_USE;
/* Its kind, or UINT64_MAX. */
uint64_t qk_cluster_set_find(const struct qk_cluster_set *s, uint64_t cluster);
void qk_cluster_set_remove(struct qk_cluster_set *s, uint64_t cluster);
void qk_cluster_set_release(struct qk_cluster_set *s);

/* Learn header, tables and lists from the disk. QCOW_E_CORRUPT with a finding, QCOW_E_NOMEM. */
enum qcow_status qk_space_map_init(
	struct qk_space *sp, struct qk_audit *a, struct qcow_error *err) QK_MUST_USE;
void qk_space_map_release(struct qk_space *sp);
enum qcow_status qk_space_map_add(struct qk_space *sp, enum qk_space_kind kind, uint64_t first,
	uint64_t n, struct qcow_error *err) QK_MUST_USE;
void qk_space_map_forget(struct qk_space *sp, uint64_t first, uint64_t n);
/* The kind of the structure in this cluster, QK_SPACE_DATA where none is known. */
enum qk_space_kind qk_space_map_find(const struct qk_space *sp, uint64_t cluster);
/* No lock: false where no structure is in the cluster for sure. */
bool qk_space_map_may_hold(const struct qk_space *sp, uint64_t cluster);
/* False where none of clusters [first, first + n) is in the refcount table or is a refcount block. */
bool qk_space_map_may_count(const struct qk_space *sp, uint64_t first, uint64_t n);
const char *qk_space_kind_name(enum qk_space_kind kind);
/* ---- space_overlap.c: as qk_space_check_overlap and qk_space_mark_corrupt, lock held. */
enum qcow_status qk_space_judge_write(struct qk_space *sp, enum qk_space_kind kind, uint64_t off,
	uint64_t len, struct qcow_error *err) QK_MUST_USE;
void qk_space_corrupt(struct qk_space *sp);
enum qcow_status qk_space_patch_header(struct qk_space *sp, const struct qk_header_patch *patch,
	struct qcow_error *err) QK_MUST_USE;

#endif
