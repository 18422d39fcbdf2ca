/* SPDX-License-Identifier: MIT */
/*
 * model: a disk as an array of bytes, the oracle of random operations. It shares no code with the
 * library.
 */
#ifndef QKT_MODEL_H
#define QKT_MODEL_H

#include <stddef.h>
#include <stdint.h>

struct qkt_model {
	uint8_t *bytes;
	size_t size;
};

struct qkt_model qkt_model_new(size_t size);
void qkt_model_free(struct qkt_model *m);

/* Each grows the array with zeros where the range ends past it. */
void qkt_model_write(struct qkt_model *m, const void *buf, size_t len, size_t off);
void qkt_model_zero(struct qkt_model *m, size_t len, size_t off);
void qkt_model_resize(struct qkt_model *m, size_t size);

/* Offset of the first byte that differs from `buf`, or SIZE_MAX. */
size_t qkt_model_differs(const struct qkt_model *m, const void *buf, size_t len, size_t off);

#endif
