/* SPDX-License-Identifier: MIT */
/*
 * undo_apply: putting back what a repair has saved (undo.h): last record first, so that what was saved first stays. Owns what
 * is known of the sectors; the stores are the caller's. What does not fit its bounds is gone through in parts: sectors in
 * windows, for each of which the records are read again; records from one remembered place to the next.
 *
 * Nothing is written before the whole image was judged: after a repair that came to its end each sector that was saved must
 * hold what the repair wrote last, and the image must be as long as it was then; where the repair or an undoing was cut
 * short, what it held at any time. Past the image's old end there is nothing but what the repair wrote, and zeros.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/num.h"
#include "check/undo.h"
#include "check/undo_record.h"

#define MAX_STATES    ((size_t)1 << 20) /* 32 MiB */
#define MAX_MARKS     ((size_t)1 << 15)
#define MAX_IN_BUCKET (UINT64_C(1) << 22)
#define N_BUCKETS     ((size_t)1 << 14)
#define WINDOW_BYTES  QK_KIB(64)

/* One record's word about one sector: digests. */
struct state {
	uint64_t sector, order, before, after;
};

enum judgement {
	JUDGE_BEFORE, /* as it was before the repair */
	JUDGE_AFTER, /* as the repair left it */
	JUDGE_ANY /* as it was at any time */
};

struct replay {
	struct qcow_store *image, *log;
	uint64_t old_size; /* of the image before the repair */
	uint64_t end_size; /* after it, where has_end */
	bool has_end, has_begun, is_done;
	uint64_t head_digest; /* of sector 0 before the repair */
	uint64_t at; /* of the next record */
	struct qk_undo_bounds bounds;
	uint64_t *
		marks; /* places of records, each `stride` records after the one before; max_marks + 1 */
	size_t n_marks;
	uint64_t stride, n_records;
	uint64_t buckets[N_BUCKETS]; /* states of each 1 << bucket_bits sectors */
	unsigned bucket_bits;
	uint64_t lo, hi; /* the sectors whose states are at hand */
	struct state *states;
	size_t n_states, states_room;
	uint8_t *record;
	uint8_t *window;
	uint64_t window_off, window_bytes; /* what it holds */
};

/* ---- what is known ---- */

/* Of the window; others are passed over. */
static enum qcow_status add_state(
	struct replay *r, uint64_t sector, uint64_t before, uint64_t after, struct qcow_error *err)
{
	if (sector < r->lo || sector >= r->hi)
		return QCOW_OK;
	struct state *v = qk_grown(r->states, r->n_states, &r->states_room, sizeof(*v));
	if (v == NULL)
		return QK_FAIL_NOMEM(err);
	r->states = v;
	v[r->n_states] = (struct state){sector, r->n_states, before, after};
	r->n_states++;
	return QCOW_OK;
}

/* Count a state, in twice as wide buckets where there are too few. */
static void count_state(struct replay *r, uint64_t sector)
{
	while (sector >> r->bucket_bits >= N_BUCKETS) {
		for (size_t i = 0; i < N_BUCKETS; i++) {
			r->buckets[i] = i < N_BUCKETS / 2
						? r->buckets[2 * i] + r->buckets[2 * i + 1]
						: 0;
		}
		r->bucket_bits++;
	}
	r->buckets[sector >> r->bucket_bits]++;
}

/* Remember where the record is, or every second of those that are remembered. */
static void mark_record(struct replay *r)
{
	if (r->n_records++ % r->stride != 0)
		return;
	if (r->n_marks == r->bounds.max_marks) {
		r->n_marks = (r->n_marks + 1) / 2;
		for (size_t i = 0; i < r->n_marks; i++)
			r->marks[i] = r->marks[2 * i];
		r->stride *= 2;
		if ((r->n_records - 1) % r->stride != 0)
			return;
	}
	r->marks[r->n_marks++] = r->at;
}

static enum qcow_status unreadable(struct qcow_error *err)
{
	return QK_FAIL(err, QCOW_E_IO, "a record cannot be read again");
}

static enum qcow_status read_head(struct replay *r, struct qcow_error *err)
{
	uint8_t head[QK_UNDO_HEAD_BYTES];
	uint64_t size = 0;

