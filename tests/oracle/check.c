/* SPDX-License-Identifier: MIT */
/*
 * Section "Host cluster management": counts the references to each cluster of the file, from
 * everything that the specification lets refer to one, and compares with the stored refcounts.
 * An L2 table is read once, however many L1 entries lead to it; its entries then count as often.
 */
#include "oracle.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define LINES_MAX 1000

/* Who refers to a cluster. Only L2 tables, data and compressed data may be referred to twice. */
enum user {
	HEADER,
	REFCOUNT_TABLE,
	REFCOUNT_BLOCK,
	L1_TABLE,
	SNAPSHOT_L1_TABLE,
	SNAPSHOT_TABLE,
	BITMAP_DIRECTORY,
	BITMAP_TABLE,
	BITMAP_DATA,
	ENCRYPTION_HEADER,
	L2_TABLE,
	GUEST_DATA,
	COMPRESSED_DATA,
};
#define MAY_BE_SHARED (1u << L2_TABLE | 1u << GUEST_DATA | 1u << COMPRESSED_DATA)
/* The specification lets plain and compressed data lie in one cluster: the refcount counts both, and whoever
 * writes copies first. */
#define DATA	     (1u << GUEST_DATA | 1u << COMPRESSED_DATA)
#define OVERLAP_TOLD (1u << 15)

struct count {
	struct image *img;
	uint64_t n; /* clusters of the file, the last one perhaps cut short */
	uint64_t *references, *stored;
	uint16_t *users; /* bits of enum user */
	uint32_t *l2_from_active, *l2_from_all; /* L1 entries that lead to an L2 table here */
	uint64_t n_lines;
	struct verdict *v;
	FILE *out;
};

__attribute__((format(printf, 3, 4))) static void tell(
	struct count *c, uint64_t *counter, const char *format, ...)
{
	va_list args;
	bool is_error = counter != &c->v->n_leaks && counter != &c->v->n_past_end;
	(*counter)++;
	if (is_error && !c->v->first[0]) {
		va_start(args, format);
		vsnprintf(c->v->first, sizeof c->v->first, format, args);
		va_end(args);
	}
	if (c->n_lines++ >= LINES_MAX || !c->out)
		return;
	va_start(args, format);
	vfprintf(c->out, format, args);
	va_end(args);
	fputc('\n', c->out);
}

static void refer(struct count *c, enum user user, uint64_t cluster, uint64_t times)
{
	unsigned bit = 1u << user, users = c->users[cluster];
	bool alone = !(users & ~(OVERLAP_TOLD | bit)) && (!users || (bit & MAY_BE_SHARED));
	alone = alone || !((users | bit) & ~(OVERLAP_TOLD | DATA));
	c->references[cluster] += times;
	if (!alone && !(users & OVERLAP_TOLD)) {
		tell(c, &c->v->n_overlaps, "overlap cluster %" PRIu64 " users %#x and %#x", cluster,
			users, bit);
		users |= OVERLAP_TOLD;
	}
	c->users[cluster] = (uint16_t)(users | bit);
}

/* A structure of its own clusters. */
static bool refer_range(struct count *c, enum user user, uint64_t off, uint64_t bytes)
{
	uint64_t cs = c->img->cluster_bytes, first = off / cs, n = bytes / cs + (bytes % cs != 0);
	if (off % cs || first > c->n || n > c->n - first) {
		tell(c, &c->v->n_bad,
			"bad structure of kind %u: %" PRIu64 " bytes at %#" PRIx64
			", not aligned or past the end of the file",
			(unsigned)user, bytes, off);
		return false;
	}
	for (uint64_t i = 0; i < n; i++)
		refer(c, user, first + i, 1);
	return true;
}

static bool is_cluster(const struct count *c, uint64_t off)
{
	return off % c->img->cluster_bytes == 0 && off / c->img->cluster_bytes < c->n;
}

/* ---- stored refcounts ---- */

static uint64_t refcount_in(const struct image *img, const uint8_t *block, uint64_t i)
{
	unsigned bits = 1u << img->refcount_order;
	if (bits >= 8)
		return be(block + i * (bits / 8), bits / 8);
	uint64_t bit = i * bits; /* bit 0 of a byte is its least significant one */
	return ((unsigned)block[bit / 8] >> (bit % 8)) & ((1u << bits) - 1);
}

