/* SPDX-License-Identifier: MIT */
/*
 * header_plan: see header_plan.h. Reads and writes nothing but memory.
 *
 * Y1: sector 0 is written alone. Y2: what is parked leaves the fixed header as it is. Y3: the whole cluster 0 is known.
 *
 * A header area within sector 0 is switched by one write. Where old or new go beyond it, sector 0 must never name bytes
 * of the sectors behind it that are being written (|| is a barrier):
 *
 *   new fits		new sector 0 || the rest
 *   old fits		the rest || new sector 0
 *   packed		sector 0 with everything but feature names || the rest || new sector 0
 *   parked		all but the fixed header behind the end of both; in sector 0 a feature name table reaches to there
 *
 *   | header | feature names ................................ | extensions | END | name |
 *   0        header_length   (whatever lies there meanwhile)  parked at                   end
 *
 * Feature names are the one extension that is rewritten by everybody and needed by nobody.
 * Specification: "Header extensions".
 */
#include "engine/header_plan.h"

#include <string.h>

#include "base/mem.h"

#define HEADER_LENGTH_OFF 100U
#define EXT_HEAD_BYTES	  8U

/* What a plan is made from. */
struct change {
	struct qk_span old;
	struct qk_header old_header, new_header;
	struct qk_extensions old_ext, new_ext;
	size_t old_end, new_end; /* of what counts */
	uint8_t *fresh; /* the new cluster 0 */
	uint8_t *scratch; /* one more */
};

static uint64_t sector_up(uint64_t v)
{
	return qk_div_up(v, QK_SECTOR) * QK_SECTOR;
}

static enum qcow_status add_step(struct qk_header_plan *plan, const uint8_t *cluster0, size_t from,
	size_t end, struct qcow_error *err)
{
	QK_ASSERT(Y1, plan->n < QK_HEADER_STEPS && from < end && (from != 0 || end == QK_SECTOR));
	uint8_t *bytes = qk_malloc(end - from, 1);
	if (bytes == NULL)
		return QK_FAIL_NOMEM(err);
	memcpy(bytes, cluster0 + from, end - from);
	plan->steps[plan->n++] = (struct qk_header_step){from, end - from, bytes};
	return QCOW_OK;
}

/* Where the header area of `cluster0` ends: behind the END marker and the name. */
static size_t find_end(
	struct qk_span cluster0, const struct qk_header *h, const struct qk_extensions *ext)
{
	uint64_t end = h->header_length + ext->area.n + EXT_HEAD_BYTES;
	if (ext->backing_name.n != 0)
		end = qk_max(end, h->backing_off + h->backing_len);
	return (size_t)qk_min(end, cluster0.n);
}

/* Sectors [*from, *end) are those that differ. */
static void find_difference(const struct change *c, size_t *from, size_t *end)
{
	*from = 0;
	*end = c->old.n;
	while (*end > 0 &&
		memcmp(c->old.p + *end - QK_SECTOR, c->fresh + *end - QK_SECTOR, QK_SECTOR) == 0)
		*end -= QK_SECTOR;
	while (*from < *end && memcmp(c->old.p + *from, c->fresh + *from, QK_SECTOR) == 0)
		*from += QK_SECTOR;
}

/* Everything but feature names in sector 0 of c->scratch? */
static bool pack(struct change *c, const struct qk_header *h, const struct qk_extensions *ext)
{
	struct qk_header packed = *h;
	struct qk_extensions again;
	if (qk_header_area_encode(&packed, ext, false, c->scratch, c->old.n, NULL) != QCOW_OK)
		return false;
	struct qk_span cluster0 = {c->scratch, c->old.n};
	return qk_extensions_decode(cluster0, &packed, &again, NULL) == QCOW_OK &&
	       find_end(cluster0, &packed, &again) <= QK_SECTOR;
}

static enum qcow_status by_packing(
	const struct change *c, size_t end, struct qk_header_plan *plan, struct qcow_error *err)
{
	QK_TRY(add_step(plan, c->scratch, 0, QK_SECTOR, err));
	QK_TRY(add_step(plan, c->fresh, QK_SECTOR, end, err));
	return add_step(plan, c->fresh, 0, QK_SECTOR, err);
}

