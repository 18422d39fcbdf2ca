/* SPDX-License-Identifier: MIT */
/*
 * plan_entries: what a repair does to entries of L1, L2 and bitmap tables.
 *
 * What is wrong in an entry itself is mended where the rest can be believed (reserved bits, COPIED without a cluster, a
 * subcluster that is two things at once); an entry that names what cannot be is unlinked. Where two things share a
 * cluster, structures stay before L2 tables, L2 tables before guest data, and guest data before a bitmap's bits, which
 * then say "dirty" (plan_conflicts.c).
 */
#include <string.h>

#include "base/mem.h"
#include "check/plan_entries.h"
#include "format/bitmapext.h"
#include "format/l1l2.h"

#define RESERVED_STANDARD UINT64_C(0x3f000000000001fe)
#define ALL_ZERO_BITMAP	  UINT64_C(0xffffffff00000000)
#define MAX_STEPS	  8U
#define MAX_TABLES	  ((size_t)65536)

/* ---- changes ---- */

enum qcow_status qk_entry_change_word(struct qk_plan *p, enum qcow_repair_kind kind,
	unsigned finding, uint64_t off, uint64_t was, uint64_t now, struct qcow_error *err)
{
	struct qk_change c = {.off = off,
		.was = was,
		.now = now,
		.phase = QCOW_REPAIR_UNLINK,
		.kind = (uint8_t)kind,
		.finding = (uint16_t)finding};

	return qk_plan_change(p, &c, err);
}

enum qcow_status qk_entry_change(struct qk_plan *p, const struct qk_entry *was,
	const struct qk_entry *now, struct qcow_error *err)
{
	if (was->raw != now->raw)
		QK_TRY(qk_entry_change_word(
			p, QCOW_REPAIR_L2_ENTRY, now->finding, was->off, was->raw, now->raw, err));
	if (was->bitmap != now->bitmap)
		QK_TRY(qk_entry_change_word(p, QCOW_REPAIR_L2_ENTRY, now->finding, was->off + 8,
			was->bitmap, now->bitmap, err));
	return QCOW_OK;
}

/* The entry names nothing any more, and reads as zeros where the version can say so. */
void qk_entry_unlink(const struct qk_geometry *g, struct qk_entry *e, unsigned finding)
{
	e->finding = finding;
	e->bitmap = g->extended_l2 ? ALL_ZERO_BITMAP : 0;
	e->raw = g->version >= 3 && !g->extended_l2 ? QK_FLAG_ZERO : 0;
}

struct qk_entry qk_entry_load(
	const struct qk_plan *p, const struct qk_l2ref *ref, const uint8_t *table, uint32_t i)
{
	struct qk_entry e = {.off = ref->off + (uint64_t)i * p->g.l2_entry_size};

	qk_l2_load(&p->g, table, i, &e.raw, &e.bitmap);
	return e;
}

/* What qk_l2_decode is to compare with: the guest offset where it is known. */
qk_goff qk_entry_guest(
	const struct qk_plan *p, const struct qk_l2ref *ref, uint32_t i, const struct qk_entry *e)
{
	if (!p->g.data_file || ref->l1_index == QK_L2SET_NO_INDEX)
		return (qk_goff){e->raw & QK_OFFSET_MASK};
	return (qk_goff){ref->l1_index * p->g.l2_span + ((uint64_t)i << p->g.cluster_bits)};
}

/* ---- faults: what is wrong in an entry itself ---- */

static void mend_subclusters(struct qk_entry *e, unsigned finding)
{
	uint64_t alloc = e->bitmap & UINT32_MAX;

	/* both: what is stored stays; no cluster: what should be stored is lost */
	if (finding == QCOW_FINDING_L2_SUBCLUSTER_BITS)
		e->bitmap &= ~(alloc << 32);
	else
		e->bitmap = e->bitmap >> 32 << 32 | alloc << 32;
}

