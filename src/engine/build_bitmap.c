/* SPDX-License-Identifier: MIT */
/*
 * build_bitmap: persistent bitmaps of a new image. A bitmap's table is taken when it begins and written a
 * window at a time, its data a cluster at a time; the directory is gathered in memory and written at the end.
 *
 *   | table of bitmap 0 | data | data | table of bitmap 1 | data ... | directory |
 *
 * Memory: a cluster, a window of 64 KiB, and the directory (at most 64 MiB, for bitmaps that somebody named).
 * Invariants: N1 `cursor` never goes back, every bit below it is decided; N2 the directory holds whole entries.
 * Specification: "Bitmaps".
 */
#include "engine/build.h"

#include <inttypes.h>
#include <string.h>

#include "base/bits.h"
#include "base/mem.h"
#include "format/bitmapext.h"

#define WINDOW_ENTRIES UINT64_C(8192)

/* ---- the directory ---- */

static uint64_t hash_name(const char *name, size_t n)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
	for (size_t i = 0; i < n; i++)
		h = (h ^ (uint8_t)name[i]) * UINT64_C(0x100000001b3);
	return h;
}

/* Is there an entry with this name? Names are compared only where hashes are equal. */
static bool has_name(const struct qk_build_bitmaps *m, const char *name, uint64_t hash)
{
	for (uint32_t i = 0; i < m->n; i++) {
		if (m->names[i].hash != hash)
			continue;
		struct qk_reader r = qk_reader_init(
			m->directory + m->names[i].at, m->directory_bytes - m->names[i].at);
		struct qk_bitmap_entry e;
		bool is_whole = qk_bitmap_decode(&r, &e);
		if (is_whole && e.name.n == strlen(name) && memcmp(e.name.p, name, e.name.n) == 0)
			return true;
	}
	return false;
}

/* Room for one more entry of `bytes`. */
static enum qcow_status grow(struct qk_build_bitmaps *m, uint64_t bytes, struct qcow_error *err)
{
	uint64_t need = m->directory_bytes + bytes;
	if (m->n == QK_MAX_BITMAPS || need > QK_MAX_BITMAP_DIRECTORY_BYTES)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"an image holds at most %u bitmaps and %" PRIu64 " bytes of directory",
			QK_MAX_BITMAPS, (uint64_t)QK_MAX_BITMAP_DIRECTORY_BYTES);
	if (need > m->directory_room) {
		uint64_t room = qk_max(need, m->directory_room * 2);
		uint8_t *directory = qk_realloc(m->directory, room, 1);
		if (directory == NULL)
			return QK_FAIL_NOMEM(err);
		m->directory = directory;
		m->directory_room = room;
	}
	if (m->n == m->names_room) {
		uint32_t room = m->names_room == 0 ? 16 : m->names_room * 2;
		struct qk_build_bitmap_name *names = qk_realloc(m->names, room, sizeof(*names));
		if (names == NULL)
			return QK_FAIL_NOMEM(err);
		m->names = names;
		m->names_room = room;
	}
	return QCOW_OK;
}

static void add_entry(struct qcow_builder *b, const struct qcow_bitmap_options *o)
{
	struct qk_build_bitmaps *m = &b->bitmaps;
	struct qk_bitmap_entry e = {.table_off = {m->table_off},
		.table_entries = (uint32_t)m->table_entries,
		.flags = o->is_auto ? QK_BITMAP_AUTO : 0,
		.type = 1,
		.granularity_bits = (uint8_t)o->granularity_bits,
		.name = {(const uint8_t *)o->name, strlen(o->name)}};
	uint64_t bytes = qk_bitmap_entry_bytes(0, e.name.n);

	struct qk_writer w = qk_writer_init(m->directory + m->directory_bytes, bytes);
	qk_bitmap_encode(&w, &e);
	QK_ASSERT_VOID(N2, !w.bad && w.at == bytes);
	m->names[m->n++] = (struct qk_build_bitmap_name){
		hash_name(o->name, e.name.n), m->directory_bytes};
	m->directory_bytes += bytes;
}

/* ---- table and data ---- */

static enum qcow_status write_window(struct qcow_builder *b, struct qcow_error *err)
{
	struct qk_build_bitmaps *m = &b->bitmaps;
	uint64_t n = qk_min(WINDOW_ENTRIES, m->table_entries - m->window);

