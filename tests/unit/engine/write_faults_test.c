/* SPDX-License-Identifier: MIT */
/*
 * Every Nth call on the store fails, and every Nth allocation, while an image is written. What a call that failed was to
 * write is old or new, sector by sector; everything else is as it should be, then and after a reopen; a
 * fenced image recovers once the store is well again; and nothing is ever corrupt.
 */
#include "cm.h"

#include <stdbool.h>
#include <stdlib.h>

#include <qcowkit/qcowkit.h>

#include "failmalloc.h"
#include "host.h"
#include "order.h"

#define SECTOR	512U
#define CLUSTER 4096U
#define SIZE	(600U * CLUSTER + 700U) /* two L2 tables, a last cluster that is cut */
#define N_STEPS 46

struct config {
	const char *name;
	uint32_t version, refcount_bits;
	bool has_snapshot; /* taken by qemu-img: shared tables and clusters */
	uint64_t cluster;
	const char *more; /* options of qemu-img create */
	bool compresses, is_encrypted, has_bitmap;
	bool has_data_file, is_raw;
	uint64_t stride; /* so many times fewer faults */
};

static const struct config configs[] = {
	{.name = "v3", .version = 3, .refcount_bits = 16, .cluster = 4096, .more = "", .stride = 1},
	{.name = "v2", .version = 2, .refcount_bits = 16, .cluster = 4096, .more = "", .stride = 1},
	{.name = "snapshot",
		.version = 3,
		.refcount_bits = 64,
		.cluster = 4096,
		.more = "",
		.has_snapshot = true,
		.stride = 1},
	{.name = "compressed writes",
		.version = 3,
		.refcount_bits = 4,
		.cluster = 4096,
		.more = "",
		.compresses = true,
		.stride = 4},
	{.name = "compressed writes, snapshot",
		.version = 3,
		.refcount_bits = 16,
		.cluster = 4096,
		.more = "",
		.has_snapshot = true,
		.compresses = true,
		.stride = 5},
	{.name = "encrypted",
		.version = 3,
		.refcount_bits = 16,
		.cluster = 4096,
		.more = ",encrypt.format=aes,encrypt.key-secret=k",
		.is_encrypted = true,
		.stride = 5},
	{.name = "extended L2",
		.version = 3,
		.refcount_bits = 16,
		.cluster = 16384,
		.more = ",extended_l2=on",
		.has_snapshot = true,
		.compresses = true,
		.stride = 5},
	{.name = "bitmap",
		.version = 3,
		.refcount_bits = 16,
		.cluster = 4096,
		.more = "",
		.has_bitmap = true,
		.compresses = true,
		.stride = 5},
	{.name = "data file",
		.version = 3,
		.refcount_bits = 16,
		.cluster = 4096,
		.more = ",data_file=data",
		.has_data_file = true,
		.stride = 6},
	{.name = "data file, extended L2",
		.version = 3,
		.refcount_bits = 16,
		.cluster = 16384,
		.more = ",data_file=data,extended_l2=on",
		.has_data_file = true,
		.stride = 9},
	{.name = "raw data file",
		.version = 3,
		.refcount_bits = 16,
		.cluster = 4096,
		.more = ",data_file=data,data_file_raw=on",
		.has_data_file = true,
		.is_raw = true,
		.stride = 7},
};
#define N_CONFIGS (sizeof(configs) / sizeof(configs[0]))

static const struct config *config;

static uint8_t disk[SIZE], was[SIZE], got[SIZE], start[SIZE];
static uint8_t past[N_STEPS + 1][SIZE]; /* the disk before each step since the last good flush */

struct run {
	const char *what;
	uint64_t nth;
	bool for_ever;
	bool loses; /* flushes fail */
	bool is_short; /* a call may end anywhere */
	struct qkt_fault *fault; /* NULL: allocations fail */
	struct qkt_order *order;
	struct qcow_image *image;
	unsigned n_failed, n_past;
	uint64_t seed;
};

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void heal(struct run *r)
{
	if (r->fault != NULL)
		qkt_fault_disarm(r->fault);
	else
		qkt_failmalloc_arm(0, false);
}

/* After a failure: [off, off + len) reads as before or as wanted, by sector; take what it is. */
static void settle_range(struct run *r, uint64_t off, uint64_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_pread(r->image, got, len, off, &err) != QCOW_OK)
		fail_msg("%s: %s %llu: reading after a failure: %s", config->name, r->what,
			(unsigned long long)r->nth, err.message);
	for (uint64_t at = off; at < off + len;) {
		uint64_t n = r->is_short ? 1 : SECTOR - at % SECTOR;
		n = n > off + len - at ? off + len - at : n;
		bool is_new = memcmp(got + (at - off), disk + at, n) == 0;
		bool is_old = memcmp(got + (at - off), was + at, n) == 0;
		if (!is_new && !is_old)
			fail_msg("%s: %s %llu: sector at %llu is neither old nor new", config->name,
				r->what, (unsigned long long)r->nth, (unsigned long long)at);
		memcpy(disk + at, got + (at - off), n);
		at += n;
	}
}

