/* SPDX-License-Identifier: MIT */
/* A record of the file that shim.c writes: this head, then `len` bytes for QKC_WRITE. Host byte order. */
#ifndef QKC_SHIM_H
#define QKC_SHIM_H

#include <stdint.h>

struct qkc_record {
	uint64_t kind; /* enum qkc_event_kind */
	uint64_t off, len;
};

#endif
