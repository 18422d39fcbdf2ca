/* SPDX-License-Identifier: MIT */
/*
 * snapshot: see snapshot.h. Which trees come and go, and the one write that makes it so.
 *
 * Everything here runs between begin and end of control.h, alone. Until the switch only clusters that nothing names are
 * written; a failure gives them back.
 */
#include "engine/snapshot.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "audit/refs.h"
#include "engine/control.h"
#include "engine/look.h"
#include "engine/rw.h"
#include "engine/snapshot_int.h"
#include "engine/track.h"

/* Header bytes 24-71: size, encryption, L1, refcount table, snapshots. */
#define SWITCH_OFF   24U
#define SWITCH_BYTES 48U
/* … and within them */
#define AT_SIZE	       0U
#define AT_L1_ENTRIES  12U
#define AT_L1_OFF      16U
#define AT_REFTABLE    24U
#define AT_N_SNAPSHOTS 36U
#define AT_SNAPSHOTS   40U

/* Below this width a count may well be at its limit: it is looked for before anything is written at all. */
#define NARROW_BITS 16U

/* One operation under way. */
struct op {
	struct qcow_image *image;
	struct qk_space *space;
	bool is_dry; /* judged to its end, and not begun */
	const struct qcow_progress *progress;
	struct qk_snaps snaps;
	struct qk_fresh fresh;
	struct qk_counter counter;
	struct qk_copy copy;
	struct qk_shadow shadow;
	uint64_t *active; /* the active L1 table, host order */
	uint64_t *other; /* the snapshot's, of apply */
	uint8_t header[SWITCH_BYTES]; /* as it is to be */
};

static enum qcow_status op_init(struct op *op, struct qcow_image *image, struct qk_space *space,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	uint8_t sector0[QK_SECTOR];
	*op = (struct op){
		.image = image, .space = space, .is_dry = op->is_dry, .progress = progress};
	qk_fresh_init(&op->fresh, image, QK_SPACE_L1);
	qk_space_sector0(space, sector0);
	memcpy(op->header, sector0 + SWITCH_OFF, SWITCH_BYTES);
	QK_TRY(qk_snaps_load(image, &op->snaps, err));
	QK_TRY(qk_counter_init(&op->counter, image, space, progress, err));
	return qk_l1_read(
		image, image->l1_off, image->l1_entries, image->l1_entries, &op->active, err);
}

static void op_release(struct op *op)
{
	qk_snaps_release(&op->snaps);
	qk_counter_release(&op->counter);
	qk_copy_release(&op->copy);
	qk_shadow_release(&op->shadow);
	qk_fresh_release(&op->fresh);
	free(op->active);
	free(op->other);
}

/* ---- the frame ---- */

static enum qcow_status refuse_data_file(struct qcow_error *err)
{
	return QK_FAIL(err, QCOW_E_UNSUPPORTED,
		"an image with a data file cannot have snapshots: its data is not counted");
}

static enum qcow_status judge(const struct qcow_image *image, struct qcow_error *err)
{
	bool has_data_file = image->rw != NULL && !image->is_raw && image->geometry.data_file;
	return has_data_file ? refuse_data_file(err) : QCOW_OK;
}

/* Run `work`, which ends with the switch, alone. */
static enum qcow_status run(struct qcow_image *image, const struct qcow_progress *progress,
	enum qcow_status (*work)(struct op *op, void *ctx, struct qcow_error *err), void *ctx,
	unsigned reload, struct qcow_error *err)
{
	struct op op = {.is_dry = false};
	QK_TRY(judge(image, err));
	QK_TRY(qk_control_begin(image, err));
	enum qcow_status status = op_init(&op, image, image->rw->space, progress, err);
	if (status == QCOW_OK)
		status = work(&op, ctx, err);
	if (status != QCOW_OK && !qk_control_is_fenced(image)) {
		struct qk_shadow_source source;
		qk_counter_source(&op.counter, &source);
		qk_shadow_undo(&source, &op.shadow);
		qk_fresh_give_back(&op.fresh, NULL);
		qk_shadow_explain(status, err);
	}
	op_release(&op);
	return qk_control_end(image, status == QCOW_OK ? reload : 0, status, err);
}

