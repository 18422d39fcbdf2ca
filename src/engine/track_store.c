/* SPDX-License-Identifier: MIT */
/*
 * track_store: tracked bitmaps go back to the image.
 *
 *	data clusters with new bits, whole tables of bitmaps that have any, the whole directory, refcounts
 *	  || one write of 8 bytes of the bitmaps extension ||
 *	one reference less for the old directory, old tables, data clusters that were replaced
 *
 * At the close a bitmap that cannot be stored (no space, damaged data) keeps its old table and stays in use; the others are
 * stored. Until the switch nothing names what was taken, and it is given back. One thread, behind everybody who
 * wrote.
 */
#include "engine/track.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/bitmap_write.h"
#include "engine/fresh.h"
#include "engine/log.h"
#include "engine/publish.h"
#include "engine/space.h"
#include "format/bitmapext.h"

#define EXT_DIRECTORY 16U /* offset of the directory in the extension's data */
#define ENTRY_FLAGS   12U

/* What becomes of one bitmap. */
struct fate {
	bool is_stored; /* no longer in use */
	uint64_t table_off; /* its table by now */
};

struct storing {
	struct qcow_image *image;
	struct qk_track *track;
	bool all_or_none;
	struct fate *fates;
	struct qk_fresh fresh; /* of all bitmaps stored so far, and the directory */
	struct qk_bitmap_writer writer;
	uint64_t directory_off;
	struct qcow_error why; /* the first bitmap that could not be stored */
	enum qcow_status failed; /* … its status */
};

/* ---- one bitmap ---- */

static enum qcow_status skip_clear(void *ctx, uint64_t bit, uint64_t *next, struct qcow_error *err)
{
	const struct qk_track_bitmap *b = ctx;
	uint64_t n = qk_div_up(b->n_bits, 64), w = bit / 64;
	(void)err;
	while (w < n && atomic_load_explicit(&b->words[w], memory_order_relaxed) == 0)
		w++;
	*next = w < n ? qk_max(bit, w * 64) : b->n_bits;
	return QCOW_OK;
}

static enum qcow_status add_new(
	void *ctx, uint64_t first, uint64_t n, uint8_t *p, struct qcow_error *err)
{
	(void)err;
	qk_track_or(ctx, first, n, p);
	return QCOW_OK;
}

static enum qcow_status write_bitmap(struct storing *s, uint32_t i, struct qcow_error *err)
{
	struct qk_track_bitmap *b = &s->track->bitmaps[i];
	const struct qk_bitmap_bits bits = {skip_clear, add_new, b};
	struct qk_bitmap_target target = {.granularity_bits = b->granularity_bits,
		.table_entries = b->table_entries,
		.n_bits = b->n_bits,
		.stable_off = b->table_off,
		.table_off = b->table_off};
	uint64_t first = 0;
	QK_TRY(skip_clear(b, 0, &first, err));
	if (first < b->n_bits)
		QK_TRY(qk_bitmap_write(&s->writer, &target, &bits, err));
	s->fates[i].table_off = target.table_off;
	return QCOW_OK;
}

static enum qcow_status store_bitmap(struct storing *s, uint32_t i, struct qcow_error *err)
{
	const struct qk_track_bitmap *b = &s->track->bitmaps[i];
	struct qk_fresh_mark mark = qk_fresh_get_mark(&s->fresh);
	struct qcow_error own = QCOW_ERROR_INIT;
	enum qcow_status status = write_bitmap(s, i, &own);
	s->fates[i].is_stored = status == QCOW_OK;
	if (status == QCOW_OK)
		return QCOW_OK;
	qk_fresh_give_back(&s->fresh, &mark);
	s->fates[i].table_off = b->table_off;
	if (s->all_or_none) {
		if (err != NULL)
			*err = own;
		return status;
	}
	qk_log(s->image, QCOW_LOG_WARNING, QCOW_FINDING_BITMAP_INCONSISTENT,
		"bitmap %" PRIu32 " could not be stored and stays in use: %s", b->index,
		own.message);
	if (s->failed == QCOW_OK)
		s->why = own;
	s->failed = s->failed == QCOW_OK ? status : s->failed;
	return QCOW_OK;
}

/* ---- the directory, and the switch ---- */

