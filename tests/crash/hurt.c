/* SPDX-License-Identifier: MIT */
/* hurt: see hurt.h. Refcounts have 16 bits. */
#include "hurt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <host.h>

#include "disk.h"

#define COPIED	 (UINT64_C(1) << 63)
#define OFFSET	 UINT64_C(0x00fffffffffffe00)
#define NOWHERE	 (UINT64_C(1) << 40)
#define GARBAGE	 0xa5
#define N_TABLES 3u /* L2 tables of the disk */

/* ---- words ---- */

static uint64_t get(const struct qkc_patient *p, uint64_t off, unsigned n)
{
	uint64_t v = 0;
	for (unsigned i = 0; i < n; i++)
		v = v << 8 | p->bytes[off + i];
	return v;
}

static void put(struct qkc_patient *p, uint64_t off, unsigned n, uint64_t v)
{
	for (unsigned i = 0; i < n; i++)
		p->bytes[off + i] = (uint8_t)(v >> (8 * (n - 1 - i)));
}

/* Where the entry of a guest cluster is, in the first L2 table of the disk. */
static uint64_t entry_of(const struct qkc_patient *p, uint64_t guest)
{
	return p->table + guest * 8;
}

static uint64_t host_of(const struct qkc_patient *p, uint64_t guest)
{
	return p->hosts[guest];
}

static void put_refcount(struct qkc_patient *p, uint64_t host, uint64_t count)
{
	put(p, p->block + host / p->cluster * 2, 2, count);
}

/* ---- images ---- */

/* Every 8 bytes of it are unlike all others, and compress. */
static void make_content(unsigned number, uint64_t n)
{
	char name[16];
	(void)snprintf(name, sizeof(name), "p%u", number);
	FILE *f = fopen(qkt_path(name), "wb");
	for (uint64_t i = 0; f != NULL && i < n / 8; i++) {
		uint32_t word[2] = {number * 77777u, (uint32_t)i};
		(void)fwrite(word, sizeof(word), 1, f);
	}
	if (f == NULL || fclose(f) != 0)
		abort();
}

/* A write of `n` clusters from cluster `at` of the part of an L2 table on. */
static void add(FILE *script, const struct qkc_patient *p, const char *how, unsigned number,
	unsigned table, unsigned at, unsigned n)
{
	uint64_t off = table * (p->cluster / 8) * p->cluster + at * p->cluster;
	make_content(number, n * p->cluster);
	(void)fprintf(script, "%s -q -s p%u %ju %ju\n", how, number, (uintmax_t)off,
		(uintmax_t)(n * p->cluster));
}

static FILE *script_open(void)
{
	FILE *f = fopen(qkt_path("script"), "w");
	if (f == NULL)
		abort();
	return f;
}

static void script_run(FILE *script, const char *then)
{
	(void)fclose(script);
	qkt_must("qemu-io img <script >out && ! grep -i -e failed -e error out && %s", then);
}

static void run_writes(const struct qkc_patient *p)
{
	FILE *s = script_open();
	add(s, p, "write", 1, 0, 0, 6);
	add(s, p, "write -c", 2, 0, 8, 1);
	add(s, p, "write -c", 3, 0, 9, 1);
	add(s, p, "write", 4, 1, 0, 3);
	add(s, p, "write", 5, 2, 0, 2);
	script_run(s, "qemu-img snapshot -c one img");
	s = script_open();
	add(s, p, "write", 6, 0, 2, 2);
	add(s, p, "write", 7, 1, 1, 1);
	add(s, p, "write -c", 8, 0, 10, 1);
	script_run(s, "qemu-img snapshot -c two img");
	s = script_open();
	add(s, p, "write", 9, 0, 1, 1);
	add(s, p, "write", 10, 0, 12, 6);
	if (p->kind.version == 3)
		(void)fprintf(s, "write -q -z %ju %ju\n", (uintmax_t)(20 * p->cluster),
			(uintmax_t)(2 * p->cluster));
	script_run(s, p->kind.version == 3 ? "qemu-img bitmap --add -g 512 img on && qemu-img "
					     "bitmap --add -g 64k img off"
					   : "true");
	s = script_open();
	add(s, p, "write", 11, 0, 13, 1);
	add(s, p, "write", 12, 2, 1, 1);
	script_run(s, p->kind.version == 3 ? "qemu-img bitmap --disable img off" : "true");
}

