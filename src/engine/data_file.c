/* SPDX-License-Identifier: MIT */
/*
 * data_file: see data_file.h. The order: data || entry (publish.c flushes the data file first); unlinked || punched.
 *
 * A cluster that was unlinked may be written again at once: its place is the same, what it showed in between are zeros, and
 * so any mixture of old, zeros and new that a crash leaves is one that writes in place could have left. What must not
 * happen is a punch behind that write. So who punches holds the stripe of the cluster, and looks at its entry again.
 *
 * The same holds for a cluster that stays with a zero cluster (QCOW_DISCARD_NO_UNREF): who writes to it again takes the
 * stripe to change its entry.
 *
 * Invariants: O1 a cluster is punched only while nothing of it shows by its entry, as readers see it and as the disk has it;
 * O2 nothing is written to the data file past the end of the disk (a device may end there).
 * Locking: lock, a leaf, for the list alone.
 */
#include "engine/data_file.h"

#include "base/mem.h"
#include "engine/group.h"
#include "engine/image.h"
#include "engine/lookup.h"
#include "engine/locks.h"
#include "engine/rw.h"
#include "engine/space.h"

void qk_data_file_init(struct qk_data_file *d)
{
	(void)pthread_mutex_init(&d->lock, NULL);
}

void qk_data_file_release(struct qk_data_file *d)
{
	free(d->idle);
	(void)pthread_mutex_destroy(&d->lock);
}

enum qcow_status qk_data_file_judge(struct qcow_image *image, struct qcow_error *err)
{
	struct qcow_store_caps caps;
	if (image->data_store == NULL)
		return QK_FAIL(err, QCOW_E_POLICY, "the data file '%s' was not opened",
			image->data_file_name != NULL ? image->data_file_name : "");
	qcow_store_caps(image->data_store, &caps);
	if (!caps.writable)
		return QK_FAIL(err, QCOW_E_READONLY, "the data file '%s' is open for reading only",
			qcow_store_name(image->data_store));
	return QCOW_OK;
}

bool qk_data_file_is_raw(const struct qcow_image *image)
{
	return image->geometry.data_file &&
	       (image->header.autoclear & QCOW_AUTOCLEAR_DATA_RAW) != 0;
}

/* ---- zeros in a raw data file ---- */

/* Punch [off, off + len) as far as the file goes. */
static enum qcow_status punch(
	struct qcow_store *store, uint64_t off, uint64_t len, struct qcow_error *err)
{
	uint64_t size = 0;
	QK_TRY(qcow_store_size(store, &size, err));
	if (off >= size)
		return QCOW_OK;
	return qcow_store_punch(store, off, qk_min(len, size - off), err);
}

enum qcow_status qk_data_file_zero(
	struct qcow_image *image, uint64_t off, uint64_t len, bool gives_up, struct qcow_error *err)
{
	enum qcow_status status = QCOW_E_NOTSUP;
	unsigned epoch = qk_epoch_enter(image->rw->epoch);
	enum qcow_status fence = qk_fence_check(&image->rw->fence, err);
	if (fence == QCOW_OK && gives_up)
		status = punch(image->data_store, off, len, NULL);
	if (fence == QCOW_OK && status != QCOW_OK)
		status = qcow_store_zero(image->data_store, off, len, 0, err);
	qk_epoch_leave(image->rw->epoch, epoch);
	return fence != QCOW_OK ? fence : status;
}

void qk_data_file_give_back(struct qcow_image *image, uint64_t off, uint64_t len)
{
	if (off < image->size)
		(void)punch(image->data_store, off, qk_min(len, image->size - off), NULL);
}

/* ---- what was unlinked ---- */

struct qk_pair qk_data_file_unlinked(uint64_t off)
{
	return (struct qk_pair){off | QK_FREED_DATA_FILE, 1};
}

