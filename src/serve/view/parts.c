/* SPDX-License-Identifier: MIT */
#include "serve/view/parts.h"

#include <string.h>

#include "base/err.h"

#define SECTOR 512U

enum {
	MBR_TABLE = 446,
	MBR_ENTRY = 16,
	MBR_SIGNATURE = 510,
	TYPE_PROTECTIVE = 0xee,
	GPT_ENTRY_LEAST = 128,
	GPT_ENTRY_MOST = 4096,
	LOGICAL_FIRST = 5,
	LOGICAL_MOST = 128 /* sectors of the chain */
};

struct disk {
	qk_parts_read_fn *read;
	void *ctx;
	uint64_t size;
};

static uint32_t le32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t le64(const uint8_t *p)
{
	return (uint64_t)le32(p) | (uint64_t)le32(p + 4) << 32;
}

/* A block of the disk; false where it does not lie within it. */
static bool lies_within(const struct disk *d, uint64_t off, uint64_t len)
{
	return off <= d->size && len <= d->size - off;
}

/* [first, first + n) in units of `unit` bytes, kept where it is a range of the disk. */
static void keep(const struct disk *d, struct qk_parts *out, unsigned number, uint64_t first,
	uint64_t n, uint32_t unit)
{
	uint64_t off = 0, size = 0;
	if (n == 0 || out->n == QK_PARTS_MAX || __builtin_mul_overflow(first, unit, &off) ||
		__builtin_mul_overflow(n, unit, &size) || !lies_within(d, off, size))
		return;
	out->part[out->n++] = (struct qk_part){number, off, size};
}

/* ---- MBR ---- */

struct mbr_entry {
	uint8_t type;
	uint32_t first, n; /* sectors */
};

static struct mbr_entry mbr_entry(const uint8_t *sector, unsigned i)
{
	const uint8_t *p = sector + MBR_TABLE + (size_t)i * MBR_ENTRY;
	return (struct mbr_entry){p[4], le32(p + 8), le32(p + 12)};
}

static bool is_extended(uint8_t type)
{
	return type == 0x05 || type == 0x0f || type == 0x85;
}

static bool has_signature(const uint8_t *sector)
{
	return sector[MBR_SIGNATURE] == 0x55 && sector[MBR_SIGNATURE + 1] == 0xaa;
}

/* Each sector of the chain names one partition, relative to itself, and the next sector, relative to the extended one.
 * The chain must go forward, so it ends. */
static enum qcow_status logical(const struct disk *d, struct mbr_entry extended,
	struct qk_parts *out, struct qcow_error *err)
{
	uint64_t at = extended.first, end = (uint64_t)extended.first + extended.n;
	unsigned number = LOGICAL_FIRST;
	for (unsigned i = 0; i < LOGICAL_MOST && lies_within(d, at * SECTOR, SECTOR); i++) {
		uint8_t sector[SECTOR];
		QK_TRY(d->read(d->ctx, sector, SECTOR, at * SECTOR, err));
		if (!has_signature(sector))
			break;
		struct mbr_entry own = mbr_entry(sector, 0), next = mbr_entry(sector, 1);
		if (own.type != 0 && own.n != 0)
			keep(d, out, number++, at + own.first, own.n, SECTOR);
		uint64_t after = (uint64_t)extended.first + next.first;
		if (!is_extended(next.type) || after <= at || after >= end)
			break;
		at = after;
	}
	return QCOW_OK;
}

static enum qcow_status read_mbr(
	const struct disk *d, const uint8_t *sector, struct qk_parts *out, struct qcow_error *err)
{
	bool followed = false;
	struct mbr_entry extended = {0};
	for (unsigned i = 0; i < 4; i++) {
		struct mbr_entry e = mbr_entry(sector, i);
		if (e.type == 0)
			continue;
		keep(d, out, i + 1, e.first, e.n, SECTOR);
		if (is_extended(e.type) && !followed) {
			extended = e;
			followed = true;
		}
	}
	return followed ? logical(d, extended, out, err) : QCOW_OK;
}

