/* SPDX-License-Identifier: MIT */
/*
 * l1l2: the entries of L1 tables, L2 tables, extended L2 tables and refcount tables: bits to values
 * and back. Pure; a value is judged here and nowhere else. Specification: "Cluster mapping",
 * "Extended L2 Entries", "Host cluster management".
 */
#ifndef QK_FORMAT_L1L2_H
#define QK_FORMAT_L1L2_H

#include "base/bytes.h"
#include "format/geometry.h"

/*
 * With extended L2 entries the type says what is true of the whole cluster, and alloc and zero the
 * rest:
 *   NORMAL, ZERO_ALLOC      there is a host cluster (qk_l2_has_host)
 *   UNALLOCATED, ZERO       there is none
 *   ZERO, ZERO_ALLOC        all 32 subclusters read as zeros
 *   UNALLOCATED             subclusters in `zero` read as zeros, the others from the backing file
 * qk_l2_subcluster answers for one subcluster, and for standard entries too.
 */
enum qk_l2_type {
	QK_L2_UNALLOCATED, /* nothing here: ask the backing file */
	QK_L2_ZERO, /* reads as zeros, no host cluster */
	QK_L2_ZERO_ALLOC, /* reads as zeros, a host cluster is preallocated */
	QK_L2_NORMAL, /* plain data; with extended L2, see alloc and zero */
	QK_L2_COMPRESSED
};

struct qk_l1_entry {
	qk_hoff l2_off; /* 0: no L2 table */
	bool copied;
	unsigned finding; /* 0, or why the entry cannot be used */
};

struct qk_l2_entry {
	enum qk_l2_type type;
	qk_hoff host_off; /* NORMAL, ZERO_ALLOC: cluster; COMPRESSED: first byte */
	bool copied;
	uint32_t alloc, zero; /* subcluster bitmaps, extended L2 only. 0 otherwise */
	uint32_t compressed_bytes; /* from host_off to the end of the last sector named */
	unsigned finding; /* 0, or why the entry cannot be used */
};

/* Decode. Never fails: what is wrong is in `finding`, the other fields then hold what could be
 * decoded. The file's end is the caller's to compare. L1: L1_ENTRY_UNALIGNED, _RESERVED. */
struct qk_l1_entry qk_l1_decode(const struct qk_geometry *g, uint64_t raw);
uint64_t qk_l1_encode(qk_hoff l2_off, bool copied);

/* What a check has to say of it: COPIED where no table is, too. Readers see none there, but other programs take the header for
 * one. */
unsigned qk_l1_finding(const struct qk_l1_entry *e);

/* `bitmap` is the second word of an extended entry, 0 otherwise. `guest`, anywhere in the cluster,
 * is compared with the offset where g->data_file. Findings: L2_ENTRY_UNALIGNED, L2_ENTRY_RESERVED,
 * L2_COPIED_AT_ZERO, L2_ZERO_FLAG_V2, L2_SUBCLUSTER_BITS, L2_SUBCLUSTER_NO_HOST,
 * COMPRESSED_DATA_FILE, DATA_FILE_OFFSET. COMPRESSED with COPIED decodes and reads right: finding
 * stays 0, copied is true (check notes it). A reserved bit of a compressed entry's extended bitmap
 * is L2_ENTRY_RESERVED. */
struct qk_l2_entry qk_l2_decode(
	const struct qk_geometry *g, uint64_t raw, uint64_t bitmap, qk_goff guest);

/* A standard entry with a host cluster at host_off (0 is one where there is a data file). */
static inline bool qk_l2_has_host(const struct qk_l2_entry *e)
{
	return e->type == QK_L2_NORMAL || e->type == QK_L2_ZERO_ALLOC;
}

/* How subcluster `index` (< g->subclusters) of an entry without a finding reads: the entry's own
 * type without extended L2 and for COMPRESSED. */
enum qk_l2_type qk_l2_subcluster(
	const struct qk_geometry *g, const struct qk_l2_entry *e, unsigned index);

/* The words of an entry; encode(decode(x)) == x for every entry without a finding. */
void qk_l2_encode(
	const struct qk_geometry *g, const struct qk_l2_entry *e, uint64_t *raw, uint64_t *bitmap);

/* A compressed descriptor for `len` bytes (1 to a cluster) at host_off, without flags
 * (or QK_FLAG_COMPRESSED to it). False where the
 * offset does not fit the width of the field at this cluster size. */
bool qk_l2_compressed_raw(
	const struct qk_geometry *g, qk_hoff host_off, uint64_t len, uint64_t *raw);

struct qk_rt_entry {
	qk_hoff block_off; /* 0: no refcount block; up to 2^64 - 512, beware of adding to it */
	unsigned finding; /* REFTABLE_ENTRY_UNALIGNED, REFTABLE_ENTRY_RESERVED */
};
struct qk_rt_entry qk_rt_decode(const struct qk_geometry *g, uint64_t raw);

/* Where a guest offset lives: index in L1, index in its L2 table, offset in the cluster. */
struct qk_guest_pos {
	uint64_t l1_index;
	uint32_t l2_index;
	uint64_t in_cluster;
};
struct qk_guest_pos qk_guest_pos(const struct qk_geometry *g, qk_goff off);

/* How many entries of 8 bytes from the i-th on name clusters that follow each other, with flags as the first? A multiple of
 * QK_L2_ROW, 0 mostly where the clusters are scattered. The first is the caller's to judge. */
#define QK_L2_ROW 8U
static inline uint32_t qk_l2_row(
	const uint8_t *table, uint32_t i, uint32_t end, uint64_t cluster_size)
{
	uint64_t want = qk_load64(table + (size_t)i * 8), differs = 0;
	uint32_t from = i;
	if (end - i < QK_L2_ROW || qk_load64(table + ((size_t)i + 1) * 8) != want + cluster_size)
		return 0;
	for (; end - i >= QK_L2_ROW; i += QK_L2_ROW) {
		for (uint32_t k = 0; k < QK_L2_ROW; k++, want += cluster_size)
			differs |= qk_load64(table + ((size_t)i + k) * 8) ^ want;
		if (differs != 0)
			break;
	}
	return i - from;
}

/* The words of entry `index` in an L2 table of cluster_size bytes. */
static inline void qk_l2_load(const struct qk_geometry *g, const uint8_t *table, uint32_t index,
	uint64_t *raw, uint64_t *bitmap)
{
	const uint8_t *p = table + (size_t)index * g->l2_entry_size;
	*raw = qk_load64(p);
	*bitmap = g->extended_l2 ? qk_load64(p + 8) : 0;
}

static inline void qk_l2_store(
	const struct qk_geometry *g, uint8_t *table, uint32_t index, uint64_t raw, uint64_t bitmap)
{
	uint8_t *p = table + (size_t)index * g->l2_entry_size;
	qk_store64(p, raw);
	if (g->extended_l2)
		qk_store64(p + 8, bitmap);
}

#endif
