/* SPDX-License-Identifier: MIT */
/*
 * What the order checker reads once: bitmaps and the encryption header, which nothing may overwrite in place.
 * Specification: header extensions, bitmaps extension, full disk encryption header pointer.
 */
#include "order_int.h"

#include <stdlib.h>

static void mark_static(struct qkt_order *o, uint64_t off, uint64_t len)
{
	for (uint64_t i = off / o->cs;
		len != 0 && len < QKO_MAX_TABLE && i <= (off + len - 1) / o->cs; i++)
		qko_get(o, i)->n_static++;
}

static void load_bitmap(struct qkt_order *o, const uint8_t *entry)
{
	uint64_t off = qko_be64(entry), len = (uint64_t)qko_be32(entry + 8) * 8;
	uint8_t e[8];
	mark_static(o, off, len);
	for (uint64_t at = off; at < off + len && len < QKO_MAX_TABLE; at += 8) {
		if (qcow_store_read_padded(o->peek, e, 8, at, NULL) != QCOW_OK)
			abort();
		if ((qko_be64(e) & QKO_OFFSET_MASK) != 0)
			mark_static(o, qko_be64(e) & QKO_OFFSET_MASK, o->cs);
	}
}

static void load_bitmaps(struct qkt_order *o, const uint8_t *ext)
{
	uint64_t len = qko_be64(ext + 8), off = qko_be64(ext + 16), at = off;
	uint8_t e[24];
	mark_static(o, off, len);
	for (uint32_t i = 0; i < qko_be32(ext) && at < off + len; i++) {
		if (qcow_store_read_padded(o->peek, e, 24, at, NULL) != QCOW_OK)
			abort();
		load_bitmap(o, e);
		at = (at + 24 + (uint64_t)(e[18] << 8 | e[19]) + qko_be32(e + 20) + 7) / 8 * 8;
	}
}

void qko_load_extensions(struct qkt_order *o)
{
	uint8_t *b = qko_need(malloc((size_t)o->cs + 32));
	if (qcow_store_read_padded(o->peek, b, (size_t)o->cs, 0, NULL) != QCOW_OK)
		abort();
	uint64_t at = o->version == 2 ? 72 : qko_be32(b + 100);
	bool has_bitmaps = o->version >= 3 && (b[95] & 1) != 0;
	while (at + 8 <= o->cs && qko_be32(b + at) != 0) {
		uint32_t type = qko_be32(b + at), len = qko_be32(b + at + 4);
		if (len > o->cs - at - 8)
			break;
		if (type == 0x23852875 && len == 24 && has_bitmaps)
			load_bitmaps(o, b + at + 8);
		if (type == 0x0537be77 && len == 16)
			mark_static(o, qko_be64(b + at + 8), qko_be64(b + at + 16));
		at += 8 + ((uint64_t)len + 7) / 8 * 8;
	}
	free(b);
}
