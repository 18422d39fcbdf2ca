/* SPDX-License-Identifier: MIT */
/*
 * The order checker's view of what extensions name. The encryption header stays; of persistent bitmaps: which clusters directory, tables and data of each header that a
 * crash may leave take, and whether enabled bitmaps are in use, durably, before the guest's disk changes.
 * It sees a directory that an extension in the first 4 KiB names. Specification: "Bitmaps".
 */
#include "order_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define IN_USE 1u
#define AUTO   2u

#define EXT_BITMAPS 0x23852875u
#define EXT_CRYPTO  0x0537be77u

struct qko_bitmaps {
	uint64_t off, len; /* of the directory */
	uint32_t n_entries;
	uint64_t *
		clusters; /* of all structures; one that has several references stands there as often */
	size_t n, room;
	bool is_tracking; /* durable: every enabled bitmap is in use */
	uint64_t pending; /* the write after which it is, 0: none */
};

static void add_clusters(
	struct qkt_order *o, struct qko_bitmaps *m, uint64_t off, uint64_t len, const char *what)
{
	if (len == 0 || len >= QKO_MAX_TABLE)
		return;
	qko_judge_durable(o, off, len, what);
	for (uint64_t i = off / o->cs; i <= (off + len - 1) / o->cs; i++) {
		struct qko_cluster *c = qko_get(o, i);
		if (c->table != NULL || c->n_refs != 0)
			qko_report(o, QKT_O10,
				"cluster 0x%" PRIx64 " becomes a %s and is something else",
				i * o->cs, what);
		if (m->n == m->room) {
			m->room = m->room != 0 ? m->room * 2 : 64;
			m->clusters = qko_need(
				realloc(m->clusters, m->room * sizeof(*m->clusters)));
		}
		m->clusters[m->n++] = i;
		c->n_static++;
	}
}

static void read_bytes(struct qkt_order *o, uint8_t *buf, uint64_t len, uint64_t off)
{
	if (qcow_store_read_padded(o->peek, buf, (size_t)len, off, NULL) != QCOW_OK)
		abort();
}

static void load_table(struct qkt_order *o, struct qko_bitmaps *m, const uint8_t *entry)
{
	uint64_t off = qko_be64(entry), len = (uint64_t)qko_be32(entry + 8) * 8;
	uint8_t e[8];
	add_clusters(o, m, off, len, "bitmap table");
	for (uint64_t at = off; at < off + len && len < QKO_MAX_TABLE; at += 8) {
		read_bytes(o, e, 8, at);
		if ((qko_be64(e) & QKO_OFFSET_MASK) != 0)
			add_clusters(o, m, qko_be64(e) & QKO_OFFSET_MASK, o->cs, "bitmap");
	}
}

static uint64_t entry_len(const uint8_t *e)
{
	return (24 + (uint64_t)(e[18] << 8 | e[19]) + qko_be32(e + 20) + 7) / 8 * 8;
}

/* Is every enabled bitmap of the directory's bytes in use? */
static bool all_in_use(const struct qko_bitmaps *m, const uint8_t *bytes)
{
	uint64_t at = 0;
	for (uint32_t i = 0; i < m->n_entries && at + 24 <= m->len; i++) {
		uint32_t flags = qko_be32(bytes + at + 12);
		if ((flags & AUTO) != 0 && (flags & IN_USE) == 0)
			return false;
		at += entry_len(bytes + at);
	}
	return true;
}

static int by_value(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

static struct qko_bitmaps *load(struct qkt_order *o, const uint8_t *ext)
{
	struct qko_bitmaps *m = qko_need(calloc(1, sizeof(*m)));
	m->n_entries = qko_be32(ext);
	m->len = qko_be64(ext + 8);
	m->off = qko_be64(ext + 16);
	m->len = m->len < QKO_MAX_TABLE ? m->len : 0;
	uint8_t *bytes = qko_need(calloc(1, (size_t)m->len + 24));
	uint64_t at = 0;
	read_bytes(o, bytes, m->len, m->off);
	add_clusters(o, m, m->off, m->len, "bitmap directory");
	for (uint32_t i = 0; i < m->n_entries && at + 24 <= m->len; i++) {
		load_table(o, m, bytes + at);
		at += entry_len(bytes + at);
	}
	m->is_tracking = all_in_use(m, bytes);
	free(bytes);
	if (m->n != 0)
		qsort(m->clusters, m->n, sizeof(*m->clusters), by_value);
	return m;
}

/* The data of the extension of `type` with `n_data` bytes in a header, or NULL. */
static const uint8_t *find_ext(const uint8_t *b, uint64_t len, uint32_t type, uint32_t n_data)
{
	uint64_t at = qko_be32(b + 4) == 2 ? 72 : qko_be32(b + 100);
	while (at + 8 <= len && qko_be32(b + at) != 0) {
		uint32_t n = qko_be32(b + at + 4);
		if (n > len - at - 8)
			break;
		if (qko_be32(b + at) == type && n == n_data)
			return b + at + 8;
		at += 8 + ((uint64_t)n + 7) / 8 * 8;
	}
	return NULL;
}

void qko_bitmaps_load(struct qkt_order *o, struct qko_header *h)
{
	uint8_t *b = qko_need(malloc((size_t)o->cs));
	read_bytes(o, b, o->cs, 0);
	memcpy(b, o->header->cur, (size_t)o->header->len);
	bool is_trusted = h->version >= 3 && (b[95] & 1) != 0;
	const uint8_t *ext = is_trusted ? find_ext(b, o->cs, EXT_BITMAPS, 24) : NULL;
	for (size_t i = 0; ext != NULL && i < o->n_headers && h->bitmaps == NULL; i++) {
		struct qko_bitmaps *m = o->headers[i].bitmaps;
		if (m != NULL && m->off == qko_be64(ext + 16))
			h->bitmaps = m;
	}
	if (ext != NULL && h->bitmaps == NULL)
		h->bitmaps = load(o, ext);
	free(b);
}

void qko_bitmaps_drop(struct qkt_order *o, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct qko_bitmaps *m = o->headers[i].bitmaps;
		bool is_last = m != NULL;
		for (size_t k = i + 1; k < o->n_headers && is_last; k++)
			is_last = o->headers[k].bitmaps != m;
		if (!is_last)
			continue;
		for (size_t k = 0; k < m->n; k++)
			if (--qko_get(o, m->clusters[k])->n_static == 0)
				qko_begin_life(o, qko_get(o, m->clusters[k]));
		free(m->clusters);
		free(m);
	}
}

