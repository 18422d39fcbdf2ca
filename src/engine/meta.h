/* SPDX-License-Identifier: MIT */
/*
 * meta: the L1 table and the cache of L2 slices of one image.
 *
 * A slice is 4 KiB of an L2 table (less where a cluster is less), for a table of a 2 MiB cluster would
 * cost 2 MiB of cache to look at one entry. Slots lie in sets of eight; a set has a lock that only
 * those take who miss. Reading a cached slice takes no lock and writes no shared memory: the reader
 * notes the slot's sequence count, reads entries, and asks afterwards whether what it read was whole.
 *
 *	struct qk_slice s;
 *	do {
 *		QK_TRY(qk_meta_slice(meta, l2_off, index, &s, err));
 *		… qk_slice_word(&s, i) …
 *	} while (!qk_slice_is_whole(&s));
 */
#ifndef QK_ENGINE_META_H
#define QK_ENGINE_META_H

#include <stdatomic.h>
#include <qcowkit/store.h>

#include "base/bytes.h"
#include "base/num.h"
#include "format/geometry.h"

struct qk_meta;

struct qk_meta_request {
	struct qcow_store *store;
	uint64_t file_size;
	const struct qk_geometry *geometry;
	uint64_t l1_off;
	uint32_t l1_entries;
	uint64_t cache_bytes; /* budget of the L2 cache */
};

/* Reads nothing: the L1 table is loaded at its first use, and no more of it than the file holds. */
enum qcow_status qk_meta_new(
	const struct qk_meta_request *rq, struct qk_meta **out, struct qcow_error *err);
void qk_meta_free(struct qk_meta *meta);

/* The L1 table in memory, as stored (big endian), *n entries of it: those that the file holds.
 * QCOW_E_IO with TABLE_READ_FAILED, QCOW_E_NOMEM; a later call tries again. With may_block false and the
 * table not loaded: QCOW_OK and *words NULL. Any thread. */
enum qcow_status qk_meta_l1(struct qk_meta *meta, bool may_block, const _Atomic uint64_t **words,
	uint64_t *n, struct qcow_error *err);

static inline uint64_t qk_l1_word(const _Atomic uint64_t *words, uint64_t i)
{
	return __builtin_bswap64(atomic_load_explicit(&words[i], memory_order_acquire));
}

/* Change entry `index` (< n of the table, which is loaded) in memory, for readers to see. One caller at a time. */
void qk_meta_l1_set(struct qk_meta *meta, uint64_t index, uint64_t raw);

/* The table has n entries (more than before) from now on, the new ones 0, and begins at `off`. What readers
 * hold of the old one stays valid. One caller at a time. QCOW_E_NOMEM, QCOW_E_IO. */
enum qcow_status qk_meta_l1_grow(
	struct qk_meta *meta, uint64_t off, uint64_t n, struct qcow_error *err);

/* Write n_words (big endian) at `off` of the file, which lie in one slice of an L2 table, and into the cache where
 * the slice is in it: a reader sees the old or the new words. On failure the cache forgets the slice.
 * Errors of the store. */
enum qcow_status qk_meta_write(struct qk_meta *meta, uint64_t off, const uint64_t *words,
	uint32_t n_words, struct qcow_error *err);

/* Forget the slices of the table at l2_off: the cluster had another life. */
void qk_meta_forget(struct qk_meta *meta, uint64_t l2_off);

/* Bytes of a slice; tables begin with a slice. */
uint32_t qk_meta_slice_bytes(const struct qk_meta *meta);

struct qk_slice {
	const _Atomic uint64_t *words; /* NULL: not cached, and may_block was false */
	const _Atomic uint32_t *sequence_at; /* moves when the words are changed */
	uint32_t sequence;
	uint32_t first; /* L2 entry that words[0] belongs to */
	uint32_t n_entries; /* L2 entries in the slice */
};

/* The slice that holds entry `index` of the L2 table at l2_off (within the file; what lies past its end reads
 * as zeros). QCOW_E_IO with TABLE_READ_FAILED, QCOW_E_NOMEM. Any thread; only a miss takes a lock. */
enum qcow_status qk_meta_slice(struct qk_meta *meta, uint64_t l2_off, uint32_t index,
	bool may_block, struct qk_slice *out, struct qcow_error *err);

/* Was the slot left alone since qk_meta_slice? Else forget what was read. */
bool qk_slice_is_whole(const struct qk_slice *slice);

/* Word i of the slice in host order. It may be torn or another slice's until qk_slice_is_whole says
 * otherwise: compute with it, but index or dereference nothing by it before. */
static inline uint64_t qk_slice_word(const struct qk_slice *slice, uint32_t i)
{
	return __builtin_bswap64(atomic_load_explicit(&slice->words[i], memory_order_acquire));
}

/* Are words [i, i + 8) all zero? */
static inline bool qk_slice_is_zero8(const struct qk_slice *slice, uint32_t i)
{
	uint64_t any = 0;
	for (uint32_t k = 0; k < 8; k++)
		any |= atomic_load_explicit(&slice->words[i + k], memory_order_acquire);
	return any == 0;
}

#endif