	if (!m->window_is_dirty)
		return QCOW_OK;
	QK_TRY(qcow_store_write(b->store, m->table, n * 8, m->table_off + m->window * 8, err));
	memset(m->table, 0, WINDOW_ENTRIES * 8);
	m->window_is_dirty = false;
	return QCOW_OK;
}

static enum qcow_status set_entry(
	struct qcow_builder *b, uint64_t index, uint64_t raw, struct qcow_error *err)
{
	struct qk_build_bitmaps *m = &b->bitmaps;

	if (index - m->window >= WINDOW_ENTRIES) {
		QK_TRY(write_window(b, err));
		m->window = qk_align_down(index, WINDOW_ENTRIES);
	}
	qk_store64(m->table + (index - m->window) * 8, raw);
	m->window_is_dirty = true;
	return QCOW_OK;
}

/* The cluster of data that is being filled, if any, is complete. */
static enum qcow_status write_data(struct qcow_builder *b, struct qcow_error *err)
{
	struct qk_build_bitmaps *m = &b->bitmaps;
	qk_hoff off = {0};

	if (m->data_idx == QK_BUILD_NONE)
		return QCOW_OK;
	QK_TRY(qk_build_refs_take(&b->refs, 1, &off, err));
	QK_TRY(qcow_store_write(b->store, m->data, b->g.cluster_size, off.v, err));
	QK_TRY(set_entry(b, m->data_idx, qk_bitmap_table_encode(off, false), err));
	memset(m->data, 0, b->g.cluster_size);
	m->data_idx = QK_BUILD_NONE;
	return QCOW_OK;
}

/* Bits [at, end) of the data cluster `index`. A whole cluster of ones is an entry without data. */
static enum qcow_status mark(
	struct qcow_builder *b, uint64_t index, uint64_t at, uint64_t end, struct qcow_error *err)
{
	struct qk_build_bitmaps *m = &b->bitmaps;

	if (index != m->data_idx)
		QK_TRY(write_data(b, err));
	if (at == 0 && end == b->g.cluster_size * 8)
		return set_entry(b, index, qk_bitmap_table_encode((qk_hoff){0}, true), err);
	m->data_idx = index;
	qk_bits_set(m->data, at, end);
	return QCOW_OK;
}

/* ---- the calls ---- */

static enum qcow_status end_bitmap(struct qcow_builder *b, struct qcow_error *err)
{
	if (!b->bitmaps.is_open)
		return QCOW_OK;
	QK_TRY(write_data(b, err));
	QK_TRY(write_window(b, err));
	b->bitmaps.is_open = false;
	return QCOW_OK;
}

static enum qcow_status check_options(
	struct qcow_builder *b, const struct qcow_bitmap_options *o, struct qcow_error *err)
{
	size_t n = strlen(o->name);

	if (b->g.version < 3)
		return QK_FAIL(err, QCOW_E_INVAL,
			"bitmaps need compatibility level 1.1 or above (version 3)");
	if (b->size == 0)
		return QK_FAIL(err, QCOW_E_INVAL, "a disk of 0 bytes has no bitmaps");
	if (n == 0 || n > QK_MAX_WRITTEN_BITMAP_NAME)
		return QK_FAIL(err, QCOW_E_INVAL, "a bitmap's name has 1 to %u bytes, not %zu",
			QK_MAX_WRITTEN_BITMAP_NAME, n);
	if (o->granularity_bits < QK_MIN_WRITTEN_GRANULARITY_BITS ||
		o->granularity_bits > QK_MAX_WRITTEN_GRANULARITY_BITS)
		return QK_FAIL(err, QCOW_E_INVAL,
			"the granularity of bitmap '%s' is 2^%" PRIu32
			" bytes: 512 bytes to 2 GiB can be written",
			o->name, o->granularity_bits);
	if (has_name(&b->bitmaps, o->name, hash_name(o->name, n)))
		return QK_FAIL(err, QCOW_E_EXIST, "there is a bitmap '%s' already", o->name);
	uint64_t bytes = qk_bitmap_table_entries(&b->g, b->size, o->granularity_bits) * 8;
	if (bytes > QK_MAX_BITMAP_TABLE_BYTES)
		return QK_FAIL(err, QCOW_E_LIMIT,
			"bitmap '%s' needs a table of %" PRIu64 " bytes, over %" PRIu64, o->name,
			bytes, (uint64_t)QK_MAX_BITMAP_TABLE_BYTES);
	return QCOW_OK;
}

