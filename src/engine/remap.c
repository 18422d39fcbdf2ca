/* SPDX-License-Identifier: MIT */
/*
 * remap: see remap.h. The order: the data and what is kept of the old content are written to clusters that nothing
 * names, then the entries are staged; the publication makes refcounts and data stable before it
 * writes the entries. Where the data cannot be written the clusters go back and nothing has happened.
 *
 *	        | first cluster |               | last cluster  |
 *	        +-------+-------+---------------+-------+-------+
 *	        | head  |            payload            | tail  |
 *	        +-------+-------------------------------+-------+
 *	head, tail: the old content as readers see it; left out where it is zeros and the host run is as well
 */
#include "engine/remap.h"

#include <string.h>

#include "base/mem.h"
#include "engine/group.h"
#include "engine/image.h"
#include "engine/map.h"
#include "engine/plan.h"
#include "engine/read.h"
#include "engine/rw.h"
#include "engine/space.h"
#include "engine/table.h"

/* Buffers of one store call. */
#define PIECES 64

/* A write within one group, in progress. */
struct remap {
	struct qk_group group;
	uint64_t off, end; /* guest bytes still to write */
	struct qk_iov *from;
};

/* A part of it: whole clusters of the host, and what of them comes from where. */
struct part {
	uint32_t first, n; /* entries */
	uint64_t host_off;
	bool reads_zero;
	uint64_t head, payload, tail; /* bytes */
};

/* Bytes to put before or behind the payload; p NULL: none, they are there already. */
struct fill {
	uint8_t *p;
	size_t n;
};

static bool reads_as_zeros(struct qcow_image *image, qk_goff off, uint64_t len)
{
	const struct qk_map_request rq = {
		.image = image, .off = off, .len = len, .max_depth = UINT32_MAX, .may_block = true};
	struct qk_run run;
	return qk_map_find(&rq, &run, NULL) == QCOW_OK && run.len == len &&
	       (run.kind == QK_RUN_ZERO || run.kind == QK_RUN_UNALLOCATED);
}

/* The `len` bytes at `off` as readers see them; past the end of the disk they are zeros. */
static enum qcow_status get_fill(struct qcow_image *image, uint64_t off, uint64_t len,
	bool host_reads_zero, struct fill *out, struct qcow_error *err)
{
	uint64_t inside = off < image->size ? qk_min(len, image->size - off) : 0;
	if (len == 0)
		return QCOW_OK;
	if (inside != 0 && reads_as_zeros(image, (qk_goff){off}, inside))
		inside = 0;
	if (inside == 0 && host_reads_zero)
		return QCOW_OK;
	out->p = qk_malloc(len, 1);
	if (out->p == NULL)
		return QK_FAIL_NOMEM(err);
	out->n = (size_t)len;
	memset(out->p + inside, 0, (size_t)(len - inside));
	return inside == 0 ? QCOW_OK : qk_read(image, out->p, (size_t)inside, off, err);
}

static uint64_t guest_of(const struct remap *r, uint32_t entry)
{
	return r->group.guest.v + ((uint64_t)entry << r->group.image->geometry.cluster_bits);
}

/* head, payload and tail of entries [first, first + n). */
static struct part make_part(const struct remap *r, uint32_t first, uint32_t n)
{
	uint64_t start = guest_of(r, first), end = guest_of(r, first + n);
	struct part part = {.first = first, .n = n};
	part.head = r->off - start;
	part.payload = qk_min(r->end, end) - r->off;
	part.tail = end - r->off - part.payload;
	return part;
}

static enum qcow_status write_pieces(struct remap *r, const struct part *part,
	const struct fill *head, const struct fill *tail, struct qcow_error *err)
{
	struct qcow_store *store = r->group.image->store;
	uint64_t at = part->host_off + (head->p != NULL ? 0 : part->head);
	uint64_t left = part->payload;
	struct iovec iov[PIECES];
	int n = 0;
	if (head->p != NULL)
		iov[n++] = (struct iovec){head->p, head->n};
	while (left != 0 || n != 0) {
		uint64_t taken = 0;
		int n_taken = 0;
		qk_iov_take(r->from, left, iov + n, PIECES - 1 - n, &n_taken, &taken);
		left -= taken;
		n += n_taken;
		if (left == 0 && tail->p != NULL)
			iov[n++] = (struct iovec){tail->p, tail->n};
		QK_TRY(qcow_store_writev(store, iov, n, at, err));
		for (int i = 0; i < n; i++)
			at += iov[i].iov_len;
		n = 0;
	}
	return QCOW_OK;
}

/* Write payload, head and tail to the host clusters of `part`. */
static enum qcow_status write_part(struct remap *r, const struct part *part, struct qcow_error *err)
{
	struct qcow_image *image = r->group.image;
	struct fill head = {0}, tail = {0};
	uint64_t len = part->head + part->payload + part->tail;
	QK_TRY(qk_space_check_overlap(image->rw->space, QK_SPACE_DATA, part->host_off, len, err));
	enum qcow_status status = get_fill(
		image, r->off - part->head, part->head, part->reads_zero, &head, err);
	if (status == QCOW_OK)
		status = get_fill(
			image, r->off + part->payload, part->tail, part->reads_zero, &tail, err);
	if (status == QCOW_OK)
		status = write_pieces(r, part, &head, &tail, err);
	free(head.p);
	free(tail.p);
	return status;
}

