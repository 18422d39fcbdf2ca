/* SPDX-License-Identifier: MIT */
/*
 * bitmap: see bitmap.h. A reader belongs to one thread; it shares nothing with other readers but the image,
 * of which it reads what never changes.
 *
 * Invariants: V1 a table entry is looked at only below table_entries, and table_entries is what the size of the
 * disk needs; V2 table[] holds entries table_base to table_base + table_n, data[] the bytes of the file from
 * data_off on; V3 stretches of bits begin with a byte.
 */
#include "engine/bitmap.h"

#include <inttypes.h>
#include <string.h>

#include "base/bits.h"
#include "base/bytes.h"
#include "base/mem.h"
#include "engine/image.h"
#include "engine/track.h"
#include "format/bitmapext.h"

#define TABLE_WINDOW 512U /* entries: 4 KiB */
#define DATA_BYTES   ((size_t)QK_KIB(64))
/* A call answers after that many bytes of bitmap data and table: somebody may want to stop. */
#define WORK_BYTES QK_MIB(16)
#define NOTHING	   UINT64_MAX

struct qcow_bitmap_reader {
	const struct qcow_image *image;
	const struct qk_track_bitmap *tracked; /* bits set since the open, or NULL */
	uint64_t size; /* of the disk */
	unsigned granularity_bits;
	uint64_t table_off;
	uint64_t table_entries;
	uint64_t table_base, table_n; /* what table[] holds */
	uint64_t data_off; /* what data[] holds, or NOTHING */
	uint8_t table[TABLE_WINDOW * 8];
	uint8_t data[DATA_BYTES];
};

/* A run of equal bits. */
struct stretch {
	uint64_t n_bits;
	uint64_t work; /* bytes that were looked at */
	bool is_dirty;
};

struct search {
	const char *name;
	bool found;
	uint32_t index;
};

static bool is_name(void *ctx, uint32_t index, const struct qcow_bitmap *b, unsigned finding)
{
	struct search *search = ctx;
	(void)finding;
	search->index = index;
	search->found = strcmp(b->name, search->name) == 0;
	return !search->found;
}

enum qcow_status qk_bitmap_find(
	struct qcow_image *image, const char *name, uint32_t *index, struct qcow_error *err)
{
	struct search search = {.name = name};
	QK_TRY(qk_bitmaps_each(image, is_name, &search, err));
	*index = search.index;
	if (search.found)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_NOENT,
		"bitmap '%s' not found: the image has %" PRIu32 " bitmaps that can be trusted",
		name, image->bitmaps.n);
}

/* Only content that is there, up to date and understood is worth an answer. */
static enum qcow_status judge(const struct qcow_image *image, uint32_t index,
	const struct qcow_bitmap *b, unsigned finding, struct qcow_error *err)
{
	uint64_t bytes = (uint64_t)b->table_entries * 8;
	if (b->in_use && qk_track_find(image, index) == NULL)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_BITMAP_INCONSISTENT,
			QCOW_NO_OFFSET, QCOW_NO_OFFSET,
			"bitmap '%s' is marked in use: it was not saved, and its content is not "
			"to be trusted",
			b->name);
	if (finding == 0 && !qk_in_range(b->table_offset, bytes, image->file_size))
		finding = QCOW_FINDING_BITMAP_TABLE;
	if (finding != 0)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, finding, b->table_offset, QCOW_NO_OFFSET,
			"bitmap '%s' (table of %" PRIu32 " entries at %" PRIu64
			", granularity 2^%" PRIu32 ") is damaged: %s",
			b->name, b->table_entries, b->table_offset, b->granularity_bits,
			qcow_finding_text(finding));
	if (b->extra_bytes != 0 && !b->extra_data_compatible)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"bitmap '%s' has %" PRIu32
			" bytes of extra data that nobody may ignore, and they are not known here",
			b->name, b->extra_bytes);
	return QCOW_OK;
}

enum qcow_status qk_bitmap_reader_on(struct qcow_image *image, const struct qk_bitmap_place *place,
	struct qcow_bitmap_reader **out, struct qcow_error *err)
{
	struct qcow_bitmap_reader *r = qk_calloc(1, sizeof(*r));
	if (r == NULL)
		return QK_FAIL_NOMEM(err);
	r->image = image;
	r->size = image->header.size;
	r->granularity_bits = place->granularity_bits;
	r->table_off = place->table_off;
	r->table_entries = place->table_entries;
	r->data_off = NOTHING;
	*out = r;
	return QCOW_OK;
}

struct opening {
	struct qcow_image *image;
	struct qcow_bitmap_reader *reader;
	enum qcow_status status;
	struct qcow_error *err;
};

