/* SPDX-License-Identifier: MIT */
/*
 * handmade: bytes of an image put where a test of the order checker wants them, and the checker between them and the test. Clusters
 * are 4 KiB; 0 is the header, 1 the refcount table, 2 the refcount block of 16-bit counts, 3 the L1 and 4 the L2 table.
 */
#ifndef QKT_HANDMADE_H
#define QKT_HANDMADE_H

#include "cm.h"

#include <stdlib.h>

#include <qcowkit/store.h>

#include "order.h"

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

/* The refcount of a cluster. */
static inline void rc(struct qcow_store *s, uint64_t cluster, uint64_t n)
{
	uint8_t b[2];
	put(b, n, 2);
	w(s, 2 * CS + cluster * 2, b, 2);
}

/* An image under judgement. */
struct t {
	struct qcow_store *base, *s; /* as it is, and through the checker */
	struct qcow_store *d; /* of a data file, or NULL */
	struct qkt_fault *f;
	struct qkt_order *o;
};

/* Owns both from here on. data: NULL where there is none. */
static inline void judge(struct t *t, struct qcow_store *base, struct qcow_store *data)
{
	const struct qkt_order_options opt = {.report = true};
	*t = (struct t){.base = base, .f = qkt_fault_new(), .o = qkt_order_new(&opt)};
	t->s = qkt_guard(t->f, t->o, base, 0);
	if (data != NULL)
		t->d = qkt_guard_data(t->f, t->o, data, 1);
}

static inline void done(struct t *t)
{
	qcow_store_close(t->d);
	qcow_store_close(t->s);
	qkt_order_free(t->o);
	qkt_fault_free(t->f);
}

/* Was it judged so? 0 or 1: sequences that were judged otherwise. */
static inline unsigned not_judged(
	const struct t *t, const char *name, unsigned base, enum qkt_order_rule rule)
{
	if (qkt_order_rule(t->o) == rule)
		return 0;
	print_error("%s on base %u: O%d, not O%d: %s\n", name, base, (int)qkt_order_rule(t->o),
		(int)rule, qkt_order_message(t->o));
	return 1;
}

#endif
