/* SPDX-License-Identifier: MIT */
/*
 * text: inside of format: building a short text for a message in a fixed buffer. What does not fit
 * is cut.
 */
#ifndef QK_FORMAT_TEXT_H
#define QK_FORMAT_TEXT_H

#include "base/bytes.h"
#include "base/err.h"
#include "base/num.h"

struct qk_text {
	char *buf;
	size_t n, at; /* at < n, and buf[at] is the NUL */
};

/* n >= 1. */
struct qk_text qk_text_init(char *buf, size_t n);
void qk_text_add(struct qk_text *t, const char *fmt, ...) QK_PRINTF(2, 3);
/* Bytes from an image: everything but printable ASCII is written as \xNN, and so are " and \. */
void qk_text_add_escaped(struct qk_text *t, struct qk_span bytes);

#endif