/* Let `work` judge, and not begin. */
static enum qcow_status run_dry(struct qcow_image *image, const struct qcow_progress *progress,
	enum qcow_status (*work)(struct op *op, void *ctx, struct qcow_error *err), void *ctx,
	enum qcow_prove prove, struct qcow_error *err)
{
	struct op op = {.is_dry = true};
	struct qk_look look;
	if (image->geometry.data_file)
		return refuse_data_file(err);
	QK_TRY(qk_look_begin(&look, image, prove, err));
	if (look.space == NULL)
		return qk_look_end(&look, QCOW_OK, err);
	enum qcow_status status = op_init(&op, image, look.space, progress, err);
	if (status == QCOW_OK)
		status = work(&op, ctx, err);
	op_release(&op);
	return qk_look_end(&look, status, err);
}

/* The old structures that the switch replaces. */
static enum qcow_status count_replaced(struct op *op, struct qcow_error *err)
{
	const struct qcow_image *image = op->image;
	QK_TRY(qk_counter_add_run(&op->counter, image->l1_off,
		(uint64_t)image->l1_entries * sizeof(uint64_t), -1, err));
	return qk_counter_add_run(
		&op->counter, image->header.snapshots_off, op->snaps.n_bytes, -1, err);
}

static enum qcow_status build_shadow(struct op *op, struct qcow_error *err)
{
	struct qk_shadow_source source;
	QK_TRY(qk_counter_load(&op->counter, 0, err));
	qk_counter_source(&op->counter, &source);
	const struct qk_shadow_request rq = {.store = op->image->store,
		.geometry = &op->image->geometry,
		.source = &source,
		.end = op->counter.end,
		.progress = op->progress};
	QK_TRY(qk_shadow_build(&rq, &op->shadow, err));
	qk_shadow_header(&op->shadow, op->header + AT_REFTABLE);
	return QCOW_OK;
}

/* The new active L1 table, and its place in the header. */
static enum qcow_status store_active(
	struct op *op, const uint64_t *l1, uint64_t n, struct qcow_error *err)
{
	uint64_t off = 0;
	QK_TRY(qk_l1_store(l1, n, QK_SPACE_L1, &op->fresh, &off, err));
	qk_store32(op->header + AT_L1_ENTRIES, (uint32_t)n);
	qk_store64(op->header + AT_L1_OFF, off);
	return QCOW_OK;
}

static enum qcow_status store_snapshots(struct op *op, struct qcow_error *err)
{
	uint64_t off = 0;
	QK_TRY(qk_snaps_store(&op->snaps, &op->fresh, &off, err));
	qk_store32(op->header + AT_N_SNAPSHOTS, op->snaps.n);
	qk_store64(op->header + AT_SNAPSHOTS, off);
	return QCOW_OK;
}

/* Everything new is written: count, and switch. */
static enum qcow_status finish(struct op *op, struct qcow_error *err)
{
	const struct qk_header_patch patch = {SWITCH_OFF, SWITCH_BYTES, op->header};
	QK_TRY(count_replaced(op, err));
	qk_counter_follow(&op->counter, &op->fresh);
	QK_TRY(build_shadow(op, err));
	QK_TRY(qk_control_switch(op->image, &patch, 1, QK_SWITCH_SHADOW, err));
	qk_counter_punch(&op->counter);
	return QCOW_OK;
}

/* Would a count be too large, or below 0? Asked of narrow ones, and of a dry run, before the first cluster is taken; the
 * deltas are forgotten. */
static enum qcow_status judge_narrow(struct op *op, struct qcow_error *err)
{
	struct qk_counter *c = &op->counter;
	enum qcow_status status = QCOW_OK;
	if (op->is_dry || op->image->geometry.refcount_bits < NARROW_BITS) {
		status = qk_counter_load(c, 0, err);
		while (status == QCOW_OK && c->hi < c->end)
			status = qk_counter_load(c, c->hi, err);
	}
	qk_counter_reset(c);
	return status;
}

/* ---- create ---- */

struct create {
	const struct qcow_snapshot_create_options *options;
	char id[24];
	uint8_t extra[QK_SNAPSHOT_EXTRA_BYTES];
};

