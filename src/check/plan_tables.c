/* SPDX-License-Identifier: MIT */
/*
 * plan_tables: what a repair does to the header: tables that lie beyond the file, lists that cannot be read, and structures
 * that lie on one another. Every decision makes the next walk follow less; it is repeated until the lists agree.
 *
 * Of two structures that share a cluster the one that comes first here stays: header, encryption header, active L1
 * table, snapshot table, the snapshots' L1 tables, bitmaps. The refcount structure gives way to all of them: it can be
 * counted anew.
 */
#include "check/plan.h"

#include <string.h>

#include "base/mem.h"

#define MAX_TURNS 8U

/* By rank: the lower number stays. */
enum rank {
	RANK_HEADER,
	RANK_CRYPTO,
	RANK_L1,
	RANK_SNAPSHOTS,
	RANK_SNAPSHOT_L1,
	RANK_BITMAPS
};

struct structure {
	uint64_t first, end; /* clusters */
	enum rank rank;
	uint32_t index; /* of a snapshot */
	bool is_out;
};

struct structures {
	struct qk_plan *p;
	struct structure *v;
	size_t n, room;
};

/* ---- findings of the lists ---- */

static void note(void *ctx, const struct qcow_finding *f)
{
	struct qk_plan *p = ctx;

	if (f->id < QK_N_FINDINGS)
		p->seen[f->id]++;
}

static enum qcow_status load(struct qk_plan *p, struct qcow_error *err)
{
	struct qk_refs_request q = {.audit = &p->audit,
		.census = &p->census,
		.memory_bytes = p->memory_bytes / 16,
		.skip_snapshots = p->skip_snapshots};

	memset(p->seen, 0, sizeof(p->seen));
	qk_refs_release(&p->refs);
	p->audit.report = note;
	p->audit.report_ctx = p;
	return qk_refs_init(&p->refs, &q, err);
}

/* ---- L1 ---- */

static void judge_l1(struct qk_plan *p)
{
	uint64_t end = qk_audit_end(&p->audit);
	uint64_t needed = qk_geometry_l1_entries(&p->g, p->header.size);

	if (p->l1_is_lost ||
		qk_in_range(p->header.l1_off, qk_audit_l1_claimed_bytes(&p->audit), end))
		return;
	if (qk_in_range(p->header.l1_off, needed * 8, end))
		p->header.l1_entries = (uint32_t)needed;
	else
		p->new_l1 = true;
}

/* Where more of the L1 table than the disk needs lies on what something else needs, its length is wrong: what such entries
 * would name, or put out, is nobody's. */
static enum qcow_status cut_l1(struct qk_plan *p, struct qcow_error *err)
{
	uint64_t needed = qk_geometry_l1_entries(&p->g, p->header.size);
	uint64_t claimed = p->header.l1_off + qk_audit_l1_claimed_bytes(&p->audit);
	uint64_t first = qk_div_up(p->header.l1_off + needed * 8, p->g.cluster_size);
	uint64_t end = qk_min(qk_div_up(claimed, p->g.cluster_size), p->n_clusters);

	if (p->found[QCOW_FINDING_METADATA_OVERLAP] == 0 || p->header.l1_entries <= needed)
		return QCOW_OK;
	for (uint64_t c = first; c < end; c++) {
		if (c < p->census.lo || c >= p->census.hi || c == first)
			QK_TRY(qk_plan_count(p, c, err));
		if ((qk_census_get(&p->census, c) & QK_CENSUS_WIDE(QK_CENSUS_OVERLAP)) == 0)
			continue;
		p->header.l1_entries = (uint32_t)needed;
		return load(p, err);
	}
	return QCOW_OK;
}

/* ---- snapshots ---- */

static bool skipped(const struct qk_plan *p, uint32_t i)
{
	return p->skip_snapshots != NULL && (p->skip_snapshots[i / 64] >> (i % 64) & 1) != 0;
}

