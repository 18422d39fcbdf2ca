/* SPDX-License-Identifier: MIT */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void qkt_model_resize(struct qkt_model *m, size_t size)
{
	uint8_t *bytes = realloc(m->bytes, size != 0 ? size : 1);
	if (bytes == NULL) {
		(void)fprintf(stderr, "model: out of memory\n");
		abort();
	}
	if (size > m->size)
		memset(bytes + m->size, 0, size - m->size);
	m->bytes = bytes;
	m->size = size;
}

struct qkt_model qkt_model_new(size_t size)
{
	struct qkt_model m = {NULL, 0};
	qkt_model_resize(&m, size);
	return m;
}

void qkt_model_free(struct qkt_model *m)
{
	free(m->bytes);
	*m = (struct qkt_model){NULL, 0};
}

void qkt_model_write(struct qkt_model *m, const void *buf, size_t len, size_t off)
{
	if (off + len > m->size)
		qkt_model_resize(m, off + len);
	if (len != 0)
		memcpy(m->bytes + off, buf, len);
}

void qkt_model_zero(struct qkt_model *m, size_t len, size_t off)
{
	if (off + len > m->size)
		qkt_model_resize(m, off + len);
	memset(m->bytes + off, 0, len);
}

size_t qkt_model_differs(const struct qkt_model *m, const void *buf, size_t len, size_t off)
{
	const uint8_t *p = buf;
	for (size_t i = 0; i < len; i++)
		if (off + i >= m->size || m->bytes[off + i] != p[i])
			return off + i;
	return SIZE_MAX;
}