static bool open_reader(void *ctx, uint32_t index, const struct qcow_bitmap *b, unsigned finding)
{
	struct opening *opening = ctx;
	opening->status = judge(opening->image, index, b, finding, opening->err);
	if (opening->status != QCOW_OK)
		return false;
	const struct qk_bitmap_place place = {
		b->granularity_bits, b->table_entries, b->table_offset};
	opening->status = qk_bitmap_reader_on(
		opening->image, &place, &opening->reader, opening->err);
	if (opening->status != QCOW_OK)
		return false;
	opening->reader->tracked = qk_track_find(opening->image, index);
	return false;
}

enum qcow_status qk_bitmap_reader_new(struct qcow_image *image, uint32_t index,
	struct qcow_bitmap_reader **out, struct qcow_error *err)
{
	struct opening opening = {.image = image, .err = err};
	QK_TRY(qk_bitmap_look(image, index, open_reader, &opening, err));
	if (opening.status == QCOW_OK)
		*out = opening.reader;
	return opening.status;
}

void qk_bitmap_reader_free(struct qcow_bitmap_reader *reader)
{
	free(reader);
}

static enum qcow_status load_entry(struct qcow_bitmap_reader *r, uint64_t index,
	struct qk_bitmap_table_entry *out, uint64_t *work, struct qcow_error *err)
{
	QK_ASSERT(V1, index < r->table_entries);
	if (index < r->table_base || index - r->table_base >= r->table_n) {
		uint64_t n = qk_min(TABLE_WINDOW, r->table_entries - index);
		r->table_n = 0;
		QK_TRY(qcow_store_read(
			r->image->store, r->table, n * 8, r->table_off + index * 8, err));
		r->table_base = index;
		r->table_n = n;
	}
	*work += 8;
	uint64_t raw = qk_load64(r->table + (index - r->table_base) * 8);
	*out = qk_bitmap_table_decode(&r->image->geometry, raw);
	if (out->finding == 0 && out->off.v >= r->image->file_size)
		out->finding = QCOW_FINDING_BITMAP_TABLE;
	if (out->finding == 0)
		return QCOW_OK;
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, out->finding, r->table_off + index * 8,
		QCOW_NO_OFFSET,
		"entry %" PRIu64 " of a bitmap table, 0x%" PRIx64
		", names no cluster of the file (%" PRIu64 " bytes)",
		index, raw, r->image->file_size);
}

/* Make the piece of data that holds bit `at` of the cluster visible; *base gets its first bit. */
static enum qcow_status load_data(struct qcow_bitmap_reader *r, qk_hoff cluster, uint64_t at,
	uint64_t *base, struct qcow_error *err)
{
	uint64_t piece = qk_min(DATA_BYTES, r->image->geometry.cluster_size);
	uint64_t off = cluster.v + qk_align_down(at / 8, piece);
	*base = (off - cluster.v) * 8;
	if (r->data_off == off)
		return QCOW_OK;
	r->data_off = NOTHING;
	QK_TRY(qcow_store_read_padded(r->image->store, r->data, piece, off, err));
	r->data_off = off;
	return QCOW_OK;
}

/* The run at `bit`, as far as one table entry and one piece of data show it. */
static enum qcow_status look(
	struct qcow_bitmap_reader *r, uint64_t bit, struct stretch *out, struct qcow_error *err)
{
	uint64_t cluster_size = r->image->geometry.cluster_size;
	uint64_t per_cluster = cluster_size * 8;
	uint64_t at = bit % per_cluster; /* in the cluster */
	uint64_t base = 0;
	struct qk_bitmap_table_entry e;

	out->work = 0;
	QK_TRY(load_entry(r, bit / per_cluster, &e, &out->work, err));
	if (e.off.v == 0) {
		out->is_dirty = e.all_ones;
		out->n_bits = per_cluster - at;
		return QCOW_OK;
	}
	QK_TRY(load_data(r, e.off, at, &base, err));
	at -= base;
	out->is_dirty = (r->data[at / 8] >> (at % 8) & 1) != 0;
	out->n_bits = qk_bits_find(
			      r->data, at, qk_min(DATA_BYTES, cluster_size) * 8, !out->is_dirty) -
		      at;
	out->work += out->n_bits / 8;
	return QCOW_OK;
}

/* The same, with the bits that were set since the image was opened for writing. */
static enum qcow_status look_merged(
	struct qcow_bitmap_reader *r, uint64_t bit, struct stretch *out, struct qcow_error *err)
{
	QK_TRY(look(r, bit, out, err));
	if (r->tracked == NULL || out->is_dirty)
		return QCOW_OK;
	uint64_t end = qk_min(bit + out->n_bits, r->tracked->n_bits);
	uint64_t n = qk_track_run(r->tracked, bit, end, &out->is_dirty);
	if (bit + n < end || out->is_dirty)
		out->n_bits = n;
	out->work += n / 8;
	return QCOW_OK;
}

