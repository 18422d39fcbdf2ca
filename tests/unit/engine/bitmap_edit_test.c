/* SPDX-License-Identifier: MIT */
/*
 * qcow_bitmap_edit against an array of bits for each bitmap: random lists of actions, by us and by qemu-img in turns on
 * one file, with writes between them. What the file holds is read by an oracle that knows the specification alone
 * (dirtymap.h); every write of ours passes the order checker.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include <cm.h>
#include <dirtymap.h>
#include <host.h>
#include <image.h>
#include <qcowkit/manage.h>
#include <rng.h>

#define GRANULE	  512U /* of the model */
#define MAX_MAPS  8U
#define MAX_STEPS 6U

/* A bitmap, in granules of 512 bytes. */
struct map {
	char name[16];
	unsigned bits; /* of its granularity */
	bool is_auto;
	uint8_t *dirty;
};

struct maps {
	struct map v[MAX_MAPS + MAX_STEPS];
	unsigned n;
	uint64_t size;
};

static uint64_t granules(uint64_t size)
{
	return (size + GRANULE - 1) / GRANULE;
}

static void *need(size_t n)
{
	void *p = calloc(1, n);
	assert_non_null(p);
	return p;
}

static void copy_maps(struct maps *to, const struct maps *from)
{
	*to = *from;
	for (unsigned i = 0; i < to->n; i++) {
		to->v[i].dirty = need(granules(to->size));
		memcpy(to->v[i].dirty, from->v[i].dirty, granules(to->size));
	}
}

static void clear_maps(struct maps *m)
{
	while (m->n > 0)
		free(m->v[--m->n].dirty);
}

static int find_map(const struct maps *m, const char *name)
{
	for (unsigned i = 0; i < m->n; i++)
		if (strcmp(m->v[i].name, name) == 0)
			return (int)i;
	return -1;
}

/* Guest bytes [off, off + len) become dirty, rounded outward to the bitmap's granularity. */
static void mark(const struct maps *m, struct map *map, uint64_t off, uint64_t len)
{
	uint64_t first = off >> map->bits << map->bits;
	uint64_t end = (((off + len - 1) >> map->bits) + 1) << map->bits;
	end = end < m->size ? end : m->size;
	for (uint64_t i = first / GRANULE; i < granules(end); i++)
		map->dirty[i] = 1;
}

static void mark_written(struct maps *m, uint64_t off, uint64_t len)
{
	for (unsigned i = 0; i < m->n; i++)
		if (m->v[i].is_auto)
			mark(m, &m->v[i], off, len);
}

static void merge_maps(struct maps *m, struct map *to, const struct map *from)
{
	for (uint64_t i = 0; i < granules(m->size); i++)
		if (from->dirty[i] != 0)
			mark(m, to, i * GRANULE, 1);
}

/* ---- actions ---- */

struct list {
	struct qcow_bitmap_action v[MAX_STEPS];
	char names[MAX_STEPS][2][16];
	bool is_apart[MAX_STEPS]; /* the source is in the other image */
	size_t n;
};

static void drop_map(struct maps *m, unsigned i)
{
	free(m->v[i].dirty);
	memmove(&m->v[i], &m->v[i + 1], (m->n - i - 1) * sizeof(m->v[0]));
	m->n--;
}

/* Would it be done? It is, to the model. */
static bool act(struct maps *m, const struct qcow_bitmap_action *a, const struct maps *apart)
{
	int at = a->name != NULL ? find_map(m, a->name) : -1;
	if (a->act == QCOW_BITMAP_REMOVE_ALL) {
		clear_maps(m);
		return true;
	}
	if (a->act == QCOW_BITMAP_ADD) {
		if (at >= 0)
			return false;
		struct map *map = &m->v[m->n++];
		*map = (struct map){.bits = a->granularity_bits, .is_auto = true};
		(void)snprintf(map->name, sizeof(map->name), "%s", a->name);
		map->dirty = need(granules(m->size));
		return true;
	}
	if (at < 0)
		return false;
	if (a->act == QCOW_BITMAP_REMOVE)
		drop_map(m, (unsigned)at);
	else if (a->act == QCOW_BITMAP_CLEAR)
		memset(m->v[at].dirty, 0, granules(m->size));
	else if (a->act != QCOW_BITMAP_MERGE)
		m->v[at].is_auto = a->act == QCOW_BITMAP_ENABLE;
	else {
		int from = find_map(apart != NULL ? apart : m, a->source);
		if (from >= 0)
			merge_maps(m, &m->v[at], &(apart != NULL ? apart : m)->v[from]);
		return from >= 0;
	}
	return true;
}

