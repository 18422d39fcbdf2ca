/* SPDX-License-Identifier: MIT */
/*
 * subcluster: which of the 32 subclusters of an extended L2 entry a write touches, and which of them a new host cluster
 * has to hold. Pure. Specification: "Extended L2 Entries".
 *
 *	subcluster	 0	 1	 2	 3	 4	 5
 *	old cluster	alloc	 -	alloc	alloc	zero	 -	shared with a snapshot
 *	write			     |--------|
 *	new cluster	copy	head + payload	tail	 -	 -
 *	new entry	alloc	alloc	alloc	alloc	zero	 -
 */
#ifndef QK_ENGINE_SUBCLUSTER_H
#define QK_ENGINE_SUBCLUSTER_H

#include "format/l1l2.h"

/* Those that bytes [from, to) of the cluster touch; none where from >= to. Bit i is subcluster i. */
uint32_t qk_sub_mask(const struct qk_geometry *g, uint64_t from, uint64_t to);

/* Those whose content is in the entry's host cluster, or compressed: a new cluster has to hold them too. */
uint32_t qk_sub_kept(const struct qk_l2_entry *e);

/* Bytes to write before a payload that begins at byte `from` of the cluster, and behind one that ends at byte `to`
 * (1 to the cluster's size). in_place: into the host cluster of the entry, where what is allocated stays;
 * else into a new one. */
uint64_t qk_sub_head(
	const struct qk_geometry *g, const struct qk_l2_entry *e, bool in_place, uint64_t from);
uint64_t qk_sub_tail(
	const struct qk_geometry *g, const struct qk_l2_entry *e, bool in_place, uint64_t to);

/* Take the first run of set bits from a mask that is not 0. */
struct qk_sub_run {
	uint32_t first, n;
};
struct qk_sub_run qk_sub_next(uint32_t *mask);

#endif
