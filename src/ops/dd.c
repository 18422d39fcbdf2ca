/* SPDX-License-Identifier: MIT */
/*
 * dd: a range of one disk is written to a place of another, block by block.
 */
#include <qcowkit/ops.h>

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/num.h"
#include "base/options.h"
#include "ops/pipe.h"
#include "ops/source.h"

#define CHUNK_BYTES	 QK_MIB(1)
#define MAX_SPARSE_BYTES QK_MIB(64) /* a block has to be seen whole to be left out */

struct piece {
	uint8_t *bytes; /* a chunk */
	uint64_t off, len; /* in the source's range */
	uint64_t bytes_written;
	bool is_skipped; /* known to be zeros, and left out */
};

struct dd {
	const struct qcow_dd_options *options;
	struct qcow_image *source, *target;
	uint64_t unit, chunk;
	uint64_t at; /* the walk */
	struct qcow_dd_result result;
};

/* Bytes from `at` on, whole blocks of them, that the source's map knows to be zeros. */
static enum qcow_status find_zeros(
	const struct dd *d, uint64_t at, uint64_t *len, struct qcow_error *err)
{
	const struct qcow_dd_options *o = d->options;
	uint64_t off = o->source_off + at, size = qcow_size(d->source);
	struct qcow_extent e;
	*len = 0;
	if (!o->sparse)
		return QCOW_OK;
	if (off >= size) {
		*len = o->len - at;
		return QCOW_OK;
	}
	QK_TRY(qcow_map(d->source, off, size - off, UINT32_MAX, &e, err));
	if ((e.flags & QCOW_EXTENT_PRESENT) == 0 || (e.flags & QCOW_EXTENT_ZERO) != 0)
		*len = e.len >= o->len - at ? o->len - at : e.len / d->unit * d->unit;
	return QCOW_OK;
}

static enum qcow_status next(
	void *ctx, void *item, bool *end, uint64_t *cost_bytes, struct qcow_error *err)
{
	struct dd *d = ctx;
	struct piece *p = item;
	uint64_t zeros = 0, left = d->options->len - d->at;
	*end = left == 0;
	if (*end)
		return QCOW_OK;
	QK_TRY(find_zeros(d, d->at, &zeros, err));
	*p = (struct piece){.off = d->at, .bytes = p->bytes, .is_skipped = zeros != 0};
	p->len = zeros != 0 ? zeros : qk_min(left, d->chunk);
	d->at += p->len;
	*cost_bytes = p->is_skipped ? 0 : p->len;
	return QCOW_OK;
}

/* What the source lacks of its last sector is zeros. */
static enum qcow_status work(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct dd *d = ctx;
	struct piece *p = item;
	uint64_t off = d->options->source_off + p->off, size = qcow_size(d->source);
	uint64_t n = off < size ? qk_min(p->len, size - off) : 0;
	(void)worker;
	if (p->is_skipped)
		return QCOW_OK;
	if (n != 0)
		QK_TRY(qcow_pread(d->source, p->bytes, (size_t)n, off, err));
	memset(p->bytes + n, 0, (size_t)(p->len - n));
	return QCOW_OK;
}

static bool is_left_out(const struct dd *d, const struct piece *p, uint64_t at)
{
	return d->options->sparse &&
	       qk_is_zero(p->bytes + at, (size_t)qk_min(d->unit, p->len - at));
}

static enum qcow_status store(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct dd *d = ctx;
	struct piece *p = item;
	uint64_t to = d->options->target_off + p->off;
	(void)worker;
	for (uint64_t at = 0, end = 0; at < p->len && !p->is_skipped; at = end) {
		bool skip = is_left_out(d, p, at);
		do
			end = qk_min(end + d->unit, p->len);
		while (end < p->len && is_left_out(d, p, end) == skip);
		if (skip)
			continue;
		QK_TRY(qcow_pwrite(d->target, p->bytes + at, (size_t)(end - at), to + at, 0, err));
		p->bytes_written += end - at;
	}
	return QCOW_OK;
}

static uint64_t done(void *ctx, void *item)
{
	struct dd *d = ctx;
	const struct piece *p = item;
	d->result.bytes_written += p->bytes_written;
	return p->len;
}

static enum qcow_status run_pipe(struct dd *d, struct qcow_error *err)
{
	static const struct qk_pipe_stages stages = {next, work, NULL, store, done};
	unsigned wanted = d->chunk > CHUNK_BYTES ? 1 : d->options->n_workers;
	const struct qk_pipe_job job = {.stages = &stages,
		.ctx = d,
		.n_workers = qk_pipe_workers(wanted),
		.any_order = true,
		.total = d->options->len,
		.progress = d->options->progress};
	return qk_pipe_run_pieces(&job, sizeof(struct piece), (size_t)d->chunk, err);
}

QK_TAKE_OPTIONS(take_options, qcow_dd_options, "dd options", QCOW_DD_OPTIONS_INIT, progress)

static enum qcow_status check(struct qcow_image *source, struct qcow_image *target,
	const struct qcow_dd_options *o, const struct qcow_dd_result *result,
	struct qcow_error *err)
{
	if (source == NULL || target == NULL || result == NULL || o->block_bytes == 0 ||
		o->n_workers > QK_PIPE_MAX_WORKERS)
		return QK_FAIL(err, QCOW_E_INVAL,
			"qcow_dd: an argument is NULL, blocks have no bytes, or there are over %d "
			"workers",
			QK_PIPE_MAX_WORKERS);
	if (o->sparse && o->block_bytes > MAX_SPARSE_BYTES)
		return QK_FAIL(err, QCOW_E_INVAL,
			"blocks that are left out where they are zeros have at most %" PRIu64
			" bytes, not %" PRIu64,
			MAX_SPARSE_BYTES, o->block_bytes);
	uint64_t whole = qk_div_up(qcow_size(source), QK_SOURCE_SECTOR) * QK_SOURCE_SECTOR;
	if (!qk_in_range(o->source_off, o->len, whole) ||
		!qk_in_range(o->target_off, o->len, qcow_size(target)))
		return QK_FAIL(err, QCOW_E_RANGE,
			"%" PRIu64 " bytes from %" PRIu64 " to %" PRIu64
			" go past the end of a disk of %" PRIu64 " or %" PRIu64 " bytes",
			o->len, o->source_off, o->target_off, qcow_size(source), qcow_size(target));
	return QCOW_OK;
}

enum qcow_status qcow_dd(struct qcow_image *source, struct qcow_image *target,
	const struct qcow_dd_options *options, struct qcow_dd_result *result,
	struct qcow_error *err)
{
	struct qcow_dd_options o;
	struct dd d = {.options = &o, .source = source, .target = target};
	if (options == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_dd: the options are NULL");
	QK_TRY(take_options(options, &o, err));
	QK_TRY(check(source, target, &o, result, err));
	/* without blocks to be judged pieces are what is quick to move */
	d.unit = o.sparse ? o.block_bytes : CHUNK_BYTES;
	d.chunk = d.unit < CHUNK_BYTES ? CHUNK_BYTES / d.unit * d.unit : d.unit;
	*result = (struct qcow_dd_result){0};
	enum qcow_status status = run_pipe(&d, err);
	*result = d.result;
	return status;
}
