/* SPDX-License-Identifier: MIT */
/*
 * meta: see meta.h. Owns the L1 table and the slots; never judges an entry.
 *
 * Invariants: M1 a slot's words stay allocated until the image is closed; M2 a slot changes only under
 * its set's lock, between an odd and an even sequence count; M3 tag is host offset | 1 or 0 (empty).
 * Locking: l1_lock and the sets' locks are leaves: nothing else is taken under them, the read of the
 * table happens under them, so that two who miss the same slice read it once.
 *
 * Order of memory: the writer's word stores are releases behind the odd count, the reader's word loads
 * are acquires before its second look at the count; so a reader that saw a new word sees the odd count or
 * a later one. On x86 all of these are plain moves.
 */
#include "engine/meta.h"

#include <inttypes.h>
#include <pthread.h>
#include <qcowkit/findings.h>

#include "base/err.h"
#include "base/mem.h"

#define SLICE_BYTES QK_KIB(4)
#define WAYS	    8U
#define MIN_SETS    4U /* 128 KiB */
#define MAX_SETS    (UINT32_C(1) << 17) /* 4 GiB */

struct slot {
	_Atomic uint64_t tag;
	_Atomic(_Atomic uint64_t *) words;
	_Atomic uint32_t sequence;
	_Atomic bool is_recent; /* looked at since the hand passed */
};

struct set {
	_Alignas(64) struct slot slots[WAYS];
	pthread_mutex_t lock;
	unsigned hand; /* guarded by lock */
};

struct l1 {
	uint64_t n;
	struct l1 *older; /* that a reader may still hold */
	_Atomic uint64_t words[];
};

struct qk_meta {
	struct qk_meta_request rq;
	struct qk_geometry geometry; /* what rq points to */
	uint64_t l1_in_file; /* entries that the file holds: what is loaded */
	pthread_mutex_t l1_lock;
	_Atomic(struct l1 *) l1;
	uint32_t slice_bytes;
	uint32_t slice_entries;
	unsigned slice_entries_bits;
	uint32_t n_sets; /* a power of two */
	pthread_mutex_t sets_lock; /* guards the making of sets */
	_Atomic(struct set *)
		sets; /* made at the first miss: closed layers of a long chain cost nothing */
};

static uint32_t sets_for(uint64_t cache_bytes, uint32_t slice_bytes)
{
	uint64_t wanted = cache_bytes / ((uint64_t)slice_bytes * WAYS);
	uint32_t n = MIN_SETS;
	while (n < MAX_SETS && (uint64_t)n * 2 <= wanted)
		n *= 2;
	return n;
}

enum qcow_status qk_meta_new(
	const struct qk_meta_request *rq, struct qk_meta **out, struct qcow_error *err)
{
	struct qk_meta *meta = qk_calloc(1, sizeof(*meta));
	if (meta == NULL)
		return QK_FAIL_NOMEM(err);
	meta->rq = *rq;
	meta->geometry = *rq->geometry;
	meta->rq.geometry = &meta->geometry;
	uint64_t bytes = rq->l1_off < rq->file_size ? rq->file_size - rq->l1_off : 0;
	meta->l1_in_file = qk_min(rq->l1_entries, bytes / sizeof(uint64_t));
	meta->slice_bytes = (uint32_t)qk_min(SLICE_BYTES, rq->geometry->cluster_size);
	meta->slice_entries = meta->slice_bytes / rq->geometry->l2_entry_size;
	meta->slice_entries_bits = qk_log2(meta->slice_entries);
	meta->n_sets = sets_for(rq->cache_bytes, meta->slice_bytes);
	if (pthread_mutex_init(&meta->l1_lock, NULL) != 0) {
		free(meta);
		return QK_FAIL_NOMEM(err);
	}
	if (pthread_mutex_init(&meta->sets_lock, NULL) != 0) {
		(void)pthread_mutex_destroy(&meta->l1_lock);
		free(meta);
		return QK_FAIL_NOMEM(err);
	}
	*out = meta;
	return QCOW_OK;
}

static void free_sets(struct set *sets, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		for (unsigned w = 0; w < WAYS; w++)
			free((void *)atomic_load_explicit(
				&sets[i].slots[w].words, memory_order_relaxed));
		(void)pthread_mutex_destroy(&sets[i].lock);
	}
	free(sets);
}