static enum qcow_status skip(struct qk_plan *p, uint32_t i, struct qcow_error *err)
{
	if (p->skip_snapshots == NULL)
		p->skip_snapshots = qk_calloc(
			qk_div_up(p->disk.n_snapshots, 64), sizeof(*p->skip_snapshots));
	if (p->skip_snapshots == NULL)
		return QK_FAIL_NOMEM(err);
	p->skip_snapshots[i / 64] |= UINT64_C(1) << (i % 64);
	return QCOW_OK;
}

static void drop_snapshots(struct qk_plan *p)
{
	p->header.n_snapshots = 0;
	p->header.snapshots_off = 0;
	p->new_snapshots = false;
}

static void judge_snapshots(struct qk_plan *p)
{
	const struct qk_snaplist *s = &p->refs.snaps;
	bool stopped = s->finding == QCOW_FINDING_SNAPSHOT_TABLE;
	uint32_t n_good = 0;

	if (p->header.n_snapshots == 0)
		return;
	for (uint32_t i = 0; i < s->n; i++)
		n_good += s->v[i].finding == 0 && !skipped(p, i);
	if (n_good == 0) {
		drop_snapshots(p);
		return;
	}
	/* the table's own finding is about where it stopped, the others about entries */
	p->header.n_snapshots = s->n;
	p->new_snapshots = n_good < s->n || p->seen[QCOW_FINDING_SNAPSHOT_EXTRA] != 0 ||
			   p->seen[QCOW_FINDING_SNAPSHOT_L1] != 0 ||
			   p->seen[QCOW_FINDING_SNAPSHOT_TABLE] > stopped;
}

/* ---- bitmaps ---- */

static void drop_bitmaps(struct qk_plan *p)
{
	p->header.autoclear &= ~QCOW_AUTOCLEAR_BITMAPS;
}

static void judge_bitmaps(struct qk_plan *p)
{
	if (p->seen[QCOW_FINDING_BITMAP_DIRECTORY] != 0 ||
		p->seen[QCOW_FINDING_BITMAP_TABLE] != 0 ||
		p->seen[QCOW_FINDING_BITMAP_AUTOCLEAR] != 0)
		drop_bitmaps(p);
}

/* ---- structures that share a cluster ---- */

static enum qcow_status add(struct structures *s, enum rank rank, uint32_t index,
	const struct qk_sweep_range *range, struct qcow_error *err)
{
	unsigned bits = s->p->g.cluster_bits;

	if (range->len == 0)
		return QCOW_OK;
	struct structure *v = qk_grown(s->v, s->n, &s->room, sizeof(*v));
	if (v == NULL)
		return QK_FAIL_NOMEM(err);
	s->v = v;
	s->v[s->n++] = (struct structure){.first = range->off >> bits,
		.end = ((range->off + range->len - 1) >> bits) + 1,
		.rank = rank,
		.index = index};
	return QCOW_OK;
}

static enum qcow_status gather_bitmaps(struct structures *s, struct qcow_error *err)
{
	struct qk_plan *p = s->p;
	struct qk_sweep_range range = {
		p->ext.bitmaps.directory_off, p->refs.bitmap_directory_bytes, 1};

	QK_TRY(add(s, RANK_BITMAPS, 0, &range, err));
	qk_sweep_rewind(&p->refs.bitmap_table_clusters);
	while (qk_sweep_next(&p->refs.bitmap_table_clusters, &range)) {
		/* two tables in one place */
		if (range.covers > 1)
			drop_bitmaps(p);
		QK_TRY(add(s, RANK_BITMAPS, 0, &range, err));
	}
	return QCOW_OK;
}

static enum qcow_status gather(struct structures *s, struct qcow_error *err)
{
	struct qk_plan *p = s->p;
	uint64_t end = qk_audit_end(&p->audit);
	struct qk_sweep_range range = {0, p->g.cluster_size, 1};

