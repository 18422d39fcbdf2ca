/* SPDX-License-Identifier: MIT */
/*
 * repair: the rounds, and the writes of one (repair.h). Owns the order:
 *
 *	words that unlink, COPIED cleared || refcounts raised, or new tables, copies and a second refcount structure ||
 *	sector 0, one write || entries name their copies || refcounts lowered || COPIED set ||
 *
 * and, when a check finds nothing any more, the dirty and the corrupt bit in a last write of sector 0. Before all of it go the
 * autoclear bits that nobody here knows: what they speak of may be untrue after any write. What is replaced is saved first,
 * where the caller wants to be able to undo it.
 */
#include "check/repair.h"

#include <string.h>

#include "base/mem.h"
#include "check/judge.h"
#include "check/plan.h"
#include "check/repair_fresh.h"
#include "check/undo.h"

#define DEFAULT_MEMORY_BYTES QK_MIB(64)
#define MIN_MEMORY_BYTES     QK_MIB(4)
#define RUN_BYTES	     QK_KIB(64)
#define MIN_COPY_BYTES	     QK_MIB(64)
#define MAX_ROUNDS	     1000U
#define HEADER_FEATURES	     72U
#define HEADER_AUTOCLEAR     88U

struct repair {
	struct qcow_store *store;
	const struct qcow_repair_options *options;
	struct qcow_repair_result *result;
	struct qk_undo undo;
	struct qcow_progress progress; /* reports the first check; the others are as long again */
	uint64_t memory_bytes, copy_bytes; /* what may still be copied */
	uint64_t found[QK_N_FINDINGS]; /* by the last check */
	uint64_t n_shown;
	bool is_first; /* check: its findings are the caller's */
};

/* ---- checking ---- */

static void count_finding(void *ctx, const struct qcow_finding *f)
{
	struct repair *r = ctx;
	const struct qcow_repair_options *o = r->options;

	if (f->id < QK_N_FINDINGS)
		r->found[f->id]++;
	if (!r->is_first || o->on_finding == NULL ||
		(o->max_findings != 0 && r->n_shown >= o->max_findings))
		return;
	r->n_shown++;
	o->on_finding(o->ctx, f);
}

static enum qcow_status check(struct repair *r, struct qk_plan *p, struct qcow_error *err)
{
	struct qcow_check_options o = QCOW_CHECK_OPTIONS_INIT;
	struct qk_audit a;

	memset(r->found, 0, sizeof(r->found));
	o.memory_bytes = r->memory_bytes;
	o.on_finding = count_finding;
	o.ctx = r;
	o.progress = r->progress;
	qk_plan_audit(p, r->store, &p->disk, &a);
	QK_TRY(qk_judge_check(&a, &o, &r->result->after, err));
	if (r->is_first)
		r->result->before = r->result->after;
	r->is_first = false;
	r->progress.report = NULL;
	memcpy(p->found, r->found, sizeof(p->found));
	if (r->result->after.check_errors != 0)
		return QK_FAIL_AT(err, QCOW_E_IO, QCOW_FINDING_TABLE_READ_FAILED, QCOW_NO_OFFSET,
			QCOW_NO_OFFSET, "nothing is repaired while a table cannot be read");
	return QCOW_OK;
}

/* Findings that may hide references: what nothing seems to refer to may be in use. */
static bool hides_references(const struct repair *r)
{
	for (unsigned id = 1; id < QK_N_FINDINGS; id++) {
		if (r->found[id] != 0 && qcow_finding_severity(id) == QCOW_SEVERITY_CORRUPTION &&
			id != QCOW_FINDING_REFCOUNT_TOO_LOW && id != QCOW_FINDING_COPIED_WRONG)
			return true;
	}
	return false;
}

static bool is_wanted(const struct repair *r)
{
	const struct qcow_check_result *c = &r->result->after;

	if (r->options->mode == QCOW_REPAIR_LEAKS)
		return c->leaks != 0 && !hides_references(r);
	return c->corruptions != 0 || c->leaks != 0 || r->found[QCOW_FINDING_COPIED_MISSING] != 0;
}

/* ---- writing words ---- */

static enum qcow_status flush(struct repair *r, struct qcow_error *err)
{
	return qcow_store_flush(r->store, err);
}

/* How many changes from `first` on lie so close together that one write does. */
static uint32_t run_length(const struct qk_changes *c, uint32_t first)
{
	uint64_t start = qk_align_down(c->v[first].off, QK_SECTOR);
	uint32_t n = 1;

	while (first + n < c->n && c->v[first + n].phase == c->v[first].phase &&
		c->v[first + n].off <
			qk_align_down(c->v[first + n - 1].off, QK_SECTOR) + 2 * QK_SECTOR &&
		qk_align_down(c->v[first + n].off, QK_SECTOR) + QK_SECTOR <= start + RUN_BYTES)
		n++;
	return n;
}

