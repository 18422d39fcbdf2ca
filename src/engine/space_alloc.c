/* SPDX-License-Identifier: MIT */
/*
 * space_alloc: which cluster is handed out next.
 *
 * The lowest free one, so that an image stays compact and one thread on a fresh image gets the offsets that
 * QEMU's tools give it; `cursor` remembers where to look. After 64 calls in a row that each went on
 * where the one before ended, a run ahead is reserved: its refcounts are 1 and soon stable, so that the
 * publications that follow need not write them, and the file is long enough for it. close gives it back.
 */
#include "engine/space_private.h"

#include <inttypes.h>

#include "format/refcounts.h"

#define CONSECUTIVE_BEFORE_RESERVING 64U
#define RESERVE_BYTES		     QK_MIB(64)

/* ---- finding free clusters ---- */

static bool full_test(const struct qk_space *sp, uint64_t idx)
{
	return (sp->full[idx / 64] >> (idx % 64) & 1) != 0;
}

/* A search under way: the run found so far. */
struct finder {
	struct qk_space *sp;
	const struct qk_space_search *s;
	uint64_t first, n; /* n == 0: none */
};

/* A cluster with refcount 0: may it be handed out? A structure in it means that its refcount lies. */
static enum qcow_status look_at(
	struct finder *f, uint64_t cluster, bool *usable, struct qcow_error *err)
{
	struct qk_space *sp = f->sp;
	uint64_t off = cluster << sp->g->cluster_bits;

	*usable = cluster - f->s->avoid >= f->s->avoid_end - f->s->avoid &&
		  (sp->quarantine.n == 0 ||
			  qk_cluster_set_find(&sp->quarantine, cluster) == UINT64_MAX);
	enum qk_space_kind kind = qk_space_map_find(sp, cluster);
	if (QK_LIKELY(kind == QK_SPACE_DATA))
		return QCOW_OK;
	qk_space_corrupt(sp);
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_REFCOUNT_TOO_LOW, off, QCOW_NO_OFFSET,
		"cluster at %" PRIu64 " holds the %s and its refcount is 0", off,
		qk_space_kind_name(kind));
}

/* One cluster more. Sets *done where the run is long enough, or ended with at least min_n. */
static bool extend_run(struct finder *f, uint64_t cluster, bool is_free)
{
	if (is_free) {
		if (f->n++ == 0)
			f->first = cluster;
		return f->n == f->s->n;
	}
	if (f->n >= f->s->min_n)
		return true;
	f->n = 0;
	return f->s->here;
}

/* The next one from `c` on that has refcount 0, or `end`; one block counts them all. */
static uint64_t next_free(
	const struct qk_space *sp, const struct qk_refblock *b, uint64_t c, uint64_t end)
{
	uint64_t n = sp->g->rb_entries, base = c & ~(n - 1);
	return base + qk_refcounts_find_zero(sp->g, b->bytes, c - base, end - base);
}

/* Clusters [first, end) of one block, NULL where all are free. */
static enum qcow_status scan(struct finder *f, const struct qk_refblock *b, uint64_t first,
	uint64_t end, bool *done, struct qcow_error *err)
{
	bool any = false;

	for (uint64_t c = first; c < end && !*done; c++) {
		bool is_free = b == NULL || qk_refblock_at(f->sp, b, c) == 0;
		if (!is_free && f->n == 0 && !f->s->here) {
			c = next_free(f->sp, b, c, end) - 1;
			continue;
		}
		any = any || is_free;
		if (is_free)
			QK_TRY(look_at(f, c, &is_free, err));
		*done = extend_run(f, c, is_free);
	}
	if (!any && b != NULL && !*done && (first & (f->sp->g->rb_entries - 1)) == 0 &&
		end - first == f->sp->g->rb_entries)
		f->sp->full[b->idx / 64] |= UINT64_C(1) << (b->idx % 64);
	return QCOW_OK;
}

static enum qcow_status scan_block(
	struct finder *f, uint64_t first, uint64_t end, bool *done, struct qcow_error *err)
{
	struct qk_space *sp = f->sp;
	uint64_t idx = first >> sp->g->rb_bits;
	struct qk_refblock *b = NULL;

	bool is_missing = idx >= sp->table_entries || sp->table[idx] == 0;
	if (is_missing && !sp->only_blocks)
		return scan(f, NULL, first, end, done, err);
	if (is_missing || full_test(sp, idx)) {
		*done = extend_run(f, first, false);
		return QCOW_OK;
	}
	QK_TRY(qk_refblock_get(sp, idx, &b, err));
	enum qcow_status status = scan(f, b, first, end, done, err);
	qk_refblock_put(b);
	return status;
}

enum qcow_status qk_space_find(struct qk_space *sp, const struct qk_space_search *s,
	uint64_t *first, uint64_t *n, struct qcow_error *err)
{
	struct finder f = {.sp = sp, .s = s};
	bool done = false;
	uint64_t c = s->from;

	while (c < sp->limit && !done) {
		uint64_t end = qk_min(sp->limit, ((c >> sp->g->rb_bits) + 1) << sp->g->rb_bits);
		QK_TRY(scan_block(&f, c, end, &done, err));
		c = end;
	}
	if (f.n < s->min_n || f.n == 0)
		return QK_FAIL(err, QCOW_E_NOSPC,
			"no %" PRIu64 " free clusters in a row are left in the image file",
			s->min_n);
	*first = f.first;
	*n = f.n;
	return QCOW_OK;
}