static void load_block(struct count *c, uint64_t index, uint64_t off, uint8_t *block)
{
	struct image *img = c->img;
	uint64_t n_entries = img->cluster_bytes * 8 >> img->refcount_order;
	if (read_at(&img->file, block, img->cluster_bytes, off) != img->cluster_bytes)
		tell(c, &c->v->n_bad, "bad refcount block at %#" PRIx64 ": cut short", off);
	for (uint64_t i = 0; i < n_entries; i++) {
		uint64_t refcount = refcount_in(img, block, i), cluster = index * n_entries + i;
		if (!refcount)
			continue;
		if (cluster < c->n)
			c->stored[cluster] = refcount;
		else
			tell(c, &c->v->n_past_end, /* no space is lost */
				"past-end cluster %" PRIu64 " stored %" PRIu64, cluster, refcount);
	}
}

static void load_refcounts(struct count *c)
{
	struct image *img = c->img;
	uint64_t n_words = img->n_rt_clusters * (img->cluster_bytes / 8);
	if (!refer_range(c, REFCOUNT_TABLE, img->rt_off, n_words * 8))
		return;
	uint64_t *table = read_words(img, img->rt_off, n_words);
	uint8_t *block = take(img->cluster_bytes, 1);
	for (uint64_t i = 0; i < n_words; i++) {
		if (!table[i])
			continue;
		if (table[i] & 0x1ff || !is_cluster(c, table[i])) {
			tell(c, &c->v->n_bad, "bad refcount table entry %" PRIu64 ": %#" PRIx64, i,
				table[i]);
			continue;
		}
		bool seen = c->users[table[i] >> img->cluster_bits] & 1u << REFCOUNT_BLOCK;
		refer(c, REFCOUNT_BLOCK, table[i] >> img->cluster_bits, 1);
		if (!seen)
			load_block(c, i, table[i], block);
	}
}

/* ---- guest clusters ---- */

/* Bit 63 says that the refcount, as it is stored, is one. */
static void judge_copied(struct count *c, const char *what, uint64_t entry, uint64_t cluster)
{
	bool one = c->stored[cluster] == 1;
	if ((entry & ENTRY_COPIED) && !one)
		tell(c, &c->v->n_copied_set,
			"copied set in %s entry %#" PRIx64 ", refcount %" PRIu64, what, entry,
			c->stored[cluster]);
	else if (!(entry & ENTRY_COPIED) && one)
		tell(c, &c->v->n_copied_missing, "copied missing in %s entry %#" PRIx64, what,
			entry);
}

static void bad_entry(struct count *c, const char *why, uint64_t entry, uint64_t bits)
{
	tell(c, &c->v->n_bad, "bad L2 entry %#" PRIx64 " %#" PRIx64 ": %s", entry, bits, why);
}

static void count_compressed(struct count *c, uint64_t entry, uint64_t bits, uint64_t times)
{
	uint64_t off, bytes, cs = c->img->cluster_bytes;
	compressed_extent(c->img, entry, &off, &bytes);
	if (entry & ENTRY_COPIED)
		bad_entry(c, "compressed and COPIED", entry, bits);
	if (bits)
		bad_entry(c, "compressed with a subcluster bitmap", entry, bits);
	uint64_t first = off / cs, last = (off + bytes - 1) / cs;
	if (c->img->has_data_file)
		bad_entry(c, "compressed beside a data file", entry, bits);
	else if (off >> 56 || last >= c->n)
		bad_entry(c, "compressed data past the end of the file", entry, bits);
	else
		for (uint64_t i = first; i <= last; i++)
			refer(c, COMPRESSED_DATA, i, times);
}

static void count_entry(struct count *c, uint64_t entry, uint64_t bits, uint64_t times, bool active)
{
	if (entry & ENTRY_COMPRESSED) {
		count_compressed(c, entry, bits, times);
		return;
	}
	uint64_t host = entry & ENTRY_OFFSET;
	const char *fault = entry_fault(c->img, entry, bits);
	if (fault)
		bad_entry(c, fault, entry, bits);
	if (!host || host % c->img->cluster_bytes)
		return;
	if (c->img->has_data_file) { /* not refcounted, and implicitly 1 */
		if (!(entry & ENTRY_COPIED))
			tell(c, &c->v->n_copied_missing,
				"copied missing in data file entry %#" PRIx64, entry);
		return;
	}
	if (!is_cluster(c, host)) {
		bad_entry(c, "past the end of the file", entry, bits);
		return;
	}
	refer(c, GUEST_DATA, host / c->img->cluster_bytes, times);
	if (active)
		judge_copied(c, "L2", entry, host / c->img->cluster_bytes);
}