/* A flush has failed: each sector is as it was at some time since the last good one; take what it is. */
static void settle_all(struct run *r)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_pread(r->image, got, SIZE, 0, &err), err);
	for (uint64_t at = 0; at < SIZE; at += SECTOR) {
		uint64_t n = SIZE - at < SECTOR ? SIZE - at : SECTOR;
		bool known = memcmp(got + at, disk + at, n) == 0;
		for (unsigned i = 0; i < r->n_past && !known; i++)
			known = memcmp(got + at, past[i] + at, n) == 0;
		if (!known)
			fail_msg("%s: %s %llu: sector at %llu never was what it is", config->name,
				r->what, (unsigned long long)r->nth, (unsigned long long)at);
	}
	memcpy(disk, got, SIZE);
}

/* The store is well: the image must be usable again. */
static void recover(struct run *r)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	heal(r);
	if (qcow_recover(r->image, &err) != QCOW_OK)
		fail_msg("%s: %s %llu: recover: %s", config->name, r->what,
			(unsigned long long)r->nth, err.message);
}

#define COMPRESSED 9

struct op {
	unsigned kind;
	uint64_t off, len;
};

static enum qcow_status call(struct run *r, const struct op *op, struct qcow_error *err)
{
	switch (op->kind) {
	case 0:
	case 1:
	case 2:
		return qcow_pwrite(r->image, disk + op->off, op->len, op->off,
			op->kind == 2 ? QCOW_IO_FUA : 0, err);
	case 3:
		return qcow_zero(r->image, op->off, op->len, 0, err);
	case 4:
		return qcow_zero(r->image, op->off, op->len, QCOW_IO_UNMAP, err);
	case COMPRESSED:
		return qcow_write_compressed(r->image, disk + op->off, op->len, op->off, 0, err);
	default:
		return qcow_flush(r->image, err);
	}
}

/* What the disk is to be after the call. */
static struct op choose(struct run *r)
{
	struct op op = {.kind = (unsigned)(next(&r->seed) % 7), .off = next(&r->seed) % SIZE};
	op.len = 1 + next(&r->seed) % (5 * CLUSTER);
	if (next(&r->seed) % 2 == 0)
		op.off -= op.off % CLUSTER;
	op.len = op.len > SIZE - op.off ? SIZE - op.off : op.len;
	memcpy(was, disk, SIZE);
	if (config->compresses && op.kind < 5 && next(&r->seed) % 2 == 0) {
		uint64_t end = (op.off + op.len + config->cluster - 1) / config->cluster;
		op.kind = COMPRESSED;
		op.off -= op.off % config->cluster;
		end = end * config->cluster < SIZE ? end * config->cluster : SIZE;
		op.len = end - op.off;
		/* to about a third */
		for (uint64_t i = 0; i < op.len; i++)
			disk[op.off + i] = i % 3 == 0 ? (uint8_t)(next(&r->seed) >> 16) : 7;
		return op;
	}
	if (op.kind < 3)
		for (uint64_t i = 0; i < op.len; i++)
			disk[op.off + i] = (uint8_t)(next(&r->seed) >> 16);
	else if (op.kind < 5)
		memset(disk + op.off, 0, op.len);
	return op;
}

static bool is_flush(const struct op *op)
{
	return op->kind >= 5 && op->kind != COMPRESSED;
}

static void step(struct run *r)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct op op = choose(r);
	memcpy(past[r->n_past++], was, SIZE);
	enum qcow_status status = call(r, &op, &err);
	if (status == QCOW_OK) {
		r->n_past = is_flush(&op) ? 0 : r->n_past;
		return;
	}
	r->n_failed++;
	assert_int_equal(err.status, status);
	assert_true(err.message[0] != 0);
	if (!is_flush(&op) && r->fault != NULL && !r->for_ever)
		settle_range(r, op.off, op.len); /* reads go on behind the fence */
	recover(r);
	if (r->loses) {
		settle_all(r);
		return;
	}
	if (!is_flush(&op)) {
		settle_range(r, op.off, op.len);
		return;
	}
	if (qcow_flush(r->image, &err) != QCOW_OK)
		fail_msg("%s: %s %llu: flush after recover: %s", config->name, r->what,
			(unsigned long long)r->nth, err.message);
}

