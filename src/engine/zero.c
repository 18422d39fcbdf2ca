/* SPDX-License-Identifier: MIT */
/*
 * zero: see zero.h. Whole clusters become zero by their L2 entry, the rest by zeros written as data.
 *
 *	entry				zero	 unmapping zero and discard
 *	absent				zero, where a layer below could show; else as it is
 *	plain or zero, one reference	zero, the cluster is kept	zero, the cluster is unlinked
 *	plain or zero, shared		zero, one reference less
 *	compressed			zero, one reference less for each cluster touched
 * Version 2 has no zero flag: absent stands for zero where nothing lies below, else zeros are data.
 */
#include "engine/zero.h"

#include "engine/group.h"
#include "engine/image.h"
#include "engine/map.h"
#include "engine/rw.h"
#include "engine/write.h"

#define ZERO_BYTES 65536U
#define N_ZEROS	   32

/* Zeros to write from. */
static const uint8_t zeros[ZERO_BYTES];

struct zero {
	struct qcow_image *image;
	bool unmap;
	bool is_fast;
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
		QK_TRY(qk_map_find(&rq, &run, err));
		if (!is_zero_run(&run) && z->is_fast)
			return QK_FAIL_AT(err, QCOW_E_NOTSUP, 0, QCOW_NO_OFFSET, off,
				"zeros would have to be written as data");
		if (!is_zero_run(&run))
			QK_TRY(write_zeros(z->image, off, run.len, err));
		off += run.len;
		len -= run.len;
	}
	return QCOW_OK;
}

/* ---- zeros by entries ---- */

/* What entry i becomes; *unlinked the clusters that lose a reference. */
static uint64_t zeroed(
	const struct zero *z, const struct qk_group *group, uint32_t i, struct qk_pair *unlinked)
{
	const struct qk_geometry *g = &z->image->geometry;
	struct qk_l2_entry e = qk_group_entry(group, i);
	uint64_t flag = g->version >= 3 ? QK_FLAG_ZERO : 0;
	*unlinked = (struct qk_pair){0, 0};
	if (e.type == QK_L2_UNALLOCATED)
		return z->image->rw->has_below ? flag : group->words[i];
	if (qk_l2_has_host(&e) && (group->owned >> i & 1) != 0 && !z->unmap)
		return e.host_off.v | QK_FLAG_COPIED | flag;
	*unlinked = qk_group_unlinked(group, &e);
	return flag;
}

/* Entries [first, first + n). */
static enum qcow_status zero_entries(const struct zero *z, struct qk_group *group, uint32_t first,
	uint32_t n, struct qcow_error *err)
{
	struct qk_stage_change change;
	bool is_changed = false;
	QK_TRY(qk_group_judge(group, first, n, err));
	change.first = first;
	change.n = n;
	change.n_unlinked = 0;
	change.needs_barrier = false;
	for (uint32_t i = 0; i < n; i++) {
		struct qk_pair unlinked;
		change.words[i] = zeroed(z, group, first + i, &unlinked);
		is_changed = is_changed || change.words[i] != group->words[first + i];
		/* COPIED may be put right here: then the refcount has to be stable first */
		change.needs_barrier = change.needs_barrier ||
				       ((change.words[i] & QK_FLAG_COPIED) != 0 &&
					       (group->words[first + i] & QK_FLAG_COPIED) == 0);
		if (unlinked.b != 0)
			change.unlinked[change.n_unlinked++] = unlinked;
	}
	return is_changed ? qk_group_commit(group, &change, err) : QCOW_OK;
}

/* The whole clusters from `off` on that lie in one group; *done bytes. */
static enum qcow_status zero_group(
	const struct zero *z, uint64_t off, uint64_t len, uint64_t *done, struct qcow_error *err)
{
	unsigned bits = z->image->geometry.cluster_bits;
	uint64_t span = (uint64_t)QK_STAGE_ENTRIES << bits;
	struct qk_group group;
	*done = qk_min(len, span - (off & (span - 1)));
	QK_TRY(qk_group_lock(z->image, (qk_goff){off}, &group, err));
	uint32_t first = (uint32_t)((off - group.guest.v) >> bits);
	uint32_t n = (uint32_t)qk_div_up(*done, UINT64_C(1) << bits);
	enum qcow_status status = zero_entries(z, &group, first, n, err);
	qk_group_unlock(&group);
	return status;
}