uint64_t qko_bitmap_refs(const struct qko_header *h, uint64_t index)
{
	const struct qko_bitmaps *m = h->bitmaps;
	size_t low = 0, high = m != NULL ? m->n : 0, n = 0;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		if (m->clusters[mid] < index)
			low = mid + 1;
		else
			high = mid;
	}
	while (m != NULL && low + n < m->n && m->clusters[low + n] == index)
		n++;
	return n;
}

/* From `before` to `now` bitmaps may be marked in use, and nothing else. */
static bool only_marks(const struct qko_bitmaps *m, const uint8_t *before, uint8_t *now)
{
	uint64_t at = 0;
	bool is_good = true;
	for (uint32_t i = 0; i < m->n_entries && at + 24 <= m->len && is_good; i++) {
		uint8_t was = before[at + 15], *is = &now[at + 15];
		uint8_t kept = *is;
		if (*is == (was | IN_USE))
			*is = was;
		is_good = memcmp(before + at, now + at, 24) == 0;
		*is = kept;
		at += entry_len(before + at);
	}
	return is_good;
}

bool qko_bitmaps_write(
	struct qkt_order *o, uint64_t id, uint64_t off, uint64_t len, const uint8_t *bytes)
{
	struct qko_bitmaps *m = o->n_headers != 0 ? o->headers[o->n_headers - 1].bitmaps : NULL;
	if (m == NULL || bytes == NULL || off < m->off || off + len > m->off + m->len)
		return false;
	uint8_t *before = qko_need(calloc(1, (size_t)m->len + 24));
	uint8_t *now = qko_need(calloc(1, (size_t)m->len + 24));
	read_bytes(o, before, m->len, m->off);
	memcpy(now, before, (size_t)m->len);
	memcpy(now + (off - m->off), bytes, (size_t)len);
	bool is_good = only_marks(m, before, now);
	m->pending = is_good && all_in_use(m, now) ? id : 0;
	free(before);
	free(now);
	return is_good;
}

void qko_bitmaps_retire(struct qkt_order *o)
{
	for (size_t i = 0; i < o->n_headers; i++) {
		struct qko_bitmaps *m = o->headers[i].bitmaps;
		if (m != NULL && m->pending != 0 && qko_retires(o, m->pending)) {
			m->is_tracking = true;
			m->pending = 0;
		}
	}
}

bool qko_is_untracked(const struct qkt_order *o)
{
	const struct qko_bitmaps *m = o->n_headers != 0 ? o->headers[o->n_headers - 1].bitmaps
							: NULL;
	return m != NULL && !m->is_tracking;
}

void qko_judge_tracked(struct qkt_order *o, uint64_t off)
{
	if (qko_is_untracked(o))
		qko_report(o, QKT_O11,
			"the write at 0x%" PRIx64
			" changes the disk, and an enabled bitmap is not in use, durably",
			off);
}

/* ---- the encryption header ---- */

void qko_crypto_load(struct qkt_order *o)
{
	uint8_t *b = qko_need(malloc((size_t)o->cs));
	read_bytes(o, b, o->cs, 0);
	const uint8_t *ext = find_ext(b, o->cs, EXT_CRYPTO, 16);
	uint64_t off = ext != NULL ? qko_be64(ext) : 0, len = ext != NULL ? qko_be64(ext + 8) : 0;
	for (uint64_t i = off / o->cs;
		len != 0 && len < QKO_MAX_TABLE && i <= (off + len - 1) / o->cs; i++) {
		qko_get(o, i)->n_static++;
		qko_get(o, i)->n_crypto++;
	}
	free(b);
}