/* the image file as qemu-img made it, and the data file */
static uint8_t *fresh, *fresh_data;
static size_t n_fresh, n_fresh_data;

/* A store in memory with these bytes. */
static struct qcow_store *memory_of(const uint8_t *bytes, size_t n)
{
	struct qcow_store *store = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_memory_open(0, &store, &err), err);
	assert_ok(qcow_store_write(store, bytes, n, 0, &err), err);
	return store;
}

#define ENCRYPTED "driver=qcow2,encrypt.key-secret=k,file.filename=img"

static void make_image(const struct config *c)
{
	config = c;
	qkt_must("rm -f img data");
	qkt_must("qemu-img create -q -f qcow2 --object secret,id=k,data=abc -o "
		 "cluster_size=%llu,compat=%s,refcount_bits=%u%s img %u",
		(unsigned long long)c->cluster, c->version == 2 ? "0.10" : "1.1", c->refcount_bits,
		c->more, SIZE);
	if (c->has_data_file)
		qkt_must("qemu-io -c 'write -P 3 100k 900k' img");
	if (c->has_bitmap)
		qkt_must("qemu-img bitmap --add -g 512 img b");
	if (c->has_snapshot)
		qkt_must("qemu-io -c 'write -P 3 100k 900k' img && qemu-img snapshot -c s img");
	if (c->is_encrypted)
		qkt_must("qemu-io --object secret,id=k,data=abc --image-opts -c 'write -P 3 100k "
			 "900k' %s "
			 "&& qemu-img convert --object secret,id=k,data=abc --image-opts -O raw %s "
			 "raw",
			ENCRYPTED, ENCRYPTED);
	else
		qkt_must("qemu-img convert -O raw img raw");
	size_t n = 0;
	free(fresh);
	fresh = qkt_slurp(qkt_path("img"), &n_fresh);
	free(fresh_data);
	fresh_data = c->has_data_file ? qkt_slurp(qkt_path("data"), &n_fresh_data) : NULL;
	uint8_t *raw = qkt_slurp(qkt_path("raw"), &n);
	memset(start, 0, SIZE);
	memcpy(start, raw, n < SIZE ? n : SIZE);
	free(raw);
}

/* ctx: the store, which passes to the image. */
static enum qcow_status give_data_file(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	(void)err;
	assert_int_equal(ref->kind, QCOW_REF_DATA_FILE);
	out->store = ctx;
	return QCOW_OK;
}

/* Both stores pass to the image. */
static struct qcow_image *must_open(
	struct qcow_store *store, struct qcow_store *data, uint32_t flags)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	o.flags = flags;
	o.stage_bytes = 1;
	if (data != NULL) {
		o.resolve = give_data_file;
		o.resolve_ctx = data;
	}
	if (config->is_encrypted)
		o.secret = (struct qcow_secret){"abc", 3};
	if (qcow_open(store, &o, &image, &err) != QCOW_OK)
		fail_msg("%s", err.message);
	return image;
}

static struct qcow_store *copy_of(struct qcow_store *base)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t n = 0;
	assert_ok(qcow_store_size(base, &n, &err), err);
	uint8_t *bytes = malloc(n);
	assert_non_null(bytes);
	assert_ok(qcow_store_read(base, bytes, n, 0, &err), err);
	struct qcow_store *copy = memory_of(bytes, n);
	free(bytes);
	return copy;
}

/* Who reads the raw data file alone finds the disk. */
static void check_raw(const struct run *r, struct qcow_store *data)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_read_padded(data, got, SIZE, 0, &err), err);
	if (memcmp(got, disk, SIZE) != 0)
		fail_msg("%s: %s %llu: the raw data file is not the disk", config->name, r->what,
			(unsigned long long)r->nth);
}

/* What another process would find now. data: NULL where there is none. */
static void check_outcome(struct run *r, struct qcow_store *base, struct qcow_store *data)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_result result;
	struct qcow_check_options o = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_image *image = must_open(copy_of(base), data != NULL ? copy_of(data) : NULL, 0);
	if (config->is_raw)
		check_raw(r, data);
	assert_int_equal(qcow_pread(image, got, SIZE, 0, &err), QCOW_OK);
	for (size_t i = 0; i < SIZE; i++)
		if (got[i] != disk[i])
			fail_msg("%s: %s %llu: byte %zu differs after a reopen", config->name,
				r->what, (unsigned long long)r->nth, i);
	assert_int_equal(qcow_check(image, &o, &result, &err), QCOW_OK);
	if (result.corruptions != 0)
		fail_msg("%s: %s %llu: %llu corruptions", config->name, r->what,
			(unsigned long long)r->nth, (unsigned long long)result.corruptions);
	qcow_close(image);
}

