/* SPDX-License-Identifier: MIT */
/*
 * bitmap_edit: see bitmap_edit.h.
 *
 *	plan	every action is judged, in order, against the list as the ones before it leave it; nothing is written
 *	carry	new tables and data in fresh clusters, then the whole directory || the header's extension and autoclear bit,
 *		as header_store switches them || old tables, data and directory are dropped
 *
 * Until the switch the disk names what it named; a failure gives back what was taken. What an action made and a later one
 * replaced is given back after the switch.
 * Specification: "Bitmaps extension", "Bitmaps".
 */
#include "engine/bitmap_edit.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "engine/bitmap.h"
#include "engine/bitmap_list.h"
#include "engine/control.h"
#include "engine/header_store.h"
#include "engine/image.h"
#include "engine/rw.h"
#include "engine/track.h"

/* An action whose bitmaps were found. */
struct step {
	enum qcow_bitmap_act act;
	uint32_t index; /* in the list */
	uint32_t source; /* MERGE: in the list, or of `image` */
	struct qcow_image *image; /* of the source, or NULL: the same */
};

struct edit {
	struct qcow_image *image;
	const struct qcow_bitmap_action *actions;
	size_t n_actions;
	const struct qcow_bitmap_edit_options *options;
	struct qk_bitmap_list list;
	struct step *steps;
	size_t n_steps;
	bool is_changed; /* there is something to write */
	struct qk_fresh fresh;
	struct qk_bitmap_writer writer;
};

/* ---- plan ---- */

static enum qcow_status find(
	const struct edit *e, const char *name, uint32_t *index, struct qcow_error *err)
{
	*index = qk_bitmap_list_find(&e->list, name);
	if (*index == QK_NO_BITMAP)
		return QK_FAIL(err, QCOW_E_NOENT, "Dirty bitmap '%s' not found", name);
	return QCOW_OK;
}

static enum qcow_status fail_inconsistent(const char *name, struct qcow_error *err)
{
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_BITMAP_INCONSISTENT, QCOW_NO_OFFSET,
		QCOW_NO_OFFSET, "Bitmap '%s' is inconsistent and cannot be used", name);
}

/* The bitmap of that name, where it may be used. */
static enum qcow_status find_usable(
	const struct edit *e, const char *name, uint32_t *index, struct qcow_error *err)
{
	QK_TRY(find(e, name, index, err));
	const struct qk_bitmap_entry *entry = &e->list.items[*index].entry;
	if ((entry->flags & QK_BITMAP_IN_USE) != 0)
		return fail_inconsistent(name, err);
	if (!qk_bitmap_is_usable(entry))
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"bitmap '%s' has %zu bytes of extra data that are not known here, and "
			"nobody may ignore them: it can only be removed",
			name, entry->extra.n);
	return QCOW_OK;
}

/* QEMU's: the cluster size, within 4 KiB and 64 KiB. */
static unsigned default_granularity(const struct qcow_image *image)
{
	return (unsigned)qk_max(12, qk_min(16, image->geometry.cluster_bits));
}

static enum qcow_status judge_new(
	const struct edit *e, const char *name, unsigned granularity_bits, struct qcow_error *err)
{
	const struct qcow_image *image = e->image;
	size_t n = strlen(name);
	if (n == 0)
		return QK_FAIL(err, QCOW_E_INVAL, "Bitmap name cannot be empty");
	if (n > QK_MAX_WRITTEN_BITMAP_NAME)
		return QK_FAIL(err, QCOW_E_INVAL,
			"Name length exceeds maximum (%u characters): it has %zu",
			QK_MAX_WRITTEN_BITMAP_NAME, n);
	if (granularity_bits < QK_MIN_WRITTEN_GRANULARITY_BITS ||
		granularity_bits > QK_MAX_WRITTEN_GRANULARITY_BITS)
		return QK_FAIL(err, QCOW_E_INVAL,
			"Granularity must be power of 2 and at least 512, and at most 2 GiB: not "
			"2^%u",
			granularity_bits);
	if (image->header.size == 0)
		return QK_FAIL(err, QCOW_E_INVAL, "a disk of 0 bytes has no bitmaps");
	if (qk_bitmap_list_find(&e->list, name) != QK_NO_BITMAP)
		return QK_FAIL(err, QCOW_E_EXIST, "Bitmap already exists: %s", name);
	if (!qk_bitmap_is_read_by_qemu(&image->geometry, image->header.size, granularity_bits))
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"QEMU could not open the image: of a disk of %" PRIu64
			" bytes the bitmap would have a table entry for less than a sector",
			image->header.size);
	uint64_t entries = qk_bitmap_table_entries(
		&image->geometry, image->header.size, granularity_bits);
	if (entries * 8 > QK_MAX_BITMAP_TABLE_BYTES ||
		entries * image->geometry.cluster_size >
			QK_TRACK_BYTES + image->geometry.cluster_size)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"Too much space will be occupied by the bitmap: %" PRIu64
			" clusters. Use larger granularity",
			entries);
	return QCOW_OK;
}