	QK_TRY(qcow_store_size(r->log, &size, err));
	if (size < sizeof(head))
		return QK_FAIL(err, QCOW_E_FORMAT, "this is no file that a repair saved bytes in");
	QK_TRY(qcow_store_read(r->log, head, sizeof(head), 0, err));
	uint64_t digest = qk_load64(head + QK_UNDO_HEAD_DIGEST);
	qk_store64(head + QK_UNDO_HEAD_DIGEST, 0);
	if (memcmp(head, qk_undo_magic, sizeof(qk_undo_magic)) != 0 || qk_load64(head + 8) != 2 ||
		qk_load64(head + 24) != QK_SECTOR || digest != qk_undo_digest(head, sizeof(head)))
		return QK_FAIL(err, QCOW_E_FORMAT, "this is no file that a repair saved bytes in");
	r->old_size = qk_load64(head + 16);
	r->at = sizeof(head);
	r->head_digest = qk_undo_digest(head + QK_SECTOR, QK_SECTOR);
	return QCOW_OK;
}

/* What was saved is shorter than its sectors where the image ended: zeros in memory. */
static enum qcow_status note_saved(
	struct replay *r, const struct qk_undo_record *rec, struct qcow_error *err)
{
	const uint8_t *digests = qk_undo_digests(r->record, rec);
	uint8_t sector[QK_SECTOR];

	for (uint32_t i = 0; i < rec->n_sectors; i++) {
		uint64_t at = (uint64_t)i * QK_SECTOR;
		size_t n = at < rec->n_bytes ? (size_t)qk_min(QK_SECTOR, rec->n_bytes - at) : 0;
		memset(sector, 0, sizeof(sector));
		memcpy(sector, qk_undo_bytes(r->record) + (n != 0 ? at : 0), n);
		QK_TRY(add_state(r, rec->off / QK_SECTOR + i,
			qk_undo_digest(sector, sizeof(sector)), qk_load64(digests + (size_t)i * 8),
			err));
	}
	return QCOW_OK;
}

static enum qcow_status note(
	struct replay *r, const struct qk_undo_record *rec, struct qcow_error *err)
{
	switch (rec->kind) {
	case QK_UNDO_END:
		r->has_end = true;
		r->end_size = rec->off;
		return QCOW_OK;
	case QK_UNDO_BEGUN:
		r->has_begun = true;
		return QCOW_OK;
	case QK_UNDO_DONE:
		r->is_done = true;
		return QCOW_OK;
	case QK_UNDO_SAVED:
		break;
	}
	if (rec->n_bytes != 0 && !qk_in_range(rec->off, rec->n_bytes, r->old_size))
		return QK_FAIL(
			err, QCOW_E_FORMAT, "bytes were saved that the image cannot have had");
	for (uint32_t i = 0; i < rec->n_sectors; i++)
		count_state(r, rec->off / QK_SECTOR + i);
	return QCOW_OK;
}

static int by_sector(const void *a, const void *b)
{
	const struct state *x = a;
	const struct state *y = b;

	if (x->sector != y->sector)
		return x->sector < y->sector ? -1 : 1;
	return (x->order > y->order) - (x->order < y->order);
}

/* All records up to the first that is not whole. */
static enum qcow_status scan(struct replay *r, struct qcow_error *err)
{
	struct qk_undo_record rec;
	uint64_t n = 0;

	count_state(r, 0);
	for (;; r->at += n) {
		QK_TRY(qk_undo_load(r->log, r->at, r->record, &rec, &n, err));
		if (n == 0)
			return QCOW_OK;
		mark_record(r);
		QK_TRY(note(r, &rec, err));
	}
}

/* What is known of the sectors [r->lo, r->hi). */
static enum qcow_status gather(struct replay *r, struct qcow_error *err)
{
	struct qk_undo_record rec;
	uint64_t n = 0;

	r->n_states = 0;
	QK_TRY(add_state(r, 0, r->head_digest, r->head_digest, err));
	for (uint64_t at = QK_UNDO_HEAD_BYTES; at < r->at; at += n) {
		QK_TRY(qk_undo_peek(r->log, at, r->record, &rec, &n, err));
		if (n == 0)
			return unreadable(err);
		uint64_t first = rec.off / QK_SECTOR;
		if (rec.kind != QK_UNDO_SAVED || first >= r->hi || first + rec.n_sectors <= r->lo)
			continue;
		QK_TRY(qk_undo_load(r->log, at, r->record, &rec, &n, err));
		if (n == 0)
			return unreadable(err);
		QK_TRY(note_saved(r, &rec, err));
	}
	if (r->n_states > 1)
		qsort(r->states, r->n_states, sizeof(*r->states), by_sector);
	return QCOW_OK;
}

