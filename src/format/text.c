/* SPDX-License-Identifier: MIT */
/*
 * text: short texts in fixed buffers, for messages that quote an image. Never writes past the
 * buffer and always ends it with a NUL; a byte that could act on a terminal is escaped. Pure.
 */
#include "format/text.h"

#include <stdarg.h>
#include <stdio.h>

struct qk_text qk_text_init(char *buf, size_t n)
{
	buf[0] = '\0';
	return (struct qk_text){.buf = buf, .n = n};
}

void qk_text_add(struct qk_text *t, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int len = vsnprintf(t->buf + t->at, t->n - t->at, fmt, ap);
	va_end(ap);
	QK_ASSERT_VOID(F8, len >= 0);
	t->at = (size_t)qk_min(t->at + (unsigned)len, t->n - 1);
}

void qk_text_add_escaped(struct qk_text *t, struct qk_span bytes)
{
	for (size_t i = 0; i < bytes.n; i++) {
		uint8_t c = bytes.p[i];
		bool plain = c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
		qk_text_add(t, plain ? "%c" : "\\x%02x", c);
	}
}
