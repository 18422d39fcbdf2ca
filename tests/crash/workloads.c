/* SPDX-License-Identifier: MIT */
/*
 * The workloads: one for each operation that the order of writes in doc/ARCHITECTURE.md speaks of, and one for
 * each way in which other implementations are known to lose data. Clusters of the guest's disk are numbered.
 */
#include "workloads.h"
#include "workloads_bitmap.h"

/* ---- one operation each ---- */

static void in_place(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, 2);
	part(p, QKC_DO_WRITE, 3);
	flush(p);
	part(p, QKC_DO_WRITE, 2);
	whole(p, QKC_DO_WRITE, 1, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 0);
}

void qkc_allocate(struct qkc_plan *p)
{
	part(p, QKC_DO_WRITE, 0);
	whole(p, QKC_DO_WRITE, 2, 1);
	flush(p);
	part(p, QKC_DO_WRITE, 5);
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, 9);
	flush(p);
	whole(p, QKC_DO_WRITE, 5, 2);
	part(p, QKC_DO_WRITE, 12);
}

static void new_l2(struct qkc_plan *p)
{
	uint64_t span = l2_span(p);
	first(p, QKC_DO_WRITE, 0, 1);
	part(p, QKC_DO_WRITE, span);
	part(p, QKC_DO_WRITE, 1);
	flush(p);
	part(p, QKC_DO_WRITE, span + 1);
	part(p, QKC_DO_WRITE, 2 * span);
	flush(p);
	part(p, QKC_DO_WRITE, 2 * span + 2);
}

static void l2_copy(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 3);
	p->has_snapshot = true;
	part(p, QKC_DO_WRITE, 6);
	flush(p);
	part(p, QKC_DO_WRITE, 7);
	part(p, QKC_DO_WRITE, 1);
	flush(p);
	part(p, QKC_DO_WRITE, 6);
}

void qkc_data_copy(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	p->has_snapshot = true;
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 3);
	whole(p, QKC_DO_WRITE, 1, 1);
	part(p, QKC_DO_WRITE, 0);
	flush(p);
	whole(p, QKC_DO_WRITE, 2, 2);
}

/* Clusters that one refcount block counts. */
static uint64_t block_span(const struct qkc_plan *p)
{
	return cluster_bytes(p) * 8 / p->config.refcount_bits;
}

/* Data that leaves `spare` of the first `n` host clusters, or a few more, after data and tables. */
static void fill_host(struct qkc_plan *p, uint64_t n, uint64_t spare)
{
	uint64_t tables = 4 + n / l2_span(p) + n / block_span(p);
	uint64_t data = n - tables - spare;
	p->disk_bytes = (data + 4 * l2_span(p)) * cluster_bytes(p);
	first(p, QKC_DO_WRITE, 0, data);
}

static void new_block(struct qkc_plan *p)
{
	fill_host(p, block_span(p), 2);
	uint64_t at = p->first[0].len / cluster_bytes(p);
	whole(p, QKC_DO_WRITE, at, 2);
	part(p, QKC_DO_WRITE, at + 3);
	flush(p);
	whole(p, QKC_DO_WRITE, at + 5, 3);
	part(p, QKC_DO_WRITE, 1);
	flush(p);
	part(p, QKC_DO_WRITE, at + 9);
}

static void table_growth(struct qkc_plan *p)
{
	fill_host(p, block_span(p) * (cluster_bytes(p) / 8), 4);
	uint64_t at = p->first[0].len / cluster_bytes(p);
	whole(p, QKC_DO_WRITE, at, 6);
	flush(p);
	whole(p, QKC_DO_WRITE, at + 6, 8);
	part(p, QKC_DO_WRITE, 1);
	flush(p);
	whole(p, QKC_DO_WRITE, at + 20, 2);
}

static void discard(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 8);
	whole(p, QKC_DO_DISCARD, 1, 3);
	part(p, QKC_DO_WRITE, 12);
	flush(p);
	part(p, QKC_DO_WRITE, 13);
	whole(p, QKC_DO_DISCARD, 6, 1);
	part(p, QKC_DO_WRITE, 2);
	flush(p);
	whole(p, QKC_DO_WRITE, 14, 2);
}