static struct qk_span span_of(const char *text)
{
	return (struct qk_span){(const uint8_t *)text, strlen(text)};
}

static enum qcow_status add_entry(struct op *op, struct create *c, struct qcow_error *err)
{
	const struct qcow_snapshot_create_options *o = c->options;
	struct qk_snapshot_entry *e = NULL;
	uint32_t taken = 0;
	(void)snprintf(c->id, sizeof(c->id), "%" PRIu64, qk_snaps_next_id(&op->snaps));
	const char *id = o->id != NULL ? o->id : c->id;
	if (qk_snaps_find(&op->snaps, id, QCOW_SNAPSHOT_ID, &taken, NULL) == QCOW_OK)
		return QK_FAIL(err, QCOW_E_EXIST, "a snapshot with the id '%s' exists", id);
	QK_TRY(qk_snaps_add(&op->snaps, &e, err));
	qk_store64(c->extra, 0);
	qk_store64(c->extra + 8, op->image->size);
	qk_store64(c->extra + 16, o->icount);
	*e = (struct qk_snapshot_entry){.l1_entries = op->image->l1_entries,
		.date_sec = o->date_sec,
		.date_nsec = o->date_nsec,
		.vm_clock_nsec = o->vm_clock_nsec,
		.extra = {c->extra, sizeof(c->extra)},
		.id = span_of(id),
		.name = span_of(o->name != NULL ? o->name : "")};
	return QCOW_OK;
}

/* Both trees have the tables that are not copied, and the copies; the old ones lose their one reference. */
static enum qcow_status count_created(struct op *op, struct qcow_error *err)
{
	struct qk_counter *c = &op->counter;
	for (uint64_t i = 0; i < op->copy.n; i++) {
		uint64_t old = op->active[i] & QK_OFFSET_MASK;
		bool is_fresh = qk_copy_is_fresh(&op->copy, i);
		if (old == 0)
			continue;
		QK_TRY(qk_counter_add(c, old, is_fresh ? -1 : 1, 0, err));
		if (is_fresh)
			QK_TRY(qk_counter_add(c, op->copy.l1[i], 1, 0, err));
	}
	return QCOW_OK;
}

static enum qcow_status create(struct op *op, void *ctx, struct qcow_error *err)
{
	struct create *c = ctx;
	uint32_t n = op->image->l1_entries;
	QK_TRY(add_entry(op, c, err));
	QK_TRY(qk_counter_add_tree(&op->counter, op->active, n, 1, 1, err));
	QK_TRY(judge_narrow(op, err));
	if (op->is_dry)
		return QCOW_OK;
	QK_TRY(qk_copy_init(&op->copy, op->image, &op->fresh, op->active, n, err));
	QK_TRY(qk_counter_add_tree(&op->counter, op->active, n, 0, 1, err));
	QK_TRY(qk_counter_open(&op->counter, err));
	QK_TRY(qk_copy_cleared(&op->copy, &op->counter, op->progress, err));
	QK_TRY(qk_l1_store(op->copy.l1, n, QK_SPACE_SNAPSHOTS, &op->fresh,
		&op->snaps.v[op->snaps.n - 1].l1_off.v, err));
	QK_TRY(store_active(op, op->copy.l1, n, err));
	QK_TRY(store_snapshots(op, err));
	QK_TRY(count_created(op, err));
	return finish(op, err);
}

enum qcow_status qk_snapshot_create(struct qcow_image *image,
	const struct qcow_snapshot_create_options *options, struct qcow_error *err)
{
	struct create c = {.options = options};
	return run(image, &options->progress, create, &c, QK_RELOAD_HEADER | QK_RELOAD_SPACE, err);
}

/* ---- apply ---- */

struct choice {
	const char *key;
	enum qcow_snapshot_key how;
	const char *name; /* of rename */
};

