/* SPDX-License-Identifier: MIT */
/*
 * rebase: an overlay is put on another backing file and keeps reading the same.
 *
 * One thread at a time walks three maps: the overlay's own, the old chain's, the new chain's. What the overlay holds
 * itself, what is zeros in both chains and what both take from one file is passed over. The rest is read from both, any
 * number of pieces at once, and units that differ are written to the overlay, zeros as zeros. Then all of it becomes
 * stable, and the header names the new backing file. Whatever ends the call before that, a crash too: the overlay names
 * the old one and reads the same.
 */
#include <qcowkit/ops.h>

#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include <qcowkit/manage.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/num.h"
#include "base/options.h"
#include "ops/pipe.h"

#define CHUNK_BYTES QK_KIB(512)
#define SUBCLUSTERS 32U /* of a cluster with extended L2 entries */

enum {
	OWN, /* the overlay alone */
	OLD, /* the overlay and what lies below it */
	NEW, /* what shall lie below it */
	N_VIEWS
};

/* One map; the run that was asked about last. */
struct view {
	struct qcow_image *image; /* NULL: zeros throughout */
	uint64_t size;
	uint32_t max_depth;
	uint64_t end; /* of the run; 0: none was asked about */
	uint32_t flags;
	const struct qcow_image *layer; /* NULL: past the end */
};

struct piece {
	uint8_t *
		was; /* the old content, room for a chunk; the new stands behind it, then the acts */
	uint8_t *will;
	uint8_t *acts; /* enum act, one a unit */
	uint64_t off, len;
	uint64_t bytes_copied, bytes_zeroed;
};

enum act {
	ACT_NONE,
	ACT_COPY,
	ACT_ZERO
};

struct rebase {
	const struct qcow_rebase_options *options;
	struct qcow_image *image;
	uint64_t size, unit, chunk;
	uint64_t at; /* the walk */
	struct view views[N_VIEWS];
	/* the last pair of layers that was compared */
	const struct qcow_image *pair[2];
	bool pair_is_same;
	struct qcow_rebase_result result;
};

/* ---- what needs no look ---- */

static enum qcow_status look(struct view *v, uint64_t off, struct qcow_error *err)
{
	struct qcow_extent e;
	if (off < v->end)
		return QCOW_OK;
	if (off >= v->size) {
		v->end = UINT64_MAX;
		v->flags = QCOW_EXTENT_ZERO;
		v->layer = NULL;
		return QCOW_OK;
	}
	QK_TRY(qcow_map(v->image, off, v->size - off, v->max_depth, &e, err));
	QK_ASSERT(S1, e.len != 0);
	v->end = off + e.len;
	v->flags = e.flags;
	v->layer = e.layer;
	return QCOW_OK;
}

static bool is_same_file(const struct qcow_image *a, const struct qcow_image *b)
{
	struct stat x, y;
	int fd_a = qcow_store_fd(qcow_image_store(a)), fd_b = qcow_store_fd(qcow_image_store(b));
	struct qcow_info info_a, info_b;
	if (fd_a < 0 || fd_b < 0 || fstat(fd_a, &x) != 0 || fstat(fd_b, &y) != 0)
		return false;
	qcow_get_info(a, &info_a);
	qcow_get_info(b, &info_b);
	return x.st_dev == y.st_dev && x.st_ino == y.st_ino &&
	       strcmp(info_a.format, info_b.format) == 0;
}

/* Do both chains have this run from one layer? */
static bool is_shared(struct rebase *r)
{
	const struct view *o = &r->views[OLD], *n = &r->views[NEW];
	if (o->layer == NULL || n->layer == NULL || (o->flags & QCOW_EXTENT_PRESENT) == 0 ||
		(n->flags & QCOW_EXTENT_PRESENT) == 0)
		return false;
	if (o->layer != r->pair[0] || n->layer != r->pair[1]) {
		r->pair[0] = o->layer;
		r->pair[1] = n->layer;
		r->pair_is_same = o->layer == n->layer || is_same_file(o->layer, n->layer);
	}
	return r->pair_is_same;
}

static bool is_zero(const struct view *v)
{
	return (v->flags & QCOW_EXTENT_ZERO) != 0 || (v->flags & QCOW_EXTENT_PRESENT) == 0;
}

