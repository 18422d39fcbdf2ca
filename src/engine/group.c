/* SPDX-License-Identifier: MIT */
/*
 * group: see group.h. Locking: one stripe, held from lock to unlock, across data I/O.
 */
#include "engine/group.h"

#include <inttypes.h>

#include "engine/data_file.h"
#include "engine/image.h"
#include "engine/locks.h"
#include "engine/lookup.h"
#include "engine/rw.h"
#include "engine/space.h"
#include "engine/table.h"
#include "engine/write.h"

static uint64_t key_of(const struct qcow_image *image, qk_goff off)
{
	return (off.v >> image->geometry.cluster_bits) / qk_stage_entries(&image->geometry);
}

uint64_t qk_group_span(const struct qcow_image *image)
{
	return (uint64_t)qk_stage_entries(&image->geometry) << image->geometry.cluster_bits;
}

static pthread_mutex_t *stripe_of(struct qcow_image *image, uint64_t key)
{
	return &image->rw->stripes[(key ^ (key >> 6)) % QK_STRIPES];
}

/* The sector of the table at l2_off as the file, or the cache, has it. */
static enum qcow_status read_sector(struct qcow_image *image, uint64_t l2_off, uint32_t index,
	uint64_t words[QK_STAGE_WORDS], struct qcow_error *err)
{
	struct qk_slice slice;
	do {
		QK_TRY(qk_meta_slice(image->meta, l2_off, index, true, &slice, err));
		const _Atomic uint64_t *from = slice.words +
					       (size_t)(index - slice.first) *
						       qk_entry_words(&image->geometry);
		for (uint32_t i = 0; i < QK_STAGE_WORDS; i++)
			words[i] = atomic_load_explicit(&from[i], memory_order_acquire);
	} while (!qk_slice_is_whole(&slice));
	return QCOW_OK;
}

static enum qcow_status pin(
	struct qcow_image *image, uint64_t key, struct qk_chunk **out, struct qcow_error *err)
{
	struct qk_stage *stage = image->rw->stage;
	const struct qk_geometry *g = &image->geometry;
	uint64_t disk[QK_STAGE_WORDS];
	uint64_t l2_off = 0;
	uint64_t cluster = key * qk_stage_entries(g);
	*out = qk_stage_pin(stage, key);
	if (*out != NULL)
		return QCOW_OK;
	QK_TRY(qk_table_get(image, cluster >> g->l2_bits, &l2_off, err));
	QK_TRY(read_sector(image, l2_off, (uint32_t)(cluster & (g->l2_entries - 1)), disk, err));
	return qk_stage_add(stage, key, l2_off, disk, out, err);
}

enum qcow_status qk_group_lock(
	struct qcow_image *image, qk_goff off, struct qk_group *out, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	uint64_t key = key_of(image, off);
	if (qk_stage_is_full(rw->stage) || qk_space_wants_publish(rw->space))
		QK_TRY(qk_write_flush(image, err));
	out->image = image;
	out->guest.v = key * qk_group_span(image);
	out->n = qk_stage_entries(&image->geometry);
	out->owned = 0;
	qk_lock(stripe_of(image, key));
	enum qcow_status status = qk_fence_check(&rw->fence, err);
	if (status == QCOW_OK)
		status = pin(image, key, &out->chunk, err);
	if (status != QCOW_OK) {
		qk_unlock(stripe_of(image, key));
		return status;
	}
	for (uint32_t i = 0; i < QK_STAGE_WORDS; i++)
		out->words[i] = __builtin_bswap64(
			atomic_load_explicit(&out->chunk->words[i], memory_order_relaxed));
	return QCOW_OK;
}

void qk_group_unlock(struct qk_group *group)
{
	struct qcow_image *image = group->image;
	qk_stage_unpin(image->rw->stage, group->chunk);
	qk_unlock(stripe_of(image, key_of(image, group->guest)));
}

void qk_group_hold(struct qcow_image *image, qk_goff off, struct qk_group_hold *out)
{
	struct qk_stage *stage = image->rw->stage;
	uint64_t key = key_of(image, off);
	out->image = image;
	out->guest.v = key * qk_group_span(image);
	qk_lock(stripe_of(image, key));
	out->chunk = qk_stage_pin(stage, key);
	out->busy = out->chunk != NULL ? qk_stage_unsettled(stage, out->chunk) : 0;
}

void qk_group_release(struct qk_group_hold *hold)
{
	struct qcow_image *image = hold->image;
	if (hold->chunk != NULL)
		qk_stage_unpin(image->rw->stage, hold->chunk);
	qk_unlock(stripe_of(image, key_of(image, hold->guest)));
}

bool qk_group_is_settled(const struct qk_group_hold *hold, qk_goff off)
{
	const struct qk_geometry *g = &hold->image->geometry;
	uint32_t n = qk_entry_words(g);
	uint64_t first = ((off.v - hold->guest.v) >> g->cluster_bits) * n;
	uint64_t words = ((UINT64_C(1) << n) - 1) << first;
	return (hold->busy & words) == 0;
}

struct qk_l2_entry qk_group_entry(const struct qk_group *group, uint32_t i)
{
	const struct qcow_image *image = group->image;
	qk_goff guest = {group->guest.v + ((uint64_t)i << image->geometry.cluster_bits)};
	uint32_t n_words = qk_entry_words(&image->geometry);
	uint64_t bitmap = n_words == 2 ? group->words[i * n_words + 1] : 0;
	struct qk_l2_entry e = qk_l2_decode(
		&image->geometry, group->words[i * n_words], bitmap, guest);
	bool is_beyond = qk_l2_has_host(&e) && !image->geometry.data_file &&
			 e.host_off.v >= image->file_size;
	if (e.finding == 0 && is_beyond)
		e.finding = QCOW_FINDING_L2_ENTRY_BEYOND_FILE;
	return e;
}