static enum qcow_status plan_add(struct edit *e, const struct qcow_bitmap_action *a,
	struct step *step, struct qcow_error *err)
{
	unsigned bits = a->granularity_bits != 0 ? a->granularity_bits
						 : default_granularity(e->image);
	QK_TRY(judge_new(e, a->name, bits, err));
	e->is_changed = true;
	return qk_bitmap_list_add(&e->list, a->name, bits, &step->index, err);
}

static void remove_item(struct edit *e, uint32_t index)
{
	e->list.items[index].is_removed = true;
	e->list.n_kept--;
	e->is_changed = true;
}

static void remove_all(struct edit *e)
{
	for (uint32_t i = 0; i < e->list.n; i++)
		if (!e->list.items[i].is_removed)
			remove_item(e, i);
}

static enum qcow_status plan_enable(struct edit *e, const struct qcow_bitmap_action *a,
	struct step *step, struct qcow_error *err)
{
	QK_TRY(find_usable(e, a->name, &step->index, err));
	uint32_t *flags = &e->list.items[step->index].entry.flags;
	uint32_t was = *flags;
	*flags = a->act == QCOW_BITMAP_ENABLE ? was | QK_BITMAP_AUTO : was & ~QK_BITMAP_AUTO;
	e->is_changed = e->is_changed || *flags != was;
	return QCOW_OK;
}

struct look {
	enum qcow_status status;
	struct qcow_error *err;
};

static bool judge_in_use(void *ctx, uint32_t index, const struct qcow_bitmap *b, unsigned finding)
{
	struct look *look = ctx;
	(void)index;
	(void)finding;
	look->status = fail_inconsistent(b->name, look->err);
	return false;
}

/* The source of a merge in another image: is it there, and can it be read? */
static enum qcow_status find_apart(struct qcow_image *image, const struct qcow_bitmap_action *a,
	struct step *step, struct qcow_error *err)
{
	struct qcow_bitmap_reader *reader = NULL;
	struct qcow_error own = QCOW_ERROR_INIT;
	struct look look = {.err = err};
	enum qcow_status status = qk_bitmap_find(a->source_image, a->source, &step->source, &own);
	if (status == QCOW_E_NOENT)
		return QK_FAIL(err, status, "Dirty bitmap '%s' not found", a->source);
	if (status == QCOW_OK)
		status = qk_bitmap_reader_new(a->source_image, step->source, &reader, &own);
	qk_bitmap_reader_free(reader);
	if (own.finding == QCOW_FINDING_BITMAP_INCONSISTENT) {
		QK_TRY(qk_bitmap_look(a->source_image, step->source, judge_in_use, &look, err));
		return look.status;
	}
	if (status != QCOW_OK) {
		if (err != NULL)
			*err = own;
		return status;
	}
	if (image->header.size != a->source_image->header.size)
		return QK_FAIL(err, QCOW_E_INVAL,
			"Bitmaps are of different sizes (destination size is %" PRIu64
			", source size is %" PRIu64 ") and can't be merged",
			image->header.size, a->source_image->header.size);
	step->image = a->source_image;
	return QCOW_OK;
}

static enum qcow_status plan_merge(struct edit *e, const struct qcow_bitmap_action *a,
	struct step *step, struct qcow_error *err)
{
	bool is_apart = a->source_image != NULL && a->source_image != e->image;
	if (a->source == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "a merge needs the name of a source");
	QK_TRY(find(e, a->name, &step->index, err));
	if (!is_apart)
		QK_TRY(find(e, a->source, &step->source, err));
	QK_TRY(find_usable(e, a->name, &step->index, err));
	if (is_apart)
		QK_TRY(find_apart(e->image, a, step, err));
	else
		QK_TRY(find_usable(e, a->source, &step->source, err));
	e->is_changed = e->is_changed || is_apart || step->source != step->index;
	return QCOW_OK;
}

