/* SPDX-License-Identifier: MIT */
/*
 * view: the calls of an export, moved by the view's offset and handed to the library.
 *
 * Locking: a bitmap's reader belongs to one thread at a time, so each has a lock. Everything else is constant while
 * the server is not quiesced.
 */
#include "serve/view/view.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

struct bitmap {
	pthread_mutex_t lock;
	char *name;
	struct qcow_bitmap_reader *reader; /* NULL: not yet open */
};

struct qk_view {
	struct qk_view_image *owner;
	struct qcow_image *layer;
	uint64_t off, size;
	bool read_only;
	struct bitmap *bitmaps;
	unsigned n_bitmaps;
};

struct qk_view_image *qk_view_image_new(struct qcow_image *image)
{
	struct qk_view_image *v = qk_calloc(1, sizeof(*v));
	if (v == NULL)
		return NULL;
	v->image = image;
	atomic_init(&v->n_views, 1);
	return v;
}

enum qcow_status qk_view_image_drop(struct qk_view_image *v)
{
	if (v == NULL || atomic_fetch_sub(&v->n_views, 1) != 1)
		return QCOW_OK;
	enum qcow_status status = qcow_close(v->image);
	free(v);
	return status;
}

/* ---- guest data ---- */

static enum qcow_status view_pread(
	void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	struct qk_view *v = ctx;
	return qcow_pread(v->layer, buf, len, v->off + off, err);
}

static enum qcow_status view_pread_nowait(
	void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	struct qk_view *v = ctx;
	return qcow_pread_nowait(v->layer, buf, len, v->off + off, err);
}

static bool is_zero(const void *buf, size_t len)
{
	const char *p = buf;
	return len > 0 && p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

static unsigned write_flags(const struct qk_view *v, unsigned flags)
{
	if (v->owner->no_flush)
		return flags & ~(unsigned)QCOW_IO_FUA;
	return flags | (v->owner->sync ? (unsigned)QCOW_IO_FUA : 0);
}

static enum qcow_status view_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct qk_view *v = ctx;
	if (!v->owner->discards)
		flags &= ~(unsigned)QCOW_IO_UNMAP;
	return qcow_zero(v->layer, v->off + off, len, write_flags(v, flags), err);
}

static enum qcow_status view_pwrite(void *ctx, const void *buf, size_t len, uint64_t off,
	unsigned flags, struct qcow_error *err)
{
	struct qk_view *v = ctx;
	enum qk_view_zeroes zeroes = v->owner->zeroes;
	if (zeroes != QK_VIEW_ZEROES_OFF && is_zero(buf, len))
		return view_zero(ctx, off, len,
			flags | (zeroes == QK_VIEW_ZEROES_UNMAP ? (unsigned)QCOW_IO_UNMAP : 0),
			err);
	return qcow_pwrite(v->layer, buf, len, v->off + off, write_flags(v, flags), err);
}

static enum qcow_status view_trim(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct qk_view *v = ctx;
	flags = write_flags(v, flags);
	if (v->owner->discards)
		return qcow_discard(v->layer, v->off + off, len, flags, err);
	return (flags & QCOW_IO_FUA) != 0 ? qcow_flush(v->layer, err) : QCOW_OK;
}

static enum qcow_status view_flush(void *ctx, struct qcow_error *err)
{
	struct qk_view *v = ctx;
	if (v->read_only || v->owner->no_flush)
		return QCOW_OK;
	return qcow_flush(v->layer, err);
}

/* Into the host's cache: what is read is thrown away. */
static enum qcow_status view_cache(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct qk_view *v = ctx;
	const size_t most = 1U << 20;
	QK_AUTO_FREE void *buf = qk_malloc(most, 1);
	if (buf == NULL)
		return QK_FAIL_NOMEM(err);
	while (len > 0) {
		struct qcow_extent e;
		QK_TRY(qcow_map(v->layer, v->off + off, len, UINT32_MAX, &e, err));
		uint64_t n = e.len;
		if ((e.flags & QCOW_EXTENT_ZERO) == 0) {
			n = n < most ? n : most;
			QK_TRY(qcow_pread(v->layer, buf, (size_t)n, v->off + off, err));
		}
		off += n;
		len -= n;
	}
	return QCOW_OK;
}

static enum qcow_status view_map(void *ctx, uint64_t off, uint64_t len, uint32_t max_depth,
	struct qcow_extent *out, struct qcow_error *err)
{
	struct qk_view *v = ctx;
	QK_TRY(qcow_map(v->layer, v->off + off, len, max_depth, out, err));
	out->off = off;
	return QCOW_OK;
}

/* ---- bitmaps ---- */

static void close_bitmaps(struct qk_view *v)
{
	for (unsigned i = 0; i < v->n_bitmaps; i++) {
		qcow_bitmap_close(v->bitmaps[i].reader);
		v->bitmaps[i].reader = NULL;
	}
}

static void free_bitmaps(struct qk_view *v)
{
	close_bitmaps(v);
	for (unsigned i = 0; i < v->n_bitmaps; i++) {
		free(v->bitmaps[i].name);
		(void)pthread_mutex_destroy(&v->bitmaps[i].lock);
	}
	free(v->bitmaps);
	v->bitmaps = NULL;
	v->n_bitmaps = 0;
}

