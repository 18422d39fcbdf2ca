/* SPDX-License-Identifier: MIT */
/*
 * bitmapext: bitmap directory entries and bitmap table entries. Pure. Specification: "Bitmaps".
 */
#ifndef QK_FORMAT_BITMAPEXT_H
#define QK_FORMAT_BITMAPEXT_H

#include "base/bytes.h"
#include "format/geometry.h"
#include "format/header.h"

#define QK_BITMAP_FIXED_BYTES	   24U
#define QK_BITMAP_IN_USE	   UINT32_C(1)
#define QK_BITMAP_AUTO		   UINT32_C(2)
#define QK_BITMAP_EXTRA_COMPATIBLE UINT32_C(4)

struct qk_bitmap_entry {
	qk_hoff table_off;
	uint32_t table_entries;
	uint32_t flags;
	uint8_t type;
	uint8_t granularity_bits;
	struct qk_span extra, name;
	struct qk_span padding; /* as stored; must be zeros. Encode writes zeros */
};

/* The extension's own numbers: 0 or BITMAP_DIRECTORY (count, sizes, place). */
unsigned qk_bitmaps_ext_judge(const struct qk_geometry *g, const struct qk_bitmaps_ext *ext);

/* Bytes of the entry with these lengths, padding included. */
uint64_t qk_bitmap_entry_bytes(uint64_t extra_len, uint64_t name_len);
/* Decode one entry at the reader and step over its padding. False (reader bad) where it overruns.
 * The values are not judged. Spans point into the reader's bytes. */
bool qk_bitmap_decode(struct qk_reader *r, struct qk_bitmap_entry *out);
/* 0 or BITMAP_DIRECTORY / BITMAP_TABLE. disk_size fixes how many table entries there must be
 * (not for a bitmap in use, whose size may be outdated). The end of the file is not judged. */
unsigned qk_bitmap_judge(
	const struct qk_geometry *g, uint64_t disk_size, const struct qk_bitmap_entry *e);
/* May its content be used: not in use, and no extra data that forbids it. */
bool qk_bitmap_is_usable(const struct qk_bitmap_entry *e);
void qk_bitmap_encode(struct qk_writer *w, const struct qk_bitmap_entry *e);

/* Table entries that a bitmap of a disk of this size has. */
uint64_t qk_bitmap_table_entries(
	const struct qk_geometry *g, uint64_t disk_size, unsigned granularity_bits);

struct qk_bitmap_table_entry {
	qk_hoff off; /* 0: no cluster */
	bool all_ones; /* without a cluster: reads as ones */
	unsigned finding; /* 0 or BITMAP_TABLE */
};
struct qk_bitmap_table_entry qk_bitmap_table_decode(const struct qk_geometry *g, uint64_t raw);
uint64_t qk_bitmap_table_encode(qk_hoff off, bool all_ones);

#endif
