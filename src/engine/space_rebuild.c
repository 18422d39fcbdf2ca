/* SPDX-License-Identifier: MIT */
/*
 * space_rebuild: what happens before the first write. Autoclear bits that are not kept are cleared; the refcounts
 * of an image whose dirty bit is set are counted anew.
 *
 *	1  refcounts that have a block: set to the references counted
 *	2  areas with references and without a block: a new block, past the end of the file, or on a
 *	   device in clusters that round 1 has found free
 *	|| publication of all that || the dirty bit cleared ||
 *
 * While the dirty bit is set no refcount is believed, so rounds may be written in any order, and a crash means
 * starting over. The structure of blocks and table is believed: where it contradicts itself nothing is rebuilt.
 */
#include "engine/space_census.h"

#include <inttypes.h>

#include "base/bytes.h"
#include "base/mem.h"

#define HEADER_INCOMPATIBLE 72U
#define HEADER_AUTOCLEAR    88U

static enum qcow_status write_word(
	struct qk_space *sp, uint32_t off, uint64_t value, struct qcow_error *err)
{
	uint8_t bytes[8];
	struct qk_header_patch patch = {off, sizeof(bytes), bytes};

	qk_store64(bytes, value);
	QK_TRY(qk_space_write_header(sp, &patch, err));
	return qcow_store_flush(sp->store, err);
}

/* ---- the rebuild ---- */

struct rebuild {
	struct qk_space *sp;
	struct qk_space_census c;
	uint64_t *had; /* a bit an area: it had a block before round 2 */
	uint64_t n_had;
	bool has_missing;
};

/* What refers to a cluster now. A refcount table that was replaced on the way refers to nothing. */
static uint64_t references(const struct rebuild *r, uint64_t cluster, uint64_t word)
{
	uint64_t refs = word & QK_CENSUS_WIDE_COUNT;
	uint64_t old = qk_space_cluster(r->sp, r->c.header.rt_off);
	bool moved = r->sp->header.rt_off != r->c.header.rt_off;

	return refs - (moved && cluster - old < r->c.header.rt_clusters ? 1 : 0);
}

static enum qcow_status judge(
	const struct rebuild *r, uint64_t cluster, uint64_t word, struct qcow_error *err)
{
	uint64_t refs = word & QK_CENSUS_WIDE_COUNT;

	QK_TRY(qk_space_census_judge(r->sp, cluster, word, err));
	if (refs <= r->sp->g->refcount_max)
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_REFCOUNT_TOO_LOW,
		cluster << r->sp->g->cluster_bits, QCOW_NO_OFFSET,
		"not opened for writing: %" PRIu64
		" references to one cluster, more than %u-bit refcounts hold",
		refs, r->sp->g->refcount_bits);
}

static enum qcow_status keep_memory_bounded(struct qk_space *sp, struct qcow_error *err)
{
	return qk_space_wants_publish(sp) ? qk_space_publish_now(sp, err) : QCOW_OK;
}

/* Round 1, one block: entries of the window; with the last window those past the end of the file. */
static enum qcow_status set_block(struct rebuild *r, uint64_t idx, struct qcow_error *err)
{
	const struct qk_census *census = &r->c.census;
	uint64_t first = qk_max(idx << r->sp->g->rb_bits, census->lo);
	uint64_t end = (idx + 1) << r->sp->g->rb_bits;
	struct qk_refblock *b = NULL;

	if (census->hi < r->c.n_clusters)
		end = qk_min(end, census->hi);
	QK_TRY(qk_refblock_get(r->sp, idx, &b, err));
	for (uint64_t cluster = first; cluster < end; cluster++) {
		uint64_t refs = references(
			r, cluster, cluster < r->c.n_clusters ? qk_census_get(census, cluster) : 0);
		if (qk_refblock_at(r->sp, b, cluster) != refs)
			qk_refblock_set(r->sp, b, cluster, refs);
	}
	qk_refblock_put(b);
	return keep_memory_bounded(r->sp, err);
}

static enum qcow_status look(void *ctx, uint64_t cluster, uint64_t word, struct qcow_error *err)
{
	struct rebuild *r = ctx;
	uint64_t idx = cluster >> r->sp->g->rb_bits;

	r->has_missing = r->has_missing || idx >= r->sp->table_entries || r->sp->table[idx] == 0;
	return judge(r, cluster, word, err);
}

static enum qcow_status round_one(void *ctx, struct qcow_error *err)
{
	struct rebuild *r = ctx;
	uint64_t first = r->c.census.lo >> r->sp->g->rb_bits;

	QK_TRY(qk_space_census_each(&r->c, look, r, err));
	for (uint64_t idx = first; idx < r->sp->table_entries; idx++) {
		if (r->c.census.hi < r->c.n_clusters && idx << r->sp->g->rb_bits >= r->c.census.hi)
			break;
		if (r->sp->table[idx] != 0)
			QK_TRY(set_block(r, idx, err));
	}
	return QCOW_OK;
}

