/* SPDX-License-Identifier: MIT */
/*
 * track: see track.h. What changes while the image is open: the new bits, and the marks in the directory.
 * track_store.c has the close.
 *
 * Invariants: I1 a bit of `words` is below n_bits; I2 is_in_use only after the marks are stable.
 * Locking: lock, before the publish lock (doc/LOCKING.md). Bits are atomic; who changes the guest's bytes sets them
 * before, and the close comes after all who write.
 */
#include "engine/track.h"

#include <inttypes.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/locks.h"
#include "engine/publish.h"
#include "engine/space.h"
#include "format/bitmapext.h"

#define FLAGS_OFF \
	12U /* in a directory entry; entries start at multiples of 8, so no sector ends within */

/* ---- the open ---- */

struct opening {
	struct qcow_image *image;
	struct qk_track *track;
	uint64_t bytes;
	enum qcow_status status;
	struct qcow_error *err;
};

static enum qcow_status judge(const struct opening *o, const struct qcow_bitmap *b, uint64_t bytes)
{
	if (b->extra_bytes != 0 && !b->extra_data_compatible)
		return QK_FAIL(o->err, QCOW_E_UNSUPPORTED,
			"bitmap '%s' is enabled and has %" PRIu32
			" bytes of extra data that are not known here: it would have to record "
			"every write, and must not be used",
			b->name, b->extra_bytes);
	if (bytes > QK_TRACK_BYTES || o->bytes + bytes > QK_TRACK_TOTAL_BYTES)
		return QK_FAIL(o->err, QCOW_E_LIMIT,
			"bitmap '%s' is enabled and takes %" PRIu64
			" bytes to track: at most %" PRIu64 " for one, %" PRIu64
			" for all enabled ones",
			b->name, bytes, (uint64_t)QK_TRACK_BYTES, (uint64_t)QK_TRACK_TOTAL_BYTES);
	return QCOW_OK;
}

static enum qcow_status add(struct opening *o, uint32_t index, const struct qcow_bitmap *b)
{
	struct qk_track *t = o->track;
	uint64_t size = o->image->size;
	uint64_t n_bits = (size >> b->granularity_bits) +
			  ((size & ((UINT64_C(1) << b->granularity_bits) - 1)) != 0);
	uint64_t n_words = qk_div_up(n_bits, 64);
	QK_TRY(judge(o, b, n_words * 8));
	struct qk_track_bitmap *more = qk_realloc(t->bitmaps, t->n + UINT64_C(1), sizeof(*more));
	if (more == NULL)
		return QK_FAIL_NOMEM(o->err);
	t->bitmaps = more;
	_Atomic uint64_t *words = qk_calloc(qk_max(n_words, 1), sizeof(*words));
	if (words == NULL)
		return QK_FAIL_NOMEM(o->err);
	t->bitmaps[t->n++] = (struct qk_track_bitmap){.index = index,
		.table_entries = b->table_entries,
		.granularity_bits = b->granularity_bits,
		.flags = b->flags,
		.n_bits = n_bits,
		.table_off = b->table_offset,
		.words = words};
	o->bytes += n_words * 8;
	return QCOW_OK;
}

static bool look(void *ctx, uint32_t index, const struct qcow_bitmap *b, unsigned finding)
{
	struct opening *o = ctx;
	/* damaged ones made the image read-only at most */
	if (b->is_auto && !b->in_use && finding == 0)
		o->status = add(o, index, b);
	return o->status == QCOW_OK;
}

enum qcow_status qk_track_new(
	struct qcow_image *image, struct qk_track **out, struct qcow_error *err)
{
	if (image->bitmaps.n == 0)
		return QCOW_OK;
	struct qk_track *t = qk_calloc(1, sizeof(*t));
	if (t == NULL)
		return QK_FAIL_NOMEM(err);
	(void)pthread_mutex_init(&t->lock, NULL);
	struct opening o = {.image = image, .track = t, .err = err};
	enum qcow_status status = qk_bitmaps_each(image, look, &o, err);
	if (status == QCOW_OK)
		status = o.status;
	if (status == QCOW_OK && t->n != 0)
		*out = t;
	else
		qk_track_free(t);
	return status;
}

void qk_track_free(struct qk_track *t)
{
	if (t == NULL)
		return;
	for (uint32_t i = 0; i < t->n; i++)
		free((void *)t->bitmaps[i].words);
	free(t->bitmaps);
	(void)pthread_mutex_destroy(&t->lock);
	free(t);
}

/* ---- in use ---- */

