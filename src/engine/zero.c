/* SPDX-License-Identifier: MIT */
/*
 * zero: see zero.h. Whole clusters become zero by their L2 entry, the rest by zeros written as data.
 *
 *	entry				zero	 unmapping zero and discard
 *	absent				zero, where a layer below could show; else as it is
 *	plain or zero, one reference	zero, the cluster is kept	zero, the cluster is unlinked
 *	plain or zero, shared		zero, one reference less
 *	compressed			zero, one reference less for each cluster touched
 * A raw data file gets the zeros itself, and its entries stay.
 * With QCOW_DISCARD_NO_UNREF unmapping keeps the cluster as zeroing does.
 * Version 2 has no zero flag: absent stands for zero where nothing lies below, else zeros are data.
 *
 * With extended entries zeroing goes by subclusters: where it takes a part of a cluster, their zero bits are set and
 * their allocation bits cleared, and the cluster stays, unmapping or not. Discarding goes by clusters.
 */
#include "engine/zero.h"

#include "engine/data_file.h"
#include "engine/group.h"
#include "engine/image.h"
#include "engine/map.h"
#include "engine/rw.h"
#include "engine/space.h"
#include "engine/subcluster.h"
#include "engine/track.h"
#include "engine/write.h"

#define ZERO_BYTES 65536U
#define N_ZEROS	   32

/* Zeros to write from. */
static const uint8_t zeros[ZERO_BYTES];

struct zero {
	struct qcow_image *image;
	bool unmap;
	bool gives_up; /* of a raw data file: the space that the zeros take may go */
	bool keeps; /* a cluster of its own stays, unmapping or not */
	bool is_fast;
	bool is_explicit; /* the image itself is to hold the zeros */
};

/* ---- zeros as data ---- */

static enum qcow_status write_zeros(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	while (len != 0) {
		struct iovec iov[N_ZEROS];
		uint64_t done = 0;
		int n = 0;
		while (n < N_ZEROS && done < len) {
			size_t take = (size_t)qk_min(len - done, ZERO_BYTES);
			iov[n++] = (struct iovec){(void *)(uintptr_t)zeros, take};
			done += take;
		}
		QK_TRY(qk_write(image, iov, n, off, err));
		off += done;
		len -= done;
	}
	return QCOW_OK;
}

static bool is_zero_run(const struct qk_run *run)
{
	return run->kind == QK_RUN_ZERO || run->kind == QK_RUN_UNALLOCATED;
}

/* What does not read as zeros already is overwritten; QCOW_E_NOTSUP where z->is_fast. */
static enum qcow_status zero_data(
	const struct zero *z, uint64_t off, uint64_t len, struct qcow_error *err)
{
	while (len != 0) {
		const struct qk_map_request rq = {.image = z->image,
			.off.v = off,
			.len = len,
			.max_depth = UINT32_MAX,
			.may_block = true};
		struct qk_run run;
		/* in an epoch: a table that is being replaced is not given away under the walk */
		unsigned epoch = qk_epoch_enter(z->image->rw->epoch);
		enum qcow_status status = qk_map_find(&rq, &run, err);
		qk_epoch_leave(z->image->rw->epoch, epoch);
		QK_TRY(status);
		bool is_done = is_zero_run(&run) && !z->is_explicit;
		if (!is_done && z->is_fast)
			return QK_FAIL_AT(err, QCOW_E_NOTSUP, 0, QCOW_NO_OFFSET, off,
				"zeros would have to be written as data");
		if (!is_done)
			QK_TRY(write_zeros(z->image, off, run.len, err));
		off += run.len;
		len -= run.len;
	}
	return QCOW_OK;
}

/* ---- zeros by entries ---- */

/* May something show where the image holds nothing? */
static bool has_below(const struct zero *z)
{
	return z->image->rw->has_below || z->is_explicit;
}

/* The host cluster stays with entry `e`, the i-th, and its content is not needed. */
static struct qk_pair kept(const struct qk_group *group, uint32_t i, const struct qk_l2_entry *e)
{
	uint64_t cluster = (group->guest.v >> group->image->geometry.cluster_bits) + i;
	if (group->image->geometry.data_file) {
		struct qk_pair pair = qk_data_file_unlinked(e->host_off.v);
		pair.a |= QK_FREED_REQUEST;
		return pair;
	}
	return (struct qk_pair){e->host_off.v | QK_FREED_REQUEST | QK_FREED_KEPT, cluster + 1};
}

