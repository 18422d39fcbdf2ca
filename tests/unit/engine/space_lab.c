/* SPDX-License-Identifier: MIT */
/* space_lab: see space_lab.h. */
#include "space_lab.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- a store in memory that cannot grow ---- */

struct fixed {
	struct qcow_store *inner;
};

static enum qcow_status fixed_preadv(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *err)
{
	return qcow_store_readv(((struct fixed *)ctx)->inner, iov, n, off, err);
}

static enum qcow_status fixed_pwritev(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *err)
{
	return qcow_store_writev(((struct fixed *)ctx)->inner, iov, n, off, err);
}

static enum qcow_status fixed_flush(void *ctx, struct qcow_error *err)
{
	return qcow_store_flush(((struct fixed *)ctx)->inner, err);
}

static enum qcow_status fixed_size(void *ctx, uint64_t *size, struct qcow_error *err)
{
	return qcow_store_size(((struct fixed *)ctx)->inner, size, err);
}

static enum qcow_status fixed_truncate(void *ctx, uint64_t size, struct qcow_error *err)
{
	(void)ctx;
	(void)size;
	(void)err;
	return QCOW_E_NOTSUP;
}

static void fixed_caps(void *ctx, struct qcow_store_caps *out)
{
	qcow_store_caps(((struct fixed *)ctx)->inner, out);
	out->can_grow = false;
}

static void fixed_close(void *ctx)
{
	qcow_store_close(((struct fixed *)ctx)->inner);
	free(ctx);
}

static const struct qcow_store_ops fixed_ops = {.abi = QCOW_STORE_ABI,
	.name = "fixed",
	.preadv = fixed_preadv,
	.pwritev = fixed_pwritev,
	.flush = fixed_flush,
	.size = fixed_size,
	.truncate = fixed_truncate,
	.caps = fixed_caps,
	.close = fixed_close};

struct qcow_store *lab_fix(struct qcow_store *inner, uint64_t size)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *out = NULL;
	struct fixed *f = malloc(sizeof(*f));

	assert_non_null(f);
	f->inner = inner;
	assert_ok(qcow_store_truncate(inner, size, &err), err);
	assert_ok(qcow_store_new(&fixed_ops, f, &out, &err), err);
	return out;
}

/* ---- the lab ---- */

enum qcow_status lab_space(struct lab *lab, const struct lab_options *o, struct qcow_error *err)
{
	uint8_t sector[512];
	struct qk_header *h = &lab->image->header;

	/* the refcount table may have moved */
	assert_ok(qcow_store_read(lab->store, sector, sizeof(sector), 0, err), *err);
	h->rt_off = qk_load64(sector + 48);
	h->rt_clusters = qk_load32(sector + 56);
	struct qk_space_request rq = {.store = lab->store,
		.geometry = &lab->image->geometry,
		.header = &lab->image->header,
		.ext = &lab->image->ext,
		.cache_bytes = o->cache_bytes,
		.prove = o->prove};

	assert_ok(qcow_store_size(lab->store, &rq.file_size, err), *err);
	return qk_space_new(&rq, &lab->sp, err);
}

struct qcow_store *lab_store(const struct lab_options *o)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_create_options c = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_store *store = NULL;

	c.cluster_size = o->cluster_size;
	c.refcount_bits = o->refcount_bits;
	c.virtual_size = o->disk_size != 0 ? o->disk_size : 1 << 20;
	c.version = o->version != 0 ? o->version : 3;
	assert_ok(qcow_memory_open(0, &store, &err), err);
	assert_ok(qcow_create(store, NULL, &c, &err), err);
	return o->fixed_clusters != 0 ? lab_fix(store, o->fixed_clusters * o->cluster_size) : store;
}

void lab_open(struct lab *lab, const struct lab_options *o)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store = lab_store(o);

	*lab = (struct lab){.fault = qkt_fault_new(), .order = qkt_order_new(NULL)};
	lab->peek = store;
	lab->store = o->plain ? store : qkt_guard(lab->fault, lab->order, store, 0);
	assert_ok(qk_layer_open(lab->store, &open, &lab->image, &err), err);
	lab->cluster_bits = lab->image->geometry.cluster_bits;
	lab->max = lab->image->geometry.refcount_max;
	lab->counts = calloc(LAB_CLUSTERS, sizeof(*lab->counts));
	lab->linked = calloc(LAB_CLUSTERS, sizeof(*lab->linked));
	assert_true(lab->counts != NULL && lab->linked != NULL);
	assert_ok(lab_space(lab, o, &err), err);
}

void lab_free(struct lab *lab)
{
	qk_space_free(lab->sp);
	qk_layer_close(lab->image);
	qkt_order_free(lab->order);
	qkt_fault_free(lab->fault);
	free(lab->counts);
	free(lab->linked);
}

enum qcow_status lab_take(struct lab *lab, uint64_t n, uint64_t min_n, struct qk_space_run *run,
	struct qcow_error *err)
{
	return lab_take_as(lab, QK_SPACE_DATA, n, min_n, run, err);
}

enum qcow_status lab_take_as(struct lab *lab, enum qk_space_kind kind, uint64_t n, uint64_t min_n,
	struct qk_space_run *run, struct qcow_error *err)
{
	struct qk_space_want want = {.n = n, .min_n = min_n, .kind = kind};
	enum qcow_status status = qk_space_take(lab->sp, &want, run, err);

