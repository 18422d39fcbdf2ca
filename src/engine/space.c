/* SPDX-License-Identifier: MIT */
/*
 * space: the life of what space.h describes: open, close. The files next to this one do the rest.
 */
#include "engine/space_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "audit/reftable.h"
#include "base/mem.h"

#define DEFAULT_CACHE_BYTES QK_MIB(4)
#define MIN_BLOCKS	    4U
#define MAX_ENTRIES	    (QK_MAX_REFTABLE_BYTES / 8)

enum qcow_status qk_space_usable(const struct qk_space *sp, struct qcow_error *err)
{
	if (sp->is_corrupt)
		return QK_FAIL(err, QCOW_E_CORRUPT,
			"the image turned out to be corrupt: nothing more is written to it");
	return QCOW_OK;
}

/* ---- findings as errors ---- */

void qk_space_note(void *ctx, const struct qcow_finding *f)
{
	struct qk_space_noted *n = ctx;

	if (f->severity != QCOW_SEVERITY_CORRUPTION || n->id != 0)
		return;
	n->id = f->id;
	n->host_off = f->host_off;
	n->guest_off = f->guest_off;
	(void)snprintf(n->where, sizeof(n->where), "%s", f->where);
}

enum qcow_status qk_space_noted_error(const struct qk_space_noted *n, struct qcow_error *err)
{
	if (n->id == 0)
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, n->id, n->host_off, n->guest_off,
		"not opened for writing: %s (%s)", qcow_finding_text(n->id), n->where);
}

/* ---- open ---- */

static enum qcow_status load_table(struct qk_space *sp, struct qk_audit *a, struct qcow_error *err)
{
	struct qk_reftable rt = {0};
	enum qcow_status status = qk_reftable_load(&rt, a, err);

	sp->table = rt.v;
	sp->table_entries = rt.n;
	QK_TRY(status);
	QK_TRY(qk_space_noted_error(a->report_ctx, err));
	sp->full = qk_calloc(qk_div_up(rt.n, 64), sizeof(*sp->full));
	return sp->full != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

static enum qcow_status init(
	struct qk_space *sp, const struct qk_space_request *rq, struct qcow_error *err)
{
	const struct qk_geometry *g = rq->geometry;
	uint64_t budget = rq->cache_bytes != 0 ? rq->cache_bytes : DEFAULT_CACHE_BYTES;
	struct qcow_store_caps caps;
	struct qk_space_noted noted = {0};
	struct qk_audit a = {.store = rq->store,
		.header = &sp->header,
		.ext = rq->ext,
		.geometry = g,
		.file_size = rq->file_size,
		.report = qk_space_note,
		.report_ctx = &noted};

	qcow_store_caps(rq->store, &caps);
	sp->store = rq->store;
	sp->g = g;
	sp->header = *rq->header;
	sp->ext = rq->ext;
	sp->can_grow = caps.can_grow;
	sp->passes = rq->passes;
	atomic_init(&sp->cannot_punch, !caps.can_punch);
	sp->grows_zeroed = caps.can_grow && caps.reads_zero_past_end;
	sp->max_blocks = qk_max(budget >> g->cluster_bits, MIN_BLOCKS);
	sp->limit = qk_min(QK_MAX_OFFSET >> g->cluster_bits, (uint64_t)MAX_ENTRIES << g->rb_bits);
	if (!sp->can_grow)
		sp->limit = qk_min(sp->limit, rq->file_size >> g->cluster_bits);
	sp->pristine = qk_div_up(rq->file_size, g->cluster_size);
	sp->open_size = rq->file_size;
	atomic_init(&sp->file_size, rq->file_size);
	sp->scratch = qk_malloc_aligned(QK_SECTOR, g->cluster_size);
	if (sp->scratch == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qcow_store_read_padded(sp->store, sp->sector0, sizeof(sp->sector0), 0, err));
	QK_TRY(load_table(sp, &a, err));
	QK_TRY(qk_space_map_init(sp, &a, err));
	return qk_space_noted_error(&noted, err);
}

enum qcow_status qk_space_new(
	const struct qk_space_request *rq, struct qk_space **out, struct qcow_error *err)
{
	struct qk_space *sp = qk_calloc(1, sizeof(*sp));

	if (sp == NULL)
		return QK_FAIL_NOMEM(err);
	(void)pthread_mutex_init(&sp->lock, NULL);
	enum qcow_status status = init(sp, rq, err);
	if (status == QCOW_OK)
		status = qk_space_prove(sp, rq, err);
	if (status != QCOW_OK) {
		qk_space_free(sp);
		return status;
	}
	*out = sp;
	return QCOW_OK;
}

void qk_space_free(struct qk_space *sp)
{
	if (sp == NULL)
		return;
	qk_refblocks_release(sp);
	qk_space_map_release(sp);
	qk_cluster_set_release(&sp->quarantine);
	free(sp->deferred);
	free(sp->table);
	free(sp->full);
	free(sp->scratch);
	(void)pthread_mutex_destroy(&sp->lock);
	free(sp);
}

/* ---- close ---- */

enum qcow_status qk_space_unreserve_all(struct qk_space *sp, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = qk_space_unreserve(sp, err);
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}

bool qk_space_is_dirty(struct qk_space *sp)
{
	(void)pthread_mutex_lock(&sp->lock);
	bool any = sp->busy != NULL || sp->n_deferred != 0 || sp->stale_clusters != 0 ||
		   sp->table_state != QK_TABLE_SETTLED;
	(void)pthread_mutex_unlock(&sp->lock);
	return any;
}

static bool has_dirty(struct qk_space *sp)
{
	(void)pthread_mutex_lock(&sp->lock);
	bool any = sp->busy != NULL && sp->was_changed;
	(void)pthread_mutex_unlock(&sp->lock);
	return any;
}

enum qcow_status qk_space_publish_now(struct qk_space *sp, struct qcow_error *err)
{
	bool needs_link = false;

