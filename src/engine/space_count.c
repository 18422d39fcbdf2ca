/* SPDX-License-Identifier: MIT */
/*
 * space_count: changing refcounts, all of a range or nothing. First every block of the range is brought in, pinned
 * and looked at; then the counts change, which cannot fail.
 */
#include "engine/space_private.h"

#include <inttypes.h>

#include "base/mem.h"

/* ---- a range ---- */

static enum qcow_status judge(struct qk_space *sp, enum qk_count_op op, uint64_t cluster,
	uint64_t count, struct qcow_error *err)
{
	uint64_t off = cluster << sp->g->cluster_bits;

	switch (op) {
	case QK_COUNT_TAKE:
		QK_ASSERT(X1, count == 0);
		return QCOW_OK;
	case QK_COUNT_CLEAR:
		QK_ASSERT(X6, count == 1);
		return QCOW_OK;
	case QK_COUNT_RAISE:
		if (count == sp->g->refcount_max)
			return QK_FAIL(err, QCOW_E_LIMIT,
				"cluster at %" PRIu64 ": its refcount is %" PRIu64
				" already, the largest that %u bits hold",
				off, count, sp->g->refcount_bits);
		break;
	case QK_COUNT_DROP:
		break;
	}
	if (count != 0)
		return QCOW_OK;
	qk_space_corrupt(sp);
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_REFCOUNT_TOO_LOW, off, QCOW_NO_OFFSET,
		"cluster at %" PRIu64 " is in use and its refcount is 0", off);
}

static enum qcow_status judge_block(struct qk_space *sp, enum qk_count_op op,
	const struct qk_refblock *b, uint64_t first, uint64_t n, struct qcow_error *err)
{
	for (uint64_t c = first; c < first + n; c++)
		QK_TRY(judge(sp, op, c, qk_refblock_at(sp, b, c), err));
	return QCOW_OK;
}

static void apply(struct qk_space *sp, enum qk_count_op op, struct qk_refblock *b, uint64_t cluster)
{
	uint64_t count = qk_refblock_at(sp, b, cluster);

	count = op == QK_COUNT_TAKE || op == QK_COUNT_RAISE ? count + 1 : count - 1;
	qk_refblock_set(sp, b, cluster, count);
	if (count == 0)
		qk_space_freed(sp, cluster);
}

/* Clusters of [first, end) that one block counts. */
static uint64_t in_block(const struct qk_space *sp, uint64_t first, uint64_t end)
{
	return qk_min(end, ((first >> sp->g->rb_bits) + 1) << sp->g->rb_bits) - first;
}

static enum qcow_status pin_and_judge(struct qk_space *sp, enum qk_count_op op, uint64_t first,
	uint64_t n, uint64_t *pinned_end, struct qcow_error *err)
{
	uint64_t end = first + n;

	while (first < end) {
		uint64_t part = in_block(sp, first, end);
		uint64_t idx = first >> sp->g->rb_bits;
		struct qk_refblock *b = NULL;
		if (idx >= sp->table_entries || sp->table[idx] == 0)
			return judge(sp, op, first, 0, err);
		QK_TRY(qk_refblock_get(sp, idx, &b, err));
		*pinned_end = first + part;
		QK_TRY(judge_block(sp, op, b, first, part, err));
		first += part;
	}
	return QCOW_OK;
}

enum qcow_status qk_space_count(struct qk_space *sp, enum qk_count_op op, uint64_t first,
	uint64_t n, struct qcow_error *err)
{
	uint64_t pinned_end = first;
	enum qcow_status status = pin_and_judge(sp, op, first, n, &pinned_end, err);

	sp->was_changed = sp->was_changed || status == QCOW_OK;
	while (first < pinned_end) {
		uint64_t part = in_block(sp, first, pinned_end);
		struct qk_refblock *b = qk_refblock_peek(sp, first >> sp->g->rb_bits);
		QK_ASSERT(X4, b != NULL && b->pins != 0);
		for (uint64_t c = first; status == QCOW_OK && c < first + part; c++)
			apply(sp, op, b, c);
		qk_refblock_put(b);
		first += part;
	}
	return status;
}

