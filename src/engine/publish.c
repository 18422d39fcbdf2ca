/* SPDX-License-Identifier: MIT */
/*
 * publish: see publish.h. The order, of which doc/ARCHITECTURE.md has the why:
 *
 *	refcounts; changed sectors of L2 tables that no L1 entry on the disk names
 *	  || flush of the data file, if there is one, then of the image: with them the data, the new tables, the length
 *	refcount table entries, where refcount blocks are new || flush
 *	changed sectors of the other L2 tables; L1 entries
 *	  || flush
 *	one reference less for what was unlinked, once no reader is left
 *
 * Where nothing points to anything new the first flush is left out, where nothing is staged all but one flush.
 *
 * Sharing: a call notes how many publications have begun. Once it has the lock, a publication that began after
 * that and ended well has done its work.
 *
 * Invariants: U1 l1_disk is what the disk's L1 table holds, or may hold where a publication failed; U2 a failure opens the
 * generation again, and nothing that was unlinked is dropped before a later publication is through; a recovery
 * after a failed flush keeps of it what the disk may name, and no more;
 * U3 where an L2 table is new, its L1 entry is of the same generation or an earlier one.
 * Locking: lock, across I/O. The publishing generation belongs to who holds it.
 */
#include "engine/publish.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "engine/compress.h"
#include "engine/data_file.h"
#include "engine/decode.h"
#include "engine/group.h"
#include "engine/image.h"
#include "engine/locks.h"
#include "engine/meta.h"
#include "engine/rw.h"
#include "engine/space.h"
#include "engine/stage.h"
#include "format/l1l2.h"

#define SECTOR_WORDS (QK_SECTOR / sizeof(uint64_t))

struct qk_publish {
	struct qcow_image *image;
	pthread_mutex_t lock;
	_Atomic uint64_t n_begun;
	uint64_t done; /* number of the last that ended well; guarded by lock */
	bool is_lost; /* a flush has failed: what was written since the one before may be gone; guarded by lock */
	uint64_t *l1_disk; /* big endian */
	uint64_t n_l1;
	struct growth {
		struct qk_space_run run;
		uint64_t *words; /* NULL: none; owned */
		uint64_t n;
	} growth; /* of L1: the table is stable, the header may name it or the old one */
};

/* One publication. */
struct job {
	struct qk_publish *p;
	struct qk_stage *stage;
	bool is_recovery; /* write again what an earlier one may have lost */
	bool is_stable; /* the flush for what the entries point to is done, that of the data file with it */
	bool is_named; /* entries are being written: what they point to is stable */
	struct qk_chunk **chunks; /* by place in the file */
	uint64_t n_chunks;
	struct qk_pair *l1; /* index and entry, ascending */
	uint64_t n_l1;
};

static enum qcow_status copy_l1(struct qk_publish *p, struct qcow_error *err)
{
	const _Atomic uint64_t *words = NULL;
	uint64_t n = 0;
	QK_TRY(qk_meta_l1(p->image->meta, true, &words, &n, err));
	uint64_t *copy = qk_malloc(n, sizeof(*copy));
	if (copy == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t i = 0; i < n; i++)
		copy[i] = atomic_load_explicit(&words[i], memory_order_relaxed);
	free(p->l1_disk);
	p->l1_disk = copy;
	p->n_l1 = n;
	return QCOW_OK;
}

enum qcow_status qk_publish_reload(struct qk_publish *p, struct qcow_error *err)
{
	qk_lock(&p->lock);
	enum qcow_status status = copy_l1(p, err);
	qk_unlock(&p->lock);
	return status;
}

enum qcow_status qk_publish_new(
	struct qcow_image *image, struct qk_publish **out, struct qcow_error *err)
{
	struct qk_publish *p = qk_calloc(1, sizeof(*p));
	if (p == NULL)
		return QK_FAIL_NOMEM(err);
	p->image = image;
	(void)pthread_mutex_init(&p->lock, NULL);
	enum qcow_status status = image->is_raw ? QCOW_OK : copy_l1(p, err);
	if (status != QCOW_OK) {
		qk_publish_free(p);
		return status;
	}
	*out = p;
	return QCOW_OK;
}

void qk_publish_free(struct qk_publish *p)
{
	if (p == NULL)
		return;
	free(p->growth.words);
	free(p->l1_disk);
	(void)pthread_mutex_destroy(&p->lock);
	free(p);
}