/* Returns false where fewer calls were made than nth. */
static bool run(struct run *r, enum qkt_call what, enum qkt_failure how)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *base = memory_of(fresh, n_fresh), *store = base;
	struct qcow_store *data_base = fresh_data != NULL ? memory_of(fresh_data, n_fresh_data)
							  : NULL;
	struct qcow_store *data = data_base;
	memcpy(disk, start, SIZE);
	r->seed = 88172645463325252;
	r->n_failed = 0;
	r->n_past = 0;
	if (r->fault != NULL) {
		store = qkt_guard(r->fault, r->order, base, 0);
		data = data != NULL ? qkt_guard_data(r->fault, r->order, data, 1) : NULL;
	}
	r->image = must_open(store, data, QCOW_OPEN_WRITE);
	if (r->fault != NULL)
		qkt_fault_arm(r->fault, what, r->nth, how, r->for_ever);
	else
		qkt_failmalloc_arm(r->nth, r->for_ever);
	for (unsigned i = 0; i < N_STEPS; i++)
		step(r);
	uint64_t hits = r->fault != NULL ? qkt_fault_hits(r->fault) : qkt_failmalloc_hits();
	bool was_hit = hits != 0 || r->n_failed != 0;
	heal(r);
	if (qcow_flush(r->image, &err) != QCOW_OK) {
		recover(r);
		if (r->loses)
			settle_all(r);
		assert_ok(qcow_flush(r->image, &err), err);
	}
	check_outcome(r, base, data_base);
	qcow_close(r->image);
	return was_hit;
}

static uint64_t sweep(
	enum qkt_call call, enum qkt_failure how, bool for_ever, uint64_t stride, const char *what)
{
	uint64_t nth = 1, n = 0;
	for (bool was_hit = true; was_hit; nth += stride * config->stride * QKT_STRIDE, n++) {
		struct run r = {.what = what,
			.nth = nth,
			.for_ever = for_ever,
			.is_short = how == QKT_SHORT,
			.loses = call == QKT_FLUSH};
		r.fault = qkt_fault_new();
		r.order = qkt_order_new(NULL);
		was_hit = run(&r, call, how);
		qkt_order_free(r.order);
		qkt_fault_free(r.fault);
	}
	return n;
}

static void every_write_may_fail(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_CONFIGS; i++) {
		make_image(&configs[i]);
		/* beside a data file little else is written */
		uint64_t few = config->stride * QKT_STRIDE * (config->has_data_file ? 2 : 1);
		assert_true(sweep(QKT_WRITE, QKT_EIO, false, 1, "write") > 50 / few);
		/* the half of an encrypted sector decrypts to nothing; disks write whole ones */
		if (!config->is_encrypted)
			assert_true(
				sweep(QKT_WRITE, QKT_SHORT, false, 3, "short write") > 15 / few);
		assert_true(sweep(QKT_WRITE, QKT_ENOSPC, false, 2, "full") > 25 / few);
		assert_true(sweep(QKT_WRITE, QKT_EIO, true, 5, "write for ever") > 10 / few);
		assert_true(sweep(QKT_WRITE, QKT_ENOSPC, true, 5, "full for ever") > 10 / few);
	}
}

static void every_flush_may_fail(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_CONFIGS; i++) {
		make_image(&configs[i]);
		uint64_t few = config->stride * QKT_STRIDE;
		assert_true(sweep(QKT_FLUSH, QKT_EIO, false, 1, "flush") > 10 / few);
		assert_true(sweep(QKT_FLUSH, QKT_EIO, true, 1, "flush for ever") > 10 / few);
	}
}

static void every_read_and_truncate_may_fail(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_CONFIGS; i++) {
		make_image(&configs[i]);
		assert_true(sweep(QKT_READ, QKT_EIO, false, 1, "read") >= 1);
		/* a raw data file has its length, and its image all tables */
		assert_true(sweep(QKT_TRUNCATE, QKT_ENOSPC, false, 1, "truncate") >
			    (config->has_data_file ? 0 : 1));
	}
}

static void every_allocation_may_fail(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_CONFIGS; i++) {
		make_image(&configs[i]);
		uint64_t n = 0, few = config->stride * QKT_STRIDE;
		for (bool was_hit = true; was_hit; n++) {
			struct run r = {.what = "allocation", .nth = n * few + 1};
			was_hit = run(&r, QKT_ANY, QKT_EIO);
		}
		assert_true(n > 20 / few);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_write_may_fail),
		cmocka_unit_test(every_flush_may_fail),
		cmocka_unit_test(every_read_and_truncate_may_fail),
		cmocka_unit_test(every_allocation_may_fail),
	};
	qkt_need_program("qemu-img", "qemu-utils");
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	free(fresh);
	return failed;
}
