/* SPDX-License-Identifier: MIT */
/*
 * golden: the vectors of tests/golden, and small helpers of the format's tests.
 * tools/golden-vectors says what the files hold.
 */
#ifndef QK_TEST_GOLDEN_H
#define QK_TEST_GOLDEN_H

#include <stdlib.h>

#include "cm.h"
#include "rng.h"

#include "base/bytes.h"
#include "format/header.h"

#define CHECK(condition, ...)                       \
	do {                                        \
		if (!(condition)) {                 \
			print_error(__VA_ARGS__);   \
			print_error(": ");          \
			fail_msg("%s", #condition); \
		}                                   \
	} while (0)

struct golden {
	const char *name;
	const char *text; /* the lines of NAME.txt */
	struct qk_span bin;
};

/* Call `test` for each vector, at least 60 of them. */
void golden_each(void (*test)(const struct golden *g));

/* One vector by name, for tests of one case. */
void golden_one(const char *name, void (*test)(const struct golden *g));

/* The `nth` section of this kind, whole (zeros restored), to be freed; NULL if there is none. Empty
 * sections answer a pointer too. *off is its place in the image. */
uint8_t *golden_section(
	const struct golden *g, const char *kind, unsigned nth, size_t *n, uint64_t *off);

/* The rest of the `nth` line that begins with "KEY ", copied to buf; NULL if there is none. */
const char *golden_fact(
	const struct golden *g, const char *key, unsigned nth, char *buf, size_t buf_n);
/* As a number; `missing` if there is none. */
uint64_t golden_number(const struct golden *g, const char *key, uint64_t missing);

/* Decode and validate the header section; geometry too. `cluster0` is to be freed. */
uint8_t *golden_header(const struct golden *g, struct qk_header *h, struct qk_extensions *ext,
	struct qk_geometry *geometry);

#endif