/* QCOW_E_CORRUPT where the entry's L1 table cannot be used. */
static enum qcow_status judge_entry(
	const struct op *op, const struct qk_snapshot_entry *e, struct qcow_error *err)
{
	const struct qcow_image *image = op->image;
	unsigned finding = qk_snapshot_judge(&image->geometry, e);
	/* what is missing of the extra data says nothing of the table */
	if (finding == QCOW_FINDING_SNAPSHOT_EXTRA && e->l1_entries <= QK_MAX_L1_BYTES / 8)
		finding = 0;
	if (finding == 0 && !qk_in_range(e->l1_off.v, (uint64_t)e->l1_entries * 8,
				    qk_space_file_size(op->space)))
		finding = QCOW_FINDING_SNAPSHOT_L1;
	if (finding == 0)
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, finding, e->l1_off.v, QCOW_NO_OFFSET,
		"snapshot '%.*s' (L1 table of %" PRIu32 " entries at %" PRIu64 "): %s",
		(int)qk_min(e->id.n, 64), (const char *)e->id.p, e->l1_entries, e->l1_off.v,
		qcow_finding_text(finding));
}

/* The disk's size with the snapshot: may it change? */
static enum qcow_status judge_size(
	struct op *op, const struct qk_snapshot_entry *e, uint64_t *size, struct qcow_error *err)
{
	const struct qcow_image *image = op->image;
	*size = e->has_disk_size ? e->disk_size : image->size;
	if (*size == image->size)
		return QCOW_OK;
	if (image->geometry.version < 3)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"the snapshot is of a disk of %" PRIu64 " bytes, and the size of a version "
			"2 image with snapshots cannot change",
			*size);
	if (image->bitmaps.n != 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"the snapshot is of a disk of %" PRIu64 " bytes, and the image has bitmaps "
			"for %" PRIu64 " bytes: remove them first",
			*size, image->size);
	return QCOW_OK;
}

/* Durable before the switch: enabled bitmaps that are in use, and record everything. */
static enum qcow_status mark_everything(struct op *op, struct qcow_error *err)
{
	struct qcow_image *image = op->image;
	QK_TRY(qk_track_new(image, &image->rw->track, err));
	return qk_track_mark(image, 0, image->size, err);
}

static enum qcow_status count_applied(struct op *op, struct qcow_error *err)
{
	struct qk_counter *c = &op->counter;
	QK_TRY(qk_counter_add_tree(c, op->active, op->image->l1_entries, -1, -1, err));
	for (uint64_t i = 0; i < op->copy.n; i++) {
		uint64_t kept = op->other[i] & QK_OFFSET_MASK;
		if (kept != 0)
			QK_TRY(qk_counter_add(
				c, kept, qk_copy_is_fresh(&op->copy, i) ? 0 : 1, 1, err));
	}
	return QCOW_OK;
}

/* A copy is the active tree's alone. */
static void set_copied(struct op *op)
{
	for (uint64_t i = 0; i < op->copy.n; i++)
		if (op->copy.l1[i] != 0 &&
			(op->copy.is_single[i] || qk_copy_is_fresh(&op->copy, i)))
			op->copy.l1[i] |= QK_FLAG_COPIED;
}

/* The entries that the active table gets: copies of tables that had a bit set. */
static enum qcow_status apply_tree(struct op *op, uint64_t n, struct qcow_error *err)
{
	QK_TRY(qk_copy_init(&op->copy, op->image, &op->fresh, op->other, n, err));
	QK_TRY(qk_copy_cleared(&op->copy, NULL, op->progress, err));
	QK_TRY(count_applied(op, err));
	set_copied(op);
	return store_active(op, op->copy.l1, n, err);
}

static enum qcow_status apply(struct op *op, void *ctx, struct qcow_error *err)
{
	const struct choice *choice = ctx;
	struct qk_counter *c = &op->counter;
	uint32_t index = 0;
	uint64_t size = 0;
	QK_TRY(qk_snaps_find(&op->snaps, choice->key, choice->how, &index, err));
	const struct qk_snapshot_entry *e = &op->snaps.v[index];
	QK_TRY(judge_entry(op, e, err));
	QK_TRY(judge_size(op, e, &size, err));
	uint64_t n = qk_max(e->l1_entries, qk_geometry_l1_entries(&op->image->geometry, size));
	if (n > QK_MAX_L1_BYTES / 8)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"a disk of %" PRIu64 " bytes takes an L1 table of %" PRIu64 " entries",
			size, n);
	QK_TRY(qk_l1_read(op->image, e->l1_off.v, e->l1_entries, n, &op->other, err));
	QK_TRY(qk_counter_add_tree(c, op->active, op->image->l1_entries, -1, -1, err));
	QK_TRY(qk_counter_add_tree(c, op->other, n, 1, 1, err));
	QK_TRY(judge_narrow(op, err));
	if (op->is_dry)
		return QCOW_OK;
	QK_TRY(mark_everything(op, err));
	QK_TRY(apply_tree(op, n, err));
	QK_TRY(store_snapshots(op, err));
	qk_store64(op->header + AT_SIZE, size);
	return finish(op, err);
}

