/* SPDX-License-Identifier: MIT */
/*
 * What a space makes of images that QEMU wrote and that were damaged since: which are refused, which clusters are
 * never handed out, and how the refcounts of a dirty image are rebuilt, with every call of the store failing.
 */
#include "cm.h"
#include "qemu.h"

#include "engine/image.h"
#include "engine/open.h"
#include "engine/space.h"
#include "fault.h"
#include "host.h"
#include "order.h"
#include "space_lab.h"
#include "rng.h"

#define K64 UINT64_C(0x10000)

struct opened {
	struct qcow_image *image;
	struct qk_space *sp;
	struct qcow_store *store;
};

static struct qk_space_request request(struct opened *o, enum qcow_prove prove)
{
	struct qk_space_request rq = {.store = o->store,
		.geometry = &o->image->geometry,
		.header = &o->image->header,
		.ext = &o->image->ext,
		.prove = prove};
	struct qcow_error err = QCOW_ERROR_INIT;

	assert_ok(qcow_store_size(o->store, &rq.file_size, &err), err);
	return rq;
}

static struct qcow_store *open_rw(const char *name)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;

	assert_ok(qcow_file_open(in_dir(name), QCOW_FILE_WRITE, &store, &err), err);
	return store;
}

static struct opened open_image(struct qcow_store *store)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct opened o = {.store = store};

	assert_ok(qk_layer_open(store, &options, &o.image, &err), err);
	return o;
}

static void close_image(struct opened *o)
{
	qk_space_free(o->sp);
	qk_layer_close(o->image);
}

/* Opening "t" for writing answers `want`, with the finding. */
static void expect(enum qcow_status want, unsigned finding, enum qcow_prove prove)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct opened o = open_image(open_rw("t"));
	struct qk_space_request rq = request(&o, prove);

	assert_status(qk_space_new(&rq, &o.sp, &err), want, err);
	if (want != QCOW_OK)
		assert_int_equal(err.finding, finding);
	close_image(&o);
}

/* qemu-img's offsets: header 0, refcount table 64K, block 128K, L1 192K, L2 256K, data from 320K */
static void make_base(void)
{
	sh("rm -f t && qemu-img create -q -f qcow2 t 1G && qemu-io -c 'write -P 1 0 256k' t");
}

static void poke_refcount(uint64_t cluster, uint16_t v)
{
	v = __builtin_bswap16(v);
	poke("t", 2 * K64 + cluster * 2, &v, sizeof(v));
}

static void a_refcount_below_its_references_is_refused(void **state)
{
	(void)state;
	for (uint64_t cluster = 0; cluster < 9; cluster++) {
		make_base();
		expect(QCOW_OK, 0, QCOW_PROVE_AUTO);
		poke_refcount(cluster, 0);
		expect(QCOW_E_CORRUPT, QCOW_FINDING_REFCOUNT_TOO_LOW, QCOW_PROVE_AUTO);
		expect(QCOW_OK, 0, QCOW_PROVE_OFF);
	}
}

static void leaks_and_copied_clear_are_not(void **state)
{
	(void)state;
	make_base();
	poke_refcount(5, 7);
	poke_refcount(100, 3);
	poke64("t", 4 * K64, 5 * K64);
	expect(QCOW_OK, 0, QCOW_PROVE_FULL);
}

static void take_one(struct qk_space *sp, struct qk_space_run *run)
{
	struct qk_space_want want = {.n = 1};
	struct qcow_error err = QCOW_ERROR_INIT;

	assert_ok(qk_space_take(sp, &want, run, &err), err);
}

