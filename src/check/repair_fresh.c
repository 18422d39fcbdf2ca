/* SPDX-License-Identifier: MIT */
/*
 * repair_fresh: new tables and copies (repair_fresh.h). Owns two walks: over the image as it is on the disk, where clusters are looked
 * for in a store that cannot grow; and over the image as it will be, whose references the second structure counts.
 * Where the store can grow nothing is looked for: what lies past its end is free, but for what a table that runs past
 * the end claims.
 *
 * Invariant Y1: clusters are handed out ascending, each once.
 */
#include "check/repair_fresh.h"

#include <inttypes.h>
#include <string.h>

#include "audit/snapread.h"
#include "base/mem.h"
#include "engine/shadow.h"
#include "format/snaptab.h"

#define COPY_BYTES	 QK_KIB(64)
#define LONGEST_SNAPSHOT (40U + QK_MAX_SNAPSHOT_EXTRA + 2U * 65535U + 8U)
#define MIN_EXTRA_BYTES	 16U /* VM state size and disk size */
#define NO_ICOUNT	 UINT64_MAX
#define MAX_CLAIM	 QK_MIB(64)

/* A walk over the image, window by window. */
struct walk {
	struct qk_header header;
	struct qk_audit audit;
	struct qk_refs refs;
	struct qk_census census;
	bool is_made;
};

struct fresh {
	struct qk_plan *p;
	struct qcow_store *out;
	struct walk old, now;
	bool can_grow;
	size_t copies_seen; /* those whose clusters are counted */
	uint64_t next,
		limit; /* clusters from next on were not handed out; the first that cannot be */
};

/* ---- walks ---- */

/* Of what was written (`out`), or of the image as it was. */
static enum qcow_status walk_init(struct fresh *f, struct walk *w, const struct qk_header *header,
	struct qcow_store *store, bool without_refcounts, struct qcow_error *err)
{
	struct qk_plan *p = f->p;
	struct qk_refs_request q = {.audit = &w->audit,
		.census = &w->census,
		.memory_bytes = p->memory_bytes / 16,
		.without_refcounts = without_refcounts};

	w->header = *header;
	w->is_made = true;
	qk_plan_audit(p, store, &w->header, &w->audit);
	QK_TRY(qcow_store_size(store, &w->audit.file_size, err));
	uint64_t n = qk_audit_end(&w->audit) >> p->g.cluster_bits;
	QK_TRY(qk_census_init(&w->census, p->memory_bytes / 8, n, err));
	w->census.hi = 0; /* nothing is counted yet */
	return qk_refs_init(&w->refs, &q, err);
}

static void walk_release(struct walk *w)
{
	if (!w->is_made)
		return;
	qk_refs_release(&w->refs);
	qk_census_release(&w->census);
}

static uint64_t walk_end(const struct fresh *f, const struct walk *w)
{
	return qk_audit_end(&w->audit) >> f->p->g.cluster_bits;
}

/* References to `cluster` of the file. */
static enum qcow_status references(
	struct fresh *f, struct walk *w, uint64_t cluster, uint64_t *out, struct qcow_error *err)
{
	if (cluster < w->census.lo || cluster >= w->census.hi) {
		qk_census_begin(&w->census, cluster, walk_end(f, w), false);
		QK_TRY(qk_refs_count(&w->refs, err));
		if (w->census.need_wide) {
			qk_census_begin(&w->census, cluster, walk_end(f, w), true);
			QK_TRY(qk_refs_count(&w->refs, err));
		}
		if (w->audit.n_read_errors != 0)
			return QK_FAIL(err, w->audit.first_failure.status,
				"references cannot be counted: %s", w->audit.first_failure.message);
	}
	*out = qk_census_get(&w->census, cluster) & QK_CENSUS_WIDE_COUNT;
	return QCOW_OK;
}

/* ---- clusters ---- */

static void step_over(struct fresh *f, uint64_t off, uint64_t len)
{
	uint64_t bits = f->p->g.cluster_bits;
	uint64_t at = f->next << bits;

	/* a table that says it goes on past the end would be read from what is written there */
	if (len != 0 && len <= MAX_CLAIM && off <= at + MAX_CLAIM && off + len > at)
		f->next = qk_div_up(off + len, UINT64_C(1) << bits);
}

static enum qcow_status place_init(struct fresh *f, struct qcow_error *err)
{
	struct qk_plan *p = f->p;
	struct qcow_store_caps caps;
	uint64_t size = 0;

