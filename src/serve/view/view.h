/* SPDX-License-Identifier: MIT */
/*
 * view: what an export shows: a range of the disk of one open image, as the table of calls that the server wants. Nothing
 * but the public calls of the library.
 */
#ifndef QK_SERVE_VIEW_VIEW_H
#define QK_SERVE_VIEW_VIEW_H

#include <stdatomic.h>

#include "serve/nbd/server.h"

enum qk_view_zeroes {
	QK_VIEW_ZEROES_OFF = 0,
	QK_VIEW_ZEROES_ON, /* a write of nothing but zeros is a qcow_zero */
	QK_VIEW_ZEROES_UNMAP /* … that may give up clusters */
};

/* An image with its views. The image is closed with the last of them. */
struct qk_view_image {
	struct qcow_image *image;
	atomic_uint n_views; /* and the owner */
	bool no_flush; /* cache=unsafe */
	bool sync; /* every write is stable when it is answered */
	bool discards; /* trim and zeros may give up clusters */
	enum qk_view_zeroes zeroes;
};

/* Take over an open image; one count is the caller's, whatever he fills in else. NULL: out of memory, the image
 * stays. */
struct qk_view_image *qk_view_image_new(struct qcow_image *image);
/* One view less. The last one closes the image, and answers what the close does. */
enum qcow_status qk_view_image_drop(struct qk_view_image *image);

struct qk_view_options {
	unsigned depth; /* the layer that is shown; 0: the image itself */
	uint64_t off, size; /* of the layer's disk */
	bool read_only;
	const char *const *bitmaps; /* names, for `dirty` in this order */
	unsigned n_bitmaps;
};

struct qk_view;

/* QCOW_E_RANGE (no such layer, a range that is not within its disk), QCOW_E_NOMEM. The ops' close frees it. */
enum qcow_status qk_view_new(struct qk_view_image *image, const struct qk_view_options *options,
	struct qk_view **out, struct qcow_error *err) __attribute__((warn_unused_result));

/* The first layer from `image` down that has this bitmap: *layer and its *index. QCOW_E_NOENT (none has), QCOW_E_RANGE (its disk
 * has another length). */
enum qcow_status qk_view_find_bitmap(struct qcow_image *image, const char *name,
	struct qcow_image **layer, uint32_t *index, struct qcow_error *err)
	__attribute__((warn_unused_result));

/* The table for a view that was made read-only, or not. */
const struct qk_nbd_export_ops *qk_view_ops(const struct qk_view *view);

/* Where on its layer's disk it begins. */
uint64_t qk_view_offset(const struct qk_view *view);

/* While the server is quiesced: forget what is known of bitmaps (their readers are closed), and where `names` is not NULL
 * show these. QCOW_E_NOMEM. */
enum qcow_status qk_view_set_bitmaps(struct qk_view *view, const char *const *names, unsigned n,
	struct qcow_error *err) __attribute__((warn_unused_result));
/* While the server is quiesced: the range has another length. */
void qk_view_set_size(struct qk_view *view, uint64_t size);

#endif
