/* SPDX-License-Identifier: MIT */
/*
 * empty: see empty.h. One thread, behind everybody who reads and writes. Two walks over the L2 tables: the first follows
 * every entry, so that nothing is begun in a damaged image; the second drops. A table that several L1 entries
 * name, as snapshots never make it, is refused with the rest of the damage when the image is opened.
 *
 * What lies in a data file goes back to the host, as what lies behind the last cluster does when the image is closed: nothing
 * names it any more, durably, and nobody else is there.
 *
 * Specification: "Cluster mapping".
 */
#include "engine/empty.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/compress.h"
#include "engine/data_file.h"
#include "engine/decode.h"
#include "engine/fence.h"
#include "engine/image.h"
#include "engine/log.h"
#include "engine/meta.h"
#include "engine/rw.h"
#include "engine/space.h"
#include "format/l1l2.h"

#define ZERO_BYTES QK_KIB(64)

struct empty {
	struct qcow_image *image;
	uint8_t *l1, *l2; /* the whole table; one cluster */
	uint64_t l1_bytes;
	bool is_dropping; /* else only looking */
	/* neighbours that wait to be dropped together */
	uint64_t run_off, run_n;
	/* bytes of the data file */
	uint64_t hole_off, hole_bytes;
	uint64_t n_leaked;
};

/* ---- dropping ---- */

static void drop_run(struct empty *e)
{
	struct qcow_image *image = e->image;
	if (e->run_n == 0)
		return;
	qk_compress_forget(image, e->run_off, e->run_n);
	qk_decode_forget(image->decode, e->run_off, e->run_n * image->geometry.cluster_size);
	if (qk_space_drop(image->rw->space, e->run_off, e->run_n, NULL) != QCOW_OK)
		e->n_leaked += e->run_n;
	e->run_n = 0;
}

static void drop(struct empty *e, uint64_t off, uint64_t n)
{
	uint64_t cluster_size = e->image->geometry.cluster_size;
	if (e->run_n != 0 && e->run_off + e->run_n * cluster_size != off)
		drop_run(e);
	if (e->run_n == 0)
		e->run_off = off;
	e->run_n += n;
}

static void give_back_hole(struct empty *e)
{
	if (e->hole_bytes != 0)
		qk_data_file_give_back(e->image, e->hole_off, e->hole_bytes);
	e->hole_bytes = 0;
}

static void give_back(struct empty *e, uint64_t off)
{
	if (e->hole_off + e->hole_bytes != off)
		give_back_hole(e);
	if (e->hole_bytes == 0)
		e->hole_off = off;
	e->hole_bytes += e->image->geometry.cluster_size;
}

static void drop_entry(struct empty *e, const struct qk_l2_entry *entry)
{
	const struct qk_geometry *g = &e->image->geometry;
	if (entry->type == QK_L2_COMPRESSED) {
		uint64_t first = entry->host_off.v >> g->cluster_bits;
		uint64_t last = (entry->host_off.v + entry->compressed_bytes - 1) >>
				g->cluster_bits;
		drop_run(e); /* the next one may begin in the cluster where this one ends */
		drop(e, first << g->cluster_bits, last - first + 1);
		drop_run(e);
	} else if (qk_l2_has_host(entry) && g->data_file) {
		give_back(e, entry->host_off.v);
	} else if (qk_l2_has_host(entry)) {
		drop(e, entry->host_off.v, 1);
	}
}

/* ---- the walk ---- */

static enum qcow_status fail_entry(
	const struct qk_l2_entry *entry, uint64_t at, uint64_t guest, struct qcow_error *err)
{
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, entry->finding, at, guest,
		"the L2 entry at %" PRIu64 " is damaged, and the image is not emptied: %s", at,
		qcow_finding_text(entry->finding));
}

