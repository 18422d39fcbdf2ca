/* SPDX-License-Identifier: MIT */
/*
 * rw: what an image open for writing has beside what every image has. Set by rw.c before a second thread sees the
 * image, and constant afterwards; what changes lies behind the pointers.
 */
#ifndef QK_ENGINE_RW_H
#define QK_ENGINE_RW_H

#include <qcowkit/qcowkit.h>

#include "engine/data_file.h"
#include "engine/epoch.h"
#include "engine/fence.h"
#include "format/limits.h"
#include "format/header.h"

struct qk_compress;
struct qk_gate;
struct qk_publish;
struct qk_space;
struct qk_stage;
struct qk_track;

#define QK_STRIPES 64U

/* What qcow_recover has to do for an operation that failed: control.c. */
struct qk_rw_pending {
	bool puts_back; /* sector 0 may be either: it becomes sector0 */
	unsigned reload; /* QK_RELOAD_… */
	uint8_t sector0[QK_SECTOR];
};

struct qk_rw {
	struct qk_gate *gate; /* calls on guest data pass it, see control.h */
	struct qk_rw_pending pending; /* changed while the gate is closed */
	enum qcow_prove prove; /* of the options */
	struct qk_epoch *epoch; /* of the readers, and of the writers in place */
	struct qk_fence fence;
	struct qk_publish *publish;
	unsigned discard; /* enum qcow_discard_flags */
	bool has_below; /* what this layer does not hold may be held by another */

	/* encrypted images, see put.c */
	_Atomic uint32_t n_parts; /* parts of sectors being written */
	pthread_mutex_t parts_lock;

	/* qcow2 only */
	struct qk_space *space;
	struct qk_stage *stage;
	struct qk_track *track; /* NULL: no bitmap is enabled */
	struct qk_compress *compress;
	struct qk_data_file data_file;
	pthread_mutex_t tables_lock; /* making L2 tables, growing L1 */
	pthread_mutex_t stripes[QK_STRIPES]; /* remapping clusters */
};

/* May the image of `options` be written? Where QCOW_OPEN_WRITE is not among the flags: nothing is done. Else what
 * writing needs is made and hangs at image->rw. Called when the layers below are known. Errors as qcow_open. */
enum qcow_status qk_rw_open(struct qcow_image *image, const struct qcow_open_options *options,
	struct qcow_error *err) QK_MUST_USE;

/* Publish, flush, store the bitmaps, free. NULL as image->rw is allowed. The first failure, of which the log tells. */
enum qcow_status qk_rw_close(struct qcow_image *image);

/* image->header, with what writing moves as the disk has it: L1 and refcount table. Errors of the store. */
enum qcow_status qk_rw_header(
	struct qcow_image *image, struct qk_header *out, struct qcow_error *err) QK_MUST_USE;

/* A space as the image has it on the disk now; `watch` as of its request. Errors of qk_space_new. */
struct qk_space;
struct qk_refs_watch;
enum qcow_status qk_rw_make_space(struct qcow_image *image, const struct qk_refs_watch *watch,
	struct qk_space **out, struct qcow_error *err) QK_MUST_USE;
/* Would a write of guest data to [off, off + len) of its store land on a structure of the image? As
 * qk_space_check_overlap; a data file holds no structures. */
enum qcow_status qk_rw_check_data(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err) QK_MUST_USE;

/* The store has grown: clusters that were taken lie within the file from now on. */
void qk_rw_follow_size(struct qcow_image *image);

#endif