/* ---- failures ---- */

/* Pass `status` on. What the disk holds is not known any more, unless the store refused before it did
 * anything to what is in use. */
static enum qcow_status fence(struct qk_publish *p, enum qcow_status status,
	const struct qcow_error *own, struct qcow_error *err)
{
	if (status == QCOW_OK)
		return QCOW_OK;
	if (err != NULL)
		*err = *own;
	return qk_fence_raise(&p->image->rw->fence, status, own);
}

/* The same, but a want of room or memory fences nothing: the generation is open again. A flush that failed in there is like any other. */
static enum qcow_status fence_io(struct qk_publish *p, enum qcow_status status,
	const struct qcow_error *own, struct qcow_error *err)
{
	if (status == QCOW_OK)
		return QCOW_OK;
	p->is_lost = qk_space_flush_failed(p->image->rw->space) || p->is_lost;
	if (p->is_lost || (status != QCOW_E_NOSPC && status != QCOW_E_NOMEM))
		return fence(p, status, own, err);
	if (err != NULL)
		*err = *own;
	return status;
}

/* Flush the image. What a failed flush lost is not known, and it is never repeated. */
static enum qcow_status barrier_image(struct qk_publish *p, struct qcow_error *err)
{
	struct qcow_error own = QCOW_ERROR_INIT;
	enum qcow_status status = qcow_store_flush(p->image->store, &own);
	p->is_lost = p->is_lost || status != QCOW_OK;
	return fence(p, status, &own, err);
}

/* The same of both stores, the data file first. */
static enum qcow_status barrier(struct qk_publish *p, struct qcow_error *err)
{
	struct qcow_error own = QCOW_ERROR_INIT;
	if (p->image->data_store == NULL)
		return barrier_image(p, err);
	enum qcow_status status = qcow_store_flush(p->image->data_store, &own);
	p->is_lost = p->is_lost || status != QCOW_OK;
	QK_TRY(fence(p, status, &own, err));
	return barrier_image(p, err);
}

/* ---- L2 entries ---- */

static uint64_t key_of(const struct qk_chunk *chunk)
{
	return atomic_load_explicit(&chunk->key, memory_order_relaxed);
}

static uint64_t cluster_of(const struct qk_publish *p, const struct qk_chunk *chunk)
{
	return key_of(chunk) * qk_stage_entries(&p->image->geometry);
}

/* Where its sector lies in the file. */
static uint64_t sector_of(const struct qk_publish *p, const struct qk_chunk *chunk)
{
	const struct qk_geometry *g = &p->image->geometry;
	return chunk->l2_off + (cluster_of(p, chunk) & (g->l2_entries - 1)) * g->l2_entry_size;
}

/* Does the disk's L1 table name the chunk's L2 table, or may it? */
static bool is_linked(const struct qk_publish *p, const struct qk_chunk *chunk)
{
	uint64_t index = cluster_of(p, chunk) >> p->image->geometry.l2_bits;
	QK_ASSERT_VOID(U1, index < p->n_l1);
	return (__builtin_bswap64(p->l1_disk[index]) & QK_OFFSET_MASK) == chunk->l2_off;
}

static int by_place(const void *a, const void *b)
{
	const struct qk_chunk *x = *(struct qk_chunk *const *)a;
	const struct qk_chunk *y = *(struct qk_chunk *const *)b;
	if (x->l2_off != y->l2_off)
		return x->l2_off < y->l2_off ? -1 : 1;
	return key_of(x) < key_of(y) ? -1 : key_of(x) > key_of(y);
}

static enum qcow_status write_sectors(struct qk_publish *p, const uint64_t *words,
	uint32_t n_sectors, uint64_t off, struct qcow_error *err)
{
	QK_TRY(qk_space_check_overlap(
		p->image->rw->space, QK_SPACE_L2, off, (uint64_t)n_sectors * QK_SECTOR, err));
	return qk_meta_write(p->image->meta, off, words, n_sectors * QK_STAGE_WORDS, err);
}