static struct list make_list(struct qkt_rng *rng, size_t n)
{
	static const enum qcow_bitmap_act acts[] = {QCOW_BITMAP_ADD, QCOW_BITMAP_ADD,
		QCOW_BITMAP_ADD, QCOW_BITMAP_REMOVE, QCOW_BITMAP_CLEAR, QCOW_BITMAP_ENABLE,
		QCOW_BITMAP_DISABLE, QCOW_BITMAP_MERGE, QCOW_BITMAP_MERGE, QCOW_BITMAP_MERGE,
		QCOW_BITMAP_MERGE};
	struct list list = {.n = n};
	for (size_t i = 0; i < n; i++) {
		struct qcow_bitmap_action *a = &list.v[i];
		a->act = acts[qkt_rng_below(rng, sizeof(acts) / sizeof(acts[0]))];
		if (qkt_rng_below(rng, 50) == 0)
			a->act = QCOW_BITMAP_REMOVE_ALL;
		a->granularity_bits = a->act == QCOW_BITMAP_ADD
					      ? 9 + (uint32_t)qkt_rng_below(rng, 9)
					      : 0;
		for (unsigned k = 0; k < 2; k++)
			(void)snprintf(list.names[i][k], 16, "b%u",
				(unsigned)qkt_rng_below(rng, MAX_MAPS));
		list.is_apart[i] = a->act == QCOW_BITMAP_MERGE && qkt_rng_below(rng, 3) == 0;
	}
	return list;
}

/* Names live in the list, which must not move from here on. */
static void bind(struct list *list, struct qcow_image *apart)
{
	for (size_t i = 0; i < list->n; i++) {
		list->v[i].name = list->v[i].act != QCOW_BITMAP_REMOVE_ALL ? list->names[i][0]
									   : NULL;
		list->v[i].source = list->names[i][1];
		list->v[i].source_image = list->is_apart[i] ? apart : NULL;
	}
}

/* ---- one configuration ---- */

struct config {
	const char *name, *options;
	uint64_t size;
	const char *setup; /* shell commands on img, or NULL */
	bool is_fixed;
};

#define UP "././././././././././././././././"

static const struct config configs[] = {
	{"plain", "cluster_size=64k", 40 << 20, NULL, false},
	{"several data clusters", "cluster_size=512", 8 << 20, NULL, false},
	{"odd size", "cluster_size=4k", 3000320, NULL, false},
	{"c2M", "cluster_size=2M", 30 << 20, NULL, false},
	{"refcount 1", "cluster_size=4k,refcount_bits=1", 8 << 20, NULL, false},
	{"snapshot and compressed clusters", "cluster_size=4k", 8 << 20,
		"qemu-io -c 'write -c 1M 64k' img && qemu-img snapshot -c s img", false},
	{"backing file", "cluster_size=1k,backing_file=back,backing_fmt=qcow2", 8 << 20, NULL,
		false},
	{"long name", /* what comes behind it lies past sector 0 */
		"cluster_size=64k,backing_file=" UP UP UP UP UP UP UP UP "back,backing_fmt=qcow2",
		8 << 20, NULL, false},
	{"device", "cluster_size=4k", 8 << 20, "truncate -s 20M img", true},
};

struct bed {
	const struct config *c;
	struct qkt_rng rng;
	struct maps maps, apart;
	const char *qemus[2];
	size_t n_qemus;
};

