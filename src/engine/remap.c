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
 *
 * With extended entries head and tail end with the subcluster, or with the last one next to it that has to be in the
 * new cluster; those that are in place already have none. What lies apart in the same cluster is copied
 * by itself. Only what was written becomes allocated (subcluster.h).
 */
#include "engine/remap.h"

#include <string.h>

#include "base/mem.h"
#include "engine/group.h"
#include "engine/image.h"
#include "engine/map.h"
#include "engine/plan.h"
#include "engine/put.h"
#include "engine/read.h"
#include "engine/rw.h"
#include "engine/space.h"
#include "engine/subcluster.h"
#include "engine/table.h"

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
	bool in_place; /* what is allocated in them is seen by readers */
	uint64_t lead; /* bytes from the first cluster's begin to the payload */
	uint64_t head, payload, tail; /* bytes; head <= lead */
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

/* head and tail end with what the new cluster, or the old one, has to hold. */
static void fit_subclusters(const struct remap *r, struct part *part)
{
	const struct qk_geometry *g = &r->group.image->geometry;
	struct qk_l2_entry e = qk_group_entry(&r->group, part->first);
	part->head = qk_sub_head(g, &e, part->in_place, part->lead);
	e = qk_group_entry(&r->group, part->first + part->n - 1);
	part->tail = qk_sub_tail(g, &e, part->in_place, g->cluster_size - part->tail);
}

/* head, payload and tail of entries [first, first + n). */
static struct part make_part(const struct remap *r, const struct qk_step *step, uint32_t n)
{
	const struct qk_geometry *g = &r->group.image->geometry;
	uint32_t first = step->first;
	uint64_t start = guest_of(r, first), end = guest_of(r, first + n);
	struct part part = {.first = first, .n = n, .host_off = step->host.v};
	part.lead = r->off - start;
	part.head = part.lead;
	part.payload = qk_min(r->end, end) - r->off;
	part.tail = end - r->off - part.payload;
	part.in_place = step->kind != QK_STEP_ALLOCATE;
	if (g->extended_l2)
		fit_subclusters(r, &part);
	/* a data file may end with the disk */
	if (g->data_file)
		part.tail = qk_min(part.tail, r->group.image->size - r->off - part.payload);
	return part;
}

/* The subclusters of entry i that are written with the part. */
static uint32_t written_subclusters(const struct remap *r, const struct part *part, uint32_t i)
{
	uint64_t start = guest_of(r, part->first + i);
	uint64_t from = r->off - part->head, to = r->off + part->payload + part->tail;
	uint64_t size = r->group.image->geometry.cluster_size;
	from = from > start ? from - start : 0;
	to = qk_min(to - start, size);
	return qk_sub_mask(&r->group.image->geometry, from, to);
}

/* Where byte `into` of the part lies. */
static struct qk_put put_of(struct remap *r, const struct part *part, uint64_t into)
{
	const struct qk_put put = {.image = r->group.image,
		.at = {qk_guest_store(r->group.image), {part->host_off + into},
			{guest_of(r, part->first) + into}},
		.from = r->from,
		.len = part->payload};
	return put;
}

/* Where a part of a sector is written in place, the subcluster is allocated, and nothing comes before or behind. */
static enum qcow_status put_part(struct remap *r, const struct part *part, const struct fill *head,
	const struct fill *tail, struct qcow_error *err)
{
	struct qk_put put = put_of(r, part, part->lead - head->n);
	put.head = (struct qk_span){head->p, head->n};
	put.tail = (struct qk_span){tail->p, tail->n};
	return part->in_place ? qk_put_over(&put, err) : qk_put(&put, err);
}

/* What was read, to byte `into` of the part. */
static enum qcow_status put_fill(struct remap *r, const struct part *part, uint64_t into,
	const struct fill *fill, struct qcow_error *err)
{
	struct qk_put put = put_of(r, part, into);
	put.head = (struct qk_span){fill->p, fill->n};
	put.len = 0;
	return qk_put(&put, err);
}

static void release_fill(const struct remap *r, struct fill *fill)
{
	if (fill->p != NULL && r->group.image->crypt != NULL)
		explicit_bzero(fill->p, fill->n);
	free(fill->p);
}

/* Write payload, head and tail to the host clusters of `part`. */
static enum qcow_status write_part(struct remap *r, const struct part *part, struct qcow_error *err)
{
	struct qcow_image *image = r->group.image;
	struct fill head = {0}, tail = {0};
	uint64_t len = part->head + part->payload + part->tail;
	uint64_t at = part->host_off + part->lead - part->head;
	QK_TRY(qk_rw_check_data(image, at, len, err));
	enum qcow_status status = get_fill(
		image, r->off - part->head, part->head, part->reads_zero, &head, err);
	if (status == QCOW_OK)
		status = get_fill(
			image, r->off + part->payload, part->tail, part->reads_zero, &tail, err);
	if (status == QCOW_OK)
		status = put_part(r, part, &head, &tail, err);
	release_fill(r, &head);
	release_fill(r, &tail);
	return status;
}

