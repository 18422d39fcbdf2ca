/* SPDX-License-Identifier: MIT */
/*
 * stage: L2 entries that were changed and are not published yet, in chunks of one sector of an L2 table. A chunk
 * that is there answers for all entries of its sector: readers look here before the L2 cache, without a lock.
 *
 * There are two generations: what is changed now is open; what a publication is writing is publishing. With
 * them go the L1 entries that changed and the clusters that were unlinked and wait for the barrier.
 *
 *	key = guest cluster / entries in a chunk
 *	chunk: words  as readers see them; two of an extended entry
 *	       disk   as the L2 table has them, or will have when the publication under way is through
 */
#ifndef QK_ENGINE_STAGE_H
#define QK_ENGINE_STAGE_H

#include <pthread.h>

#include "base/err.h"
#include "engine/meta.h"

#define QK_STAGE_WORDS	 64U /* of a chunk: a sector */
#define QK_STAGE_ENTRIES QK_STAGE_WORDS /* the most: half of them where an entry has two words */

/* Words of an L2 entry, and entries of a chunk. */
static inline uint32_t qk_entry_words(const struct qk_geometry *g)
{
	return g->l2_entry_size / (uint32_t)sizeof(uint64_t);
}

static inline uint32_t qk_stage_entries(const struct qk_geometry *g)
{
	return QK_STAGE_WORDS / qk_entry_words(g);
}

struct qk_chunk {
	_Atomic uint64_t key;
	_Atomic(struct qk_chunk *) next; /* of the bucket, or of the free ones */
	uint64_t l2_off; /* host offset of the L2 table; constant while the chunk is used */
	/* guarded by stage.lock */
	uint32_t pins;
	uint64_t open, publishing; /* a bit a word that changed in that generation */
	uint64_t named; /* of those: the disk may name it already, a publication failed half way */
	struct qk_chunk *next_open, *next_publishing;
	/* what the disk may name at most: as the last publication left them whose targets were stable */
	uint64_t settled[QK_STAGE_WORDS];
	/* written at the swap, read by the publisher */
	uint64_t disk[QK_STAGE_WORDS]; /* big endian */
	_Atomic uint64_t words[QK_STAGE_WORDS]; /* big endian, as in a slice of meta.h */
};

/* A list of pairs that is joined to another without allocating. */
struct qk_pairs_block;
struct qk_pairs {
	struct qk_pairs_block *first, *last;
	uint64_t n;
};
struct qk_pair {
	uint64_t a, b;
};
struct qk_pairs_block {
	struct qk_pairs_block *next;
	uint32_t n;
	struct qk_pair v[127]; /* more than a change unlinks */
};

struct qk_stage_generation {
	struct qk_chunk *chunks;
	uint64_t n_chunks;
	struct qk_pairs l1; /* a: index, b: the entry */
	struct qk_pairs unlinked; /* see qk_stage_change */
	bool needs_barrier; /* entries point to what was written in this generation */
};

struct qk_stage {
	pthread_mutex_t lock;
	_Atomic uint32_t sequence; /* odd while chunks are being removed, or wide entries changed */
	_Atomic uint64_t n_chunks;
	_Atomic uint64_t n_unlinked; /* pairs, since the last swap */
	uint64_t max_chunks, max_unlinked; /* soft bounds */
	struct qk_stage_generation open, publishing;
	struct qk_chunk *unused;
	uint64_t bucket_mask;
	_Atomic(struct qk_chunk *) *buckets;
};

/* bytes: of memory, for chunks and for what was unlinked (0: 4 MiB). Of clusters that wait for a publication there are
 * not many more than 256 MiB. */
enum qcow_status qk_stage_new(uint64_t bytes, uint64_t cluster_size, struct qk_stage **out,
	struct qcow_error *err) QK_MUST_USE;
void qk_stage_free(struct qk_stage *stage);

/* ---- readers ---- */

/* The chunk's words, where there is one; out->first and ->n_entries are the caller's. Any thread, no lock. */
bool qk_stage_find(struct qk_stage *stage, uint64_t key, struct qk_slice *out);

static inline bool qk_stage_is_empty(struct qk_stage *stage)
{
	return atomic_load_explicit(&stage->n_chunks, memory_order_acquire) == 0;
}