static enum qcow_status plan_action(struct edit *e, const struct qcow_bitmap_action *a,
	struct step *step, struct qcow_error *err)
{
	step->act = a->act;
	if (a->name == NULL && a->act != QCOW_BITMAP_REMOVE_ALL)
		return QK_FAIL(err, QCOW_E_INVAL, "an action needs the name of a bitmap");
	switch (a->act) {
	case QCOW_BITMAP_ADD:
		return plan_add(e, a, step, err);
	case QCOW_BITMAP_REMOVE:
		QK_TRY(find(e, a->name, &step->index, err));
		remove_item(e, step->index);
		return QCOW_OK;
	case QCOW_BITMAP_REMOVE_ALL:
		remove_all(e);
		return QCOW_OK;
	case QCOW_BITMAP_CLEAR:
		e->is_changed = true;
		return find_usable(e, a->name, &step->index, err);
	case QCOW_BITMAP_ENABLE:
	case QCOW_BITMAP_DISABLE:
		return plan_enable(e, a, step, err);
	case QCOW_BITMAP_MERGE:
		return plan_merge(e, a, step, err);
	}
	return QK_FAIL(err, QCOW_E_INVAL, "no such action on a bitmap: %d", (int)a->act);
}

/* What is enabled in the end has to be tracked. */
static enum qcow_status judge_tracked(const struct edit *e, struct qcow_error *err)
{
	uint64_t total = 0;
	for (uint32_t i = 0; i < e->list.n; i++) {
		const struct qk_bitmap_item *item = &e->list.items[i];
		bool is_tracked = (item->entry.flags & (QK_BITMAP_AUTO | QK_BITMAP_IN_USE)) ==
				  QK_BITMAP_AUTO;
		if (is_tracked && !item->is_removed)
			total += qk_div_up(item->target.n_bits, 64) * 8;
	}
	if (total > QK_TRACK_TOTAL_BYTES)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"the enabled bitmaps would take %" PRIu64
			" bytes to track: at most %" PRIu64
			" can be. Disable some, or use larger granularity",
			total, (uint64_t)QK_TRACK_TOTAL_BYTES);
	return QCOW_OK;
}

static enum qcow_status plan(struct edit *e, size_t *failed, struct qcow_error *err)
{
	QK_TRY(qk_bitmap_list_load(&e->list, e->image, err));
	e->steps = qk_calloc(e->n_actions, sizeof(*e->steps));
	if (e->steps == NULL)
		return QK_FAIL_NOMEM(err);
	for (size_t i = 0; i < e->n_actions; i++) {
		enum qcow_status status = plan_action(e, &e->actions[i], &e->steps[i], err);
		if (status != QCOW_OK) {
			*failed = i;
			return status;
		}
	}
	return judge_tracked(e, err);
}

/* ---- carrying it out ---- */

static enum qcow_status open_source(const struct edit *e, const struct step *step,
	struct qcow_bitmap_reader **out, struct qcow_error *err)
{
	if (step->image != NULL)
		return qk_bitmap_reader_new(step->image, step->source, out, err);
	const struct qk_bitmap_target *t = &e->list.items[step->source].target;
	const struct qk_bitmap_place place = {t->granularity_bits, t->table_entries, t->table_off};
	if (t->table_off == 0)
		return QCOW_OK;
	return qk_bitmap_reader_on(e->image, &place, out, err);
}

static enum qcow_status merge(struct edit *e, const struct step *step, struct qcow_error *err)
{
	struct qk_bitmap_target *t = &e->list.items[step->index].target;
	struct qcow_bitmap_reader *reader = NULL;
	struct qk_bitmap_copy copy = {0};
	if (step->image == NULL && step->source == step->index)
		return QCOW_OK;
	enum qcow_status status = open_source(e, step, &reader, err);
	if (status == QCOW_OK && reader != NULL)
		status = qk_bitmap_copy_init(&copy, reader, t->granularity_bits, err);
	if (status == QCOW_OK && reader != NULL) {
		const struct qk_bitmap_bits bits = qk_bitmap_copy_bits(&copy);
		status = qk_bitmap_write(&e->writer, t, &bits, err);
	}
	qk_bitmap_copy_release(&copy);
	qk_bitmap_reader_free(reader);
	return status;
}

static enum qcow_status carry_step(struct edit *e, const struct step *step, struct qcow_error *err)
{
	struct qk_bitmap_target *t = &e->list.items[step->index].target;
	if (step->act == QCOW_BITMAP_MERGE)
		return merge(e, step, err);
	if (step->act == QCOW_BITMAP_CLEAR) {
		QK_TRY(qk_bitmap_write_undo(&e->writer, t, err));
		t->table_off = 0;
	}
	return QCOW_OK;
}

/* A table for what is clear; none for what is removed. */
static enum qcow_status finish_items(struct edit *e, struct qcow_error *err)
{
	for (uint32_t i = 0; i < e->list.n; i++) {
		struct qk_bitmap_item *item = &e->list.items[i];
		if (item->is_removed)
			QK_TRY(qk_bitmap_write_undo(&e->writer, &item->target, err));
		else if (item->target.table_off == 0 && item->target.table_entries != 0)
			QK_TRY(qk_bitmap_write_clear(&e->writer, &item->target, err));
	}
	return QCOW_OK;
}