/* The new extensions from `at` on in c->scratch, behind a feature name table that reaches to there. */
static enum qcow_status park(struct change *c, size_t at, size_t *end, struct qcow_error *err)
{
	struct qk_header h = c->new_header;
	size_t begin = h.header_length;
	struct qk_writer w = qk_writer_init(c->scratch, c->old.n);
	if (begin + EXT_HEAD_BYTES > QK_SECTOR || at + QK_SECTOR > c->old.n)
		return QK_FAIL(err, QCOW_E_LIMIT, "no room");
	h.header_length = (uint32_t)at;
	QK_TRY(qk_header_area_encode(&h, &c->new_ext, false, c->scratch, c->old.n, err));
	h.header_length = (uint32_t)begin;
	QK_TRY(qk_header_encode(&h, &w, err));
	QK_ASSERT(Y2, w.at == begin);
	qk_write32(&w, QK_EXT_FEATURE_NAMES);
	qk_write32(&w, (uint32_t)(at - begin - EXT_HEAD_BYTES));
	*end = c->old.n;
	while (*end > at && qk_is_zero(c->scratch + *end - QK_SECTOR, QK_SECTOR))
		*end -= QK_SECTOR;
	return QCOW_OK;
}

static enum qcow_status by_parking(
	struct change *c, struct qk_header_plan *plan, struct qcow_error *err)
{
	size_t at = (size_t)sector_up(qk_max(c->old_end, c->new_end)), end = 0;
	enum qcow_status status = park(c, at, &end, err);
	if (status == QCOW_E_LIMIT)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"the first cluster of %zu bytes has no room for the old and the new "
			"backing "
			"file name and extensions at once, and without that a crash could leave "
			"neither: take the backing file away first (-u -b \"\")",
			c->old.n);
	QK_TRY(status);
	QK_TRY(add_step(plan, c->scratch, at, end, err));
	QK_TRY(add_step(plan, c->scratch, 0, QK_SECTOR, err));
	QK_TRY(add_step(plan, c->fresh, QK_SECTOR, at, err));
	QK_TRY(add_step(plan, c->fresh, 0, QK_SECTOR, err));
	/* at the latest here nothing names what was parked; whatever lay there goes with it */
	return add_step(plan, c->fresh, at, c->old.n, err);
}

static enum qcow_status choose(
	struct change *c, struct qk_header_plan *plan, struct qcow_error *err)
{
	size_t from = 0, end = 0;
	find_difference(c, &from, &end);
	if (from == end)
		return QCOW_OK;
	if (end - from <= QK_SECTOR)
		return add_step(plan, c->fresh, from, end, err);
	if (c->new_end <= QK_SECTOR) {
		QK_TRY(add_step(plan, c->fresh, 0, QK_SECTOR, err));
		return add_step(plan, c->fresh, QK_SECTOR, end, err);
	}
	if (c->old_end <= QK_SECTOR) {
		QK_TRY(add_step(plan, c->fresh, QK_SECTOR, end, err));
		return add_step(plan, c->fresh, 0, QK_SECTOR, err);
	}
	if (pack(c, &c->new_header, &c->new_ext) || pack(c, &c->old_header, &c->old_ext))
		return by_packing(c, end, plan, err);
	return by_parking(c, plan, err);
}

static enum qcow_status encode(struct change *c, struct qcow_error *err)
{
	struct qk_header h = c->new_header;
	struct qk_extensions ext;
	QK_TRY(qk_header_area_encode(
		&h, &c->new_ext, qk_header_wants_feature_names(&h), c->fresh, c->old.n, err));
	struct qk_span fresh = {c->fresh, c->old.n};
	/* nothing is written that would not be opened again */
	QK_TRY(qk_header_area_decode(fresh, &h, &ext, err));
	c->new_end = find_end(fresh, &h, &ext);
	return qk_header_area_decode(c->old, &c->old_header, &c->old_ext, err);
}

enum qcow_status qk_header_plan_make(struct qk_span old, const struct qk_header *header,
	const struct qk_extensions *ext, struct qk_header_plan *out, struct qcow_error *err)
{
	struct change c = {.old = old, .new_header = *header, .new_ext = *ext};
	QK_AUTO_FREE uint8_t *buffers = qk_malloc(old.n, 2);
	*out = (struct qk_header_plan){0};
	if (buffers == NULL)
		return QK_FAIL_NOMEM(err);
	QK_ASSERT(Y3, old.n == UINT64_C(1) << header->cluster_bits);
	c.fresh = buffers;
	c.scratch = buffers + old.n;
	if (header->version >= 3 && header->header_length < QK_V3_HEADER_BYTES)
		c.new_header.header_length = QK_V3_HEADER_BYTES;
	if (header->version == 2)
		c.new_header.header_length = QK_V2_HEADER_BYTES;
	QK_TRY(encode(&c, err));
	c.old_end = find_end(old, &c.old_header, &c.old_ext);
	return choose(&c, out, err);
}

void qk_header_plan_release(struct qk_header_plan *plan)
{
	for (unsigned i = 0; i < plan->n; i++)
		free(plan->steps[i].bytes);
	*plan = (struct qk_header_plan){0};
}