static void discard_reused(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 8);
	whole(p, QKC_DO_DISCARD, 0, 4);
	whole(p, QKC_DO_WRITE, 10, 2);
	whole(p, QKC_DO_WRITE, 1, 1);
	flush(p);
	whole(p, QKC_DO_WRITE, 12, 2);
	whole(p, QKC_DO_DISCARD, 10, 1);
	whole(p, QKC_DO_WRITE, 16, 2);
	flush(p);
}

static void discard_shared(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 6);
	p->has_snapshot = true;
	whole(p, QKC_DO_DISCARD, 1, 2);
	part(p, QKC_DO_WRITE, 8);
	flush(p);
	whole(p, QKC_DO_ZERO_UNMAP, 4, 1);
	part(p, QKC_DO_WRITE, 1);
	part(p, QKC_DO_WRITE, 9);
	flush(p);
	whole(p, QKC_DO_DISCARD, 1, 1);
	part(p, QKC_DO_WRITE, 10);
}

static void zero(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 6);
	whole(p, QKC_DO_ZERO, 1, 2);
	part(p, QKC_DO_ZERO, 4);
	flush(p);
	whole(p, QKC_DO_ZERO, 8, 2);
	part(p, QKC_DO_WRITE, 1);
	part(p, QKC_DO_ZERO, 11);
	flush(p);
	part(p, QKC_DO_WRITE, 8);
	part(p, QKC_DO_WRITE, 12);
}

static void zero_unmap(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 6);
	whole(p, QKC_DO_ZERO_UNMAP, 1, 2);
	part(p, QKC_DO_ZERO_UNMAP, 4);
	flush(p);
	whole(p, QKC_DO_ZERO_UNMAP, 0, 1);
	part(p, QKC_DO_WRITE, 1);
	whole(p, QKC_DO_WRITE, 8, 1);
	flush(p);
	whole(p, QKC_DO_ZERO_UNMAP, 8, 1);
	whole(p, QKC_DO_WRITE, 9, 1);
}

static void zero_allocated(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	first(p, QKC_DO_ZERO, 0, 3);
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, 6);
	flush(p);
	part(p, QKC_DO_WRITE, 1);
	part(p, QKC_DO_WRITE, 0);
	flush(p);
	whole(p, QKC_DO_WRITE, 2, 1);
}

static void over_compressed(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE_COMPRESSED, 0, 6);
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, 8);
	flush(p);
	part(p, QKC_DO_WRITE, 3);
	whole(p, QKC_DO_WRITE, 4, 1);
	whole(p, QKC_DO_DISCARD, 1, 1);
	flush(p);
	part(p, QKC_DO_WRITE, 9);
	part(p, QKC_DO_WRITE, 2);
}

static void over_compressed_shared(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE_COMPRESSED, 0, 6);
	p->has_snapshot = true;
	part(p, QKC_DO_WRITE, 0);
	flush(p);
	whole(p, QKC_DO_ZERO_UNMAP, 2, 1);
	part(p, QKC_DO_WRITE, 3);
	part(p, QKC_DO_WRITE, 8);
	flush(p);
	whole(p, QKC_DO_WRITE, 4, 1);
}

static void over_zstd(struct qkc_plan *p)
{
	p->is_zstd = true;
	over_compressed(p);
}

static void with_backing(struct qkc_plan *p)
{
	p->backing_bytes = 10 * cluster_bytes(p) + 1536;
	first(p, QKC_DO_WRITE, 1, 1);
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, 1);
	flush(p);
	part(p, QKC_DO_WRITE, 10);
	whole(p, QKC_DO_ZERO_UNMAP, 3, 1);
	part(p, QKC_DO_ZERO, 4);
	flush(p);
	whole(p, QKC_DO_DISCARD, 1, 2);
	part(p, QKC_DO_WRITE, 3);
	part(p, QKC_DO_WRITE, 12);
}