/* The sectors of the run that begins with change *i as they will be, read or saved with qk_undo_save; *i moves on. */
static enum qcow_status make_run(struct repair *r, const struct qk_plan *p, uint32_t *i,
	struct iovec *run, uint64_t *off, struct qcow_error *err)
{
	const struct qk_change *first = &p->changes.v[*i];
	uint32_t n = run_length(&p->changes, *i);
	uint64_t last = first[n - 1].off;
	uint64_t end = qk_align_down(last, QK_SECTOR) + QK_SECTOR;

	*off = qk_align_down(first->off, QK_SECTOR);
	/* a file may end within a sector */
	run->iov_len = (size_t)(qk_max(qk_min(end, p->file_size), last + 8) - *off);
	QK_TRY(qcow_store_read_padded(r->store, run->iov_base, run->iov_len, *off, err));
	for (uint32_t k = 0; k < n; k++)
		qk_store64((uint8_t *)run->iov_base + (first[k].off - *off), first[k].now);
	*i += n;
	return QCOW_OK;
}

/* The changes of one phase: all saved, durably, then all written. *any: there are some. */
static enum qcow_status write_phase(struct repair *r, const struct qk_plan *p,
	enum qcow_repair_phase phase, bool *any, struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *buf = qk_malloc(RUN_BYTES, 1);
	const struct qk_changes *c = &p->changes;
	struct iovec run = {buf, 0};
	uint32_t first = 0, end = 0;
	uint64_t off = 0;

	if (buf == NULL)
		return QK_FAIL_NOMEM(err);
	while (first < c->n && c->v[first].phase < phase)
		first++;
	for (end = first; end < c->n && c->v[end].phase == phase; end++)
		*any = true;
	for (uint32_t i = first; i < end;) {
		QK_TRY(make_run(r, p, &i, &run, &off, err));
		QK_TRY(qk_undo_save(&r->undo, &run, 1, off, err));
	}
	QK_TRY(qk_undo_sync(&r->undo, err));
	for (uint32_t i = first; i < end;) {
		QK_TRY(make_run(r, p, &i, &run, &off, err));
		QK_TRY(qcow_store_writev(r->store, &run, 1, off, err));
	}
	return QCOW_OK;
}

/* Sector 0, one write, between two flushes; nothing where it is the same. */
static enum qcow_status write_sector0(
	struct repair *r, uint8_t sector[QK_SECTOR], struct qcow_error *err)
{
	uint8_t was[QK_SECTOR];
	struct iovec run = {sector, QK_SECTOR};

	QK_TRY(qcow_store_read(r->store, was, sizeof(was), 0, err));
	if (memcmp(was, sector, sizeof(was)) == 0)
		return QCOW_OK;
	QK_TRY(qk_undo_save(&r->undo, &run, 1, 0, err));
	QK_TRY(qk_undo_sync(&r->undo, err));
	QK_TRY(qcow_store_writev(r->store, &run, 1, 0, err));
	return flush(r, err);
}

/* ---- a round ---- */

static enum qcow_status write_fresh(struct repair *r, struct qk_plan *p, struct qcow_error *err)
{
	struct qcow_store *out = NULL;

	QK_TRY(qk_undo_store(&r->undo, &out, err));
	enum qcow_status status = qk_repair_fresh(p, out, err);
	if (status == QCOW_OK)
		status = qk_undo_drain(&r->undo, err);
	qcow_store_close(out);
	return status;
}

/* The last cluster is whole in the file, where it can be: a table that was cut short reads as zeros there. */
static enum qcow_status fill_last(struct repair *r, const struct qk_plan *p, struct qcow_error *err)
{
	struct qcow_store_caps caps;
	uint64_t end = qk_audit_end(&p->audit);

	qcow_store_caps(r->store, &caps);
	return caps.can_grow && end != p->file_size ? qcow_store_truncate(r->store, end, err)
						    : QCOW_OK;
}

/* The copies and their refcounts are stable. What else there is to do is the next round's. */
static enum qcow_status relink(struct repair *r, struct qk_plan *p, struct qcow_error *err)
{
	bool any = false;

	QK_TRY(qk_plan_relink(p, err));
	QK_TRY(write_phase(r, p, QCOW_REPAIR_RELINK, &any, err));
	return flush(r, err);
}

