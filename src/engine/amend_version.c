/* SPDX-License-Identifier: MIT */
/*
 * amend_version: the header of another version, and fields of it.
 *
 *	to 3	a snapshot table with sizes || header area || the old table is free
 *	to 2	zero clusters go || header area
 *
 * The header area is rewritten by engine/header_store.h: the old one or the new one, whatever happens.
 */
#include "engine/amend.h"

#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/control.h"
#include "engine/fresh.h"
#include "engine/header_store.h"
#include "engine/image.h"
#include "engine/rw.h"
#include "engine/snapshot_int.h"
#include "format/snaptab.h"

#define COMPATIBLE_OFF 80U
#define SIZES_BYTES    16U /* of the extra data of an entry: VM state, disk */
#define NO_ICOUNT      UINT64_MAX

/* Change the header area by `edit`, alone. After a failure the disk says what became of it. */
static enum qcow_status write_area(struct qcow_image *image,
	void (*edit)(struct qk_header_area *area, const void *ctx), const void *ctx,
	struct qcow_error *err)
{
	struct qk_header_area area = {0};
	enum qcow_status status = qk_control_barrier(image, err);
	if (status == QCOW_OK)
		status = qk_header_store_load(image, &area, err);
	if (status == QCOW_OK) {
		edit(&area, ctx);
		status = qk_header_store_write(image, &area, err);
	}
	qk_header_store_release(&area);
	return status;
}

/* ---- to version 3 ---- */

struct upgrade {
	struct qk_snaps snaps;
	struct qk_fresh fresh;
	uint8_t *sizes; /* QK_SNAPSHOT_EXTRA_BYTES for each snapshot */
	uint64_t table_off; /* 0: the table stays */
};

/* Entries without sizes get them. */
static enum qcow_status add_sizes(
	struct qcow_image *image, struct upgrade *u, bool *has_changed, struct qcow_error *err)
{
	u->sizes = qk_calloc(u->snaps.n + UINT64_C(1), QK_SNAPSHOT_EXTRA_BYTES);
	if (u->sizes == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint32_t i = 0; i < u->snaps.n; i++) {
		struct qk_snapshot_entry *e = &u->snaps.v[i];
		uint8_t *extra = u->sizes + (size_t)i * QK_SNAPSHOT_EXTRA_BYTES;
		if (e->extra.n >= SIZES_BYTES)
			continue;
		qk_store64(extra, qk_snapshot_vm_state_bytes(e));
		qk_store64(extra + 8, image->size);
		qk_store64(extra + SIZES_BYTES, NO_ICOUNT);
		e->extra = (struct qk_span){extra, QK_SNAPSHOT_EXTRA_BYTES};
		*has_changed = true;
	}
	return QCOW_OK;
}

static void edit_upgrade(struct qk_header_area *area, const void *ctx)
{
	const struct upgrade *u = ctx;
	struct qk_header *h = &area->header;
	h->version = 3;
	h->header_length = QK_V3_HEADER_BYTES;
	h->refcount_order = 4;
	h->incompatible = h->compatible = h->autoclear = 0;
	h->compression_type = QK_COMPRESSION_DEFLATE;
	h->tail = (struct qk_span){NULL, 0};
	if (u->table_off != 0)
		h->snapshots_off = u->table_off;
}

static enum qcow_status upgrade(struct qcow_image *image, struct upgrade *u, struct qcow_error *err)
{
	bool has_changed = false;
	QK_TRY(qk_snaps_load(image, &u->snaps, err));
	uint64_t old_bytes = u->snaps.n_bytes;
	QK_TRY(add_sizes(image, u, &has_changed, err));
	if (has_changed)
		QK_TRY(qk_snaps_store(&u->snaps, &u->fresh, &u->table_off, err));
	QK_TRY(write_area(image, edit_upgrade, u, err));
	if (!has_changed)
		return QCOW_OK;
	/* what cannot be dropped is a leak */
	enum qcow_status status = qk_space_drop(image->rw->space, image->header.snapshots_off,
		qk_div_up(old_bytes, image->geometry.cluster_size), NULL);
	(void)status;
	return QCOW_OK;
}

enum qcow_status qk_amend_upgrade(struct qcow_image *image, struct qcow_error *err)
{
	struct upgrade u = {0};
	QK_TRY(qk_control_begin(image, err));
	qk_fresh_init(&u.fresh, image, QK_SPACE_SNAPSHOTS);
	enum qcow_status status = upgrade(image, &u, err);
	if (status != QCOW_OK && !qk_control_is_fenced(image))
		qk_fresh_give_back(&u.fresh, NULL);
	qk_snaps_release(&u.snaps);
	qk_fresh_release(&u.fresh);
	free(u.sizes);
	return qk_control_end(image, status == QCOW_OK ? QK_RELOAD_HEADER : 0U, status, err);
}

/* ---- to version 2 ---- */

static void edit_downgrade(struct qk_header_area *area, const void *ctx)
{
	struct qk_header *h = &area->header;
	(void)ctx;
	h->version = 2;
	h->header_length = QK_V2_HEADER_BYTES;
	h->refcount_order = 4;
	h->incompatible = h->compatible = h->autoclear = 0;
	h->compression_type = QK_COMPRESSION_DEFLATE;
	h->tail = (struct qk_span){NULL, 0};
}

enum qcow_status qk_amend_downgrade(
	struct qcow_image *image, const struct qcow_progress *progress, struct qcow_error *err)
{
	QK_TRY(qk_control_begin(image, err));
	enum qcow_status status = qk_amend_zeros(image, progress, err);
	if (status == QCOW_OK)
		status = write_area(image, edit_downgrade, NULL, err);
	return qk_control_end(image, status == QCOW_OK ? QK_RELOAD_HEADER : 0U, status, err);
}

/* ---- fields ---- */

enum qcow_status qk_amend_lazy(struct qcow_image *image, bool is_on, struct qcow_error *err)
{
	uint8_t bytes[8];
	const struct qk_header_patch patch = {COMPATIBLE_OFF, sizeof(bytes), bytes};
	QK_TRY(qk_control_begin(image, err));
	uint64_t rest = image->header.compatible & ~QK_COMPAT_LAZY_REFCOUNTS;
	qk_store64(bytes, is_on ? rest | QK_COMPAT_LAZY_REFCOUNTS : rest);
	enum qcow_status status = qk_control_switch(image, &patch, 1, 0, err);
	return qk_control_end(image, status == QCOW_OK ? QK_RELOAD_HEADER : 0U, status, err);
}

struct data_file {
	const char *name;
	bool raw_off;
};

static void edit_data_file(struct qk_header_area *area, const void *ctx)
{
	const struct data_file *d = ctx;
	if (d->name != NULL)
		area->ext.data_file = qk_header_store_text(d->name);
	if (d->raw_off)
		area->header.autoclear &= ~QK_AUTOCLEAR_RAW_DATA;
}

enum qcow_status qk_amend_data_file(
	struct qcow_image *image, const char *name, bool raw_off, struct qcow_error *err)
{
	const struct data_file d = {name, raw_off};
	QK_TRY(qk_control_begin(image, err));
	enum qcow_status status = write_area(image, edit_data_file, &d, err);
	return qk_control_end(image, status == QCOW_OK ? QK_RELOAD_HEADER : 0U, status, err);
}
