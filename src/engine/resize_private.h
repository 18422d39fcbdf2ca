/* SPDX-License-Identifier: MIT */
/*
 * resize_private: what the files of resize share. All of it runs inside engine/control.h, by one thread.
 */
#ifndef QK_ENGINE_RESIZE_PRIVATE_H
#define QK_ENGINE_RESIZE_PRIVATE_H

#include "engine/fresh.h"
#include "engine/resize.h"

/* Report `done` of `total`. QCOW_E_CANCELLED. progress NULL: nothing. */
enum qcow_status qk_resize_step(const struct qcow_progress *progress, uint64_t done, uint64_t total,
	struct qcow_error *err) QK_MUST_USE;

/* ---- resize_tail.c ---- */

/* Are all L1 and L2 entries of clusters past `end` such that they can be unlinked? Reads each L2 table once, and writes
 * nothing. QCOW_E_CORRUPT with finding, QCOW_E_IO, QCOW_E_NOMEM, QCOW_E_CANCELLED. */
enum qcow_status qk_resize_judge_past(struct qcow_image *image, uint64_t end,
	const struct qcow_progress *progress, struct qcow_error *err) QK_MUST_USE;

/* Unlink all clusters that lie past `end` whole: their entries are 0 and stable afterwards, and what nobody else refers to
 * is free. Memory: a window, and what waits for a publication. Errors as above, those of a publication. */
enum qcow_status qk_resize_unlink_past(
	struct qcow_image *image, uint64_t end, struct qcow_error *err) QK_MUST_USE;

/* What the cluster of `end` holds from there on, and up to image->size, becomes zeros. With
 * `own_only` a layer below is left out of it. Not stable. Errors as qk_zero. */
enum qcow_status qk_resize_scrub(
	struct qcow_image *image, uint64_t end, bool own_only, struct qcow_error *err) QK_MUST_USE;

/* ---- resize_fill.c: [from, to) are whole clusters past the old end, of which no entry is in use ---- */

/* They read as zeros, whatever a layer below holds. */
enum qcow_status qk_resize_hide(struct qcow_image *image, uint64_t from, uint64_t to,
	const struct qcow_progress *progress, struct qcow_error *err) QK_MUST_USE;

/* They have host clusters, and read as zeros. */
struct qk_resize_fill {
	uint64_t from, to;
	enum qcow_preallocation mode; /* not OFF */
	const struct qcow_progress *progress;
};
/* The cluster that the old end lies in has a host cluster that is written whole, with what it reads as; past the old end
 * that is zeros already. Nothing where the end of a cluster is the old end. */
enum qcow_status qk_resize_allocate_tail(
	struct qcow_image *image, uint64_t old_size, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_resize_allocate(struct qcow_image *image, const struct qk_resize_fill *fill,
	struct qcow_error *err) QK_MUST_USE;

/* ---- resize_file.c ---- */

enum qcow_status qk_resize_raw_judge(struct qcow_image *image, const struct qk_resize_request *rq,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_resize_raw(struct qcow_image *image, const struct qk_resize_request *rq,
	struct qcow_error *err) QK_MUST_USE;

/* Write zeros to [from, to). */
enum qcow_status qk_resize_write_zeros(struct qcow_store *store, uint64_t from, uint64_t to,
	const struct qcow_progress *progress, struct qcow_error *err) QK_MUST_USE;

/* These do nothing where the image has no data file. */

/* Could the data file hold a disk of `size` bytes? QCOW_E_NOTSUP, QCOW_E_POLICY, errors of the store. */
enum qcow_status qk_resize_data_judge(
	const struct qcow_image *image, uint64_t size, struct qcow_error *err) QK_MUST_USE;
/* Will entries name all that is new? Preallocation, or a raw data file. Of any qcow2 image. */
bool qk_resize_data_is_named(const struct qcow_image *image, const struct qk_resize_request *rq);
/* The data file reaches to the new end, and what entries are to name is zeros there. Not stable. *old_file: how long it was
 * (UINT64_MAX: not known, nothing was changed). Errors of the store, QCOW_E_NOMEM, QCOW_E_CANCELLED. */
enum qcow_status qk_resize_data_extend(struct qcow_image *image, uint64_t old_size,
	const struct qk_resize_request *rq, uint64_t *old_file, struct qcow_error *err) QK_MUST_USE;
/* As long as it was again, if the host can do that much. */
void qk_resize_data_restore(struct qcow_image *image, uint64_t old_file);
/* Past the disk's end it holds nothing, durably no longer named: cut, or a device's last cluster zeroed. Not stable. There is
 * a data file. Errors of the store. */
enum qcow_status qk_resize_data_cut(
	struct qcow_image *image, uint64_t size, struct qcow_error *err) QK_MUST_USE;

/* ---- resize_bitmap.c ---- */

struct qk_resize_bitmaps {
	struct qcow_image *image;
	uint64_t old_size, new_size;
	struct qk_fresh fresh;
	uint64_t directory_off; /* of the new directory; 0: the image has no bitmaps */
	uint8_t *directory; /* the new one */
	uint8_t *data; /* a cluster */
};

/* Can the bitmaps follow? QCOW_E_UNSUPPORTED, QCOW_E_CORRUPT, QCOW_E_LIMIT, QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status qk_resize_bitmaps_judge(
	struct qcow_image *image, uint64_t new_size, struct qcow_error *err) QK_MUST_USE;

/* Write tables of the new length and a directory that names them to fresh clusters; nothing in use changes. Where the disk
 * grows, enabled bitmaps have all of the new part dirty: what is there has changed since they were made. Release it in any
 * case. */
enum qcow_status qk_resize_bitmaps_build(
	struct qk_resize_bitmaps *b, struct qcow_error *err) QK_MUST_USE;
/* The old tables and directory are not named any more. What cannot be dropped is leaked. */
void qk_resize_bitmaps_drop_old(struct qk_resize_bitmaps *b);
/* Nothing names what was built. */
void qk_resize_bitmaps_give_back(struct qk_resize_bitmaps *b);
void qk_resize_bitmaps_release(struct qk_resize_bitmaps *b);

#endif
