/* SPDX-License-Identifier: MIT */
/*
 * rng: random numbers that can be had again.
 *
 * The seed is that of the environment (QCOWKIT_SEED=N) or a fixed one, and is printed to stderr, which the
 * test runner shows where a test fails.
 */
#ifndef QKT_RNG_H
#define QKT_RNG_H

#include <stddef.h>
#include <stdint.h>

struct qkt_rng {
	uint64_t state[4];
	uint64_t seed;
};

/* Seeded with QCOWKIT_SEED where it is set, else with `seed`; prints which. */
struct qkt_rng qkt_rng_init(uint64_t seed);

/* Seeded with exactly `seed`; nothing is printed. */
struct qkt_rng qkt_rng_fixed(uint64_t seed);

uint64_t qkt_rng_next(struct qkt_rng *rng);

/* In [0, n); n > 0. */
uint64_t qkt_rng_below(struct qkt_rng *rng, uint64_t n);

/* `n` random bytes. */
void qkt_rng_fill(struct qkt_rng *rng, void *buf, size_t n);

#endif
