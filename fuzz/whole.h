/* SPDX-License-Identifier: MIT */
/*
 * whole: what the targets of whole images share: a store of the input that nobody may write to, and the bounds
 * of memory and time.
 */
#ifndef QK_FUZZ_WHOLE_H
#define QK_FUZZ_WHOLE_H

#include "fuzz.h"

#include <qcowkit/qcowkit.h>

struct fuzz_input {
	const uint8_t *data;
	size_t n;
	uint64_t reads, bytes_read; /* by all threads; atomic */
};

/* A store of the bytes, which aborts where it is written to, flushed, or read beyond them. */
struct qcow_store *fuzz_store_open(struct fuzz_input *input);

/* `what` may take so much memory at a time beyond what is there now (sanitized builds measure it), and some
 * seconds of processor time. */
void fuzz_bounds_begin(void);
void fuzz_bounds_end(const char *what, uint64_t memory_bytes);

#define FUZZ_MIB (UINT64_C(1) << 20)

#endif
