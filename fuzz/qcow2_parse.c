/* SPDX-License-Identifier: MIT */
#include "qcow2_parse.h"

#include <string.h>

#define HEADER_V2_BYTES 72
#define L1_MAX		256 /* entries looked at; the mutator's images are small */
#define SNAPSHOTS_MAX	32
#define BITMAPS_MAX	32
#define L2_TABLES_MAX	512 /* visits, of one table or of many */

enum {
	EXT_END = 0,
	EXT_BITMAPS = 0x23852875,
	EXT_CRYPTO = 0x0537be77,
};

uint64_t parse_random(uint64_t *state)
{
	/* splitmix64 */
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

uint64_t parse_below(uint64_t *state, uint64_t n)
{
	return parse_random(state) % n;
}

uint64_t parse_get(const uint8_t *data, uint64_t off, unsigned bytes)
{
	uint64_t value = 0;
	for (unsigned i = 0; i < bytes; i++)
		value = value << 8 | data[off + i];
	return value;
}

void parse_put(uint8_t *data, uint64_t off, unsigned bytes, uint64_t value)
{
	for (unsigned i = bytes; i-- > 0; value >>= 8)
		data[off + i] = (uint8_t)value;
}

bool parse_within(const struct parsed *p, uint64_t off, uint64_t bytes)
{
	return off <= p->n && bytes <= p->n - off;
}

/* ---- what the walk leaves behind ---- */

static void add_field(struct parsed *p, enum class class, uint64_t off, unsigned bytes)
{
	struct field_list *list = &p->lists[class];
	if (!parse_within(p, off, bytes))
		return;
	unsigned at = list->n;
	list->seen++;
	if (list->n < FIELDS_PER_CLASS)
		list->n++;
	else if ((at = (unsigned)parse_below(&p->seed, list->seen)) >= FIELDS_PER_CLASS)
		return;
	list->fields[at] = (struct field){off, bytes};
}

static void add_place(struct parsed *p, uint64_t off)
{
	if (p->n_places < PLACES_MAX)
		p->places[p->n_places++] = off;
}

/* [off, +bytes) is referred to once more. */
static void count(struct parsed *p, uint64_t off, uint64_t bytes)
{
	if (p->refs == NULL || bytes == 0)
		return;
	uint64_t first = off >> p->cluster_bits;
	uint64_t end = off + bytes - 1 < off ? UINT64_MAX : (off + bytes - 1) >> p->cluster_bits;
	for (uint64_t c = first; c <= end && c < p->n_clusters; c++)
		p->refs[c]++;
}

/* ---- tables ---- */

void parse_compressed(const struct parsed *p, uint64_t entry, uint64_t *off, uint64_t *bytes)
{
	unsigned x = 62 - (p->cluster_bits - 8);
	uint64_t sectors = (entry & (ENTRY_COMPRESSED - 1)) >> x;
	*off = entry & ((UINT64_C(1) << x) - 1);
	*bytes = (sectors + 1) * 512 - *off % 512;
}

static void parse_l2_entry(struct parsed *p, uint64_t at)
{
	uint64_t entry = parse_get(p->data, at, 8), off, bytes;
	add_field(p, CLASS_L2, at, 8);
	if (p->extended_l2)
		add_field(p, CLASS_SUBCLUSTERS, at + 8, 8);
	if (entry & ENTRY_COMPRESSED) {
		parse_compressed(p, entry, &off, &bytes);
		count(p, off, bytes);
		for (uint64_t i = 0; i < 4 && i < bytes; i++)
			add_field(p, CLASS_STREAM, off + i, 1);
		add_field(p, CLASS_STREAM, off + parse_below(&p->seed, bytes), 1);
	} else if ((entry & ENTRY_OFFSET) != 0 && !p->data_file) {
		count(p, entry & ENTRY_OFFSET, p->cluster);
	}
}

static void parse_l2(struct parsed *p, uint64_t off)
{
	if (!parse_within(p, off, p->cluster) || p->n_l2_tables++ >= L2_TABLES_MAX)
		return;
	add_place(p, off);
	for (uint64_t i = 0; i < p->l2_entries; i++) {
		uint64_t at = off + i * p->entry_bytes;
		/* few of those that say nothing */
		if (parse_get(p->data, at, 8) != 0 || i < 2 || i + 1 == p->l2_entries)
			parse_l2_entry(p, at);
	}
}

static void parse_l1(struct parsed *p, enum class class, uint64_t off, uint64_t entries)
{
	add_place(p, off);
	count(p, off, entries * 8);
	for (uint64_t i = 0; i < entries && i < L1_MAX && parse_within(p, off, i * 8 + 8); i++) {
		uint64_t entry = parse_get(p->data, off + i * 8, 8);
		add_field(p, class, off + i * 8, 8);
		if ((entry & ENTRY_OFFSET) == 0)
			continue;
		count(p, entry & ENTRY_OFFSET, p->cluster);
		parse_l2(p, entry & ENTRY_OFFSET);
	}
}

static void parse_refcounts(struct parsed *p)
{
	uint64_t off = parse_get(p->data, 48, 8), clusters = parse_get(p->data, 56, 4);
	add_place(p, off);
	count(p, off, clusters << p->cluster_bits);
	uint64_t entries = clusters << p->cluster_bits >> 3;
	for (uint64_t i = 0; i < entries && i < L1_MAX && parse_within(p, off, i * 8 + 8); i++) {
		uint64_t block = parse_get(p->data, off + i * 8, 8) & ~UINT64_C(0x1ff);
		add_field(p, CLASS_REFCOUNT_TABLE, off + i * 8, 8);
		if (block == 0)
			continue;
		count(p, block, p->cluster);
		add_place(p, block);
		unsigned bytes = p->refcount_order < 3 ? 1 : 1U << (p->refcount_order - 3);
		for (uint64_t at = 0; at < p->cluster && at < 64 * bytes; at += bytes)
			add_field(p, CLASS_REFCOUNT_BLOCK, block + at, bytes);
	}
}

/* ---- snapshots: 40 bytes, extra data, id, name, padding to 8 ---- */

static void parse_snapshots(struct parsed *p)
{
	static const struct field fixed[] = {{0, 8}, {8, 4}, {12, 2}, {14, 2}, {16, 4}, {20, 4},
		{24, 8}, {32, 4}, {36, 4}, {40, 8}, {48, 8}, {56, 8}};
	uint64_t n = parse_get(p->data, 60, 4), start = parse_get(p->data, 64, 8), at = start;
	add_place(p, start);
	for (uint64_t i = 0; i < n && i < SNAPSHOTS_MAX && parse_within(p, at, 40); i++) {
		for (unsigned k = 0; k < sizeof(fixed) / sizeof(fixed[0]); k++)
			add_field(p, CLASS_SNAPSHOT, at + fixed[k].off, fixed[k].bytes);
		parse_l1(p, CLASS_SNAPSHOT_L1, parse_get(p->data, at, 8),
			parse_get(p->data, at + 8, 4));
		uint64_t bytes = 40 + parse_get(p->data, at + 36, 4) +
				 parse_get(p->data, at + 12, 2) + parse_get(p->data, at + 14, 2);
		at += (bytes + 7) / 8 * 8;
	}
	count(p, start, at - start);
}

/* ---- bitmaps: 24 bytes, extra data, name, padding to 8 ---- */

static void parse_bitmap_table(struct parsed *p, uint64_t off, uint64_t entries)
{
	add_place(p, off);
	count(p, off, entries * 8);
	for (uint64_t i = 0; i < entries && i < L1_MAX && parse_within(p, off, i * 8 + 8); i++) {
		uint64_t entry = parse_get(p->data, off + i * 8, 8);
		add_field(p, CLASS_BITMAP_TABLE, off + i * 8, 8);
		if ((entry & ENTRY_OFFSET) != 0)
			count(p, entry & ENTRY_OFFSET, p->cluster);
	}
}

static void parse_bitmaps(struct parsed *p, uint64_t ext)
{
	static const struct field fixed[] = {
		{0, 8}, {8, 4}, {12, 4}, {16, 1}, {17, 1}, {18, 2}, {20, 4}, {24, 1}, {25, 1}};
	uint64_t n = parse_get(p->data, ext, 4), bytes = parse_get(p->data, ext + 8, 8);
	uint64_t at = parse_get(p->data, ext + 16, 8);
	add_place(p, at);
	count(p, at, bytes);
	for (uint64_t i = 0; i < n && i < BITMAPS_MAX && parse_within(p, at, 24); i++) {
		for (unsigned k = 0; k < sizeof(fixed) / sizeof(fixed[0]); k++)
			add_field(p, CLASS_BITMAP_DIRECTORY, at + fixed[k].off, fixed[k].bytes);
		parse_bitmap_table(p, parse_get(p->data, at, 8), parse_get(p->data, at + 8, 4));
		uint64_t entry = 24 + parse_get(p->data, at + 20, 4) +
				 parse_get(p->data, at + 18, 2);
		at += (entry + 7) / 8 * 8;
	}
}

/* ---- the LUKS1 header: big-endian, key slots of 48 bytes from 208 on ---- */

static void parse_luks(struct parsed *p, uint64_t ext)
{
	static const struct field fixed[] = {{0, 4}, {6, 2}, {8, 4}, {40, 4}, {72, 4}, {104, 4},
		{108, 4}, {112, 8}, {132, 8}, {164, 4}};
	uint64_t off = parse_get(p->data, ext, 8);
	add_place(p, off);
	count(p, off, parse_get(p->data, ext + 8, 8));
	for (unsigned k = 0; off < p->n && k < sizeof(fixed) / sizeof(fixed[0]); k++)
		add_field(p, CLASS_LUKS, off + fixed[k].off, fixed[k].bytes);
	for (unsigned slot = 0; off < p->n && slot < 8; slot++) {
		uint64_t at = off + 208 + slot * 48;
		add_field(p, CLASS_LUKS, at, 4);
		add_field(p, CLASS_LUKS, at + 4, 4);
		add_field(p, CLASS_LUKS, at + 40, 4);
		add_field(p, CLASS_LUKS, at + 44, 4);
	}
}

/* ---- header ---- */

static void parse_extension_data(struct parsed *p, uint64_t type, uint64_t at, uint64_t len)
{
	unsigned step = type == EXT_BITMAPS || type == EXT_CRYPTO ? 4 : 1;
	for (uint64_t i = 0; i < len && i < 48; i += step)
		add_field(p, CLASS_EXTENSION, at + i, step);
	if (type == EXT_BITMAPS && len >= 24 && parse_within(p, at, 24))
		parse_bitmaps(p, at);
	if (type == EXT_CRYPTO && len >= 16 && parse_within(p, at, 16))
		parse_luks(p, at);
}

static void parse_extensions(struct parsed *p, uint64_t at)
{
	for (unsigned i = 0; i < 16 && at < p->cluster && parse_within(p, at, 8); i++) {
		uint64_t type = parse_get(p->data, at, 4), len = parse_get(p->data, at + 4, 4);
		add_field(p, CLASS_EXTENSION, at, 4);
		add_field(p, CLASS_EXTENSION, at + 4, 4);
		if (type == EXT_END)
			return;
		parse_extension_data(p, type, at + 8, len);
		at += 8 + (len + 7) / 8 * 8;
	}
}

static void parse_header_fields(struct parsed *p)
{
	static const struct field v2[] = {{0, 4}, {4, 4}, {8, 8}, {16, 4}, {20, 4}, {24, 8},
		{32, 4}, {36, 4}, {40, 8}, {48, 8}, {56, 4}, {60, 4}, {64, 8}};
	static const struct field v3[] = {
		{72, 8}, {80, 8}, {88, 8}, {96, 4}, {100, 4}, {104, 1}, {105, 1}, {106, 2}};
	for (unsigned k = 0; k < sizeof(v2) / sizeof(v2[0]); k++)
		add_field(p, CLASS_HEADER, v2[k].off, v2[k].bytes);
	for (unsigned k = 0; p->v3 && k < sizeof(v3) / sizeof(v3[0]); k++)
		add_field(p, CLASS_HEADER, v3[k].off, v3[k].bytes);
	uint64_t name = parse_get(p->data, 8, 8), bytes = parse_get(p->data, 16, 4);
	for (uint64_t i = 0; name != 0 && i < bytes && i < 32; i++)
		add_field(p, CLASS_HEADER, name + i, 1);
}

/* Geometry only. */
static bool parse_geometry(struct parsed *p)
{
	if (p->n < HEADER_V2_BYTES || memcmp(p->data, "QFI\xfb", 4) != 0)
		return false;
	uint64_t bits = parse_get(p->data, 20, 4), order = 4;
	p->v3 = parse_get(p->data, 4, 4) == 3 && p->n >= 104;
	if (bits < 9 || bits > 21)
		return false;
	if (p->v3) {
		order = parse_get(p->data, 96, 4);
		p->extended_l2 = (parse_get(p->data, 72, 8) & 16) != 0;
		p->data_file = (parse_get(p->data, 72, 8) & 4) != 0;
	}
	p->cluster_bits = (unsigned)bits;
	p->cluster = UINT64_C(1) << bits;
	p->refcount_order = order <= 6 ? (unsigned)order : 4;
	p->entry_bytes = p->extended_l2 ? 16 : 8;
	p->l2_entries = p->cluster / p->entry_bytes;
	p->n_clusters = (p->n + p->cluster - 1) >> bits;
	return true;
}

bool parse_image(struct parsed *p, uint8_t *data, size_t n, uint64_t seed, uint32_t *refs)
{
	memset(p, 0, sizeof(*p));
	p->data = data;
	p->n = n;
	p->seed = seed;
	p->refs = refs;
	if (!parse_geometry(p))
		return false;
	count(p, 0, 1);
	parse_header_fields(p);
	parse_extensions(p, p->v3 ? parse_get(data, 100, 4) : HEADER_V2_BYTES);
	parse_refcounts(p);
	parse_l1(p, CLASS_L1, parse_get(data, 40, 8), parse_get(data, 36, 4));
	parse_snapshots(p);
	return true;
}
