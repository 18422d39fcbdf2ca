/* SPDX-License-Identifier: MIT */
/*
 * bitmapext: bitmap directory entries and bitmap table entries. Pure. Specification: "Bitmaps".
 */
#ifndef QK_FORMAT_BITMAPEXT_H
#define QK_FORMAT_BITMAPEXT_H

#include "base/bytes.h"
#include "format/geometry.h"

#define QK_BITMAP_FIXED_BYTES 24U
#define QK_BITMAP_IN_USE     UINT32_C(1)
#define QK_BITMAP_AUTO	     UINT32_C(2)
#define QK_BITMAP_EXTRA_COMPATIBLE UINT32_C(4)

struct qk_bitmap_entry {
	qk_hoff table_off;
	uint32_t table_entries;
	uint32_t flags;
	uint8_t type;
	uint8_t granularity_bits;
	struct qk_span extra, name;
};

uint64_t qk_bitmap_entry_bytes(uint64_t extra_len, uint64_t name_len);
bool qk_bitmap_decode(struct qk_reader *r, struct qk_bitmap_entry *out);
/* 0 or BITMAP_DIRECTORY / BITMAP_TABLE. disk_size fixes how many table entries there must be. */
unsigned qk_bitmap_judge(
	const struct qk_geometry *g, uint64_t disk_size, const struct qk_bitmap_entry *e);
void qk_bitmap_encode(struct qk_writer *w, const struct qk_bitmap_entry *e);

/* Table entries that a bitmap of a disk of this size has. */
uint64_t qk_bitmap_table_entries(
	const struct qk_geometry *g, uint64_t disk_size, unsigned granularity_bits);

struct qk_bitmap_table_entry {
	qk_hoff off;   /* 0: no cluster */
	bool all_ones; /* without a cluster: reads as ones */
	unsigned finding; /* 0 or BITMAP_TABLE */
};
struct qk_bitmap_table_entry qk_bitmap_table_decode(const struct qk_geometry *g, uint64_t raw);

#endif