static enum qcow_status prepare(struct qcow_builder *b, struct qcow_error *err)
{
	struct qk_build_bitmaps *m = &b->bitmaps;

	m->data_idx = QK_BUILD_NONE;
	if (m->table == NULL)
		m->table = qk_calloc(WINDOW_ENTRIES, 8);
	if (m->data == NULL)
		m->data = qk_calloc(1, b->g.cluster_size);
	return m->table != NULL && m->data != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

enum qcow_status qk_build_bitmap_begin(
	struct qcow_builder *b, const struct qcow_bitmap_options *o, struct qcow_error *err)
{
	struct qk_build_bitmaps *m = &b->bitmaps;
	qk_hoff table = {0};

	if (b->is_luks)
		return QK_FAIL(err, QCOW_E_INVAL, "a LUKS file holds no bitmaps");
	QK_TRY(end_bitmap(b, err));
	QK_TRY(check_options(b, o, err));
	QK_TRY(prepare(b, err));
	QK_TRY(grow(m, qk_bitmap_entry_bytes(0, strlen(o->name)), err));
	uint64_t n = qk_bitmap_table_entries(&b->g, b->size, o->granularity_bits);
	QK_TRY(qk_build_refs_take(&b->refs, qk_div_up(n * 8, b->g.cluster_size), &table, err));
	if (!b->zeroed)
		QK_TRY(qcow_store_zero(b->store, table.v, n * 8, 0, err));
	m->table_off = table.v;
	m->table_entries = n;
	m->granularity_bits = o->granularity_bits;
	m->window = 0;
	m->cursor = 0;
	add_entry(b, o);
	m->is_open = true;
	return QCOW_OK;
}

enum qcow_status qk_build_bitmap_dirty(
	struct qcow_builder *b, qk_goff off, uint64_t len, struct qcow_error *err)
{
	struct qk_build_bitmaps *m = &b->bitmaps;
	uint64_t per_cluster = b->g.cluster_size * 8;

	if (!m->is_open)
		return QK_FAIL(err, QCOW_E_INVAL, "no bitmap was begun");
	if (len == 0 || !qk_in_range(off.v, len, b->size))
		return QK_FAIL(err, QCOW_E_RANGE,
			"%" PRIu64 " bytes at %" PRIu64 " do not lie in a disk of %" PRIu64, len,
			off.v, b->size);
	uint64_t bit = off.v >> m->granularity_bits;
	uint64_t end = ((off.v + len - 1) >> m->granularity_bits) + 1;
	if (end < m->cursor)
		return QK_FAIL(err, QCOW_E_INVAL,
			"%" PRIu64 " dirty bytes at %" PRIu64 " come after later ones", len, off.v);
	for (bit = qk_max(bit, m->cursor); bit < end;) {
		uint64_t at = bit % per_cluster;
		uint64_t n = qk_min(end - bit, per_cluster - at);
		QK_TRY(mark(b, bit / per_cluster, at, at + n, err));
		bit += n;
	}
	m->cursor = end;
	return QCOW_OK;
}

enum qcow_status qk_build_bitmaps_finish(
	struct qcow_builder *b, struct qk_bitmaps_ext *out, struct qcow_error *err)
{
	struct qk_build_bitmaps *m = &b->bitmaps;
	qk_hoff off = {0};

	QK_TRY(end_bitmap(b, err));
	if (m->n == 0)
		return QCOW_OK;
	QK_TRY(qk_build_refs_take(
		&b->refs, qk_div_up(m->directory_bytes, b->g.cluster_size), &off, err));
	QK_TRY(qcow_store_write(b->store, m->directory, m->directory_bytes, off.v, err));
	*out = (struct qk_bitmaps_ext){
		.n_bitmaps = m->n, .directory_size = m->directory_bytes, .directory_off = off.v};
	return QCOW_OK;
}

void qk_build_bitmaps_release(struct qk_build_bitmaps *m)
{
	free(m->directory);
	free(m->names);
	free(m->table);
	free(m->data);
}
