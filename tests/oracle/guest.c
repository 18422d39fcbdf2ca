/* SPDX-License-Identifier: MIT */
/* Sections "Cluster mapping" and "Extended L2 Entries": what the guest sees of one image. */
#include "oracle.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

struct view image_view(const struct image *img, const char *snapshot)
{
	struct view view = {.n_l1 = img->n_l1, .disk_bytes = img->disk_bytes};
	uint64_t off = img->l1_off;
	if (snapshot) {
		const struct snapshot *found = NULL;
		if (img->snapshots_error)
			refuse("snapshot table: %s", img->snapshots_error);
		for (uint32_t i = 0; i < img->n_snapshots && !found; i++)
			if (!strcmp(img->snapshots[i].id, snapshot))
				found = &img->snapshots[i];
		for (uint32_t i = 0; i < img->n_snapshots && !found; i++)
			if (!strcmp(img->snapshots[i].name, snapshot))
				found = &img->snapshots[i];
		if (!found)
			refuse("no snapshot '%s'", snapshot);
		off = found->l1_off;
		view.n_l1 = found->n_l1;
		view.disk_bytes = found->disk_bytes;
	}
	if (view.n_l1 && off + view.n_l1 * 8 > img->file_bytes)
		refuse("the L1 table at %#jx runs past the end of the file", (uintmax_t)off);
	view.l1 = read_words(img, off, view.n_l1);
	return view;
}

static const uint64_t *load_l2(struct image *img, uint64_t off)
{
	if (!img->l2)
		img->l2 = take(img->cluster_bytes, 1);
	if (img->l2_off == off)
		return img->l2;
	if (off % img->cluster_bytes)
		refuse("an L2 table at %#jx", (uintmax_t)off);
	if (read_at(&img->file, img->l2, img->cluster_bytes, off) != img->cluster_bytes)
		refuse("the L2 table at %#jx runs past the end of the file", (uintmax_t)off);
	for (uint64_t i = 0; i < img->cluster_bytes / 8; i++)
		img->l2[i] = be((const uint8_t *)&img->l2[i], 8);
	img->l2_off = off;
	return img->l2;
}

void compressed_extent(const struct image *img, uint64_t entry, uint64_t *off, uint64_t *bytes)
{
	unsigned x = 62 - (img->cluster_bits - 8);
	uint64_t descriptor = entry & ~(ENTRY_COPIED | ENTRY_COMPRESSED);
	uint64_t additional = descriptor >> x;
	*off = descriptor & ((UINT64_C(1) << x) - 1);
	/* the sector that holds the offset, and the additional ones */
	*bytes = (*off / 512 + 1 + additional) * 512 - *off;
}

const char *entry_fault(const struct image *img, uint64_t entry, uint64_t bits)
{
	uint64_t reserved = UINT64_C(0x3f000000000001fe), host = entry & ENTRY_OFFSET;
	bool nowhere = !host && !(img->has_data_file && (entry & ENTRY_COPIED));
	if (img->version == 2 || img->extended_l2)
		reserved |= ENTRY_ZERO;
	if (entry & reserved)
		return "reserved bits";
	if (host % img->cluster_bytes)
		return "not aligned";
	if (!host && (entry & ENTRY_COPIED) && !img->has_data_file)
		return "COPIED without a cluster";
	if ((bits & 0xffffffff) & bits >> 32)
		return "a subcluster is allocated and zero";
	if ((bits & 0xffffffff) && nowhere)
		return "subclusters are allocated nowhere";
	return NULL;
}

static enum kind kind_of(const struct image *img, uint64_t entry, uint64_t bits, unsigned sub)
{
	const char *fault = entry_fault(img, entry, bits);
	bool has_host = entry & (ENTRY_OFFSET | ENTRY_COPIED); /* COPIED: at 0 of a data file */
	if (fault)
		refuse("L2 entry %#jx %#jx: %s", (uintmax_t)entry, (uintmax_t)bits, fault);
	if (!img->extended_l2) {
		if (entry & ENTRY_ZERO)
			return has_host ? ZERO_ALLOCATED : ZERO;
		return has_host ? DATA : UNALLOCATED;
	}
	if (bits >> (32 + sub) & 1)
		return has_host ? ZERO_ALLOCATED : ZERO;
	if (bits >> sub & 1)
		return DATA;
	return has_host ? RESERVED : UNALLOCATED;
}

/* Entries that hold nothing, from this one on. */
static uint64_t empty_clusters(const struct image *img, const uint64_t *l2, uint64_t index)
{
	uint64_t n = 0, step = img->extended_l2 ? 2 : 1;
	while (index + n < img->n_l2 && !l2[(index + n) * step] &&
		!l2[(index + n) * step + step - 1])
		n++;
	return n;
}