enum qcow_status qk_space_get(
	struct qk_space *sp, uint64_t cluster, uint64_t *out, struct qcow_error *err)
{
	uint64_t idx = cluster >> sp->g->rb_bits;
	struct qk_refblock *b = NULL;

	*out = 0;
	if (idx >= sp->table_entries || sp->table[idx] == 0)
		return QCOW_OK;
	QK_TRY(qk_refblock_get(sp, idx, &b, err));
	*out = qk_refblock_at(sp, b, cluster);
	qk_refblock_put(b);
	return QCOW_OK;
}

/* ---- giving back ---- */

/* False where a block would have to be read. */
static bool all_cached(struct qk_space *sp, uint64_t first, uint64_t n)
{
	for (uint64_t c = first; c < first + n; c += in_block(sp, c, first + n)) {
		if (qk_refblock_peek(sp, c >> sp->g->rb_bits) == NULL)
			return false;
	}
	return true;
}

static void defer(struct qk_space *sp, uint64_t first, uint64_t n)
{
	if (sp->n_deferred == sp->cap_deferred) {
		size_t cap = sp->cap_deferred == 0 ? 16 : sp->cap_deferred * 2;
		struct qk_space_deferred *v = qk_realloc(sp->deferred, cap, sizeof(*v));
		if (v == NULL)
			return; /* a leak, until the next check */
		sp->deferred = v;
		sp->cap_deferred = cap;
	}
	sp->deferred[sp->n_deferred++] = (struct qk_space_deferred){first, n};
}

void qk_space_settle_deferred(struct qk_space *sp)
{
	while (sp->n_deferred != 0) {
		struct qk_space_deferred d = sp->deferred[sp->n_deferred - 1];
		if (qk_space_count(sp, QK_COUNT_CLEAR, d.first, d.n, NULL) != QCOW_OK)
			return;
		sp->n_deferred--;
	}
}

void qk_space_give_back(struct qk_space *sp, uint64_t off, uint64_t n)
{
	uint64_t first = qk_space_cluster(sp, off);

	(void)pthread_mutex_lock(&sp->lock);
	qk_space_map_forget(sp, first, n);
	if (!all_cached(sp, first, n) ||
		qk_space_count(sp, QK_COUNT_CLEAR, first, n, NULL) != QCOW_OK)
		defer(sp, first, n);
	(void)pthread_mutex_unlock(&sp->lock);
}

/* ---- the public calls ---- */

enum qcow_status qk_space_raise(
	struct qk_space *sp, uint64_t off, uint64_t n, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = qk_space_usable(sp, err);
	if (status == QCOW_OK)
		status = qk_space_count(sp, QK_COUNT_RAISE, qk_space_cluster(sp, off), n, err);
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}

enum qcow_status qk_space_drop(
	struct qk_space *sp, uint64_t off, uint64_t n, struct qcow_error *err)
{
	return qk_space_drop_for(sp, QK_FREED_OTHER, off, n, err);
}

enum qcow_status qk_space_drop_for(
	struct qk_space *sp, unsigned freed, uint64_t off, uint64_t n, struct qcow_error *err)
{
	qk_space_punch_last(sp, freed, off, n);
	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = qk_space_usable(sp, err);
	if (status == QCOW_OK)
		status = qk_space_count(sp, QK_COUNT_DROP, qk_space_cluster(sp, off), n, err);
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}

enum qcow_status qk_space_refcount(
	struct qk_space *sp, uint64_t off, uint64_t *out, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = qk_space_get(sp, qk_space_cluster(sp, off), out, err);
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}

enum qcow_status qk_space_quarantine(
	struct qk_space *sp, uint64_t off, uint64_t n, struct qcow_error *err)
{
	uint64_t first = qk_space_cluster(sp, off);
	enum qcow_status status = QCOW_OK;

	(void)pthread_mutex_lock(&sp->lock);
	for (uint64_t c = first; status == QCOW_OK && c < first + n; c++)
		status = qk_cluster_set_add(&sp->quarantine, c, 0, err);
	sp->is_broken = sp->is_broken || status != QCOW_OK;
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}