/* A writer that was killed leaves clusters that nothing refers to: the next one takes them. */
static void leaks_are_taken_again(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;

	make_base();
	sh("cp t before");
	for (uint64_t c = 9; c < 40; c++)
		poke_refcount(c, 1);
	sh("cp t leaky");
	struct opened o = open_image(open_rw("t"));
	struct qk_space_request rq = request(&o, QCOW_PROVE_AUTO);
	assert_ok(qk_space_new(&rq, &o.sp, &err), err);
	/* who changes nothing writes nothing */
	assert_ok(qk_space_close(o.sp, &err), err);
	close_image(&o);
	sh("cmp t leaky");
	o = open_image(open_rw("t"));
	rq = request(&o, QCOW_PROVE_AUTO);
	assert_ok(qk_space_new(&rq, &o.sp, &err), err);
	take_one(o.sp, &run);
	assert_int_equal(run.off, 9 * K64);
	qk_space_give_back(o.sp, run.off, 1);
	assert_ok(qk_space_close(o.sp, &err), err);
	close_image(&o);
	sh("qemu-img check -q t && cmp t before");
}

/* Not where something unknown may refer to them: an extension that nobody knows, damage. */
static void leaks_stay_where_not_all_is_known(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_space_run run;

	for (unsigned i = 0; i < 2; i++) {
		make_base();
		poke_refcount(9, 1);
		if (i == 0)
			poke32("t", 112, 0x12345678); /* was the feature name table */
		else
			poke64("t", 4 * K64 + 64, 5 * K64 + 512);
		struct opened o = open_image(open_rw("t"));
		struct qk_space_request rq = request(&o, QCOW_PROVE_AUTO);
		assert_ok(qk_space_new(&rq, &o.sp, &err), err);
		take_one(o.sp, &run);
		assert_int_equal(run.off, 10 * K64);
		close_image(&o);
	}
}

static void shared_metadata_is_refused(void **state)
{
	(void)state;
	make_base();
	poke64("t", 4 * K64 + 8, UINT64_C(1) << 63 | 3 * K64);
	expect(QCOW_E_CORRUPT, QCOW_FINDING_METADATA_OVERLAP, QCOW_PROVE_AUTO);
	make_base();
	poke64("t", 3 * K64 + 8, UINT64_C(1) << 63 | 2 * K64);
	expect(QCOW_E_CORRUPT, QCOW_FINDING_METADATA_OVERLAP, QCOW_PROVE_OFF);
	make_base();
	poke64("t", K64 + 8, 3 * K64);
	expect(QCOW_E_CORRUPT, QCOW_FINDING_METADATA_OVERLAP, QCOW_PROVE_OFF);
	make_base();
	poke64("t", K64 + 8, 2 * K64);
	expect(QCOW_E_CORRUPT, QCOW_FINDING_REFCOUNT_BLOCK_TWICE, QCOW_PROVE_OFF);
	make_base();
	poke64("t", K64 + 8, 2 * K64 + 512);
	expect(QCOW_E_CORRUPT, QCOW_FINDING_REFTABLE_ENTRY_UNALIGNED, QCOW_PROVE_OFF);
	make_base();
	poke64("t", K64 + 8, 1 << 30);
	expect(QCOW_E_CORRUPT, QCOW_FINDING_REFTABLE_ENTRY_BEYOND_FILE, QCOW_PROVE_OFF);
}

static void copied_on_a_shared_cluster_is_refused(void **state)
{
	(void)state;
	make_base();
	poke64("t", 4 * K64 + 8, UINT64_C(1) << 63 | 5 * K64);
	poke_refcount(5, 2);
	expect(QCOW_E_CORRUPT, QCOW_FINDING_COPIED_WRONG, QCOW_PROVE_AUTO);
}

/* The file would grow over what they name. It ends after cluster 8. */
static void entries_past_the_end_of_the_file_are_refused(void **state)
{
	(void)state;
	make_base();
	poke64("t", 4 * K64 + 128, UINT64_C(1) << 63 | 10 * K64);
	expect(QCOW_E_CORRUPT, QCOW_FINDING_L2_ENTRY_BEYOND_FILE, QCOW_PROVE_AUTO);
	make_base();
	poke64("t", 4 * K64 + 136, UINT64_C(1) << 62 | (13 * K64 + 77));
	expect(QCOW_E_CORRUPT, QCOW_FINDING_COMPRESSED_BEYOND_FILE, QCOW_PROVE_AUTO);
	make_base();
	poke64("t", 3 * K64 + 8, UINT64_C(1) << 63 | 12 * K64);
	expect(QCOW_E_CORRUPT, QCOW_FINDING_L1_ENTRY_BEYOND_FILE, QCOW_PROVE_AUTO);
	expect(QCOW_E_CORRUPT, QCOW_FINDING_L1_ENTRY_BEYOND_FILE, QCOW_PROVE_OFF);
	/* and counted anew neither */
	poke64("t", 72, 1);
	struct qcow_error err = QCOW_ERROR_INIT;
	struct opened o = open_image(open_rw("t"));
	struct qk_space_request rq = request(&o, QCOW_PROVE_AUTO);
	struct qk_header header = o.image->header;
	assert_status(qk_space_prepare(&rq, &header, 3, false, &err), QCOW_E_CORRUPT, err);
	close_image(&o);
}