static enum qcow_status walk_table(
	struct empty *e, uint64_t l2_off, uint64_t guest, struct qcow_error *err)
{
	const struct qk_geometry *g = &e->image->geometry;
	size_t bytes = (size_t)g->cluster_size;
	QK_TRY(qcow_store_read_padded(e->image->store, e->l2, bytes, l2_off, err));
	for (uint32_t i = 0; i < bytes / g->l2_entry_size; i++) {
		uint64_t raw = 0, bitmap = 0, at = guest + ((uint64_t)i << g->cluster_bits);
		qk_l2_load(g, e->l2, i, &raw, &bitmap);
		struct qk_l2_entry entry = qk_l2_decode(g, raw, bitmap, (qk_goff){at});
		if (entry.finding != 0 && !e->is_dropping)
			return fail_entry(&entry, l2_off + (uint64_t)i * g->l2_entry_size, at, err);
		if (e->is_dropping && entry.finding == 0)
			drop_entry(e, &entry);
	}
	return QCOW_OK;
}

static enum qcow_status walk(struct empty *e, struct qcow_error *err)
{
	const struct qk_geometry *g = &e->image->geometry;
	uint64_t span = g->cluster_size / g->l2_entry_size * g->cluster_size;
	for (uint64_t i = 0; i < e->l1_bytes / 8; i++) {
		struct qk_l1_entry entry = qk_l1_decode(g, qk_load64(e->l1 + i * 8));
		if (entry.finding != 0 && !e->is_dropping)
			return QK_FAIL_AT(err, QCOW_E_CORRUPT, entry.finding,
				e->image->l1_off + i * 8, i * span, "L1 entry %" PRIu64 ": %s", i,
				qcow_finding_text(entry.finding));
		if (entry.finding != 0 || entry.l2_off.v == 0)
			continue;
		enum qcow_status status = walk_table(e, entry.l2_off.v, i * span, err);
		if (!e->is_dropping)
			QK_TRY(status);
		if (!e->is_dropping || status != QCOW_OK)
			continue;
		qk_meta_forget(e->image->meta, entry.l2_off.v);
		drop(e, entry.l2_off.v, 1);
	}
	drop_run(e);
	give_back_hole(e);
	return QCOW_OK;
}

/* ---- the switch ---- */

static enum qcow_status zero_l1(struct empty *e, struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *zeros = qk_calloc(1, ZERO_BYTES);
	if (zeros == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qk_space_check_overlap(
		e->image->rw->space, QK_SPACE_L1, e->image->l1_off, e->l1_bytes, err));
	struct qcow_error why = QCOW_ERROR_INIT;
	enum qcow_status status = QCOW_OK;
	for (uint64_t at = 0; at < e->l1_bytes && status == QCOW_OK; at += ZERO_BYTES)
		status = qcow_store_write(e->image->store, zeros,
			(size_t)qk_min(ZERO_BYTES, e->l1_bytes - at), e->image->l1_off + at, &why);
	if (status == QCOW_OK)
		status = qcow_store_flush(e->image->store, &why);
	if (status == QCOW_OK)
		return QCOW_OK;
	if (err != NULL)
		*err = why;
	return qk_fence_raise(&e->image->rw->fence, status, &why);
}

static enum qcow_status run(struct empty *e, struct qcow_error *err)
{
	QK_TRY(qcow_store_read(e->image->store, e->l1, (size_t)e->l1_bytes, e->image->l1_off, err));
	QK_TRY(walk(e, err));
	QK_TRY(zero_l1(e, err));
	e->is_dropping = true;
	QK_TRY(walk(e, err));
	qk_space_let_cut(e->image->rw->space);
	if (e->n_leaked != 0)
		qk_log(e->image, QCOW_LOG_WARNING, 0, "%" PRIu64 " clusters are leaked",
			e->n_leaked);
	return QCOW_OK;
}

enum qcow_status qk_empty(struct qcow_image *image, struct qcow_error *err)
{
	struct empty e = {.image = image, .l1_bytes = (uint64_t)image->l1_entries * 8};
	if ((image->header.autoclear & QK_AUTOCLEAR_RAW_DATA) != 0)
		return QK_FAIL(err, QCOW_E_NOTSUP,
			"'%s' has a raw data file, which is the disk: it is not emptied",
			qcow_store_name(image->store));
	if (e.l1_bytes == 0)
		return QCOW_OK;
	e.l1 = qk_malloc(e.l1_bytes, 1);
	e.l2 = qk_malloc(image->geometry.cluster_size, 1);
	enum qcow_status status = e.l1 != NULL && e.l2 != NULL ? run(&e, err) : QK_FAIL_NOMEM(err);
	free(e.l1);
	free(e.l2);
	return status;
}
