/* SPDX-License-Identifier: MIT */
/*
 * l1l2: entries of L1, L2 and refcount tables, bit by bit.
 *
 * Pure; a decode never fails, it names what is wrong. The order of the tests decides which of
 * several faults of one entry is named: reserved bits first, for they may give every other bit a
 * new meaning.
 *
 * A standard L2 entry:                          A compressed one (x = 62 - (cluster_bits - 8)):
 *
 *   63 62 61      56 55            9 8    1 0      63 62 61            x x-1                0
 *   +-+-+-----------+--------------+------+-+      +-+-+----------------+--------------------+
 *   |C|0| reserved  | host offset  | res. |Z|      |C|1| sectors, less 1| host offset, bytes |
 *   +-+-+-----------+--------------+------+-+      +-+-+----------------+--------------------+
 *
 * Z is the zero flag; reserved with extended L2 entries, whose second word holds a zero bit (32-63)
 * and an allocation bit (0-31) for each subcluster.
 */
#include "format/l1l2.h"

#include <qcowkit/findings.h>

/* Bits of a standard entry that no version gives a meaning: 1-8 and 56-61. */
#define L2_RESERVED UINT64_C(0x3f000000000001fe)

struct qk_l1_entry qk_l1_decode(const struct qk_geometry *g, uint64_t raw)
{
	struct qk_l1_entry e = {
		.l2_off = {raw & QK_OFFSET_MASK},
		.copied = (raw & QK_FLAG_COPIED) != 0,
	};
	if ((raw & ~(QK_OFFSET_MASK | QK_FLAG_COPIED)) != 0)
		e.finding = QCOW_FINDING_L1_ENTRY_RESERVED;
	else if (!qk_is_aligned(e.l2_off.v, g->cluster_size))
		e.finding = QCOW_FINDING_L1_ENTRY_UNALIGNED;
	return e;
}

unsigned qk_l1_finding(const struct qk_l1_entry *e)
{
	bool is_stray = e->copied && e->l2_off.v == 0;
	return e->finding == 0 && is_stray ? QCOW_FINDING_L1_ENTRY_RESERVED : e->finding;
}

uint64_t qk_l1_encode(qk_hoff l2_off, bool copied)
{
	QK_ASSERT_VOID(F4, (l2_off.v & ~QK_OFFSET_MASK) == 0);
	return l2_off.v | (copied ? QK_FLAG_COPIED : 0);
}

static struct qk_l2_entry decode_compressed(
	const struct qk_geometry *g, uint64_t raw, uint64_t bitmap)
{
	uint64_t field = (UINT64_C(1) << g->csize_shift) - 1;
	uint64_t sectors = ((raw >> g->csize_shift) & g->csize_mask) + 1;
	uint64_t off = raw & g->coffset_mask;
	struct qk_l2_entry e = {
		.type = QK_L2_COMPRESSED,
		.host_off = {off},
		.copied = (raw & QK_FLAG_COPIED) != 0,
		/* at most 2^13 sectors: 4 MiB */
		.compressed_bytes = (uint32_t)(sectors * QK_SECTOR - off % QK_SECTOR),
	};
	if (g->data_file)
		e.finding = QCOW_FINDING_COMPRESSED_DATA_FILE;
	else if ((raw & field & ~g->coffset_mask) != 0 || bitmap != 0)
		e.finding = QCOW_FINDING_L2_ENTRY_RESERVED;
	return e;
}

/* Bit 0 of a standard entry is the zero flag in version 3 without extended L2 and nowhere else. */
static unsigned judge_flags(const struct qk_geometry *g, uint64_t raw)
{
	if ((raw & L2_RESERVED) != 0)
		return QCOW_FINDING_L2_ENTRY_RESERVED;
	if ((raw & QK_FLAG_ZERO) == 0)
		return 0;
	if (g->version < 3)
		return QCOW_FINDING_L2_ZERO_FLAG_V2;
	return g->extended_l2 ? QCOW_FINDING_L2_ENTRY_RESERVED : 0;
}

static unsigned judge_standard(
	const struct qk_geometry *g, uint64_t raw, const struct qk_l2_entry *e, qk_goff guest)
{
	uint64_t off = e->host_off.v;
	unsigned finding = judge_flags(g, raw);
	if (finding != 0)
		return finding;
	if (!qk_is_aligned(off, g->cluster_size))
		return QCOW_FINDING_L2_ENTRY_UNALIGNED;
	if (!g->data_file && off == 0 && e->copied)
		return QCOW_FINDING_L2_COPIED_AT_ZERO;
	if (g->data_file && qk_l2_has_host(e) && off != qk_align_down(guest.v, g->cluster_size))
		return QCOW_FINDING_DATA_FILE_OFFSET;
	if ((e->alloc & e->zero) != 0)
		return QCOW_FINDING_L2_SUBCLUSTER_BITS;
	if (e->alloc != 0 && !qk_l2_has_host(e))
		return QCOW_FINDING_L2_SUBCLUSTER_NO_HOST;
	return 0;
}

