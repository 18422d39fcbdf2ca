/* SPDX-License-Identifier: MIT */
/*
 * commit: what the layers above a base hold is written into the base.
 *
 *	base: grown, if it is shorter || data and zeros, from the pipe, in any order || (stable)
 *	overlay: emptied
 *
 * Whatever ends it on the way, a crash too: the layers above hold all that was written to the base, so the overlay reads
 * the same. The walk looks at the layers above the base alone; what none of them holds is the base's already, but
 * where one of them ends earlier: what the layers above it lack reads as zeros there.
 */
#include <qcowkit/ops.h>

#include <inttypes.h>

#include <qcowkit/manage.h>

#include "base/err.h"
#include "base/num.h"
#include "base/options.h"
#include "ops/pipe.h"

#define CHUNK_BYTES QK_MIB(1)
/* A run of zeros is cut, so that progress shows and cancelling works. */
#define ZERO_BYTES QK_GIB(1)

struct piece {
	uint8_t *bytes; /* a chunk */
	uint64_t off, len;
	bool is_data, is_zero; /* neither: nothing to do */
};

struct commit {
	const struct qcow_commit_options *options;
	struct qcow_image *image, *base;
	uint32_t n_above; /* layers above the base */
	uint64_t size; /* of the overlay's disk */
	uint64_t reach; /* up to here the base shows through where nothing lies above it */
	uint64_t base_size; /* as it was */
	uint64_t at; /* the walk */
	struct qcow_commit_result result;
};

static enum qcow_status find_base(struct commit *c, struct qcow_error *err)
{
	struct qcow_image *layer = c->image;
	c->reach = UINT64_MAX;
	for (c->n_above = 0; layer != NULL && layer != c->base; c->n_above++) {
		c->reach = qk_min(c->reach, qcow_size(layer));
		layer = qcow_backing(layer);
	}
	if (layer == NULL || c->n_above == 0)
		return QK_FAIL(err, QCOW_E_INVAL,
			"the base of a commit is a layer below the image: '%s' is none of '%s'",
			qcow_store_name(qcow_image_store(c->base)),
			qcow_store_name(qcow_image_store(c->image)));
	return QCOW_OK;
}

/* Does the base read as zeros from `off` on? *end: how far. */
static enum qcow_status skip_zeros(
	const struct commit *c, uint64_t off, uint64_t *end, struct qcow_error *err)
{
	struct qcow_extent e;
	*end = off;
	if (off >= c->base_size) {
		/* it was grown by what reads as zeros */
		*end = UINT64_MAX;
		return QCOW_OK;
	}
	QK_TRY(qcow_map(c->base, off, c->base_size - off, UINT32_MAX, &e, err));
	if ((e.flags & QCOW_EXTENT_PRESENT) == 0 ||
		(e.flags & (QCOW_EXTENT_ZERO | QCOW_EXTENT_DATA)) == QCOW_EXTENT_ZERO)
		*end = off + e.len;
	return QCOW_OK;
}

/* Set kind and length of the piece at c->at. */
static enum qcow_status describe(struct commit *c, struct piece *p, struct qcow_error *err)
{
	struct qcow_extent e;
	uint64_t skip = 0;
	QK_TRY(qcow_map(c->image, c->at, c->size - c->at, c->n_above - 1, &e, err));
	QK_ASSERT(S1, e.len != 0 && e.len <= c->size - c->at);
	bool is_held = (e.flags & QCOW_EXTENT_PRESENT) != 0;
	p->len = e.len;
	if (!is_held && c->at < c->reach) {
		p->len = qk_min(p->len, c->reach - c->at);
		return QCOW_OK;
	}
	p->is_zero = !is_held || (e.flags & QCOW_EXTENT_ZERO) != 0;
	p->is_data = !p->is_zero;
	if (p->is_data) {
		p->len = qk_min(p->len, CHUNK_BYTES - c->at % CHUNK_BYTES);
		return QCOW_OK;
	}
	QK_TRY(skip_zeros(c, c->at, &skip, err));
	p->is_zero = skip == c->at;
	p->len = qk_min(p->len, p->is_zero ? ZERO_BYTES : skip - c->at);
	return QCOW_OK;
}

