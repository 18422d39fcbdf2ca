/* SPDX-License-Identifier: MIT */
/*
 * The order checker's headers: all that a crash may leave, and the tables that each of them names. Another write of any
 * of the header's sectors is another header; it goes when one behind it is durable, or when its sector 0 can be nowhere.
 */
#include "order_int.h"

#include <stdlib.h>
#include <string.h>

static struct qko_table *root(struct qkt_order *o, enum qko_role role, uint64_t off, uint64_t len)
{
	if (len == 0 || off == 0 || off % o->cs != 0 || len > QKO_MAX_TABLE)
		return NULL;
	for (struct qko_table *t = o->roots; t != NULL; t = t->next)
		if (t->off == off && t->role == role && t->len >= len) {
			t->used = t->used > len ? t->used : len;
			return t;
		}
	qko_judge_durable(o, off, len, "table named by the header");
	struct qko_table *t = qko_load_table(o, role, off, len);
	t->next = o->roots;
	o->roots = t;
	return t;
}

static struct qko_header parse_header(const struct qkt_order *o, const uint8_t *b, uint64_t id)
{
	struct qko_header h = {.id = id};
	memcpy(h.first, b, sizeof(h.first));
	h.is_valid = memcmp(b, "QFI\xfb", 4) == 0;
	h.size = qko_be64(b + 24);
	h.l1_len = (uint64_t)qko_be32(b + 36) * 8;
	h.l1_off = qko_be64(b + 40);
	h.rt_off = qko_be64(b + 48);
	h.rt_len = qko_be32(b + 56) * o->cs;
	h.n_snaps = qko_be32(b + 60);
	h.snap_off = qko_be64(b + 64);
	h.version = qko_be32(b + 4);
	h.refcount_bits = h.version == 2 ? 16 : 1u << (b[99] & 7);
	h.is_dirty = h.version >= 3 && (b[79] & 3) != 0;
	return h;
}

/* Length of the snapshot table, and each entry's L1 table where `visit` says so. */
static uint64_t walk_snapshots(struct qkt_order *o, struct qko_header *h, bool visit)
{
	uint64_t off = h->snap_off;
	uint8_t e[40];
	for (uint32_t i = 0; i < h->n_snaps; i++) {
		if (qcow_store_read_padded(o->peek, e, sizeof(e), off, NULL) != QCOW_OK)
			abort();
		struct qko_table *t =
			visit ? root(o, QKO_L1, qko_be64(e), (uint64_t)qko_be32(e + 8) * 8) : NULL;
		if (t != NULL)
			h->snap_l1[h->n_snap_l1++] = t;
		uint64_t len = 40 + qko_be32(e + 36) +
			       (uint64_t)((e[12] << 8 | e[13]) + (e[14] << 8 | e[15]));
		off = (off + len + 7) / 8 * 8;
	}
	return off - h->snap_off;
}

static void judge_header(struct qkt_order *o, struct qko_header *h)
{
	if (!h->is_valid)
		return;
	/* the refcounts first: what follows is judged by them */
	h->rt = root(o, QKO_RT, h->rt_off, h->rt_len);
	if (h->rt != NULL)
		qko_judge_slots(o, h->rt);
	h->l1 = root(o, QKO_L1, h->l1_off, h->l1_len);
	if (h->n_snaps != 0) {
		h->snap_l1 = qko_need(calloc(h->n_snaps, sizeof(struct qko_table *)));
		h->snapshots = root(o, QKO_SNAPSHOTS, h->snap_off, walk_snapshots(o, h, false));
		(void)walk_snapshots(o, h, true);
	}
	if (h->l1 != NULL)
		qko_judge_slots(o, h->l1);
	for (uint32_t i = 0; i < h->n_snap_l1; i++)
		qko_judge_slots(o, h->snap_l1[i]);
	qko_bitmaps_load(o, h);
}

void qko_push_header(struct qkt_order *o, uint64_t id, uint64_t sector)
{
	o->headers = qko_need(realloc(o->headers, (o->n_headers + 1) * sizeof(*o->headers)));
	o->headers[o->n_headers] = parse_header(o, o->header->cur, id);
	o->headers[o->n_headers].sector = sector;
	o->n_headers++;
	judge_header(o, &o->headers[o->n_headers - 1]);
}

