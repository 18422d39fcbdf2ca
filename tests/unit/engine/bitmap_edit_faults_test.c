/* SPDX-License-Identifier: MIT */
/*
 * qcow_bitmap_edit where calls of the store or allocations fail, one after the other: the file has the bitmaps of before or
 * those of after, whole, as an oracle reads them (dirtymap.h), and the image goes on. And what is refused.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include <base/bytes.h>
#include <cm.h>
#include <dirtymap.h>
#include <failmalloc.h>
#include <host.h>
#include <image.h>
#include <qcowkit/manage.h>

#define DISK_BYTES (4U << 20)

static void save(const char *file, const uint8_t *bytes, size_t n)
{
	FILE *f = fopen(qkt_path(file), "wb");
	assert_true(f != NULL && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

/* Everything that the bitmaps of an image say, as text. */
static char *describe_bytes(const uint8_t *bytes, size_t n)
{
	size_t used = 0;
	char *text = calloc(1, 4096);
	struct qkt_dirtymap map;
	for (uint32_t i = 0; qkt_dirtymap_get(bytes, n, i, &map); i++) {
		uint64_t hash = 0, count = 0;
		for (uint64_t off = 0; off < DISK_BYTES; off += 512) {
			bool is_dirty = qkt_dirtymap_at(&map, off);
			hash = hash * 31 + is_dirty;
			count += is_dirty;
		}
		used += (size_t)snprintf(text + used, 4096 - used,
			"%.*s %u%s%s %" PRIu64 " %016" PRIx64 "\n", (int)map.name_bytes,
			(const char *)map.name, map.granularity_bits, map.is_auto ? " auto" : "",
			map.in_use ? " in-use" : "", count, hash);
	}
	return text;
}

static char *describe(const char *file)
{
	size_t n = 0;
	uint8_t *bytes = qkt_slurp(qkt_path(file), &n);
	char *text = describe_bytes(bytes, n);
	free(bytes);
	return text;
}

/* Four bitmaps with something in them; `options` for qemu-img create. */
static void make_image(const char *options)
{
	qkt_must("rm -f img base && qemu-img create -q -f qcow2 -o %s img 4M && for b in a b c d; "
		 "do "
		 "qemu-img bitmap --add -g 4k img $b && qemu-io -c \"write ${#b}00k 10k\" img && "
		 "qemu-img bitmap --disable img $b; done && qemu-io -c 'write 2M 90k' img && "
		 "qemu-img bitmap --enable img a && qemu-io -c 'write 1M 5k' img && cp img base",
		options);
}

static const struct qcow_bitmap_action actions[] = {
	{.act = QCOW_BITMAP_ADD, .name = "new", .granularity_bits = 9},
	{.act = QCOW_BITMAP_MERGE, .name = "new", .source = "a"},
	{.act = QCOW_BITMAP_MERGE, .name = "b", .source = "a"},
	{.act = QCOW_BITMAP_CLEAR, .name = "c"},
	{.act = QCOW_BITMAP_MERGE, .name = "c", .source = "new"},
	{.act = QCOW_BITMAP_REMOVE, .name = "d"},
	{.act = QCOW_BITMAP_DISABLE, .name = "a"},
};
#define N_ACTIONS (sizeof(actions) / sizeof(actions[0]))

static enum qcow_status edit(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	return qcow_bitmap_edit(image, actions, N_ACTIONS, NULL, NULL, &err);
}

struct trial {
	enum qkt_call call;
	enum qkt_failure how;
	uint64_t nth;
	bool for_ever, of_memory;
	const char *before, *after;
	const uint8_t *base;
	size_t n_base;
};