enum qcow_status qk_snapshot_apply(struct qcow_image *image, const char *key,
	enum qcow_snapshot_key how, const struct qcow_progress *progress, struct qcow_error *err)
{
	struct choice choice = {.key = key, .how = how};
	return run(image, progress, apply, &choice, QK_RELOAD_HEADER | QK_RELOAD_SPACE, err);
}

/* ---- delete ---- */

struct deletion {
	const char *const *keys;
	size_t n;
	enum qcow_snapshot_key how;
};

static int descending(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;
	return (*x < *y) - (*x > *y);
}

/* The snapshot's tree is not there any more. */
static enum qcow_status count_deleted(
	struct op *op, const struct qk_snapshot_entry *e, struct qcow_error *err)
{
	uint64_t *l1 QK_AUTO_FREE = NULL;
	QK_TRY(judge_entry(op, e, err));
	QK_TRY(qk_l1_read(op->image, e->l1_off.v, e->l1_entries, e->l1_entries, &l1, err));
	QK_TRY(qk_counter_add_tree(&op->counter, l1, e->l1_entries, -1, -1, err));
	return qk_counter_add_run(&op->counter, e->l1_off.v, (uint64_t)e->l1_entries * 8, -1, err);
}

/* All keys first, by the table as it is; then the entries go. */
static enum qcow_status remove_entries(
	struct op *op, const struct deletion *d, struct qcow_error *err)
{
	uint32_t *at QK_AUTO_FREE = qk_malloc(qk_max(d->n, 1), sizeof(*at));
	if (at == NULL)
		return QK_FAIL_NOMEM(err);
	for (size_t i = 0; i < d->n; i++)
		QK_TRY(qk_snaps_find(&op->snaps, d->keys[i], d->how, &at[i], err));
	qsort(at, d->n, sizeof(*at), descending);
	for (size_t i = 0; i < d->n; i++) {
		if (i != 0 && at[i] == at[i - 1])
			return QK_FAIL(err, QCOW_E_INVAL,
				"two of the %zu names mean the same snapshot", d->n);
		QK_TRY(qk_snapshot_goes_on(op->progress, err));
		QK_TRY(count_deleted(op, &op->snaps.v[at[i]], err));
	}
	for (size_t i = 0; i < d->n; i++)
		qk_snaps_remove(&op->snaps, at[i]);
	return QCOW_OK;
}

static void show(void *ctx, uint64_t off, const uint8_t *table)
{
	qk_counter_show(ctx, off, table);
}

/* A refcount of 1 becomes COPIED, and what is COPIED is overwritten in place: it must be one reference indeed. */
static enum qcow_status prove(struct op *op, struct qcow_error *err)
{
	struct qk_rw *rw = op->image->rw;
	struct qk_space *space = NULL;
	const struct qk_refs_watch watch = {&op->counter, show};
	if (qk_space_is_proven(rw->space))
		return QCOW_OK;
	QK_TRY(qk_counter_open(&op->counter, err));
	enum qcow_prove was = rw->prove;
	rw->prove = QCOW_PROVE_FULL;
	enum qcow_status status = qk_rw_make_space(op->image, &watch, &space, err);
	rw->prove = was;
	QK_TRY(status);
	qk_space_follow_cut(space, rw->space);
	/* where leaks were found free the counts are others */
	qk_counter_move(&op->counter, space, !qk_space_is_dirty(space));
	qk_space_free(rw->space);
	rw->space = op->space = space;
	return QCOW_OK;
}