	qcow_store_caps(p->store, &caps);
	QK_TRY(qcow_store_size(p->store, &size, err));
	f->can_grow = caps.can_grow;
	f->limit = QK_MAX_OFFSET >> p->g.cluster_bits;
	if (!f->can_grow) {
		f->limit = qk_min(f->limit, size >> p->g.cluster_bits);
		f->next = 1;
		return walk_init(f, &f->old, &p->disk, p->store, false, err);
	}
	f->next = qk_div_up(size, p->g.cluster_size);
	step_over(f, p->disk.l1_off, p->disk.l1_entries * UINT64_C(8));
	step_over(f, p->disk.rt_off, (uint64_t)p->disk.rt_clusters << p->g.cluster_bits);
	return QCOW_OK;
}

/* The lowest run from `next` on that nothing refers to. */
static enum qcow_status find_free(
	struct fresh *f, uint64_t n, uint64_t min_n, uint64_t *n_found, struct qcow_error *err)
{
	uint64_t run = 0;
	uint64_t c = f->next;

	for (; c < f->limit && run < n; c++) {
		uint64_t refs = 0;
		QK_TRY(references(f, &f->old, c, &refs, err));
		if (refs == 0)
			run++;
		else if (run >= min_n)
			break;
		else
			run = 0;
	}
	if (run < min_n)
		return QK_FAIL(err, QCOW_E_NOSPC,
			"no %" PRIu64
			" clusters in a row are free: a second refcount structure has no "
			"room",
			min_n);
	f->next = c - run;
	*n_found = run;
	return QCOW_OK;
}

static enum qcow_status take(void *ctx, uint64_t n, uint64_t min_n, uint64_t *first,
	uint64_t *n_taken, struct qcow_error *err)
{
	struct fresh *f = ctx;

	*n_taken = n;
	if (!f->can_grow)
		QK_TRY(find_free(f, n, min_n, n_taken, err));
	else if (n > f->limit || f->next > f->limit - n)
		return QK_FAIL(err, QCOW_E_NOSPC, "the file would be longer than entries can say");
	*first = f->next;
	f->next += *n_taken;
	return QCOW_OK;
}

static void give_back(void *ctx, uint64_t first, uint64_t n)
{
	struct fresh *f = ctx;

	if (first + n == f->next)
		f->next = first;
}

/* How often the entry that is going to name the cluster counts. They are asked for ascending. */
static uint64_t copied_for(struct fresh *f, uint64_t cluster)
{
	const struct qk_plan_copies *c = &f->p->copies;

	while (f->copies_seen < c->n &&
		cluster >= c->v[f->copies_seen].new_first + c->v[f->copies_seen].n)
		f->copies_seen++;
	return f->copies_seen < c->n && cluster >= c->v[f->copies_seen].new_first
		       ? c->v[f->copies_seen].weight
		       : 0;
}

static enum qcow_status counts(
	void *ctx, uint64_t first, uint64_t n, uint64_t *out, struct qcow_error *err)
{
	struct fresh *f = ctx;

	for (uint64_t i = 0; i < n; i++) {
		QK_TRY(references(f, &f->now, first + i, &out[i], err));
		/* more than that are to be copied */
		out[i] = qk_min(out[i] + copied_for(f, first + i), f->p->g.refcount_max);
	}
	return QCOW_OK;
}

/* ---- copies ---- */

static enum qcow_status copy_clusters(
	struct fresh *f, uint64_t first, uint64_t n, uint64_t *out, struct qcow_error *err)
{
	unsigned bits = f->p->g.cluster_bits;
	uint64_t left = n << bits;
	uint64_t got = 0;
	QK_AUTO_FREE uint8_t *buf = qk_malloc(COPY_BYTES, 1);

	if (buf == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(take(f, n, n, out, &got, err));
	for (uint64_t at = 0; at < left; at += COPY_BYTES) {
		size_t part = (size_t)qk_min(COPY_BYTES, left - at);
		QK_TRY(qcow_store_read_padded(f->p->store, buf, part, (first << bits) + at, err));
		QK_TRY(qcow_store_write(f->out, buf, part, (*out << bits) + at, err));
	}
	return QCOW_OK;
}

static enum qcow_status write_copies(struct fresh *f, struct qcow_error *err)
{
	struct qk_plan_copies *c = &f->p->copies;