/* One step towards an entry without `finding`. */
static void mend(const struct qk_geometry *g, struct qk_entry *e, unsigned finding, qk_goff guest)
{
	uint64_t field = (UINT64_C(1) << g->csize_shift) - 1;

	switch (finding) {
	case QCOW_FINDING_L2_ENTRY_RESERVED:
		if ((e->raw & QK_FLAG_COMPRESSED) != 0) {
			e->raw &= ~(field & ~g->coffset_mask);
			e->bitmap = 0;
		} else {
			e->raw &= ~(RESERVED_STANDARD | (g->extended_l2 ? QK_FLAG_ZERO : 0));
		}
		break;
	case QCOW_FINDING_L2_ZERO_FLAG_V2:
		e->raw &= ~QK_FLAG_ZERO;
		break;
	case QCOW_FINDING_L2_COPIED_AT_ZERO:
		e->raw &= ~QK_FLAG_COPIED;
		break;
	case QCOW_FINDING_DATA_FILE_OFFSET:
		/* an entry in use has COPIED: without it the file's bytes are not known to be the guest's */
		if ((e->raw & QK_FLAG_COPIED) != 0)
			e->raw = (e->raw & ~QK_OFFSET_MASK) |
				 qk_align_down(guest.v, g->cluster_size);
		else
			qk_entry_unlink(g, e, finding);
		break;
	case QCOW_FINDING_L2_SUBCLUSTER_BITS:
	case QCOW_FINDING_L2_SUBCLUSTER_NO_HOST:
		mend_subclusters(e, finding);
		break;
	default:
		qk_entry_unlink(g, e, finding);
		break;
	}
	e->finding = finding;
}

/* Where does a decoded entry end in the file; 0: nowhere. */
uint64_t qk_entry_last_byte(const struct qk_geometry *g, const struct qk_l2_entry *e)
{
	if (e->type == QK_L2_COMPRESSED)
		return e->host_off.v + e->compressed_bytes - 1;
	return qk_l2_has_host(e) && !g->data_file ? e->host_off.v : 0;
}

void qk_entry_mend(const struct qk_plan *p, struct qk_entry *e, qk_goff guest)
{
	const struct qk_geometry *g = &p->g;
	struct qk_l2_entry d = qk_l2_decode(g, e->raw, e->bitmap, guest);

	for (unsigned i = 0; d.finding != 0 && i < MAX_STEPS; i++) {
		mend(g, e, d.finding, guest);
		d = qk_l2_decode(g, e->raw, e->bitmap, guest);
	}
	if (d.type == QK_L2_COMPRESSED && d.copied) {
		e->raw &= ~QK_FLAG_COPIED;
		e->finding = QCOW_FINDING_COMPRESSED_COPIED;
	}
	if (d.finding != 0 || qk_entry_last_byte(g, &d) >= qk_audit_end(&p->audit))
		qk_entry_unlink(g, e,
			d.type == QK_L2_COMPRESSED ? QCOW_FINDING_COMPRESSED_BEYOND_FILE
						   : QCOW_FINDING_L2_ENTRY_BEYOND_FILE);
}

static enum qcow_status fault_l2(
	void *ctx, const struct qk_l2ref *ref, const uint8_t *table, struct qcow_error *err)
{
	struct qk_plan *p = ctx;

	for (uint32_t i = 0; table != NULL && i < p->g.l2_entries; i++) {
		struct qk_entry was = qk_entry_load(p, ref, table, i);
		struct qk_entry now = was;
		if (was.raw == 0 && was.bitmap == 0)
			continue;
		qk_entry_mend(p, &now, qk_entry_guest(p, ref, i, &was));
		QK_TRY(qk_entry_change(p, &was, &now, err));
	}
	return QCOW_OK;
}

const struct qk_plan_table *qk_plan_find_table(const struct qk_plan_tables *t, uint64_t off)
{
	size_t lo = 0, hi = t->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (t->v[mid].off < off)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < t->n && t->v[lo].off == off ? &t->v[lo] : NULL;
}

/* Tables come by ascending offset, so the list is in order. More than it holds are for the next round. */
enum qcow_status qk_plan_add_table(
	struct qk_plan_tables *t, uint64_t off, uint32_t index, struct qcow_error *err)
{
	if (t->n == MAX_TABLES || (t->n != 0 && t->v[t->n - 1].off >= off))
		return QCOW_OK;
	struct qk_plan_table *v = qk_grown(t->v, t->n, &t->room, sizeof(*v));
	if (v == NULL)
		return QK_FAIL_NOMEM(err);
	t->v = v;
	t->v[t->n++] = (struct qk_plan_table){off, index};
	return QCOW_OK;
}