/* What entry `e`, the i-th, becomes; *unlinked the clusters that lose a reference. */
static struct qk_l2_entry zeroed(const struct zero *z, const struct qk_group *group, uint32_t i,
	struct qk_l2_entry e, struct qk_pair *unlinked)
{
	bool has_flag = z->image->geometry.version >= 3;
	*unlinked = (struct qk_pair){0, 0};
	if (e.type == QK_L2_UNALLOCATED && !has_below(z))
		return e;
	bool is_owned = (group->owned >> i & 1) != 0;
	if (qk_l2_has_host(&e) && is_owned && (!z->unmap || z->keeps)) {
		if (z->unmap)
			*unlinked = kept(group, i, &e);
		return (struct qk_l2_entry){has_flag ? QK_L2_ZERO_ALLOC : QK_L2_NORMAL,
			.host_off = e.host_off, .copied = true};
	}
	*unlinked = qk_group_unlinked(group, &e);
	unlinked->a |= QK_FREED_REQUEST | (is_owned && e.copied ? QK_FREED_OWNED : 0);
	return (struct qk_l2_entry){.type = has_flag ? QK_L2_ZERO : QK_L2_UNALLOCATED};
}

/* The same where a part of the cluster, `mask`, becomes zero. */
static struct qk_l2_entry zeroed_in_part(const struct zero *z, const struct qk_group *group,
	uint32_t i, struct qk_l2_entry e, uint32_t mask)
{
	if (e.type == QK_L2_UNALLOCATED && !has_below(z))
		return e;
	e.alloc &= ~mask;
	e.zero |= mask;
	e.copied = (group->owned >> i & 1) != 0;
	if (e.zero == UINT32_MAX)
		e.type = qk_l2_has_host(&e) ? QK_L2_ZERO_ALLOC : QK_L2_ZERO;
	return e;
}

/* The entries that [off, end) touches, as far as they become zero by what they say: a part of a compressed cluster
 * does not. *done bytes. */
static enum qcow_status zero_entries(const struct zero *z, struct qk_group *group, uint64_t off,
	uint64_t end, uint64_t *done, struct qcow_error *err)
{
	const struct qk_geometry *g = &z->image->geometry;
	uint32_t first = (uint32_t)((off - group->guest.v) >> g->cluster_bits);
	uint32_t n = (uint32_t)qk_div_up(end - group->guest.v, g->cluster_size) - first;
	struct qk_stage_change change;
	QK_TRY(qk_group_judge(group, first, n, err));
	qk_group_change(group, &change, first, n);
	*done = end - off;
	for (uint32_t i = first; i < first + n; i++) {
		struct qk_pair unlinked = {0, 0};
		struct qk_l2_entry was = qk_group_entry(group, i), now;
		uint64_t start = group->guest.v + i * g->cluster_size;
		uint64_t from = qk_max(off, start) - start;
		uint64_t to = qk_min(end - start, g->cluster_size);
		bool is_whole = from == 0 &&
				(to == g->cluster_size || start + to == z->image->size);
		if (!is_whole && was.type == QK_L2_COMPRESSED) {
			*done = start + from - off;
			qk_group_trim(group, &change, i - first);
			break;
		}
		if (is_whole)
			now = zeroed(z, group, i, was, &unlinked);
		else
			now = zeroed_in_part(z, group, i, was, qk_sub_mask(g, from, to));
		qk_group_put(group, &change, i, &now);
		/* COPIED may be put right here: then the refcount has to be stable first */
		change.needs_barrier = change.needs_barrier || (now.copied && !was.copied);
		if (unlinked.b != 0)
			change.unlinked[change.n_unlinked++] = unlinked;
	}
	return qk_group_commit(group, &change, err);
}

/* What lies in one group from `off` on; *done bytes, none where it begins in a compressed cluster and takes a part of
 * it. */
static enum qcow_status zero_group(
	const struct zero *z, uint64_t off, uint64_t len, uint64_t *done, struct qcow_error *err)
{
	uint64_t span = qk_group_span(z->image);
	struct qk_group group;
	len = qk_min(len, span - (off & (span - 1)));
	QK_TRY(qk_group_lock(z->image, (qk_goff){off}, &group, err));
	enum qcow_status status = zero_entries(z, &group, off, off + len, done, err);
	qk_group_unlock(&group);
	return status;
}