void qk_meta_free(struct qk_meta *meta)
{
	if (meta == NULL)
		return;
	struct set *sets = atomic_load_explicit(&meta->sets, memory_order_acquire);
	if (sets != NULL)
		free_sets(sets, meta->n_sets);
	struct l1 *l1 = atomic_load_explicit(&meta->l1, memory_order_acquire);
	while (l1 != NULL) {
		struct l1 *older = l1->older;
		free(l1);
		l1 = older;
	}
	(void)pthread_mutex_destroy(&meta->l1_lock);
	(void)pthread_mutex_destroy(&meta->sets_lock);
	free(meta);
}

static struct l1 *new_l1(uint64_t n)
{
	uint64_t bytes = n * sizeof(uint64_t) + sizeof(struct l1);
	struct l1 *l1 = qk_calloc(bytes, 1);
	if (l1 != NULL)
		l1->n = n;
	return l1;
}

/* The caller holds l1_lock. */
static enum qcow_status load_l1(struct qk_meta *meta, struct l1 **out, struct qcow_error *err)
{
	struct l1 *table QK_AUTO_FREE = new_l1(meta->l1_in_file);
	if (table == NULL)
		return QK_FAIL_NOMEM(err);
	size_t bytes = (size_t)(meta->l1_in_file * sizeof(uint64_t));
	enum qcow_status status = bytes == 0 ? QCOW_OK
					     : qcow_store_read(meta->rq.store, (void *)table->words,
						       bytes, meta->rq.l1_off, err);
	if (status != QCOW_OK) {
		if (err != NULL) {
			err->finding = QCOW_FINDING_TABLE_READ_FAILED;
			err->host_off = meta->rq.l1_off;
		}
		qk_err_context(err, "reading the L1 table at %" PRIu64, meta->rq.l1_off);
		return status;
	}
	*out = table;
	atomic_store_explicit(&meta->l1, table, memory_order_release);
	table = NULL;
	return QCOW_OK;
}

enum qcow_status qk_meta_l1(struct qk_meta *meta, bool may_block, const _Atomic uint64_t **words,
	uint64_t *n, struct qcow_error *err)
{
	enum qcow_status status = QCOW_OK;
	struct l1 *l1 = atomic_load_explicit(&meta->l1, memory_order_acquire);
	if (QK_UNLIKELY(l1 == NULL) && may_block) {
		(void)pthread_mutex_lock(&meta->l1_lock);
		l1 = atomic_load_explicit(&meta->l1, memory_order_acquire);
		if (l1 == NULL)
			status = load_l1(meta, &l1, err);
		(void)pthread_mutex_unlock(&meta->l1_lock);
	}
	*words = l1 != NULL ? l1->words : NULL;
	*n = l1 != NULL ? l1->n : meta->l1_in_file;
	return status;
}

void qk_meta_l1_set(struct qk_meta *meta, uint64_t index, uint64_t raw)
{
	struct l1 *l1 = atomic_load_explicit(&meta->l1, memory_order_acquire);
	QK_ASSERT_VOID(M4, l1 != NULL && index < l1->n);
	atomic_store_explicit(&l1->words[index], __builtin_bswap64(raw), memory_order_release);
}

enum qcow_status qk_meta_l1_grow(
	struct qk_meta *meta, uint64_t off, uint64_t n, struct qcow_error *err)
{
	const _Atomic uint64_t *words = NULL;
	uint64_t old_n = 0;
	QK_TRY(qk_meta_l1(meta, true, &words, &old_n, err));
	QK_ASSERT(M4, n >= old_n);
	struct l1 *l1 = new_l1(n);
	if (l1 == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t i = 0; i < old_n; i++)
		atomic_store_explicit(&l1->words[i],
			atomic_load_explicit(&words[i], memory_order_relaxed),
			memory_order_relaxed);
	(void)pthread_mutex_lock(&meta->l1_lock);
	l1->older = atomic_load_explicit(&meta->l1, memory_order_acquire);
	meta->rq.l1_off = off;
	atomic_store_explicit(&meta->l1, l1, memory_order_release);
	(void)pthread_mutex_unlock(&meta->l1_lock);
	return QCOW_OK;
}

static enum qcow_status make_sets(struct qk_meta *meta, struct set **out, struct qcow_error *err)
{
	struct set *sets = qk_malloc_aligned(_Alignof(struct set), meta->n_sets * sizeof(*sets));
	if (sets == NULL)
		return QK_FAIL_NOMEM(err);
	memset(sets, 0, meta->n_sets * sizeof(*sets));
	for (uint32_t i = 0; i < meta->n_sets; i++) {
		if (pthread_mutex_init(&sets[i].lock, NULL) != 0) {
			free_sets(sets, i);
			return QK_FAIL_NOMEM(err);
		}
	}
	atomic_store_explicit(&meta->sets, sets, memory_order_release);
	*out = sets;
	return QCOW_OK;
}

