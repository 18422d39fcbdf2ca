/* SPDX-License-Identifier: MIT */
/*
 * undo: the bytes that a repair replaces, saved so that they can be put back.
 *
 *	0   "qcowundo"  8   version 1  16  bytes of the image before  24  bytes of sector 0 that follow, 512
 *	32  zeros       ...            512 sector 0 of the image before
 *	1024  records: "undo" + kind (8)  offset (8)  length (8)  checksum (8), then the bytes, padded to 8
 *
 * Numbers are big-endian. The checksum is about the record's head and bytes; what does not agree ends the list: it was not yet
 * durable, so nothing of it had been replaced. A record of kind 2 is a sector 0 that the repair wrote.
 */
#ifndef QK_CHECK_UNDO_H
#define QK_CHECK_UNDO_H

#include <qcowkit/store.h>

#include "base/err.h"

struct qk_undo {
	struct qcow_store *log; /* NULL: nothing is saved */
	struct qcow_store *image;
	uint64_t image_size; /* as it was: what lies beyond is not saved */
	uint64_t at; /* where the next record goes */
	bool is_dirty; /* something is not yet durable */
};

/* Write the head. `log` NULL makes every other call do nothing. QCOW_E_INVAL (log is not empty), QCOW_E_NOMEM, errors of
 * both stores. */
enum qcow_status qk_undo_begin(struct qk_undo *u, struct qcow_store *log, struct qcow_store *image,
	struct qcow_error *err) QK_MUST_USE;

/* Save what the image holds in [off, off + len), as far as it had that. */
enum qcow_status qk_undo_save(
	struct qk_undo *u, uint64_t off, uint64_t len, struct qcow_error *err) QK_MUST_USE;
/* Note a sector 0 that will be written. */
enum qcow_status qk_undo_note_header(
	struct qk_undo *u, const uint8_t *sector, struct qcow_error *err) QK_MUST_USE;
/* What was saved is durable afterwards. */
enum qcow_status qk_undo_sync(struct qk_undo *u, struct qcow_error *err) QK_MUST_USE;

/* A store over the image, which it does not own: saves, durably, before each write. QCOW_E_NOMEM. */
enum qcow_status qk_undo_store(
	struct qk_undo *u, struct qcow_store **out, struct qcow_error *err) QK_MUST_USE;

/* See qcow_repair_undo. */
enum qcow_status qk_undo_apply(
	struct qcow_store *image, struct qcow_store *log, struct qcow_error *err) QK_MUST_USE;

#endif