/* The bitmap directory, or 0. */
static uint64_t find_directory(const struct qkc_patient *p)
{
	uint64_t at = p->kind.version == 3 ? get(p, 100, 4) : 0;
	while (at != 0 && get(p, at, 4) != 0 && get(p, at, 4) != 0x23852875)
		at += 8 + (get(p, at + 4, 4) + 7) / 8 * 8;
	return at != 0 && get(p, at, 4) != 0 ? get(p, at + 24, 8) : 0;
}

/* The entry after this one of the snapshot table. */
static uint64_t next_snapshot(const struct qkc_patient *p, uint64_t at)
{
	uint64_t n = 40 + get(p, at + 12, 2) + get(p, at + 14, 2) + get(p, at + 36, 4);
	return at + (n + 7) / 8 * 8;
}

void qkc_patient_make(struct qkc_patient *p, struct qkc_kind kind)
{
	size_t n = 0;
	*p = (struct qkc_patient){.kind = kind, .cluster = UINT64_C(1) << kind.cluster_bits};
	qkt_must("rm -f img && qemu-img create -q -f qcow2 -o compat=%s,cluster_size=%ju img %ju",
		kind.version == 3 ? "1.1" : "0.10", (uintmax_t)p->cluster,
		(uintmax_t)(N_TABLES * (p->cluster / 8) * p->cluster));
	run_writes(p);
	p->bytes = qkt_slurp(qkt_path("img"), &n);
	p->n = n;
	p->l1 = get(p, 40, 8);
	p->rt = get(p, 48, 8);
	p->block = get(p, p->rt, 8);
	p->snapshots = get(p, 64, 8);
	p->second = next_snapshot(p, p->snapshots);
	p->directory = find_directory(p);
	p->table = get(p, p->l1, 8) & OFFSET;
	for (unsigned i = 0; i < QKC_N_HOSTS; i++)
		p->hosts[i] = get(p, entry_of(p, i), 8) & OFFSET;
}

void qkc_patient_copy(struct qkc_patient *p, const struct qkc_patient *from, uint64_t spare)
{
	*p = *from;
	if (spare != 0)
		p->n = (from->n + from->cluster - 1) / from->cluster * from->cluster +
		       spare * from->cluster;
	p->bytes = qkc_need((size_t)p->n, 1);
	memcpy(p->bytes, from->bytes, (size_t)from->n);
	if (spare != 0)
		memset(p->bytes + (p->n - spare * p->cluster), GARBAGE,
			(size_t)(spare * p->cluster));
}

/* ---- refcounts ---- */

static bool counted_twice(struct qkc_patient *p)
{
	uint64_t at = entry_of(p, 14);
	put_refcount(p, host_of(p, 14), 2);
	put(p, at, 8, get(p, at, 8) & ~COPIED);
	return true;
}

static bool counted_never(struct qkc_patient *p)
{
	put_refcount(p, host_of(p, 15), 0);
	return true;
}

static bool table_counted_once(struct qkc_patient *p)
{
	/* shared by the disk and both snapshots */
	put_refcount(p, host_of(p, 0), 1);
	put(p, entry_of(p, 0), 8, host_of(p, 0) | COPIED);
	return true;
}

static bool leaked(struct qkc_patient *p)
{
	put_refcount(p, (p->n / p->cluster) * p->cluster, 1);
	put_refcount(p, host_of(p, 16), 5);
	return true;
}

static bool block_is_zeros(struct qkc_patient *p)
{
	memset(p->bytes + p->block, 0, (size_t)p->cluster);
	return true;
}

static bool dirty(struct qkc_patient *p)
{
	if (p->kind.version < 3)
		return false;
	p->bytes[79] |= 1;
	return block_is_zeros(p);
}

static bool block_is_gone(struct qkc_patient *p)
{
	put(p, p->rt, 8, 0);
	return true;
}

static bool block_is_nowhere(struct qkc_patient *p)
{
	put(p, p->rt, 8, p->block | NOWHERE);
	return true;
}

static bool block_is_reserved(struct qkc_patient *p)
{
	put(p, p->rt, 8, p->block | 2);
	return true;
}

static bool block_is_l1(struct qkc_patient *p)
{
	put(p, p->rt, 8, p->l1);
	return true;
}

/* ---- entries ---- */

static bool copied_on_shared(struct qkc_patient *p)
{
	put(p, entry_of(p, 2), 8, host_of(p, 2) | COPIED);
	return true;
}

static bool copied_missing(struct qkc_patient *p)
{
	put(p, entry_of(p, 15), 8, host_of(p, 15));
	put(p, p->l1, 8, p->table);
	return true;
}

static bool entry_of_another(struct qkc_patient *p)
{
	put(p, entry_of(p, 15), 8, host_of(p, 16) | COPIED);
	return true;
}