static void count_l2_table(struct count *c, uint64_t cluster, uint64_t *words)
{
	struct image *img = c->img;
	unsigned step = img->extended_l2 ? 2 : 1;
	uint64_t times = c->l2_from_all[cluster];
	uint8_t *bytes = (uint8_t *)words;
	if (read_at(&img->file, words, img->cluster_bytes, cluster << img->cluster_bits) !=
		img->cluster_bytes)
		tell(c, &c->v->n_bad, "bad L2 table in cluster %" PRIu64 ": cut short", cluster);
	for (uint64_t i = 0; i < img->n_l2; i++) {
		uint64_t entry = be(bytes + i * step * 8, 8);
		uint64_t bits = img->extended_l2 ? be(bytes + i * 16 + 8, 8) : 0;
		count_entry(c, entry, bits, times, c->l2_from_active[cluster]);
	}
}

static void count_l1(struct count *c, uint64_t off, uint64_t n, bool active)
{
	if (!refer_range(c, active ? L1_TABLE : SNAPSHOT_L1_TABLE, off, n * 8))
		return;
	const uint64_t *l1 = read_words(c->img, off, n);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t l2_off = l1[i] & ENTRY_OFFSET;
		if (l1[i] & ~(ENTRY_OFFSET | ENTRY_COPIED) || (l1[i] && !l2_off) ||
			!is_cluster(c, l2_off)) {
			tell(c, &c->v->n_bad,
				"bad L1 entry %" PRIu64 " of the table at %#" PRIx64 ": %#" PRIx64,
				i, off, l1[i]);
			continue;
		}
		if (!l2_off)
			continue;
		uint64_t cluster = l2_off / c->img->cluster_bytes;
		refer(c, L2_TABLE, cluster, 1);
		c->l2_from_all[cluster]++;
		if (!active)
			continue;
		judge_copied(c, "L1", l1[i], cluster);
		if (c->l2_from_active[cluster]++ == 1)
			tell(c, &c->v->n_overlaps,
				"overlap L2 table in cluster %" PRIu64 " is in one L1 table twice",
				cluster);
	}
}

/* In a data file a guest cluster lies where it lies for the guest. */
static void judge_data_file(struct count *c, uint64_t *words)
{
	struct image *img = c->img;
	const uint64_t *l1 = read_words(img, img->l1_off, img->n_l1);
	unsigned step = img->extended_l2 ? 2 : 1;
	if (img->n_snapshots)
		tell(c, &c->v->n_bad, "bad: snapshots beside a data file");
	for (uint64_t i = 0; i < img->n_l1; i++) {
		uint64_t off = l1[i] & ENTRY_OFFSET;
		if (!off || !is_cluster(c, off) || c->l2_from_active[off / img->cluster_bytes] != 1)
			continue;
		read_at(&img->file, words, img->cluster_bytes, off);
		for (uint64_t j = 0; j < img->n_l2; j++) {
			uint64_t entry = be((uint8_t *)words + j * step * 8, 8);
			uint64_t guest = (i * img->n_l2 + j) << img->cluster_bits;
			bool allocated = entry & (ENTRY_OFFSET | ENTRY_COPIED);
			if (allocated && (entry & ENTRY_OFFSET) != guest)
				bad_entry(c, "not where the guest has it", entry, guest);
		}
	}
}

/* ---- bitmaps ---- */

static void count_bitmap(struct count *c, const struct bitmap *b)
{
	struct image *img = c->img;
	if (!refer_range(c, BITMAP_TABLE, b->table_off, (uint64_t)b->n_table * 8))
		return;
	const uint64_t *table = read_words(img, b->table_off, b->n_table);
	uint64_t granularity = UINT64_C(1) << b->granularity_bits;
	uint64_t n_bits = img->disk_bytes / granularity + (img->disk_bytes % granularity != 0);
	uint64_t n_bytes = n_bits / 8 + (n_bits % 8 != 0);
	if (!(b->flags & 1) &&
		b->n_table != (n_bytes + img->cluster_bytes - 1) / img->cluster_bytes)
		tell(c, &c->v->n_bad, "bad bitmap: %u entries for %" PRIu64 " bytes", b->n_table,
			n_bytes);
	for (uint32_t i = 0; i < b->n_table; i++) {
		uint64_t off = table[i] & ENTRY_OFFSET;
		if (table[i] & ~(ENTRY_OFFSET | 1) || (off && table[i] & 1) || !is_cluster(c, off))
			tell(c, &c->v->n_bad, "bad bitmap table entry %u: %#" PRIx64, i, table[i]);
		else if (off)
			refer(c, BITMAP_DATA, off / img->cluster_bytes, 1);
	}
}