static enum qcow_status judge_copied(struct op *op, struct qcow_error *err)
{
	struct qk_counter *c = &op->counter;
	uint64_t lo = 0;
	QK_TRY(qk_copy_init(
		&op->copy, op->image, &op->fresh, op->active, op->image->l1_entries, err));
	do {
		QK_TRY(qk_counter_load(c, lo, err));
		/* copies lie in clusters that the window has no counts for */
		QK_TRY(qk_copy_judged(&op->copy, c, err));
		lo = c->hi;
	} while (lo < c->end);
	for (uint64_t i = 0; i < op->copy.n; i++)
		if (qk_copy_is_fresh(&op->copy, i))
			QK_TRY(qk_counter_add(c, op->active[i] & QK_OFFSET_MASK, -1, 0, err));
	return QCOW_OK;
}

static enum qcow_status delete_some(struct op *op, void *ctx, struct qcow_error *err)
{
	QK_TRY(remove_entries(op, ctx, err));
	if (op->is_dry)
		return judge_narrow(op, err);
	QK_TRY(prove(op, err));
	QK_TRY(judge_copied(op, err));
	set_copied(op);
	QK_TRY(store_active(op, op->copy.l1, op->copy.n, err));
	QK_TRY(store_snapshots(op, err));
	return finish(op, err);
}

enum qcow_status qk_snapshot_delete(struct qcow_image *image, const char *const *keys, size_t n,
	enum qcow_snapshot_key how, const struct qcow_progress *progress, struct qcow_error *err)
{
	struct deletion d = {keys, n, how};
	return run(image, progress, delete_some, &d, QK_RELOAD_HEADER | QK_RELOAD_SPACE, err);
}

/* ---- rename ---- */

static enum qcow_status rename_one(struct op *op, void *ctx, struct qcow_error *err)
{
	const struct choice *choice = ctx;
	struct qk_space *space = op->image->rw->space;
	uint64_t old_off = op->image->header.snapshots_off;
	uint64_t old_n = qk_div_up(op->snaps.n_bytes, op->image->geometry.cluster_size);
	/* the refcount table may grow on the way: bytes 60-71 alone */
	const struct qk_header_patch patch = {SWITCH_OFF + AT_N_SNAPSHOTS,
		SWITCH_BYTES - AT_N_SNAPSHOTS, op->header + AT_N_SNAPSHOTS};
	uint32_t index = 0;
	QK_TRY(qk_snaps_find(&op->snaps, choice->key, choice->how, &index, err));
	op->snaps.v[index].name = span_of(choice->name);
	QK_TRY(store_snapshots(op, err));
	QK_TRY(qk_control_switch(op->image, &patch, 1, 0, err));
	/* what cannot be dropped is a leak */
	if (qk_space_drop(space, old_off, old_n, NULL) != QCOW_OK)
		return QCOW_OK;
	return QCOW_OK;
}

enum qcow_status qk_snapshot_rename(struct qcow_image *image, const char *key,
	enum qcow_snapshot_key how, const char *name, struct qcow_error *err)
{
	struct choice choice = {.key = key, .how = how, .name = name};
	return run(image, NULL, rename_one, &choice, QK_RELOAD_HEADER, err);
}

/* ---- dry runs ---- */

enum qcow_status qk_snapshot_foresee(struct qcow_image *image, const struct qk_snapshot_plan *plan,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	static const struct qcow_snapshot_create_options options =
		QCOW_SNAPSHOT_CREATE_OPTIONS_INIT;
	struct create c = {.options = &options};
	struct choice choice = {.key = plan->n != 0 ? plan->keys[0] : "", .how = plan->how};
	struct deletion d = {plan->keys, plan->n, plan->how};
	switch (plan->act) {
	case QCOW_SNAPSHOT_CREATE:
		return run_dry(image, progress, create, &c, QCOW_PROVE_AUTO, err);
	case QCOW_SNAPSHOT_APPLY:
		return run_dry(image, progress, apply, &choice, QCOW_PROVE_AUTO, err);
	case QCOW_SNAPSHOT_DELETE:
	default:
		return run_dry(image, progress, delete_some, &d, QCOW_PROVE_FULL, err);
	}
}