static void fua(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 3);
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE_FUA, 1);
	part(p, QKC_DO_WRITE_FUA, 5);
	part(p, QKC_DO_WRITE, 6);
	part(p, QKC_DO_WRITE_FUA, 0);
	part(p, QKC_DO_WRITE_FUA, 7);
	part(p, QKC_DO_WRITE, 5);
}

static void reopened(struct qkc_plan *p)
{
	part(p, QKC_DO_WRITE, 0);
	qkc_plan_step(p, QKC_DO_REOPEN, 0, 0);
	part(p, QKC_DO_WRITE, 1);
	whole(p, QKC_DO_DISCARD, 0, 1);
	qkc_plan_step(p, QKC_DO_REOPEN, 0, 0);
	whole(p, QKC_DO_WRITE, 3, 2);
	flush(p);
}

/* ---- sequences by chance ---- */

static void random_plain(struct qkc_plan *p)
{
	some_first(p);
	some_steps(p, 12, 3);
}

void qkc_random_all(struct qkc_plan *p)
{
	some_first(p);
	some_steps(p, 14, 7);
}

static void random_snapshot(struct qkc_plan *p)
{
	some_first(p);
	p->has_snapshot = true;
	qkc_plan_between(p, QKC_DO_WRITE, below(p, 6) * cluster_bytes(p), cluster_bytes(p));
	some_steps(p, 12, 7);
}

static void random_compressed(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE_COMPRESSED, 0, 8);
	some_first(p);
	some_steps(p, 12, 7);
}

void qkc_random_backing(struct qkc_plan *p)
{
	p->backing_bytes = 11 * cluster_bytes(p) + 512;
	some_first(p);
	some_steps(p, 12, 7);
}

/* Anything with anything. */
static void random_mixed(struct qkc_plan *p)
{
	bool has_width = p->config.refcount_bits != 1;
	for (unsigned i = 0; i < 5; i++)
		first(p, below(p, 2) != 0 ? QKC_DO_WRITE_COMPRESSED : QKC_DO_WRITE, 2 * i,
			1 + below(p, 2));
	first(p, QKC_DO_ZERO, below(p, 10), 1 + below(p, 2));
	p->is_zstd = p->config.version == 3 && below(p, 2) != 0;
	p->has_snapshot = has_width && below(p, 2) != 0;
	if (below(p, 2) != 0)
		p->backing_bytes = below(p, 14) * cluster_bytes(p) + 512 * (1 + below(p, 9));
	if (below(p, 3) == 0)
		p->disk_bytes -= 512 * below(p, cluster_bytes(p) / 512);
	qkc_plan_between(p, QKC_DO_WRITE, below(p, 8) * cluster_bytes(p), cluster_bytes(p));
	some_steps(p, 14, 7);
}

/* ---- what loses data in other implementations ---- */

static void zero_then_write_killed(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	whole(p, QKC_DO_ZERO_UNMAP, 1, 1);
	whole(p, QKC_DO_WRITE, 9, 1);
}

static void compressed_then_write_killed(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE_COMPRESSED, 1, 1);
	part(p, QKC_DO_WRITE, 1);
	whole(p, QKC_DO_WRITE, 9, 1);
}

static void discard_2g(struct qkc_plan *p)
{
	p->disk_bytes = UINT64_C(3) << 30;
	first(p, QKC_DO_WRITE, 0, 1);
	qkc_plan_first(p, QKC_DO_WRITE, (UINT64_C(5) << 29) - cluster_bytes(p), cluster_bytes(p));
	qkc_plan_step(p, QKC_DO_DISCARD, 0, UINT64_C(5) << 29);
	part(p, QKC_DO_WRITE, 3);
	flush(p);
	part(p, QKC_DO_WRITE, 4);
}

static void no_space_new_block(struct qkc_plan *p)
{
	fill_host(p, block_span(p), 2);
	uint64_t at = p->first[0].len / cluster_bytes(p);
	fail(p, QKC_FAIL_SPACE, 1 + below(p, 5));
	whole(p, QKC_DO_WRITE, at, 3);
	part(p, QKC_DO_WRITE, at + 3);
	flush(p);
	recover(p);
	whole(p, QKC_DO_WRITE, at + 5, 3);
	flush(p);
	part(p, QKC_DO_WRITE, at + 9);
}

