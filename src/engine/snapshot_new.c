/* SPDX-License-Identifier: MIT */
/*
 * snapshot_new: the snapshot table and L1 tables in clusters that nothing names. Owns no state.
 */
#include "engine/snapshot_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/rw.h"
#include "format/l1l2.h"

#define CHUNK_ENTRIES 8192U /* of an L1 table, written at once */

/* ---- clusters ---- */

enum qcow_status qk_snap_take(struct qk_fresh *f, uint64_t n, enum qk_space_kind kind,
	uint64_t *off, struct qcow_error *err)
{
	f->kind = kind;
	return qk_fresh_take(f, n, off, err);
}

void qk_snap_trim(struct qk_fresh *f, uint64_t n)
{
	struct qk_fresh_mark mark = qk_fresh_get_mark(f);
	QK_ASSERT_VOID(SN5, mark.n_last >= n);
	mark.n_last -= n;
	if (n != 0)
		qk_fresh_give_back(f, &mark);
}

/* ---- the snapshot table ---- */

static uint64_t table_bytes(const struct qk_snaps *s)
{
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < s->n; i++)
		bytes += qk_snapshot_entry_bytes(s->v[i].extra.n, s->v[i].id.n, s->v[i].name.n);
	return bytes;
}

enum qcow_status qk_snaps_store(
	const struct qk_snaps *s, struct qk_fresh *fresh, uint64_t *off, struct qcow_error *err)
{
	uint64_t bytes = table_bytes(s);
	uint64_t clusters = qk_div_up(bytes, fresh->image->geometry.cluster_size);
	*off = 0;
	if (bytes == 0)
		return QCOW_OK;
	if (bytes > QK_MAX_SNAPSHOT_TABLE_BYTES)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"the snapshot table would have %" PRIu64 " bytes, more than %" PRIu64,
			bytes, QK_MAX_SNAPSHOT_TABLE_BYTES);
	uint8_t *table QK_AUTO_FREE = qk_calloc(bytes, 1);
	if (table == NULL)
		return QK_FAIL_NOMEM(err);
	struct qk_writer w = qk_writer_init(table, (size_t)bytes);
	for (uint32_t i = 0; i < s->n; i++)
		qk_snapshot_encode(&w, &s->v[i]);
	QK_ASSERT(SN2, !w.bad && w.at == bytes);
	QK_TRY(qk_snap_take(fresh, clusters, QK_SPACE_SNAPSHOTS, off, err));
	return qk_fresh_write(fresh, table, bytes, *off, err);
}

/* ---- L1 tables ---- */

enum qcow_status qk_l1_store(const uint64_t *l1, uint64_t n, enum qk_space_kind kind,
	struct qk_fresh *fresh, uint64_t *off, struct qcow_error *err)
{
	struct qcow_image *image = fresh->image;
	uint64_t size = image->geometry.cluster_size, clusters = qk_div_up(n * 8, size);
	*off = 0;
	if (n == 0)
		return QCOW_OK;
	uint64_t *words QK_AUTO_FREE = qk_malloc(CHUNK_ENTRIES, sizeof(*words));
	if (words == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qk_snap_take(fresh, clusters, kind, off, err));
	uint64_t all = clusters * size / 8;
	for (uint64_t at = 0; at < all; at += CHUNK_ENTRIES) {
		uint64_t part = qk_min(CHUNK_ENTRIES, all - at);
		for (uint64_t i = 0; i < part; i++)
			words[i] = at + i < n ? __builtin_bswap64(l1[at + i]) : 0;
		QK_TRY(qk_fresh_write(fresh, words, part * 8, *off + at * 8, err));
	}
	return QCOW_OK;
}

static enum qcow_status judge_l1(struct qcow_image *image, uint64_t off, uint64_t n,
	const uint64_t *l1, struct qcow_error *err)
{
	uint64_t file_size = image->rw != NULL ? qk_space_file_size(image->rw->space)
					       : image->file_size;
	for (uint64_t i = 0; i < n; i++) {
		struct qk_l1_entry e = qk_l1_decode(&image->geometry, l1[i]);
		if (e.finding == 0 && e.l2_off.v >= file_size)
			e.finding = QCOW_FINDING_L1_ENTRY_BEYOND_FILE;
		if (e.finding != 0)
			return QK_FAIL_AT(err, QCOW_E_CORRUPT, e.finding, off + i * 8,
				i * image->geometry.l2_span,
				"L1 entry %" PRIu64 " (0x%016" PRIx64 ") of the table at %" PRIu64
				": %s",
				i, l1[i], off, qcow_finding_text(e.finding));
	}
	return QCOW_OK;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a & QK_OFFSET_MASK;
	uint64_t y = *(const uint64_t *)b & QK_OFFSET_MASK;
	return (x > y) - (x < y);
}

/* The offset of a table that is there twice, 0: none is. */
static uint64_t find_twice(const uint64_t *l1, uint64_t n, bool *is_ascending)
{
	uint64_t last = 0;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t off = l1[i] & QK_OFFSET_MASK;
		if (off == 0)
			continue;
		if (off == last)
			return off;
		*is_ascending = *is_ascending && off > last;
		last = off;
	}
	return 0;
}

/* A tree that names a table twice could be as long as its L1 table, however small the file. */
static enum qcow_status judge_once(
	uint64_t off, const uint64_t *l1, uint64_t n, struct qcow_error *err)
{
	bool is_ascending = true;
	uint64_t twice = find_twice(l1, n, &is_ascending);
	if (twice == 0 && is_ascending)
		return QCOW_OK;
	if (twice == 0) {
		uint64_t *sorted QK_AUTO_FREE = qk_malloc(n, sizeof(*sorted));
		if (sorted == NULL)
			return QK_FAIL_NOMEM(err);
		memcpy(sorted, l1, (size_t)n * sizeof(*sorted));
		qsort(sorted, (size_t)n, sizeof(*sorted), by_value);
		twice = find_twice(sorted, n, &is_ascending);
	}
	if (twice == 0)
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_L2_TABLE_TWICE, twice, QCOW_NO_OFFSET,
		"the L1 table at %" PRIu64 " names the L2 table at %" PRIu64
		" more than once: repair the image first",
		off, twice);
}

enum qcow_status qk_l1_read(struct qcow_image *image, uint64_t off, uint64_t n, uint64_t room,
	uint64_t **out, struct qcow_error *err)
{
	uint64_t *l1 = qk_calloc(qk_max(room, 1), sizeof(*l1));
	if (l1 == NULL)
		return QK_FAIL_NOMEM(err);
	*out = l1;
	if (n == 0)
		return QCOW_OK;
	QK_TRY(qcow_store_read(image->store, l1, (size_t)n * 8, off, err));
	for (uint64_t i = 0; i < n; i++)
		l1[i] = __builtin_bswap64(l1[i]);
	QK_TRY(judge_l1(image, off, n, l1, err));
	return judge_once(off, l1, n, err);
}