static enum qcow_status get_sets(struct qk_meta *meta, struct set **out, struct qcow_error *err)
{
	*out = atomic_load_explicit(&meta->sets, memory_order_acquire);
	if (QK_LIKELY(*out != NULL))
		return QCOW_OK;
	(void)pthread_mutex_lock(&meta->sets_lock);
	*out = atomic_load_explicit(&meta->sets, memory_order_acquire);
	enum qcow_status status = *out != NULL ? QCOW_OK : make_sets(meta, out, err);
	(void)pthread_mutex_unlock(&meta->sets_lock);
	return status;
}

/* Neighbouring slices go to neighbouring sets; tables that are far apart to any. */
static struct set *set_of(const struct qk_meta *meta, struct set *sets, uint64_t slice_off)
{
	uint64_t key = slice_off / meta->slice_bytes;
	return &sets[(key ^ (key >> 16)) & (meta->n_sets - 1)];
}

/* Note the slot's sequence count where it holds `tag` and nobody is changing it. */
static bool try_slot(struct slot *slot, uint64_t tag, struct qk_slice *out)
{
	if (atomic_load_explicit(&slot->tag, memory_order_relaxed) != tag)
		return false;
	uint32_t sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
	if ((sequence & 1) != 0 || atomic_load_explicit(&slot->tag, memory_order_acquire) != tag)
		return false;
	if (!atomic_load_explicit(&slot->is_recent, memory_order_relaxed))
		atomic_store_explicit(&slot->is_recent, true, memory_order_relaxed);
	out->words = atomic_load_explicit(&slot->words, memory_order_acquire);
	out->sequence_at = &slot->sequence;
	out->sequence = sequence;
	return true;
}

static bool find(struct set *set, uint64_t tag, struct qk_slice *out)
{
	for (unsigned w = 0; w < WAYS; w++)
		if (try_slot(&set->slots[w], tag, out))
			return true;
	return false;
}

bool qk_slice_is_whole(const struct qk_slice *slice)
{
	return atomic_load_explicit(slice->sequence_at, memory_order_relaxed) == slice->sequence;
}

/* A slot to replace: the first empty one, else the first that was not looked at since the hand last
 * passed. The caller holds the set's lock. */
static struct slot *victim(struct set *set)
{
	for (unsigned i = 0; i < 2 * WAYS; i++) {
		struct slot *slot = &set->slots[set->hand];
		set->hand = (set->hand + 1) % WAYS;
		if (!atomic_exchange_explicit(&slot->is_recent, false, memory_order_relaxed))
			return slot;
	}
	return &set->slots[set->hand];
}

/* Put `bytes` of `data` into the slot. The caller holds the set's lock. */
static void fill_slot(struct slot *slot, uint64_t tag, const uint64_t *data, uint32_t bytes)
{
	_Atomic uint64_t *words = atomic_load_explicit(&slot->words, memory_order_relaxed);
	uint32_t sequence = atomic_load_explicit(&slot->sequence, memory_order_relaxed);
	atomic_store_explicit(&slot->sequence, sequence + 1, memory_order_relaxed);
	atomic_store_explicit(&slot->tag, tag, memory_order_release);
	for (uint32_t i = 0; i < bytes / sizeof(uint64_t); i++)
		atomic_store_explicit(&words[i], data[i], memory_order_release);
	atomic_store_explicit(&slot->sequence, sequence + 2, memory_order_release);
}

/* Read the slice at `off` into a slot of `set`. The caller holds the set's lock. */
static enum qcow_status load_slice(
	struct qk_meta *meta, struct set *set, uint64_t off, struct qcow_error *err)
{
	uint64_t data[SLICE_BYTES / sizeof(uint64_t)];
	enum qcow_status status = qcow_store_read_padded(
		meta->rq.store, data, meta->slice_bytes, off, err);
	if (status != QCOW_OK) {
		if (err != NULL) {
			err->finding = QCOW_FINDING_TABLE_READ_FAILED;
			err->host_off = off;
		}
		qk_err_context(err, "reading the L2 table at %" PRIu64, off);
		return status;
	}
	struct slot *slot = victim(set);
	if (atomic_load_explicit(&slot->words, memory_order_relaxed) == NULL) {
		_Atomic uint64_t *words = qk_malloc_aligned(64, meta->slice_bytes);
		if (words == NULL)
			return QK_FAIL_NOMEM(err);
		atomic_store_explicit(&slot->words, words, memory_order_release);
	}
	fill_slot(slot, off | 1, data, meta->slice_bytes);
	return QCOW_OK;
}

