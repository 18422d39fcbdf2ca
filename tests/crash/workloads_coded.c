/* SPDX-License-Identifier: MIT */
/*
 * Workloads of compressed and of encrypted writes.
 */
#include "workloads.h"

void qkc_compressed(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 2, 2);
	whole(p, QKC_DO_WRITE_COMPRESSED, 0, 3);
	whole(p, QKC_DO_WRITE_COMPRESSED, 6, 1);
	flush(p);
	whole(p, QKC_DO_WRITE_COMPRESSED, 7, 2);
	part(p, QKC_DO_WRITE, 1);
	whole(p, QKC_DO_WRITE_COMPRESSED, 0, 1);
	flush(p);
	whole(p, QKC_DO_WRITE_COMPRESSED, 0, 2);
	whole(p, QKC_DO_DISCARD, 6, 1);
	whole(p, QKC_DO_WRITE, 7, 1);
	flush(p);
	whole(p, QKC_DO_WRITE_COMPRESSED, 10, 2);
	part(p, QKC_DO_WRITE, 9);
}

void qkc_compressed_zstd(struct qkc_plan *p)
{
	p->is_zstd = true;
	qkc_compressed(p);
}

void qkc_compressed_shared(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE_COMPRESSED, 0, 4);
	p->has_snapshot = true;
	whole(p, QKC_DO_WRITE_COMPRESSED, 1, 2);
	flush(p);
	whole(p, QKC_DO_WRITE_COMPRESSED, 2, 3);
	whole(p, QKC_DO_ZERO_UNMAP, 0, 1);
	flush(p);
	whole(p, QKC_DO_WRITE_COMPRESSED, 1, 1);
}

static void some_compressed_steps(struct qkc_plan *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (below(p, 2) == 0)
			whole(p, QKC_DO_WRITE_COMPRESSED, below(p, 12), 1 + below(p, 3));
		else
			some_steps(p, 1, 7);
	}
}

void qkc_random_compressed_writes(struct qkc_plan *p)
{
	some_first(p);
	some_compressed_steps(p, 14);
}

void qkc_random_compressed_backing(struct qkc_plan *p)
{
	p->backing_bytes = 11 * cluster_bytes(p) + 512;
	qkc_random_compressed_writes(p);
}

void qkc_compressed_flush_fails(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE_COMPRESSED, 0, 4);
	whole(p, QKC_DO_WRITE_COMPRESSED, 5, 2);
	flush(p);
	fail(p, QKC_FAIL_FLUSH_DROP, 1 + below(p, 3));
	whole(p, QKC_DO_WRITE_COMPRESSED, 1, 2);
	whole(p, QKC_DO_WRITE_COMPRESSED, 6, 2);
	flush(p);
	recover(p);
	whole(p, QKC_DO_WRITE_COMPRESSED, 8, 2);
	whole(p, QKC_DO_WRITE_COMPRESSED, 5, 1);
	flush(p);
	whole(p, QKC_DO_WRITE_COMPRESSED, 0, 1);
}

void qkc_compressed_write_fails(struct qkc_plan *p)
{
	first(p, QKC_DO_WRITE, 0, 4);
	whole(p, QKC_DO_WRITE_COMPRESSED, 5, 2);
	fail(p, QKC_FAIL_WRITE, 1 + below(p, 6));
	whole(p, QKC_DO_WRITE_COMPRESSED, 1, 3);
	whole(p, QKC_DO_WRITE_COMPRESSED, 8, 2);
	flush(p);
	recover(p);
	whole(p, QKC_DO_WRITE_COMPRESSED, 1, 1);
	flush(p);
}

void qkc_encrypted(struct qkc_plan *p)
{
	p->crypt = "aes";
	qkc_allocate(p);
}

void qkc_encrypted_copy(struct qkc_plan *p)
{
	p->crypt = "aes";
	qkc_data_copy(p);
}