static bool survives(const struct trial *t, bool again)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	const struct qkt_image_options o = {.unjudged = t->of_memory};
	struct qkt_image im;
	size_t n = 0;
	save("img", t->base, t->n_base);
	assert_ok(qkt_image_open(&im, qkt_path("img"), &o, &err), err);
	if (t->of_memory)
		qkt_failmalloc_arm(t->nth, t->for_ever);
	else
		qkt_fault_arm(im.fault, t->call, t->nth, t->how, t->for_ever);
	bool is_done = edit(im.image) == QCOW_OK;
	uint64_t hits = t->of_memory ? qkt_failmalloc_hits() : qkt_fault_hits(im.fault);
	qkt_failmalloc_arm(0, false);
	qkt_fault_disarm(im.fault);
	uint8_t *bytes = qkt_slurp(qkt_path("img"), &n);
	char *seen = describe_bytes(bytes, n);
	if (strcmp(seen, t->after) != 0 && (is_done || strcmp(seen, t->before) != 0))
		fail_msg("call %d, %d, %" PRIu64 ": the file has\n%s", (int)t->call, (int)t->how,
			t->nth, seen);
	assert_true(hits != 0 || is_done);
	if (again && !is_done) {
		assert_ok(qcow_recover(im.image, &err), err);
		enum qcow_status status = edit(im.image);
		/* it was done, and only the reload failed */
		assert_true(status == QCOW_OK || status == QCOW_E_NOENT || status == QCOW_E_EXIST);
		is_done = true;
	}
	qkt_image_close(&im);
	char *kept = describe("img");
	assert_string_equal(kept, is_done ? t->after : seen);
	free(seen);
	free(kept);
	if (t->nth % 16 == 1)
		save("seen", bytes, n);
	free(bytes);
	if (t->nth % 16 == 1)
		qkt_must("qemu-img check seen || [ $? = 3 ]; qemu-img check img || [ $? = 3 ]");
	return hits != 0;
}

static void every_failure_leaves_all_or_nothing(void **state)
{
	static const struct trial trials[] = {
		{QKT_WRITE, QKT_EIO, 1, false, false, NULL, NULL, NULL, 0},
		{QKT_WRITE, QKT_SHORT, 1, false, false, NULL, NULL, NULL, 0},
		{QKT_WRITE, QKT_ENOSPC, 1, true, false, NULL, NULL, NULL, 0},
		{QKT_FLUSH, QKT_EIO, 1, false, false, NULL, NULL, NULL, 0},
		{QKT_READ, QKT_EIO, 1, false, false, NULL, NULL, NULL, 0},
		{QKT_TRUNCATE, QKT_ENOSPC, 1, true, false, NULL, NULL, NULL, 0},
		{QKT_ANY, QKT_EIO, 1, false, true, NULL, NULL, NULL, 0},
		{QKT_ANY, QKT_EIO, 1, true, true, NULL, NULL, NULL, 0},
	};
	static const char *const options[] = {"cluster_size=4k", "cluster_size=64k"};
	struct qcow_error err = QCOW_ERROR_INIT;
	(void)state;
	for (size_t k = 0; k < 2; k++) {
		struct qkt_image im;
		make_image(options[k]);
		size_t n_base = 0;
		uint8_t *base = qkt_slurp(qkt_path("base"), &n_base);
		char *before = describe("base");
		assert_ok(qkt_image_open(&im, qkt_path("img"), NULL, &err), err);
		assert_int_equal(edit(im.image), QCOW_OK);
		qkt_image_close(&im);
		char *after = describe("img");
		assert_string_not_equal(before, after);
		qkt_must("qemu-img check img");
		for (size_t i = 0; i < sizeof(trials) / sizeof(trials[0]); i++) {
			struct trial t = trials[i];
			t.base = base;
			t.n_base = n_base;
			t.before = before;
			t.after = after;
			while (survives(&t, t.nth % 2 != 0))
				t.nth++;
			assert_true(t.nth > (t.call == QKT_TRUNCATE ? 0U : 3U));
		}
		free(base);
		free(before);
		free(after);
	}
}

/* ---- what is refused ---- */