/* The subclusters of entry `i` of a part that the new cluster needs and that are not written with the part. */
static enum qcow_status copy_apart(
	struct remap *r, const struct part *part, uint32_t i, struct qcow_error *err)
{
	struct qcow_image *image = r->group.image;
	const struct qk_geometry *g = &image->geometry;
	struct qk_l2_entry e = qk_group_entry(&r->group, part->first + i);
	uint32_t left = qk_sub_kept(&e) & ~written_subclusters(r, part, i);
	uint64_t host_off = part->host_off + i * g->cluster_size;
	while (left != 0) {
		struct qk_sub_run run = qk_sub_next(&left);
		uint64_t from = run.first * g->subcluster_size, len = run.n * g->subcluster_size;
		struct fill fill = {0};
		QK_TRY(qk_rw_check_data(image, host_off + from, len, err));
		enum qcow_status status = get_fill(image, guest_of(r, part->first + i) + from, len,
			part->reads_zero, &fill, err);
		if (status == QCOW_OK && fill.p != NULL)
			status = put_fill(r, part, i * g->cluster_size + from, &fill, err);
		release_fill(r, &fill);
		QK_TRY(status);
	}
	return QCOW_OK;
}

/* Only the first and the last cluster of a part may be written in part. */
static enum qcow_status copy_kept(struct remap *r, const struct part *part, struct qcow_error *err)
{
	if (!r->group.image->geometry.extended_l2)
		return QCOW_OK;
	QK_TRY(copy_apart(r, part, 0, err));
	return part->n > 1 ? copy_apart(r, part, part->n - 1, err) : QCOW_OK;
}

/* Entry i of a part, once it is written. */
static struct qk_l2_entry linked_entry(const struct remap *r, const struct part *part, uint32_t i)
{
	const struct qk_geometry *g = &r->group.image->geometry;
	struct qk_l2_entry e = {.type = QK_L2_NORMAL,
		.host_off.v = part->host_off + i * g->cluster_size,
		.copied = true};
	if (g->extended_l2) {
		struct qk_l2_entry old = qk_group_entry(&r->group, part->first + i);
		e.alloc = qk_sub_kept(&old) | written_subclusters(r, part, i);
		e.zero = old.zero & ~e.alloc;
	}
	return e;
}

/* Stage the entries of a part that was written to its host clusters; the old ones are unlinked where
 * `replaces`. */
static enum qcow_status link_part(
	struct remap *r, const struct part *part, bool replaces, struct qcow_error *err)
{
	struct qk_stage_change change;
	qk_group_change(&r->group, &change, part->first, part->n);
	change.needs_barrier = true;
	for (uint32_t i = 0; i < part->n; i++) {
		struct qk_l2_entry old = qk_group_entry(&r->group, part->first + i);
		struct qk_pair unlinked = qk_group_unlinked(&r->group, &old);
		struct qk_l2_entry now = linked_entry(r, part, i);
		qk_group_put(&r->group, &change, part->first + i, &now);
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
	if (image->geometry.data_file)
		run = (struct qk_space_run){.off = guest_of(r, step->first), .n = step->n};
	else
		QK_TRY(qk_table_take(image, &want, &run, err));
	QK_ASSERT(W5, run.n != 0 && run.n <= step->n);
	*part = make_part(r, step, (uint32_t)run.n);
	part->host_off = run.off;
	/* zeros of the host are no zeros when decrypted */
	part->reads_zero = run.reads_zero && image->crypt == NULL;
	enum qcow_status status = copy_kept(r, part, err);
	if (status == QCOW_OK)
		status = write_part(r, part, err);
	if (status == QCOW_OK)
		status = link_part(r, part, true, err);
	if (status != QCOW_OK && !image->geometry.data_file)
		qk_space_give_back(image->rw->space, run.off, run.n);
	return status;
}

/* Plain clusters with one reference: the payload alone. */
static enum qcow_status write_over(struct remap *r, const struct part *part, struct qcow_error *err)
{
	const struct qk_put put = put_of(r, part, part->lead);
	QK_TRY(qk_rw_check_data(r->group.image, put.at.host.v, part->payload, err));
	return qk_put_part(&put, err);
}

static enum qcow_status do_step(struct remap *r, const struct qk_step *step, struct qcow_error *err)
{
	struct part part;
	if (step->kind == QK_STEP_ALLOCATE) {
		QK_TRY(write_allocating(r, step, &part, err));
	} else {
		part = make_part(r, step, step->n);
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
			.cluster_size = UINT64_C(1) << bits,
			.is_extended = r->group.image->geometry.extended_l2};
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
	uint64_t span = qk_group_span(image);
	r.from = from;
	r.off = off.v;
	r.end = off.v + qk_min(len, span - (off.v & (span - 1)));
	QK_TRY(qk_group_lock(image, off, &r.group, err));
	enum qcow_status status = write_group(&r, err);
	qk_group_unlock(&r.group);
	*done = r.off - off.v;
	return status;
}
