/* SPDX-License-Identifier: MIT */
#include "cli/blkdebug_where.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* Tables longer than this are not looked at. */
#define MOST_TABLE_BYTES (UINT64_C(32) << 20)

static uint64_t get_be(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;
	for (unsigned i = 0; i < bytes; i++)
		v = v << 8 | p[i];
	return v;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

/* The offsets that a table of 8-byte entries names, ascending. Empty where it cannot be read. */
static uint64_t *read_table(struct qcow_store *store, uint64_t off, uint64_t bytes, size_t *n)
{
	*n = 0;
	if (bytes == 0 || bytes > MOST_TABLE_BYTES)
		return NULL;
	QK_AUTO_FREE uint8_t *raw = qk_malloc(bytes, 1);
	uint64_t *out = qk_malloc(bytes / 8 + 1, sizeof(*out));
	if (raw == NULL || out == NULL ||
		qcow_store_read_padded(store, raw, bytes, off, NULL) != QCOW_OK) {
		free(out);
		return NULL;
	}
	for (uint64_t i = 0; i < bytes / 8; i++) {
		uint64_t at = get_be(raw + i * 8, 8) & UINT64_C(0x00fffffffffffe00);
		if (at != 0)
			out[(*n)++] = at;
	}
	qsort(out, *n, sizeof(*out), compare);
	return out;
}

void blkdebug_where_release(struct blkdebug_where *where)
{
	free(where->l2);
	free(where->blocks);
	memset(where, 0, sizeof(*where));
}

static void look(struct blkdebug_where *w, struct qcow_store *store)
{
	uint8_t header[72] = {0};
	blkdebug_where_release(w);
	w->is_fresh = true;
	if (qcow_store_read_padded(store, header, sizeof(header), 0, NULL) != QCOW_OK ||
		memcmp(header, "QFI\xfb", 4) != 0)
		return;
	uint64_t bits = get_be(header + 20, 4);
	if (bits < 9 || bits > 21)
		return;
	w->is_qcow2 = true;
	w->cluster = UINT64_C(1) << bits;
	w->l1_bytes = get_be(header + 36, 4) * 8;
	w->l1_off = get_be(header + 40, 8);
	w->rt_off = get_be(header + 48, 8);
	w->rt_bytes = get_be(header + 56, 4) * w->cluster;
	w->l2 = read_table(store, w->l1_off, w->l1_bytes, &w->n_l2);
	w->blocks = read_table(store, w->rt_off, w->rt_bytes, &w->n_blocks);
}

static bool is_named(const uint64_t *list, size_t n, uint64_t cluster_off)
{
	return n != 0 && bsearch(&cluster_off, list, n, sizeof(*list), compare) != NULL;
}

enum blkdebug_place blkdebug_place_of(
	struct blkdebug_where *w, struct qcow_store *store, uint64_t off)
{
	if (!w->is_fresh)
		look(w, store);
	if (!w->is_qcow2)
		return BLKDEBUG_DATA;
	uint64_t cluster_off = off & ~(w->cluster - 1);
	if (cluster_off == 0)
		return BLKDEBUG_HEADER;
	if (off >= w->l1_off && off - w->l1_off < w->l1_bytes)
		return BLKDEBUG_L1;
	if (off >= w->rt_off && off - w->rt_off < w->rt_bytes)
		return BLKDEBUG_REFTABLE;
	if (is_named(w->l2, w->n_l2, cluster_off))
		return BLKDEBUG_L2;
	return is_named(w->blocks, w->n_blocks, cluster_off) ? BLKDEBUG_REFBLOCK : BLKDEBUG_DATA;
}

static bool meets(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
	return a < b + b_bytes && b < a + a_bytes;
}

void blkdebug_note_write(struct blkdebug_where *w, uint64_t off, uint64_t len)
{
	if (off < 512 || meets(off, len, w->l1_off, w->l1_bytes) ||
		meets(off, len, w->rt_off, w->rt_bytes))
		w->is_fresh = false;
}