static bool is_root_of(const struct qko_header *h, const struct qko_table *t)
{
	if (h->l1 == t || h->rt == t || h->snapshots == t)
		return true;
	for (uint32_t i = 0; i < h->n_snap_l1; i++)
		if (h->snap_l1[i] == t)
			return true;
	return false;
}

/* Headers before number `first` can no longer be the disk's. */
static void drop_headers(struct qkt_order *o, size_t first)
{
	qko_bitmaps_drop(o, first);
	for (size_t i = 0; i < first; i++)
		free(o->headers[i].snap_l1);
	o->n_headers -= first;
	memmove(o->headers, o->headers + first, o->n_headers * sizeof(*o->headers));
	struct qko_table **at = &o->roots;
	while (*at != NULL) {
		struct qko_table *t = *at;
		bool is_used = false;
		for (size_t i = 0; i < o->n_headers && !is_used; i++)
			is_used = is_root_of(&o->headers[i], t);
		if (is_used) {
			at = &t->next;
			continue;
		}
		*at = t->next;
		qko_release(o, t);
	}
}

/* Sector 0 can no longer be what it is in these, though another sector that was written with it may be either. */
static void drop_impossible(struct qkt_order *o)
{
	for (size_t i = o->n_headers - 1; i-- > 0;) {
		struct qko_header h = o->headers[i];
		const uint8_t *b;
		bool is_possible = false;
		for (unsigned n = 0; (b = qko_version(o->header, 0, n)) != NULL; n++)
			is_possible = is_possible || memcmp(b, h.first, sizeof(h.first)) == 0;
		if (is_possible)
			continue;
		memmove(o->headers + 1, o->headers, i * sizeof(h));
		o->headers[0] = h;
		drop_headers(o, 1);
	}
}

void qko_retire_headers(struct qkt_order *o, uint64_t sector, size_t n)
{
	size_t n_gone = 0;
	for (size_t i = 1; i < o->n_headers && n != 0; i++) {
		struct qko_header *h = &o->headers[i];
		if (h->sector != sector || h->is_durable)
			continue;
		h->is_durable = true;
		n--;
	}
	if (sector == 0)
		drop_impossible(o);
	while (n_gone + 1 < o->n_headers && o->headers[n_gone + 1].is_durable)
		n_gone++;
	drop_headers(o, n_gone);
}

/* ---- changes ---- */

/* Where the extensions of a version 2 header end, behind the END marker. */
static uint64_t find_v2_end(const struct qkt_order *o, const uint8_t *b)
{
	uint64_t name_off = qko_be64(b + 8), at = 72;
	uint64_t limit = name_off != 0 && name_off < o->header->len ? name_off : o->header->len;
	while (limit >= 8 && at <= limit - 8) {
		uint64_t type = qko_be32(b + at), len = qko_be32(b + at + 4);
		if (type == 0)
			return len == 0 ? at + 8 : 72;
		if (len > limit - at - 8)
			return 72;
		at += 8 + (len + 7) / 8 * 8;
	}
	return limit;
}

/* Version 2 has no fields from byte 72 on: what changes there is an extension, the name, or becomes zero. */
static bool is_v2_change(const struct qkt_order *o, const uint8_t *before, const uint8_t *now)
{
	uint64_t end = find_v2_end(o, now), name_off = qko_be64(now + 8);
	for (uint64_t i = 72; i < 104; i++) {
		bool is_name = i >= name_off && i - name_off < qko_be32(now + 16);
		if (before[i] != now[i] && now[i] != 0 && i >= end && !is_name)
			return false;
	}
	return true;
}

void qko_header_written(struct qkt_order *o, uint64_t id, uint64_t sector, const uint8_t *before)
{
	const uint8_t *now = o->header->cur;
	bool was_v2 = qko_be32(before + 4) == 2, is_v2 = qko_be32(now + 4) == 2;
	if (sector == 0 && was_v2 && is_v2 && !is_v2_change(o, before, now))
		qko_report(o, QKT_O7, "bytes 72 to 103 of a version 2 header are changed");
	o->version = qko_be32(now + 4);
	o->is_deferring = true;
	qko_push_header(o, id, sector);
	o->is_deferring = false;
	qko_judge_all(o);
}
