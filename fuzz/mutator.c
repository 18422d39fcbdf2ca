/* SPDX-License-Identifier: MIT */
/*
 * mutator: what libFuzzer calls to change an image; without libFuzzer, in the replay, nothing calls it.
 */
#include "mutate.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed);
__attribute__((weak)) size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t max)
{
	(void)data, (void)max;
	return n;
}

/* Mostly fields; now and then what libFuzzer makes of its comparisons. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed)
{
	if (seed % 8 == 0)
		return LLVMFuzzerMutate(data, n, max);
	return mutate_image(data, n, max, seed);
}