/* Up to where nothing has to be looked at from `off` on; `off` where it has. */
static enum qcow_status find_dull(
	struct rebase *r, uint64_t off, uint64_t *end, struct qcow_error *err)
{
	struct view *own = &r->views[OWN], *old = &r->views[OLD], *new = &r->views[NEW];
	*end = off;
	QK_TRY(look(own, off, err));
	if ((own->flags & QCOW_EXTENT_PRESENT) != 0) {
		*end = qk_min(own->end, r->size);
		return QCOW_OK;
	}
	QK_TRY(look(old, off, err));
	QK_TRY(look(new, off, err));
	if ((is_zero(old) && is_zero(new)) || is_shared(r))
		*end = qk_min(qk_min(own->end, r->size), qk_min(old->end, new->end));
	return QCOW_OK;
}

/* The end of the units from `off` on that need no look; `off` where its own does. */
static enum qcow_status pass_dull(
	struct rebase *r, uint64_t off, uint64_t *out, struct qcow_error *err)
{
	uint64_t at = off, end = 0;
	for (;;) {
		QK_TRY(find_dull(r, at, &end, err));
		if (end == at || end == r->size)
			break;
		at = end;
		/* a long walk is cut, so that progress shows and cancelling works */
		if (at - off >= QK_GIB(1))
			break;
	}
	*out = end == r->size ? end : qk_max(off, at / r->unit * r->unit);
	return QCOW_OK;
}

/* ---- the stages ---- */

/* A run of units that need no look, or a chunk of such that do. */
static enum qcow_status next(
	void *ctx, void *item, bool *end, uint64_t *cost_bytes, struct qcow_error *err)
{
	struct rebase *r = ctx;
	struct piece *p = item;
	uint64_t passed = 0;
	*end = r->at >= r->size;
	if (*end)
		return QCOW_OK;
	*p = (struct piece){.off = r->at, .was = p->was};
	p->will = p->was + r->chunk;
	p->acts = p->will + r->chunk;
	QK_TRY(pass_dull(r, r->at, &passed, err));
	if (passed != r->at) {
		/* nothing is to be done: the length is for the progress */
		p->len = passed - r->at;
		p->acts[0] = ACT_NONE;
		r->at = passed;
		*cost_bytes = 0;
		return QCOW_OK;
	}
	uint64_t limit = qk_min(r->size, r->at + r->chunk);
	do {
		r->at = qk_min(r->at + r->unit, limit);
		if (r->at < limit)
			QK_TRY(pass_dull(r, r->at, &passed, err));
	} while (r->at < limit && passed == r->at);
	p->len = r->at - p->off;
	p->acts[0] = ACT_COPY;
	*cost_bytes = p->len;
	return QCOW_OK;
}

static enum qcow_status read_new(
	const struct rebase *r, const struct piece *p, struct qcow_error *err)
{
	const struct view *v = &r->views[NEW];
	uint64_t n = p->off < v->size ? qk_min(p->len, v->size - p->off) : 0;
	if (n != 0)
		QK_TRY(qcow_pread(v->image, p->will, (size_t)n, p->off, err));
	memset(p->will + n, 0, (size_t)(p->len - n));
	return QCOW_OK;
}

static enum act judge(const uint8_t *was, const uint8_t *will, size_t n)
{
	if (memcmp(was, will, n) == 0)
		return ACT_NONE;
	return qk_is_zero(was, n) ? ACT_ZERO : ACT_COPY;
}

static enum qcow_status work(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct rebase *r = ctx;
	struct piece *p = item;
	(void)worker;
	if (p->acts[0] == ACT_NONE)
		return QCOW_OK;
	QK_TRY(qcow_pread(r->image, p->was, (size_t)p->len, p->off, err));
	QK_TRY(read_new(r, p, err));
	for (uint64_t at = 0, i = 0; at < p->len; at += r->unit, i++) {
		uint64_t n = qk_min(r->unit, p->len - at);
		p->acts[i] = (uint8_t)judge(p->was + at, p->will + at, (size_t)n);
		p->bytes_copied += p->acts[i] == ACT_COPY ? n : 0;
		p->bytes_zeroed += p->acts[i] == ACT_ZERO ? n : 0;
	}
	return QCOW_OK;
}

/* [at, at + n) of the piece. */
static enum qcow_status carry_out(struct rebase *r, const struct piece *p, uint64_t at, uint64_t n,
	enum act act, struct qcow_error *err)
{
	if (act == ACT_NONE)
		return QCOW_OK;
	if (act == ACT_ZERO)
		return qcow_zero(r->image, p->off + at, n, QCOW_IO_UNMAP | QCOW_IO_EXPLICIT, err);
	if (r->options->compress)
		return qcow_write_compressed(r->image, p->was + at, (size_t)n, p->off + at, 0, err);
	return qcow_pwrite(r->image, p->was + at, (size_t)n, p->off + at, 0, err);
}

