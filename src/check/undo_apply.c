/* SPDX-License-Identifier: MIT */
/*
 * undo_apply: putting back what a repair has saved (undo.h): last record first, so that what was saved first stays. Owns what
 * is known of the sectors; the stores are the caller's.
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

#define MAX_STATES   ((size_t)1 << 24)
#define WINDOW_BYTES QK_KIB(64)

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
	uint64_t at; /* of the next record */
	uint64_t *places; /* of the records that saved something, first to last */
	size_t n_places, places_room;
	struct state *states;
	size_t n_states, states_room;
	uint8_t *record;
	uint8_t *window;
	uint64_t window_off, window_bytes; /* what it holds */
};

/* ---- what is known ---- */

static enum qcow_status add_state(
	struct replay *r, uint64_t sector, uint64_t before, uint64_t after, struct qcow_error *err)
{
	if (r->n_states == MAX_STATES)
		return QK_FAIL(err, QCOW_E_LIMIT, "more than %zu sectors were saved", MAX_STATES);
	struct state *v = qk_grown(r->states, r->n_states, &r->states_room, sizeof(*v));
	if (v == NULL)
		return QK_FAIL_NOMEM(err);
	r->states = v;
	v[r->n_states] = (struct state){sector, r->n_states, before, after};
	r->n_states++;
	return QCOW_OK;
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
	digest = qk_undo_digest(head + QK_SECTOR, QK_SECTOR);
	return add_state(r, 0, digest, digest, err);
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
	if (rec->n_bytes != 0) {
		if (!qk_in_range(rec->off, rec->n_bytes, r->old_size))
			return QK_FAIL(err, QCOW_E_FORMAT,
				"bytes were saved that the image cannot have had");
		uint64_t *v = qk_grown(r->places, r->n_places, &r->places_room, sizeof(*r->places));
		if (v == NULL)
			return QK_FAIL_NOMEM(err);
		r->places = v;
		r->places[r->n_places++] = r->at;
	}
	return note_saved(r, rec, err);
}

static int by_sector(const void *a, const void *b)
{
	const struct state *x = a;
	const struct state *y = b;

	if (x->sector != y->sector)
		return x->sector < y->sector ? -1 : 1;
	return (x->order > y->order) - (x->order < y->order);
}

static enum qcow_status scan(struct replay *r, struct qcow_error *err)
{
	struct qk_undo_record rec;
	uint64_t n = 0;

	for (;; r->at += n) {
		QK_TRY(qk_undo_load(r->log, r->at, r->record, &rec, &n, err));
		if (n == 0)
			break;
		QK_TRY(note(r, &rec, err));
	}
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

/* From the old end on: what the repair did not write is zeros. */
static enum qcow_status judge_tail(struct replay *r, uint64_t size, struct qcow_error *err)
{
	uint64_t off = qk_align_down(r->old_size, QK_SECTOR);
	const uint8_t *sector = NULL;
	size_t i = 0;

	for (; off < size; off += QK_SECTOR) {
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

static enum qcow_status judge(struct replay *r, struct qcow_error *err)
{
	enum judgement how = r->is_done			   ? JUDGE_BEFORE
			     : r->has_end && !r->has_begun ? JUDGE_AFTER
							   : JUDGE_ANY;
	uint64_t size = 0;

	QK_TRY(qcow_store_size(r->image, &size, err));
	if (!is_right_size(r, size))
		return foreign(err);
	QK_TRY(judge_saved(r, how, err));
	r->window_bytes = 0;
	return judge_tail(r, size, err);
}

/* ---- putting back ---- */

static enum qcow_status mark(struct replay *r, enum qk_undo_kind kind, struct qcow_error *err)
{
	struct qk_undo_record rec = {.kind = kind};

	QK_TRY(qk_undo_append(r->log, &r->at, r->record, &rec, err));
	return qcow_store_flush(r->log, err);
}

static enum qcow_status put_back(struct replay *r, struct qcow_error *err)
{
	struct qk_undo_record rec;
	uint64_t size = 0, n = 0;

	for (size_t i = r->n_places; i > 0; i--) {
		QK_TRY(qk_undo_load(r->log, r->places[i - 1], r->record, &rec, &n, err));
		if (n == 0)
			return QK_FAIL(err, QCOW_E_IO, "a record cannot be read again");
		QK_TRY(qcow_store_write(
			r->image, qk_undo_bytes(r->record), rec.n_bytes, rec.off, err));
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
	if (r->record == NULL || r->window == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(read_head(r, err));
	QK_TRY(scan(r, err));
	QK_TRY(judge(r, err));
	if (r->is_done)
		return QCOW_OK;
	if (!r->has_begun)
		QK_TRY(mark(r, QK_UNDO_BEGUN, err));
	QK_TRY(put_back(r, err));
	return mark(r, QK_UNDO_DONE, err);
}

enum qcow_status qk_undo_apply(
	struct qcow_store *image, struct qcow_store *log, struct qcow_error *err)
{
	struct replay r = {.image = image, .log = log};
	enum qcow_status status = replay(&r, err);

	free(r.places);
	free(r.states);
	free(r.record);
	free(r.window);
	return status;
}
