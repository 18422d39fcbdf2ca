/* SPDX-License-Identifier: MIT */
/*
 * fuzz: what the targets share. An oracle that does not hold aborts, which both libFuzzer and the
 * replay report with the input that did it.
 */
#ifndef QK_FUZZ_H
#define QK_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "format/geometry.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define FUZZ_CHECK(condition)                                                           \
	do {                                                                            \
		if (!(condition)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                        \
		}                                                                       \
	} while (0)

/* A geometry from 3 bytes of input: always a valid one. */
static inline struct qk_geometry fuzz_geometry(struct qk_reader *r)
{
	struct qk_geometry g;
	unsigned bits = QK_MIN_CLUSTER_BITS + qk_read8(r) % 13;
	unsigned order = qk_read8(r) % 7;
	uint8_t flags = qk_read8(r);
	bool ext = (flags & 2) != 0 && bits >= QK_MIN_EXTL2_CLUSTER_BITS;
	qk_geometry_init(&g, (flags & 1) != 0 ? 3 : 2, bits, order, ext);
	g.data_file = (flags & 4) != 0;
	return g;
}

#endif