static void compare(const struct bed *b, const char *file, const struct maps *m)
{
	size_t n = 0;
	uint8_t *bytes = qkt_slurp(qkt_path(file), &n);
	struct qkt_dirtymap map;
	uint32_t i = 0;
	for (; qkt_dirtymap_get(bytes, n, i, &map); i++) {
		char name[16] = "";
		memcpy(name, map.name, map.name_bytes < 15 ? map.name_bytes : 15);
		int at = find_map(m, name);
		if (at < 0)
			fail_msg("%s: there should be no bitmap '%s'", b->c->name, name);
		const struct map *want = &m->v[at];
		assert_false(map.in_use);
		assert_int_equal(map.is_auto, want->is_auto);
		assert_int_equal(map.granularity_bits, want->bits);
		for (uint64_t k = 0; k < granules(m->size); k++)
			if (qkt_dirtymap_at(&map, k * GRANULE) != (want->dirty[k] != 0))
				fail_msg("%s: bitmap '%s' at %" PRIu64 " is %s", b->c->name, name,
					k * GRANULE, want->dirty[k] != 0 ? "clean" : "dirty");
		/* bits past the end of the disk */
		uint64_t past = qkt_dirtymap_capacity(&map);
		for (uint64_t off = (m->size + (UINT64_C(1) << want->bits) - 1) >>
				    want->bits << want->bits;
			off < past; off += UINT64_C(1) << want->bits)
			assert_false(qkt_dirtymap_at(&map, off));
	}
	assert_int_equal(i, m->n);
	free(bytes);
}

static uint64_t some_range(struct bed *b, uint64_t *len)
{
	uint64_t off = qkt_rng_below(&b->rng, b->maps.size) / GRANULE * GRANULE;
	uint64_t most = qkt_rng_below(&b->rng, 8) == 0 ? b->maps.size : 100000;
	*len = (1 + qkt_rng_below(&b->rng, most)) / GRANULE * GRANULE + GRANULE;
	if (*len > b->maps.size - off)
		*len = (b->maps.size - off) / GRANULE * GRANULE;
	return off;
}

/* The other image: bitmaps of several granularities, written by QEMU alone. */
static void make_apart(struct bed *b)
{
	b->apart = (struct maps){.size = b->maps.size};
	qkt_must("qemu-img create -q -f qcow2 -o cluster_size=%s apart %" PRIu64,
		b->maps.size % 3 == 0 ? "64k" : "1k", b->maps.size);
	for (unsigned i = 0; i < 4; i++) {
		uint64_t len = 0;
		struct map *map = &b->apart.v[b->apart.n++];
		map->bits = 9 + 3 * i;
		map->is_auto = true;
		(void)snprintf(map->name, sizeof(map->name), "b%u", i);
		map->dirty = need(granules(b->apart.size));
		qkt_must("qemu-img bitmap --add -g %u apart %s", 1U << map->bits, map->name);
		uint64_t off = some_range(b, &len);
		qkt_must("qemu-io -c 'write -z %" PRIu64 " %" PRIu64 "' apart", off, len);
		mark_written(&b->apart, off, len);
	}
}

static void open_both(const struct bed *b, struct qkt_image *im, struct qcow_image **apart)
{
	const struct qkt_image_options o = {.is_fixed = b->c->is_fixed};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	assert_ok(qkt_image_open(im, qkt_path("img"), &o, &err), err);
	assert_ok(qcow_file_open(qkt_path("apart"), 0, &store, &err), err);
	assert_ok(qcow_open(store, NULL, apart, &err), err);
}