/* Write the sectors of the chunks that are linked, or of those that are not; neighbours in one slice together. */
static enum qcow_status write_chunks(const struct job *job, bool linked, struct qcow_error *err)
{
	uint64_t words[8 * QK_STAGE_WORDS];
	uint32_t slice_bytes = qk_meta_slice_bytes(job->p->image->meta);
	uint64_t start = 0;
	uint32_t n = 0;
	for (uint64_t i = 0; i < job->n_chunks; i++) {
		const struct qk_chunk *chunk = job->chunks[i];
		uint64_t at = sector_of(job->p, chunk);
		if (is_linked(job->p, chunk) != linked)
			continue;
		bool goes_on = n != 0 && at == start + (uint64_t)n * QK_SECTOR &&
			       !qk_is_aligned(at, slice_bytes);
		if (!goes_on && n != 0) {
			QK_TRY(write_sectors(job->p, words, n, start, err));
			n = 0;
		}
		if (n == 0)
			start = at;
		memcpy(words + (size_t)n * QK_STAGE_WORDS, chunk->disk, sizeof(chunk->disk));
		n++;
	}
	return n != 0 ? write_sectors(job->p, words, n, start, err) : QCOW_OK;
}

/* ---- L1 entries ---- */

static int by_index(const void *a, const void *b)
{
	const struct qk_pair *x = a, *y = b;
	return x->a < y->a ? -1 : x->a > y->a;
}

/* Write the sectors of the L1 table that hold the job's entries. */
static enum qcow_status write_l1(const struct job *job, struct qcow_error *err)
{
	struct qk_publish *p = job->p;
	struct qcow_image *image = p->image;
	for (uint64_t i = 0; i < job->n_l1; i++) {
		QK_ASSERT(U1, job->l1[i].a < p->n_l1);
		p->l1_disk[job->l1[i].a] = __builtin_bswap64(job->l1[i].b);
	}
	for (uint64_t i = 0; i < job->n_l1;) {
		uint64_t first = qk_align_down(job->l1[i].a, SECTOR_WORDS);
		uint64_t end = first + SECTOR_WORDS;
		for (i++; i < job->n_l1 && job->l1[i].a < end + SECTOR_WORDS; i++)
			end = qk_align_down(job->l1[i].a, SECTOR_WORDS) + SECTOR_WORDS;
		end = qk_min(end, p->n_l1);
		uint64_t off = image->l1_off + first * sizeof(uint64_t);
		size_t bytes = (size_t)(end - first) * sizeof(uint64_t);
		QK_TRY(qk_space_check_overlap(image->rw->space, QK_SPACE_L1, off, bytes, err));
		QK_TRY(qcow_store_write(image->store, p->l1_disk + first, bytes, off, err));
	}
	return QCOW_OK;
}

/* ---- after a failed flush ---- */

static bool is_kept(void *ctx, const struct qk_chunk *chunk)
{
	return is_linked(ctx, chunk);
}

/* What a failed flush lost cannot be read back: the host may have dropped it, and a cluster would show what it held
 * before. So all goes that the disk cannot name yet: readers see the old mapping again. Nobody writes meanwhile. What
 * was taken for it leaks until the next open. */
static void forget_lost(struct qk_publish *p)
{
	struct qk_stage *stage = p->image->rw->stage;
	bool reverted = qk_stage_forget(stage, is_kept, p);
	for (struct qk_pairs_block *b = stage->open.l1.first; b != NULL; b = b->next)
		for (uint32_t i = 0; i < b->n; i++) {
			uint64_t index = b->v[i].a, raw = __builtin_bswap64(p->l1_disk[index]);
			reverted = reverted || b->v[i].b != raw;
			b->v[i].b = raw;
			qk_meta_l1_set(p->image->meta, index, raw);
		}
	if (reverted) /* the old mapping refers to it */
		qk_pairs_release(&stage->open.unlinked);
}

/* The length of the file may be lost as well. */
static enum qcow_status restore_length(const struct job *job, struct qcow_error *err)
{
	struct qcow_image *image = job->p->image;
	struct qcow_store_caps caps;
	uint64_t size = 0;
	qcow_store_caps(image->store, &caps);
	if (!caps.can_grow)
		return QCOW_OK;
	/* to truncate to the length it has would do nothing */
	QK_TRY(qcow_store_size(image->store, &size, err));
	return qcow_store_truncate(image->store, size + image->geometry.cluster_size, err);
}

