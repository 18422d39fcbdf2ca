/* SPDX-License-Identifier: MIT */
/*
 * What is remembered of the host's holes: nothing that a write could make wrong, and enough that a host that takes as long
 * to answer as an extent is long is asked once.
 */
#include "cm.h"

#include "engine/hostmap.h"

#define KIB(n) ((uint64_t)(n) << 10)
#define SIZE   KIB(1024)

/* A file: data, from `hole` to `end` a hole, data. */
struct fake {
	uint64_t hole, end;
	unsigned n_asked;
	struct qcow_store *store;
	struct qk_hostmap *map;
};

static enum qcow_status fake_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	struct fake *f = ctx;
	(void)err;
	uint64_t stop = off < f->hole ? f->hole : off < f->end ? f->end : SIZE;
	f->n_asked++;
	*out = (struct qcow_store_extent){.len = stop - off < len ? stop - off : len,
		.is_hole = off >= f->hole && off < f->end};
	return QCOW_OK;
}

static enum qcow_status fake_read(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	(void)ctx;
	(void)iov;
	(void)n_iov;
	(void)off;
	(void)err;
	return QCOW_E_IO;
}

static enum qcow_status fake_size(void *ctx, uint64_t *size, struct qcow_error *err)
{
	(void)ctx;
	(void)err;
	*size = SIZE;
	return QCOW_OK;
}

static void fake_caps(void *ctx, struct qcow_store_caps *out)
{
	(void)ctx;
	*out = (struct qcow_store_caps){.request_align = 1, .physical_block = 512};
}

static void fake_close(void *ctx)
{
	(void)ctx;
}

static const struct qcow_store_ops fake_ops = {.abi = QCOW_STORE_ABI,
	.name = "fake",
	.preadv = fake_read,
	.size = fake_size,
	.extents = fake_extents,
	.caps = fake_caps,
	.close = fake_close};

static void begin(struct fake *f, enum qk_hostmap_use use)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	*f = (struct fake){.hole = KIB(256), .end = KIB(512)};
	assert_ok(qcow_store_new(&fake_ops, f, &f->store, &err), err);
	assert_ok(qk_hostmap_new(&f->map, &err), err);
	qk_hostmap_set_use(f->map, use);
}

static void end(struct fake *f)
{
	qk_hostmap_free(f->map);
	qcow_store_close(f->store);
}

/* What is said of the KiB `at`; whatever is remembered ends where it ends. */
static bool is_hole(struct fake *f, unsigned at)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t len = KIB(1024 - at);
	bool hole = false;
	assert_ok(qk_hostmap_ask(f->map, f->store, KIB(at), &len, &hole, &err), err);
	uint64_t stop = at < 256 ? f->hole : at < 512 && f->end != f->hole ? f->end : SIZE;
	assert_int_equal(len, stop - KIB(at));
	return hole;
}

static unsigned asked_of_each(struct fake *f)
{
	f->n_asked = 0;
	for (unsigned at = 0; at < 1024; at++)
		assert_int_equal(is_hole(f, at), at >= 256 && at < 512);
	return f->n_asked;
}

static void a_file_that_is_read_is_asked_once_an_extent(void **state)
{
	struct fake f;
	(void)state;
	begin(&f, QK_HOSTMAP_READ);
	assert_int_equal(asked_of_each(&f), 3);
	assert_int_equal(asked_of_each(&f), 0);
	qk_hostmap_forget(f.map);
	assert_int_equal(asked_of_each(&f), 3);
	end(&f);
}

static void holes_of_a_file_that_is_written_are_asked_for_always(void **state)
{
	struct fake f;
	(void)state;
	begin(&f, QK_HOSTMAP_WRITTEN);
	assert_int_equal(asked_of_each(&f), 2 + 256);
	assert_int_equal(asked_of_each(&f), 256);
	/* it was written to: never a hole again */
	assert_true(is_hole(&f, 300));
	f.end = f.hole;
	assert_false(is_hole(&f, 300));
	end(&f);
}

static void nothing_is_remembered_where_data_is_punched(void **state)
{
	struct fake f;
	(void)state;
	begin(&f, QK_HOSTMAP_PUNCHED);
	assert_int_equal(asked_of_each(&f), 1024);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_that_is_read_is_asked_once_an_extent),
		cmocka_unit_test(holes_of_a_file_that_is_written_are_asked_for_always),
		cmocka_unit_test(nothing_is_remembered_where_data_is_punched),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