/* Round 2: a block for the area, which is not looked at for free clusters before all of it is counted. */
static enum qcow_status make_area(struct rebuild *r, uint64_t cluster, struct qcow_error *err)
{
	struct qk_space *sp = r->sp;
	uint64_t idx = cluster >> sp->g->rb_bits;

	QK_TRY(qk_space_cover(sp, cluster, 1, err));
	sp->full[idx / 64] |= UINT64_C(1) << (idx % 64);
	return QCOW_OK;
}

static enum qcow_status fill(void *ctx, uint64_t cluster, uint64_t word, struct qcow_error *err)
{
	struct rebuild *r = ctx;
	uint64_t idx = cluster >> r->sp->g->rb_bits;
	struct qk_refblock *b = NULL;

	if (idx < r->n_had && (r->had[idx / 64] >> (idx % 64) & 1) != 0)
		return QCOW_OK;
	QK_TRY(make_area(r, cluster, err));
	QK_TRY(qk_refblock_get(r->sp, idx, &b, err));
	qk_refblock_set(r->sp, b, cluster, references(r, cluster, word));
	qk_refblock_put(b);
	return keep_memory_bounded(r->sp, err);
}

static enum qcow_status note_areas(struct rebuild *r, struct qcow_error *err)
{
	r->n_had = r->sp->table_entries;
	r->had = qk_calloc(qk_div_up(r->n_had, 64), sizeof(*r->had));
	if (r->had == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t idx = 0; idx < r->n_had; idx++) {
		if (r->sp->table[idx] != 0)
			r->had[idx / 64] |= UINT64_C(1) << (idx % 64);
	}
	return QCOW_OK;
}

static enum qcow_status round_two(void *ctx, struct qcow_error *err)
{
	struct rebuild *r = ctx;

	return qk_space_census_each(&r->c, fill, r, err);
}

static enum qcow_status count_anew(struct rebuild *r, struct qcow_error *err)
{
	struct qk_space *sp = r->sp;

	/* nothing is free but what lies past the end; on a device, what round 1 found free */
	sp->only_blocks = !sp->can_grow;
	sp->floor = sp->can_grow ? sp->pristine : 0;
	QK_TRY(qk_space_census_run(&r->c, round_one, r, err));
	if (r->has_missing) {
		QK_TRY(note_areas(r, err));
		QK_TRY(qk_space_census_run(&r->c, round_two, r, err));
	}
	QK_TRY(qk_space_publish_now(sp, err));
	/* a table that was replaced is freed by the second */
	return qk_space_publish_now(sp, err);
}

static enum qcow_status rebuild(
	struct qk_space *sp, struct qk_header *header, struct qcow_error *err)
{
	struct rebuild r = {.sp = sp};
	enum qcow_status status = qk_space_census_init(&r.c, sp, NULL, err);

	if (status == QCOW_OK)
		status = count_anew(&r, err);
	qk_space_census_release(&r.c);
	free(r.had);
	QK_TRY(status);
	header->rt_off = sp->header.rt_off;
	header->rt_clusters = sp->header.rt_clusters;
	QK_TRY(write_word(
		sp, HEADER_INCOMPATIBLE, header->incompatible & ~QCOW_INCOMPAT_DIRTY, err));
	header->incompatible &= ~QCOW_INCOMPAT_DIRTY;
	return QCOW_OK;
}

static enum qcow_status prepare(
	struct qk_space *sp, struct qk_header *header, uint64_t autoclear, struct qcow_error *err)
{
	if (autoclear != header->autoclear) {
		QK_TRY(write_word(sp, HEADER_AUTOCLEAR, autoclear, err));
		header->autoclear = autoclear;
		sp->header.autoclear = autoclear;
	}
	if ((header->incompatible & QCOW_INCOMPAT_DIRTY) != 0)
		return rebuild(sp, header, err);
	return QCOW_OK;
}

enum qcow_status qk_space_prepare(const struct qk_space_request *rq, struct qk_header *header,
	uint64_t keep_autoclear, bool refuse_dirty, struct qcow_error *err)
{
	struct qk_space_request plain = *rq;
	struct qk_space *sp = NULL;
	uint64_t autoclear = header->autoclear & keep_autoclear;
	bool is_dirty = (header->incompatible & QCOW_INCOMPAT_DIRTY) != 0;

	if (is_dirty && refuse_dirty)
		return QK_FAIL_AT(err, QCOW_E_READONLY, QCOW_FINDING_DIRTY, HEADER_INCOMPATIBLE,
			QCOW_NO_OFFSET,
			"the dirty bit is set: its refcounts would have to be rebuilt first");
	if (!is_dirty && autoclear == header->autoclear)
		return QCOW_OK;
	plain.prove = QCOW_PROVE_OFF;
	plain.header = header;
	QK_TRY(qk_space_new(&plain, &sp, err));
	enum qcow_status status = prepare(sp, header, autoclear, err);
	qk_space_free(sp);
	return status;
}
