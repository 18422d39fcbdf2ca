/* SPDX-License-Identifier: MIT */
/*
 * header_plan: from any header area to any other. After every subset of the sectors of every step the bytes are
 * decoded: they say what the old area said or what the new one says, never the old again after the new, and at the end
 * they are what the encoder makes.
 */
#include "cm.h"

#include <stdlib.h>

#include "engine/header_plan.h"
#include "rng.h"

#define MAX_CLUSTER 65536U

/* An area in words. Lengths; 0: absent. */
struct spec {
	uint32_t version, cluster_bits, header_length;
	size_t name, format, data_file;
	bool bitmaps, crypto, names_table;
	size_t unknown[2];
};

struct area {
	struct qk_header h;
	struct qk_extensions ext;
	uint8_t text[4][8192]; /* name, format, data file, unknown */
	uint8_t bytes[MAX_CLUSTER];
};

static struct qk_span letters(uint8_t *room, size_t n, uint8_t first)
{
	if (n == 0)
		return (struct qk_span){0};
	for (size_t i = 0; i < n; i++)
		room[i] = (uint8_t)(first + i % 20);
	return (struct qk_span){room, n};
}

/* False where it does not fit its cluster. */
static bool build(struct area *a, const struct spec *s, uint8_t first)
{
	size_t at = 0;
	a->h = (struct qk_header){.version = s->version,
		.cluster_bits = s->cluster_bits,
		.header_length = s->header_length,
		.refcount_order = 4,
		.rt_off = UINT64_C(1) << s->cluster_bits,
		.rt_clusters = 1};
	a->ext = (struct qk_extensions){0};
	if (s->header_length > QK_V3_HEADER_BYTES)
		a->h.tail = letters(a->text[3] + 4096, s->header_length - 105, first);
	a->ext.backing_name = letters(a->text[0], s->name, first);
	a->ext.backing_format = letters(a->text[1], s->format, first);
	a->ext.data_file = letters(a->text[2], s->data_file, first);
	a->ext.has_bitmaps = s->bitmaps;
	a->ext.bitmaps = (struct qk_bitmaps_ext){first, 0, 64, (uint64_t)first << 21};
	for (unsigned i = 0; i < 2; i++) {
		if (s->unknown[i] == 0)
			continue;
		qk_store32(a->text[3] + at, 0x11223344 + i);
		qk_store32(a->text[3] + at + 4, (uint32_t)s->unknown[i]);
		(void)letters(a->text[3] + at + 8, s->unknown[i], first);
		at += 8 + (s->unknown[i] + 7) / 8 * 8;
	}
	a->ext.area = (struct qk_span){a->text[3], at};
	return s->header_length <= 1U << s->cluster_bits &&
	       qk_header_area_encode(&a->h, &a->ext, s->names_table, a->bytes,
		       (size_t)1 << s->cluster_bits, NULL) == QCOW_OK;
}

static bool same_span(struct qk_span a, struct qk_span b)
{
	return a.n == b.n && (a.p == NULL) == (b.p == NULL) &&
	       (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static bool next_unknown(const struct qk_extensions *ext, size_t *at, struct qk_ext *out)
{
	while (qk_ext_next(ext, at, out))
		if (out->type == 0x11223344 || out->type == 0x11223345)
			return true;
	return false;
}

static bool same_unknown(const struct qk_extensions *a, const struct qk_extensions *b)
{
	size_t i = 0, k = 0;
	struct qk_ext e = {0}, f = {0};
	for (;;) {
		bool more = next_unknown(a, &i, &e);
		if (more != next_unknown(b, &k, &f))
			return false;
		if (!more)
			return true;
		if (e.type != f.type || !same_span(e.data, f.data))
			return false;
	}
}

/* Do these bytes say what `a` does, but for feature names? */
static bool says(const uint8_t *bytes, size_t n, const struct area *a)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qk_header_area_decode((struct qk_span){bytes, n}, &h, &ext, &err), err);
	size_t tail = h.tail.n < a->h.tail.n ? h.tail.n : a->h.tail.n;
	return h.size == a->h.size && h.autoclear == a->h.autoclear &&
	       same_span(ext.backing_name, a->ext.backing_name) &&
	       same_span(ext.backing_format, a->ext.backing_format) &&
	       same_span(ext.data_file, a->ext.data_file) &&
	       ext.has_bitmaps == a->ext.has_bitmaps &&
	       (!ext.has_bitmaps ||
		       memcmp(&ext.bitmaps, &a->ext.bitmaps, sizeof(ext.bitmaps)) == 0) &&
	       same_unknown(&ext, &a->ext) &&
	       (tail == 0 || memcmp(h.tail.p, a->h.tail.p, tail) == 0);
}