struct qk_l2_entry qk_l2_decode(
	const struct qk_geometry *g, uint64_t raw, uint64_t bitmap, qk_goff guest)
{
	if ((raw & QK_FLAG_COMPRESSED) != 0)
		return decode_compressed(g, raw, bitmap);

	struct qk_l2_entry e = {
		.host_off = {raw & QK_OFFSET_MASK},
		.copied = (raw & QK_FLAG_COPIED) != 0,
	};
	bool reads_zero = (raw & QK_FLAG_ZERO) != 0;
	if (g->extended_l2) {
		e.alloc = (uint32_t)bitmap;
		e.zero = (uint32_t)(bitmap >> 32);
		reads_zero = e.zero == UINT32_MAX;
	}
	/* A data file has a host cluster at offset 0, and COPIED says whether it is in use. */
	if (e.host_off.v != 0 || (g->data_file && e.copied))
		e.type = reads_zero ? QK_L2_ZERO_ALLOC : QK_L2_NORMAL;
	else
		e.type = reads_zero ? QK_L2_ZERO : QK_L2_UNALLOCATED;
	e.finding = judge_standard(g, raw, &e, guest);
	return e;
}

enum qk_l2_type qk_l2_subcluster(
	const struct qk_geometry *g, const struct qk_l2_entry *e, unsigned index)
{
	QK_ASSERT_VOID(F5, index < g->subclusters);
	if (!g->extended_l2 || e->type == QK_L2_COMPRESSED)
		return e->type;
	uint32_t bit = UINT32_C(1) << index;
	bool has_host = qk_l2_has_host(e);
	if ((e->zero & bit) != 0)
		return has_host ? QK_L2_ZERO_ALLOC : QK_L2_ZERO;
	return (e->alloc & bit) != 0 ? QK_L2_NORMAL : QK_L2_UNALLOCATED;
}

static uint64_t encode_compressed(const struct qk_geometry *g, const struct qk_l2_entry *e)
{
	uint64_t raw = 0;
	uint64_t sector_bytes = e->host_off.v % QK_SECTOR + e->compressed_bytes;
	QK_ASSERT_VOID(F4, (e->host_off.v & ~g->coffset_mask) == 0);
	QK_ASSERT_VOID(F4, e->compressed_bytes != 0);
	raw = (sector_bytes - 1) / QK_SECTOR;
	QK_ASSERT_VOID(F4, raw <= g->csize_mask);
	return QK_FLAG_COMPRESSED | raw << g->csize_shift | e->host_off.v;
}

void qk_l2_encode(
	const struct qk_geometry *g, const struct qk_l2_entry *e, uint64_t *raw, uint64_t *bitmap)
{
	uint64_t copied = e->copied ? QK_FLAG_COPIED : 0;
	*bitmap = 0;
	if (e->type == QK_L2_COMPRESSED) {
		*raw = encode_compressed(g, e) | copied;
		return;
	}
	QK_ASSERT_VOID(F4, (e->host_off.v & ~QK_OFFSET_MASK) == 0);
	bool reads_zero = e->type == QK_L2_ZERO || e->type == QK_L2_ZERO_ALLOC;
	*raw = e->host_off.v | copied;
	if (g->extended_l2)
		*bitmap = (uint64_t)(reads_zero ? UINT32_MAX : e->zero) << 32 | e->alloc;
	else if (reads_zero)
		*raw |= QK_FLAG_ZERO;
}

bool qk_l2_compressed_raw(
	const struct qk_geometry *g, qk_hoff host_off, uint64_t len, uint64_t *raw)
{
	QK_ASSERT_VOID(F4, len >= 1 && len <= g->cluster_size);
	if ((host_off.v & ~g->coffset_mask) != 0)
		return false;
	/* < 2^13 - 1 for a cluster of 2 MiB: the sectors field always holds it */
	uint64_t more_sectors = (host_off.v % QK_SECTOR + len - 1) / QK_SECTOR;
	*raw = more_sectors << g->csize_shift | host_off.v;
	return true;
}

struct qk_rt_entry qk_rt_decode(const struct qk_geometry *g, uint64_t raw)
{
	struct qk_rt_entry e = {.block_off = {raw & QK_REFTABLE_OFFSET_MASK}};
	if ((raw & ~QK_REFTABLE_OFFSET_MASK) != 0)
		e.finding = QCOW_FINDING_REFTABLE_ENTRY_RESERVED;
	else if (!qk_is_aligned(e.block_off.v, g->cluster_size))
		e.finding = QCOW_FINDING_REFTABLE_ENTRY_UNALIGNED;
	return e;
}

struct qk_guest_pos qk_guest_pos(const struct qk_geometry *g, qk_goff off)
{
	uint64_t cluster = off.v >> g->cluster_bits;
	return (struct qk_guest_pos){
		.l1_index = cluster >> g->l2_bits,
		.l2_index = (uint32_t)(cluster & (g->l2_entries - 1)),
		.in_cluster = off.v & (g->cluster_size - 1),
	};
}