/* Does [off, end) read as zeros by what the layers say? */
static enum qcow_status reads_zero(
	const struct zero *z, uint64_t off, uint64_t end, bool *out, struct qcow_error *err)
{
	for (*out = true; *out && off < end;) {
		const struct qk_map_request rq = {.image = z->image,
			.off.v = off,
			.len = end - off,
			.max_depth = UINT32_MAX,
			.may_block = true};
		struct qk_run run;
		unsigned epoch = qk_epoch_enter(z->image->rw->epoch);
		enum qcow_status status = qk_map_find(&rq, &run, err);
		qk_epoch_leave(z->image->rw->epoch, epoch);
		QK_TRY(status);
		*out = is_zero_run(&run);
		off += run.len;
	}
	return QCOW_OK;
}

/* A part of one cluster, [off, off + len), of which the image is to hold the zeros. Where the image holds nothing of the
 * cluster and the rest of it reads as zeros, its entry says so: nobody writes to it in place, and who would remap it waits
 * for the stripe. Else zeros are data. */
static enum qcow_status zero_part(
	const struct zero *z, uint64_t off, uint64_t len, struct qcow_error *err)
{
	const struct qk_geometry *g = &z->image->geometry;
	uint64_t start = qk_align_down(off, g->cluster_size), done = 0;
	uint64_t end = qk_min(start + g->cluster_size, z->image->size);
	struct qk_group group;
	bool is_zero = false;
	if (len == 0)
		return QCOW_OK;
	if (!z->is_explicit || g->extended_l2)
		return zero_data(z, off, len, err);
	QK_TRY(qk_group_lock(z->image, (qk_goff){off}, &group, err));
	uint32_t i = (uint32_t)((start - group.guest.v) >> g->cluster_bits);
	enum qk_l2_type type = qk_group_entry(&group, i).type;
	enum qcow_status status = QCOW_OK;
	if (type == QK_L2_ZERO || type == QK_L2_ZERO_ALLOC)
		done = len;
	else if (type == QK_L2_UNALLOCATED)
		status = reads_zero(z, start, off, &is_zero, err);
	if (status == QCOW_OK && is_zero)
		status = reads_zero(z, off + len, end, &is_zero, err);
	if (status == QCOW_OK && is_zero)
		status = zero_entries(z, &group, start, end, &done, err);
	qk_group_unlock(&group);
	if (status != QCOW_OK || done != 0)
		return status;
	return zero_data(z, off, len, err);
}

/* How much of `run` of the top layer, which begins at `off`, stays as it is? No L2 table has to be made for that.
 * Of extended entries whole clusters, unless nothing else is asked for. */
static uint64_t done_already(
	const struct zero *z, const struct qk_run *run, uint64_t off, uint64_t len)
{
	bool is_done = run->kind == QK_RUN_ZERO ||
		       (run->kind == QK_RUN_UNALLOCATED && !has_below(z));
	uint64_t end = off + run->len;
	/* a cluster that is there may be taken back by a write that came first: it is waited for */
	if (!is_done || ((z->unmap || z->is_explicit) && run->has_host))
		return 0;
	if (run->len != len && z->image->geometry.extended_l2)
		end = qk_align_down(end, z->image->geometry.cluster_size);
	return end > off ? end - off : 0;
}

/* Whole clusters, or subclusters; the end of the disk counts as the end of its last. */
static enum qcow_status zero_clusters(
	const struct zero *z, uint64_t off, uint64_t len, struct qcow_error *err)
{
	uint64_t cluster_size = z->image->geometry.cluster_size;
	while (len != 0) {
		struct qk_run run;
		unsigned epoch = qk_epoch_enter(z->image->rw->epoch);
		enum qcow_status status = qk_lookup(z->image, (qk_goff){off}, len, true, &run, err);
		qk_epoch_leave(z->image->rw->epoch, epoch);
		QK_TRY(status);
		uint64_t done = done_already(z, &run, off, len);
		if (done == 0)
			QK_TRY(zero_group(z, off, len, &done, err));
		if (done == 0) {
			done = qk_min(len, cluster_size - (off & (cluster_size - 1)));
			QK_TRY(zero_data(z, off, done, err));
		}
		off += done;
		len -= done;
	}
	return QCOW_OK;
}

/* ---- ranges ---- */

/* [off, off + len) as head, whole units and tail. */
struct cut {
	uint64_t head, whole, tail;
};

