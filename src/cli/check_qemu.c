/* SPDX-License-Identifier: MIT */
/*
 * check_qemu: findings as lines of qemu-img check.
 *
 * QEMU's line about COPIED says the cluster's refcount, which the finding does not hold. Where that refcount
 * is wrong too it was reported just before, so the last of those are remembered, a bounded number.
 */
#include "cli/check_qemu.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/mem.h"

#define MAX_REFCOUNTS ((size_t)65536)
#define OFFSET_MASK   UINT64_C(0x00fffffffffffe00)

static void remember(struct check_qemu *q, uint64_t cluster, uint64_t refcount)
{
	bool ascends = q->n_refcounts == 0 || q->refcounts[q->n_refcounts - 1].cluster < cluster;
	if (!ascends || q->n_refcounts == MAX_REFCOUNTS)
		return;
	if (q->n_refcounts == q->room) {
		size_t room = q->room == 0 ? 64 : q->room * 2;
		struct check_refcount *more = qk_realloc(q->refcounts, room, sizeof(*more));
		if (more == NULL)
			return; /* then the line is ours instead of QEMU's */
		q->refcounts = more;
		q->room = room;
	}
	q->refcounts[q->n_refcounts++] = (struct check_refcount){cluster, refcount};
}

static int by_cluster(const void *a, const void *b)
{
	const struct check_refcount *x = a, *y = b;
	return x->cluster < y->cluster ? -1 : x->cluster > y->cluster;
}

static bool put_refcount(struct check_qemu *q, const struct qcow_finding *f, FILE *out)
{
	uint64_t cluster = f->host_off / q->cluster_size;
	(void)fprintf(out, "%s cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64 "\n",
		f->severity == QCOW_SEVERITY_LEAK ? "Leaked" : "ERROR", cluster, f->stored,
		f->expected);
	remember(q, cluster, f->stored);
	return true;
}

static bool put_copied(const struct check_qemu *q, const struct qcow_finding *f, FILE *out)
{
	struct check_refcount key = {.cluster = (f->stored & OFFSET_MASK) / q->cluster_size};
	const struct check_refcount *found = NULL;
	if (q->n_refcounts != 0)
		found = bsearch(&key, q->refcounts, q->n_refcounts, sizeof(key), by_cluster);
	if (found == NULL)
		return false;
	uint64_t index = (f->host_off - q->l1_offset) / 8;
	if (f->host_off >= q->l1_offset && index < q->l1_entries)
		(void)fprintf(out,
			"ERROR OFLAG_COPIED L2 cluster: l1_index=%" PRIu64 " l1_entry=%" PRIx64
			" refcount=%" PRIu64 "\n",
			index, f->stored, found->refcount);
	else
		(void)fprintf(out,
			"ERROR OFLAG_COPIED data cluster: l2_entry=%" PRIx64 " refcount=%" PRIu64
			"\n",
			f->stored, found->refcount);
	return true;
}

static bool put_beyond(const struct check_qemu *q, const struct qcow_finding *f, FILE *out)
{
	(void)fprintf(out,
		"ERROR: counting reference for region exceeding the end of the file by one cluster "
		"or more: offset 0x%" PRIx64 " size 0x%" PRIx64 "\n",
		f->stored & OFFSET_MASK, q->cluster_size);
	return true;
}

bool check_qemu_put(struct check_qemu *q, const struct qcow_finding *f, FILE *out)
{
	switch (f->id) {
	case QCOW_FINDING_REFCOUNT_TOO_LOW:
	case QCOW_FINDING_REFCOUNT_TOO_HIGH:
	case QCOW_FINDING_METADATA_OVERLAP:
		return put_refcount(q, f, out);
	case QCOW_FINDING_COPIED_WRONG:
		return put_copied(q, f, out);
	case QCOW_FINDING_L1_ENTRY_BEYOND_FILE:
	case QCOW_FINDING_L2_ENTRY_BEYOND_FILE:
		return put_beyond(q, f, out);
	case QCOW_FINDING_L1_ENTRY_UNALIGNED:
		(void)fprintf(out,
			"ERROR l2_offset=%" PRIx64
			": Table is not cluster aligned; L1 entry corrupted\n",
			f->stored & OFFSET_MASK);
		return true;
	case QCOW_FINDING_L2_ENTRY_UNALIGNED:
		(void)fprintf(out,
			"ERROR offset=%" PRIx64
			": Data cluster is not properly aligned; L2 entry corrupted.\n",
			f->stored & OFFSET_MASK);
		return true;
	case QCOW_FINDING_L2_ENTRY_RESERVED:
		(void)fprintf(out, "ERROR found l2 entry with reserved bits set: %" PRIx64 "\n",
			f->stored);
		return true;
	default:
		return false;
	}
}

void check_qemu_release(struct check_qemu *q)
{
	free(q->refcounts);
	*q = (struct check_qemu){0};
}