	for (size_t i = 0; i < c->n; i++)
		QK_TRY(copy_clusters(f, c->v[i].first, c->v[i].n, &c->v[i].new_first, err));
	return QCOW_OK;
}

/* ---- the L1 table ---- */

static enum qcow_status write_l1(struct fresh *f, struct qcow_error *err)
{
	struct qk_plan *p = f->p;
	uint64_t bytes = qk_geometry_l1_entries(&p->g, p->header.size) * 8;
	uint64_t whole = qk_div_up(bytes, p->g.cluster_size) << p->g.cluster_bits;
	struct qk_audit a;
	uint64_t first = 0, n = 0;
	QK_AUTO_FREE uint8_t *buf = qk_malloc(COPY_BYTES, 1);

	if (buf == NULL)
		return QK_FAIL_NOMEM(err);
	qk_plan_audit(p, p->store, &p->disk, &a);
	uint64_t kept = p->l1_is_lost ? 0 : qk_min(qk_audit_l1_bytes(&a), bytes);
	p->header.l1_entries = (uint32_t)(bytes / 8);
	p->header.l1_off = 0;
	if (bytes == 0)
		return QCOW_OK;
	QK_TRY(take(f, whole >> p->g.cluster_bits, whole >> p->g.cluster_bits, &first, &n, err));
	p->header.l1_off = first << p->g.cluster_bits;
	for (uint64_t at = 0; at < whole; at += COPY_BYTES) {
		uint64_t part = qk_min(COPY_BYTES, whole - at);
		uint64_t known = at < kept ? qk_min(part, kept - at) : 0;
		memset(buf, 0, (size_t)part);
		if (known != 0)
			QK_TRY(qcow_store_read_padded(
				p->store, buf, (size_t)known, p->disk.l1_off + at, err));
		QK_TRY(qcow_store_write(f->out, buf, (size_t)part, p->header.l1_off + at, err));
	}
	return QCOW_OK;
}

/* ---- the snapshot table ---- */

/* Goes through the old table; with `off` != 0 writes what stays from there on. */
struct snapshots {
	struct fresh *f;
	struct qk_snapread old;
	uint8_t *entry;
	uint64_t off, bytes; /* of the new table; its length so far */
	uint32_t n_kept;
};

static enum qcow_status read_part(
	void *ctx, uint8_t *buf, size_t n, uint64_t off, struct qcow_error *err)
{
	return qcow_store_read_padded(ctx, buf, n, off, err);
}

/* Extra data that version 3 wants, and no more than anybody reads. `extra` has room for 1024 bytes. */
static void mend_extra(const struct qk_plan *p, struct qk_snapshot_entry *e, uint8_t *extra)
{
	uint64_t covered = e->l1_entries * p->g.l2_span;
	size_t n = (size_t)qk_min(e->extra.n, QK_MAX_SNAPSHOT_EXTRA);

	if (n != 0)
		memcpy(extra, e->extra.p, n);
	if (p->g.version >= 3 && !e->has_disk_size) {
		qk_store64(extra, e->has_vm_state_size64 ? e->vm_state_size64 : e->vm_state_size32);
		qk_store64(extra + MIN_EXTRA_BYTES, NO_ICOUNT);
		n = QK_SNAPSHOT_EXTRA_BYTES;
	}
	if (n >= MIN_EXTRA_BYTES && (!e->has_disk_size || e->disk_size > QK_MAX_SIZE)) {
		e->has_disk_size = true;
		e->disk_size = qk_min(p->header.size, covered);
		qk_store64(extra + 8, e->disk_size);
	}
	e->extra = (struct qk_span){extra, n};
}

static bool stays(const struct qk_plan *p, uint32_t i, const struct qk_snapshot_entry *e)
{
	bool is_skipped = p->skip_snapshots != NULL &&
			  (p->skip_snapshots[i / 64] >> (i % 64) & 1) != 0;

	return p->refs.snaps.v[i].finding == 0 && !is_skipped && qk_snapshot_judge(&p->g, e) == 0;
}

static enum qcow_status copy_snapshot(struct snapshots *s, uint32_t i, struct qcow_error *err)
{
	struct qk_plan *p = s->f->p;
	uint8_t extra[QK_MAX_SNAPSHOT_EXTRA] = {0};
	struct qk_snapshot_entry e;