static enum qcow_status write_marks(void *ctx, struct qcow_error *err)
{
	struct qcow_image *image = ctx;
	const struct qk_track *t = image->rw->track;
	for (uint32_t i = 0; i < t->n; i++) {
		const struct qk_track_bitmap *b = &t->bitmaps[i];
		uint8_t flags[4];
		uint64_t off = image->bitmaps.off + image->bitmaps.starts[b->index] + FLAGS_OFF;
		qk_store32(flags, b->flags | QK_BITMAP_IN_USE);
		QK_TRY(qk_space_check_overlap(
			image->rw->space, QK_SPACE_BITMAPS, off, sizeof(flags), err));
		QK_TRY(qcow_store_write(image->store, flags, sizeof(flags), off, err));
	}
	return QCOW_OK;
}

static enum qcow_status begin_use(struct qcow_image *image, struct qcow_error *err)
{
	struct qk_track *t = image->rw->track;
	enum qcow_status status = QCOW_OK;
	qk_lock(&t->lock);
	bool is_set = atomic_load_explicit(&t->is_in_use, memory_order_relaxed);
	atomic_store_explicit(&t->may_be_marked, true, memory_order_release);
	if (!is_set)
		status = qk_publish_through(image->rw->publish, false, write_marks, image, err);
	if (status == QCOW_OK)
		atomic_store_explicit(&t->is_in_use, true, memory_order_release);
	qk_unlock(&t->lock);
	return status;
}

/* ---- bits ---- */

static void set_word(_Atomic uint64_t *word, uint64_t mask)
{
	/* most writes go where something was written before */
	if ((atomic_load_explicit(word, memory_order_relaxed) & mask) != mask)
		(void)atomic_fetch_or_explicit(word, mask, memory_order_relaxed);
}

/* Bits [first, last]. */
static void set_bits(struct qk_track_bitmap *b, uint64_t first, uint64_t last)
{
	uint64_t w = first / 64;
	uint64_t head = UINT64_MAX << (first % 64);
	uint64_t tail = UINT64_MAX >> (63 - last % 64);
	QK_ASSERT_VOID(I1, last < b->n_bits);
	if (w == last / 64) {
		set_word(&b->words[w], head & tail);
		return;
	}
	set_word(&b->words[w], head);
	for (w++; w < last / 64; w++)
		set_word(&b->words[w], UINT64_MAX);
	set_word(&b->words[w], tail);
}

enum qcow_status qk_track_mark_bits(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct qk_track *t = image->rw->track;
	if (QK_UNLIKELY(!atomic_load_explicit(&t->is_in_use, memory_order_acquire)))
		QK_TRY(begin_use(image, err));
	for (uint32_t i = 0; i < t->n; i++) {
		unsigned shift = t->bitmaps[i].granularity_bits;
		set_bits(&t->bitmaps[i], off >> shift, (off + len - 1) >> shift);
	}
	return QCOW_OK;
}

/* ---- reading beside it ---- */

const struct qk_track_bitmap *qk_track_find(const struct qcow_image *image, uint32_t index)
{
	const struct qk_track *t = image->rw != NULL ? image->rw->track : NULL;
	for (uint32_t i = 0; t != NULL && i < t->n; i++)
		if (t->bitmaps[i].index == index)
			return &t->bitmaps[i];
	return NULL;
}

uint64_t qk_track_run(const struct qk_track_bitmap *b, uint64_t at, uint64_t end, bool *is_set)
{
	uint64_t word = atomic_load_explicit(&b->words[at / 64], memory_order_relaxed);
	uint64_t bit = at;
	*is_set = (word >> (at % 64) & 1) != 0;
	uint64_t alike = *is_set ? 0 : UINT64_MAX;
	while (bit < end) {
		word = atomic_load_explicit(&b->words[bit / 64], memory_order_relaxed);
		uint64_t differs = ~(word ^ alike) >> (bit % 64);
		if (differs != 0) {
			bit += (unsigned)__builtin_ctzll(differs);
			break;
		}
		bit += 64 - bit % 64;
	}
	return qk_min(bit, end) - at;
}

void qk_track_or(const struct qk_track_bitmap *b, uint64_t first, uint64_t n, uint8_t *p)
{
	uint64_t end = first + n;
	QK_ASSERT_VOID(I1, first % 8 == 0 && end <= b->n_bits);
	for (uint64_t bit = first; bit < end; bit += 8) {
		const _Atomic uint64_t *word = &b->words[bit / 64];
		uint64_t bits = atomic_load_explicit(word, memory_order_relaxed);
		if (bits == 0 && bit % 64 == 0)
			bit += 56; /* and the 8 of the loop */
		else
			p[(bit - first) / 8] |= (uint8_t)(bits >> (bit % 64));
	}
}