static enum qcow_status apply(struct repair *r, struct qk_plan *p, struct qcow_error *err)
{
	uint8_t sector[QK_SECTOR];
	bool any = false;

	/* for the head of what is saved says how long the file was */
	QK_TRY(qk_undo_sync(&r->undo, err));
	QK_TRY(fill_last(r, p, err));
	QK_TRY(write_phase(r, p, QCOW_REPAIR_UNLINK, &any, err));
	if (any)
		QK_TRY(flush(r, err));
	if (p->changes.is_full)
		return QCOW_OK;
	any = p->new_refcounts;
	if (p->new_refcounts)
		QK_TRY(write_fresh(r, p, err));
	else
		QK_TRY(write_phase(r, p, QCOW_REPAIR_RAISE, &any, err));
	if (any)
		QK_TRY(flush(r, err));
	qk_plan_sector0(p, sector);
	QK_TRY(write_sector0(r, sector, err));
	if (p->copies.n != 0)
		return relink(r, p, err);
	/* COPIED is wrong as long as the stored refcount is not 1 */
	any = false;
	QK_TRY(write_phase(r, p, QCOW_REPAIR_LOWER, &any, err));
	if (any)
		QK_TRY(flush(r, err));
	any = false;
	QK_TRY(write_phase(r, p, QCOW_REPAIR_COPIED, &any, err));
	return any ? flush(r, err) : QCOW_OK;
}

static void tell(struct repair *r, const struct qcow_repair_step *step)
{
	r->result->n_steps++;
	if (r->options->on_step != NULL)
		r->options->on_step(r->options->ctx, step);
}

static void tell_new(struct repair *r, enum qcow_repair_kind kind, bool is_planned)
{
	if (is_planned)
		tell(r, &(struct qcow_repair_step){.phase = QCOW_REPAIR_RAISE,
				.kind = kind,
				.host_off = QCOW_NO_OFFSET});
}

static void tell_changes(struct repair *r, const struct qk_plan *p, enum qcow_repair_phase from,
	enum qcow_repair_phase to)
{
	for (uint32_t i = 0; i < p->changes.n; i++) {
		const struct qk_change *c = &p->changes.v[i];
		if (c->phase >= from && c->phase <= to)
			tell(r, &(struct qcow_repair_step){
					c->phase, c->kind, c->finding, c->off, c->was, c->now});
	}
}

static void tell_copies(struct repair *r, const struct qk_plan *p)
{
	for (size_t i = 0; i < p->copies.n; i++)
		tell(r, &(struct qcow_repair_step){.phase = QCOW_REPAIR_RAISE,
				.kind = QCOW_REPAIR_NEW_COPY,
				.finding = p->copies.v[i].finding,
				.host_off = p->copies.v[i].entry_off,
				.was = p->copies.v[i].raw});
}

static void tell_plan(struct repair *r, const struct qk_plan *p)
{
	tell_changes(r, p, QCOW_REPAIR_UNLINK, QCOW_REPAIR_UNLINK);
	tell_copies(r, p);
	tell_new(r, QCOW_REPAIR_NEW_L1, p->new_l1);
	tell_new(r, QCOW_REPAIR_NEW_SNAPSHOTS, p->new_snapshots);
	tell_new(r, QCOW_REPAIR_NEW_REFCOUNTS, p->new_refcounts);
	tell_changes(r, p, QCOW_REPAIR_RAISE, QCOW_REPAIR_COPIED);
}

/* As whoever opens an image for writing: the unknown ones go, also where there is nothing to repair. */
static enum qcow_status clear_autoclear(
	struct repair *r, struct qk_plan *p, bool *again, struct qcow_error *err)
{
	uint64_t was = p->disk.autoclear;
	uint64_t known = was & qk_feature_known_mask(QK_FEATURE_AUTOCLEAR);
	uint8_t sector[QK_SECTOR];

	if (known == was)
		return QCOW_OK;
	tell(r, &(struct qcow_repair_step){.phase = QCOW_REPAIR_HEADER,
			.kind = QCOW_REPAIR_HEADER_FIELD,
			.host_off = HEADER_AUTOCLEAR,
			.was = was,
			.now = known});
	if (r->options->dry_run) {
		p->disk.autoclear = p->header.autoclear = known;
		return QCOW_OK;
	}
	memcpy(sector, p->cluster0, sizeof(sector));
	qk_store64(sector + HEADER_AUTOCLEAR, known);
	*again = true;
	return write_sector0(r, sector, err);
}

