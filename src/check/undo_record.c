/* SPDX-License-Identifier: MIT */
/*
 * undo_record: encoding and decoding of the records (undo_record.h). Owns nothing.
 */
#include "check/undo_record.h"

#include <string.h>

#include "base/bytes.h"
#include "base/num.h"

#define FRONT_BYTES 40U
#define CHECKSUM    32U
#define KIND	    UINT64_C(0x756e646f00000000) /* "undo" */

const uint8_t qk_undo_magic[8] = {'q', 'c', 'o', 'w', 'u', 'n', 'd', 'o'};

/* FNV-1a over 64 bits: what is torn or not ours must not look like a record. */
static uint64_t more(uint64_t h, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		h = (h ^ bytes[i]) * UINT64_C(0x100000001b3);
	return h;
}

uint64_t qk_undo_digest(const uint8_t *bytes, size_t n)
{
	return more(UINT64_C(0xcbf29ce484222325), bytes, n);
}

static uint64_t checksum(const uint8_t *record, size_t n)
{
	return more(qk_undo_digest(record, CHECKSUM), record + FRONT_BYTES, n - FRONT_BYTES);
}

static size_t padded(uint32_t n)
{
	return ((size_t)n + 7) & ~(size_t)7;
}

static size_t record_bytes(const struct qk_undo_record *r)
{
	return FRONT_BYTES + padded(r->n_bytes) + (size_t)r->n_sectors * 8;
}

uint8_t *qk_undo_bytes(uint8_t *record)
{
	return record + FRONT_BYTES;
}

uint8_t *qk_undo_digests(uint8_t *record, const struct qk_undo_record *r)
{
	return record + FRONT_BYTES + padded(r->n_bytes);
}

enum qcow_status qk_undo_append(struct qcow_store *log, uint64_t *at, uint8_t *record,
	const struct qk_undo_record *r, struct qcow_error *err)
{
	size_t n = record_bytes(r);

	qk_store64(record, KIND | (uint64_t)r->kind);
	qk_store64(record + 8, r->off);
	qk_store64(record + 16, r->n_sectors);
	qk_store64(record + 24, r->n_bytes);
	memset(qk_undo_bytes(record) + r->n_bytes, 0, padded(r->n_bytes) - r->n_bytes);
	qk_store64(record + CHECKSUM, checksum(record, n));
	QK_TRY(qcow_store_write(log, record, n, *at, err));
	*at += n;
	return QCOW_OK;
}

static bool decode(const uint8_t *front, struct qk_undo_record *r)
{
	uint64_t kind = qk_load64(front) ^ KIND;
	uint64_t n_sectors = qk_load64(front + 16);
	uint64_t n_bytes = qk_load64(front + 24);

	if (kind < QK_UNDO_SAVED || kind > QK_UNDO_DONE || n_sectors > QK_UNDO_PIECE_SECTORS ||
		n_bytes > n_sectors * QK_SECTOR)
		return false;
	*r = (struct qk_undo_record){.kind = (enum qk_undo_kind)kind,
		.off = qk_load64(front + 8),
		.n_sectors = (uint32_t)n_sectors,
		.n_bytes = (uint32_t)n_bytes};
	return kind != QK_UNDO_SAVED || (n_sectors != 0 && qk_is_aligned(r->off, QK_SECTOR));
}

enum qcow_status qk_undo_peek(struct qcow_store *log, uint64_t at, uint8_t *record,
	struct qk_undo_record *r, uint64_t *n, struct qcow_error *err)
{
	uint64_t size = 0;

	*n = 0;
	QK_TRY(qcow_store_size(log, &size, err));
	if (!qk_in_range(at, FRONT_BYTES, size))
		return QCOW_OK;
	QK_TRY(qcow_store_read(log, record, FRONT_BYTES, at, err));
	if (decode(record, r) && qk_in_range(at, record_bytes(r), size))
		*n = record_bytes(r);
	return QCOW_OK;
}

enum qcow_status qk_undo_load(struct qcow_store *log, uint64_t at, uint8_t *record,
	struct qk_undo_record *r, uint64_t *n, struct qcow_error *err)
{
	QK_TRY(qk_undo_peek(log, at, record, r, n, err));
	if (*n == 0)
		return QCOW_OK;
	QK_TRY(qcow_store_read(
		log, record + FRONT_BYTES, record_bytes(r) - FRONT_BYTES, at + FRONT_BYTES, err));
	if (checksum(record, record_bytes(r)) != qk_load64(record + CHECKSUM))
		*n = 0;
	return QCOW_OK;
}
