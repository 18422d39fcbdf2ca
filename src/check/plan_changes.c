/* SPDX-License-Identifier: MIT */
/*
 * plan_changes: the words (plan_changes.h) in a hash by sector. Owns no I/O but the reading store's, which passes on.
 *
 * Invariant Q1: no two changes have the same offset and phase.
 */
#include "check/plan_changes.h"

#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "format/limits.h"

#define FIRST_ROOM 64U
#define N_PHASES   ((unsigned)QCOW_REPAIR_PHASES)

/* ---- the list ---- */

enum qcow_status qk_changes_init(struct qk_changes *c, uint32_t max, struct qcow_error *err)
{
	uint64_t n_slots = 1024;

	*c = (struct qk_changes){.max = max};
	while (n_slots < (uint64_t)max * 2)
		n_slots *= 2;
	c->slot_mask = (uint32_t)(n_slots - 1);
	c->slots = qk_calloc(n_slots, sizeof(*c->slots));
	return c->slots != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

void qk_changes_release(struct qk_changes *c)
{
	free(c->v);
	free(c->slots);
	*c = (struct qk_changes){0};
}

static void clear_slots(struct qk_changes *c)
{
	memset(c->slots, 0, ((size_t)c->slot_mask + 1) * sizeof(*c->slots));
}

void qk_changes_clear(struct qk_changes *c)
{
	c->n = 0;
	c->is_full = false;
	clear_slots(c);
}

/* The slot of the sector, or the empty one where it belongs. */
static uint32_t find_slot(const struct qk_changes *c, uint64_t off)
{
	uint64_t sector = off / QK_SECTOR;
	uint32_t s = (uint32_t)((sector * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & c->slot_mask;

	while (c->slots[s] != 0 && c->v[c->slots[s] - 1].off / QK_SECTOR != sector)
		s = (s + 1) & c->slot_mask;
	return s;
}

static struct qk_change *find(const struct qk_changes *c, uint64_t off, unsigned phase)
{
	uint32_t i = c->slots[find_slot(c, off)];

	while (i != 0 && (c->v[i - 1].off != off || c->v[i - 1].phase != phase))
		i = c->v[i - 1].next;
	return i == 0 ? NULL : &c->v[i - 1];
}

const struct qk_change *qk_changes_find(
	const struct qk_changes *c, uint64_t off, enum qcow_repair_phase phase)
{
	return find(c, off, phase);
}

enum qcow_status qk_changes_add(
	struct qk_changes *c, const struct qk_change *change, struct qcow_error *err)
{
	struct qk_change *old = find(c, change->off, change->phase);

	if (old != NULL) {
		old->now = change->now;
		return QCOW_OK;
	}
	if (change->was == change->now)
		return QCOW_OK;
	if (c->n == c->max) {
		c->is_full = true;
		return QCOW_OK;
	}
	if (c->n == c->room) {
		uint32_t room = c->room == 0 ? FIRST_ROOM
					     : (uint32_t)qk_min(c->room * UINT64_C(2), c->max);
		struct qk_change *v = qk_realloc(c->v, room, sizeof(*v));
		if (v == NULL)
			return QK_FAIL_NOMEM(err);
		c->v = v;
		c->room = room;
	}
	uint32_t slot = find_slot(c, change->off);
	c->v[c->n] = *change;
	c->v[c->n].next = c->slots[slot];
	c->slots[slot] = ++c->n;
	return QCOW_OK;
}

static void rebuild_slots(struct qk_changes *c)
{
	uint32_t n = c->n;

	clear_slots(c);
	c->n = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t slot = find_slot(c, c->v[i].off);
		c->v[i].next = c->slots[slot];
		c->slots[slot] = i + 1;
		c->n = i + 1;
	}
}

void qk_changes_keep(struct qk_changes *c, unsigned phases)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < c->n; i++) {
		if ((phases >> c->v[i].phase & 1) != 0)
			c->v[kept++] = c->v[i];
	}
	c->n = kept;
	rebuild_slots(c);
}

