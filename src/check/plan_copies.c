/* SPDX-License-Identifier: MIT */
/*
 * plan_copies: what several entries name and cannot share: an L2 table that two entries of the active L1 table name, a
 * cluster with more references than its refcount holds. All but the first get copies, so that nothing becomes
 * unreadable. The entries change when the copies and their refcounts are stable.
 *
 * Copies are bounded: a table of 8 bytes may name one cluster a million times.
 */
#include "base/mem.h"
#include "check/plan_entries.h"

#define MAX_COPIES ((size_t)65536)

enum qcow_status qk_plan_copy(
	struct qk_plan *p, const struct qk_plan_copy *copy, bool *stays, struct qcow_error *err)
{
	struct qk_plan_copies *c = &p->copies;
	uint64_t bytes = copy->n << p->g.cluster_bits;

	/* an entry that counts too often is in a table that is shared too often: first that one is copied */
	*stays = copy->weight > p->g.refcount_max || c->n == qk_min(MAX_COPIES, p->changes.max);
	if (*stays || bytes > p->copy_bytes)
		return QCOW_OK;
	struct qk_plan_copy *v = qk_grown(c->v, c->n, &c->room, sizeof(*v));
	if (v == NULL)
		return QK_FAIL_NOMEM(err);
	c->v = v;
	v[c->n++] = *copy;
	p->copy_bytes -= bytes;
	*stays = true;
	return QCOW_OK;
}

/* Does the entry stay as it was when the copy was planned? */
static bool is_wanted(const struct qk_plan *p, const struct qk_plan_copy *copy)
{
	const struct qk_change *c = qk_changes_find(
		&p->changes, copy->entry_off, QCOW_REPAIR_UNLINK);

	return c == NULL || ((c->now ^ copy->raw) & ~QK_FLAG_COPIED) == 0;
}

void qk_plan_settle_copies(struct qk_plan *p)
{
	struct qk_plan_copies *c = &p->copies;
	size_t kept = 0;

	for (size_t i = 0; i < c->n; i++) {
		/* a table that is written anew has its entries elsewhere */
		if (!p->changes.is_full && !p->new_l1 && is_wanted(p, &c->v[i]))
			c->v[kept++] = c->v[i];
		else
			p->copy_bytes += c->v[i].n << p->g.cluster_bits;
	}
	c->n = kept;
}

/* The entry with the same of another cluster; COPIED is for the next round, which knows the refcount. */
static uint64_t moved(const struct qk_geometry *g, const struct qk_plan_copy *c)
{
	uint64_t mask = (c->raw & QK_FLAG_COMPRESSED) != 0 ? g->coffset_mask : QK_OFFSET_MASK;
	uint64_t off = c->raw & mask;
	uint64_t now = (c->new_first << g->cluster_bits) + (off & (g->cluster_size - 1));

	return (c->raw & ~mask & ~QK_FLAG_COPIED) | (now & mask);
}

enum qcow_status qk_plan_relink(struct qk_plan *p, struct qcow_error *err)
{
	qk_changes_clear(&p->changes);
	for (size_t i = 0; i < p->copies.n; i++) {
		const struct qk_plan_copy *c = &p->copies.v[i];
		struct qk_change change = {.off = c->entry_off,
			.was = c->raw,
			.now = moved(&p->g, c),
			.phase = QCOW_REPAIR_RELINK,
			.kind = c->kind,
			.finding = c->finding};
		QK_TRY(qk_plan_change(p, &change, err));
	}
	qk_changes_sort(&p->changes);
	return QCOW_OK;
}