static uint8_t disk[MAX_CLUSTER], crashed[MAX_CLUSTER];
static uint64_t n_states;

/* The step with the sectors of `mask` durable (with `rng`: random ones beside). */
static void crash(const struct qk_header_step *s, size_t n, uint64_t mask, struct qkt_rng *rng)
{
	memcpy(crashed, disk, n);
	for (size_t i = 0; i < s->len / QK_SECTOR; i++) {
		bool is_in = rng != NULL ? qkt_rng_below(rng, 2) != 0 : (mask >> i & 1) != 0;
		if (is_in)
			memcpy(crashed + s->off + i * QK_SECTOR, s->bytes + i * QK_SECTOR,
				QK_SECTOR);
	}
}

static void judge(size_t n, const struct area *from, const struct area *to, bool *was_new)
{
	bool is_old = says(crashed, n, from), is_new = says(crashed, n, to);
	n_states++;
	assert_true(is_old || is_new);
	assert_true(!*was_new || is_new);
}

static void walk(const struct qk_header_plan *plan, size_t n, const struct area *from,
	const struct area *to, struct qkt_rng *rng)
{
	bool was_new = false;
	memcpy(disk, from->bytes, n);
	for (unsigned i = 0; i < plan->n; i++) {
		const struct qk_header_step *s = &plan->steps[i];
		size_t sectors = s->len / QK_SECTOR;
		assert_true(s->off % QK_SECTOR == 0 && s->len % QK_SECTOR == 0 && s->len != 0);
		assert_true(s->off != 0 || s->len == QK_SECTOR);
		assert_true(s->off + s->len <= n);
		for (uint64_t mask = 0; mask < UINT64_C(1) << (sectors < 6 ? sectors : 6); mask++) {
			crash(s, n, mask, sectors < 6 ? NULL : rng);
			judge(n, from, to, &was_new);
		}
		memcpy(disk + s->off, s->bytes, s->len);
		was_new = was_new || !says(disk, n, from);
	}
}

/* What the encoder makes, as version 3 writers do. */
static void expect_final(const struct area *to, size_t n)
{
	static uint8_t want[MAX_CLUSTER];
	struct qk_header h = to->h;
	if (h.version >= 3 && h.header_length < 112)
		h.header_length = 112;
	assert_int_equal(qk_header_area_encode(
				 &h, &to->ext, qk_header_wants_feature_names(&h), want, n, NULL),
		QCOW_OK);
	assert_memory_equal(disk, want, n);
}

/* The number of steps, or -1 where there was no room. */
static int change(const struct spec *before, const struct spec *after, struct qkt_rng *rng)
{
	static struct area from, to;
	struct qk_header_plan plan;
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t n = (size_t)1 << before->cluster_bits;
	if (!build(&from, before, 'a') || !build(&to, after, 'A'))
		return -2;
	/* fields of the fixed header change with the rest, the unknown bytes stay */
	to.h.size = 0;
	from.h.size = 0;
	if (before->version >= 3)
		to.h.autoclear = QK_AUTOCLEAR_BITMAPS;
	to.h.tail = from.h.tail;
	enum qcow_status status = qk_header_plan_make(
		(struct qk_span){from.bytes, n}, &to.h, &to.ext, &plan, &err);
	int steps = (int)plan.n;
	if (status == QCOW_OK) {
		walk(&plan, n, &from, &to, rng);
		expect_final(&to, n);
	} else {
		assert_status(status, QCOW_E_LIMIT, err);
		assert_int_equal(plan.n, 0);
		steps = -1;
	}
	qk_header_plan_release(&plan);
	return steps;
}

static struct spec short_one(uint32_t bits)
{
	return (struct spec){.version = 3, .cluster_bits = bits, .header_length = 112, .name = 10};
}

static void one_write_where_all_is_in_sector_0(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_fixed(1);
	struct spec a = short_one(9), b = short_one(9);
	b.name = 200;
	assert_int_equal(change(&a, &b, &rng), 1);
	a = b = short_one(12);
	b.name = 0;
	assert_int_equal(change(&a, &b, &rng), 1);
}