/* Two lists and writes in one open. */
static void our_turn(struct bed *b)
{
	struct qcow_image *apart = NULL;
	struct qkt_image im;
	struct qcow_error err = QCOW_ERROR_INIT;
	open_both(b, &im, &apart);
	for (unsigned round = 0; round < 2; round++) {
		struct list list = make_list(&b->rng, 1 + qkt_rng_below(&b->rng, MAX_STEPS));
		struct maps next;
		size_t want = 0, failed = 77;
		bind(&list, apart);
		copy_maps(&next, &b->maps);
		while (want < list.n && next.n < MAX_MAPS + MAX_STEPS - 1 &&
			act(&next, &list.v[want], list.is_apart[want] ? &b->apart : NULL))
			want++;
		enum qcow_status status = qcow_bitmap_edit(
			im.image, list.v, list.n, NULL, &failed, &err);
		if ((status == QCOW_OK) != (want == list.n))
			fail_msg("%s: action %zu of %zu should fail: %s", b->c->name, want, list.n,
				err.message);
		assert_int_equal(failed, want < list.n ? want : 77);
		clear_maps(want == list.n ? &b->maps : &next);
		if (want == list.n)
			b->maps = next;
		uint64_t len = 0, off = some_range(b, &len);
		if (len == 0 || qkt_rng_below(&b->rng, 3) == 0)
			continue;
		assert_ok(qcow_zero(im.image, off, len, 0, &err), err);
		mark_written(&b->maps, off, len);
	}
	qcow_close(apart);
	qkt_image_close(&im);
}

/* One action at a time: what QEMU did of a list before a failure stays done. */
static void their_turn(struct bed *b)
{
	static const char *const words[] = {
		NULL, "--add", "--remove", NULL, "--clear", "--enable", "--disable", "--merge"};
	const char *qemu = b->qemus[qkt_rng_below(&b->rng, b->n_qemus)];
	struct list list = make_list(&b->rng, 2);
	bind(&list, NULL);
	for (size_t i = 0; i < list.n; i++) {
		const struct qcow_bitmap_action *a = &list.v[i];
		char granularity[32] = "";
		if (a->act == QCOW_BITMAP_REMOVE_ALL ||
			!act(&b->maps, a, list.is_apart[i] ? &b->apart : NULL))
			continue;
		if (a->act == QCOW_BITMAP_ADD)
			(void)snprintf(granularity, sizeof(granularity), "-g %u",
				1U << a->granularity_bits);
		qkt_must("%sqemu-img bitmap %s %s %s %s img %s", qemu, words[a->act], granularity,
			a->act == QCOW_BITMAP_MERGE ? a->source : "",
			list.is_apart[i] ? "-b apart -F qcow2" : "", a->name);
	}
	uint64_t len = 0, off = some_range(b, &len);
	if (len == 0)
		return;
	qkt_must("%sqemu-io -c 'write -z %" PRIu64 " %" PRIu64 "' img", qemu, off, len);
	mark_written(&b->maps, off, len);
}

static void run_config(const struct config *c, uint64_t seed, unsigned n_turns)
{
	struct bed b = {.c = c, .rng = qkt_rng_fixed(seed)};
	b.n_qemus = qkt_qemus(b.qemus);
	b.maps = (struct maps){.size = c->size};
	qkt_must("rm -f img apart back && qemu-img create -q -f qcow2 back %" PRIu64
		 " && qemu-img create -q -f qcow2 -o %s img %" PRIu64
		 " && qemu-io -c 'write 0 300k' img && %s",
		c->size, c->options, c->size, c->setup != NULL ? c->setup : "true");
	make_apart(&b);
	for (unsigned turn = 0; turn < n_turns; turn++) {
		if (turn % 3 == 2)
			their_turn(&b);
		else
			our_turn(&b);
		compare(&b, "img", &b.maps);
		if (turn % 3 == 2 || turn + 1 == n_turns)
			qkt_must("qemu-img check img");
	}
	clear_maps(&b.maps);
	clear_maps(&b.apart);
}

static void random_actions_in_turns_with_qemu(void **state)
{
	struct qkt_rng rng = qkt_rng_init(20);
	const char *turns = getenv("QCOWKIT_TURNS");
	unsigned n_turns = turns != NULL ? (unsigned)strtoul(turns, NULL, 10) : 4;
	(void)state;
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++)
		run_config(&configs[i], qkt_rng_next(&rng), n_turns);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_actions_in_turns_with_qemu),
	};
	if (access("/dev/shm", W_OK) == 0)
		(void)setenv("QK_TEST_DIR", "/dev/shm", 0);
	qkt_need_program("qemu-img", "qemu-utils");
	qkt_need_program("qemu-io", "qemu-utils");
	/* backing files are looked for from here */
	if (chdir(qkt_dir()) != 0)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
