/* SPDX-License-Identifier: MIT */
/*
 * bitmapext: the bitmap directory and bitmap tables.
 *
 * Pure. decode bounds and splits, judge judges, encode writes back what decode saw, extra data
 * included.
 *
 *   0          8       12      16    17           18     20         24          24 + extra
 *   | table off|entries| flags | type| granularity| name | extra len| extra ... | name | zeros to 8
 */
#include "format/bitmapext.h"

#include <qcowkit/findings.h>

#define KNOWN_FLAGS    (QK_BITMAP_IN_USE | QK_BITMAP_AUTO | QK_BITMAP_EXTRA_COMPATIBLE)
#define TYPE_DIRTY     1U
#define TABLE_ALL_ONES UINT64_C(1)

static size_t padding_bytes(uint64_t used)
{
	return (size_t)(-used & 7);
}

uint64_t qk_bitmap_entry_bytes(uint64_t extra_len, uint64_t name_len)
{
	uint64_t used = QK_BITMAP_FIXED_BYTES + extra_len + name_len;
	return used + padding_bytes(used);
}

unsigned qk_bitmaps_ext_judge(const struct qk_geometry *g, const struct qk_bitmaps_ext *ext)
{
	/* Each entry takes 32 bytes at least: the fixed part and a name of 1, padded. */
	uint64_t least = (uint64_t)ext->n_bitmaps * qk_bitmap_entry_bytes(0, 1);
	if (ext->n_bitmaps == 0 || ext->n_bitmaps > QK_MAX_BITMAPS || ext->reserved != 0)
		return QCOW_FINDING_BITMAP_DIRECTORY;
	if (ext->directory_size < least || ext->directory_size > QK_MAX_BITMAP_DIRECTORY_BYTES)
		return QCOW_FINDING_BITMAP_DIRECTORY;
	if (!qk_is_table_place(g->cluster_bits, ext->directory_off, ext->directory_size))
		return QCOW_FINDING_BITMAP_DIRECTORY;
	return 0;
}

bool qk_bitmap_decode(struct qk_reader *r, struct qk_bitmap_entry *out)
{
	*out = (struct qk_bitmap_entry){0};
	size_t start = r->at;
	out->table_off.v = qk_read64(r);
	out->table_entries = qk_read32(r);
	out->flags = qk_read32(r);
	out->type = qk_read8(r);
	out->granularity_bits = qk_read8(r);
	size_t name_len = qk_read16(r);
	size_t extra_len = qk_read32(r);
	out->extra = qk_read_span(r, extra_len);
	out->name = qk_read_span(r, name_len);
	out->padding = qk_read_span(r, padding_bytes(r->at - start));
	return !r->bad;
}

static bool is_padding_zero(struct qk_span padding)
{
	for (size_t i = 0; i < padding.n; i++) {
		if (padding.p[i] != 0)
			return false;
	}
	return true;
}

static bool is_description_valid(const struct qk_bitmap_entry *e)
{
	return (e->flags & ~KNOWN_FLAGS) == 0 && e->type == TYPE_DIRTY &&
	       e->granularity_bits <= QK_MAX_BITMAP_GRANULARITY_BITS && e->name.n != 0 &&
	       is_padding_zero(e->padding);
}

unsigned qk_bitmap_judge(
	const struct qk_geometry *g, uint64_t disk_size, const struct qk_bitmap_entry *e)
{
	if (!is_description_valid(e))
		return QCOW_FINDING_BITMAP_DIRECTORY;
	uint64_t bytes = (uint64_t)e->table_entries * 8;
	if (bytes > QK_MAX_BITMAP_TABLE_BYTES ||
		!qk_is_table_place(g->cluster_bits, e->table_off.v, bytes))
		return QCOW_FINDING_BITMAP_TABLE;
	/* The size of a bitmap in use may be outdated: the specification says so. */
	if ((e->flags & QK_BITMAP_IN_USE) != 0)
		return 0;
	if (e->table_entries != qk_bitmap_table_entries(g, disk_size, e->granularity_bits))
		return QCOW_FINDING_BITMAP_TABLE;
	return 0;
}

bool qk_bitmap_is_usable(const struct qk_bitmap_entry *e)
{
	bool extra_allows = e->extra.n == 0 || (e->flags & QK_BITMAP_EXTRA_COMPATIBLE) != 0;
	return extra_allows && (e->flags & QK_BITMAP_IN_USE) == 0;
}

void qk_bitmap_encode(struct qk_writer *w, const struct qk_bitmap_entry *e)
{
	size_t start = w->at;
	QK_ASSERT_VOID(F6, e->name.n <= UINT16_MAX && e->extra.n <= UINT32_MAX);
	qk_write64(w, e->table_off.v);
	qk_write32(w, e->table_entries);
	qk_write32(w, e->flags);
	qk_write8(w, e->type);
	qk_write8(w, e->granularity_bits);
	qk_write16(w, (uint16_t)e->name.n);
	qk_write32(w, (uint32_t)e->extra.n);
	qk_write_bytes(w, e->extra.p, e->extra.n);
	qk_write_bytes(w, e->name.p, e->name.n);
	qk_write_zeros(w, padding_bytes(w->at - start));
}

uint64_t qk_bitmap_table_entries(
	const struct qk_geometry *g, uint64_t disk_size, unsigned granularity_bits)
{
	QK_ASSERT_VOID(F1, granularity_bits <= 63);
	uint64_t bits = qk_div_up(disk_size, UINT64_C(1) << granularity_bits);
	return qk_div_up(qk_div_up(bits, 8), g->cluster_size);
}

struct qk_bitmap_table_entry qk_bitmap_table_decode(const struct qk_geometry *g, uint64_t raw)
{
	struct qk_bitmap_table_entry e = {.off = {raw & QK_OFFSET_MASK}};
	uint64_t rest = raw & ~QK_OFFSET_MASK;
	e.all_ones = e.off.v == 0 && (rest & TABLE_ALL_ONES) != 0;
	uint64_t allowed = e.off.v == 0 ? TABLE_ALL_ONES : 0;
	if ((rest & ~allowed) != 0 || !qk_is_aligned(e.off.v, g->cluster_size))
		e.finding = QCOW_FINDING_BITMAP_TABLE;
	return e;
}

uint64_t qk_bitmap_table_encode(qk_hoff off, bool all_ones)
{
	QK_ASSERT_VOID(F4, (off.v & ~QK_OFFSET_MASK) == 0 && !(all_ones && off.v != 0));
	return off.v | (all_ones ? TABLE_ALL_ONES : 0);
}