static void large_tables_are_not_counted_and_nothing_of_the_file_is_taken(void **state)
{
	(void)state;
	/* 130 L2 tables of 64 KiB are more than 8 MiB; clusters 5 and 6 are freed by a discard */
	sh("rm -f t && qemu-img create -q -f qcow2 t 80G && qemu-io -c 'write -q 0 128k' t");
	sh("for i in $(seq 129); do echo \"write -q $((i * 512))M 4k\"; done | "
	   "qemu-io t > /dev/null; qemu-io -d unmap -c 'discard -q 0 128k' t");
	struct qcow_error err = QCOW_ERROR_INIT;
	struct opened o = open_image(open_rw("t"));
	struct qk_space_request rq = request(&o, QCOW_PROVE_AUTO);
	struct qk_space_run run;
	uint64_t count = 1;

	assert_ok(qk_space_new(&rq, &o.sp, &err), err);
	assert_ok(qk_space_refcount(o.sp, 5 * K64, &count, &err), err);
	assert_int_equal(count, 0);
	take_one(o.sp, &run);
	assert_true(run.off >= rq.file_size);
	qk_space_free(o.sp);
	rq.prove = QCOW_PROVE_FULL;
	assert_ok(qk_space_new(&rq, &o.sp, &err), err);
	take_one(o.sp, &run);
	assert_int_equal(run.off, 5 * K64);
	close_image(&o);
}

/* ---- writes that would land on something ---- */

static void expect_overlap(enum qk_space_kind kind, uint64_t off, bool is_bad)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t bit = 0;

	make_base();
	struct opened o = open_image(open_rw("t"));
	struct qk_space_request rq = request(&o, QCOW_PROVE_AUTO);
	struct qk_space_want want = {.n = 1};
	struct qk_space_run run;
	assert_ok(qk_space_new(&rq, &o.sp, &err), err);
	assert_status(qk_space_check_overlap(o.sp, kind, off, 512, &err),
		is_bad ? QCOW_E_CORRUPT : QCOW_OK, err);
	if (is_bad) {
		assert_int_equal(err.finding, QCOW_FINDING_METADATA_OVERLAP);
		assert_int_equal(err.host_off, off / K64 * K64);
		assert_status(qk_space_take(o.sp, &want, &run, &err), QCOW_E_CORRUPT, err);
	}
	assert_ok(qcow_store_read(o.store, &bit, sizeof(bit), 72, &err), err);
	assert_int_equal(__builtin_bswap64(bit), is_bad ? QCOW_INCOMPAT_CORRUPT : 0);
	close_image(&o);
}

static void writes_on_other_structures_are_refused(void **state)
{
	(void)state;
	static const enum qk_space_kind at[] = {QK_SPACE_HEADER, QK_SPACE_REFTABLE,
		QK_SPACE_REFBLOCK, QK_SPACE_L1, QK_SPACE_L2, QK_SPACE_DATA};

	for (enum qk_space_kind kind = 0; kind <= QK_SPACE_L2; kind++) {
		for (uint64_t c = 0; c < sizeof(at) / sizeof(*at); c++) {
			bool unknown = at[c] == QK_SPACE_DATA && kind == QK_SPACE_L2;
			expect_overlap(kind, c * K64 + 1024, kind != at[c] && !unknown);
		}
	}
}