/* ---- judging ---- */

static enum qcow_status foreign(struct qcow_error *err)
{
	return QK_FAIL(err, QCOW_E_INVAL,
		"the saved bytes are of another image, or this one was changed since");
}

/* The sector at `off`; sectors are asked for ascending. Zeros past the end. */
static enum qcow_status sector_at(
	struct replay *r, uint64_t off, const uint8_t **out, struct qcow_error *err)
{
	if (off < r->window_off || off - r->window_off >= r->window_bytes) {
		r->window_off = off;
		r->window_bytes = 0;
		QK_TRY(qcow_store_read_padded(r->image, r->window, WINDOW_BYTES, off, err));
		r->window_bytes = WINDOW_BYTES;
	}
	*out = r->window + (off - r->window_off);
	return QCOW_OK;
}

/* Of n states of one sector, in order. */
static bool is_known(const struct state *s, size_t n, enum judgement how, uint64_t digest)
{
	if (how == JUDGE_BEFORE)
		return digest == s[0].before;
	if (how == JUDGE_AFTER)
		return digest == s[n - 1].after;
	for (size_t i = 0; i < n; i++) {
		if (digest == s[i].before || digest == s[i].after)
			return true;
	}
	return false;
}

static enum qcow_status judge_saved(struct replay *r, enum judgement how, struct qcow_error *err)
{
	const uint8_t *sector = NULL;
	size_t n = 0;

	for (size_t i = 0; i < r->n_states; i += n) {
		const struct state *s = &r->states[i];
		for (n = 1; i + n < r->n_states && s[n].sector == s->sector; n++)
			;
		QK_TRY(sector_at(r, s->sector * QK_SECTOR, &sector, err));
		if (!is_known(s, n, how, qk_undo_digest(sector, QK_SECTOR)))
			return foreign(err);
	}
	return QCOW_OK;
}

static bool is_zero(const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (bytes[i] != 0)
			return false;
	}
	return true;
}

/* The window's sectors from the old end on: what the repair did not write is zeros. */
static enum qcow_status judge_tail(struct replay *r, uint64_t size, struct qcow_error *err)
{
	uint64_t off = qk_max(qk_align_down(r->old_size, QK_SECTOR), r->lo * QK_SECTOR);
	uint64_t end = r->hi < size / QK_SECTOR ? r->hi * QK_SECTOR : size;
	const uint8_t *sector = NULL;
	size_t i = 0;

	for (; off < end; off += QK_SECTOR) {
		size_t skip = off < r->old_size ? (size_t)(r->old_size - off) : 0;
		while (i < r->n_states && r->states[i].sector < off / QK_SECTOR)
			i++;
		if (i < r->n_states && r->states[i].sector == off / QK_SECTOR)
			continue;
		QK_TRY(sector_at(r, off, &sector, err));
		if (!is_zero(sector + skip, QK_SECTOR - skip))
			return foreign(err);
	}
	return QCOW_OK;
}

static bool is_right_size(const struct replay *r, uint64_t size)
{
	if (r->is_done || size < r->old_size)
		return size == r->old_size;
	if (!r->has_end)
		return true;
	return size == r->end_size || (r->has_begun && size == r->old_size);
}

/* Buckets from *i on, as many as there is memory for; the last window has no end. */
static enum qcow_status next_window(struct replay *r, size_t *i, struct qcow_error *err)
{
	uint64_t n = 0;
	size_t first = *i;

	while (*i < N_BUCKETS && (*i == first || n + r->buckets[*i] <= r->bounds.max_states))
		n += r->buckets[(*i)++];
	r->lo = (uint64_t)first << r->bucket_bits;
	r->hi = *i == N_BUCKETS ? UINT64_MAX : (uint64_t)*i << r->bucket_bits;
	/* a bucket may be more: sectors that were saved again and again */
	if (n > MAX_IN_BUCKET && n > r->bounds.max_states)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"%" PRIu64 " times sectors were saved that lie close together", n);
	return QCOW_OK;
}

static enum qcow_status judge(struct replay *r, struct qcow_error *err)
{
	enum judgement how = r->is_done			   ? JUDGE_BEFORE
			     : r->has_end && !r->has_begun ? JUDGE_AFTER
							   : JUDGE_ANY;
	uint64_t size = 0;