static void report(const struct edit *e, size_t done)
{
	const struct qcow_progress *p = &e->options->progress;
	if (p->report != NULL)
		p->report(p->ctx, done, e->n_actions + 1);
}

static enum qcow_status write_fresh(
	struct edit *e, size_t *failed, struct qk_bitmaps_ext *ext, struct qcow_error *err)
{
	QK_TRY(qk_bitmap_writer_init(&e->writer, e->image, &e->fresh, err));
	e->writer.progress = &e->options->progress;
	for (size_t i = 0; i < e->n_actions; i++) {
		enum qcow_status status = carry_step(e, &e->steps[i], err);
		if (status != QCOW_OK) {
			*failed = i;
			return status;
		}
		report(e, i + 1);
	}
	QK_TRY(finish_items(e, err));
	return qk_bitmap_list_write(&e->list, &e->fresh, ext, err);
}

static enum qcow_status switch_header(
	struct edit *e, const struct qk_bitmaps_ext *ext, struct qcow_error *err)
{
	struct qk_header_area area;
	enum qcow_status status = qk_header_store_load(e->image, &area, err);
	if (status == QCOW_OK) {
		area.ext.has_bitmaps = ext->n_bitmaps != 0;
		area.ext.bitmaps = *ext;
		area.header.autoclear &= ~QCOW_AUTOCLEAR_BITMAPS;
		if (ext->n_bitmaps != 0)
			area.header.autoclear |= QCOW_AUTOCLEAR_BITMAPS;
		status = qk_header_store_write(e->image, &area, err);
	}
	qk_header_store_release(&area);
	return status;
}

/* Alone with the image. */
static enum qcow_status carry_out(struct edit *e, size_t *failed, struct qcow_error *err)
{
	struct qk_bitmaps_ext ext = {0};
	QK_TRY(plan(e, failed, err));
	if (!e->is_changed)
		return QCOW_OK;
	enum qcow_status status = write_fresh(e, failed, &ext, err);
	if (status == QCOW_OK)
		status = qk_control_barrier(e->image, err);
	if (status == QCOW_OK)
		status = switch_header(e, &ext, err);
	if (status == QCOW_OK) {
		qk_bitmap_list_drop(&e->list);
		qk_fresh_keep(&e->fresh);
		report(e, e->n_actions + 1);
	} else if (!qk_control_is_fenced(e->image)) {
		qk_fresh_give_back(&e->fresh, NULL);
	}
	return status;
}

/* ---- the call ---- */

static enum qcow_status judge(const struct edit *e, struct qcow_error *err)
{
	const struct qcow_image *image = e->image;
	if (image->is_raw)
		return QK_FAIL(err, QCOW_E_NOTSUP, "'%s' is no qcow2 image, and holds no bitmaps",
			qcow_store_name(image->store));
	if (image->geometry.version < 3)
		return QK_FAIL(
			err, QCOW_E_UNSUPPORTED, "Cannot store dirty bitmaps in qcow2 v2 files");
	if (image->read_only_at_most)
		return QK_FAIL(err, QCOW_E_READONLY,
			"the image is marked corrupt or its metadata is damaged: it can be opened "
			"read-only at most");
	if (image->rw == NULL && !e->options->dry_run)
		return QK_FAIL(err, QCOW_E_READONLY, "'%s' is not open for writing",
			qcow_store_name(image->store));
	return QCOW_OK;
}

static void release(struct edit *e)
{
	qk_bitmap_list_release(&e->list);
	qk_bitmap_writer_release(&e->writer);
	qk_fresh_release(&e->fresh);
	free(e->steps);
}

enum qcow_status qk_bitmap_edit(struct qcow_image *image, const struct qcow_bitmap_action *actions,
	size_t n_actions, const struct qcow_bitmap_edit_options *options, size_t *failed,
	struct qcow_error *err)
{
	struct edit e = {
		.image = image, .actions = actions, .n_actions = n_actions, .options = options};
	*failed = n_actions;
	QK_TRY(judge(&e, err));
	qk_fresh_init(&e.fresh, image, QK_SPACE_BITMAPS);
	enum qcow_status status = QCOW_OK;
	if (options->dry_run) {
		status = plan(&e, failed, err);
	} else {
		status = qk_control_begin(image, err);
		if (status == QCOW_OK) {
			status = carry_out(&e, failed, err);
			bool is_done = status == QCOW_OK && e.is_changed;
			status = qk_control_end(
				image, is_done ? QK_RELOAD_HEADER : 0U, status, err);
		}
	}
	release(&e);
	return status;
}