static void count_bitmaps(struct count *c)
{
	struct image *img = c->img;
	if (img->bitmaps_error) {
		tell(c, &c->v->n_bad, "bad bitmaps: %s", img->bitmaps_error);
		return;
	}
	if (!img->bitmaps) /* not there, or not to be relied on */
		return;
	refer_range(c, BITMAP_DIRECTORY, img->bitmap_dir_off, img->bitmap_dir_bytes);
	for (uint32_t i = 0; i < img->n_bitmaps; i++)
		count_bitmap(c, &img->bitmaps[i]);
}

/* ---- all of it ---- */

static void count_snapshots(struct count *c)
{
	struct image *img = c->img;
	if (img->snapshots_error) {
		tell(c, &c->v->n_bad, "bad snapshot table: %s", img->snapshots_error);
		return;
	}
	refer_range(c, SNAPSHOT_TABLE, img->snapshots_off, img->snapshots_bytes);
	for (uint32_t i = 0; i < img->n_snapshots; i++)
		count_l1(c, img->snapshots[i].l1_off, img->snapshots[i].n_l1, false);
}

static void compare(struct count *c)
{
	for (uint64_t i = 0; i < c->n; i++) {
		bool under = c->stored[i] < c->references[i];
		if (c->stored[i] == c->references[i])
			continue;
		tell(c, under ? &c->v->n_under : &c->v->n_leaks,
			"%s cluster %" PRIu64 " stored %" PRIu64 " references %" PRIu64,
			under ? "under-count" : "leak", i, c->stored[i], c->references[i]);
	}
}

int check(struct image *img, struct verdict *v, FILE *out)
{
	struct count count = {.img = img, .v = v, .out = out}, *c = &count;
	*v = (struct verdict){0};
	c->n = img->file_bytes / img->cluster_bytes + (img->file_bytes % img->cluster_bytes != 0);
	c->references = take(c->n, sizeof *c->references);
	c->stored = take(c->n, sizeof *c->stored);
	c->users = take(c->n, sizeof *c->users);
	c->l2_from_active = take(c->n, sizeof *c->l2_from_active);
	c->l2_from_all = take(c->n, sizeof *c->l2_from_all);
	uint64_t *words = take(img->cluster_bytes, 1);

	refer(c, HEADER, 0, 1);
	load_refcounts(c);
	if (img->crypt_method == 2)
		refer_range(c, ENCRYPTION_HEADER, img->crypto_off, img->crypto_bytes);
	count_l1(c, img->l1_off, img->n_l1, true);
	count_snapshots(c);
	for (uint64_t i = 0; i < c->n; i++)
		if (c->l2_from_all[i])
			count_l2_table(c, i, words);
	if (img->has_data_file && c->references[img->l1_off / img->cluster_bytes])
		judge_data_file(c, words);
	count_bitmaps(c);
	compare(c);

	v->n_clusters = c->n;
	if (out && c->n_lines > LINES_MAX)
		fprintf(out, "%" PRIu64 " lines more\n", c->n_lines - LINES_MAX);
	if (out)
		fprintf(out,
			"clusters %" PRIu64 " under-counts %" PRIu64 " leaks %" PRIu64
			" copied-set %" PRIu64 " copied-missing %" PRIu64 " overlaps %" PRIu64
			" bad %" PRIu64 " past-end %" PRIu64 "\n",
			v->n_clusters, v->n_under, v->n_leaks, v->n_copied_set, v->n_copied_missing,
			v->n_overlaps, v->n_bad, v->n_past_end);
	uint64_t n_errors = v->n_under + v->n_copied_set + v->n_overlaps + v->n_bad;
	return n_errors || v->n_copied_missing ? 2 : v->n_leaks ? 3 : 0;
}