/* That of a data file as well, which must not become longer than the disk. */
static enum qcow_status restore_data_length(const struct job *job, struct qcow_error *err)
{
	struct qcow_store *store = job->p->image->data_store;
	struct qcow_store_caps caps;
	uint64_t size = 0;
	if (store == NULL)
		return QCOW_OK;
	qcow_store_caps(store, &caps);
	if (!caps.can_grow)
		return QCOW_OK;
	QK_TRY(qcow_store_size(store, &size, err));
	QK_TRY(qcow_store_truncate(store, size + 1, err));
	return qcow_store_truncate(store, size, err);
}

/* Does the disk hold what was written? */
static enum qcow_status verify(const struct job *job, struct qcow_error *err)
{
	struct qk_publish *p = job->p;
	for (uint64_t i = 0; i < job->n_chunks; i++) {
		uint64_t words[QK_STAGE_WORDS];
		uint64_t at = sector_of(p, job->chunks[i]);
		QK_TRY(qcow_store_read(p->image->store, words, sizeof(words), at, err));
		if (memcmp(words, job->chunks[i]->disk, sizeof(words)) != 0)
			return QK_FAIL_AT(err, QCOW_E_IO, 0, at, QCOW_NO_OFFSET,
				"the L2 entries at %" PRIu64 " are not what was written there", at);
	}
	for (uint64_t i = 0; i < job->n_l1; i++) {
		uint64_t word = 0;
		uint64_t at = p->image->l1_off + job->l1[i].a * sizeof(word);
		QK_TRY(qcow_store_read(p->image->store, &word, sizeof(word), at, err));
		if (word != p->l1_disk[job->l1[i].a])
			return QK_FAIL_AT(err, QCOW_E_IO, 0, at, QCOW_NO_OFFSET,
				"the L1 entry at %" PRIu64 " is not what was written there", at);
	}
	return QCOW_OK;
}

/* ---- one publication ---- */

static enum qcow_status collect(struct job *job, struct qcow_error *err)
{
	const struct qk_stage_generation *generation = &job->stage->publishing;
	job->chunks = qk_malloc(generation->n_chunks, sizeof(struct qk_chunk *));
	job->l1 = qk_malloc(generation->l1.n, sizeof(*job->l1));
	if (job->chunks == NULL || job->l1 == NULL)
		return QK_FAIL_NOMEM(err);
	for (struct qk_chunk *c = generation->chunks; c != NULL; c = c->next_publishing)
		job->chunks[job->n_chunks++] = c;
	QK_ASSERT(G1, job->n_chunks == generation->n_chunks);
	for (const struct qk_pairs_block *b = generation->l1.first; b != NULL; b = b->next)
		for (uint32_t i = 0; i < b->n; i++)
			job->l1[job->n_l1++] = b->v[i];
	qsort(job->chunks, job->n_chunks, sizeof(*job->chunks), by_place);
	qsort(job->l1, job->n_l1, sizeof(*job->l1), by_index);
	return QCOW_OK;
}

/* All that the entries will point to. */
static enum qcow_status make_targets_stable(struct job *job, struct qcow_error *err)
{
	struct qk_publish *p = job->p;
	struct qk_space *space = p->image->rw->space;
	struct qcow_error own = QCOW_ERROR_INIT;
	bool needs_link = false;
	if (job->is_recovery)
		QK_TRY(restore_length(job, err));
	if (job->is_recovery)
		QK_TRY(restore_data_length(job, err));
	QK_TRY(fence_io(p, qk_space_publish_begin(space, &needs_link, &own), &own, err));
	QK_TRY(write_chunks(job, false, err));
	QK_TRY(barrier(p, err));
	job->is_stable = true;
	if (!needs_link)
		return QCOW_OK;
	QK_TRY(fence_io(p, qk_space_publish_link(space, &own), &own, err));
	return barrier_image(p, err);
}

static enum qcow_status write_entries(const struct job *job, struct qcow_error *err)
{
	struct qk_publish *p = job->p;
	struct qcow_error own = QCOW_ERROR_INIT;
	/* where the host has no room, each sector is the old one or the new one: both are whole, and all is written again */
	QK_TRY(fence_io(p, write_chunks(job, true, &own), &own, err));
	QK_TRY(fence_io(p, write_l1(job, &own), &own, err));
	QK_TRY(job->is_stable ? barrier_image(p, err) : barrier(p, err));
	return job->is_recovery ? verify(job, err) : QCOW_OK;
}

