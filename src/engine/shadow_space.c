/* SPDX-License-Identifier: MIT */
/*
 * shadow_space: the space of an open image as a source of counts and clusters for a second refcount structure (shadow.h).
 * Writes nothing. What is asked of it takes the space lock for a part of one block at a time.
 */
#include "engine/shadow.h"

#include "engine/space_private.h"
#include "format/refcounts.h"

/* Clusters that the structure in use takes, and those that nobody was given yet, are free after the switch. */
static bool counts_on(const struct qk_space *sp, uint64_t cluster)
{
	if (cluster - sp->reserved < sp->reserved_end - sp->reserved)
		return false;
	enum qk_space_kind kind = qk_space_map_find(sp, cluster);
	return kind != QK_SPACE_REFTABLE && kind != QK_SPACE_REFBLOCK;
}

/* May one of the clusters be such? */
static bool may_end(const struct qk_space *sp, uint64_t first, uint64_t n)
{
	return qk_space_map_may_count(sp, first, n) ||
	       (first < sp->reserved_end && first + n > sp->reserved);
}

#define STEP 256U /* clusters that are asked for at once */

/* Counts of what will be free: 0. */
static void end_counts(const struct qk_space *sp, uint64_t first, uint64_t n, uint64_t *out)
{
	for (uint64_t at = 0; at < n; at += STEP) {
		uint64_t end = qk_min(n, at + STEP);
		if (!may_end(sp, first + at, end - at))
			continue;
		for (uint64_t i = at; i < end; i++)
			if (out[i] != 0 && !counts_on(sp, first + i))
				out[i] = 0;
	}
}

/* Clusters [first, first + n) of one area. */
static enum qcow_status count_part(
	struct qk_space *sp, uint64_t first, uint64_t n, uint64_t *out, struct qcow_error *err)
{
	uint64_t idx = first >> sp->g->rb_bits;
	struct qk_refblock *b = NULL;

	if (idx >= sp->table_entries || sp->table[idx] == 0)
		return QCOW_OK;
	QK_TRY(qk_refblock_get(sp, idx, &b, err));
	qk_refcounts_load(sp->g, b->bytes, first & (sp->g->rb_entries - 1), n, out);
	qk_refblock_put(b);
	end_counts(sp, first, n, out);
	return QCOW_OK;
}

static enum qcow_status counts(
	void *ctx, uint64_t first, uint64_t n, uint64_t *out, struct qcow_error *err)
{
	struct qk_space *sp = ctx;
	enum qcow_status status = QCOW_OK;

	(void)pthread_mutex_lock(&sp->lock);
	qk_space_settle_deferred(sp);
	for (uint64_t at = 0; at < n && status == QCOW_OK;) {
		uint64_t left = sp->g->rb_entries - ((first + at) & (sp->g->rb_entries - 1));
		uint64_t part = qk_min(n - at, left);
		status = count_part(sp, first + at, part, out + at, err);
		at += part;
	}
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}

static enum qcow_status take(void *ctx, uint64_t n, uint64_t min_n, uint64_t *first,
	uint64_t *n_taken, struct qcow_error *err)
{
	struct qk_space *sp = ctx;
	struct qk_space_run run = {0};

	/* as data: the space must not take them for its own structure */
	QK_TRY(qk_space_take(sp,
		&(struct qk_space_want){.n = n, .min_n = min_n, .kind = QK_SPACE_DATA}, &run, err));
	*first = run.off >> sp->g->cluster_bits;
	*n_taken = run.n;
	return QCOW_OK;
}

static void give_back(void *ctx, uint64_t first, uint64_t n)
{
	struct qk_space *sp = ctx;

	qk_space_give_back(sp, first << sp->g->cluster_bits, n);
}

void qk_shadow_of_space(struct qk_space *sp, struct qk_shadow_source *out)
{
	*out = (struct qk_shadow_source){sp, counts, take, give_back};
}

uint64_t qk_shadow_space_end(struct qk_space *sp)
{
	(void)pthread_mutex_lock(&sp->lock);
	uint64_t end = sp->table_entries;
	while (end != 0 && sp->table[end - 1] == 0)
		end--;
	end <<= sp->g->rb_bits;
	(void)pthread_mutex_unlock(&sp->lock);
	return end;
}