	QK_TRY(qk_space_publish_begin(sp, &needs_link, err));
	QK_TRY(qcow_store_flush(sp->store, err));
	if (needs_link) {
		QK_TRY(qk_space_publish_link(sp, err));
		QK_TRY(qcow_store_flush(sp->store, err));
	}
	qk_space_publish_done(sp);
	return QCOW_OK;
}

/* The end of the last cluster in use, looking down from the end of the file as far as it was when the image was
 * opened: what lay beyond then is not ours to judge, unless somebody says so. */
static enum qcow_status find_end(struct qk_space *sp, uint64_t *end, struct qcow_error *err)
{
	uint64_t kept = sp->may_cut ? sp->g->cluster_size : sp->open_size;
	uint64_t floor = qk_div_up(kept, sp->g->cluster_size);
	/* the last cluster of the file may be cut short */
	uint64_t c = qk_div_up(qk_space_file_size(sp), sp->g->cluster_size);
	uint64_t count = 0;

	while (c > floor) {
		QK_TRY(qk_space_get(sp, c - 1, &count, err));
		if (count != 0 || qk_cluster_set_find(&sp->quarantine, c - 1) != UINT64_MAX)
			break;
		c--;
	}
	*end = qk_max(c << sp->g->cluster_bits, kept);
	return QCOW_OK;
}

static enum qcow_status cut_end(struct qk_space *sp, struct qcow_error *err)
{
	uint64_t end = 0;

	if (qk_space_file_size(sp) <= sp->open_size && !sp->may_cut)
		return QCOW_OK;
	QK_TRY(find_end(sp, &end, err));
	if (end >= qk_space_file_size(sp))
		return QCOW_OK;
	QK_TRY(qcow_store_truncate(sp->store, end, err));
	atomic_store_explicit(&sp->file_size, end, memory_order_release);
	return QCOW_OK;
}

void qk_space_follow_cut(struct qk_space *sp, struct qk_space *old)
{
	(void)pthread_mutex_lock(&old->lock);
	uint64_t open_size = old->open_size;
	bool may_cut = old->may_cut;
	(void)pthread_mutex_unlock(&old->lock);
	(void)pthread_mutex_lock(&sp->lock);
	sp->open_size = qk_min(sp->open_size, open_size);
	sp->may_cut = may_cut && qk_space_is_proven(sp);
	(void)pthread_mutex_unlock(&sp->lock);
}

void qk_space_let_cut(struct qk_space *sp)
{
	struct qcow_store_caps caps;
	qcow_store_caps(sp->store, &caps);
	(void)pthread_mutex_lock(&sp->lock);
	sp->may_cut = qk_space_is_proven(sp) && caps.can_grow;
	(void)pthread_mutex_unlock(&sp->lock);
}

enum qcow_status qk_space_close(struct qk_space *sp, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&sp->lock);
	enum qcow_status status = qk_space_usable(sp, err);
	if (status == QCOW_OK)
		status = qk_space_unreserve(sp, err);
	(void)pthread_mutex_unlock(&sp->lock);
	QK_TRY(status);
	/* the second round frees a refcount table that the first replaced */
	for (int round = 0; round < 2 && has_dirty(sp); round++)
		QK_TRY(qk_space_publish_now(sp, err));
	(void)pthread_mutex_lock(&sp->lock);
	status = cut_end(sp, err);
	(void)pthread_mutex_unlock(&sp->lock);
	return status;
}