static enum qcow_status next(
	void *ctx, void *item, bool *end, uint64_t *cost_bytes, struct qcow_error *err)
{
	struct commit *c = ctx;
	struct piece *p = item;
	*end = c->at >= c->size;
	if (*end)
		return QCOW_OK;
	*p = (struct piece){.off = c->at, .bytes = p->bytes};
	QK_TRY(describe(c, p, err));
	c->at += p->len;
	*cost_bytes = p->is_data ? p->len : 0;
	return QCOW_OK;
}

static enum qcow_status work(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct commit *c = ctx;
	struct piece *p = item;
	(void)worker;
	if (!p->is_data || c->options->dry_run)
		return QCOW_OK;
	return qcow_pread(c->image, p->bytes, (size_t)p->len, p->off, err);
}

static enum qcow_status store(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct commit *c = ctx;
	const struct piece *p = item;
	(void)worker;
	if (c->options->dry_run || (!p->is_data && !p->is_zero))
		return QCOW_OK;
	if (p->is_data)
		return qcow_pwrite(c->base, p->bytes, (size_t)p->len, p->off, 0, err);
	return qcow_zero(c->base, p->off, p->len, QCOW_IO_UNMAP, err);
}

static uint64_t done(void *ctx, void *item)
{
	struct commit *c = ctx;
	const struct piece *p = item;
	c->result.bytes_copied += p->is_data ? p->len : 0;
	c->result.bytes_zeroed += p->is_zero ? p->len : 0;
	return p->len;
}

static enum qcow_status run_pipe(struct commit *c, struct qcow_error *err)
{
	static const struct qk_pipe_stages stages = {next, work, NULL, store, done};
	const struct qk_pipe_job job = {.stages = &stages,
		.ctx = c,
		.n_workers = qk_pipe_workers(c->options->n_workers),
		.any_order = true,
		.rate_bytes_per_sec = c->options->rate_bytes_per_sec,
		.total = c->size,
		.progress = c->options->progress};
	return qk_pipe_run_pieces(&job, sizeof(struct piece), CHUNK_BYTES, err);
}

static enum qcow_status grow_base(struct commit *c, struct qcow_error *err)
{
	if (c->size <= c->base_size || c->options->dry_run)
		return QCOW_OK;
	enum qcow_status status = qcow_resize(c->base, c->size, NULL, err);
	if (status != QCOW_OK)
		qk_err_context(err, "the base '%s' cannot be grown to %" PRIu64 " bytes",
			qcow_store_name(qcow_image_store(c->base)), c->size);
	return status;
}

static enum qcow_status run(struct commit *c, struct qcow_error *err)
{
	c->size = qcow_size(c->image);
	c->base_size = qcow_size(c->base);
	QK_TRY(find_base(c, err));
	QK_TRY(grow_base(c, err));
	QK_TRY(run_pipe(c, err));
	if (c->options->dry_run)
		return QCOW_OK;
	QK_TRY(qcow_flush(c->base, err));
	return c->options->keep ? QCOW_OK : qcow_empty(c->image, err);
}

QK_TAKE_OPTIONS(
	take_options, qcow_commit_options, "commit options", QCOW_COMMIT_OPTIONS_INIT, progress)

enum qcow_status qcow_commit(struct qcow_image *image, struct qcow_image *base,
	const struct qcow_commit_options *options, struct qcow_commit_result *result,
	struct qcow_error *err)
{
	struct qcow_commit_options o;
	struct commit c = {.options = &o, .image = image, .base = base};
	QK_TRY(take_options(options, &o, err));
	if (image == NULL || base == NULL || result == NULL || o.n_workers > QK_PIPE_MAX_WORKERS)
		return QK_FAIL(err, QCOW_E_INVAL,
			"qcow_commit: an argument is NULL, or there are over %d workers",
			QK_PIPE_MAX_WORKERS);
	*result = (struct qcow_commit_result){0};
	enum qcow_status status = run(&c, err);
	*result = c.result;
	return status;
}