/* ---- GPT ---- */

static uint32_t crc32_of(const uint8_t *p, size_t n)
{
	uint32_t crc = UINT32_MAX;
	for (size_t i = 0; i < n; i++) {
		crc ^= p[i];
		for (unsigned bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (0xedb88320U & (0U - (crc & 1)));
	}
	return ~crc;
}

/* Is the block a header that lies where it says? */
static bool is_gpt_header(uint8_t *block, uint32_t block_bytes, uint64_t number)
{
	uint32_t bytes = le32(block + 12), crc = le32(block + 16);
	if (memcmp(block, "EFI PART", 8) != 0 || bytes < 92 || bytes > block_bytes ||
		le64(block + 24) != number)
		return false;
	memset(block + 16, 0, 4);
	return crc32_of(block, bytes) == crc;
}

static enum qcow_status gpt_entries(const struct disk *d, const uint8_t *header, uint32_t block,
	struct qk_parts *out, struct qcow_error *err)
{
	static const uint8_t unused[16];
	uint32_t n = le32(header + 80), entry = le32(header + 84);
	uint64_t off = 0;
	if (entry < GPT_ENTRY_LEAST || entry > GPT_ENTRY_MOST ||
		__builtin_mul_overflow(le64(header + 72), block, &off))
		return QCOW_OK;
	for (uint32_t i = 0; i < n && i < QK_PARTS_MAX; i++) {
		uint8_t e[GPT_ENTRY_LEAST];
		uint64_t at = off + (uint64_t)i * entry; /* no overflow: it lies within the disk */
		if (at < off || !lies_within(d, at, sizeof(e)))
			break;
		QK_TRY(d->read(d->ctx, e, sizeof(e), at, err));
		uint64_t first = le64(e + 32), last = le64(e + 40);
		if (memcmp(e, unused, sizeof(unused)) == 0 || last < first || last == UINT64_MAX)
			continue;
		keep(d, out, i + 1, first, last - first + 1, block);
	}
	return QCOW_OK;
}

/* The header of block 1, else its copy in the last block. *found: there is one. */
static enum qcow_status read_gpt(const struct disk *d, uint32_t block, struct qk_parts *out,
	bool *found, struct qcow_error *err)
{
	uint64_t n_blocks = d->size / block;
	uint64_t places[2] = {1, n_blocks - 1};
	for (unsigned i = 0; i < 2 && !*found && n_blocks > 2; i++) {
		uint8_t header[SECTOR];
		QK_TRY(d->read(d->ctx, header, sizeof(header), places[i] * block, err));
		if (!is_gpt_header(header, sizeof(header), places[i]))
			continue;
		*found = true;
		QK_TRY(gpt_entries(d, header, block, out, err));
	}
	return QCOW_OK;
}

enum qcow_status qk_parts_find(qk_parts_read_fn *read, void *ctx, uint64_t disk_size,
	struct qk_parts *out, struct qcow_error *err)
{
	const struct disk d = {read, ctx, disk_size};
	uint8_t sector[SECTOR];
	bool found = false;
	out->n = 0;
	if (disk_size < SECTOR)
		return QCOW_OK;
	QK_TRY(read(ctx, sector, SECTOR, 0, err));
	if (!has_signature(sector))
		return QCOW_OK;
	bool is_protective = false;
	for (unsigned i = 0; i < 4; i++)
		is_protective = is_protective || mbr_entry(sector, i).type == TYPE_PROTECTIVE;
	if (is_protective)
		QK_TRY(read_gpt(&d, SECTOR, out, &found, err));
	if (is_protective && !found)
		QK_TRY(read_gpt(&d, 4096, out, &found, err));
	return is_protective ? QCOW_OK : read_mbr(&d, sector, out, err);
}