void qkc_encrypted_backing(struct qkc_plan *p)
{
	p->crypt = "aes";
	qkc_random_backing(p);
}

void qkc_encrypted_random(struct qkc_plan *p)
{
	p->crypt = "aes";
	qkc_random_all(p);
}

void qkc_encrypted_sub_random(struct qkc_plan *p)
{
	p->crypt = "aes";
	qkc_sub_random(p);
}

void qkc_encrypted_sub_shared(struct qkc_plan *p)
{
	p->crypt = "aes";
	qkc_sub_shared(p);
}

void qkc_luks_random(struct qkc_plan *p)
{
	p->crypt = "luks";
	qkc_random_all(p);
}

/* ---- parts of sectors ---- */

/* `len` bytes from byte `within` of the cluster on. */
static void bytes_of(
	struct qkc_plan *p, enum qkc_act act, uint64_t cluster, uint64_t within, uint64_t len)
{
	qkc_plan_step(p, act, cluster * cluster_bytes(p) + within, len);
}

/* In place, over what was never written, over a zero cluster, over the end of a cluster; what they share a sector with
 * is durable, or was just written. */
void qkc_parts(struct qkc_plan *p)
{
	uint64_t cluster = cluster_bytes(p);
	first(p, QKC_DO_WRITE, 1, 2);
	first(p, QKC_DO_ZERO, 4, 1);
	bytes_of(p, QKC_DO_WRITE, 1, 100, 200);
	bytes_of(p, QKC_DO_WRITE, 2, cluster - 7, 20);
	flush(p);
	bytes_of(p, QKC_DO_WRITE, 1, 250, 300);
	bytes_of(p, QKC_DO_WRITE, 4, 3, cluster - 5);
	bytes_of(p, QKC_DO_WRITE, 6, 511, 1);
	flush(p);
	bytes_of(p, QKC_DO_WRITE, 6, 0, 1);
	bytes_of(p, QKC_DO_WRITE_FUA, 3, 21, 30);
	bytes_of(p, QKC_DO_ZERO, 1, 150, 100);
	bytes_of(p, QKC_DO_ZERO_UNMAP, 2, 13, cluster - 3);
	flush(p);
	bytes_of(p, QKC_DO_WRITE, 8, 77, 3 * cluster);
	bytes_of(p, QKC_DO_WRITE, 2, 14, 1);
}

/* The same where a snapshot shares them, or a backing file has them. */
void qkc_parts_shared(struct qkc_plan *p)
{
	p->has_snapshot = true;
	qkc_parts(p);
}

static void some_parts(struct qkc_plan *p, unsigned n)
{
	uint64_t cluster = cluster_bytes(p);
	for (unsigned i = 0; i < n; i++) {
		uint64_t len = 1 + below(p, below(p, 3) == 0 ? 2 * cluster : 700);
		if (below(p, 5) == 0)
			flush(p);
		else
			bytes_of(p, some_act(p, 6), below(p, 6), below(p, cluster), len);
	}
}

void qkc_parts_backing(struct qkc_plan *p)
{
	p->backing_bytes = 5 * cluster_bytes(p) + 512;
	first(p, QKC_DO_WRITE, 1, 1);
	some_parts(p, 14);
}

void qkc_aes_parts(struct qkc_plan *p)
{
	p->crypt = "aes";
	qkc_parts(p);
}

void qkc_aes_parts_shared(struct qkc_plan *p)
{
	p->crypt = "aes";
	qkc_parts_shared(p);
}

void qkc_aes_parts_backing(struct qkc_plan *p)
{
	p->crypt = "aes";
	qkc_parts_backing(p);
}

void qkc_luks_parts(struct qkc_plan *p)
{
	p->crypt = "luks";
	qkc_parts(p);
}

void qkc_luks_parts_random(struct qkc_plan *p)
{
	p->crypt = "luks";
	first(p, QKC_DO_WRITE, 0, 2);
	some_parts(p, 14);
}