static enum qcow_status write_generation(struct job *job, struct qcow_error *err)
{
	bool needs_barrier = job->stage->publishing.needs_barrier || job->is_recovery ||
			     qk_space_wants_publish(job->p->image->rw->space);
	QK_TRY(collect(job, err));
	if (job->n_chunks == 0 && job->n_l1 == 0 && !needs_barrier)
		return barrier(job->p, err);
	if (needs_barrier)
		QK_TRY(make_targets_stable(job, err));
	for (uint64_t i = 0; !needs_barrier && i < job->n_chunks; i++)
		QK_ASSERT(U3, is_linked(job->p, job->chunks[i]));
	job->is_named = true;
	QK_TRY(write_entries(job, err));
	if (needs_barrier) {
		qk_space_publish_done(job->p->image->rw->space);
		/* a new refcount table may have made the file longer */
		qk_rw_follow_size(job->p->image);
	}
	return QCOW_OK;
}

/* ---- what was unlinked ---- */

/* Streams may share a cluster: what was decoded, and where the next one would go, is forgotten first. `at`: an offset with
 * its qk_freed bits. */
static enum qcow_status drop_run(struct qk_publish *p, uint64_t at, uint64_t n)
{
	struct qcow_image *image = p->image;
	uint64_t off = at & ~(uint64_t)QK_FREED_BITS;
	qk_compress_forget(image, off, n);
	qk_decode_forget(image->decode, off, n * image->geometry.cluster_size);
	return qk_space_drop_for(image->rw->space, (unsigned)(at & QK_FREED_BITS), off, n, NULL);
}

/* Drop the pairs from the first on, neighbours together, and mark what was dropped. */
static enum qcow_status drop_pairs(struct qk_publish *p, struct qk_pairs *pairs)
{
	uint64_t cluster_size = p->image->geometry.cluster_size;
	for (struct qk_pairs_block *block = pairs->first; block != NULL; block = block->next) {
		for (uint32_t i = 0; i < block->n;) {
			uint64_t n = block->v[i].b;
			uint32_t k = i + 1;
			if ((block->v[i].a & QK_FREED_KEPT) != 0) {
				if (n != 0)
					qk_group_punch(p->image, &block->v[i]);
				block->v[i++].b = 0;
				continue;
			}
			while (k < block->n && block->v[k].a == block->v[i].a + n * cluster_size)
				n += block->v[k++].b;
			if (n != 0)
				QK_TRY(drop_run(p, block->v[i].a, n));
			while (i < k)
				block->v[i++].b = 0;
		}
	}
	return QCOW_OK;
}

/* Nothing on the disk names them any more. What cannot be dropped now waits for the next publication; a leak at worst. */
static void drop_unlinked(struct qk_publish *p)
{
	struct qk_rw *rw = p->image->rw;
	struct qk_pairs unlinked;
	qk_stage_published(rw->stage, &unlinked);
	if (unlinked.n == 0)
		return;
	qk_epoch_wait(rw->epoch);
	qk_data_file_take(p->image, &unlinked);
	if (drop_pairs(p, &unlinked) != QCOW_OK)
		qk_stage_defer(rw->stage, &unlinked);
	else
		qk_pairs_release(&unlinked);
}

/* Under the lock. */
static enum qcow_status publish(struct qk_publish *p, bool is_recovery, struct qcow_error *err)
{
	struct job job = {.p = p, .stage = p->image->rw->stage, .is_recovery = is_recovery};
	if (job.stage == NULL)
		return barrier(p, err);
	qk_compress_seal(p->image);
	qk_stage_swap(job.stage);
	enum qcow_status status = write_generation(&job, err);
	if (status == QCOW_OK)
		drop_unlinked(p);
	else
		qk_stage_reopen(job.stage, job.is_named);
	free(job.chunks);
	free(job.l1);
	return status;
}

enum qcow_status qk_publish_flush(struct qk_publish *p, struct qcow_error *err)
{
	uint64_t seen = atomic_load(&p->n_begun);
	enum qcow_status status = QCOW_OK;
	qk_lock(&p->lock);
	if (p->done <= seen) {
		uint64_t mine = atomic_fetch_add(&p->n_begun, 1) + 1;
		status = qk_fence_check(&p->image->rw->fence, err);
		if (status == QCOW_OK)
			status = publish(p, false, err);
		if (status == QCOW_OK)
			p->done = mine;
	}
	qk_unlock(&p->lock);
	return status;
}

