/* SPDX-License-Identifier: MIT */
/*
 * snapshot_table: the snapshot table in memory, entries as they are stored: what is not known stays byte for byte.
 * Writes nothing. Specification: "Snapshots".
 */
#include "engine/snapshot_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* The last entry has no end that is known; the longest one that is valid: 40 + 1024 + 2 * 65535 + 7. */
#define LAST_BYTES ((uint64_t)QK_KIB(192))

static enum qcow_status decode(
	struct qk_snaps *s, struct qk_reader *r, uint32_t n, struct qcow_error *err)
{
	s->v = qk_calloc(n + UINT64_C(1), sizeof(*s->v));
	if (s->v == NULL)
		return QK_FAIL_NOMEM(err);
	s->room = n + 1;
	for (; s->n < n; s->n++)
		if (!qk_snapshot_decode(r, &s->v[s->n]))
			return QK_FAIL(err, QCOW_E_CORRUPT,
				"entry %" PRIu32 " of the snapshot table changed meanwhile", s->n);
	return QCOW_OK;
}

enum qcow_status qk_snaps_load(
	struct qcow_image *image, struct qk_snaps *out, struct qcow_error *err)
{
	const struct qk_tablist *list = &image->snapshots;
	*out = (struct qk_snaps){0};
	if (list->is_bad) {
		if (err != NULL)
			*err = list->why;
		return QCOW_E_CORRUPT;
	}
	uint64_t bytes = list->n == 0 ? 0 : list->starts[list->n - 1] + LAST_BYTES;
	out->bytes = qk_malloc(bytes, 1);
	if (out->bytes == NULL)
		return QK_FAIL_NOMEM(err);
	if (bytes != 0)
		QK_TRY(qcow_store_read_padded(
			image->store, out->bytes, (size_t)bytes, list->off, err));
	struct qk_reader r = qk_reader_init(out->bytes, (size_t)bytes);
	QK_TRY(decode(out, &r, list->n, err));
	out->n_bytes = r.at;
	return QCOW_OK;
}

void qk_snaps_release(struct qk_snaps *s)
{
	free(s->bytes);
	free(s->v);
	*s = (struct qk_snaps){0};
}

/* ---- finding ---- */

static bool is_text(struct qk_span span, const char *text)
{
	size_t n = strlen(text);
	return span.n == n && (n == 0 || memcmp(span.p, text, n) == 0);
}

static bool look(const struct qk_snaps *s, const char *key, bool by_id, uint32_t *index)
{
	for (uint32_t i = 0; i < s->n; i++)
		if (is_text(by_id ? s->v[i].id : s->v[i].name, key)) {
			*index = i;
			return true;
		}
	return false;
}

enum qcow_status qk_snaps_find(const struct qk_snaps *s, const char *key,
	enum qcow_snapshot_key how, uint32_t *index, struct qcow_error *err)
{
	bool id_first = how == QCOW_SNAPSHOT_ID_OR_NAME || how == QCOW_SNAPSHOT_ID;
	bool has_second = how == QCOW_SNAPSHOT_ID_OR_NAME || how == QCOW_SNAPSHOT_NAME_OR_ID;
	if (look(s, key, id_first, index) || (has_second && look(s, key, !id_first, index)))
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_NOENT,
		"snapshot '%s' not found: the image has %" PRIu32 " snapshots", key, s->n);
}

/* The number that a text begins with; 0 where it begins with none. */
static uint64_t leading_number(struct qk_span text)
{
	uint64_t v = 0;
	for (size_t i = 0; i < text.n && text.p[i] >= '0' && text.p[i] <= '9'; i++) {
		unsigned digit = (unsigned)(text.p[i] - '0');
		if (v > (UINT64_MAX - 1 - digit) / 10)
			return UINT64_MAX - 1;
		v = v * 10 + digit;
	}
	return v;
}

uint64_t qk_snaps_next_id(const struct qk_snaps *s)
{
	uint64_t most = 0;
	for (uint32_t i = 0; i < s->n; i++)
		most = qk_max(most, leading_number(s->v[i].id));
	return most + 1;
}

/* ---- changing ---- */

enum qcow_status qk_snaps_add(
	struct qk_snaps *s, struct qk_snapshot_entry **out, struct qcow_error *err)
{
	if (s->n >= QK_MAX_SNAPSHOTS)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"the image has %" PRIu32 " snapshots, and "
			"there may be no more",
			s->n);
	/* the load made room for one */
	QK_ASSERT(SN1, s->n < s->room);
	*out = &s->v[s->n++];
	**out = (struct qk_snapshot_entry){0};
	return QCOW_OK;
}

void qk_snaps_remove(struct qk_snaps *s, uint32_t index)
{
	memmove(&s->v[index], &s->v[index + 1], (s->n - index - 1) * sizeof(*s->v));
	s->n--;
}