static void each_way_is_taken(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_fixed(2);
	struct spec a = short_one(16), b = short_one(16);
	/* the old is in sector 0; the new has feature names */
	assert_int_equal(change(&a, &b, &rng), 2);
	/* both have feature names, and fit without them */
	a.names_table = true;
	b.name = 100;
	assert_int_equal(change(&a, &b, &rng), 3);
	/* the old packed, the new does not fit */
	b.name = 900;
	assert_int_equal(change(&a, &b, &rng), 3);
	/* neither fits */
	a.name = 901;
	assert_int_equal(change(&a, &b, &rng), 5);
	/* the new is in sector 0 */
	a = b = short_one(12);
	a.name = 1000;
	assert_int_equal(change(&a, &b, &rng), 2);
	a.header_length = b.header_length = 72;
	a.version = b.version = 2;
	assert_int_equal(change(&a, &b, &rng), 2);
}

static void where_both_do_not_fit_it_is_refused(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_fixed(3);
	struct spec a = short_one(10), b = short_one(10);
	a.name = 600;
	b.name = 700;
	assert_int_equal(change(&a, &b, &rng), -1);
	a.cluster_bits = b.cluster_bits = 11;
	assert_int_equal(change(&a, &b, &rng), 5);
	b.name = 0;
	a.cluster_bits = b.cluster_bits = 10;
	assert_int_equal(change(&a, &b, &rng), 2);
}

static void the_same_again_is_no_write(void **state)
{
	(void)state;
	static struct area a;
	struct qk_header_plan plan;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct spec s = short_one(16);
	s.names_table = true;
	assert_true(build(&a, &s, 'a'));
	assert_ok(qk_header_plan_make((struct qk_span){a.bytes, 65536}, &a.h, &a.ext, &plan, &err),
		err);
	assert_int_equal(plan.n, 0);
}

static struct spec random_spec(struct qkt_rng *rng)
{
	static const uint32_t lengths[] = {104, 112, 112, 112, 120, 160, 600};
	struct spec s = {.version = qkt_rng_below(rng, 5) == 0 ? 2 : 3};
	s.cluster_bits = 9 + (uint32_t)qkt_rng_below(rng, 8);
	s.header_length = s.version == 2 ? 72 : lengths[qkt_rng_below(rng, 7)];
	return s;
}

static size_t maybe(struct qkt_rng *rng, size_t max)
{
	if (qkt_rng_below(rng, 2) == 0)
		return 0;
	return 1 + qkt_rng_below(rng, qkt_rng_below(rng, 2) == 0 ? 40 : max);
}

static void fill_spec(struct qkt_rng *rng, struct spec *s)
{
	s->name = maybe(rng, 1023);
	s->format = s->name != 0 ? maybe(rng, 15) % 16 : 0;
	s->data_file = maybe(rng, 1023);
	s->bitmaps = qkt_rng_below(rng, 3) == 0;
	s->names_table = qkt_rng_below(rng, 4) != 0 && s->cluster_bits >= 13;
	for (unsigned i = 0; i < 2; i++)
		s->unknown[i] = qkt_rng_below(rng, 3) == 0 ? maybe(rng, 1500) : 0;
}

static void from_any_to_any(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(20);
	unsigned n[QK_HEADER_STEPS + 1] = {0}, refused = 0;
	for (unsigned i = 0; i < 3000; i++) {
		struct spec a = random_spec(&rng), b = a;
		fill_spec(&rng, &a);
		fill_spec(&rng, &b);
		int steps = change(&a, &b, &rng);
		if (steps >= 0)
			n[steps]++;
		else
			refused += steps == -1;
	}
	print_message("%llu states; 1 step %u, 2: %u, 3: %u, 5: %u, refused %u\n",
		(unsigned long long)n_states, n[1], n[2], n[3], n[5], refused);
	assert_true(n[1] > 10 && n[2] > 10 && n[3] > 10 && n[5] > 10 && refused > 10);
	/* refused is what no cluster could hold, in small clusters or behind a huge fixed header */
	assert_true(refused < 800);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_write_where_all_is_in_sector_0),
		cmocka_unit_test(each_way_is_taken),
		cmocka_unit_test(where_both_do_not_fit_it_is_refused),
		cmocka_unit_test(the_same_again_is_no_write),
		cmocka_unit_test(from_any_to_any),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