static void odd_size(struct qkc_plan *p)
{
	p->disk_bytes -= 3 * cluster_bytes(p) + cluster_bytes(p) / 2 + 188;
	uint64_t last = p->disk_bytes / cluster_bytes(p);
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, last - 1);
	flush(p);
	qkc_plan_step(p, QKC_DO_WRITE, last * cluster_bytes(p), p->disk_bytes % cluster_bytes(p));
	flush(p);
	qkc_plan_step(
		p, QKC_DO_ZERO_UNMAP, last * cluster_bytes(p), p->disk_bytes % cluster_bytes(p));
	part(p, QKC_DO_WRITE, 1);
}

static void dirty(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	p->is_dirty = true;
	part(p, QKC_DO_WRITE, 1);
	part(p, QKC_DO_WRITE, 6);
	flush(p);
	whole(p, QKC_DO_DISCARD, 2, 1);
	whole(p, QKC_DO_WRITE, 8, 1);
	flush(p);
}

static void dirty_snapshot(struct qkc_plan *p)
{
	p->has_snapshot = true;
	first(p, QKC_DO_WRITE_COMPRESSED, 10, 2);
	dirty(p);
}

/* Nothing may be overwritten in place that COPIED does not vouch for; the bit comes back by the way. */
static void without_copied(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	p->lacks_copied = true;
	part(p, QKC_DO_WRITE, 0);
	part(p, QKC_DO_WRITE, 2);
	flush(p);
	part(p, QKC_DO_WRITE, 0);
	whole(p, QKC_DO_DISCARD, 3, 1);
	part(p, QKC_DO_WRITE, 6);
	flush(p);
	part(p, QKC_DO_WRITE, 2);
}

static void device(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	p->fixed_spare = 40;
	part(p, QKC_DO_WRITE, 6);
	whole(p, QKC_DO_DISCARD, 1, 2);
	part(p, QKC_DO_WRITE, 7);
	flush(p);
	part(p, QKC_DO_WRITE, 8);
	part(p, QKC_DO_WRITE, 1);
	flush(p);
	part(p, QKC_DO_WRITE, 2);
}

/* The device is full; only what is given up can be used again. */
static void full_device(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 6);
	p->fixed_spare = 1;
	fail(p, QKC_FAIL_SPACE, UINT32_MAX); /* for want of clusters, not of calls */
	part(p, QKC_DO_WRITE, 8);
	part(p, QKC_DO_WRITE, 9);
	flush(p);
	whole(p, QKC_DO_DISCARD, 1, 2);
	part(p, QKC_DO_WRITE, 10);
	flush(p);
	part(p, QKC_DO_WRITE, 11);
	part(p, QKC_DO_WRITE, 12);
	flush(p);
	whole(p, QKC_DO_ZERO_UNMAP, 4, 1);
	part(p, QKC_DO_WRITE, 13);
	flush(p);
}

/* Writes publish by themselves where the stage has no room, and slices are read again. */
static void small_memory(struct qkc_plan *p)
{
	p->stage_bytes = 1;
	p->cache_bytes = 1;
	qkc_random_all(p);
	part(p, QKC_DO_WRITE, 2 * l2_span(p));
	part(p, QKC_DO_WRITE, l2_span(p) + 40 % l2_span(p));
}

static void small_memory_snapshot(struct qkc_plan *p)
{
	p->stage_bytes = 1;
	p->cache_bytes = 1;
	random_snapshot(p);
}

/* One write over the end of what an L2 table maps. */
static void across_tables(struct qkc_plan *p)
{
	uint64_t span = l2_span(p);
	first(p, QKC_DO_WRITE, span - 1, 1);
	whole(p, QKC_DO_WRITE, span - 2, 4);
	flush(p);
	whole(p, QKC_DO_ZERO_UNMAP, span - 1, 2);
	whole(p, QKC_DO_WRITE, 2 * span - 1, 2);
	flush(p);
	whole(p, QKC_DO_DISCARD, span - 2, 4);
	part(p, QKC_DO_WRITE, 0);
}