/* ---- writers: they hold the stripe lock of the key ---- */

/* The chunk of `key`, pinned: it stays until qk_stage_unpin. NULL where there is none. */
struct qk_chunk *qk_stage_pin(struct qk_stage *stage, uint64_t key);
/* Make it, pinned, for the L2 table at l2_off with the words that the table has now. QCOW_E_NOMEM. */
enum qcow_status qk_stage_add(struct qk_stage *stage, uint64_t key, uint64_t l2_off,
	const uint64_t disk[QK_STAGE_WORDS], struct qk_chunk **out,
	struct qcow_error *err) QK_MUST_USE;
void qk_stage_unpin(struct qk_stage *stage, struct qk_chunk *chunk);

/* Publish before more is staged: there are many chunks, or clusters that could be used again. */
static inline bool qk_stage_is_full(const struct qk_stage *stage)
{
	return atomic_load_explicit(&stage->n_chunks, memory_order_relaxed) >= stage->max_chunks ||
	       atomic_load_explicit(&stage->n_unlinked, memory_order_relaxed) >=
		       stage->max_unlinked;
}

struct qk_stage_change {
	struct qk_chunk *chunk; /* pinned */
	uint32_t first, n; /* words */
	bool is_wide; /* an entry has two words, which readers see together */
	uint64_t words[QK_STAGE_WORDS]; /* of first, first + 1, …; host order */
	bool needs_barrier; /* they point to something written since the last publication */
	uint32_t n_unlinked;
	/* a: host offset with qk_freed bits (space.h), b: clusters; of QK_FREED_KEPT ones b: guest cluster + 1 */
	struct qk_pair unlinked[QK_STAGE_ENTRIES];
};

/* Readers see the entries from now on, the next publication writes them and drops what was unlinked.
 * QCOW_E_NOMEM: nothing was changed. */
enum qcow_status qk_stage_commit(struct qk_stage *stage, const struct qk_stage_change *change,
	struct qcow_error *err) QK_MUST_USE;

/* L1 entry `index` becomes `raw` on the disk, and the table at `unlinked` (0: none) has one reference less. Before readers
 * see it in memory: what is staged in the table comes with or after it. QCOW_E_NOMEM. */
enum qcow_status qk_stage_l1(struct qk_stage *stage, uint64_t index, uint64_t raw,
	uint64_t unlinked, struct qcow_error *err) QK_MUST_USE;

/* The n clusters from host offset `off` on have one reference less with the open generation, which has taken away what
 * named them. QCOW_E_NOMEM. */
enum qcow_status qk_stage_unlink(
	struct qk_stage *stage, uint64_t off, uint64_t n, struct qcow_error *err) QK_MUST_USE;

/* Words of a pinned chunk that the disk may have otherwise: their publication is to come, under way, or failed. */
uint64_t qk_stage_unsettled(struct qk_stage *stage, const struct qk_chunk *chunk);

/* Is something waiting for a publication that would set clusters free? */
bool qk_stage_has_unlinked(struct qk_stage *stage);

/* ---- the publisher, under the publish lock ---- */

/* What is open is publishing from now on; nothing was publishing. */
void qk_stage_swap(struct qk_stage *stage);
/* It was published: forget it, but for what is open again. The unlinked clusters are the caller's to free. */
void qk_stage_published(struct qk_stage *stage, struct qk_pairs *unlinked);
/* It was not: all of it is open again. is_named: the disk may name some of it, and all it points to is stable. */
void qk_stage_reopen(struct qk_stage *stage, bool is_named);
/* Forget what is open, but for what the disk may name: chunks with `named` entries whose table is_kept; their other
 * entries are again as in `settled`. Nothing is publishing, no chunk is pinned. True where anything was forgotten. */
bool qk_stage_forget(struct qk_stage *stage,
	bool (*is_kept)(void *ctx, const struct qk_chunk *chunk), void *ctx);
/* These clusters wait for the next publication (again). */
void qk_stage_defer(struct qk_stage *stage, struct qk_pairs *unlinked);

void qk_pairs_release(struct qk_pairs *pairs);

#endif