/* Under the lock. Without memory the space stays with the file. */
static void remember(struct qk_data_file *d, uint64_t cluster_size, struct qk_pair pair)
{
	uint64_t n = atomic_load_explicit(&d->n, memory_order_relaxed);
	if (n != 0 && d->idle[n - 1].a + d->idle[n - 1].b * cluster_size == pair.a) {
		d->idle[n - 1].b += pair.b;
		return;
	}
	if (n == d->room) {
		uint64_t room = d->room != 0 ? d->room * 2 : 64;
		struct qk_pair *more = qk_realloc(d->idle, room, sizeof(*more));
		if (more == NULL)
			return;
		d->idle = more;
		d->room = room;
	}
	d->idle[n] = pair;
	atomic_store_explicit(&d->n, n + 1, memory_order_release);
}

void qk_data_file_take(struct qcow_image *image, struct qk_pairs *unlinked)
{
	struct qk_data_file *d = &image->rw->data_file;
	if (!image->geometry.data_file)
		return;
	qk_lock(&d->lock);
	for (struct qk_pairs_block *b = unlinked->first; b != NULL; b = b->next)
		for (uint32_t i = 0; i < b->n; i++) {
			struct qk_pair pair = b->v[i];
			if ((pair.a & QK_FREED_DATA_FILE) == 0 || pair.b == 0)
				continue;
			b->v[i].b = 0;
			if (!qk_space_is_passed(
				    image->rw->discard, (unsigned)(pair.a & QK_FREED_BITS)))
				continue;
			pair.a &= ~(uint64_t)QK_FREED_BITS;
			remember(d, image->geometry.cluster_size, pair);
		}
	qk_unlock(&d->lock);
}

/* ---- punching ---- */

/* Does the entry of the cluster at `off` name nothing, or read as zeros with the cluster that stays its own, for readers?
 * Its stripe is held. */
static bool is_unused(struct qcow_image *image, uint64_t off, uint64_t len)
{
	struct qk_run run;
	unsigned epoch = qk_epoch_enter(image->rw->epoch);
	enum qcow_status status = qk_lookup(image, (qk_goff){off}, len, true, &run, NULL);
	qk_epoch_leave(image->rw->epoch, epoch);
	return status == QCOW_OK && run.len == len && (!run.has_host || run.kind == QK_RUN_ZERO);
}

/* [off, end) lies in one group. */
static void punch_in_group(struct qcow_image *image, uint64_t off, uint64_t end)
{
	uint64_t cluster_size = image->geometry.cluster_size, from = off, to = off;
	struct qk_group_hold hold;
	qk_group_hold(image, (qk_goff){off}, &hold);
	bool is_up = qk_fence_check(&image->rw->fence, NULL) == QCOW_OK;
	while (is_up && to < end) {
		uint64_t len = qk_min(cluster_size, end - to);
		bool is_idle = qk_group_is_settled(&hold, (qk_goff){to}) &&
			       is_unused(image, to, len);
		if (!is_idle && to > from)
			(void)punch(image->data_store, from, to - from, NULL);
		to += len;
		if (!is_idle)
			from = to;
	}
	if (is_up && to > from)
		(void)punch(image->data_store, from, to - from, NULL);
	qk_group_release(&hold);
}

static void punch_run(struct qcow_image *image, uint64_t off, uint64_t n)
{
	uint64_t span = qk_group_span(image);
	uint64_t end = qk_min(off + n * image->geometry.cluster_size, image->size);
	while (off < end) {
		uint64_t stop = qk_min(end, qk_align_down(off, span) + span);
		punch_in_group(image, off, stop);
		off = stop;
	}
}

void qk_data_file_punch(struct qcow_image *image)
{
	struct qk_data_file *d = &image->rw->data_file;
	if (QK_LIKELY(atomic_load_explicit(&d->n, memory_order_acquire) == 0))
		return;
	qk_lock(&d->lock);
	struct qk_pair *idle = d->idle;
	uint64_t n = atomic_load_explicit(&d->n, memory_order_relaxed);
	d->idle = NULL;
	d->room = 0;
	atomic_store_explicit(&d->n, 0, memory_order_relaxed);
	qk_unlock(&d->lock);
	for (uint64_t i = 0; i < n; i++)
		punch_run(image, idle[i].a, idle[i].b);
	free(idle);
}
