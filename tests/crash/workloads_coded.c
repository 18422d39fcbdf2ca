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
	p->is_aes = true;
	qkc_allocate(p);
}

void qkc_encrypted_copy(struct qkc_plan *p)
{
	p->is_aes = true;
	qkc_data_copy(p);
}

void qkc_encrypted_backing(struct qkc_plan *p)
{
	p->is_aes = true;
	qkc_random_backing(p);
}

void qkc_encrypted_random(struct qkc_plan *p)
{
	p->is_aes = true;
	qkc_random_all(p);
}

void qkc_encrypted_sub_random(struct qkc_plan *p)
{
	p->is_aes = true;
	qkc_sub_random(p);
}

void qkc_encrypted_sub_backing(struct qkc_plan *p)
{
	p->is_aes = true;
	qkc_sub_random_backing(p);
}