static bool entry_on_l1(struct qkc_patient *p)
{
	put(p, entry_of(p, 15), 8, p->l1 | COPIED);
	return true;
}

static bool entry_on_its_table(struct qkc_patient *p)
{
	put(p, entry_of(p, 15), 8, p->table | COPIED);
	return true;
}

static bool entry_on_block(struct qkc_patient *p)
{
	put(p, entry_of(p, 17), 8, p->block | COPIED);
	return true;
}

static bool entry_nowhere(struct qkc_patient *p)
{
	put(p, entry_of(p, 16), 8, NOWHERE | COPIED);
	return true;
}

static bool entry_reserved(struct qkc_patient *p)
{
	put(p, entry_of(p, 16), 8, host_of(p, 16) | COPIED | UINT64_C(1) << 57);
	return true;
}

static bool stream_nowhere(struct qkc_patient *p)
{
	put(p, entry_of(p, 10), 8, UINT64_C(1) << 62 | NOWHERE);
	return true;
}

static bool table_twice(struct qkc_patient *p)
{
	put(p, p->l1 + 8, 8, p->table | COPIED);
	return true;
}

static bool table_nowhere(struct qkc_patient *p)
{
	put(p, p->l1 + 16, 8, NOWHERE | COPIED);
	return true;
}

static bool table_is_block(struct qkc_patient *p)
{
	put(p, p->l1 + 16, 8, p->block | COPIED);
	return true;
}

/* ---- tables of the header ---- */

static bool l1_nowhere(struct qkc_patient *p)
{
	put(p, 40, 8, NOWHERE);
	return true;
}

static bool l1_too_long(struct qkc_patient *p)
{
	put(p, 36, 4, (uint32_t)(p->n / 8));
	return true;
}

static bool l1_over_others(struct qkc_patient *p)
{
	put(p, 36, 4, N_TABLES + 3 * p->cluster / 8);
	return true;
}

static bool snapshot_nowhere(struct qkc_patient *p)
{
	put(p, p->second, 8, NOWHERE);
	return true;
}

static bool snapshot_on_l1(struct qkc_patient *p)
{
	put(p, p->second, 8, p->l1);
	return true;
}

static bool snapshots_on_l1(struct qkc_patient *p)
{
	put(p, p->snapshots, 8, p->l1);
	return snapshot_on_l1(p);
}

static bool bitmap_entry_nowhere(struct qkc_patient *p)
{
	if (p->directory == 0)
		return false;
	put(p, get(p, p->directory, 8), 8, NOWHERE);
	return true;
}

static bool bitmaps_in_one_place(struct qkc_patient *p)
{
	if (p->directory == 0)
		return false;
	uint64_t n = 24 + get(p, p->directory + 18, 2) + get(p, p->directory + 20, 4);
	uint64_t other = p->directory + (n + 7) / 8 * 8;
	put(p, other, 8, get(p, p->directory, 8));
	return true;
}

static bool marked_corrupt(struct qkc_patient *p)
{
	if (p->kind.version < 3)
		return false;
	p->bytes[79] |= 2;
	return entry_nowhere(p);
}

#define HURT(name)                    \
	{                             \
#name, name, 0, false \
	}
#define HIDES(name)                  \
	{                            \
#name, name, 0, true \
	}

const struct qkc_hurt qkc_hurts[] = {
	HURT(counted_twice),
	HURT(counted_never),
	HURT(table_counted_once),
	HURT(leaked),
	HURT(block_is_zeros),
	HURT(dirty),
	HURT(block_is_gone),
	HURT(block_is_nowhere),
	HURT(block_is_reserved),
	HIDES(block_is_l1),
	HURT(copied_on_shared),
	HURT(copied_missing),
	HURT(entry_of_another),
	HURT(entry_on_l1),
	HURT(entry_on_its_table),
	HURT(entry_on_block),
	HURT(entry_nowhere),
	HURT(entry_reserved),
	HURT(stream_nowhere),
	HURT(table_twice),
	HURT(table_nowhere),
	HURT(table_is_block),
	HURT(l1_nowhere),
	HIDES(l1_too_long),
	HURT(l1_over_others),
	{"snapshot_nowhere", snapshot_nowhere, 2, false},
	{"snapshot_on_l1", snapshot_on_l1, 2, false},
	{"snapshots_on_l1", snapshots_on_l1, 3, false},
	HURT(bitmap_entry_nowhere),
	HURT(bitmaps_in_one_place),
	HURT(marked_corrupt),
};
const unsigned qkc_n_hurts = sizeof(qkc_hurts) / sizeof(qkc_hurts[0]);
