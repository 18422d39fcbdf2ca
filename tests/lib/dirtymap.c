/* SPDX-License-Identifier: MIT */
#include "dirtymap.h"

#include <string.h>

static uint64_t be(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;
	for (unsigned i = 0; i < bytes; i++)
		v = v << 8 | p[i];
	return v;
}

/* The data of the extension, NULL: none. */
static const uint8_t *find_extension(const uint8_t *image, uint64_t n)
{
	uint64_t at = n >= 104 ? be(image + 100, 4) : n;
	if (n < 104 || be(image + 4, 4) < 3 || (image[95] & 1) == 0)
		return NULL;
	while (at + 8 <= n && be(image + at, 4) != 0) {
		uint64_t len = be(image + at + 4, 4);
		if (be(image + at, 4) == 0x23852875 && len == 24 && at + 32 <= n)
			return image + at + 8;
		at += 8 + (len + 7) / 8 * 8;
	}
	return NULL;
}

bool qkt_dirtymap_get(const uint8_t *image, uint64_t n, uint32_t index, struct qkt_dirtymap *out)
{
	const uint8_t *ext = find_extension(image, n);
	if (ext == NULL || index >= be(ext, 4))
		return false;
	uint64_t at = be(ext + 16, 8), end = at + be(ext + 8, 8);
	for (uint32_t i = 0; end <= n && at + 24 <= end; i++) {
		const uint8_t *e = image + at;
		uint64_t name = be(e + 18, 2), extra = be(e + 20, 4);
		if (i != index) {
			at += (24 + name + extra + 7) / 8 * 8;
			continue;
		}
		*out = (struct qkt_dirtymap){.image = image,
			.n = n,
			.cluster_bytes = UINT64_C(1) << be(image + 20, 4),
			.table_off = be(e, 8),
			.table_entries = (uint32_t)be(e + 8, 4),
			.in_use = (e[15] & 1) != 0,
			.is_auto = (e[15] & 2) != 0,
			.granularity_bits = e[17],
			.name = e + 24 + extra,
			.name_bytes = (size_t)name};
		return true;
	}
	return false;
}

bool qkt_dirtymap_at(const struct qkt_dirtymap *map, uint64_t off)
{
	uint64_t bit = off >> map->granularity_bits;
	uint64_t idx = bit / 8 / map->cluster_bytes, byte = bit / 8 % map->cluster_bytes;
	uint64_t at = map->table_off + idx * 8;
	if (idx >= map->table_entries || at + 8 > map->n)
		return false;
	uint64_t entry = be(map->image + at, 8);
	uint64_t data = entry & UINT64_C(0x00fffffffffffe00);
	if (data == 0)
		return (entry & 1) != 0;
	return data + byte < map->n && (map->image[data + byte] >> (bit % 8) & 1) != 0;
}

uint64_t qkt_dirtymap_capacity(const struct qkt_dirtymap *map)
{
	return map->table_entries * map->cluster_bytes * 8 << map->granularity_bits;
}