	if (status != QCOW_OK)
		return status;
	uint64_t first = run->off >> lab->cluster_bits;
	assert_true(run->n >= (min_n == 0 ? 1 : min_n) && run->n <= n);
	assert_true(first + run->n <= LAB_CLUSTERS);
	for (uint64_t c = first; c < first + run->n; c++)
		assert_int_equal(lab->counts[c]++, 0);
	lab->top = first + run->n > lab->top ? first + run->n : lab->top;
	return QCOW_OK;
}

enum qcow_status lab_raise(struct lab *lab, uint64_t cluster, struct qcow_error *err)
{
	enum qcow_status status = qk_space_raise(lab->sp, cluster << lab->cluster_bits, 1, err);

	if (status == QCOW_OK)
		lab->counts[cluster]++;
	return status;
}

enum qcow_status lab_drop(struct lab *lab, uint64_t cluster, struct qcow_error *err)
{
	enum qcow_status status = qk_space_drop(lab->sp, cluster << lab->cluster_bits, 1, err);

	if (status != QCOW_OK)
		return status;
	lab->counts[cluster]--;
	if (lab->linked[cluster] > lab->counts[cluster])
		lab->linked[cluster] = lab->counts[cluster];
	return status;
}

static enum qcow_status publish(struct lab *lab, struct qcow_error *err)
{
	bool needs_link = false;

	QK_TRY(qk_space_publish_begin(lab->sp, &needs_link, err));
	QK_TRY(qcow_store_flush(lab->store, err));
	if (needs_link) {
		QK_TRY(qk_space_publish_link(lab->sp, err));
		QK_TRY(qcow_store_flush(lab->store, err));
	}
	qk_space_publish_done(lab->sp);
	return QCOW_OK;
}

enum qcow_status lab_publish(struct lab *lab, struct qcow_error *err)
{
	enum qcow_status status = publish(lab, err);

	if (status == QCOW_OK)
		memcpy(lab->linked, lab->counts, lab->top * sizeof(*lab->linked));
	return status;
}

/* ---- the reader ---- */

static uint64_t be(const uint8_t *p, unsigned n)
{
	uint64_t v = 0;

	while (n-- != 0)
		v = v << 8 | *p++;
	return v;
}

struct reader {
	uint8_t *file;
	uint64_t size; /* padded with a cluster of zeros */
	uint64_t cs, rt_off, rt_bytes, l1_off, l1_bytes;
	unsigned order;
};

static struct reader slurp(struct lab *lab)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct reader r = {.order = 4};

	assert_ok(qcow_store_size(lab->peek, &r.size, &err), err);
	r.file = calloc(1, r.size + (4 << 20));
	assert_non_null(r.file);
	assert_ok(qcow_store_read(lab->peek, r.file, r.size, 0, &err), err);
	r.cs = UINT64_C(1) << be(r.file + 20, 4);
	r.rt_off = be(r.file + 48, 8);
	r.rt_bytes = be(r.file + 56, 4) * r.cs;
	r.l1_off = be(r.file + 40, 8);
	r.l1_bytes = be(r.file + 36, 4) * 8;
	if (be(r.file + 4, 4) >= 3)
		r.order = (unsigned)be(r.file + 96, 4);
	return r;
}

static uint64_t stored(const struct reader *r, uint64_t cluster)
{
	uint64_t bits = 1U << r->order;
	uint64_t per = r->cs * 8 / bits;
	uint64_t at = cluster / per * 8;

	if (at >= r->rt_bytes)
		return 0;
	uint64_t block = be(r->file + r->rt_off + at, 8);
	if (block == 0)
		return 0;
	assert_true(block % r->cs == 0 && block < r->size);
	uint64_t i = cluster % per;
	if (bits >= 8)
		return be(r->file + block + i * (bits / 8), (unsigned)(bits / 8));
	unsigned byte = r->file[block + i * bits / 8];
	return byte >> (i * bits % 8) & ((1U << bits) - 1);
}

uint64_t lab_stored(struct lab *lab, uint64_t cluster)
{
	struct reader r = slurp(lab);
	uint64_t count = stored(&r, cluster);

	free(r.file);
	return count;
}

static void refer(const struct reader *r, uint32_t *refs, uint64_t off, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += r->cs)
		refs[(off + at) / r->cs]++;
}

void lab_judge(struct lab *lab, bool exact)
{
	struct reader r = slurp(lab);
	uint64_t end = r.size / r.cs + 1000;
	uint32_t *refs = calloc(end, sizeof(*refs));

	assert_true(refs != NULL && lab->top <= end);
	memcpy(refs, exact ? lab->counts : lab->linked, lab->top * sizeof(*refs));
	refer(&r, refs, 0, r.cs);
	refer(&r, refs, r.rt_off, r.rt_bytes);
	refer(&r, refs, r.l1_off, r.l1_bytes);
	for (uint64_t i = 0; i < r.rt_bytes; i += 8) {
		uint64_t block = be(r.file + r.rt_off + i, 8);
		if (block != 0)
			refer(&r, refs, block, r.cs);
	}
	for (uint64_t c = 0; c < end; c++) {
		uint64_t count = stored(&r, c);
		if (exact ? count != refs[c] : count < refs[c])
			fail_msg("cluster %" PRIu64 ": stored %" PRIu64 ", references %" PRIu32, c,
				count, refs[c]);
	}
	free(refs);
	free(r.file);
}
