/* SPDX-License-Identifier: MIT */
#include "rng.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* splitmix64: fills the state of xoshiro256** from one word, as its authors advise. */
static uint64_t mix(uint64_t *x)
{
	uint64_t z = *x += 0x9e3779b97f4a7c15u;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

struct qkt_rng qkt_rng_fixed(uint64_t seed)
{
	struct qkt_rng rng = {.seed = seed};
	for (size_t i = 0; i < 4; i++)
		rng.state[i] = mix(&seed);
	return rng;
}

struct qkt_rng qkt_rng_init(uint64_t seed)
{
	const char *given = getenv("QCOWKIT_SEED");
	if (given != NULL && given[0] != '\0')
		seed = strtoull(given, NULL, 0);
	/* where a failing assertion lands in the log next to it; cmocka has no hook for failures */
	(void)fprintf(stderr, "seed: QCOWKIT_SEED=0x%" PRIx64 "\n", seed);
	return qkt_rng_fixed(seed);
}

static uint64_t rotate(uint64_t v, unsigned n)
{
	return v << n | v >> (64 - n);
}

uint64_t qkt_rng_next(struct qkt_rng *rng)
{
	uint64_t *s = rng->state;
	uint64_t result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
	s[2] ^= s[0];
	s[3] ^= s[1];
	s[1] ^= s[2];
	s[0] ^= s[3];
	s[2] ^= t;
	s[3] = rotate(s[3], 45);
	return result;
}

uint64_t qkt_rng_below(struct qkt_rng *rng, uint64_t n)
{
	return qkt_rng_next(rng) % n;
}

void qkt_rng_fill(struct qkt_rng *rng, void *buf, size_t n)
{
	uint8_t *p = buf;
	while (n > 0) {
		uint64_t v = qkt_rng_next(rng);
		size_t step = n < sizeof(v) ? n : sizeof(v);
		memcpy(p, &v, step);
		p += step;
		n -= step;
	}
}