/* ---- autoclear ---- */

static void unknown_autoclear_bits_are_cleared_once(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_fault *fault = qkt_fault_new();
	uint64_t bits = 0;

	make_base();
	poke64("t", 88, UINT64_C(1) << 40 | 1 << 7);
	struct opened o = open_image(qkt_fault_wrap(fault, open_rw("t"), 0));
	struct qk_space_request rq = request(&o, QCOW_PROVE_AUTO);
	struct qk_header header = o.image->header;
	qkt_fault_log(fault);
	assert_ok(qk_space_prepare(&rq, &header, 3, false, &err), err);
	assert_ok(qk_space_prepare(&rq, &header, 3, false, &err), err);
	assert_int_equal(qkt_fault_log_count(fault), 2);
	assert_int_equal(qkt_fault_log_entry(fault, 0)->call, QKT_WRITE);
	assert_int_equal(qkt_fault_log_entry(fault, 0)->len, 512);
	assert_int_equal(qkt_fault_log_entry(fault, 1)->call, QKT_FLUSH);
	assert_int_equal(header.autoclear, 0);
	assert_ok(qcow_store_read(o.store, &bits, sizeof(bits), 88, &err), err);
	assert_int_equal(bits, 0);
	close_image(&o);
	qkt_fault_free(fault);
	sh("qemu-img check -q t");
}

/* ---- dirty images ---- */

static enum qcow_status prepare(
	struct opened *o, const struct qk_space_request *rq, struct qcow_error *err)
{
	struct qk_header header = o->image->header;

	return qk_space_prepare(rq, &header, 3, false, err);
}

/* What qcow_check says of the file: corruptions, and whether the dirty bit is set. */
static void judge(const char *name, bool *is_dirty, uint64_t *n_corruptions, uint64_t *n_leaks)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_check_options check = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	uint8_t byte = 0;

	options.flags = QCOW_OPEN_CHECK;
	assert_ok(try_open(name, &options, &image, &err), err);
	assert_ok(qcow_check(image, &check, &result, &err), err);
	assert_ok(qcow_store_read(image->store, &byte, 1, 79, &err), err);
	*is_dirty = (byte & 1) != 0;
	*n_corruptions = result.corruptions;
	*n_leaks = result.leaks;
	qcow_close(image);
}

/* device_bytes: the store has so many and cannot grow; 0: it grows. */
static void rebuild_with_failures(uint64_t device_bytes)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = QCOW_E_IO;
	uint64_t corruptions = 0;
	uint64_t leaks = 0;
	bool is_dirty = true;

	for (uint64_t nth = 1; status != QCOW_OK; nth += 1 + nth / 30) {
		struct qkt_fault *fault = qkt_fault_new();
		struct qkt_order *order = qkt_order_new(NULL);
		sh("cp --sparse=always base t");
		struct qcow_store *base = open_rw("t");
		if (device_bytes != 0)
			base = lab_fix(base, device_bytes);
		struct opened o = open_image(qkt_guard(fault, order, base, 0));
		struct qk_space_request rq = request(&o, QCOW_PROVE_AUTO);
		rq.cache_bytes = 1;
		qkt_fault_arm(fault, QKT_ANY, nth, nth % 2 ? QKT_EIO : QKT_SHORT, nth % 3 == 0);
		status = prepare(&o, &rq, &err);
		bool was_hit = qkt_fault_hits(fault) != 0;
		qkt_fault_disarm(fault);
		close_image(&o);
		qkt_order_free(order);
		qkt_fault_free(fault);
		judge("t", &is_dirty, &corruptions, &leaks);
		assert_true(status == QCOW_OK || was_hit);
		assert_true(is_dirty || corruptions == 0);
		assert_true(status != QCOW_OK || !is_dirty);
	}
	assert_int_equal(corruptions, 0);
	assert_int_equal(leaks, 0);
	sh("qemu-img check -q t && qemu-img compare -q -U t want");
}

/* ---- a crash in the middle of it ---- */

