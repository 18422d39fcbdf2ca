/* SPDX-License-Identifier: MIT */
/* workloads: what the files that write workloads down share. Clusters of the guest's disk are numbered. */
#ifndef QKC_WORKLOADS_H
#define QKC_WORKLOADS_H

#include "plan.h"

static inline uint64_t cluster_bytes(const struct qkc_plan *p)
{
	return UINT64_C(1) << p->config.cluster_bits;
}

/* Clusters that one L2 table maps. */
static inline uint64_t l2_span(const struct qkc_plan *p)
{
	return cluster_bytes(p) / (p->is_extended ? 16 : 8);
}

/* A small piece of a cluster: 4 KiB, or what there is. */
static inline uint64_t piece_bytes(const struct qkc_plan *p)
{
	uint64_t cluster = cluster_bytes(p);
	return cluster > 4096 ? 4096 : cluster > 512 ? 1024 : 512;
}

static inline void first(struct qkc_plan *p, enum qkc_act act, uint64_t cluster, uint64_t n)
{
	qkc_plan_first(p, act, cluster * cluster_bytes(p), n * cluster_bytes(p));
}

static inline void whole(struct qkc_plan *p, enum qkc_act act, uint64_t cluster, uint64_t n)
{
	qkc_plan_step(p, act, cluster * cluster_bytes(p), n * cluster_bytes(p));
}

/* In the middle of a cluster, where it has one. */
static inline void part(struct qkc_plan *p, enum qkc_act act, uint64_t cluster)
{
	uint64_t within = cluster_bytes(p) / 4 / 512 * 512;
	if (cluster_bytes(p) == piece_bytes(p))
		within = 0;
	qkc_plan_step(p, act, cluster * cluster_bytes(p) + within, piece_bytes(p));
}

static inline void flush(struct qkc_plan *p)
{
	qkc_plan_step(p, QKC_DO_FLUSH, 0, 0);
}

static inline void fail(struct qkc_plan *p, enum qkc_fail what, uint64_t nth)
{
	qkc_plan_step(p, QKC_DO_FAIL, what, nth);
}

static inline void recover(struct qkc_plan *p)
{
	fail(p, QKC_FAIL_NONE, 1);
	qkc_plan_step(p, QKC_DO_RECOVER, 0, 0);
}

static inline uint64_t below(struct qkc_plan *p, uint64_t n)
{
	return qkt_rng_below(&p->rng, n);
}

static inline enum qkc_act some_act(struct qkc_plan *p, unsigned kinds)
{
	static const enum qkc_act acts[] = {QKC_DO_WRITE, QKC_DO_WRITE, QKC_DO_WRITE,
		QKC_DO_WRITE_FUA, QKC_DO_ZERO, QKC_DO_ZERO_UNMAP, QKC_DO_DISCARD};
	return acts[below(p, kinds)];
}

static inline void some_steps(struct qkc_plan *p, unsigned n, unsigned kinds)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t cluster = below(p, 12);
		if (below(p, 8) == 0)
			cluster += l2_span(p);
		if (below(p, 4) == 0)
			flush(p);
		else if (below(p, 2) == 0)
			part(p, some_act(p, kinds), cluster);
		else
			whole(p, some_act(p, kinds), cluster, 1 + below(p, 3));
	}
}

static inline void some_first(struct qkc_plan *p)
{
	for (unsigned i = 0; i < 4; i++)
		first(p, QKC_DO_WRITE, below(p, 12), 1 + below(p, 3));
	first(p, QKC_DO_ZERO, below(p, 12), 1);
}

/* ---- workloads.c ---- */

void qkc_allocate(struct qkc_plan *p);
void qkc_data_copy(struct qkc_plan *p);
void qkc_random_all(struct qkc_plan *p);
void qkc_random_backing(struct qkc_plan *p);

/* ---- workloads_fail.c ---- */

void qkc_failing_flush_1(struct qkc_plan *p);
void qkc_dropping_flush_1(struct qkc_plan *p);
void qkc_failing_flush_2(struct qkc_plan *p);
void qkc_dropping_flush_2(struct qkc_plan *p);
void qkc_failing_flush_3(struct qkc_plan *p);
void qkc_dropping_flush_3(struct qkc_plan *p);
void qkc_failing_flush_discard(struct qkc_plan *p);
void qkc_dropped_and_reopened(struct qkc_plan *p);
void qkc_dropping_flush_reuse(struct qkc_plan *p);
void qkc_failing_write(struct qkc_plan *p);
void qkc_no_space(struct qkc_plan *p);
void qkc_no_space_goes_on(struct qkc_plan *p);
void qkc_failures_random(struct qkc_plan *p);
void qkc_recovery_flush_dropped(struct qkc_plan *p);
void qkc_recovery_write_fails(struct qkc_plan *p);

/* ---- workloads_coded.c ---- */