static void refuses(const char *file, const struct qcow_bitmap_action *a, enum qcow_status want,
	const char *words)
{
	struct qcow_bitmap_action list[2] = {{.act = QCOW_BITMAP_ADD, .name = "before"}, *a};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	size_t failed = 77;
	qkt_must("cp %s kept", file);
	assert_ok(qkt_image_open(&im, qkt_path(file), NULL, &err), err);
	assert_status(qcow_bitmap_edit(im.image, list, 2, NULL, &failed, &err), want, err);
	assert_int_equal(failed, 1);
	if (strstr(err.message, words) == NULL)
		fail_msg("%s", err.message);
	qkt_image_close(&im);
	qkt_must("cmp %s kept", file);
}

static void what_cannot_be_done_changes_nothing(void **state)
{
	static char long_name[1025];
	(void)state;
	memset(long_name, 'x', sizeof(long_name) - 1);
	const struct {
		struct qcow_bitmap_action action;
		enum qcow_status status;
		const char *words;
	} rows[] = {
		{{.act = QCOW_BITMAP_ADD, .name = "a"}, QCOW_E_EXIST, "already exists: a"},
		{{.act = QCOW_BITMAP_ADD, .name = "before"}, QCOW_E_EXIST, "exists: before"},
		{{.act = QCOW_BITMAP_ADD, .name = ""}, QCOW_E_INVAL, "cannot be empty"},
		{{.act = QCOW_BITMAP_ADD, .name = long_name}, QCOW_E_INVAL, "1023"},
		{{.act = QCOW_BITMAP_ADD, .name = "z", .granularity_bits = 8}, QCOW_E_INVAL, "512"},
		{{.act = QCOW_BITMAP_ADD, .name = "z", .granularity_bits = 32}, QCOW_E_INVAL,
			"2 GiB"},
		{{.act = QCOW_BITMAP_REMOVE, .name = "z"}, QCOW_E_NOENT, "'z' not found"},
		{{.act = QCOW_BITMAP_CLEAR, .name = "z"}, QCOW_E_NOENT, "'z' not found"},
		{{.act = QCOW_BITMAP_ENABLE, .name = "z"}, QCOW_E_NOENT, "'z' not found"},
		{{.act = QCOW_BITMAP_MERGE, .name = "a", .source = "z"}, QCOW_E_NOENT,
			"'z' not found"},
		{{.act = QCOW_BITMAP_MERGE, .name = "a"}, QCOW_E_INVAL, "source"},
		{{.act = QCOW_BITMAP_CLEAR}, QCOW_E_INVAL, "name"},
		{{.act = 99, .name = "a"}, QCOW_E_INVAL, "99"},
	};
	make_image("cluster_size=4k");
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		refuses("img", &rows[i].action, rows[i].status, rows[i].words);
}

/* What a crash left may be removed, and nothing else. */
static void a_bitmap_in_use_can_only_be_removed(void **state)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	(void)state;
	make_image("cluster_size=4k");
	assert_ok(qkt_image_open(&im, qkt_path("img"), NULL, &err), err);
	assert_ok(qcow_pwrite(im.image, "x", 1, 0, 0, &err), err);
	qkt_must("cp img crashed");
	qkt_image_close(&im);
	for (enum qcow_bitmap_act act = QCOW_BITMAP_CLEAR; act <= QCOW_BITMAP_MERGE; act++) {
		const struct qcow_bitmap_action a = {.act = act, .name = "a", .source = "b"};
		refuses("crashed", &a, QCOW_E_CORRUPT, "Bitmap 'a' is inconsistent");
	}
	const struct qcow_bitmap_action from = {
		.act = QCOW_BITMAP_MERGE, .name = "b", .source = "a"};
	refuses("crashed", &from, QCOW_E_CORRUPT, "Bitmap 'a' is inconsistent");
	const struct qcow_bitmap_action others[] = {{.act = QCOW_BITMAP_CLEAR, .name = "b"}};
	const struct qcow_bitmap_action gone[] = {
		{.act = QCOW_BITMAP_REMOVE, .name = "a"}, {.act = QCOW_BITMAP_ADD, .name = "a"}};
	assert_ok(qkt_image_open(&im, qkt_path("crashed"), NULL, &err), err);
	assert_ok(qcow_bitmap_edit(im.image, others, 1, NULL, NULL, &err), err);
	char *text = describe("crashed");
	assert_non_null(strstr(text, "in-use"));
	free(text);
	assert_ok(qcow_bitmap_edit(im.image, gone, 2, NULL, NULL, &err), err);
	qkt_image_close(&im);
	text = describe("crashed");
	assert_null(strstr(text, "in-use"));
	free(text);
	qkt_must("qemu-img check crashed");
}

