/* SPDX-License-Identifier: MIT */
#include "mutate.h"

#include <stdlib.h>
#include <string.h>

#include "qcow2_parse.h"

/* ---- one field ---- */

static uint64_t ones(unsigned bytes)
{
	return bytes == 8 ? UINT64_MAX : (UINT64_C(1) << bytes * 8) - 1;
}

/* An offset that means something: a structure, the end of the file, a cluster; or close to it. */
static uint64_t some_offset(struct parsed *p)
{
	uint64_t off = p->n_places != 0 ? p->places[parse_below(&p->seed, p->n_places)] : 0;
	switch (parse_below(&p->seed, 8)) {
	case 0:
		off = p->n;
		break;
	case 1:
		off = (p->n + p->cluster - 1) & ~(p->cluster - 1);
		break;
	case 2:
	case 3:
		off = parse_below(&p->seed, p->n_clusters + 2) << p->cluster_bits;
		break;
	default:
		break;
	}
	switch (parse_below(&p->seed, 10)) {
	case 0:
		return off + p->cluster;
	case 1:
		return off - p->cluster;
	case 2:
		return off + 512;
	case 3:
		return off + 1;
	default:
		return off;
	}
}

static uint64_t new_number(struct parsed *p, uint64_t old, unsigned bytes)
{
	uint64_t *s = &p->seed;
	switch (parse_below(s, 10)) {
	case 0:
		return 0;
	case 1:
		return 1;
	case 2:
		return ones(bytes);
	case 3:
		return ones(bytes) >> 1;
	case 4:
		return old + 1;
	case 5:
		return old - 1;
	case 6:
		return old << 1;
	case 7:
		return old >> 1;
	case 8:
		return parse_random(s) >> parse_below(s, 64);
	default:
		return old ^ UINT64_C(1) << parse_below(s, bytes * 8);
	}
}

/* Entries keep their flags more often than not: an offset alone reaches further. */
static uint64_t new_entry(struct parsed *p, uint64_t old)
{
	uint64_t flags = old & ~ENTRY_OFFSET;
	switch (parse_below(&p->seed, 9)) {
	case 0:
		return old ^ ENTRY_COPIED;
	case 1:
		return old ^ ENTRY_COMPRESSED;
	case 2:
		return old ^ 1;
	case 3:
	case 4:
	case 5:
		return flags | (some_offset(p) & ENTRY_OFFSET);
	case 6:
		return some_offset(p);
	default:
		return new_number(p, old, 8);
	}
}

static bool is_entry(enum class class)
{
	return class == CLASS_L1 || class == CLASS_L2 || class == CLASS_SNAPSHOT_L1 ||
	       class == CLASS_BITMAP_TABLE;
}

static void mutate_field(struct parsed *p, enum class class)
{
	const struct field_list *list = &p->lists[class];
	const struct field *f = &list->fields[parse_below(&p->seed, list->n)];
	const struct field *other = &list->fields[parse_below(&p->seed, list->n)];
	uint64_t old = parse_get(p->data, f->off, f->bytes), value;
	uint64_t how = parse_below(&p->seed, 8);
	if (how == 0 && other->bytes == f->bytes)
		value = parse_get(p->data, other->off, other->bytes);
	else if (is_entry(class))
		value = new_entry(p, old);
	else if (how < 4 && f->bytes == 8)
		value = some_offset(p);
	else
		value = new_number(p, old, f->bytes);
	parse_put(p->data, f->off, f->bytes, value);
}

/* A field of a class that there is: all classes alike, however many fields they have. */
static void mutate_some_field(struct parsed *p)
{
	for (unsigned i = 0; i < 4 * N_CLASSES; i++) {
		enum class class = (enum class)parse_below(&p->seed, N_CLASSES);
		if (p->lists[class].n != 0) {
			mutate_field(p, class);
			return;
		}
	}
}

/* ---- whole clusters, and the length ---- */

static void mutate_cluster(struct parsed *p)
{
	uint64_t to = parse_below(&p->seed, p->n_clusters) << p->cluster_bits;
	uint64_t from = parse_below(&p->seed, p->n_clusters) << p->cluster_bits;
	uint64_t bytes = p->n - to < p->cluster ? p->n - to : p->cluster;
	uint64_t how = parse_below(&p->seed, 3);
	if (how == 0)
		memset(p->data + to, 0, bytes);
	else if (how == 1)
		memset(p->data + to, 0xff, bytes);
	else if (parse_within(p, from, bytes))
		memmove(p->data + to, p->data + from, bytes);
}