	QK_TRY(qcow_store_size(r->image, &size, err));
	if (!is_right_size(r, size))
		return foreign(err);
	for (size_t i = 0; i < N_BUCKETS;) {
		QK_TRY(next_window(r, &i, err));
		QK_TRY(gather(r, err));
		r->window_bytes = 0;
		QK_TRY(judge_saved(r, how, err));
		r->window_bytes = 0;
		QK_TRY(judge_tail(r, size, err));
	}
	return QCOW_OK;
}

/* ---- putting back ---- */

static enum qcow_status mark(struct replay *r, enum qk_undo_kind kind, struct qcow_error *err)
{
	struct qk_undo_record rec = {.kind = kind};

	QK_TRY(qk_undo_append(r->log, &r->at, r->record, &rec, err));
	return qcow_store_flush(r->log, err);
}

/* The records of [from, to), last first. `places` has room for all of them. */
static enum qcow_status put_back_part(
	struct replay *r, uint64_t from, uint64_t to, uint64_t *places, struct qcow_error *err)
{
	struct qk_undo_record rec;
	size_t n_places = 0;
	uint64_t n = 0;

	for (uint64_t at = from; at < to; at += n) {
		QK_TRY(qk_undo_peek(r->log, at, r->record, &rec, &n, err));
		if (n == 0)
			return unreadable(err);
		if (rec.kind == QK_UNDO_SAVED && rec.n_bytes != 0)
			places[n_places++] = at;
	}
	while (n_places > 0) {
		QK_TRY(qk_undo_load(r->log, places[--n_places], r->record, &rec, &n, err));
		if (n == 0)
			return unreadable(err);
		QK_TRY(qcow_store_write(
			r->image, qk_undo_bytes(r->record), rec.n_bytes, rec.off, err));
	}
	return QCOW_OK;
}

static enum qcow_status put_back(struct replay *r, uint64_t end, struct qcow_error *err)
{
	QK_AUTO_FREE uint64_t *places = qk_malloc(r->stride, sizeof(*places));
	uint64_t size = 0;

	if (places == NULL)
		return QK_FAIL_NOMEM(err);
	for (size_t i = r->n_marks; i > 0; i--) {
		QK_TRY(put_back_part(r, r->marks[i - 1], end, places, err));
		end = r->marks[i - 1];
	}
	QK_TRY(qcow_store_flush(r->image, err));
	QK_TRY(qcow_store_size(r->image, &size, err));
	if (size <= r->old_size)
		return QCOW_OK;
	QK_TRY(qcow_store_truncate(r->image, r->old_size, err));
	return qcow_store_flush(r->image, err);
}

static enum qcow_status replay(struct replay *r, struct qcow_error *err)
{
	r->record = qk_malloc(QK_UNDO_RECORD_ROOM, 1);
	r->window = qk_malloc(WINDOW_BYTES, 1);
	r->marks = qk_malloc(r->bounds.max_marks, sizeof(*r->marks));
	if (r->record == NULL || r->window == NULL || r->marks == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(read_head(r, err));
	QK_TRY(scan(r, err));
	QK_TRY(judge(r, err));
	if (r->is_done)
		return QCOW_OK;
	uint64_t end = r->at;
	if (!r->has_begun)
		QK_TRY(mark(r, QK_UNDO_BEGUN, err));
	QK_TRY(put_back(r, end, err));
	return mark(r, QK_UNDO_DONE, err);
}

enum qcow_status qk_undo_apply_within(struct qcow_store *image, struct qcow_store *log,
	const struct qk_undo_bounds *bounds, struct qcow_error *err)
{
	struct replay *r = qk_calloc(1, sizeof(*r));

	if (r == NULL)
		return QK_FAIL_NOMEM(err);
	*r = (struct replay){.image = image, .log = log, .bounds = *bounds, .stride = 1};
	enum qcow_status status = replay(r, err);
	free(r->marks);
	free(r->states);
	free(r->record);
	free(r->window);
	free(r);
	return status;
}

enum qcow_status qk_undo_apply(
	struct qcow_store *image, struct qcow_store *log, struct qcow_error *err)
{
	const struct qk_undo_bounds bounds = {MAX_STATES, MAX_MARKS};

	return qk_undo_apply_within(image, log, &bounds, err);
}