static void across_tables_shared(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, l2_span(p) - 3, 6);
	p->has_snapshot = true;
	across_tables(p);
}

const struct qkc_workload qkc_workloads[] = {
	{"write in place", in_place, 0, 100},
	{"allocate", qkc_allocate, 0, 100},
	{"new L2 table", new_l2, 0, 100},
	{"L2 copy after snapshot", l2_copy, QKC_NO_WIDTH_1, 100},
	{"data copy-on-write", qkc_data_copy, QKC_NO_WIDTH_1, 100},
	{"new refcount block", new_block, QKC_SMALL_CLUSTERS, 100},
	{"refcount table growth", table_growth, QKC_TINY_CLUSTERS | QKC_NO_WIDTH_1, 100},
	{"discard", discard, 0, 100},
	{"discard, cluster reused", discard_reused, 0, 100},
	{"discard after snapshot", discard_shared, QKC_NO_WIDTH_1, 100},
	{"zero", zero, 0, 100},
	{"zero with unmap", zero_unmap, 0, 100},
	{"zero cluster with space", zero_allocated, QKC_V3, 100},
	{"over compressed", over_compressed, 0, 100},
	{"over compressed, shared", over_compressed_shared, QKC_NO_WIDTH_1, 100},
	{"over compressed, zstd", over_zstd, QKC_V3, 100},
	{"with backing file", with_backing, 0, 100},
	{"FUA", fua, 0, 100},
	{"close and open again", reopened, QKC_OURS, 100},
	{"across L2 tables", across_tables, 0, 100},
	{"across L2 tables, shared", across_tables_shared, QKC_NO_WIDTH_1, 100},
	{"dirty image", dirty, QKC_OURS | QKC_V3, 60},
	{"dirty image, snapshot", dirty_snapshot, QKC_OURS | QKC_V3 | QKC_NO_WIDTH_1, 60},
	{"COPIED missing", without_copied, QKC_OURS, 100},
	{"device", device, QKC_OURS, 100},
	{"full device", full_device, QKC_OURS, 60},
	{"small stage and cache", small_memory, QKC_OURS, 100},
	{"small stage, snapshot", small_memory_snapshot, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"disk of an odd size", odd_size, QKC_OURS, 100},
	{"random, plain", random_plain, 0, 100},
	{"random, all", qkc_random_all, 0, 100},
	{"random, snapshot", random_snapshot, QKC_NO_WIDTH_1, 100},
	{"random, compressed", random_compressed, 0, 100},
	{"random, backing file", qkc_random_backing, 0, 100},
	{"compressed writes", qkc_compressed, QKC_OURS, 100},
	{"compressed writes, zstd", qkc_compressed_zstd, QKC_OURS | QKC_V3, 100},
	{"compressed writes, shared", qkc_compressed_shared, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"random, compressed writes", qkc_random_compressed_writes, QKC_OURS, 100},
	{"random, compressed, backing", qkc_random_compressed_backing, QKC_OURS, 100},
	{"compressed, a flush fails", qkc_compressed_flush_fails, QKC_OURS, 60},
	{"compressed, a write fails", qkc_compressed_write_fails, QKC_OURS, 60},
	{"encrypted", qkc_encrypted, QKC_OURS, 100},
	{"encrypted, copy-on-write", qkc_encrypted_copy, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"encrypted, random", qkc_encrypted_random, QKC_OURS, 100},
	{"encrypted, backing file", qkc_encrypted_backing, QKC_OURS, 100},
	{"LUKS, random", qkc_luks_random, QKC_OURS | QKC_LUKS, 40},
	{"LUKS, parts of sectors", qkc_luks_parts, QKC_OURS | QKC_LUKS, 100},
	{"LUKS, parts, random", qkc_luks_parts_random, QKC_OURS | QKC_LUKS, 100},
	{"parts of sectors", qkc_parts, QKC_OURS, 100},
	{"parts of sectors, snapshot", qkc_parts_shared, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"parts of sectors, backing", qkc_parts_backing, QKC_OURS, 100},
	{"encrypted, parts", qkc_aes_parts, QKC_OURS, 100},
	{"encrypted, parts, snapshot", qkc_aes_parts_shared, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"encrypted, parts, backing", qkc_aes_parts_backing, QKC_OURS, 100},
	{"punched", qkc_punched, QKC_OURS | QKC_SMALL_CLUSTERS, 100},
	{"punched, shared", qkc_punched_shared, QKC_OURS | QKC_SMALL_CLUSTERS, 100},
	{"punched, compressed", qkc_punched_compressed, QKC_OURS | QKC_SMALL_CLUSTERS, 100},
	{"punched, kept", qkc_kept, QKC_OURS | QKC_V3 | QKC_SMALL_CLUSTERS, 60},
	{"punched, a flush fails", qkc_punched_flush_fails, QKC_OURS | QKC_SMALL_CLUSTERS, 60},
	{"punched, random", qkc_punched_random, QKC_OURS, 100},
	{"random, mixed", random_mixed, 0, 100},
	{"subclusters, allocate", qkc_sub_allocate, QKC_EXTENDED, 100},
	{"subclusters, zero", qkc_sub_zero, QKC_EXTENDED, 100},
	{"subclusters, discard", qkc_sub_discard, QKC_EXTENDED, 100},
	{"subclusters, snapshot", qkc_sub_shared, QKC_EXTENDED | QKC_NO_WIDTH_1, 100},
	{"subclusters, backing file", qkc_sub_backing, QKC_EXTENDED, 100},
	{"subclusters, compressed", qkc_sub_compressed, QKC_EXTENDED, 100},
	{"subclusters, random", qkc_sub_random, QKC_EXTENDED, 100},
	{"subclusters, random, backing", qkc_sub_random_backing, QKC_EXTENDED, 100},
	{"encrypted subclusters", qkc_encrypted_sub_random, QKC_OURS | QKC_EXTENDED, 100},
	{"encrypted subclusters, shared", qkc_encrypted_sub_shared,
		QKC_OURS | QKC_EXTENDED | QKC_NO_WIDTH_1, 100},
	{"subclusters, random, snapshot", qkc_sub_random_snapshot, QKC_EXTENDED | QKC_NO_WIDTH_1,
		100},
	{"subclusters, a flush fails", qkc_sub_failing_flush,
		QKC_EXTENDED | QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"subclusters, flush dropped", qkc_sub_dropping_flush,
		QKC_EXTENDED | QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"zero, write, killed", zero_then_write_killed, 0, 20},
	{"compressed, write, killed", compressed_then_write_killed, 0, 20},
	{"discard of 2.5 GiB", discard_2g, 0, 100},
	{"bitmaps", qkc_bitmaps, QKC_OURS | QKC_V3, 60},
	{"bitmaps, opened again", qkc_bitmaps_reopened, QKC_OURS | QKC_V3, 100},
	{"bitmaps, snapshot", qkc_bitmaps_snapshot, QKC_OURS | QKC_V3 | QKC_NO_WIDTH_1, 100},
	{"bitmaps, a flush fails", qkc_bitmaps_flush_fails, QKC_OURS | QKC_V3, 100},
	{"bitmaps, 1st flush fails", qkc_bitmaps_first_flush_fails, QKC_OURS | QKC_V3, 40},
	{"bitmaps, close fails", qkc_bitmaps_close_fails, QKC_OURS | QKC_V3, 100},
	{"bitmaps, device", qkc_bitmaps_device, QKC_OURS | QKC_V3, 100},
	{"snapshot, create", qkc_snapshot_create, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"snapshot, apply", qkc_snapshot_apply, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"snapshot, delete", qkc_snapshot_delete, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"snapshot, several", qkc_snapshot_several, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"snapshot, bitmaps", qkc_snapshot_bitmaps, QKC_OURS | QKC_V3 | QKC_NO_WIDTH_1, 100},
	{"snapshot, device", qkc_snapshot_device, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"snapshot, random", qkc_snapshot_random, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"snapshot, subclusters", qkc_snapshot_sub_random, QKC_OURS | QKC_EXTENDED | QKC_NO_WIDTH_1,
		100},
	{"machine's state", qkc_state, QKC_OURS, 100},
	{"machine's state, snapshots", qkc_state_snapshots, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"machine's state, bitmaps", qkc_state_bitmaps, QKC_OURS | QKC_WIDTH_16 | QKC_V3, 100},
	{"machine's state, backing", qkc_state_backing, QKC_OURS | QKC_WIDTH_16, 60},
	{"machine's state, a flush fails", qkc_state_flush_fails, QKC_OURS | QKC_WIDTH_16, 60},
	{"machine's state, a write fails", qkc_state_write_fails, QKC_OURS | QKC_WIDTH_16, 60},
	{"machine's state, random", qkc_state_random, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"data file, in place", qkc_data_in_place, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 60},
	{"data file, allocate", qkc_data_allocate, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"data file, discard", qkc_data_discard, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"data file, kept", qkc_data_kept, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"data file, zero", qkc_data_zero, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"data file, backing file", qkc_data_backing, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"data file, opened again", qkc_data_reopened, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 40},
	{"data file, random", qkc_data_random, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"data file, subclusters, random", qkc_data_sub_random,
		QKC_OURS | QKC_V3 | QKC_WIDTH_16 | QKC_EXTENDED, 100},
	{"data file, a flush fails", qkc_data_flush_fails, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 60},
	{"data file, a write fails", qkc_data_write_fails, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 60},
	{"data file, no space, it goes on", qkc_data_no_space, QKC_OURS | QKC_V3 | QKC_WIDTH_16,
		100},
	{"data file, its flush dropped", qkc_data_dropped, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"data file, dropped, reopened", qkc_data_dropped_reopened,
		QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"data file, image dropped", qkc_data_image_dropped, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"data file, image d., reopened", qkc_data_image_dropped_reopened,
		QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"data file, dropped, random", qkc_data_dropped_random, QKC_OURS | QKC_V3 | QKC_WIDTH_16,
		100},
	{"raw data file, dropped", qkc_raw_data_dropped, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 60},
	{"raw data file, in place", qkc_raw_data_in_place, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 60},
	{"raw data file, allocate", qkc_raw_data_allocate, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 60},
	{"raw data file, discard", qkc_raw_data_discard, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 60},
	{"raw data file, zero", qkc_raw_data_zero, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 60},
	{"raw data file, random", qkc_raw_data_random, QKC_OURS | QKC_V3 | QKC_WIDTH_16, 100},
	{"1st flush fails", qkc_failing_flush_1, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"2nd flush fails", qkc_failing_flush_2, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"3rd flush fails", qkc_failing_flush_3, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"a flush fails, discard", qkc_failing_flush_discard, QKC_OURS, 100},
	{"1st flush fails, dropped", qkc_dropping_flush_1, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"2nd flush fails, dropped", qkc_dropping_flush_2, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"3rd flush fails, dropped", qkc_dropping_flush_3, QKC_OURS | QKC_NO_WIDTH_1, 100},
	{"dropped, clusters reused", qkc_dropping_flush_reuse, QKC_OURS, 100},
	{"dropped, opened again", qkc_dropped_and_reopened, QKC_OURS, 100},
	{"a write fails", qkc_failing_write, QKC_OURS, 100},
	{"no space", qkc_no_space, QKC_OURS, 100},
	{"no space, it goes on", qkc_no_space_goes_on, QKC_OURS, 100},
	{"random failures", qkc_failures_random, QKC_OURS, 100},
	{"recovery, a flush dropped", qkc_recovery_flush_dropped, QKC_OURS | QKC_WIDTH_16, 100},
	{"recovery, a write fails", qkc_recovery_write_fails, QKC_OURS | QKC_WIDTH_16, 60},
	{"no space, refcount block", no_space_new_block, QKC_OURS | QKC_SMALL_CLUSTERS, 100},
};
const size_t qkc_n_workloads = sizeof(qkc_workloads) / sizeof(*qkc_workloads);