static enum qcow_status fail_entry(
	const struct qk_group *group, uint32_t i, unsigned finding, struct qcow_error *err)
{
	const struct qk_geometry *g = &group->image->geometry;
	uint64_t guest = group->guest.v + ((uint64_t)i << g->cluster_bits);
	uint32_t index = qk_guest_pos(g, (qk_goff){guest}).l2_index;
	uint64_t at = group->chunk->l2_off + (uint64_t)index * g->l2_entry_size;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, finding, at, guest,
		"L2 entry 0x%016" PRIx64 " at %" PRIu64 " for guest offset %" PRIu64 ": %s",
		group->words[i * qk_entry_words(g)], at, guest, qcow_finding_text(finding));
}

enum qcow_status qk_group_judge(
	struct qk_group *group, uint32_t first, uint32_t n, struct qcow_error *err)
{
	struct qk_space *space = group->image->rw->space;
	for (uint32_t i = first; i < first + n; i++) {
		struct qk_l2_entry e = qk_group_entry(group, i);
		uint64_t references = e.copied ? 1 : 0;
		if (e.finding != 0)
			return fail_entry(group, i, e.finding, err);
		if (!qk_l2_has_host(&e))
			continue;
		/* clusters of a data file have no refcount, and one owner */
		if (group->image->geometry.data_file)
			references = 1;
		else if (!e.copied && qk_space_is_proven(space))
			QK_TRY(qk_space_refcount(space, e.host_off.v, &references, err));
		if (references == 1)
			group->owned |= UINT64_C(1) << i;
	}
	return QCOW_OK;
}

struct qk_pair qk_group_unlinked(const struct qk_group *group, const struct qk_l2_entry *e)
{
	unsigned bits = group->image->geometry.cluster_bits;
	if (qk_l2_has_host(e) && group->image->geometry.data_file)
		return qk_data_file_unlinked(e->host_off.v);
	if (qk_l2_has_host(e))
		return (struct qk_pair){e->host_off.v, 1};
	if (e->type != QK_L2_COMPRESSED)
		return (struct qk_pair){0, 0};
	uint64_t first = e->host_off.v >> bits;
	uint64_t last = (e->host_off.v + e->compressed_bytes - 1) >> bits;
	return (struct qk_pair){first << bits, last - first + 1};
}

void qk_group_change(
	struct qk_group *group, struct qk_stage_change *change, uint32_t first, uint32_t n)
{
	uint32_t n_words = qk_entry_words(&group->image->geometry);
	change->chunk = group->chunk;
	change->is_wide = n_words != 1;
	change->first = first * n_words;
	change->n = n * n_words;
	change->n_unlinked = 0;
	change->needs_barrier = false;
}

void qk_group_put(const struct qk_group *group, struct qk_stage_change *change, uint32_t i,
	const struct qk_l2_entry *e)
{
	const struct qk_geometry *g = &group->image->geometry;
	uint32_t at = i * qk_entry_words(g) - change->first;
	uint64_t bitmap = 0;
	QK_ASSERT_VOID(G6, at < change->n);
	qk_l2_encode(g, e, &change->words[at], &bitmap);
	if (g->extended_l2)
		change->words[at + 1] = bitmap;
}

void qk_group_trim(const struct qk_group *group, struct qk_stage_change *change, uint32_t n)
{
	change->n = n * qk_entry_words(&group->image->geometry);
}

static bool is_changed(const struct qk_group *group, const struct qk_stage_change *change)
{
	for (uint32_t i = 0; i < change->n; i++)
		if (group->words[change->first + i] != change->words[i])
			return true;
	return false;
}

enum qcow_status qk_group_commit(
	struct qk_group *group, struct qk_stage_change *change, struct qcow_error *err)
{
	if (!is_changed(group, change))
		return QCOW_OK;
	QK_TRY(qk_stage_commit(group->image->rw->stage, change, err));
	for (uint32_t i = 0; i < change->n; i++)
		group->words[change->first + i] = change->words[i];
	return QCOW_OK;
}

/* ---- clusters that zero clusters keep ---- */

/* Does the disk say of the guest cluster at `off` that it is zero and keeps the host cluster, and nobody has changed that since? */
static bool is_zero_still(struct qcow_image *image, qk_goff off, uint64_t host_off)
{
	struct qk_slice slice;
	struct qk_run run;
	uint64_t len = qk_min(image->geometry.cluster_size, image->size - off.v);
	return !qk_stage_find(image->rw->stage, key_of(image, off), &slice) &&
	       qk_lookup(image, off, len, true, &run, NULL) == QCOW_OK && run.kind == QK_RUN_ZERO &&
	       run.len == len && run.has_host && run.host_off.v == host_off;
}

void qk_group_punch(struct qcow_image *image, const struct qk_pair *kept)
{
	const qk_goff off = {(kept->b - 1) << image->geometry.cluster_bits};
	const uint64_t host_off = kept->a & ~(uint64_t)QK_FREED_BITS;
	pthread_mutex_t *stripe = stripe_of(image, key_of(image, off));
	if (!qk_try_lock(stripe))
		return;
	if (off.v < image->size && is_zero_still(image, off, host_off))
		qk_space_punch_kept(
			image->rw->space, (unsigned)(kept->a & QK_FREED_BITS), host_off, 1);
	qk_unlock(stripe);
}