/* ---- growth of L1 ---- */

/* Whatever was taken: its refcounts, and what was written to it. */
static enum qcow_status make_taken_stable(struct qk_publish *p, struct qcow_error *err)
{
	struct qk_space *space = p->image->rw->space;
	struct qcow_error own = QCOW_ERROR_INIT;
	bool needs_link = false;
	QK_TRY(fence_io(p, qk_space_publish_begin(space, &needs_link, &own), &own, err));
	QK_TRY(barrier(p, err));
	if (!needs_link)
		return QCOW_OK;
	QK_TRY(fence_io(p, qk_space_publish_link(space, &own), &own, err));
	return barrier(p, err);
}

enum qcow_status qk_publish_taken(struct qk_publish *p, struct qcow_error *err)
{
	qk_lock(&p->lock);
	enum qcow_status status = qk_fence_check(&p->image->rw->fence, err);
	if (status == QCOW_OK)
		status = make_taken_stable(p, err);
	if (status == QCOW_OK)
		qk_space_publish_done(p->image->rw->space);
	qk_unlock(&p->lock);
	if (status == QCOW_OK)
		qk_rw_follow_size(p->image);
	return status;
}

enum qcow_status qk_publish_barrier(struct qk_publish *p, struct qcow_error *err)
{
	qk_lock(&p->lock);
	enum qcow_status status = qk_fence_check(&p->image->rw->fence, err);
	if (status == QCOW_OK)
		status = barrier(p, err);
	qk_unlock(&p->lock);
	return status;
}

/* The new table with the old entries, at `run`, stable with its refcounts. */
static enum qcow_status write_grown(struct qk_publish *p, const struct qk_space_run *run,
	const uint64_t *words, struct qcow_error *err)
{
	struct qcow_image *image = p->image;
	size_t bytes = (size_t)(run->n * image->geometry.cluster_size);
	QK_TRY(qcow_store_write(image->store, words, bytes, run->off, err));
	return make_taken_stable(p, err);
}

/* Header bytes 36-47: entries, offset. */
static enum qcow_status switch_l1(
	struct qk_publish *p, uint64_t off, uint32_t n, struct qcow_error *err)
{
	uint8_t bytes[12];
	const struct qk_header_patch patch = {.off = 36, .len = sizeof(bytes), .bytes = bytes};
	struct qcow_error own = QCOW_ERROR_INIT;
	qk_store32(bytes, n);
	qk_store64(bytes + 4, off);
	QK_TRY(fence_io(p, qk_space_write_header(p->image->rw->space, &patch, &own), &own, err));
	return barrier(p, err);
}

/* The switch is stable: follow it in memory, and let the old table go. */
static enum qcow_status follow_l1(
	struct qk_publish *p, const struct qk_space_run *run, uint64_t n, struct qcow_error *err)
{
	struct qcow_image *image = p->image;
	struct qk_space *space = image->rw->space;
	uint64_t old_off = image->l1_off;
	uint64_t old_n = qk_div_up(
		(uint64_t)image->l1_entries * sizeof(uint64_t), image->geometry.cluster_size);
	qk_space_publish_done(space);
	qk_space_l1_moved(space, run->off, n * sizeof(uint64_t));
	image->l1_off = run->off;
	image->l1_entries = (uint32_t)n;
	image->header.l1_off = run->off;
	image->header.l1_entries = (uint32_t)n;
	return old_n != 0 && old_off != 0 ? qk_space_drop(space, old_off, old_n, err) : QCOW_OK;
}

/* Switch to the table of p->growth. A failure that leaves the header uncertain puts the fence up, and a recovery goes on
 * here; else the growth is given up, and what was taken for it leaks until the next open. */
static enum qcow_status finish_growth(struct qk_publish *p, struct qcow_error *err)
{
	struct growth growth = p->growth;
	struct qcow_error own = QCOW_ERROR_INIT;
	enum qcow_status status = switch_l1(p, growth.run.off, (uint32_t)growth.n, err);
	if (status == QCOW_OK)
		status = fence(p, qk_meta_l1_grow(p->image->meta, growth.run.off, growth.n, &own),
			&own, err);
	if (status != QCOW_OK && qk_fence_check(&p->image->rw->fence, NULL) != QCOW_OK)
		return status;
	p->growth = (struct growth){0};
	if (status != QCOW_OK) {
		free(growth.words);
		return status;
	}
	free(p->l1_disk);
	p->l1_disk = growth.words;
	p->n_l1 = growth.n;
	return follow_l1(p, &growth.run, growth.n, err);
}