/* Stage the entries of a part that was written to its host clusters; the old ones are unlinked where
 * `replaces`. */
static enum qcow_status link_part(
	struct remap *r, const struct part *part, bool replaces, struct qcow_error *err)
{
	const struct qk_geometry *g = &r->group.image->geometry;
	struct qk_stage_change change;
	change.first = part->first;
	change.n = part->n;
	change.n_unlinked = 0;
	change.needs_barrier = true;
	for (uint32_t i = 0; i < part->n; i++) {
		struct qk_l2_entry old = qk_group_entry(&r->group, part->first + i);
		struct qk_pair unlinked = qk_group_unlinked(&r->group, &old);
		change.words[i] = (part->host_off + i * g->cluster_size) | QK_FLAG_COPIED;
		if (replaces && unlinked.b != 0)
			change.unlinked[change.n_unlinked++] = unlinked;
	}
	QK_TRY(qk_group_commit(&r->group, &change, err));
	/* what was staged here is COPIED: nobody needs to ask again */
	r->group.owned |= (part->n == QK_STAGE_ENTRIES ? UINT64_MAX : (UINT64_C(1) << part->n) - 1)
			  << part->first;
	return QCOW_OK;
}

static enum qcow_status write_allocating(
	struct remap *r, const struct qk_step *step, struct part *part, struct qcow_error *err)
{
	struct qcow_image *image = r->group.image;
	const struct qk_space_want want = {
		.n = step->n, .near = step->host.v, .kind = QK_SPACE_DATA};
	struct qk_space_run run = {0};
	QK_TRY(qk_table_take(image, &want, &run, err));
	QK_ASSERT(W5, run.n != 0 && run.n <= step->n);
	*part = make_part(r, step->first, (uint32_t)run.n);
	part->host_off = run.off;
	part->reads_zero = run.reads_zero;
	enum qcow_status status = write_part(r, part, err);
	if (status == QCOW_OK)
		status = link_part(r, part, true, err);
	if (status != QCOW_OK)
		qk_space_give_back(image->rw->space, run.off, run.n);
	return status;
}

/* Plain clusters with one reference: the payload alone. */
static enum qcow_status write_over(struct remap *r, const struct part *part, struct qcow_error *err)
{
	static const struct fill none = {0};
	uint64_t at = part->host_off + part->head;
	QK_TRY(qk_space_check_overlap(
		r->group.image->rw->space, QK_SPACE_DATA, at, part->payload, err));
	return write_pieces(r, part, &none, &none, err);
}

static enum qcow_status do_step(struct remap *r, const struct qk_step *step, struct qcow_error *err)
{
	struct part part;
	if (step->kind == QK_STEP_ALLOCATE) {
		QK_TRY(write_allocating(r, step, &part, err));
	} else {
		part = make_part(r, step->first, step->n);
		part.host_off = step->host.v;
		if (step->kind == QK_STEP_REFILL)
			QK_TRY(write_part(r, &part, err));
		else
			QK_TRY(write_over(r, &part, err));
		if (step->kind != QK_STEP_IN_PLACE)
			QK_TRY(link_part(r, &part, false, err));
	}
	r->off += part.payload;
	return QCOW_OK;
}

static enum qcow_status write_group(struct remap *r, struct qcow_error *err)
{
	unsigned bits = r->group.image->geometry.cluster_bits;
	struct qk_l2_entry entries[QK_STAGE_ENTRIES];
	uint32_t first = (uint32_t)((r->off - r->group.guest.v) >> bits);
	uint32_t end = (uint32_t)((r->end - 1 - r->group.guest.v) >> bits) + 1;
	QK_TRY(qk_group_judge(&r->group, first, end - first, err));
	for (uint32_t i = first != 0 ? first - 1 : 0; i < end; i++)
		entries[i] = qk_group_entry(&r->group, i);
	while (r->off < r->end) {
		uint32_t i = (uint32_t)((r->off - r->group.guest.v) >> bits);
		const struct qk_plan plan = {.entries = entries,
			.owned = r->group.owned,
			.cluster_size = UINT64_C(1) << bits};
		struct qk_step step = qk_plan_step(&plan, i, end);
		QK_TRY(do_step(r, &step, err));
		/* what was allocated is where the next allocation goes on */
		for (; i < end && guest_of(r, i) < r->off; i++)
			entries[i] = qk_group_entry(&r->group, i);
	}
	return QCOW_OK;
}

enum qcow_status qk_remap_write(struct qcow_image *image, qk_goff off, uint64_t len,
	struct qk_iov *from, uint64_t *done, struct qcow_error *err)
{
	struct remap r;
	uint64_t span = (uint64_t)QK_STAGE_ENTRIES << image->geometry.cluster_bits;
	r.from = from;
	r.off = off.v;
	r.end = off.v + qk_min(len, span - (off.v & (span - 1)));
	QK_TRY(qk_group_lock(image, off, &r.group, err));
	enum qcow_status status = write_group(&r, err);
	qk_group_unlock(&r.group);
	*done = r.off - off.v;
	return status;
}
