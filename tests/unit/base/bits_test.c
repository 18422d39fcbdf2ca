/* SPDX-License-Identifier: MIT */
/* Ranges of bits, against an array with a byte for each bit. */
#include "base/bits.h"

#include <string.h>

#include <cm.h>
#include <rng.h>

enum {
	BITS = 512,
	BYTES = BITS / 8
};

struct pair {
	uint8_t packed[BYTES];
	bool plain[BITS];
};

static void fill(struct qkt_rng *rng, struct pair *p)
{
	unsigned one_in = 1 + (unsigned)qkt_rng_below(rng, 40);
	memset(p, 0, sizeof(*p));
	for (unsigned i = 0; i < BITS; i++) {
		p->plain[i] = qkt_rng_below(rng, one_in) == 0;
		p->packed[i / 8] |= (uint8_t)(p->plain[i] << (i % 8));
	}
}

static void assert_same(const struct pair *p)
{
	for (unsigned i = 0; i < BITS; i++)
		assert_int_equal(p->packed[i / 8] >> (i % 8) & 1, p->plain[i]);
}

static void ranges_are_set_cleared_and_found(void **state)
{
	struct qkt_rng rng = qkt_rng_fixed(1);
	(void)state;
	for (unsigned round = 0; round < 3000; round++) {
		struct pair p;
		fill(&rng, &p);
		uint64_t end = qkt_rng_below(&rng, BITS + 1), at = qkt_rng_below(&rng, end + 1);
		bool is_set = round % 2 != 0;
		uint64_t found = at;
		while (found < end && p.plain[found] != is_set)
			found++;
		assert_int_equal(qk_bits_find(p.packed, at, end, is_set), found);
		if (is_set)
			qk_bits_set(p.packed, at, end);
		else
			qk_bits_clear(p.packed, at, end);
		for (uint64_t i = at; i < end; i++)
			p.plain[i] = is_set;
		assert_same(&p);
	}
}

static void what_is_added_is_known(void **state)
{
	struct qkt_rng rng = qkt_rng_fixed(2);
	(void)state;
	for (unsigned round = 0; round < 1000; round++) {
		struct pair a, b;
		bool adds = false;
		fill(&rng, &a);
		fill(&rng, &b);
		for (unsigned i = 0; i < BITS; i++) {
			adds = adds || (b.plain[i] && !a.plain[i]);
			a.plain[i] = a.plain[i] || b.plain[i];
		}
		assert_int_equal(qk_bits_adds(a.packed, b.packed, BYTES), adds);
		qk_bits_or(a.packed, b.packed, BYTES);
		assert_same(&a);
		assert_false(qk_bits_adds(a.packed, b.packed, BYTES));
	}
	uint8_t ones[3] = {0xff, 0xff, 0xff};
	assert_true(qk_bits_all(ones, 3, 0xff) && !qk_bits_all(ones, 3, 0));
	ones[2] = 0x7f;
	assert_false(qk_bits_all(ones, 3, 0xff));
}

/* Each bit of the source covers what it stands for, of the target's bits that lie in the part. */
static void a_scaled_bit_covers_what_it_stands_for(void **state)
{
	struct qkt_rng rng = qkt_rng_fixed(3);
	(void)state;
	for (unsigned round = 0; round < 3000; round++) {
		struct pair src, dst;
		int shift = (int)qkt_rng_below(&rng, 13) - 6;
		fill(&rng, &src);
		fill(&rng, &dst);
		/* the part begins near to where the source does */
		uint64_t src_first = qkt_rng_below(&rng, 4000) * 8;
		uint64_t middle = shift > 0 ? src_first << shift : src_first >> -shift;
		uint64_t back = qkt_rng_below(&rng, 300), n = 1 + qkt_rng_below(&rng, BITS);
		uint64_t first = middle > back ? middle - back : 0;
		const struct qk_bits_part to = {dst.packed, first, n};
		uint64_t n_src = qkt_rng_below(&rng, BITS + 1);
		for (uint64_t i = 0; i < n_src; i++)
			for (uint64_t k = 0; src.plain[i] && k < (shift > 0 ? 1U << shift : 1);
				k++) {
				uint64_t bit = shift > 0 ? ((src_first + i) << shift) + k
							 : (src_first + i) >> -shift;
				if (bit >= first && bit < first + n)
					dst.plain[bit - first] = true;
			}
		qk_bits_scale(&to, src.packed, src_first, n_src, shift);
		assert_same(&dst);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ranges_are_set_cleared_and_found),
		cmocka_unit_test(what_is_added_is_known),
		cmocka_unit_test(a_scaled_bit_covers_what_it_stands_for),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