static struct qcow_store *store_of(const struct qkt_model *m)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;

	assert_ok(qcow_memory_open(m->size, &store, &err), err);
	assert_ok(qcow_store_write(store, m->bytes, m->size, 0, &err), err);
	return store;
}

/* What a crash left is dirty, or good; and prepared again it is good. */
static void judge_state(const struct qkt_model *m)
{
	struct qcow_check_options check = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	struct qcow_error err = QCOW_ERROR_INIT;
	bool is_dirty = (m->bytes[79] & 1) != 0;
	struct opened o = open_image(store_of(m));

	assert_ok(qcow_check(o.image, &check, &result, &err), err);
	assert_true(is_dirty || result.corruptions == 0);
	struct qk_space_request rq = request(&o, QCOW_PROVE_FULL);
	assert_ok(prepare(&o, &rq, &err), err);
	uint64_t size = 0;
	assert_ok(qcow_store_size(o.store, &size, &err), err);
	struct qkt_model after = qkt_model_new(size);
	assert_ok(qcow_store_read(o.store, after.bytes, size, 0, &err), err);
	close_image(&o);
	/* the header that `o` knows was read before the rebuild */
	o = open_image(store_of(&after));
	assert_int_equal(after.bytes[79] & 1, 0);
	assert_ok(qcow_check(o.image, &check, &result, &err), err);
	assert_int_equal(result.corruptions, 0);
	rq = request(&o, QCOW_PROVE_FULL);
	assert_ok(qk_space_new(&rq, &o.sp, &err), err);
	close_image(&o);
	qkt_model_free(&after);
}

/* The writes [first, end) may or may not be durable, sector by sector. */
static void apply_some(struct qkt_fault *f, struct qkt_model *m, size_t first, size_t end,
	struct qkt_rng *rng, unsigned of_four)
{
	for (size_t i = first; i < end; i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(f, i);
		uint64_t n = e->call == QKT_WRITE ? e->len / 512 : 1;
		for (uint64_t k = 0; k < n; k++) {
			if (qkt_rng_below(rng, 4) < of_four)
				qkt_log_apply(e, m, k, 1);
		}
	}
}

static void judge_epoch(struct qkt_fault *f, const struct qkt_model *stable, size_t first,
	size_t end, struct qkt_rng *rng)
{
	for (unsigned i = 0; i < 5; i++) {
		struct qkt_model m = qkt_model_new(stable->size);
		memcpy(m.bytes, stable->bytes, stable->size);
		apply_some(f, &m, first, end, rng, i);
		judge_state(&m);
		qkt_model_free(&m);
	}
}

static void crash_everywhere(struct qkt_rng *rng)
{
	struct qkt_fault *fault = qkt_fault_new();
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkt_model stable = {0};

	sh("cp --sparse=always base t");
	stable.bytes = slurp("base", &stable.size);
	struct opened o = open_image(qkt_fault_wrap(fault, open_rw("t"), 0));
	struct qk_space_request rq = request(&o, QCOW_PROVE_AUTO);
	rq.cache_bytes = 1;
	qkt_fault_log(fault);
	assert_ok(prepare(&o, &rq, &err), err);
	close_image(&o);
	size_t n = qkt_fault_log_count(fault);
	size_t first = 0;
	for (size_t i = 0; i < n; i++) {
		if (qkt_fault_log_entry(fault, i)->call != QKT_FLUSH)
			continue;
		judge_epoch(fault, &stable, first, i, rng);
		apply_some(fault, &stable, first, i, rng, 4);
		first = i + 1;
	}
	assert_true(first == n && n >= 4);
	judge_state(&stable);
	qkt_model_free(&stable);
	qkt_fault_free(fault);
}

static void a_crash_leaves_it_dirty_or_good(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(16);

	sh("rm -f base && qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 base 1M "
	   "&& qemu-io -c 'write -P 3 0 300k' base");
	for (uint64_t i = 1; i < 4; i++)
		poke64("base", 512 + i * 8, 0);
	poke64("base", 72, 1);
	crash_everywhere(&rng);
	sh("rm -f base && qemu-img create -q -f qcow2 -o lazy_refcounts=on,cluster_size=512 base "
	   "1M && "
	   "(qemu-io -c 'write -P 3 0 300k' -c 'discard 20k 30k' -c 'write -P 4 500k 9k' -c abort "
	   "base || true)");
	crash_everywhere(&rng);
}