static struct cut cut_range(
	const struct qcow_image *image, uint64_t unit, uint64_t off, uint64_t len)
{
	uint64_t mask = unit - 1;
	uint64_t head = (0 - off) & mask;
	if (head >= len && off + len != image->size)
		return (struct cut){.head = len};
	head = qk_min(head, len);
	uint64_t whole = len - head;
	uint64_t tail = off + len == image->size ? 0 : (off + len) & mask;
	return (struct cut){head, whole - tail, tail};
}

/* Who reads a raw data file alone has to find the zeros there, whatever the entries say. */
static enum qcow_status zero_raw_data(
	const struct zero *z, uint64_t off, uint64_t len, struct qcow_error *err)
{
	if (z->is_fast)
		return QK_FAIL(
			err, QCOW_E_NOTSUP, "a raw data file may have to be written zeros as data");
	/* what lies below would show through an entry that is absent, and zeros of the host are no zeros when decrypted */
	if (has_below(z) || z->image->crypt != NULL)
		return write_zeros(z->image, off, len, err);
	return qk_data_file_zero(z->image, off, len, z->gives_up, err);
}

static enum qcow_status zero_qcow2(
	const struct zero *z, uint64_t off, uint64_t len, struct qcow_error *err)
{
	const struct qcow_image *image = z->image;
	const struct qk_geometry *g = &image->geometry;
	struct cut cut = cut_range(
		image, g->extended_l2 ? g->subcluster_size : g->cluster_size, off, len);
	if (image->geometry.version < 3 && (has_below(z) || !z->unmap))
		return zero_data(z, off, len, err);
	if (qk_data_file_is_raw(image))
		return zero_raw_data(z, off, len, err);
	/* these write nothing where only fast zeros are wanted */
	QK_TRY(zero_part(z, off, cut.head, err));
	QK_TRY(zero_part(z, off + cut.head + cut.whole, cut.tail, err));
	return zero_clusters(z, off + cut.head, cut.whole, err);
}

static enum qcow_status zero_raw(
	const struct zero *z, uint64_t off, uint64_t len, struct qcow_error *err)
{
	if (z->is_fast)
		return QK_FAIL(err, QCOW_E_NOTSUP, "a raw image may have to write zeros as data");
	if (z->image->crypt != NULL)
		return write_zeros(z->image, off, len, err);
	return qcow_store_zero(z->image->store, z->image->raw_offset + off, len, 0, err);
}

enum qcow_status qk_zero(struct qcow_image *image, uint64_t off, uint64_t len, unsigned flags,
	struct qcow_error *err)
{
	const struct zero z = {.image = image,
		.unmap = (flags & QCOW_IO_UNMAP) != 0,
		.gives_up = (flags & QCOW_IO_UNMAP) != 0,
		.keeps = (image->rw->discard & QCOW_DISCARD_NO_UNREF) != 0,
		.is_fast = (flags & QCOW_IO_FAST) != 0,
		.is_explicit = (flags & QCOW_IO_EXPLICIT) != 0};
	QK_TRY(qk_fence_check(&image->rw->fence, err));
	QK_TRY(qk_track_mark(image, off, len, err));
	return image->is_raw ? zero_raw(&z, off, len, err) : zero_qcow2(&z, off, len, err);
}

/* The file may end within the last sector of the disk. A hole in an encrypted file would read as noise. */
static enum qcow_status discard_raw(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	uint64_t start = image->raw_offset + off;
	uint64_t end = qk_min(start + len, image->file_size);
	if (start >= end || image->crypt != NULL)
		return QCOW_OK;
	enum qcow_status status = qcow_store_punch(image->store, start, end - start, err);
	return status == QCOW_E_NOTSUP ? QCOW_OK : status;
}

enum qcow_status qk_discard(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	const struct zero z = {.image = image,
		.unmap = true,
		.gives_up = qk_space_is_passed(image->rw->discard, QK_FREED_REQUEST),
		.keeps = (image->rw->discard & QCOW_DISCARD_NO_UNREF) != 0};
	QK_TRY(qk_fence_check(&image->rw->fence, err));
	QK_TRY(qk_track_mark(image, off, len, err));
	if (image->is_raw)
		return discard_raw(image, off, len, err);
	if (image->geometry.version < 3 && image->rw->has_below)
		return QCOW_OK;
	struct cut cut = cut_range(image, image->geometry.cluster_size, off, len);
	if (qk_data_file_is_raw(image))
		return cut.whole == 0 ? QCOW_OK : zero_raw_data(&z, off + cut.head, cut.whole, err);
	return zero_clusters(&z, off + cut.head, cut.whole, err);
}
