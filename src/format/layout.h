/* SPDX-License-Identifier: MIT */
/*
 * layout: where the pieces of a new image go, as arithmetic. Pure. One place decides how many
 * metadata clusters an image of a given content needs, for create, the builder and measure.
 */
#ifndef QK_FORMAT_LAYOUT_H
#define QK_FORMAT_LAYOUT_H

#include "format/geometry.h"

/* A fresh, empty image as qemu-img lays it out: header in cluster 0, refcount table from 1, its
 * refcount blocks after it (one, unless the L1 table is huge), L1 after that. l1_off is 0 where
 * there are no L1 entries. All clusters below end_off have refcount 1. */
struct qk_layout {
	uint64_t rt_off, rt_clusters;
	uint64_t rb_off,
		n_blocks; /* the refcount blocks, contiguous; 1 unless the L1 table is huge */
	uint64_t l1_off, l1_entries, l1_clusters;
	uint64_t end_off; /* first free byte */
};

/* QCOW_E_LIMIT where the size needs an L1 table over QK_MAX_L1_BYTES at this cluster size. */
enum qcow_status qk_layout_empty(const struct qk_geometry *g, uint64_t disk_size,
	struct qk_layout *out, struct qcow_error *err) QK_MUST_USE;

/* Refcount blocks and refcount table clusters for `n_other` clusters that are not refcount
 * metadata, counting the clusters which those themselves take. QCOW_E_LIMIT over
 * QK_MAX_REFTABLE_BYTES. */
enum qcow_status qk_layout_refcounts(const struct qk_geometry *g, uint64_t n_other,
	uint64_t *n_blocks, uint64_t *n_table_clusters, struct qcow_error *err) QK_MUST_USE;

#endif