	QK_TRY(add(s, RANK_HEADER, 0, &range, err));
	range = (struct qk_sweep_range){p->ext.crypto_off, p->ext.crypto_len, 1};
	if (p->ext.has_crypto && qk_in_range(range.off, range.len, end))
		QK_TRY(add(s, RANK_CRYPTO, 0, &range, err));
	range = (struct qk_sweep_range){p->header.l1_off, qk_audit_l1_bytes(&p->audit), 1};
	QK_TRY(add(s, RANK_L1, 0, &range, err));
	range = (struct qk_sweep_range){p->header.snapshots_off, p->refs.snaps.table_bytes, 1};
	QK_TRY(add(s, RANK_SNAPSHOTS, 0, &range, err));
	for (uint32_t i = 0; i < p->refs.snaps.n; i++) {
		const struct qk_snap_l1 *l1 = &p->refs.snaps.v[i];
		range = (struct qk_sweep_range){l1->off, l1->n_entries * UINT64_C(8), 1};
		if (!skipped(p, i))
			QK_TRY(add(s, RANK_SNAPSHOT_L1, i, &range, err));
	}
	return gather_bitmaps(s, err);
}

static int by_place(const void *a, const void *b)
{
	const struct structure *x = a;
	const struct structure *y = b;

	if (x->first != y->first)
		return x->first < y->first ? -1 : 1;
	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	return (x->index > y->index) - (x->index < y->index);
}

static enum qcow_status put_out(
	struct qk_plan *p, const struct structure *s, struct qcow_error *err)
{
	switch (s->rank) {
	case RANK_HEADER:
	case RANK_CRYPTO:
		return QCOW_OK; /* nothing gives way for them but what comes later */
	case RANK_L1:
		p->l1_is_lost = p->new_l1 = true;
		p->header.l1_entries = 0;
		return QCOW_OK;
	case RANK_SNAPSHOTS:
		drop_snapshots(p);
		return QCOW_OK;
	case RANK_SNAPSHOT_L1:
		return skip(p, s->index, err);
	case RANK_BITMAPS:
		drop_bitmaps(p);
		return QCOW_OK;
	}
	return QCOW_OK;
}

static bool stays_before(const struct structure *a, const struct structure *b)
{
	return a->rank != b->rank ? a->rank < b->rank : a->index <= b->index;
}

/* Bitmaps are one: directory and tables do not put each other out by rank, they are dropped together. */
static enum qcow_status settle(struct structures *s, struct qcow_error *err)
{
	struct structure *last = NULL;

	if (s->n > 1)
		qsort(s->v, s->n, sizeof(*s->v), by_place);
	for (size_t i = 0; i < s->n; i++) {
		struct structure *at = &s->v[i];
		if (last == NULL || at->first >= last->end) {
			last = last == NULL || at->end > last->end ? at : last;
			continue;
		}
		struct structure *loser = stays_before(last, at) ? at : last;
		QK_TRY(put_out(s->p, loser, err));
		if (loser == last)
			last = at;
	}
	return QCOW_OK;
}

static enum qcow_status judge_overlaps(struct qk_plan *p, struct qcow_error *err)
{
	struct structures s = {.p = p};
	enum qcow_status status = gather(&s, err);

	if (status == QCOW_OK)
		status = settle(&s, err);
	free(s.v);
	return status;
}

/* ---- the whole ---- */

struct state {
	uint32_t l1_entries, n_snapshots;
	uint64_t autoclear, n_skipped;
	bool l1_is_lost;
};

static struct state state_of(const struct qk_plan *p)
{
	struct state s = {.l1_entries = p->header.l1_entries,
		.n_snapshots = p->header.n_snapshots,
		.autoclear = p->header.autoclear,
		.l1_is_lost = p->l1_is_lost};