	uint64_t off = s->old.off;
	bool is_whole = false;
	QK_TRY(qk_snapread_next(&s->old, &e, &is_whole, err));
	if (!is_whole)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_SNAPSHOT_TABLE, off,
			QCOW_NO_OFFSET, "snapshot %u cannot be read again", i);
	mend_extra(p, &e, extra);
	if (!stays(p, i, &e))
		return QCOW_OK;
	struct qk_writer w = qk_writer_init(s->entry, LONGEST_SNAPSHOT);
	qk_snapshot_encode(&w, &e);
	if (s->off != 0)
		QK_TRY(qcow_store_write(s->f->out, s->entry, w.at, s->off + s->bytes, err));
	s->bytes += w.at;
	s->n_kept++;
	return QCOW_OK;
}

static enum qcow_status copy_snapshots(struct snapshots *s, struct qcow_error *err)
{
	struct qk_plan *p = s->f->p;

	s->old.off = p->disk.snapshots_off;
	s->bytes = 0;
	s->n_kept = 0;
	for (uint32_t i = 0; i < p->header.n_snapshots; i++)
		QK_TRY(copy_snapshot(s, i, err));
	return QCOW_OK;
}

static enum qcow_status write_snapshots(struct fresh *f, struct qcow_error *err)
{
	struct qk_plan *p = f->p;
	QK_AUTO_FREE uint8_t *window = qk_malloc(QK_SNAPREAD_BYTES, 1);
	QK_AUTO_FREE uint8_t *entry = qk_malloc(LONGEST_SNAPSHOT, 1);
	struct snapshots s = {.f = f,
		.old = {.read = read_part,
			.ctx = p->store,
			.end = qk_audit_end(&p->audit),
			.buf = window},
		.entry = entry};
	uint64_t first = 0, n = 0;

	if (window == NULL || entry == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(copy_snapshots(&s, err)); /* how long it will be */
	p->header.n_snapshots = s.n_kept;
	p->header.snapshots_off = 0;
	if (s.n_kept == 0)
		return QCOW_OK;
	uint64_t want = qk_div_up(s.bytes, p->g.cluster_size);
	QK_TRY(take(f, want, want, &first, &n, err));
	s.off = first << p->g.cluster_bits;
	p->header.n_snapshots = p->refs.snaps.n;
	enum qcow_status status = copy_snapshots(&s, err);
	p->header.n_snapshots = s.n_kept;
	p->header.snapshots_off = s.off;
	return status;
}

/* ---- the whole ---- */

static enum qcow_status write_refcounts(struct fresh *f, struct qcow_error *err)
{
	struct qk_plan *p = f->p;
	struct qk_shadow_source source = {f, counts, take, give_back};
	struct qk_shadow_request rq = {.store = f->out, .geometry = &p->g, .source = &source};
	struct qk_shadow s;

	QK_TRY(walk_init(f, &f->now, &p->header, f->out, true, err));
	rq.end = walk_end(f, &f->now);
	enum qcow_status status = qk_shadow_build(&rq, &s, err);
	p->header.rt_off = s.rt_off;
	p->header.rt_clusters = s.rt_clusters;
	qk_shadow_release(&s);
	return status;
}

/* The last cluster is whole in the file: what reads it must not meet the end. */
static enum qcow_status fill_last(struct fresh *f, struct qcow_error *err)
{
	uint64_t size = 0;
	uint64_t end = f->next << f->p->g.cluster_bits;

	if (!f->can_grow)
		return QCOW_OK;
	QK_TRY(qcow_store_size(f->out, &size, err));
	return size < end ? qcow_store_truncate(f->out, end, err) : QCOW_OK;
}

static enum qcow_status write_all(struct fresh *f, struct qcow_error *err)
{
	QK_TRY(place_init(f, err));
	if (f->p->new_l1)
		QK_TRY(write_l1(f, err));
	QK_TRY(write_copies(f, err));
	if (f->p->new_snapshots)
		QK_TRY(write_snapshots(f, err));
	QK_TRY(fill_last(f, err));
	return write_refcounts(f, err);
}

enum qcow_status qk_repair_fresh(struct qk_plan *p, struct qcow_store *out, struct qcow_error *err)
{
	struct fresh f = {.p = p, .out = out};
	enum qcow_status status = write_all(&f, err);

	walk_release(&f.old);
	walk_release(&f.now);
	return status;
}