static int compare(const void *a, const void *b)
{
	const struct qk_change *x = a;
	const struct qk_change *y = b;

	if (x->phase != y->phase)
		return x->phase < y->phase ? -1 : 1;
	return (x->off > y->off) - (x->off < y->off);
}

void qk_changes_sort(struct qk_changes *c)
{
	uint32_t kept = 0;

	/* what was changed and changed back */
	for (uint32_t i = 0; i < c->n; i++) {
		if (c->v[i].was != c->v[i].now)
			c->v[kept++] = c->v[i];
	}
	c->n = kept;
	if (kept > 1)
		qsort(c->v, kept, sizeof(*c->v), compare);
}

/* ---- the store ---- */

struct view {
	struct qk_changes *changes;
	struct qcow_store *base;
};

/* A place in the buffers of a call. */
static uint8_t *byte_at(const struct iovec *iov, int n, uint64_t at)
{
	for (int i = 0; i < n; i++) {
		if (at < iov[i].iov_len)
			return (uint8_t *)iov[i].iov_base + at;
		at -= iov[i].iov_len;
	}
	return NULL;
}

/* The word's bytes that lie in [off, off + len). */
static void patch(
	const struct qk_change *ch, const struct iovec *iov, int n, uint64_t off, uint64_t len)
{
	uint8_t bytes[8];

	qk_store64(bytes, ch->now);
	for (unsigned i = 0; i < 8; i++) {
		uint8_t *p = ch->off + i >= off && ch->off + i - off < len
				     ? byte_at(iov, n, ch->off + i - off)
				     : NULL;
		if (p != NULL)
			*p = bytes[i];
	}
}

static enum qcow_status view_preadv(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *err)
{
	const struct view *v = ctx;
	const struct qk_changes *c = v->changes;
	uint64_t len = 0;

	for (int i = 0; i < n; i++)
		len += iov[i].iov_len;
	QK_TRY(qcow_store_readv(v->base, iov, n, off, err));
	if (c->n == 0)
		return QCOW_OK;
	for (uint64_t at = qk_align_down(off, QK_SECTOR); at < off + len; at += QK_SECTOR) {
		uint32_t first = c->slots[find_slot(c, at)];
		for (unsigned phase = 0; first != 0 && phase < N_PHASES; phase++) {
			for (uint32_t i = first; i != 0; i = c->v[i - 1].next) {
				if (c->v[i - 1].phase == phase)
					patch(&c->v[i - 1], iov, n, off, len);
			}
		}
	}
	return QCOW_OK;
}

static enum qcow_status view_size(void *ctx, uint64_t *size, struct qcow_error *err)
{
	return qcow_store_size(((struct view *)ctx)->base, size, err);
}

static enum qcow_status view_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	return qcow_store_extents(((struct view *)ctx)->base, off, len, out, err);
}

static void view_caps(void *ctx, struct qcow_store_caps *out)
{
	(void)ctx;
	*out = (struct qcow_store_caps){.request_align = 1, .physical_block = QK_SECTOR};
}

static void view_close(void *ctx)
{
	free(ctx);
}

enum qcow_status qk_changes_store(struct qk_changes *c, struct qcow_store *base,
	struct qcow_store **out, struct qcow_error *err)
{
	static const struct qcow_store_ops ops = {.abi = QCOW_STORE_ABI,
		.name = "plan",
		.preadv = view_preadv,
		.size = view_size,
		.extents = view_extents,
		.caps = view_caps,
		.close = view_close};
	struct view *v = qk_calloc(1, sizeof(*v));

	if (v == NULL)
		return QK_FAIL_NOMEM(err);
	*v = (struct view){c, base};
	enum qcow_status status = qcow_store_new(&ops, v, out, err);
	if (status != QCOW_OK)
		free(v);
	return status;
}
