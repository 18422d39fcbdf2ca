/* SPDX-License-Identifier: MIT */
/*
 * track: persistent bitmaps of an image that is open for writing. An enabled bitmap (auto, not in use) records
 * every write, zero and discard from the open on; the others stay as they are.
 *
 *	first change	in use is set in the directory, in place || the change
 *	close		changed data, tables and a new directory in fresh clusters || its place in the header || the old
 *			ones are freed
 *
 * New bits are kept apart from the stored ones, which nobody loads before the close: an open costs nothing, and data
 * clusters without a new bit stay where they are. Memory: a bit for each granule, touched where something changes, at
 * most QK_TRACK_BYTES for a bitmap and QK_TRACK_TOTAL_BYTES for all.
 *
 * A bitmap that is not marked in use is a superset of the changes since it was made, in every crash state.
 * Specification: "Bitmaps".
 */
#ifndef QK_ENGINE_TRACK_H
#define QK_ENGINE_TRACK_H

#include <qcowkit/qcowkit.h>

#include "base/num.h"
#include "engine/image.h"
#include "engine/rw.h"

#define QK_TRACK_BYTES	     QK_MIB(512) /* 2^32 granules, as many as QEMU tracks */
#define QK_TRACK_TOTAL_BYTES QK_MIB(1024)

struct qk_track_bitmap {
	uint32_t index; /* in the directory */
	uint32_t table_entries;
	unsigned granularity_bits;
	uint32_t flags; /* as stored at open */
	uint64_t n_bits;
	uint64_t table_off;
	_Atomic uint64_t *words; /* changed since the open; bit i of word w: granule 64 w + i */
};

struct qk_track {
	_Atomic bool is_in_use; /* the marks in the directory are stable */
	_Atomic bool may_be_marked; /* some were written, or may have been */
	pthread_mutex_t lock; /* of setting them */
	uint32_t n;
	struct qk_track_bitmap *bitmaps; /* by index */
};

/* *out stays NULL where no bitmap is enabled. QCOW_E_UNSUPPORTED: an enabled bitmap that may not be used; QCOW_E_LIMIT:
 * too many granules; QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status qk_track_new(
	struct qcow_image *image, struct qk_track **out, struct qcow_error *err) QK_MUST_USE;
void qk_track_free(struct qk_track *track);

enum qcow_status qk_track_mark_bits(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err) QK_MUST_USE;

/* Before the guest's bytes [off, off + len) change. The first call writes and flushes; the caller holds no lock and is in
 * no epoch. Any thread. Errors of the store: nothing may be changed. */
static inline enum qcow_status qk_track_mark(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	if (QK_LIKELY(image->rw->track == NULL) || len == 0)
		return QCOW_OK;
	return qk_track_mark_bits(image, off, len, err);
}

/* Would qk_track_mark write? */
static inline bool qk_track_would_block(const struct qcow_image *image)
{
	const struct qk_track *t = image->rw->track;
	return t != NULL && !atomic_load_explicit(&t->is_in_use, memory_order_acquire);
}

/* Are there marks in the directory that qk_track_store would take away? */
static inline bool qk_track_is_in_use(const struct qcow_image *image)
{
	const struct qk_track *t = image->rw->track;
	return t != NULL && atomic_load_explicit(&t->may_be_marked, memory_order_acquire);
}

/* The bitmap with this index in the directory, or NULL where it is not tracked. */
const struct qk_track_bitmap *qk_track_find(const struct qcow_image *image, uint32_t index);

/* How many of the bits [at, end) are alike, and which. end > at. */
uint64_t qk_track_run(const struct qk_track_bitmap *b, uint64_t at, uint64_t end, bool *is_set);

/* Or bits [first, first + n) of it into p. `first` is a multiple of 8, and first + n is at most n_bits. */
void qk_track_or(const struct qk_track_bitmap *b, uint64_t first, uint64_t n, uint8_t *p);

/* With nobody writing, after the last publication: the bitmaps as they are become stable and are no longer in use. The
 * image's lists do not follow: read the header again, and track anew. Where one cannot be stored all are as before.
 * A failure of the store from the switch on fences, and the old and the new clusters both stay. */
enum qcow_status qk_track_store(struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;

/* The same at the close; but a bitmap that cannot be stored stays in use, which the log tells, and the others are stored.
 * Answers the first such failure. */
enum qcow_status qk_track_close(struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;

#endif