/* What one action makes and a later one takes away leaks nothing. */
static void what_comes_and_goes_is_given_back(void **state)
{
	static const struct qcow_bitmap_action passing[] = {{.act = QCOW_BITMAP_ADD, .name = "new"},
		{.act = QCOW_BITMAP_MERGE, .name = "new", .source = "a"},
		{.act = QCOW_BITMAP_REMOVE, .name = "new"},
		{.act = QCOW_BITMAP_MERGE, .name = "b", .source = "a"},
		{.act = QCOW_BITMAP_REMOVE, .name = "b"}};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	(void)state;
	make_image("cluster_size=4k");
	assert_ok(qkt_image_open(&im, qkt_path("img"), NULL, &err), err);
	assert_ok(qcow_bitmap_edit(im.image, passing, 5, NULL, NULL, &err), err);
	qkt_image_close(&im);
	qkt_must("qemu-img check img");
}

static uint64_t first_data_of(const uint8_t *bytes, const struct qkt_dirtymap *map)
{
	return qk_load64(bytes + map->table_off) & UINT64_C(0x00fffffffffffe00);
}

/* Bits past the end of the disk, as nobody should leave them, are not taken over. */
static void bits_past_the_end_go(void **state)
{
	static const struct qcow_bitmap_action merge[] = {
		{.act = QCOW_BITMAP_MERGE, .name = "b", .source = "a"}};
	enum {
		PAST = DISK_BYTES / 4096 / 8 + 72 /* a byte of the bitmap */
	};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	struct qkt_dirtymap map;
	size_t n = 0;
	(void)state;
	make_image("cluster_size=4k");
	uint8_t *bytes = qkt_slurp(qkt_path("img"), &n);
	assert_true(qkt_dirtymap_get(bytes, n, 1, &map));
	assert_memory_equal(map.name, "b", 1);
	bytes[first_data_of(bytes, &map) + PAST] = 0xff;
	assert_true(qkt_dirtymap_at(&map, UINT64_C(8) * PAST * 4096));
	save("img", bytes, n);
	free(bytes);
	assert_ok(qkt_image_open(&im, qkt_path("img"), NULL, &err), err);
	assert_ok(qcow_bitmap_edit(im.image, merge, 1, NULL, NULL, &err), err);
	qkt_image_close(&im);
	bytes = qkt_slurp(qkt_path("img"), &n);
	assert_true(qkt_dirtymap_get(bytes, n, 1, &map));
	assert_false(qkt_dirtymap_at(&map, UINT64_C(8) * PAST * 4096));
	free(bytes);
}

static void a_dry_run_writes_nothing(void **state)
{
	struct qcow_bitmap_edit_options o = QCOW_BITMAP_EDIT_OPTIONS_INIT;
	const struct qkt_image_options read_only = {.read_only = true};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	size_t failed = 77;
	(void)state;
	make_image("cluster_size=4k");
	o.dry_run = true;
	for (unsigned k = 0; k < 2; k++) {
		assert_ok(qkt_image_open(&im, qkt_path("img"), k == 0 ? &read_only : NULL, &err),
			err);
		if (k == 1) /* tracked ones are in use on the disk, and to be trusted here */
			assert_ok(qcow_pwrite(im.image, "x", 1, 0, 0, &err), err);
		qkt_must("cp img kept");
		assert_ok(qcow_bitmap_edit(im.image, actions, N_ACTIONS, &o, NULL, &err), err);
		const struct qcow_bitmap_action bad = {.act = QCOW_BITMAP_CLEAR, .name = "z"};
		assert_status(
			qcow_bitmap_edit(im.image, &bad, 1, &o, &failed, &err), QCOW_E_NOENT, err);
		assert_int_equal(failed, 0);
		if (k == 0)
			assert_status(edit(im.image), QCOW_E_READONLY, err);
		qkt_must("cmp img kept");
		qkt_image_close(&im);
	}
}