static void dirty_refcounts_are_rebuilt(void **state)
{
	(void)state;
	static const char *const options[] = {"cluster_size=64k", "cluster_size=512",
		"cluster_size=512,refcount_bits=64", "cluster_size=4k,refcount_bits=1",
		"cluster_size=2M,refcount_bits=8"};

	for (size_t i = 0; i < sizeof(options) / sizeof(*options); i++) {
		sh("rm -f base want && qemu-img create -q -f qcow2 -o lazy_refcounts=on,%s base "
		   "8M && (qemu-io -c 'write -P 3 100k 300k' -c 'write -P 4 5M 100k' -c abort base "
		   "|| true) && qemu-img info -f qcow2 base && cp base want && "
		   "qemu-img check -q -r all want && rm -f raw",
			options[i]);
		rebuild_with_failures(0);
	}
}

/* 512 bytes and 64 bits: a block counts 64 clusters. Entries 1 to 9 of the table are lost. */
static void lose_blocks(const char *setup)
{
	sh("rm -f base want && qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 "
	   "base 8M && qemu-io -c 'write -P 3 0 700k' base && %s && cp base want",
		setup);
	for (uint64_t i = 1; i < 10; i++)
		poke64("base", 512 + i * 8, 0);
	poke64("base", 72, 1);
}

static void missing_blocks_are_made(void **state)
{
	(void)state;
	lose_blocks("true");
	rebuild_with_failures(0);
}

/* What the blocks that are left count, and is free, is all there is. */
static void missing_blocks_are_made_on_a_device(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;

	lose_blocks("qemu-io -d unmap -c 'discard 600k 20k' base");
	rebuild_with_failures(1 << 20);
	/* and where there is none the image stays dirty */
	lose_blocks("true");
	sh("cp base t");
	struct qcow_store *base = open_rw("t");
	uint64_t size = 0;
	assert_ok(qcow_store_size(base, &size, &err), err);
	struct opened o = open_image(lab_fix(base, size));
	struct qk_space_request rq = request(&o, QCOW_PROVE_AUTO);
	assert_status(prepare(&o, &rq, &err), QCOW_E_NOSPC, err);
	close_image(&o);
}

static void a_dirty_image_is_refused_if_asked(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;

	make_base();
	poke64("t", 72, 1);
	struct opened o = open_image(open_rw("t"));
	struct qk_space_request rq = request(&o, QCOW_PROVE_AUTO);
	struct qk_header header = o.image->header;
	assert_status(qk_space_prepare(&rq, &header, 3, true, &err), QCOW_E_READONLY, err);
	assert_int_equal(err.finding, QCOW_FINDING_DIRTY);
	close_image(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_refcount_below_its_references_is_refused),
		cmocka_unit_test(leaks_and_copied_clear_are_not),
		cmocka_unit_test(leaks_are_taken_again),
		cmocka_unit_test(leaks_stay_where_not_all_is_known),
		cmocka_unit_test(shared_metadata_is_refused),
		cmocka_unit_test(copied_on_a_shared_cluster_is_refused),
		cmocka_unit_test(entries_past_the_end_of_the_file_are_refused),
		cmocka_unit_test(large_tables_are_not_counted_and_nothing_of_the_file_is_taken),
		cmocka_unit_test(writes_on_other_structures_are_refused),
		cmocka_unit_test(unknown_autoclear_bits_are_cleared_once),
		cmocka_unit_test(dirty_refcounts_are_rebuilt),
		cmocka_unit_test(missing_blocks_are_made),
		cmocka_unit_test(missing_blocks_are_made_on_a_device),
		cmocka_unit_test(a_crash_leaves_it_dirty_or_good),
		cmocka_unit_test(a_dirty_image_is_refused_if_asked),
	};
	qkt_need_program("qemu-img", "qemu-utils");
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
