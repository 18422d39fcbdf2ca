/* SPDX-License-Identifier: MIT */
/*
 * buf: bytes that grow at their end. Once memory is out it is bad and stays so; one test at the end is enough.
 */
#ifndef QK_SERVE_NBD_BUF_H
#define QK_SERVE_NBD_BUF_H

#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/num.h"

struct qk_nbd_buf {
	uint8_t *p;
	size_t n, cap;
	bool bad;
};

/* Room for n more bytes behind the last, or NULL and bad. */
static inline uint8_t *qk_nbd_buf_room(struct qk_nbd_buf *b, size_t n)
{
	if (n > b->cap - b->n) {
		uint64_t cap = qk_max(b->n + n, qk_max(256, 2 * b->cap));
		uint8_t *p = b->bad ? NULL : qk_realloc(b->p, cap, 1);
		if (p == NULL) {
			b->bad = true;
			return NULL;
		}
		b->p = p;
		b->cap = (size_t)cap;
	}
	b->n += n;
	return b->p + b->n - n;
}

static inline void qk_nbd_buf_add(struct qk_nbd_buf *b, const void *src, size_t n)
{
	uint8_t *p = n != 0 ? qk_nbd_buf_room(b, n) : NULL;
	if (p != NULL)
		memcpy(p, src, n);
}

static inline void qk_nbd_buf_add16(struct qk_nbd_buf *b, uint16_t v)
{
	uint8_t *p = qk_nbd_buf_room(b, 2);
	if (p != NULL)
		qk_store16(p, v);
}

static inline void qk_nbd_buf_add32(struct qk_nbd_buf *b, uint32_t v)
{
	uint8_t *p = qk_nbd_buf_room(b, 4);
	if (p != NULL)
		qk_store32(p, v);
}

static inline void qk_nbd_buf_add64(struct qk_nbd_buf *b, uint64_t v)
{
	uint8_t *p = qk_nbd_buf_room(b, 8);
	if (p != NULL)
		qk_store64(p, v);
}

static inline void qk_nbd_buf_free(struct qk_nbd_buf *b)
{
	free(b->p);
	*b = (struct qk_nbd_buf){0};
}

#endif