struct run resolve(struct image *img, const struct view *view, uint64_t off)
{
	uint64_t cluster = img->cluster_bytes, left = view->disk_bytes - off;
	uint64_t l1_index = off / cluster / img->n_l2, l2_index = off / cluster % img->n_l2;
	struct run run = {.within = off % cluster, .guest = off};
	if (l1_index >= view->n_l1)
		refuse("the L1 table has no entry for offset %ju", (uintmax_t)off);
	uint64_t l2_off = view->l1[l1_index] & ENTRY_OFFSET;
	if (!l2_off) {
		run.bytes = (img->n_l2 - l2_index) * cluster - run.within;
		run.bytes = run.bytes < left ? run.bytes : left;
		return run;
	}
	const uint64_t *l2 = load_l2(img, l2_off);
	run.entry = l2[img->extended_l2 ? l2_index * 2 : l2_index];
	uint64_t bits = img->extended_l2 ? l2[l2_index * 2 + 1] : 0;
	if (!run.entry && !bits) {
		run.bytes = empty_clusters(img, l2, l2_index) * cluster - run.within;
		run.bytes = run.bytes < left ? run.bytes : left;
		return run;
	}
	uint64_t unit = img->extended_l2 ? cluster / 32 : cluster;
	if (run.entry & ENTRY_COMPRESSED) {
		unit = cluster;
		run.kind = COMPRESSED;
		compressed_extent(img, run.entry, &run.host, &run.packed_bytes);
		if (img->has_data_file)
			refuse("a compressed cluster beside a data file");
	} else {
		run.kind = kind_of(img, run.entry, bits, (unsigned)(run.within / unit));
		run.host = (run.entry & ENTRY_OFFSET) + run.within;
		if (img->has_data_file && run.kind == DATA && run.host != off)
			refuse("the entry for %#jx points to %#jx of the data file", (uintmax_t)off,
				(uintmax_t)run.host);
	}
	run.bytes = unit - off % unit;
	run.bytes = run.bytes < left ? run.bytes : left;
	return run;
}

/* A raw deflate stream; gives the bytes made. */
static uint64_t inflate_cluster(struct image *img, uint64_t packed_bytes)
{
	z_stream z = {.next_in = img->packed, .avail_in = (uInt)packed_bytes};
	z.next_out = img->plain;
	z.avail_out = (uInt)img->cluster_bytes;
	if (inflateInit2(&z, -15) != Z_OK)
		refuse("zlib does not start");
	inflate(&z, Z_FINISH); /* what counts is how much came out */
	uint64_t made = z.total_out;
	inflateEnd(&z);
	return made;
}

static uint64_t unzstd_cluster(struct image *img, uint64_t packed_bytes)
{
	ZSTD_inBuffer in = {.src = img->packed, .size = packed_bytes};
	ZSTD_outBuffer out = {.dst = img->plain, .size = img->cluster_bytes};
	ZSTD_DCtx *ctx = ZSTD_createDCtx();
	if (!ctx)
		refuse("out of memory");
	while (out.pos < out.size) {
		size_t in_pos = in.pos, out_pos = out.pos;
		size_t rc = ZSTD_decompressStream(ctx, &out, &in);
		if (ZSTD_isError(rc) || rc == 0)
			break;
		if (in.pos == in_pos && out.pos == out_pos)
			break;
	}
	ZSTD_freeDCtx(ctx);
	return out.pos;
}

static void decompress(struct image *img, const struct run *run)
{
	if (!img->plain) {
		img->plain = take(img->cluster_bytes, 1);
		/* the field for additional sectors reaches over two clusters at most */
		img->packed = take(img->cluster_bytes * 2 + 1024, 1);
	}
	if (img->plain_entry == run->entry)
		return;
	img->plain_entry = 0;
	uint64_t got = read_at(&img->file, img->packed, run->packed_bytes, run->host);
	uint64_t made = img->compression ? unzstd_cluster(img, got) : inflate_cluster(img, got);
	if (made != img->cluster_bytes)
		refuse("the compressed cluster at %#jx makes %ju bytes", (uintmax_t)run->host,
			(uintmax_t)made);
	img->plain_entry = run->entry;
}

static void open_data_file(struct image *img)
{
	if (!img->data_file || !img->path[0])
		refuse("no name of the data file is recorded");
	img->data.fd = open(beside(img->path, img->data_file), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (img->data.fd < 0)
		refuse("cannot open the data file '%s'", img->data_file);
}

void read_run(struct image *img, const struct run *run, uint8_t *buf, uint64_t bytes)
{
	if (run->kind != DATA && run->kind != COMPRESSED) {
		memset(buf, 0, bytes);
		return;
	}
	if (img->crypt_method && run->kind == COMPRESSED)
		refuse("an encrypted disk is compressed");
	if (run->kind == COMPRESSED) {
		decompress(img, run);
		memcpy(buf, img->plain + run->within, bytes);
		return;
	}
	const struct file *file = img->has_data_file ? &img->data : &img->file;
	if (img->has_data_file && img->data.fd < 0 && img->data.bytes == NULL)
		open_data_file(img);
	if (!img->has_data_file && run->host - run->within >= img->file_bytes)
		refuse("a cluster at %#jx, past the end of the file", (uintmax_t)run->host);
	if (img->crypt_method)
		read_encrypted(img, file, run, buf, bytes);
	else
		read_at(file, buf, bytes, run->host); /* the last one may be cut short */
}
