/* SPDX-License-Identifier: MIT */
/*
 * The order checker's rules, judged on the picture of order_graph.c.
 *
 * References of a cluster are counted as a crash could leave most of them, its refcount as a crash could leave
 * it lowest. Slots are independent of one another, versions of one slot are not: behind an L1 slot stands
 * the old L2 table or the new one, so the greater of the two counts, and everything is judged header by header.
 */
#include "order_int.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void qko_report(struct qkt_order *o, enum qkt_order_rule rule, const char *fmt, ...)
{
	if (o->is_loading)
		return;
	char text[320];
	va_list args;
	va_start(args, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (o->n_violations++ == 0) {
		o->rule = rule;
		(void)snprintf(o->message, sizeof(o->message), "O%d: %s", (int)rule, text);
	}
	if (o->opt.report)
		return;
	(void)fprintf(stderr, "order checker: O%d: %s\n", (int)rule, text);
	abort();
}

/* ---- how many references ---- */

static unsigned lies_in(const struct qko_table *t, uint64_t cs, uint64_t index)
{
	return t != NULL && index >= t->off / cs && index <= (t->off + t->len - 1) / cs;
}

static void note(struct qkt_order *o, size_t *n, uint64_t index, uint32_t count)
{
	for (size_t i = 0; i < *n; i++)
		if (o->acc[i].index == index) {
			if (o->acc[i].n < count)
				o->acc[i].n = count;
			return;
		}
	if (*n == o->room_acc) {
		o->room_acc = o->room_acc != 0 ? o->room_acc * 2 : 16;
		o->acc = qko_need(realloc(o->acc, o->room_acc * sizeof(*o->acc)));
	}
	o->acc[*n].index = index;
	o->acc[(*n)++].n = count;
}

/* References to c on the ways that begin in the L1 table. */
static uint64_t paths(struct qkt_order *o, const struct qko_cluster *c, const struct qko_table *l1)
{
	size_t n = 0;
	uint64_t sum = 0;
	for (uint32_t i = 0; l1 != NULL && i < c->n_refs; i++) {
		const struct qko_table *t = c->refs[i].t;
		uint32_t count = 0;
		bool is_first = true;
		if (t == l1)
			sum++;
		if (t->role != QKO_L2)
			continue;
		for (uint32_t j = 0; j < c->n_refs; j++)
			if (c->refs[j].t == t) {
				is_first = is_first && j >= i;
				count++;
			}
		const struct qko_cluster *parent = qko_find(o, t->off / o->cs);
		for (uint32_t j = 0; is_first && parent != NULL && j < parent->n_refs; j++)
			if (parent->refs[j].t == l1)
				note(o, &n, parent->refs[j].slot, count);
	}
	for (size_t i = 0; i < n; i++)
		sum += o->acc[i].n;
	return sum;
}

uint64_t qko_refs(struct qkt_order *o, struct qko_cluster *c, const struct qko_header *h)
{
	uint64_t n = c->n_crypto + (c->index == 0 ? 1 : 0) + qko_bitmap_refs(h, c->index);
	n += lies_in(h->rt, o->cs, c->index) + lies_in(h->l1, o->cs, c->index) +
	     lies_in(h->snapshots, o->cs, c->index);
	for (uint32_t i = 0; i < c->n_refs; i++)
		n += c->refs[i].t == h->rt;
	n += paths(o, c, h->l1);
	for (uint32_t i = 0; i < h->n_snap_l1; i++)
		n += lies_in(h->snap_l1[i], o->cs, c->index) + paths(o, c, h->snap_l1[i]);
	return n;
}

/* ---- the lowest refcount ---- */

static uint64_t refcount_at(unsigned bits, const uint8_t *block, uint64_t index)
{
	const uint8_t *p = block + index * bits / 8;
	switch (bits) {
	case 64:
		return qko_be64(p);
	case 32:
		return qko_be32(p);
	case 16:
		return (uint64_t)p[0] << 8 | p[1];
	case 8:
		return *p;
	default:
		return *p >> (index * bits % 8) & ((1u << bits) - 1);
	}
}

static uint64_t lowest_in_block(unsigned bits, const struct qko_table *rb, uint64_t index)
{
	uint64_t sector = index * bits / 8 / QKO_SECTOR;
	uint64_t per_sector = QKO_SECTOR * 8 / bits;
	uint64_t lowest = UINT64_MAX;
	const uint8_t *b;
	for (unsigned n = 0; (b = qko_version(rb, sector, n)) != NULL; n++) {
		uint64_t count = refcount_at(bits, b, index % per_sector);
		lowest = count < lowest ? count : lowest;
	}
	return lowest;
}

static uint64_t lowest_refcount(
	const struct qkt_order *o, const struct qko_cluster *c, const struct qko_header *h)
{
	uint64_t per_block = o->cs * 8 / h->refcount_bits;
	uint64_t slot = c->index / per_block, lowest = UINT64_MAX;
	if (h->rt == NULL || slot >= h->rt->len / 8)
		return 0;
	/* a block that counts itself is there in the states in which its slot names it */
	bool is_own = qko_has_ref(c, h->rt, slot);
	struct qko_target target;
	for (unsigned n = 0; qko_slot(o, h->rt, slot, n, &target); n++) {
		if (is_own && !qko_covers(&target, o->cs, c->index))
			continue;
		const struct qko_cluster *at = target.kind == QKO_TABLE
						       ? qko_find(o, target.off / o->cs)
						       : NULL;
		if (at == NULL || at->table == NULL || at->table->role != QKO_RB)
			return 0;
		uint64_t count = lowest_in_block(h->refcount_bits, at->table, c->index % per_block);
		lowest = count < lowest ? count : lowest;
	}
	return lowest;
}

/* False where it was reported. */
static bool judge_in(struct qkt_order *o, struct qko_cluster *c, const struct qko_header *h)
{
	bool is_counted = !qko_is_data(c->index * o->cs) && !h->is_dirty;
	if (o->is_loading || o->is_deferring || !h->is_valid || !is_counted)
		return true;
	uint64_t refs = qko_refs(o, c, h);
	uint64_t count = refs != 0 ? lowest_refcount(o, c, h) : 0;
	if (count >= refs)
		return true;
	qko_report(o, QKT_O2,
		"cluster 0x%" PRIx64 " has %" PRIu64 " references and a refcount of %" PRIu64
		" in a state after a crash",
		c->index * o->cs, refs, count);
	return false;
}

void qko_judge_refcount(struct qkt_order *o, struct qko_cluster *c)
{
	for (size_t i = 0; i < o->n_headers; i++)
		if (!judge_in(o, c, &o->headers[i]))
			return;
}

/* How wide the refcounts of a refcount table are; 0: no header names it. */
static unsigned width_in(const struct qkt_order *o, const struct qko_table *rt)
{
	for (size_t i = 0; i < o->n_headers; i++)
		if (o->headers[i].is_valid && o->headers[i].rt == rt)
			return o->headers[i].refcount_bits;
	return 0;
}

void qko_judge_lowered(
	struct qkt_order *o, struct qko_table *t, uint64_t sector, const uint8_t *before)
{
	const struct qko_cluster *at = qko_find(o, t->off / o->cs);
	const uint8_t *now = t->cur + sector * QKO_SECTOR;
	unsigned bits = at != NULL && at->n_refs != 0 ? width_in(o, at->refs[0].t) : 0;
	if (bits == 0)
		return;
	uint64_t per_sector = QKO_SECTOR * 8 / bits;
	uint64_t first = at->refs[0].slot * (o->cs * 8 / bits) + sector * per_sector;
	for (uint64_t i = 0; i < per_sector; i++) {
		if (refcount_at(bits, now, i) >= refcount_at(bits, before, i))
			continue;
		struct qko_cluster *c = qko_find(o, first + i);
		if (c != NULL && qko_is_named(c))
			qko_judge_refcount(o, c);
	}
}

void qko_judge_uncounted(struct qkt_order *o, const struct qko_table *rt, uint64_t slot)
{
	unsigned bits = o->is_loading ? 0 : width_in(o, rt);
	uint64_t per_block = bits != 0 ? o->cs * 8 / bits : 0;
	for (uint64_t i = 0; i < per_block; i++) {
		struct qko_cluster *c = qko_find(o, slot * per_block + i);
		if (c != NULL && qko_is_named(c))
			qko_judge_refcount(o, c);
	}
}

/* ---- durable, and of this life ---- */

uint64_t qko_size_min(const struct qkt_order *o)
{
	uint64_t size = o->base_size;
	for (size_t i = 0; i < o->n_writes; i++)
		if (o->writes[i].is_size && o->writes[i].off < size)
			size = o->writes[i].off;
	return size;
}

static void judge_pending(struct qkt_order *o, uint64_t off, uint64_t len, const char *what)
{
	for (uint64_t at = off; at < off + len; at += QKO_SECTOR) {
		const struct qko_cluster *c = qko_find(o, at / o->cs);
		if (c == NULL || c->pending == NULL || c->pending[at % o->cs / QKO_SECTOR] == 0)
			continue;
		qko_report(o, QKT_O1,
			"the %s at 0x%" PRIx64 " is linked while its bytes at 0x%" PRIx64
			" are not durable",
			what, off, at);
		return;
	}
}

static void judge_end(struct qkt_order *o, uint64_t off, uint64_t end, const char *what)
{
	/* a short data file reads as zeros */
	if (!qko_is_data(off) && end > qko_size_min(o))
		qko_report(o, QKT_O1,
			"the %s at 0x%" PRIx64
			" is linked and goes beyond the durable end 0x%" PRIx64,
			what, off, qko_size_min(o));
}

void qko_judge_durable(struct qkt_order *o, uint64_t off, uint64_t len, const char *what)
{
	if (o->is_loading)
		return;
	judge_end(o, off, off + len, what);
	judge_pending(o, off, len, what);
}

void qko_judge_packed(struct qkt_order *o, uint64_t off, uint64_t len)
{
	if (o->is_loading)
		return;
	judge_end(o, off, off + len - QKO_SECTOR + 1, "compressed data");
	judge_pending(o, off, len, "compressed data");
}

static const struct qko_mask *mask_of(const struct qko_cluster *c, uint64_t sector)
{
	for (uint32_t i = 0; i < c->n_masks; i++)
		if (c->masks[i].sector == sector)
			return &c->masks[i];
	return NULL;
}

/* The first byte of the sector that is neither zero nor of this life; QKO_SECTOR where there is none. */
static unsigned stale_byte(
	struct qkt_order *o, const struct qko_cluster *c, uint64_t sector, unsigned n)
{
	uint8_t b[QKO_SECTOR];
	const struct qko_mask *mask = mask_of(c, sector);
	qko_peek(o, b, sizeof(b), c->index * o->cs + sector * QKO_SECTOR);
	for (unsigned i = 0; i < n; i++)
		if (b[i] != 0 && (mask == NULL || (mask->bits[i / 8] >> (i % 8) & 1) == 0))
			return i;
	return QKO_SECTOR;
}

/* While one thread publishes a cluster that another wrote, a third may write sectors of it that were zeros:
 * those are zeros or new, as they may be. What was written when the cluster was taken is durable. */
static bool overtakes(const struct qkt_order *o, const struct qko_cluster *c, uint64_t sector)
{
	bool has_alive = false;
	for (uint64_t i = 0; c->alive != NULL && i < (o->cs / QKO_SECTOR + 7) / 8; i++)
		has_alive = has_alive || c->alive[i] != 0;
	return o->opt.threads && has_alive && c->blank != NULL &&
	       (c->blank[sector / 8] >> (sector % 8) & 1) != 0;
}

void qko_judge_data(struct qkt_order *o, struct qko_cluster *c, uint64_t off, uint64_t len)
{
	if (o->is_loading)
		return;
	uint64_t at = c->index * o->cs;
	judge_end(o, at, at + off + len, "data cluster");
	for (uint64_t s = off / QKO_SECTOR; s * QKO_SECTOR < off + len; s++) {
		if (c->alive != NULL && (c->alive[s / 8] >> (s % 8) & 1) != 0)
			continue;
		if (c->pending != NULL && c->pending[s] != 0 && overtakes(o, c, s))
			continue;
		if (c->pending != NULL && c->pending[s] != 0) {
			qko_report(o, QKT_O1,
				"the data cluster 0x%" PRIx64 " is linked while its sector %" PRIu64
				" is not durable",
				at, s);
			return;
		}
		uint64_t left = off + len - s * QKO_SECTOR;
		unsigned n = left < QKO_SECTOR ? (unsigned)left : QKO_SECTOR;
		unsigned bad = stale_byte(o, c, s, n);
		if (bad == QKO_SECTOR)
			continue;
		qko_report(o, QKT_O3,
			"the data cluster 0x%" PRIx64 " is linked and byte %" PRIu64
			" is of before it was taken",
			at, s * QKO_SECTOR + bad);
		return;
	}
}

/* ---- overwriting ---- */

static const struct qko_header *latest(const struct qkt_order *o)
{
	return &o->headers[o->n_headers - 1];
}

/* Does the slot name the cluster as last issued? */
static bool names_now(const struct qkt_order *o, const struct qko_ref *r, uint64_t index)
{
	unsigned n = qko_entry_bytes(o, r->t->role);
	struct qko_target target = qko_decode(o, r->t->role, r->t->cur + r->slot * n);
	return qko_covers(&target, o->cs, index);
}

/* The L1 slot that leads to the L2 table in the active tree as last issued; NULL: none does. */
static const struct qko_ref *active_parent(const struct qkt_order *o, const struct qko_table *l2)
{
	const struct qko_cluster *c = qko_find(o, l2->off / o->cs);
	for (uint32_t i = 0; c != NULL && i < c->n_refs; i++)
		if (c->refs[i].t == latest(o)->l1 && names_now(o, &c->refs[i], c->index))
			return &c->refs[i];
	return NULL;
}

static bool is_active_now(const struct qkt_order *o, const struct qko_cluster *c)
{
	for (uint32_t i = 0; i < c->n_refs; i++)
		if (c->refs[i].t->role == QKO_L2 && names_now(o, &c->refs[i], c->index) &&
			active_parent(o, c->refs[i].t) != NULL)
			return true;
	return false;
}

static uint64_t most_refs(struct qkt_order *o, struct qko_cluster *c)
{
	uint64_t most = 0;
	for (size_t i = 0; i < o->n_headers; i++) {
		uint64_t n = o->headers[i].is_valid ? qko_refs(o, c, &o->headers[i]) : 0;
		most = n > most ? n : most;
	}
	return most;
}

uint64_t qko_guest_off(const struct qkt_order *o, const struct qko_table *t, uint64_t slot)
{
	const struct qko_ref *parent = active_parent(o, t);
	uint64_t n_entries = o->cs / qko_entry_bytes(o, QKO_L2);
	return parent != NULL ? (parent->slot * n_entries + slot) * o->cs : UINT64_MAX;
}

uint64_t qko_longest_disk(const struct qkt_order *o)
{
	uint64_t size = 0;
	for (size_t i = 0; i < o->n_headers; i++)
		size = o->headers[i].size > size ? o->headers[i].size : size;
	return size;
}

/* Does the byte `within` of what the entry of an L1 or L2 table maps lie behind every disk that a crash may leave? */
static bool is_behind(
	const struct qkt_order *o, const struct qko_table *t, uint64_t slot, uint64_t within)
{
	uint64_t span = o->cs / qko_entry_bytes(o, QKO_L2) * o->cs;
	uint64_t off = t->role == QKO_L2    ? qko_guest_off(o, t, slot)
		       : t == latest(o)->l1 ? slot * span
					    : UINT64_MAX;
	return off != UINT64_MAX && off + within >= qko_longest_disk(o);
}

bool qko_is_behind(const struct qkt_order *o, const struct qko_cluster *c, uint64_t within)
{
	bool is_named = false;
	for (uint32_t i = 0; i < c->n_refs; i++) {
		if (!names_now(o, &c->refs[i], c->index))
			continue;
		is_named = true;
		if (c->refs[i].t->role != QKO_L2 ||
			!is_behind(o, c->refs[i].t, c->refs[i].slot, within))
			return false;
	}
	return is_named;
}

static bool has_backing(const struct qkt_order *o)
{
	return qko_be64(o->header->cur + 8) != 0;
}

/* What the entry shows in a sector of its cluster, where nothing lies below. */
static void peek_entry(
	const struct qkt_order *o, const struct qko_target *target, uint64_t sector, uint8_t *b)
{
	uint64_t at = sector * QKO_SECTOR;
	bool shows = target->kind == QKO_PLAIN &&
		     (o->is_extended ? (target->subclusters >> (at / (o->cs / 32)) & 1) != 0
				     : !target->is_zero);
	memset(b, 0, QKO_SECTOR);
	if (shows)
		qko_peek(o, b, QKO_SECTOR, target->off + at);
}

/* An L2 entry: do the first `len` bytes of its cluster stay what they were? Asked of the last cluster of a disk whose end lies
 * within it, where what lies behind that end may change. Of packed data nothing is known. */
static bool keeps_head(
	const struct qkt_order *o, const uint8_t *was, const uint8_t *now, uint64_t len)
{
	struct qko_target old = qko_decode(o, QKO_L2, was), new = qko_decode(o, QKO_L2, now);
	if (len >= o->cs || has_backing(o))
		return false;
	for (uint64_t at = 0; at < len && old.kind != QKO_PACKED; at += QKO_SECTOR) {
		uint8_t a[QKO_SECTOR], b[QKO_SECTOR];
		peek_entry(o, &old, at / QKO_SECTOR, a);
		peek_entry(o, &new, at / QKO_SECTOR, b);
		if (memcmp(a, b, len - at < QKO_SECTOR ? (size_t)(len - at) : QKO_SECTOR) != 0)
			return false;
	}
	return true;
}

/* An L1 entry: do all entries of the disk say what they said, but for COPIED? */
static bool keeps_table(
	const struct qkt_order *o, uint64_t slot, const uint8_t *was, const uint8_t *now)
{
	struct qko_target tables[2] = {qko_decode(o, QKO_L1, was), qko_decode(o, QKO_L1, now)};
	unsigned bytes = qko_entry_bytes(o, QKO_L2);
	uint64_t n = o->cs / bytes, size = qko_longest_disk(o);
	if (tables[0].kind == QKO_BAD || tables[1].kind == QKO_BAD)
		return false;
	for (uint64_t i = 0; i < n && (slot * n + i) * o->cs < size; i++) {
		uint8_t e[2][16] = {{0}, {0}};
		for (unsigned k = 0; k < 2; k++) {
			if (tables[k].kind == QKO_TABLE)
				qko_peek(o, e[k], bytes, tables[k].off + i * bytes);
			e[k][0] &= 0x7f;
		}
		if (memcmp(e[0], e[1], bytes) != 0 &&
			!keeps_head(o, e[0], e[1], size - (slot * n + i) * o->cs))
			return false;
	}
	return true;
}

bool qko_changes_disk(
	const struct qkt_order *o, const struct qko_table *t, uint64_t sector, const uint8_t *now)
{
	const uint8_t *cur = t->cur + sector * QKO_SECTOR;
	unsigned n = qko_entry_bytes(o, t->role);
	for (unsigned i = 0; i < QKO_SECTOR; i += n) {
		uint64_t slot = (sector * QKO_SECTOR + i) / n;
		if (memcmp(cur + i, now + i, n) == 0 || is_behind(o, t, slot, 0))
			continue;
		if (t->role == QKO_L1 ? !keeps_table(o, slot, cur + i, now + i)
				      : !keeps_head(o, cur + i, now + i, qko_guest_len(o, t, slot)))
			return true;
	}
	return false;
}

/* A zero entry of version 3, and what may stand in its place: nothing, where nothing lies below, or a cluster of zeros. */
static bool is_zero_alike(const struct qkt_order *o, uint64_t was, const struct qko_target *now)
{
	uint8_t b[QKO_SECTOR];
	if ((was & (QKO_PACKED_FLAG | 1)) != 1)
		return false;
	if (now->kind != QKO_PLAIN)
		return now->kind == QKO_NOTHING && !has_backing(o);
	for (uint64_t at = 0; at < o->cs && !now->is_zero; at += QKO_SECTOR) {
		qko_peek(o, b, sizeof(b), now->off + at);
		for (unsigned i = 0; i < QKO_SECTOR; i++)
			if (b[i] != 0)
				return false;
	}
	return true;
}

bool qko_reads_alike(
	const struct qkt_order *o, const struct qko_table *t, uint64_t sector, const uint8_t *now)
{
	const uint8_t *cur = t->cur + sector * QKO_SECTOR;
	if (t->role != QKO_L2 || o->is_extended)
		return false;
	for (unsigned i = 0; i < QKO_SECTOR; i += 8) {
		struct qko_target target = qko_decode(o, t->role, now + i);
		if (memcmp(cur + i, now + i, 8) != 0 &&
			!is_zero_alike(o, qko_be64(cur + i), &target))
			return false;
	}
	return true;
}

/* Guest bytes of the entry that the disk has; a cluster for tables that the active one does not reach, and for the state of a
 * machine. Beside a data file there is none. */
uint64_t qko_guest_len(const struct qkt_order *o, const struct qko_table *t, uint64_t slot)
{
	uint64_t off = qko_guest_off(o, t, slot), size = latest(o)->size;
	if (off == UINT64_MAX)
		return o->cs;
	if (off >= size)
		return o->has_data_file ? 0 : o->cs;
	return size - off < o->cs ? size - off : o->cs;
}

void qko_judge_copied(struct qkt_order *o, struct qko_cluster *c)
{
	if (o->is_loading || o->is_deferring || qko_is_data(c->index * o->cs))
		return;
	bool is_active = is_active_now(o, c);
	for (uint32_t i = 0; i < c->n_refs && !is_active; i++)
		is_active = c->refs[i].t == latest(o)->l1;
	if (is_active && most_refs(o, c) > 1)
		qko_report(o, QKT_O9,
			"COPIED names cluster 0x%" PRIx64 " of %" PRIu64 " references",
			c->index * o->cs, most_refs(o, c));
}

/* Is it COPIED in the active tree as last issued? */
static bool is_copied_now(const struct qkt_order *o, const struct qko_cluster *c)
{
	for (uint32_t i = 0; i < c->n_refs; i++) {
		const struct qko_ref *r = &c->refs[i];
		unsigned n = qko_entry_bytes(o, r->t->role);
		struct qko_target target = qko_decode(o, r->t->role, r->t->cur + r->slot * n);
		bool is_active = r->t == latest(o)->l1 ||
				 (r->t->role == QKO_L2 && active_parent(o, r->t) != NULL);
		if (is_active && target.is_copied && qko_covers(&target, o->cs, c->index))
			return true;
	}
	return false;
}

/* A header that names other tables makes entries active that were judged when they were not. */
void qko_judge_all(struct qkt_order *o)
{
	for (size_t i = 0; i < o->n_hash; i++) {
		struct qko_cluster *c = o->hash[i];
		if (c == NULL || !qko_is_named(c))
			continue;
		(void)judge_in(o, c, latest(o));
		if (o->is_loading || !latest(o)->is_valid || !is_copied_now(o, c))
			continue;
		uint64_t refs = qko_refs(o, c, latest(o));
		if (refs > 1)
			qko_report(o, QKT_O9,
				"the new header makes COPIED of cluster 0x%" PRIx64 " of %" PRIu64
				" references",
				c->index * o->cs, refs);
	}
}

static bool hits_packed(
	struct qkt_order *o, const struct qko_cluster *c, uint64_t off, uint64_t len)
{
	uint64_t at = c->index * o->cs + off;
	struct qko_target target;
	for (uint32_t i = 0; i < c->n_refs; i++)
		for (unsigned n = 0; qko_slot(o, c->refs[i].t, c->refs[i].slot, n, &target); n++)
			if (target.kind == QKO_PACKED && at < target.off + target.len &&
				target.off < at + len)
				return true;
	return false;
}

static bool has_plain(const struct qkt_order *o, const struct qko_cluster *c)
{
	struct qko_target target;
	for (uint32_t i = 0; i < c->n_refs; i++)
		for (unsigned n = 0; qko_slot(o, c->refs[i].t, c->refs[i].slot, n, &target); n++)
			if (target.kind == QKO_PLAIN && qko_covers(&target, o->cs, c->index))
				return true;
	return false;
}

bool qko_is_zero(const struct qkt_order *o, const struct qko_cluster *c)
{
	struct qko_target target;
	if (c->table != NULL || c->n_static != 0)
		return false;
	for (uint32_t i = 0; i < c->n_refs; i++)
		for (unsigned n = 0; qko_slot(o, c->refs[i].t, c->refs[i].slot, n, &target); n++)
			if (qko_covers(&target, o->cs, c->index) &&
				(target.kind != QKO_PLAIN ||
					!(o->is_extended ? target.subclusters == 0
							 : target.is_zero)))
				return false;
	return true;
}

void qko_judge_overwrite(struct qkt_order *o, struct qko_cluster *c, uint64_t off, uint64_t len)
{
	if (qko_is_data(c->index * o->cs))
		return;
	if (hits_packed(o, c, off, len)) {
		qko_report(o, QKT_O4, "compressed data in cluster 0x%" PRIx64 " is overwritten",
			c->index * o->cs);
		return;
	}
	/* what all that name it say is zeros may hold anything */
	if (!has_plain(o, c) || qko_is_zero(o, c))
		return;
	if (most_refs(o, c) > 1)
		qko_report(o, QKT_O4,
			"the data cluster 0x%" PRIx64 " of %" PRIu64 " references is overwritten",
			c->index * o->cs, most_refs(o, c));
	else if (!is_active_now(o, c) && !o->opt.threads)
		qko_report(o, QKT_O4,
			"cluster 0x%" PRIx64
			" is written again before the update that freed it is durable",
			c->index * o->cs);
}

static bool is_snapshots_l1(const struct qkt_order *o, const struct qko_table *t)
{
	for (size_t i = 0; i < o->n_headers; i++)
		for (uint32_t j = 0; j < o->headers[i].n_snap_l1; j++)
			if (o->headers[i].snap_l1[j] == t)
				return true;
	return false;
}

void qko_judge_table_write(struct qkt_order *o, struct qko_table *t)
{
	struct qko_cluster *c = qko_find(o, t->off / o->cs);
	bool may = true;
	if (t->role == QKO_L1)
		may = t == latest(o)->l1 && !is_snapshots_l1(o, t);
	else if (t->role == QKO_RT)
		may = t == latest(o)->rt;
	else if (t->role == QKO_SNAPSHOTS)
		may = false;
	else if (t->role == QKO_L2)
		may = active_parent(o, t) != NULL && most_refs(o, c) <= 1;
	else if (t->role == QKO_RB) {
		may = false;
		for (uint32_t i = 0; i < c->n_refs; i++)
			may = may || (c->refs[i].t == latest(o)->rt &&
					     names_now(o, &c->refs[i], c->index));
	}
	if (!may)
		qko_report(o, QKT_O4,
			"the table at 0x%" PRIx64
			" is overwritten, which a snapshot or a state after a "
			"crash still needs",
			t->off);
}

void qko_judge_truncate(struct qkt_order *o, uint64_t size)
{
	if (size >= o->size)
		return;
	for (size_t i = 0; i < o->n_hash; i++) {
		const struct qko_cluster *c = o->hash[i];
		if (c == NULL || !qko_is_named(c) || qko_is_data(c->index * o->cs))
			continue;
		uint64_t at = c->index * o->cs;
		if (at < o->size && at + o->cs > size) {
			qko_report(o, QKT_O6,
				"the file is cut to 0x%" PRIx64 ", and cluster 0x%" PRIx64
				" is named",
				size, at);
			return;
		}
	}
}