/* *again: something was written, so look again. */
static enum qcow_status work(
	struct repair *r, struct qk_plan *p, bool *again, struct qcow_error *err)
{
	QK_TRY(qk_plan_init(p, err));
	QK_TRY(check(r, p, err));
	QK_TRY(clear_autoclear(r, p, again, err));
	if (*again || !is_wanted(r))
		return QCOW_OK;
	QK_TRY(qk_plan_make(p, err));
	if (qk_plan_is_empty(p))
		return QCOW_OK;
	r->result->n_rounds++;
	tell_plan(r, p);
	if (r->options->dry_run) {
		r->result->is_partial = p->changes.is_full || p->copies.n != 0;
		return QCOW_OK;
	}
	*again = true;
	return apply(r, p, err);
}

static enum qcow_status round_of(struct repair *r, bool *again, struct qcow_error *err)
{
	struct qk_plan p = {.store = r->store,
		.progress = &r->progress,
		.memory_bytes = r->memory_bytes,
		.copy_bytes = r->copy_bytes,
		.mode = r->options->mode};

	*again = false;
	enum qcow_status status = work(r, &p, again, err);
	r->copy_bytes = p.copy_bytes;
	qk_plan_release(&p);
	return status;
}

/* ---- the end ---- */

static bool is_clean(const struct repair *r)
{
	return r->result->after.corruptions == 0 && r->result->after.check_errors == 0;
}

/* The dirty bit says that refcounts may be wrong, the corrupt bit that writing may make things worse: neither is so. */
static enum qcow_status finish(struct repair *r, struct qcow_error *err)
{
	uint64_t marks = QCOW_INCOMPAT_DIRTY | QCOW_INCOMPAT_CORRUPT;
	uint8_t sector[QK_SECTOR];

	if (r->found[QCOW_FINDING_DIRTY] == 0 && r->found[QCOW_FINDING_CORRUPT_BIT] == 0)
		return QCOW_OK;
	QK_TRY(qcow_store_read(r->store, sector, sizeof(sector), 0, err));
	uint64_t was = qk_load64(sector + HEADER_FEATURES);
	struct qcow_repair_step step = {QCOW_REPAIR_FINISH, QCOW_REPAIR_HEADER_FIELD,
		r->found[QCOW_FINDING_DIRTY] != 0 ? QCOW_FINDING_DIRTY : QCOW_FINDING_CORRUPT_BIT,
		HEADER_FEATURES, was, was & ~marks};
	if (r->options->dry_run || is_clean(r))
		tell(r, &step);
	if (r->options->dry_run || !is_clean(r))
		return QCOW_OK;
	qk_store64(sector + HEADER_FEATURES, step.now);
	r->result->after.notes -= r->found[QCOW_FINDING_DIRTY] + r->found[QCOW_FINDING_CORRUPT_BIT];
	return write_sector0(r, sector, err);
}

static uint64_t fixed(uint64_t before, uint64_t after)
{
	return before > after ? before - after : 0;
}

static enum qcow_status run(struct repair *r, struct qcow_error *err)
{
	bool again = true;

	for (unsigned i = 0; again && i < MAX_ROUNDS; i++)
		QK_TRY(round_of(r, &again, err));
	QK_TRY(finish(r, err));
	r->result->leaks_fixed = fixed(r->result->before.leaks, r->result->after.leaks);
	r->result->corruptions_fixed = fixed(
		r->result->before.corruptions, r->result->after.corruptions);
	return QCOW_OK;
}

enum qcow_status qk_repair(struct qcow_store *store, const struct qcow_repair_options *options,
	struct qcow_repair_result *result, struct qcow_error *err)
{
	struct repair r = {.store = store,
		.options = options,
		.result = result,
		.progress = options->progress,
		.is_first = true};
	struct qcow_store_caps caps;
	uint64_t size = 0;

	*result = (struct qcow_repair_result){0};
	r.memory_bytes = options->memory_bytes == 0
				 ? DEFAULT_MEMORY_BYTES
				 : qk_max(options->memory_bytes, MIN_MEMORY_BYTES);
	qcow_store_caps(store, &caps);
	if (!options->dry_run && !caps.writable)
		return QK_FAIL(
			err, QCOW_E_READONLY, "%s: not open for writing", qcow_store_name(store));
	QK_TRY(qcow_store_size(store, &size, err));
	r.copy_bytes = qk_max(size, MIN_COPY_BYTES);
	QK_TRY(qk_undo_begin(&r.undo, options->dry_run ? NULL : options->undo, store, err));
	enum qcow_status status = run(&r, err);
	if (status == QCOW_OK)
		status = qk_undo_end(&r.undo, err);
	qk_undo_release(&r.undo);
	return status;
}
