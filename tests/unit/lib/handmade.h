/* SPDX-License-Identifier: MIT */
/*
 * handmade: bytes of an image put where a test of the order checker wants them. Clusters are 4 KiB; 0 is the header, 1 the refcount
 * table, 2 the refcount block, 3 the L1 and 4 the L2 table.
 */
#ifndef QKT_HANDMADE_H
#define QKT_HANDMADE_H

#include "cm.h"

#include <stdlib.h>

#include <qcowkit/store.h>

#define CS     4096u
#define COPIED (UINT64_C(1) << 63)

/* Big endian. */
static inline void put(uint8_t *p, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		p[i] = (uint8_t)(v >> 8 * (bytes - 1 - i));
}

static inline void w(struct qcow_store *s, uint64_t off, const void *p, size_t n)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_write(s, p, n, off, &err), err);
}

static inline void w64(struct qcow_store *s, uint64_t off, uint64_t v)
{
	uint8_t b[8];
	put(b, v, 8);
	w(s, off, b, 8);
}

static inline void fill(struct qcow_store *s, uint64_t off, size_t n, int value)
{
	uint8_t *b = malloc(n);
	assert_non_null(b);
	memset(b, value, n);
	w(s, off, b, n);
	free(b);
}

static inline void flush_store(struct qcow_store *s)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_flush(s, &err), err);
}

static inline void l2(struct qcow_store *s, unsigned slot, uint64_t v)
{
	w64(s, 4 * CS + slot * 8, v);
}

#endif
