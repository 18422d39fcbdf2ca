/* SPDX-License-Identifier: MIT */
/*
 * l2set: a hash of L2 table offsets (see l2set.h). No I/O.
 *
 * Invariant L1: every entry in use has its offset in the hash and in [lo, hi).
 */
#include "audit/l2set.h"

#include <string.h>

#include "base/mem.h"
#include "base/num.h"

#define MIN_ENTRIES 1024U

enum qcow_status qk_l2set_init(struct qk_l2set *s, uint64_t memory_bytes, struct qcow_error *err)
{
	*s = (struct qk_l2set){0};
	uint64_t n = MIN_ENTRIES;

	/* an entry and its two slots; the number is a power of two */
	while (n < UINT32_MAX / 8 && n * 2 * (sizeof(*s->v) + 8) <= memory_bytes)
		n *= 2;
	s->max = (uint32_t)n;
	s->slot_mask = (uint32_t)(n * 2 - 1);
	s->v = qk_malloc(n, sizeof(*s->v));
	s->slots = qk_calloc(n * 2, sizeof(*s->slots));
	if (s->v == NULL || s->slots == NULL) {
		qk_l2set_release(s);
		return QK_FAIL_NOMEM(err);
	}
	return QCOW_OK;
}

void qk_l2set_release(struct qk_l2set *s)
{
	free(s->v);
	free(s->slots);
	*s = (struct qk_l2set){0};
}

static void clear_slots(struct qk_l2set *s)
{
	memset(s->slots, 0, ((size_t)s->slot_mask + 1) * sizeof(*s->slots));
}

void qk_l2set_begin(struct qk_l2set *s, uint64_t lo)
{
	s->lo = lo;
	s->hi = UINT64_MAX;
	s->n = 0;
	clear_slots(s);
}

static uint32_t find_slot(const struct qk_l2set *s, uint64_t off)
{
	uint32_t i = (uint32_t)(((off >> 9) * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & s->slot_mask;

	while (s->slots[i] != 0 && s->v[s->slots[i] - 1].off != off)
		i = (i + 1) & s->slot_mask;
	return i;
}

static int compare_offsets(const void *a, const void *b)
{
	const struct qk_l2ref *x = a;
	const struct qk_l2ref *y = b;

	return (x->off > y->off) - (x->off < y->off);
}

static void drop_upper_half(struct qk_l2set *s)
{
	qsort(s->v, s->n, sizeof(*s->v), compare_offsets);
	s->n /= 2;
	s->hi = s->v[s->n].off;
	clear_slots(s);
	for (uint32_t i = 0; i < s->n; i++)
		s->slots[find_slot(s, s->v[i].off)] = i + 1;
}

void qk_l2set_add(struct qk_l2set *s, const struct qk_l2ref *ref)
{
	if (ref->off < s->lo || ref->off >= s->hi)
		return;
	uint32_t slot = find_slot(s, ref->off);
	if (s->slots[slot] == 0) {
		if (s->n == s->max) {
			drop_upper_half(s);
			if (ref->off >= s->hi)
				return;
			slot = find_slot(s, ref->off);
		}
		s->v[s->n] = *ref;
		s->slots[slot] = ++s->n;
		return;
	}
	struct qk_l2ref *old = &s->v[s->slots[slot] - 1];
	old->weight += ref->weight;
	old->n_active += ref->n_active;
	old->flags |= ref->flags;
	old->l1_index = old->l1_index < ref->l1_index ? old->l1_index : ref->l1_index;
}

void qk_l2set_sort(struct qk_l2set *s)
{
	if (s->n > 1)
		qsort(s->v, s->n, sizeof(*s->v), compare_offsets);
}
