/* SPDX-License-Identifier: MIT */
/*
 * bytes: reading and writing on-disk structures through cursors that carry their bounds.
 *
 * A cursor that is asked for more than it has goes bad and stays bad: reads answer 0, writes go nowhere,
 * and one test of `bad` at the end judges the whole structure. All integers are big endian.
 */
#ifndef QK_BASE_BYTES_H
#define QK_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A borrowed run of bytes. */
struct qk_span {
	const uint8_t *p;
	size_t n;
};

struct qk_reader {
	const uint8_t *p;
	size_t n, at;
	bool bad;
};

struct qk_writer {
	uint8_t *p;
	size_t n, at;
	bool bad;
};

/* Big-endian loads and stores at a pointer that the caller has bounded. */
static inline uint16_t qk_load16(const uint8_t *p)
{
	uint16_t v;
	memcpy(&v, p, sizeof(v));
	return __builtin_bswap16(v);
}

static inline uint32_t qk_load32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof(v));
	return __builtin_bswap32(v);
}

static inline uint64_t qk_load64(const uint8_t *p)
{
	uint64_t v;
	memcpy(&v, p, sizeof(v));
	return __builtin_bswap64(v);
}

static inline void qk_store16(uint8_t *p, uint16_t v)
{
	v = __builtin_bswap16(v);
	memcpy(p, &v, sizeof(v));
}

static inline void qk_store32(uint8_t *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	memcpy(p, &v, sizeof(v));
}

static inline void qk_store64(uint8_t *p, uint64_t v)
{
	v = __builtin_bswap64(v);
	memcpy(p, &v, sizeof(v));
}

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "qk_load/qk_store assume a little-endian host"
#endif

static inline struct qk_reader qk_reader_init(const void *p, size_t n)
{
	return (struct qk_reader){.p = p, .n = n};
}

/* The next n bytes, or an empty span and bad. */
static inline struct qk_span qk_read_span(struct qk_reader *r, size_t n)
{
	if (r->bad || n > r->n - r->at) {
		r->bad = true;
		return (struct qk_span){0};
	}
	struct qk_span s = {r->p + r->at, n};
	r->at += n;
	return s;
}

static inline void qk_read_skip(struct qk_reader *r, size_t n)
{
	(void)qk_read_span(r, n);
}

static inline uint8_t qk_read8(struct qk_reader *r)
{
	struct qk_span s = qk_read_span(r, 1);
	return s.p != NULL ? s.p[0] : 0;
}

static inline uint16_t qk_read16(struct qk_reader *r)
{
	struct qk_span s = qk_read_span(r, 2);
	return s.p != NULL ? qk_load16(s.p) : 0;
}

static inline uint32_t qk_read32(struct qk_reader *r)
{
	struct qk_span s = qk_read_span(r, 4);
	return s.p != NULL ? qk_load32(s.p) : 0;
}

static inline uint64_t qk_read64(struct qk_reader *r)
{
	struct qk_span s = qk_read_span(r, 8);
	return s.p != NULL ? qk_load64(s.p) : 0;
}

static inline size_t qk_reader_left(const struct qk_reader *r)
{
	return r->bad ? 0 : r->n - r->at;
}

static inline struct qk_writer qk_writer_init(void *p, size_t n)
{
	return (struct qk_writer){.p = p, .n = n};
}

/* Room for n bytes, or NULL and bad. */
static inline uint8_t *qk_write_room(struct qk_writer *w, size_t n)
{
	if (w->bad || n > w->n - w->at) {
		w->bad = true;
		return NULL;
	}
	uint8_t *p = w->p + w->at;
	w->at += n;
	return p;
}

static inline void qk_write_bytes(struct qk_writer *w, const void *src, size_t n)
{
	uint8_t *p = qk_write_room(w, n);
	if (p != NULL && n != 0)
		memcpy(p, src, n);
}

static inline void qk_write_zeros(struct qk_writer *w, size_t n)
{
	uint8_t *p = qk_write_room(w, n);
	if (p != NULL)
		memset(p, 0, n);
}

static inline void qk_write8(struct qk_writer *w, uint8_t v)
{
	qk_write_bytes(w, &v, 1);
}

static inline void qk_write16(struct qk_writer *w, uint16_t v)
{
	uint8_t *p = qk_write_room(w, 2);
	if (p != NULL)
		qk_store16(p, v);
}

static inline void qk_write32(struct qk_writer *w, uint32_t v)
{
	uint8_t *p = qk_write_room(w, 4);
	if (p != NULL)
		qk_store32(p, v);
}

static inline void qk_write64(struct qk_writer *w, uint64_t v)
{
	uint8_t *p = qk_write_room(w, 8);
	if (p != NULL)
		qk_store64(p, v);
}

/* All n bytes are zero; wide compares. */
bool qk_is_zero(const void *p, size_t n);

#endif
