/* SPDX-License-Identifier: MIT */
/* failmalloc: see failmalloc.c. For tests that are linked with it. */
#ifndef QKT_FAILMALLOC_H
#define QKT_FAILMALLOC_H

#include <stdbool.h>
#include <stdint.h>

/* The `nth` allocation from now on (from 1; 0: none) fails; with `ever` all after it too. */
void qkt_failmalloc_arm(uint64_t nth, bool ever);

/* Since it was armed: allocations that failed, allocations asked for. */
uint64_t qkt_failmalloc_hits(void);
uint64_t qkt_failmalloc_count(void);

/* Blocks that are allocated and not freed. */
int64_t qkt_failmalloc_live(void);

/* Bytes that are allocated, and the most there were at a time since the start (or the last start_peak). */
int64_t qkt_failmalloc_bytes(void);
void qkt_failmalloc_start_peak(void);
int64_t qkt_failmalloc_peak(void);

#endif
