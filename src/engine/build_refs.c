/* SPDX-License-Identifier: MIT */
/*
 * build_refs: host clusters of a new image, handed out in order, and their refcounts.
 *
 * Invariants:
 *   B1  every cluster below `next` has a refcount block, and that block lies below `next`
 *   B2  refcounts are set in rising order, so only block 0 and the block being filled are in memory
 *   B3  a refcount block is written once, when the next one is opened or at the end
 *
 * A refcount block follows the run that needs it, as qemu-img places it: the run stays whole.
 * Specification: "Host cluster management".
 */
#include "engine/build.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"

#define HEADER_CLUSTERS 1U
#define TABLE_CLUSTER	1U
#define MAX_BLOCKS	(QK_MAX_REFTABLE_BYTES / 8)

static enum qcow_status add_block(struct qk_build_refs *refs, struct qcow_error *err)
{
	if (refs->n_blocks == MAX_BLOCKS)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"the image needs a refcount table over %" PRIu64
			" bytes with a cluster size of %" PRIu64 " and %u-bit refcounts",
			QK_MAX_REFTABLE_BYTES, refs->g->cluster_size, refs->g->refcount_bits);
	if (refs->n_blocks == refs->room) {
		uint64_t room = refs->room == 0 ? 64 : refs->room * 2;
		uint64_t *blocks = qk_realloc(refs->blocks, room, sizeof(*blocks));
		if (blocks == NULL)
			return QK_FAIL_NOMEM(err);
		refs->blocks = blocks;
		refs->room = room;
	}
	refs->blocks[refs->n_blocks++] = refs->next++ << refs->g->cluster_bits;
	return QCOW_OK;
}

static enum qcow_status write_open(struct qk_build_refs *refs, struct qcow_error *err)
{
	if (refs->open_idx == QK_BUILD_NONE)
		return QCOW_OK;
	return qcow_store_write(
		refs->store, refs->open, refs->g->cluster_size, refs->blocks[refs->open_idx], err);
}

/* The buffer of block `idx`: 0, the open one, or the next, which is opened. */
static enum qcow_status open_block(
	struct qk_build_refs *refs, uint64_t idx, uint8_t **out, struct qcow_error *err)
{
	if (idx == 0) {
		*out = refs->first;
		return QCOW_OK;
	}
	if (idx != refs->open_idx) {
		QK_ASSERT(B2, refs->open_idx == QK_BUILD_NONE || idx > refs->open_idx);
		QK_TRY(write_open(refs, err));
		memset(refs->open, 0, refs->g->cluster_size);
		refs->open_idx = idx;
	}
	*out = refs->open;
	return QCOW_OK;
}

/* Refcount 1 for entries [at, at + n) of a block. Millions of entries in a preallocated image: whole
 * bytes and words are set by pattern. */
static void set_ones(const struct qk_geometry *g, uint8_t *block, uint64_t at, uint64_t n)
{
	static const uint8_t pattern[] = {0xff, 0x55, 0x11}; /* widths 1, 2, 4 */

	if (g->refcount_order < 3) {
		uint64_t per_byte = 8U >> g->refcount_order;
		for (; n != 0 && at % per_byte != 0; n--)
			qk_refcount_set(g, block, at++, 1);
		memset(block + at / per_byte, pattern[g->refcount_order], n / per_byte);
		at += n - n % per_byte;
		n %= per_byte;
	} else if (g->refcount_order == 4) {
		for (; n != 0; n--)
			qk_store16(block + 2 * at++, 1);
	}
	for (; n != 0; n--)
		qk_refcount_set(g, block, at++, 1);
}

static enum qcow_status count_run(
	struct qk_build_refs *refs, uint64_t begin, uint64_t end, struct qcow_error *err)
{
	while (begin < end) {
		uint64_t idx = begin >> refs->g->rb_bits;
		uint64_t at = begin & (refs->g->rb_entries - 1);
		uint64_t n = qk_min(end - begin, refs->g->rb_entries - at);
		uint8_t *block = NULL;

		QK_TRY(open_block(refs, idx, &block, err));
		set_ones(refs->g, block, at, n);
		begin += n;
	}
	return QCOW_OK;
}

enum qcow_status qk_build_refs_take(
	struct qk_build_refs *refs, uint64_t n, qk_hoff *out, struct qcow_error *err)
{
	uint64_t begin = refs->next;
	uint64_t last = QK_MAX_OFFSET >> refs->g->cluster_bits;

