/* SPDX-License-Identifier: MIT */
/*
 * iov: a place in a list of buffers, and taking the next bytes from there without copying.
 */
#ifndef QK_ENGINE_IOV_H
#define QK_ENGINE_IOV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct qk_iov {
	const struct iovec *iov;
	int n; /* buffers left, the current one among them */
	size_t at; /* bytes of the current one that are behind */
};

/* The sum of the buffers; false where it overflows 64 bits, or n is negative. */
bool qk_iov_sum(const struct iovec *iov, int n, uint64_t *out);

/* The next up to `len` bytes as at most `max` buffers in out[]; *n of them, with *taken bytes > 0 where len > 0,
 * max > 0 and something is left. Moves on. */
void qk_iov_take(
	struct qk_iov *from, uint64_t len, struct iovec *out, int max, int *n, uint64_t *taken);

#endif
