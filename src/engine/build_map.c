/* SPDX-License-Identifier: MIT */
/*
 * build_map: the L1 and L2 tables of a new image, filled in guest order.
 *
 * Invariants:
 *   M1  L1 indexes never go back: the L1 window and the L2 table are written once and forgotten
 *   M2  an L2 table is taken before the clusters that it maps
 *
 * An L1 window without entries is never written: the store is known to read zeros there (build.c).
 * Specification: "Cluster mapping".
 */
#include "engine/build.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "format/l1l2.h"
#include "format/layout.h"

#define L1_WINDOW_ENTRIES 8192U /* 64 KiB */

enum qcow_status qk_build_map_init(
	struct qk_build_map *map, struct qk_build_refs *refs, uint64_t size, struct qcow_error *err)
{
	const struct qk_geometry *g = refs->g;
	struct qk_layout layout = {0};
	qk_hoff l1 = {0};

	*map = (struct qk_build_map){.store = refs->store,
		.g = g,
		.refs = refs,
		.l1_base = QK_BUILD_NONE,
		.l2_idx = QK_BUILD_NONE};
	QK_TRY(qk_layout_empty(g, size, &layout, err));
	if (layout.l1_entries == 0)
		return QCOW_OK;
	map->l1 = qk_calloc(L1_WINDOW_ENTRIES, 8);
	map->l2 = qk_calloc(1, g->cluster_size);
	if (map->l1 == NULL || map->l2 == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qk_build_refs_take(refs, layout.l1_clusters, &l1, err));
	map->l1_off = l1.v;
	map->l1_entries = layout.l1_entries;
	/* an empty image ends with its last L1 entry, as qemu-img's */
	if (refs->end_off == l1.v + (layout.l1_clusters << g->cluster_bits))
		refs->end_off = l1.v + layout.l1_entries * 8;
	return QCOW_OK;
}

void qk_build_map_release(struct qk_build_map *map)
{
	free(map->l1);
	free(map->l2);
}

static enum qcow_status write_l1(struct qk_build_map *map, struct qcow_error *err)
{
	if (map->l1_base == QK_BUILD_NONE)
		return QCOW_OK;
	uint64_t n = qk_min(L1_WINDOW_ENTRIES, map->l1_entries - map->l1_base);
	return qcow_store_write(map->store, map->l1, n * 8, map->l1_off + map->l1_base * 8, err);
}

static enum qcow_status set_l1(
	struct qk_build_map *map, uint64_t idx, qk_hoff l2, struct qcow_error *err)
{
	uint64_t base = qk_align_down(idx, L1_WINDOW_ENTRIES);

	QK_ASSERT(M1, idx < map->l1_entries);
	if (base != map->l1_base) {
		QK_ASSERT(M1, map->l1_base == QK_BUILD_NONE || base > map->l1_base);
		QK_TRY(write_l1(map, err));
		memset(map->l1, 0, (size_t)L1_WINDOW_ENTRIES * 8);
		map->l1_base = base;
	}
	qk_store64(map->l1 + (idx - base) * 8, qk_l1_encode(l2, true));
	return QCOW_OK;
}

static enum qcow_status write_l2(struct qk_build_map *map, struct qcow_error *err)
{
	if (map->l2_idx == QK_BUILD_NONE)
		return QCOW_OK;
	return qcow_store_write(map->store, map->l2, map->g->cluster_size, map->l2_off, err);
}

enum qcow_status qk_build_map_open(
	struct qk_build_map *map, qk_goff off, uint64_t *n_left, struct qcow_error *err)
{
	struct qk_guest_pos pos = qk_guest_pos(map->g, off);

	*n_left = map->g->l2_entries - pos.l2_index;
	if (pos.l1_index == map->l2_idx)
		return QCOW_OK;
	QK_ASSERT(M1, map->l2_idx == QK_BUILD_NONE || pos.l1_index > map->l2_idx);
	qk_hoff l2 = {0};
	QK_TRY(write_l2(map, err));
	map->l2_idx = QK_BUILD_NONE;
	QK_TRY(qk_build_refs_take(map->refs, 1, &l2, err));
	QK_TRY(set_l1(map, pos.l1_index, l2, err));
	memset(map->l2, 0, map->g->cluster_size);
	map->l2_idx = pos.l1_index;
	map->l2_off = l2.v;
	return QCOW_OK;
}

enum qcow_status qk_build_map_set(struct qk_build_map *map, const struct qk_build_entries *e)
{
	struct qk_guest_pos pos = qk_guest_pos(map->g, e->off);

	QK_ASSERT(M2, pos.l1_index == map->l2_idx && pos.in_cluster == 0);
	QK_ASSERT(M2, e->n <= map->g->l2_entries - pos.l2_index);
	for (uint64_t i = 0; i < e->n; i++)
		qk_l2_store(map->g, map->l2, pos.l2_index + (uint32_t)i, e->raw + i * e->step,
			e->bitmap);
	return QCOW_OK;
}

enum qcow_status qk_build_map_finish(struct qk_build_map *map, struct qcow_error *err)
{
	QK_TRY(write_l2(map, err));
	return write_l1(map, err);
}
