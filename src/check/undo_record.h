/* SPDX-License-Identifier: MIT */
/*
 * undo_record: the records of an undo file (undo.h): 40 bytes, the bytes that were replaced, padded to 8, and 8 bytes for each
 * sector.
 *
 *	0   "undo" + kind (4 + 4)   8   offset   16   sectors   24   bytes saved   32   checksum
 *
 * Numbers are big-endian. The checksum is about all of the record but itself; a record that does not agree ends the list.
 */
#ifndef QK_CHECK_UNDO_RECORD_H
#define QK_CHECK_UNDO_RECORD_H

#include <qcowkit/store.h>

#include "base/err.h"
#include "format/limits.h"

#define QK_UNDO_HEAD_BYTES    1024U
#define QK_UNDO_HEAD_DIGEST   32U /* where the head's own digest is, made with zeros there */
#define QK_UNDO_PIECE_SECTORS 2048U
#define QK_UNDO_PIECE_BYTES   (QK_UNDO_PIECE_SECTORS * QK_SECTOR)
/* the longest record */
#define QK_UNDO_RECORD_ROOM (40U + QK_UNDO_PIECE_BYTES + 8U * QK_UNDO_PIECE_SECTORS)

enum qk_undo_kind {
	QK_UNDO_SAVED = 1, /* sectors as they were, and a digest of each as it will be */
	QK_UNDO_END, /* the repair came to its end; the offset is the image's size then */
	QK_UNDO_BEGUN, /* undoing has begun */
	QK_UNDO_DONE /* undoing came to its end */
};

struct qk_undo_record {
	enum qk_undo_kind kind;
	uint64_t off; /* SAVED: of the first sector, a multiple of 512 */
	uint32_t n_sectors; /* of SAVED, else 0 */
	uint32_t n_bytes; /* saved: fewer than the sectors have where the image ended */
};

extern const uint8_t qk_undo_magic[8];

/* Of a sector, or any bytes. */
uint64_t qk_undo_digest(const uint8_t *bytes, size_t n);

/* Where they are in a record of QK_UNDO_RECORD_ROOM bytes. */
uint8_t *qk_undo_bytes(uint8_t *record);
uint8_t *qk_undo_digests(uint8_t *record, const struct qk_undo_record *r);

/* Bytes and digests are there: write the record at *at and move on. Not flushed. */
enum qcow_status qk_undo_append(struct qcow_store *log, uint64_t *at, uint8_t *record,
	const struct qk_undo_record *r, struct qcow_error *err) QK_MUST_USE;

/* The record at `at` into `record`; *n its bytes in the file, 0 where there is none that is whole. */
enum qcow_status qk_undo_load(struct qcow_store *log, uint64_t at, uint8_t *record,
	struct qk_undo_record *r, uint64_t *n, struct qcow_error *err) QK_MUST_USE;

/* The first words alone of a record that was loaded before: its checksum is not looked at. */
enum qcow_status qk_undo_peek(struct qcow_store *log, uint64_t at, uint8_t *record,
	struct qk_undo_record *r, uint64_t *n, struct qcow_error *err) QK_MUST_USE;

#endif