static enum qcow_status miss(struct qk_meta *meta, struct set *set, uint64_t off,
	struct qk_slice *out, struct qcow_error *err)
{
	enum qcow_status status = QCOW_OK;
	(void)pthread_mutex_lock(&set->lock);
	if (!find(set, off | 1, out)) {
		status = load_slice(meta, set, off, err);
		if (status == QCOW_OK && !find(set, off | 1, out)) {
			qk_bug(QK_SITE, "M2", "a slice that was just loaded is found");
			status = QCOW_E_BUG;
		}
	}
	(void)pthread_mutex_unlock(&set->lock);
	return status;
}

enum qcow_status qk_meta_slice(struct qk_meta *meta, uint64_t l2_off, uint32_t index,
	bool may_block, struct qk_slice *out, struct qcow_error *err)
{
	struct set *sets = NULL;
	QK_TRY(get_sets(meta, &sets, err));
	uint64_t number = index >> meta->slice_entries_bits;
	uint64_t off = l2_off + number * meta->slice_bytes;
	QK_ASSERT(M3, index < meta->rq.geometry->l2_entries && (off & 1) == 0);
	struct set *set = set_of(meta, sets, off);
	out->first = (uint32_t)(number << meta->slice_entries_bits);
	out->n_entries = meta->slice_entries;
	out->words = NULL;
	if (QK_LIKELY(find(set, off | 1, out)) || !may_block)
		return QCOW_OK;
	return miss(meta, set, off, out, err);
}

/* ---- writing ---- */

/* The slot that holds the slice at `off`, or NULL. The caller holds the set's lock. */
static struct slot *held_slot(struct set *set, uint64_t off)
{
	for (unsigned w = 0; w < WAYS; w++)
		if (atomic_load_explicit(&set->slots[w].tag, memory_order_relaxed) == (off | 1))
			return &set->slots[w];
	return NULL;
}

/* Change words of a slot, or empty it where `words` is NULL. The caller holds the set's lock. */
static void change_slot(struct slot *slot, uint64_t first, const uint64_t *words, uint32_t n_words)
{
	_Atomic uint64_t *to = atomic_load_explicit(&slot->words, memory_order_relaxed);
	uint32_t sequence = atomic_load_explicit(&slot->sequence, memory_order_relaxed);
	atomic_store_explicit(&slot->sequence, sequence + 1, memory_order_relaxed);
	if (words == NULL)
		atomic_store_explicit(&slot->tag, 0, memory_order_release);
	for (uint32_t i = 0; words != NULL && i < n_words; i++)
		atomic_store_explicit(&to[first + i], words[i], memory_order_release);
	atomic_store_explicit(&slot->sequence, sequence + 2, memory_order_release);
}

enum qcow_status qk_meta_write(struct qk_meta *meta, uint64_t off, const uint64_t *words,
	uint32_t n_words, struct qcow_error *err)
{
	struct set *sets = NULL;
	QK_TRY(get_sets(meta, &sets, err));
	uint64_t slice_off = qk_align_down(off, meta->slice_bytes);
	uint64_t first = (off - slice_off) / sizeof(uint64_t);
	size_t bytes = n_words * sizeof(uint64_t);
	QK_ASSERT(M5, off - slice_off + bytes <= meta->slice_bytes);
	struct set *set = set_of(meta, sets, slice_off);
	/* under the lock: else who misses the slice meanwhile reads it before the write and keeps it */
	(void)pthread_mutex_lock(&set->lock);
	enum qcow_status status = qcow_store_write(meta->rq.store, words, bytes, off, err);
	struct slot *slot = held_slot(set, slice_off);
	if (slot != NULL)
		change_slot(slot, first, status == QCOW_OK ? words : NULL, n_words);
	(void)pthread_mutex_unlock(&set->lock);
	return status;
}

void qk_meta_forget(struct qk_meta *meta, uint64_t l2_off)
{
	struct set *sets = atomic_load_explicit(&meta->sets, memory_order_acquire);
	uint64_t end = l2_off + meta->rq.geometry->cluster_size;
	for (uint64_t off = l2_off; sets != NULL && off < end; off += meta->slice_bytes) {
		struct set *set = set_of(meta, sets, off);
		(void)pthread_mutex_lock(&set->lock);
		struct slot *slot = held_slot(set, off);
		if (slot != NULL)
			change_slot(slot, 0, NULL, 0);
		(void)pthread_mutex_unlock(&set->lock);
	}
}

uint32_t qk_meta_slice_bytes(const struct qk_meta *meta)
{
	return meta->slice_bytes;
}
