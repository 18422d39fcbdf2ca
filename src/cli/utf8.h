/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_UTF8_H
#define QK_CLI_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* The length of the UTF-8 sequence at `text` (bytes > 0 are there) and its code point; 0 where it is no
 * valid, shortest-form sequence. */
size_t cli_utf8_next(const char *text, size_t bytes, uint32_t *code);

#endif