/* ---- recovery ---- */

enum qcow_status qk_publish_recover(struct qk_publish *p, struct qcow_error *err)
{
	struct qk_rw *rw = p->image->rw;
	enum qcow_status status = QCOW_OK;
	for (unsigned i = 0; i < QK_STRIPES; i++)
		qk_lock(&rw->stripes[i]);
	qk_lock(&p->lock);
	if (qk_fence_check(&rw->fence, NULL) != QCOW_OK) {
		qk_epoch_wait(rw->epoch);
		if (rw->space != NULL)
			status = qk_space_recover(rw->space, err);
		if (rw->space != NULL)
			p->is_lost = qk_space_flush_failed(rw->space) || p->is_lost;
		if (status == QCOW_OK && p->growth.words != NULL)
			status = finish_growth(p, err);
		if (status == QCOW_OK && rw->stage != NULL && p->is_lost)
			forget_lost(p);
		if (status == QCOW_OK)
			status = publish(p, true, err);
		if (status == QCOW_OK)
			p->is_lost = false;
		if (status == QCOW_OK)
			qk_fence_lift(&rw->fence);
	}
	qk_unlock(&p->lock);
	for (unsigned i = 0; i < QK_STRIPES; i++)
		qk_unlock(&rw->stripes[i]);
	return status;
}

/* ---- the beginning of a growth ---- */

/* Under the lock, with nothing staged. */
static enum qcow_status grow(struct qk_publish *p, uint64_t n, struct qcow_error *err)
{
	struct qcow_image *image = p->image;
	uint64_t clusters = qk_div_up(n * sizeof(uint64_t), image->geometry.cluster_size);
	const struct qk_space_want want = {.n = clusters, .min_n = clusters, .kind = QK_SPACE_L1};
	struct qk_space_run run = {0};
	uint64_t *words = qk_calloc(clusters, (size_t)image->geometry.cluster_size);
	if (words == NULL)
		return QK_FAIL_NOMEM(err);
	memcpy(words, p->l1_disk, (size_t)(p->n_l1 * sizeof(*words)));
	enum qcow_status status = qk_space_take(image->rw->space, &want, &run, err);
	if (status == QCOW_OK)
		qk_rw_follow_size(image);
	if (status == QCOW_OK)
		status = write_grown(p, &run, words, err);
	if (status != QCOW_OK) {
		/* taken for good: the refcounts may be on the disk */
		free(words);
		return status;
	}
	p->growth = (struct growth){run, words, n};
	return finish_growth(p, err);
}

enum qcow_status qk_publish_grow_l1(struct qk_publish *p, uint64_t n, struct qcow_error *err)
{
	qk_lock(&p->lock);
	(void)atomic_fetch_add(&p->n_begun, 1);
	enum qcow_status status = qk_fence_check(&p->image->rw->fence, err);
	if (status == QCOW_OK)
		status = publish(p, false, err);
	if (status == QCOW_OK)
		status = grow(p, n, err);
	qk_unlock(&p->lock);
	return status;
}

/* ---- metadata of others ---- */

enum qcow_status qk_publish_through(struct qk_publish *p, bool has_targets,
	enum qcow_status (*write)(void *ctx, struct qcow_error *err), void *ctx,
	struct qcow_error *err)
{
	struct qcow_error own = QCOW_ERROR_INIT;
	qk_lock(&p->lock);
	enum qcow_status status = qk_fence_check(&p->image->rw->fence, err);
	if (status == QCOW_OK && has_targets)
		status = make_taken_stable(p, err);
	if (status == QCOW_OK)
		status = has_targets ? fence(p, write(ctx, &own), &own, err)
				     : fence_io(p, write(ctx, &own), &own, err);
	if (status == QCOW_OK)
		status = barrier(p, err);
	if (status == QCOW_OK && has_targets)
		qk_space_publish_done(p->image->rw->space);
	qk_unlock(&p->lock);
	return status;
}