	QK_ASSERT(B1, n != 0 && begin <= refs->n_blocks << refs->g->rb_bits);
	/* blocks for the run may follow it: as many again as the run has clusters would still be few */
	if (n > last / 4 || begin > last / 2)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"the image file would grow past %" PRIu64
			" bytes, what its entries can address",
			QK_MAX_OFFSET);
	refs->next += n;
	while (refs->n_blocks << refs->g->rb_bits < refs->next)
		QK_TRY(add_block(refs, err));
	QK_TRY(count_run(refs, begin, refs->next, err));
	refs->end_off = refs->next << refs->g->cluster_bits;
	out->v = begin << refs->g->cluster_bits;
	return QCOW_OK;
}

enum qcow_status qk_build_refs_init(struct qk_build_refs *refs, struct qcow_store *store,
	const struct qk_geometry *g, struct qcow_error *err)
{
	qk_hoff header = {0};

	*refs = (struct qk_build_refs){.store = store, .g = g, .open_idx = QK_BUILD_NONE};
	refs->first = qk_calloc(1, g->cluster_size);
	refs->open = qk_calloc(1, g->cluster_size);
	if (refs->first == NULL || refs->open == NULL)
		return QK_FAIL_NOMEM(err);
	return qk_build_refs_take(refs, HEADER_CLUSTERS + 1, &header, err);
}

void qk_build_refs_release(struct qk_build_refs *refs)
{
	free(refs->blocks);
	free(refs->first);
	free(refs->open);
}

bool qk_build_refs_raise(struct qk_build_refs *refs, qk_hoff cluster)
{
	uint64_t index = cluster.v >> refs->g->cluster_bits;
	uint64_t idx = index >> refs->g->rb_bits;
	uint64_t at = index & (refs->g->rb_entries - 1);
	uint8_t *block = refs->open;

	if (idx == 0)
		block = refs->first;
	else if (idx != refs->open_idx)
		return false;
	uint64_t count = qk_refcount_get(refs->g, block, at);
	if (count == refs->g->refcount_max)
		return false;
	qk_refcount_set(refs->g, block, at, count + 1);
	return true;
}

/* Refcount blocks once n more clusters are taken: those that are added count themselves. */
static uint64_t blocks_after(const struct qk_build_refs *refs, uint64_t n)
{
	uint64_t blocks = refs->n_blocks;

	while (blocks << refs->g->rb_bits < refs->next + n + (blocks - refs->n_blocks))
		blocks++;
	return blocks;
}

/* A table of more than one cluster goes to the end. Taking its clusters may add blocks, and their entries
 * may take one more cluster of it: each round adds at least one, a few rounds. */
static enum qcow_status move_table(struct qk_build_refs *refs, qk_hoff *table_off,
	uint32_t *table_clusters, struct qcow_error *err)
{
	uint64_t per_cluster = refs->g->cluster_size / 8;
	uint64_t n = qk_div_up(refs->n_blocks, per_cluster);
	uint64_t before = 0;

	do {
		before = n;
		n = qk_div_up(blocks_after(refs, n), per_cluster);
	} while (n != before);
	QK_TRY(qk_build_refs_take(refs, n, table_off, err));
	QK_ASSERT(B1, refs->n_blocks <= n * per_cluster);
	QK_ASSERT(B2, refs->g->rb_entries > TABLE_CLUSTER);
	qk_refcount_set(refs->g, refs->first, TABLE_CLUSTER, 0);
	*table_clusters = (uint32_t)n;
	return QCOW_OK;
}

static enum qcow_status write_table(
	struct qk_build_refs *refs, qk_hoff off, uint64_t n_clusters, struct qcow_error *err)
{
	uint64_t bytes = n_clusters << refs->g->cluster_bits;
	QK_AUTO_FREE uint8_t *table = qk_calloc(1, bytes);

	if (table == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t i = 0; i < refs->n_blocks; i++)
		qk_store64(table + 8 * i, refs->blocks[i]);
	return qcow_store_write(refs->store, table, bytes, off.v, err);
}

enum qcow_status qk_build_refs_finish(struct qk_build_refs *refs, qk_hoff *table_off,
	uint32_t *table_clusters, struct qcow_error *err)
{
	table_off->v = (uint64_t)TABLE_CLUSTER << refs->g->cluster_bits;
	*table_clusters = 1;
	if (refs->n_blocks > refs->g->cluster_size / 8)
		QK_TRY(move_table(refs, table_off, table_clusters, err));
	QK_TRY(write_open(refs, err));
	QK_TRY(qcow_store_write(
		refs->store, refs->first, refs->g->cluster_size, refs->blocks[0], err));
	return write_table(refs, *table_off, *table_clusters, err);
}