void qkc_compressed(struct qkc_plan *p);
void qkc_compressed_zstd(struct qkc_plan *p);
void qkc_compressed_shared(struct qkc_plan *p);
void qkc_random_compressed_writes(struct qkc_plan *p);
void qkc_random_compressed_backing(struct qkc_plan *p);
void qkc_compressed_flush_fails(struct qkc_plan *p);
void qkc_compressed_write_fails(struct qkc_plan *p);
void qkc_encrypted(struct qkc_plan *p);
void qkc_encrypted_copy(struct qkc_plan *p);
void qkc_encrypted_backing(struct qkc_plan *p);
void qkc_encrypted_random(struct qkc_plan *p);
void qkc_encrypted_sub_random(struct qkc_plan *p);
void qkc_encrypted_sub_shared(struct qkc_plan *p);
void qkc_luks_random(struct qkc_plan *p);
void qkc_parts(struct qkc_plan *p);
void qkc_parts_shared(struct qkc_plan *p);
void qkc_parts_backing(struct qkc_plan *p);
void qkc_aes_parts(struct qkc_plan *p);
void qkc_aes_parts_shared(struct qkc_plan *p);
void qkc_aes_parts_backing(struct qkc_plan *p);
void qkc_luks_parts(struct qkc_plan *p);
void qkc_luks_parts_random(struct qkc_plan *p);

/* ---- workloads_snapshot.c ---- */

void qkc_snapshot_create(struct qkc_plan *p);
void qkc_snapshot_apply(struct qkc_plan *p);
void qkc_snapshot_delete(struct qkc_plan *p);
void qkc_snapshot_several(struct qkc_plan *p);
void qkc_snapshot_bitmaps(struct qkc_plan *p);
void qkc_snapshot_device(struct qkc_plan *p);
void qkc_snapshot_random(struct qkc_plan *p);
void qkc_snapshot_sub_random(struct qkc_plan *p);
void qkc_state(struct qkc_plan *p);
void qkc_state_snapshots(struct qkc_plan *p);
void qkc_state_bitmaps(struct qkc_plan *p);
void qkc_state_backing(struct qkc_plan *p);
void qkc_state_flush_fails(struct qkc_plan *p);
void qkc_state_write_fails(struct qkc_plan *p);
void qkc_state_random(struct qkc_plan *p);

/* ---- workloads_punch.c ---- */

void qkc_punched(struct qkc_plan *p);
void qkc_punched_shared(struct qkc_plan *p);
void qkc_punched_compressed(struct qkc_plan *p);
void qkc_kept(struct qkc_plan *p);
void qkc_punched_flush_fails(struct qkc_plan *p);
void qkc_punched_random(struct qkc_plan *p);

/* ---- subclusters.c ---- */

void qkc_sub_allocate(struct qkc_plan *p);
void qkc_sub_zero(struct qkc_plan *p);
void qkc_sub_discard(struct qkc_plan *p);
void qkc_sub_shared(struct qkc_plan *p);
void qkc_sub_backing(struct qkc_plan *p);
void qkc_sub_compressed(struct qkc_plan *p);
void qkc_sub_random(struct qkc_plan *p);
void qkc_sub_random_backing(struct qkc_plan *p);
void qkc_sub_random_snapshot(struct qkc_plan *p);
void qkc_sub_failing_flush(struct qkc_plan *p);
void qkc_sub_dropping_flush(struct qkc_plan *p);

/* ---- workloads_data.c ---- */

void qkc_data_in_place(struct qkc_plan *p);
void qkc_data_allocate(struct qkc_plan *p);
void qkc_data_discard(struct qkc_plan *p);
void qkc_data_kept(struct qkc_plan *p);
void qkc_data_zero(struct qkc_plan *p);
void qkc_data_backing(struct qkc_plan *p);
void qkc_data_reopened(struct qkc_plan *p);
void qkc_data_random(struct qkc_plan *p);
void qkc_data_sub_random(struct qkc_plan *p);
void qkc_data_flush_fails(struct qkc_plan *p);
void qkc_data_write_fails(struct qkc_plan *p);
void qkc_data_no_space(struct qkc_plan *p);
void qkc_data_dropped(struct qkc_plan *p);
void qkc_data_dropped_reopened(struct qkc_plan *p);
void qkc_data_dropped_random(struct qkc_plan *p);
void qkc_data_image_dropped(struct qkc_plan *p);
void qkc_data_image_dropped_reopened(struct qkc_plan *p);
void qkc_raw_data_dropped(struct qkc_plan *p);
void qkc_raw_data_in_place(struct qkc_plan *p);
void qkc_raw_data_allocate(struct qkc_plan *p);
void qkc_raw_data_discard(struct qkc_plan *p);
void qkc_raw_data_zero(struct qkc_plan *p);
void qkc_raw_data_random(struct qkc_plan *p);

#endif