/* ---- bookkeeping ---- */

void qk_space_used(struct qk_space *sp, uint64_t first, uint64_t n)
{
	sp->pristine = qk_max(sp->pristine, first + n);
}

void qk_space_freed(struct qk_space *sp, uint64_t cluster)
{
	uint64_t idx = cluster >> sp->g->rb_bits;

	qk_space_map_forget(sp, cluster, 1);
	sp->full[idx / 64] &= ~(UINT64_C(1) << (idx % 64));
	sp->cursor = qk_min(sp->cursor, qk_max(cluster, sp->floor));
}

enum qcow_status qk_space_extend(struct qk_space *sp, uint64_t end, struct qcow_error *err)
{
	uint64_t bytes = end << sp->g->cluster_bits;

	if (bytes <= atomic_load_explicit(&sp->file_size, memory_order_relaxed))
		return QCOW_OK;
	QK_ASSERT(X1, sp->can_grow);
	QK_TRY(qcow_store_truncate(sp->store, bytes, err));
	atomic_store_explicit(&sp->file_size, bytes, memory_order_release);
	return QCOW_OK;
}

/* ---- the reservation ---- */

enum qcow_status qk_space_unreserve(struct qk_space *sp, struct qcow_error *err)
{
	uint64_t first = sp->reserved;
	uint64_t n = sp->reserved_end - sp->reserved;

	if (n == 0)
		return QCOW_OK;
	QK_TRY(qk_space_count(sp, QK_COUNT_CLEAR, first, n, err));
	sp->reserved = sp->reserved_end = 0;
	return QCOW_OK;
}

/* Reserve what follows `first`, within its block. Nothing depends on it, so a failure is no failure. */
static void reserve(struct qk_space *sp, uint64_t first)
{
	uint64_t idx = first >> sp->g->rb_bits;
	uint64_t max = qk_min(
		RESERVE_BYTES >> sp->g->cluster_bits, ((idx + 1) << sp->g->rb_bits) - first);
	struct qk_space_search s = {.from = first, .n = max, .min_n = 1, .here = true};
	uint64_t n = 0;

	if (idx >= sp->table_entries || sp->table[idx] == 0 ||
		qk_space_find(sp, &s, &first, &n, NULL) != QCOW_OK ||
		qk_space_extend(sp, first + n, NULL) != QCOW_OK ||
		qk_space_count(sp, QK_COUNT_TAKE, first, n, NULL) != QCOW_OK)
		return;
	sp->reserved = first;
	sp->reserved_end = first + n;
}

static void note_run(struct qk_space *sp, uint64_t first, uint64_t n)
{
	sp->n_consecutive = first == sp->last_end ? sp->n_consecutive + 1 : 0;
	sp->last_end = first + n;
	if (sp->n_consecutive >= CONSECUTIVE_BEFORE_RESERVING && sp->reserved == sp->reserved_end)
		reserve(sp, first + n);
}

/* ---- choosing ---- */

/* What take decided: the first n_reserved of the run are from the reservation. */
struct pick {
	uint64_t first, n, n_reserved;
	bool is_lowest;
};

/* From the reservation, and on past its end where that is not enough. False where it is too short. */
static bool pick_reserved(struct qk_space *sp, const struct qk_space_want *w, struct pick *p)
{
	uint64_t left = sp->reserved_end - sp->reserved;
	uint64_t more = 0;
	uint64_t at = 0;

	*p = (struct pick){.first = sp->reserved, .n = qk_min(left, w->n)};
	p->n_reserved = p->n;
	if (p->n < w->n) {
		struct qk_space_search s = {
			.from = sp->reserved_end, .n = w->n - left, .min_n = 1, .here = true};
		if (qk_space_find(sp, &s, &at, &more, NULL) == QCOW_OK)
			p->n += more;
	}
	return left != 0 && p->n >= qk_max(w->min_n, 1);
}

/* Where the caller's last run goes on. */
static bool pick_near(struct qk_space *sp, const struct qk_space_want *w, struct pick *p)
{
	uint64_t at = qk_space_cluster(sp, w->near);
	struct qk_space_search s = {
		.from = at, .n = w->n, .min_n = qk_max(w->min_n, 1), .here = true};

	if (w->near == 0 || at < sp->floor)
		return false;
	if (at == sp->reserved && sp->reserved != sp->reserved_end)
		return pick_reserved(sp, w, p);
	*p = (struct pick){0};
	return qk_space_find(sp, &s, &p->first, &p->n, NULL) == QCOW_OK;
}

static enum qcow_status pick_lowest(
	struct qk_space *sp, const struct qk_space_want *w, struct pick *p, struct qcow_error *err)
{
	struct qk_space_search s = {
		.from = qk_max(sp->cursor, sp->floor), .n = w->n, .min_n = qk_max(w->min_n, 1)};

