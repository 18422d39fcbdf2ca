/* SPDX-License-Identifier: MIT */
/*
 * dirtymap: the persistent bitmaps of an image as bytes in memory, read by the specification ("Bitmaps") alone: an
 * oracle that shares nothing with the library.
 */
#ifndef QKT_DIRTYMAP_H
#define QKT_DIRTYMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qkt_dirtymap {
	const uint8_t *image;
	uint64_t n; /* bytes of it */
	uint64_t cluster_bytes, table_off;
	uint32_t table_entries;
	bool in_use, is_auto;
	unsigned granularity_bits;
	const uint8_t *name;
	size_t name_bytes;
};

/* Bitmap `index` of the directory; false where there is none, or the image holds none that may be trusted. */
bool qkt_dirtymap_get(const uint8_t *image, uint64_t n, uint32_t index, struct qkt_dirtymap *out);

/* Is the granule of guest offset `off` marked? What lies outside of the file is not. */
bool qkt_dirtymap_at(const struct qkt_dirtymap *map, uint64_t off);

/* Guest bytes that its table could speak of: bits past the end of the disk are tail bits, and must be clear. */
uint64_t qkt_dirtymap_capacity(const struct qkt_dirtymap *map);

#endif