/* Does `run` of the top layer stay as it is? Then no L2 table has to be made for it. */
static bool is_done_already(const struct zero *z, const struct qk_run *run)
{
	if (run->kind == QK_RUN_ZERO)
		return !run->has_host || !z->unmap;
	return run->kind == QK_RUN_UNALLOCATED && !z->image->rw->has_below;
}

/* Whole clusters; the end of the disk counts as the end of its last. */
static enum qcow_status zero_clusters(
	const struct zero *z, uint64_t off, uint64_t len, struct qcow_error *err)
{
	while (len != 0) {
		struct qk_run run;
		uint64_t done = 0;
		QK_TRY(qk_lookup(z->image, (qk_goff){off}, len, true, &run, err));
		if (is_done_already(z, &run))
			done = run.len;
		else
			QK_TRY(zero_group(z, off, len, &done, err));
		off += done;
		len -= done;
	}
	return QCOW_OK;
}

/* ---- ranges ---- */

/* [off, off + len) as head, whole clusters and tail. */
struct cut {
	uint64_t head, whole, tail;
};

static struct cut cut_range(const struct qcow_image *image, uint64_t off, uint64_t len)
{
	uint64_t mask = image->geometry.cluster_size - 1;
	uint64_t head = (0 - off) & mask;
	if (head >= len && off + len != image->size)
		return (struct cut){.head = len};
	head = qk_min(head, len);
	uint64_t whole = len - head;
	uint64_t tail = off + len == image->size ? 0 : (off + len) & mask;
	return (struct cut){head, whole - tail, tail};
}

static enum qcow_status zero_qcow2(
	const struct zero *z, uint64_t off, uint64_t len, struct qcow_error *err)
{
	const struct qcow_image *image = z->image;
	struct cut cut = cut_range(image, off, len);
	if (image->geometry.version < 3 && (image->rw->has_below || !z->unmap))
		return zero_data(z, off, len, err);
	/* these write nothing where only fast zeros are wanted */
	QK_TRY(zero_data(z, off, cut.head, err));
	QK_TRY(zero_data(z, off + cut.head + cut.whole, cut.tail, err));
	return zero_clusters(z, off + cut.head, cut.whole, err);
}

static enum qcow_status zero_raw(
	const struct zero *z, uint64_t off, uint64_t len, struct qcow_error *err)
{
	if (z->is_fast)
		return QK_FAIL(err, QCOW_E_NOTSUP, "a raw image may have to write zeros as data");
	return qcow_store_zero(z->image->store, z->image->raw_offset + off, len, 0, err);
}

enum qcow_status qk_zero(struct qcow_image *image, uint64_t off, uint64_t len, unsigned flags,
	struct qcow_error *err)
{
	const struct zero z = {.image = image,
		.unmap = (flags & QCOW_IO_UNMAP) != 0,
		.is_fast = (flags & QCOW_IO_FAST) != 0};
	QK_TRY(qk_fence_check(&image->rw->fence, err));
	return image->is_raw ? zero_raw(&z, off, len, err) : zero_qcow2(&z, off, len, err);
}

/* The file may end within the last sector of the disk. */
static enum qcow_status discard_raw(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	uint64_t start = image->raw_offset + off;
	uint64_t end = qk_min(start + len, image->file_size);
	if (start >= end)
		return QCOW_OK;
	enum qcow_status status = qcow_store_punch(image->store, start, end - start, err);
	return status == QCOW_E_NOTSUP ? QCOW_OK : status;
}

enum qcow_status qk_discard(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	const struct zero z = {.image = image, .unmap = true};
	QK_TRY(qk_fence_check(&image->rw->fence, err));
	if (image->is_raw)
		return discard_raw(image, off, len, err);
	if (image->geometry.version < 3 && image->rw->has_below)
		return QCOW_OK;
	struct cut cut = cut_range(image, off, len);
	return zero_clusters(&z, off + cut.head, cut.whole, err);
}
