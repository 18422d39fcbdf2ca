/* SPDX-License-Identifier: MIT */
/*
 * space_overlap: nothing is written on a structure that it is not meant for, the header's sector 0 has one way to be
 * written, and an image found to be corrupt is marked so.
 */
#include "engine/space_private.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"

#define HEADER_INCOMPATIBLE 72U

/* ---- judging ---- */

/* May a write as `kind` go where `there` lies? Of some kinds not every structure is known. */
static bool is_allowed(enum qk_space_kind kind, enum qk_space_kind there)
{
	if (there == kind)
		return true;
	return there == QK_SPACE_DATA &&
	       (kind == QK_SPACE_L2 || kind == QK_SPACE_SNAPSHOTS || kind == QK_SPACE_BITMAPS ||
		       kind == QK_SPACE_CRYPTO);
}

enum qcow_status qk_space_judge_write(struct qk_space *sp, enum qk_space_kind kind, uint64_t off,
	uint64_t len, struct qcow_error *err)
{
	uint64_t last = qk_space_cluster(sp, off + len - 1);

	QK_TRY(qk_space_usable(sp, err));
	for (uint64_t c = qk_space_cluster(sp, off); c <= last; c++) {
		enum qk_space_kind there = qk_space_map_find(sp, c);
		if (QK_LIKELY(is_allowed(kind, there)))
			continue;
		qk_space_corrupt(sp);
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_METADATA_OVERLAP,
			c << sp->g->cluster_bits, QCOW_NO_OFFSET,
			"a write of the %s at %" PRIu64 " would land on the %s",
			qk_space_kind_name(kind), off, qk_space_kind_name(there));
	}
	return QCOW_OK;
}

enum qcow_status qk_space_check_overlap(struct qk_space *sp, enum qk_space_kind kind, uint64_t off,
	uint64_t len, struct qcow_error *err)
{
	uint64_t last = qk_space_cluster(sp, off + len - 1);
	bool is_near = kind != QK_SPACE_DATA;

	for (uint64_t c = qk_space_cluster(sp, off); c <= last && !is_near; c++)
		is_near = qk_space_map_may_hold(sp, c);
	if (!is_near)
		return QCOW_OK;
	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = qk_space_judge_write(sp, kind, off, len, err);
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}

void qk_space_l1_moved(struct qk_space *sp, uint64_t off, uint64_t bytes)
{
	uint64_t old = (uint64_t)sp->header.l1_entries * 8;

	(void)pthread_mutex_lock(&sp->lock);
	if (old != 0)
		qk_space_map_forget(sp, qk_space_cluster(sp, sp->header.l1_off),
			qk_div_up(old, sp->g->cluster_size));
	sp->header.l1_off = off;
	sp->header.l1_entries = (uint32_t)(bytes / 8);
	(void)pthread_mutex_unlock(&sp->lock);
}

/* ---- the header ---- */

static enum qcow_status patch_header(struct qk_space *sp, const struct qk_header_patch *patches,
	unsigned n, struct qcow_error *err)
{
	uint8_t sector[QK_SECTOR];

	memcpy(sector, sp->sector0, sizeof(sector));
	for (unsigned i = 0; i < n; i++) {
		const struct qk_header_patch *patch = &patches[i];
		QK_ASSERT(X1, patch->len <= QK_SECTOR && patch->off <= QK_SECTOR - patch->len);
		memcpy(sector + patch->off, patch->bytes, patch->len);
	}
	QK_TRY(qcow_store_write(sp->store, sector, sizeof(sector), 0, err));
	memcpy(sp->sector0, sector, sizeof(sector));
	return QCOW_OK;
}

enum qcow_status qk_space_patch_header(
	struct qk_space *sp, const struct qk_header_patch *patch, struct qcow_error *err)
{
	return patch_header(sp, patch, 1, err);
}

enum qcow_status qk_space_write_patches(struct qk_space *sp, const struct qk_header_patch *patches,
	unsigned n, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = qk_space_judge_write(sp, QK_SPACE_HEADER, 0, QK_SECTOR, err);
	if (status == QCOW_OK)
		status = patch_header(sp, patches, n, err);
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}

enum qcow_status qk_space_write_header(
	struct qk_space *sp, const struct qk_header_patch *patch, struct qcow_error *err)
{
	return qk_space_write_patches(sp, patch, 1, err);
}

void qk_space_sector0(struct qk_space *sp, uint8_t out[QK_SECTOR])
{
	(void)pthread_mutex_lock(&sp->lock);
	memcpy(out, sp->sector0, QK_SECTOR);
	(void)pthread_mutex_unlock(&sp->lock);
}

enum qcow_status qk_space_follow(
	struct qk_space *sp, const struct qk_header *header, struct qcow_error *err)
{
	uint8_t sector[QK_SECTOR];

	QK_TRY(qcow_store_read_padded(sp->store, sector, sizeof(sector), 0, err));
	(void)pthread_mutex_lock(&sp->lock);
	QK_ASSERT_VOID(X1, sp->header.rt_off == header->rt_off &&
				   sp->header.rt_clusters == header->rt_clusters);
	sp->header = *header;
	memcpy(sp->sector0, sector, sizeof(sector));
	(void)pthread_mutex_unlock(&sp->lock);
	return QCOW_OK;
}

void qk_space_corrupt(struct qk_space *sp)
{
	uint8_t bytes[8];
	struct qk_header_patch patch = {HEADER_INCOMPATIBLE, sizeof(bytes), bytes};

	if (sp->is_corrupt)
		return;
	sp->is_corrupt = true;
	if (sp->header.version < 3)
		return;
	qk_store64(bytes, qk_load64(sp->sector0 + HEADER_INCOMPATIBLE) | QCOW_INCOMPAT_CORRUPT);
	/* where it cannot be set the next write path finds out for itself */
	if (qk_space_patch_header(sp, &patch, NULL) != QCOW_OK ||
		qcow_store_flush(sp->store, NULL) != QCOW_OK)
		return;
}

void qk_space_mark_corrupt(struct qk_space *sp)
{
	(void)pthread_mutex_lock(&sp->lock);
	qk_space_corrupt(sp);
	(void)pthread_mutex_unlock(&sp->lock);
}
