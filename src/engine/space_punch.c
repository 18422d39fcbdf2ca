/* SPDX-License-Identifier: MIT */
/*
 * space_punch: clusters that are set free go back to the file system.
 *
 *	L2 := zero || punch, then refcount - 1 -> FREE
 *
 * The barrier is behind us when a cluster is dropped, and no reader is left. Punching comes before the refcount goes to 0 in
 * memory: so nobody can be given the cluster and write to it meanwhile. No flush is needed: a punch that is lost leaves
 * old bytes in a cluster that nothing names, and whoever takes it writes it whole.
 *
 * Locking: the lock for looking at refcounts, not across the punch. A refcount of 1 that is about to be dropped cannot rise:
 * who could raise it, a compressed stream beside it or a snapshot, is kept away by the caller (compress.c, control.c).
 */
#include "engine/space_private.h"

bool qk_space_is_passed(uint32_t discard, unsigned freed)
{
	static const uint32_t passes[] = {[QK_FREED_OTHER] = QCOW_DISCARD_PASS_OTHER,
		[QK_FREED_REQUEST] = QCOW_DISCARD_PASS_REQUEST,
		[QK_FREED_SNAPSHOT] = QCOW_DISCARD_PASS_SNAPSHOT,
		[QK_FREED_CAUSES] = 0};
	return (discard & passes[freed & QK_FREED_CAUSES]) != 0;
}

static bool is_passed(const struct qk_space *sp, unsigned freed)
{
	return qk_space_is_passed(sp->passes, freed) &&
	       !atomic_load_explicit(&sp->cannot_punch, memory_order_relaxed);
}

/* Clusters [first, first + n), as far as the file has them. */
static void punch(struct qk_space *sp, uint64_t first, uint64_t n)
{
	uint64_t off = first << sp->g->cluster_bits;
	uint64_t end = qk_min((first + n) << sp->g->cluster_bits, qk_space_file_size(sp));
	if (off < end && qcow_store_punch(sp->store, off, end - off, NULL) == QCOW_E_NOTSUP)
		atomic_store_explicit(&sp->cannot_punch, true, memory_order_relaxed);
}

/* Is this its last reference, and may it be believed? As for handing out: below the floor nothing is proven, but COPIED is
 * believed everywhere. */
static bool is_last(struct qk_space *sp, unsigned freed, uint64_t cluster)
{
	uint64_t count = 0;
	(void)pthread_mutex_lock(&sp->lock);
	bool is_sound = !sp->is_corrupt && qk_space_get(sp, cluster, &count, NULL) == QCOW_OK &&
			qk_cluster_set_find(&sp->quarantine, cluster) == UINT64_MAX;
	(void)pthread_mutex_unlock(&sp->lock);
	return is_sound && count == 1 && (cluster >= sp->floor || (freed & QK_FREED_OWNED) != 0);
}

void qk_space_punch_last(struct qk_space *sp, unsigned freed, uint64_t off, uint64_t n)
{
	uint64_t first = qk_space_cluster(sp, off), end = first + n;
	if (!is_passed(sp, freed))
		return;
	for (uint64_t c = first; c < end; c++) {
		uint64_t start = c;
		while (c < end && is_last(sp, freed, c))
			c++;
		if (c != start)
			punch(sp, start, c - start);
	}
}

void qk_space_punch_kept(struct qk_space *sp, unsigned freed, uint64_t off, uint64_t n)
{
	if (is_passed(sp, freed))
		punch(sp, qk_space_cluster(sp, off), n);
}