enum qcow_status qk_bitmap_reader_next(struct qcow_bitmap_reader *reader, uint64_t off,
	uint64_t len, struct qcow_bitmap_extent *out, struct qcow_error *err)
{
	unsigned shift = reader->granularity_bits;
	struct stretch run = {0}, more = {0};

	if (len == 0 || !qk_in_range(off, len, reader->size))
		return QK_FAIL(err, QCOW_E_RANGE,
			"%" PRIu64 " bytes at %" PRIu64 " do not lie in a disk of %" PRIu64, len,
			off, reader->size);
	uint64_t bit = off >> shift;
	uint64_t end = ((off + len - 1) >> shift) + 1;
	QK_TRY(look_merged(reader, bit, &run, err));
	uint64_t work = run.work;
	for (bit += run.n_bits; bit < end && work < WORK_BYTES; bit += more.n_bits) {
		/* what comes before a damaged entry is an answer; the next call meets the damage */
		if (look_merged(reader, bit, &more, NULL) != QCOW_OK ||
			more.is_dirty != run.is_dirty)
			break;
		work += more.work;
	}
	/* the last bit may stand for more than the disk has; below it nothing overflows */
	uint64_t stop = bit >= end ? off + len : bit << shift;
	*out = (struct qcow_bitmap_extent){off, stop - off, run.is_dirty};
	return QCOW_OK;
}

/* ---- whole stretches of bits ---- */

static uint64_t count_bits(const struct qcow_bitmap_reader *r)
{
	return qk_div_up(r->size, UINT64_C(1) << r->granularity_bits);
}

unsigned qk_bitmap_reader_granularity(const struct qcow_bitmap_reader *r)
{
	return r->granularity_bits;
}

enum qcow_status qk_bitmap_reader_skip(
	struct qcow_bitmap_reader *r, uint64_t bit, uint64_t *out, struct qcow_error *err)
{
	uint64_t per_cluster = r->image->geometry.cluster_size * 8, n_bits = count_bits(r);
	uint64_t work = 0;
	for (; bit < n_bits; bit = (bit / per_cluster + 1) * per_cluster) {
		struct qk_bitmap_table_entry e;
		uint64_t end = qk_min((bit / per_cluster + 1) * per_cluster, n_bits);
		bool is_set = false;
		QK_TRY(load_entry(r, bit / per_cluster, &e, &work, err));
		if (e.off.v != 0 || e.all_ones)
			break;
		uint64_t run = r->tracked != NULL ? qk_track_run(r->tracked, bit, end, &is_set) : 0;
		if (is_set || (run != 0 && bit + run < end)) {
			bit += is_set ? 0 : run;
			break;
		}
	}
	*out = qk_min(bit, n_bits);
	return QCOW_OK;
}

/* Bits [bit, end), which one piece of data holds at most. *done: how many. */
static enum qcow_status or_piece(struct qcow_bitmap_reader *r, uint64_t bit, uint64_t end,
	uint8_t *p, uint64_t *done, struct qcow_error *err)
{
	uint64_t cluster_size = r->image->geometry.cluster_size, per_cluster = cluster_size * 8;
	uint64_t at = bit % per_cluster, base = 0, work = 0;
	struct qk_bitmap_table_entry e;
	QK_TRY(load_entry(r, bit / per_cluster, &e, &work, err));
	uint64_t n = qk_min(end - bit, per_cluster - at);
	if (e.off.v != 0) {
		QK_TRY(load_data(r, e.off, at, &base, err));
		n = qk_min(n, base + qk_min(DATA_BYTES, cluster_size) * 8 - at);
		qk_bits_or(p, r->data + (at - base) / 8, (size_t)(n / 8));
		if (n % 8 != 0)
			p[n / 8] = (uint8_t)(p[n / 8] | (r->data[(at - base + n) / 8] &
								((1U << (n % 8)) - 1)));
	} else if (e.all_ones) {
		qk_bits_set(p, 0, n);
	}
	*done = n;
	return QCOW_OK;
}

enum qcow_status qk_bitmap_reader_or(struct qcow_bitmap_reader *r, uint64_t first, uint64_t n,
	uint8_t *p, struct qcow_error *err)
{
	uint64_t end = qk_min(first + n, count_bits(r)), done = 0;
	QK_ASSERT(V3, first % 8 == 0);
	for (uint64_t bit = first; bit < end; bit += done)
		QK_TRY(or_piece(r, bit, end, p + (bit - first) / 8, &done, err));
	if (r->tracked != NULL && first < end)
		qk_track_or(r->tracked, first, end - first, p);
	return QCOW_OK;
}
