/* SPDX-License-Identifier: MIT */
/*
 * map: see map.h. Composes the lookups of the layers, top down and without recursion. Owns no state.
 */
#include "engine/map.h"

#include "base/err.h"
#include "engine/hostmap.h"
#include "engine/image.h"
#include "engine/rw.h"

/* The answer of the chain for one stretch: its length is what the layers looked at agree on. */
static enum qcow_status find_stretch(
	const struct qk_map_request *rq, uint64_t len, struct qk_run *out, struct qcow_error *err)
{
	struct qcow_image *layer = rq->image;
	uint32_t depth = 0;
	for (;;) {
		QK_TRY(qk_lookup(layer, rq->off, len, rq->may_block, out, err));
		out->depth = depth;
		len = out->len;
		if (out->kind != QK_RUN_UNALLOCATED || depth >= rq->max_depth)
			return QCOW_OK;
		if (layer->backing == NULL || rq->off.v >= layer->backing->size)
			return QCOW_OK;
		layer = layer->backing;
		depth++;
		len = qk_min(len, layer->size - rq->off.v);
	}
}

/* A layer above is asked for no more than a first stretch at once, then for as much as the answer already
 * has: else a long hole on top of a busy layer would be walked again for every run below it. */
static enum qcow_status find_long(
	const struct qk_map_request *rq, struct qk_run *out, struct qcow_error *err)
{
	uint64_t asked = qk_min(rq->len, rq->image->first_stretch);
	QK_TRY(find_stretch(rq, asked, out, err));
	while (out->len == asked && asked < rq->len) {
		struct qk_map_request rest = *rq;
		struct qk_run next;
		rest.off.v += asked;
		uint64_t more = qk_min(rq->len - asked, asked);
		if (find_stretch(&rest, more, &next, NULL) != QCOW_OK ||
			next.kind == QK_RUN_BLOCKED || next.depth != out->depth ||
			!qk_run_continues(out, &next))
			break;
		out->len += next.len;
		asked += more;
	}
	return QCOW_OK;
}

enum qcow_status qk_map_find(
	const struct qk_map_request *rq, struct qk_run *out, struct qcow_error *err)
{
	QK_ASSERT(P1, rq->len != 0 && qk_in_range(rq->off.v, rq->len, rq->image->size));
	if (rq->image->backing == NULL || rq->max_depth == 0)
		return find_stretch(rq, rq->len, out, err);
	return find_long(rq, out, err);
}

static enum qcow_status find_runs(
	const struct qk_map_request *rq, struct qk_read *out, struct qcow_error *err)
{
	struct qk_map_request rest = *rq;
	while (out->n < QK_READ_RUNS && out->covered < rq->len) {
		struct qk_run *run = &out->runs[out->n];
		enum qcow_status status = qk_map_find(&rest, run, out->n == 0 ? err : NULL);
		if (status != QCOW_OK)
			return out->n == 0 ? status : QCOW_OK;
		if (run->kind == QK_RUN_BLOCKED) {
			out->is_blocked = true;
			return QCOW_OK;
		}
		out->n++;
		out->covered += run->len;
		rest.off.v += run->len;
		rest.len -= run->len;
	}
	return QCOW_OK;
}

enum qcow_status qk_read_begin(
	const struct qk_map_request *rq, struct qk_read *out, struct qcow_error *err)
{
	struct qk_rw *rw = rq->image->rw;
	out->image = rq->image;
	out->off = rq->off.v;
	out->covered = 0;
	out->is_blocked = false;
	out->n = 0;
	if (rw != NULL)
		out->epoch = qk_epoch_enter(rw->epoch);
	enum qcow_status status = find_runs(rq, out, err);
	if (status != QCOW_OK && rw != NULL)
		qk_epoch_leave(rw->epoch, out->epoch);
	return status;
}

void qk_read_end(struct qk_read *read)
{
	QK_ASSERT_VOID(P2, read->image != NULL);
	if (read->image->rw != NULL)
		qk_epoch_leave(read->image->rw->epoch, read->epoch);
	read->image = NULL;
}

static uint32_t flags_of(const struct qk_run *run)
{
	uint32_t at = run->has_host && run->kind != QK_RUN_COMPRESSED ? QCOW_EXTENT_OFFSET : 0;
	switch (run->kind) {
	case QK_RUN_UNALLOCATED:
		return QCOW_EXTENT_ZERO | at;
	case QK_RUN_ZERO:
		return QCOW_EXTENT_PRESENT | QCOW_EXTENT_ZERO | at;
	case QK_RUN_PLAIN:
		return QCOW_EXTENT_PRESENT | QCOW_EXTENT_DATA | at;
	case QK_RUN_COMPRESSED:
		return QCOW_EXTENT_PRESENT | QCOW_EXTENT_DATA | QCOW_EXTENT_COMPRESSED;
	case QK_RUN_BLOCKED:
	default:
		return 0;
	}
}

/* Plain data may be a hole of the host's file: then it is known to be zeros. In a qcow2 layer it is still
 * stored (DATA stays), in a raw layer it is not. Shortens the extent to one answer. */
static enum qcow_status look_at_host(
	const struct qk_run *run, struct qcow_extent *out, struct qcow_error *err)
{
	bool is_hole = false;
	QK_TRY(qk_hostmap_ask(
		run->layer->hostmap, run->store, run->host_off.v, &out->len, &is_hole, err));
	if (!is_hole)
		return QCOW_OK;
	out->flags |= QCOW_EXTENT_ZERO;
	if (run->layer->is_raw)
		out->flags &= ~(uint32_t)QCOW_EXTENT_DATA;
	return QCOW_OK;
}

/* Where max_depth stopped above a layer that may hold the range, it is not known to be zeros. */
static void stop_above(const struct qk_run *run, struct qcow_extent *out)
{
	const struct qcow_image *below = run->layer->backing;
	if (run->kind != QK_RUN_UNALLOCATED || below == NULL || out->off >= below->size)
		return;
	out->flags &= ~(uint32_t)QCOW_EXTENT_ZERO;
	out->len = qk_min(out->len, below->size - out->off);
}

enum qcow_status qk_map_extent(
	const struct qk_map_request *rq, struct qcow_extent *out, struct qcow_error *err)
{
	struct qk_run run;
	QK_TRY(qk_map_find(rq, &run, err));
	*out = (struct qcow_extent){
		.off = rq->off.v,
		.len = run.len,
		.host_off = run.has_host ? run.host_off.v : QCOW_NO_OFFSET,
		.layer = run.layer,
		.depth = run.depth,
		.flags = flags_of(&run),
		.compressed_bytes = run.kind == QK_RUN_COMPRESSED ? run.compressed_bytes : 0,
	};
	stop_above(&run, out);
	/* what lies on the host is not what the guest sees: neither its place nor its holes say anything */
	if (run.layer->is_encrypted)
		out->flags &= ~(uint32_t)QCOW_EXTENT_OFFSET;
	else if (run.kind == QK_RUN_PLAIN && run.store != NULL)
		QK_TRY(look_at_host(&run, out, err));
	return QCOW_OK;
}