static enum qcow_status set_names(
	struct qk_view *v, const char *const *names, unsigned n, struct qcow_error *err)
{
	free_bitmaps(v);
	v->bitmaps = qk_calloc(n, sizeof(*v->bitmaps));
	if (v->bitmaps == NULL)
		return QK_FAIL_NOMEM(err);
	for (; v->n_bitmaps < n; v->n_bitmaps++) {
		struct bitmap *b = &v->bitmaps[v->n_bitmaps];
		b->name = qk_strndup(names[v->n_bitmaps], strlen(names[v->n_bitmaps]));
		if (b->name == NULL)
			return QK_FAIL_NOMEM(err);
		(void)pthread_mutex_init(&b->lock, NULL);
	}
	return QCOW_OK;
}

enum qcow_status qk_view_set_bitmaps(
	struct qk_view *v, const char *const *names, unsigned n, struct qcow_error *err)
{
	close_bitmaps(v);
	return names != NULL ? set_names(v, names, n, err) : QCOW_OK;
}

void qk_view_set_size(struct qk_view *v, uint64_t size)
{
	v->size = size;
}

enum qcow_status qk_view_find_bitmap(struct qcow_image *image, const char *name,
	struct qcow_image **layer, uint32_t *index, struct qcow_error *err)
{
	enum qcow_status status = QCOW_E_NOENT;
	*layer = NULL;
	for (struct qcow_image *at = image; at != NULL && status == QCOW_E_NOENT;
		at = qcow_backing(at)) {
		*layer = at;
		status = qcow_bitmap_find(at, name, index, err);
	}
	if (status == QCOW_OK && qcow_size(*layer) != qcow_size(image))
		return QK_FAIL(err, QCOW_E_RANGE,
			"bitmap '%s' is that of a layer with another length", name);
	return status;
}

static enum qcow_status ask_bitmap(struct qk_view *v, struct bitmap *b, uint64_t off, uint64_t len,
	struct qcow_bitmap_extent *out, struct qcow_error *err)
{
	if (b->reader == NULL) {
		struct qcow_image *layer = NULL;
		uint32_t index = 0;
		QK_TRY(qk_view_find_bitmap(v->owner->image, b->name, &layer, &index, err));
		QK_TRY(qcow_bitmap_open(layer, index, &b->reader, err));
	}
	return qcow_bitmap_read(b->reader, v->off + off, len, out, err);
}

static enum qcow_status view_dirty(void *ctx, unsigned bitmap, uint64_t off, uint64_t len,
	struct qcow_bitmap_extent *out, struct qcow_error *err)
{
	struct qk_view *v = ctx;
	if (bitmap >= v->n_bitmaps)
		return QK_FAIL(err, QCOW_E_NOENT, "the bitmap is not there any more");
	struct bitmap *b = &v->bitmaps[bitmap];
	(void)pthread_mutex_lock(&b->lock);
	enum qcow_status status = ask_bitmap(v, b, off, len, out, err);
	(void)pthread_mutex_unlock(&b->lock);
	out->off = off;
	return status;
}

/* ---- making ---- */

static void view_close(void *ctx)
{
	struct qk_view *v = ctx;
	free_bitmaps(v);
	(void)qk_view_image_drop(v->owner); /* the last is the owner's */
	free(v);
}

static const struct qk_nbd_export_ops ops_read_only = {
	.pread = view_pread,
	.pread_nowait = view_pread_nowait,
	.flush = view_flush,
	.cache = view_cache,
	.map = view_map,
	.dirty = view_dirty,
	.close = view_close,
};

static const struct qk_nbd_export_ops ops_writable = {
	.pread = view_pread,
	.pread_nowait = view_pread_nowait,
	.pwrite = view_pwrite,
	.zero = view_zero,
	.trim = view_trim,
	.flush = view_flush,
	.cache = view_cache,
	.map = view_map,
	.dirty = view_dirty,
	.close = view_close,
};

const struct qk_nbd_export_ops *qk_view_ops(const struct qk_view *v)
{
	return v->read_only ? &ops_read_only : &ops_writable;
}

uint64_t qk_view_offset(const struct qk_view *v)
{
	return v->off;
}

enum qcow_status qk_view_new(struct qk_view_image *image, const struct qk_view_options *o,
	struct qk_view **out, struct qcow_error *err)
{
	struct qcow_image *layer = image->image;
	for (unsigned i = 0; i < o->depth && layer != NULL; i++)
		layer = qcow_backing(layer);
	if (layer == NULL)
		return QK_FAIL(err, QCOW_E_RANGE, "there is no layer %u", o->depth);
	uint64_t size = qcow_size(layer);
	if (o->off > size || o->size > size - o->off)
		return QK_FAIL(err, QCOW_E_RANGE, "the range does not lie within the disk");
	struct qk_view *v = qk_calloc(1, sizeof(*v));
	if (v == NULL)
		return QK_FAIL_NOMEM(err);
	v->layer = layer;
	v->off = o->off;
	v->size = o->size;
	v->read_only = o->read_only || o->depth != 0;
	enum qcow_status status = set_names(v, o->bitmaps, o->n_bitmaps, err);
	if (status != QCOW_OK) {
		free_bitmaps(v);
		free(v);
		return status;
	}
	v->owner = image;
	(void)atomic_fetch_add(&image->n_views, 1);
	*out = v;
	return QCOW_OK;
}