static enum qcow_status write_directory(struct storing *s, struct qcow_error *err)
{
	const struct qcow_image *image = s->image;
	uint64_t bytes = image->ext.bitmaps.directory_size;
	uint8_t *directory QK_AUTO_FREE = qk_malloc(bytes, 1);
	if (directory == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qcow_store_read(image->store, directory, (size_t)bytes, image->bitmaps.off, err));
	for (uint32_t i = 0; i < s->track->n; i++) {
		const struct qk_track_bitmap *b = &s->track->bitmaps[i];
		uint8_t *entry = directory + image->bitmaps.starts[b->index];
		if (s->fates[i].is_stored)
			qk_store32(entry + ENTRY_FLAGS, b->flags);
		qk_store64(entry, s->fates[i].table_off);
	}
	QK_TRY(qk_fresh_take(
		&s->fresh, qk_div_up(bytes, image->geometry.cluster_size), &s->directory_off, err));
	return qk_fresh_write(&s->fresh, directory, bytes, s->directory_off, err);
}

/* Where the extension keeps the directory's offset; eight bytes of one sector, for all of it is aligned to 8. */
static uint64_t find_field(const struct qcow_image *image)
{
	struct qk_ext ext;
	for (size_t at = 0; qk_ext_next(&image->ext, &at, &ext);)
		if (ext.type == QK_EXT_BITMAPS)
			return (uint64_t)(ext.data.p - image->cluster0) + EXT_DIRECTORY;
	return 0;
}

static enum qcow_status switch_directory(void *ctx, struct qcow_error *err)
{
	const struct storing *s = ctx;
	struct qk_space *space = s->image->rw->space;
	uint8_t bytes[8];
	uint64_t at = find_field(s->image);
	QK_ASSERT(I3, at != 0 && at % 8 == 0);
	qk_store64(bytes, s->directory_off);
	if (at < QK_SECTOR) {
		const struct qk_header_patch patch = {(uint32_t)at, sizeof(bytes), bytes};
		return qk_space_write_header(space, &patch, err);
	}
	QK_TRY(qk_space_check_overlap(space, QK_SPACE_HEADER, at, sizeof(bytes), err));
	return qcow_store_write(s->image->store, bytes, sizeof(bytes), at, err);
}

/* ---- all of it ---- */

static void drop_replaced(struct storing *s)
{
	struct qcow_image *image = s->image;
	for (uint32_t i = 0; i < s->track->n; i++) {
		const struct qk_track_bitmap *b = &s->track->bitmaps[i];
		if (s->fates[i].table_off != b->table_off)
			qk_bitmap_drop(
				image, b->table_off, s->fates[i].table_off, b->table_entries);
	}
	qk_bitmap_drop_directory(image);
}

static enum qcow_status write_all(struct storing *s, struct qcow_error *err)
{
	for (uint32_t i = 0; i < s->track->n; i++)
		QK_TRY(store_bitmap(s, i, err));
	return write_directory(s, err);
}

static enum qcow_status store_all(struct storing *s, struct qcow_error *err)
{
	QK_TRY(qk_bitmap_writer_init(&s->writer, s->image, &s->fresh, err));
	enum qcow_status status = write_all(s, err);
	if (status != QCOW_OK)
		qk_fresh_give_back(&s->fresh, NULL);
	else
		status = qk_publish_through(s->image->rw->publish, true, switch_directory, s, err);
	if (status == QCOW_OK)
		drop_replaced(s);
	if (status != QCOW_OK || s->failed == QCOW_OK)
		return status;
	if (err != NULL)
		*err = s->why;
	return s->failed;
}

static enum qcow_status store(struct qcow_image *image, bool all_or_none, struct qcow_error *err)
{
	struct qk_track *t = image->rw->track;
	struct storing s = {.image = image, .track = t, .all_or_none = all_or_none};
	if (!qk_track_is_in_use(image))
		return QCOW_OK;
	qk_fresh_init(&s.fresh, image, QK_SPACE_BITMAPS);
	s.fates = qk_calloc(t->n, sizeof(*s.fates));
	enum qcow_status status = s.fates == NULL ? QK_FAIL_NOMEM(err) : store_all(&s, err);
	free(s.fates);
	qk_bitmap_writer_release(&s.writer);
	qk_fresh_release(&s.fresh);
	return status;
}

enum qcow_status qk_track_store(struct qcow_image *image, struct qcow_error *err)
{
	return store(image, true, err);
}

enum qcow_status qk_track_close(struct qcow_image *image, struct qcow_error *err)
{
	return store(image, false, err);
}