static bool never(void *ctx)
{
	unsigned *n = ctx;
	return ++*n == 2;
}

static void a_cancelled_edit_changes_nothing(void **state)
{
	struct qcow_bitmap_edit_options o = QCOW_BITMAP_EDIT_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	unsigned n_asked = 0;
	(void)state;
	make_image("cluster_size=4k");
	char *before = describe("img");
	o.progress.cancelled = never;
	o.progress.ctx = &n_asked;
	assert_ok(qkt_image_open(&im, qkt_path("img"), NULL, &err), err);
	assert_status(qcow_bitmap_edit(im.image, actions, N_ACTIONS, &o, NULL, &err),
		QCOW_E_CANCELLED, err);
	qkt_image_close(&im);
	char *after = describe("img");
	assert_string_equal(before, after);
	free(before);
	free(after);
	qkt_must("qemu-img check img");
}

static void version_2_has_no_bitmaps(void **state)
{
	const struct qcow_bitmap_action a = {.act = QCOW_BITMAP_ADD, .name = "a"};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	(void)state;
	qkt_must("qemu-img create -q -f qcow2 -o compat=0.10 old 1M && cp old kept");
	assert_ok(qkt_image_open(&im, qkt_path("old"), NULL, &err), err);
	assert_status(qcow_bitmap_edit(im.image, &a, 1, NULL, NULL, &err), QCOW_E_UNSUPPORTED, err);
	qkt_image_close(&im);
	qkt_must("cmp old kept");
}

/* Nobody trusts them, and a new one begins anew. */
static void what_the_autoclear_bit_forgot_stays_forgotten(void **state)
{
	const struct qcow_bitmap_action a = {.act = QCOW_BITMAP_ADD, .name = "a"};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_image im;
	(void)state;
	make_image("cluster_size=64k");
	qkt_must("printf '\\0' | dd of=img bs=1 seek=95 conv=notrunc 2>/dev/null");
	assert_ok(qkt_image_open(&im, qkt_path("img"), NULL, &err), err);
	assert_ok(qcow_bitmap_edit(im.image, &a, 1, NULL, NULL, &err), err);
	qkt_image_close(&im);
	char *text = describe("img");
	assert_string_equal(text, "a 16 auto 0 0000000000000000\n");
	free(text);
	qkt_must("qemu-img info img | grep -q 'name: a'; qemu-img check img || [ $? = 3 ]");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_failure_leaves_all_or_nothing),
		cmocka_unit_test(what_cannot_be_done_changes_nothing),
		cmocka_unit_test(a_bitmap_in_use_can_only_be_removed),
		cmocka_unit_test(what_comes_and_goes_is_given_back),
		cmocka_unit_test(bits_past_the_end_go),
		cmocka_unit_test(a_dry_run_writes_nothing),
		cmocka_unit_test(a_cancelled_edit_changes_nothing),
		cmocka_unit_test(version_2_has_no_bitmaps),
		cmocka_unit_test(what_the_autoclear_bit_forgot_stays_forgotten),
	};
	if (access("/dev/shm", W_OK) == 0)
		(void)setenv("QK_TEST_DIR", "/dev/shm", 0);
	qkt_need_program("qemu-img", "qemu-utils");
	qkt_need_program("qemu-io", "qemu-utils");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