static size_t mutate_length(struct parsed *p, size_t max)
{
	uint64_t n = p->n;
	switch (parse_below(&p->seed, 3)) {
	case 0:
		n = parse_below(&p->seed, p->n_clusters + 2) << p->cluster_bits;
		break;
	case 1:
		n -= parse_below(&p->seed, p->cluster);
		break;
	default:
		n += parse_below(&p->seed, 2 * p->cluster);
		break;
	}
	if (n > max)
		n = max;
	if (n > p->n)
		memset(p->data + p->n, 0, n - p->n);
	return n != 0 ? n : 1;
}

/* ---- refcounts ---- */

static void store_refcount(struct parsed *p, uint64_t block, uint64_t index, uint64_t value)
{
	unsigned bits = 1U << p->refcount_order;
	if (bits < 64 && value >> bits != 0)
		value = (UINT64_C(1) << bits) - 1;
	if (bits >= 8) {
		parse_put(p->data, block + index * (bits / 8), bits / 8, value);
		return;
	}
	unsigned shift = (unsigned)(index * bits % 8);
	uint8_t *byte = p->data + block + index * bits / 8;
	*byte = (uint8_t)((*byte & ~(((1U << bits) - 1) << shift)) | (unsigned)value << shift);
}

static void store_refcounts(struct parsed *p)
{
	uint64_t table = parse_get(p->data, 48, 8), per_block = p->cluster * 8 >> p->refcount_order;
	uint64_t entries = parse_get(p->data, 56, 4) << p->cluster_bits >> 3;
	for (uint64_t c = 0; c < p->n_clusters; c++) {
		uint64_t i = c / per_block;
		if (i >= entries || !parse_within(p, table, i * 8 + 8))
			return;
		uint64_t block = parse_get(p->data, table + i * 8, 8) & ~UINT64_C(0x1ff);
		if (block != 0 && parse_within(p, block, p->cluster))
			store_refcount(p, block, c % per_block, p->refs[c]);
	}
}

static bool is_single(const struct parsed *p, uint64_t entry)
{
	uint64_t c = (entry & ENTRY_OFFSET) >> p->cluster_bits;
	return (entry & ENTRY_OFFSET) != 0 && c < p->n_clusters && p->refs[c] == 1;
}

static void set_copied(struct parsed *p, uint64_t at)
{
	uint64_t entry = parse_get(p->data, at, 8) & ~ENTRY_COPIED;
	bool plain = (entry & ENTRY_COMPRESSED) == 0;
	if (plain && (is_single(p, entry) || (p->data_file && (entry & ENTRY_OFFSET) != 0)))
		entry |= ENTRY_COPIED;
	parse_put(p->data, at, 8, entry);
}

static void set_all_copied(struct parsed *p)
{
	uint64_t l1 = parse_get(p->data, 40, 8), n = parse_get(p->data, 36, 4);
	for (uint64_t i = 0; i < n && i < 256 && parse_within(p, l1, i * 8 + 8); i++) {
		uint64_t l2 = parse_get(p->data, l1 + i * 8, 8) & ENTRY_OFFSET;
		if (l2 == 0)
			continue;
		uint64_t entry = parse_get(p->data, l1 + i * 8, 8) & ~ENTRY_COPIED;
		parse_put(
			p->data, l1 + i * 8, 8, is_single(p, entry) ? entry | ENTRY_COPIED : entry);
		for (uint64_t k = 0; k < p->l2_entries && parse_within(p, l2, p->cluster); k++)
			set_copied(p, l2 + k * p->entry_bytes);
	}
}

void mutate_fix_refcounts(uint8_t *data, size_t n)
{
	struct parsed p;
	uint32_t *refs = calloc(n / 512 + 2, sizeof(*refs));
	if (refs != NULL && parse_image(&p, data, n, 0, refs)) {
		store_refcounts(&p);
		set_all_copied(&p);
	}
	free(refs);
}

/* ---- all of it ---- */

static size_t mutate_bytes(uint8_t *data, size_t n, uint64_t seed)
{
	for (uint64_t i = parse_below(&seed, 4); n != 0 && i < 4; i++)
		data[parse_below(&seed, n)] = (uint8_t)parse_random(&seed);
	return n;
}

size_t mutate_image(uint8_t *data, size_t n, size_t max, uint64_t seed)
{
	struct parsed p;
	if (!parse_image(&p, data, n, seed, NULL))
		return mutate_bytes(data, n, seed);
	uint64_t how = parse_below(&p.seed, 16);
	for (uint64_t i = 1 + parse_below(&p.seed, 4) * parse_below(&p.seed, 2); i-- > 0;)
		mutate_some_field(&p);
	if (how == 0)
		mutate_cluster(&p);
	else if (how == 1)
		n = mutate_length(&p, max);
	if (parse_below(&p.seed, 2) == 0)
		mutate_fix_refcounts(data, n);
	return n;
}