	if (sp->reserved != sp->reserved_end) {
		bool has = pick_reserved(sp, w, p);
		struct pick lower = {0};
		bool found = s.from < sp->reserved &&
			     qk_space_find(sp, &s, &lower.first, &lower.n, NULL) == QCOW_OK;
		if (found && lower.first < sp->reserved) {
			*p = lower;
			p->is_lowest = true;
			return QCOW_OK;
		}
		if (found && s.min_n == 1)
			sp->cursor = lower.first; /* all below is taken */
		if (has)
			return QCOW_OK;
		QK_TRY(qk_space_unreserve(sp, err));
	}
	*p = (struct pick){.is_lowest = true};
	return qk_space_find(sp, &s, &p->first, &p->n, err);
}

/*
 * QEMU, asked for one cluster where a block is missing, makes the block behind that cluster and then goes on
 * behind the block: the cluster is left free until something else makes it look back. So that offsets
 * agree, so do we.
 */
static bool is_left_free(
	const struct qk_space *sp, const struct qk_space_want *w, const struct pick *p)
{
	uint64_t idx = p->first >> sp->g->rb_bits;

	return w->n == 1 && p->is_lowest && (p->first & (sp->g->rb_entries - 1)) == 0 &&
	       (idx >= sp->table_entries || sp->table[idx] == 0);
}

/* Make it the caller's. Nothing is changed where something fails, but for blocks made on the way. */
static enum qcow_status take_pick(struct qk_space *sp, const struct qk_space_want *w,
	const struct pick *p, struct qcow_error *err)
{
	uint64_t fresh = p->first + p->n_reserved;
	uint64_t n_fresh = p->n - p->n_reserved;

	if (n_fresh != 0)
		QK_TRY(qk_space_cover(sp, fresh, n_fresh, err));
	QK_TRY(qk_space_extend(sp, p->first + p->n, err));
	QK_TRY(qk_space_map_add(sp, w->kind, p->first, p->n, err));
	enum qcow_status status = QCOW_OK;
	if (n_fresh != 0)
		status = qk_space_count(sp, QK_COUNT_TAKE, fresh, n_fresh, err);
	if (status != QCOW_OK) {
		qk_space_map_forget(sp, p->first, p->n);
		return status;
	}
	sp->reserved += p->n_reserved;
	return QCOW_OK;
}

static enum qcow_status take_lowest(
	struct qk_space *sp, const struct qk_space_want *w, struct pick *p, struct qcow_error *err)
{
	struct pick behind = {0};

	QK_TRY(pick_lowest(sp, w, p, err));
	if (is_left_free(sp, w, p)) {
		uint64_t left = p->first;
		QK_TRY(qk_space_cover(sp, left, 1, err));
		struct qk_space_want after = *w;
		after.near = 0;
		uint64_t cursor = sp->cursor;
		sp->cursor = left + 1;
		if (pick_lowest(sp, &after, &behind, NULL) == QCOW_OK) {
			*p = behind;
			sp->skipped = true;
		} else {
			sp->cursor = cursor;
		}
	}
	return take_pick(sp, w, p, err);
}

static enum qcow_status take(struct qk_space *sp, const struct qk_space_want *w,
	struct qk_space_run *out, struct qcow_error *err)
{
	struct pick p = {0};
	bool is_near = pick_near(sp, w, &p);
	enum qcow_status status = is_near ? take_pick(sp, w, &p, err) : QCOW_OK;

	/* where the file may not become longer there may be room in it */
	if (!is_near || status == QCOW_E_NOSPC) {
		QK_TRY(qk_space_usable(sp, err));
		status = take_lowest(sp, w, &p, err);
		if (status == QCOW_E_NOSPC && sp->skipped) {
			sp->skipped = false;
			sp->cursor = sp->floor;
			status = take_lowest(sp, w, &p, err);
		}
	}
	QK_TRY(status);
	if (p.is_lowest && w->min_n <= 1)
		sp->cursor = p.first + p.n;
	*out = (struct qk_space_run){.off = p.first << sp->g->cluster_bits,
		.n = p.n,
		.reads_zero = sp->grows_zeroed && p.first >= sp->pristine};
	qk_space_used(sp, p.first, p.n);
	note_run(sp, p.first, p.n);
	return QCOW_OK;
}

enum qcow_status qk_space_take(struct qk_space *sp, const struct qk_space_want *want,
	struct qk_space_run *out, struct qcow_error *err)
{
	QK_ASSERT(X1, want->n != 0 && want->min_n <= want->n);
	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = qk_space_usable(sp, err);
	if (status == QCOW_OK && sp->is_broken)
		status = QK_FAIL(err, QCOW_E_NOMEM,
			"out of memory for the clusters that may be in use: nothing more is handed "
			"out");
	/* what was given back and cannot be read now is not missed before it is needed */
	if (status == QCOW_OK)
		qk_space_settle_deferred(sp);
	if (status == QCOW_OK)
		status = take(sp, want, out, err);
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}

uint64_t qk_space_file_size(const struct qk_space *sp)
{
	return atomic_load_explicit(&sp->file_size, memory_order_acquire);
}