struct qk_plan_copy qk_entry_copy(
	const struct qk_plan *p, const struct qk_refs_entry *e, unsigned finding)
{
	return (struct qk_plan_copy){.entry_off = e->off,
		.raw = e->raw,
		.first = (e->raw & QK_OFFSET_MASK) >> p->g.cluster_bits,
		.n = 1,
		.weight = e->covers,
		.finding = (uint16_t)finding,
		.kind = QCOW_REPAIR_L1_ENTRY};
}

static enum qcow_status fault_l1(void *ctx, const struct qk_refs_entry *e, struct qcow_error *err)
{
	struct qk_plan *p = ctx;
	struct qk_l1_entry d = qk_l1_decode(&p->g, e->raw);
	uint64_t now = e->raw;
	unsigned finding = qk_l1_finding(&d);

	if (finding == QCOW_FINDING_L1_ENTRY_RESERVED) {
		now &= d.l2_off.v != 0 ? QK_OFFSET_MASK | QK_FLAG_COPIED : 0;
		d = qk_l1_decode(&p->g, now);
	}
	if (d.finding != 0)
		finding = d.finding;
	else if (d.l2_off.v >= qk_audit_end(&p->audit))
		finding = QCOW_FINDING_L1_ENTRY_BEYOND_FILE;
	if (finding != 0 && finding != QCOW_FINDING_L1_ENTRY_RESERVED)
		now = 0;
	const struct qk_plan_table *twice = e->index == QK_L2SET_NO_INDEX
						    ? NULL
						    : qk_plan_find_table(&p->twice, d.l2_off.v);
	if (now != 0 && twice != NULL && twice->index != e->index) {
		struct qk_plan_copy copy = qk_entry_copy(p, e, QCOW_FINDING_L2_TABLE_TWICE);
		bool stays = false;
		copy.raw = now;
		QK_TRY(qk_plan_copy(p, &copy, &stays, err));
		now = stays ? now : 0;
		finding = stays ? finding : QCOW_FINDING_L2_TABLE_TWICE;
	}
	return qk_entry_change_word(p, QCOW_REPAIR_L1_ENTRY, finding, e->off, e->raw, now, err);
}

/* What says nothing of the bits says "dirty": that is never wrong. */
static enum qcow_status fault_bitmap(
	void *ctx, const struct qk_refs_entry *e, struct qcow_error *err)
{
	struct qk_plan *p = ctx;
	struct qk_bitmap_table_entry d = qk_bitmap_table_decode(&p->g, e->raw);

	if (d.finding == 0 && d.off.v < qk_audit_end(&p->audit))
		return QCOW_OK;
	return qk_entry_change_word(p, QCOW_REPAIR_BITMAP_ENTRY, QCOW_FINDING_BITMAP_TABLE, e->off,
		e->raw, QK_ENTRY_ALL_ONES, err);
}

static enum qcow_status note_twice(
	void *ctx, const struct qk_l2ref *ref, const uint8_t *table, struct qcow_error *err)
{
	struct qk_plan *p = ctx;

	(void)table;
	return ref->n_active < 2 ? QCOW_OK
				 : qk_plan_add_table(&p->twice, ref->off, ref->l1_index, err);
}

static bool was_found(const struct qk_plan *p, unsigned first, unsigned last)
{
	for (unsigned id = first; id <= last; id++) {
		if (p->found[id] != 0)
			return true;
	}
	return false;
}

enum qcow_status qk_plan_table_faults(struct qk_plan *p, struct qcow_error *err)
{
	const struct qk_refs_visitor twice = {.ctx = p, .l2 = note_twice};
	const struct qk_refs_visitor tables = {.ctx = p, .l1 = fault_l1, .bitmap = fault_bitmap};

	if (p->found[QCOW_FINDING_L2_TABLE_TWICE] != 0)
		QK_TRY(qk_refs_visit(&p->refs, &twice, err));
	return qk_refs_visit(&p->refs, &tables, err);
}

enum qcow_status qk_plan_entry_faults(struct qk_plan *p, struct qcow_error *err)
{
	const struct qk_refs_visitor clusters = {.ctx = p, .l2 = fault_l2};

	if (!was_found(p, QCOW_FINDING_L2_ENTRY_UNALIGNED, QCOW_FINDING_DATA_FILE_OFFSET))
		return QCOW_OK;
	return qk_refs_visit(&p->refs, &clusters, err);
}

