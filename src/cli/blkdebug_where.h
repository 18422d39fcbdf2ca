/* SPDX-License-Identifier: MIT */
/*
 * blkdebug_where: what lies where in a qcow2 file, as its header, L1 table and refcount table say it now.
 *
 * For naming events alone: what is odd counts as data, nothing here fails or judges.
 */
#ifndef QK_CLI_BLKDEBUG_WHERE_H
#define QK_CLI_BLKDEBUG_WHERE_H

#include <qcowkit/store.h>

enum blkdebug_place {
	BLKDEBUG_DATA,
	BLKDEBUG_HEADER,
	BLKDEBUG_L1,
	BLKDEBUG_L2,
	BLKDEBUG_REFTABLE,
	BLKDEBUG_REFBLOCK
};

struct blkdebug_where {
	bool is_fresh, is_qcow2;
	uint64_t cluster; /* bytes */
	uint64_t l1_off, l1_bytes, rt_off, rt_bytes;
	uint64_t *l2, *blocks; /* offsets, ascending */
	size_t n_l2, n_blocks;
};

/* What lies at `off`. Reads the tables again where they may have changed. */
enum blkdebug_place blkdebug_place_of(
	struct blkdebug_where *where, struct qcow_store *store, uint64_t off);

/* A write is on its way to [off, off + len). */
void blkdebug_note_write(struct blkdebug_where *where, uint64_t off, uint64_t len);

void blkdebug_where_release(struct blkdebug_where *where);

#endif