	for (uint64_t i = 0; p->skip_snapshots != NULL && i < qk_div_up(p->disk.n_snapshots, 64);
		i++)
		s.n_skipped += (uint64_t)__builtin_popcountll(p->skip_snapshots[i]);
	return s;
}

static bool is_same(const struct state *a, const struct state *b)
{
	return a->l1_entries == b->l1_entries && a->n_snapshots == b->n_snapshots &&
	       a->autoclear == b->autoclear && a->n_skipped == b->n_skipped &&
	       a->l1_is_lost == b->l1_is_lost;
}

static bool is_table_damaged(const struct qk_plan *p)
{
	return p->seen[QCOW_FINDING_REFTABLE_ENTRY_UNALIGNED] != 0 ||
	       p->seen[QCOW_FINDING_REFTABLE_ENTRY_RESERVED] != 0 ||
	       p->seen[QCOW_FINDING_REFTABLE_ENTRY_BEYOND_FILE] != 0 ||
	       p->seen[QCOW_FINDING_REFTABLE_BEYOND_FILE] != 0 ||
	       p->seen[QCOW_FINDING_REFCOUNT_BLOCK_TWICE] != 0;
}

enum qcow_status qk_plan_tables(struct qk_plan *p, struct qcow_error *err)
{
	struct state before;
	struct state after;
	unsigned turns = 0;

	QK_TRY(load(p, err));
	if (p->mode == QCOW_REPAIR_LEAKS)
		return QCOW_OK;
	QK_TRY(cut_l1(p, err));
	do {
		before = state_of(p);
		judge_l1(p);
		judge_snapshots(p);
		judge_bitmaps(p);
		if (p->found[QCOW_FINDING_METADATA_OVERLAP] != 0)
			QK_TRY(judge_overlaps(p, err));
		after = state_of(p);
		if (!is_same(&before, &after))
			QK_TRY(load(p, err));
	} while (!is_same(&before, &after) && ++turns < MAX_TURNS);
	/* whatever is written to fresh clusters is counted with them in a second structure */
	p->new_refcounts = is_table_damaged(p) || p->new_l1 || p->new_snapshots;
	p->refs.without_refcounts = p->new_refcounts;
	return QCOW_OK;
}

/* ---- the header's words ---- */

static void store_header(uint8_t sector[QK_SECTOR], const struct qk_header *h)
{
	qk_store32(sector + 36, h->l1_entries);
	qk_store64(sector + 40, h->l1_off);
	qk_store64(sector + 48, h->rt_off);
	qk_store32(sector + 56, h->rt_clusters);
	qk_store32(sector + 60, h->n_snapshots);
	qk_store64(sector + 64, h->snapshots_off);
	if (h->version < 3)
		return;
	qk_store64(sector + 72, h->incompatible);
	qk_store64(sector + 88, h->autoclear);
}

void qk_plan_sector0(const struct qk_plan *p, uint8_t sector[QK_SECTOR])
{
	memcpy(sector, p->cluster0, QK_SECTOR);
	store_header(sector, &p->header);
}

enum qcow_status qk_plan_header(struct qk_plan *p, struct qcow_error *err)
{
	uint8_t was[QK_SECTOR] = {0};
	uint8_t now[QK_SECTOR] = {0};

	store_header(was, &p->disk);
	store_header(now, &p->header);
	/* its place comes with the new one */
	if (p->new_l1)
		memcpy(now + 36, was + 36, 4);
	/* the word's other half is not the repair's */
	memcpy(was + 32, p->cluster0 + 32, 4);
	memcpy(now + 32, p->cluster0 + 32, 4);
	for (uint32_t off = 32; off < 96; off += 8) {
		struct qk_change c = {.off = off,
			.was = qk_load64(was + off),
			.now = qk_load64(now + off),
			.phase = QCOW_REPAIR_HEADER,
			.kind = QCOW_REPAIR_HEADER_FIELD};
		QK_TRY(qk_plan_change(p, &c, err));
	}
	return QCOW_OK;
}