/* ---- COPIED ---- */

uint64_t qk_plan_word(const struct qk_plan *p, uint64_t cluster)
{
	if (cluster < p->census.lo || cluster >= p->census.hi)
		return 0;
	return qk_census_get(&p->census, cluster);
}

struct copied {
	struct qk_plan *p;
	bool set_only;
};

static enum qcow_status judge_copied(const struct copied *c, enum qcow_repair_kind kind,
	uint64_t off, uint64_t raw, struct qcow_error *err)
{
	struct qk_plan *p = c->p;
	uint64_t cluster = (raw & QK_OFFSET_MASK) >> p->g.cluster_bits;
	bool is_one = (qk_plan_word(p, cluster) & QK_CENSUS_WIDE_COUNT) == 1;
	bool is_copied = (raw & QK_FLAG_COPIED) != 0;

	if (cluster < p->census.lo || cluster >= p->census.hi || is_one == is_copied ||
		(c->set_only && is_copied))
		return QCOW_OK;
	struct qk_change change = {.off = off,
		.was = raw,
		.now = raw ^ QK_FLAG_COPIED,
		.phase = is_copied ? QCOW_REPAIR_UNLINK : QCOW_REPAIR_COPIED,
		.kind = (uint8_t)kind,
		.finding = is_copied ? QCOW_FINDING_COPIED_WRONG : QCOW_FINDING_COPIED_MISSING};
	return qk_plan_change(p, &change, err);
}

static enum qcow_status copied_l1(void *ctx, const struct qk_refs_entry *e, struct qcow_error *err)
{
	if (e->index == QK_L2SET_NO_INDEX || (e->raw & QK_OFFSET_MASK) == 0)
		return QCOW_OK;
	return judge_copied(ctx, QCOW_REPAIR_L1_ENTRY, e->off, e->raw, err);
}

/* In a data file a cluster has one reference for ever, and lies where the guest has it: in no window of the census. */
static enum qcow_status copied_in_data_file(
	struct qk_plan *p, const struct qk_l2ref *ref, const uint8_t *table, struct qcow_error *err)
{
	for (uint32_t i = 0; table != NULL && p->census.lo == 0 && i < p->g.l2_entries; i++) {
		struct qk_entry was = qk_entry_load(p, ref, table, i);
		struct qk_l2_entry d = qk_l2_decode(
			&p->g, was.raw, was.bitmap, qk_entry_guest(p, ref, i, &was));
		if (d.finding != 0 || d.type == QK_L2_COMPRESSED || d.host_off.v == 0 || d.copied)
			continue;
		struct qk_change change = {.off = was.off,
			.was = was.raw,
			.now = was.raw | QK_FLAG_COPIED,
			.phase = QCOW_REPAIR_COPIED,
			.kind = QCOW_REPAIR_L2_ENTRY,
			.finding = QCOW_FINDING_COPIED_MISSING};
		QK_TRY(qk_plan_change(p, &change, err));
	}
	return QCOW_OK;
}

static enum qcow_status copied_l2(
	void *ctx, const struct qk_l2ref *ref, const uint8_t *table, struct qcow_error *err)
{
	const struct copied *c = ctx;

	if (ref->n_active == 0)
		return QCOW_OK;
	if (c->p->g.data_file)
		return copied_in_data_file(c->p, ref, table, err);
	for (uint32_t i = 0; table != NULL && i < c->p->g.l2_entries; i++) {
		struct qk_entry e = qk_entry_load(c->p, ref, table, i);
		if ((e.raw & QK_FLAG_COMPRESSED) != 0 || (e.raw & QK_OFFSET_MASK) == 0 ||
			!qk_is_aligned(e.raw & QK_OFFSET_MASK, c->p->g.cluster_size))
			continue;
		QK_TRY(judge_copied(c, QCOW_REPAIR_L2_ENTRY, e.off, e.raw, err));
	}
	return QCOW_OK;
}

enum qcow_status qk_plan_copied(struct qk_plan *p, bool set_only, struct qcow_error *err)
{
	struct copied c = {p, set_only};
	const struct qk_refs_visitor v = {.ctx = &c, .l1 = copied_l1, .l2 = copied_l2};

	return qk_refs_visit(&p->refs, &v, err);
}