static bool is_nothing_to_do(const struct rebase *r, const struct piece *p)
{
	return r->options->dry_run || p->bytes_copied + p->bytes_zeroed == 0;
}

static enum qcow_status store(void *ctx, void *item, unsigned worker, struct qcow_error *err)
{
	struct rebase *r = ctx;
	const struct piece *p = item;
	(void)worker;
	if (is_nothing_to_do(r, p))
		return QCOW_OK;
	for (uint64_t at = 0, end = 0; at < p->len; at = end) {
		enum act act = p->acts[at / r->unit];
		do
			end = qk_min(end + r->unit, p->len);
		while (end < p->len && p->acts[end / r->unit] == act);
		QK_TRY(carry_out(r, p, at, end - at, act, err));
	}
	return QCOW_OK;
}

static uint64_t done(void *ctx, void *item)
{
	struct rebase *r = ctx;
	const struct piece *p = item;
	r->result.bytes_copied += p->bytes_copied;
	r->result.bytes_zeroed += p->bytes_zeroed;
	return p->len;
}

/* ---- the call ---- */

static enum qcow_status run_pipe(struct rebase *r, struct qcow_error *err)
{
	static const struct qk_pipe_stages stages = {next, work, NULL, store, done};
	const struct qk_pipe_job job = {.stages = &stages,
		.ctx = r,
		.n_workers = qk_pipe_workers(r->options->n_workers),
		.any_order = true,
		.total = r->size,
		.progress = r->options->progress};
	size_t n_acts = (size_t)(r->chunk / r->unit);
	return qk_pipe_run_pieces(&job, sizeof(struct piece), (size_t)r->chunk * 2 + n_acts, err);
}

static void set_up(struct rebase *r)
{
	struct qcow_info info;
	qcow_get_info(r->image, &info);
	r->size = qcow_size(r->image);
	r->unit = info.extended_l2 && !r->options->compress ? info.cluster_size / SUBCLUSTERS
							    : info.cluster_size;
	r->chunk = qk_max(CHUNK_BYTES, r->unit);
	r->views[OWN] = (struct view){.image = r->image, .size = r->size};
	r->views[OLD] = (struct view){.image = r->image, .size = r->size, .max_depth = UINT32_MAX};
	r->views[NEW] = (struct view){.image = r->options->backing, .max_depth = UINT32_MAX};
	if (r->options->backing != NULL)
		r->views[NEW].size = qcow_size(r->options->backing);
}

QK_TAKE_OPTIONS(
	take_options, qcow_rebase_options, "rebase options", QCOW_REBASE_OPTIONS_INIT, progress)

static enum qcow_status check(struct qcow_image *image, const struct qcow_rebase_options *o,
	const struct qcow_rebase_result *result, struct qcow_error *err)
{
	struct qcow_info info;
	if (image == NULL || result == NULL || o->n_workers > QK_PIPE_MAX_WORKERS)
		return QK_FAIL(err, QCOW_E_INVAL,
			"qcow_rebase: an argument is NULL, or there are over %d workers",
			QK_PIPE_MAX_WORKERS);
	qcow_get_info(image, &info);
	if (strcmp(info.format, "qcow2") != 0)
		return QK_FAIL(err, QCOW_E_NOTSUP, "a %s image has no backing file", info.format);
	if ((o->backing != NULL) != (o->backing_name != NULL))
		return QK_FAIL(err, QCOW_E_INVAL,
			"a backing image and the name to record come together or not at all");
	return QCOW_OK;
}

enum qcow_status qcow_rebase(struct qcow_image *image, const struct qcow_rebase_options *options,
	struct qcow_rebase_result *result, struct qcow_error *err)
{
	struct qcow_rebase_options o;
	struct rebase r = {.options = &o, .image = image};
	if (options == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_rebase: the options are NULL");
	QK_TRY(take_options(options, &o, err));
	QK_TRY(check(image, &o, result, err));
	*result = (struct qcow_rebase_result){0};
	struct qcow_backing_options record = QCOW_BACKING_OPTIONS_INIT;
	record.name = o.backing_name;
	record.format = o.backing_format;
	record.dry_run = true;
	if (!o.dry_run)
		QK_TRY(qcow_set_backing(image, &record, err));
	set_up(&r);
	QK_TRY(run_pipe(&r, err));
	*result = r.result;
	record.dry_run = o.dry_run;
	return record.dry_run ? QCOW_OK : qcow_set_backing(image, &record, err);
}
