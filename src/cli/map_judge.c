/* SPDX-License-Identifier: MIT */
/*
 * map_judge: whether holes of the host's file are told as zeros of the disk. QEMU does so only for images whose metadata
 * was preallocated, which it knows by the space that the file takes: too little for the clusters that have a refcount.
 */
#include "cli/map.h"

#include <sys/stat.h>

#include "base/mem.h"
#include "base/num.h"
#include "qcowkit/store.h"

enum {
	PIECE_BYTES = 64 << 10 /* of a table, read at once; a power of two, as clusters are */
};

static uint64_t get_be64(const uint8_t *p)
{
	uint64_t v = 0;
	for (unsigned i = 0; i < 8; i++)
		v = v << 8 | p[i];
	return v;
}

/* Refcounts in `n` bytes that are not 0. */
static uint64_t count_entries(const uint8_t *p, size_t n, unsigned bits)
{
	uint64_t count = 0;
	size_t step = bits > 8 ? bits / 8 : 1;
	for (size_t i = 0; i < n; i += step) {
		unsigned any = 0;
		for (size_t k = 0; k < step; k++)
			any |= p[i + k];
		for (unsigned at = 0; at < 8 && any != 0; at += bits < 8 ? bits : 8)
			count += (any >> at & (bits < 8 ? (1u << bits) - 1 : 0xff)) != 0;
	}
	return count;
}

/* Bytes of the refcount table that speak of clusters which the file has: a table may have a million entries more. */
static uint64_t table_bytes_of(const struct qcow_info *in)
{
	uint64_t clusters = qk_div_up(in->file_size, in->cluster_size);
	uint64_t blocks = qk_div_up(clusters, in->cluster_size * 8 / in->refcount_bits);
	return qk_min(blocks * 8, in->refcount_table_clusters * in->cluster_size);
}

/* Clusters with a refcount, counted up to `enough`. What cannot be read has none. No more is read than the file is long,
 * whatever its tables say. */
static uint64_t count_clusters(
	struct qcow_store *store, const struct qcow_info *in, uint64_t enough)
{
	uint64_t piece = qk_min(in->cluster_size, PIECE_BYTES), count = 0, left = in->file_size;
	uint64_t table_bytes = table_bytes_of(in);
	QK_AUTO_FREE uint8_t *table = qk_malloc(piece, 1);
	QK_AUTO_FREE uint8_t *block = qk_malloc(piece, 1);
	if (table == NULL || block == NULL)
		return 0;
	for (uint64_t at = 0; at < table_bytes && count < enough; at += piece) {
		if (in->refcount_table_offset + at >= in->file_size ||
			qcow_store_read_padded(store, table, (size_t)piece,
				in->refcount_table_offset + at, NULL) != QCOW_OK)
			break;
		for (size_t i = 0; i < piece && at + i < table_bytes && count < enough; i += 8) {
			uint64_t off = get_be64(table + i) & ~UINT64_C(0x1ff);
			for (uint64_t b = 0;
				off != 0 && off < in->file_size && b < in->cluster_size &&
				count < enough && left >= piece;
				b += piece, left -= piece) {
				if (qcow_store_read_padded(
					    store, block, (size_t)piece, off + b, NULL) != QCOW_OK)
					break;
				count += count_entries(block, (size_t)piece, in->refcount_bits);
			}
		}
	}
	return count;
}

static bool is_preallocated(struct qcow_image *layer)
{
	struct qcow_info in;
	struct stat st;
	struct qcow_store *store = qcow_image_store(layer);
	int fd = qcow_store_fd(store);
	if (fd < 0 || fstat(fd, &st) != 0)
		return false;
	qcow_get_info(layer, &in);
	/* a tenth of the clusters, and at least two of them */
	uint64_t there = (uint64_t)st.st_blocks * 512 / in.cluster_size;
	uint64_t enough = there + 2;
	if (there / 9 * 10 + there % 9 * 10 / 9 > enough)
		enough = there / 9 * 10 + there % 9 * 10 / 9;
	return count_clusters(store, &in, enough) >= enough;
}

uint32_t map_shown_flags(struct map_judge *judge, const struct qcow_extent *extent)
{
	uint32_t both = QCOW_EXTENT_DATA | QCOW_EXTENT_ZERO;
	struct qcow_info in;
	if ((extent->flags & both) != both)
		return extent->flags;
	qcow_get_info(extent->layer, &in);
	if (in.version == 0)
		return extent->flags;
	if (judge->layer != extent->layer)
		judge->sparse = is_preallocated(extent->layer);
	judge->layer = extent->layer;
	return judge->sparse ? extent->flags : extent->flags & ~(uint32_t)QCOW_EXTENT_ZERO;
}
