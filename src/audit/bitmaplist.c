/* SPDX-License-Identifier: MIT */
/*
 * bitmaplist: walks the bitmap directory through a window that holds the longest entry we accept.
 */
#include "audit/bitmaplist.h"

#include <stdlib.h>

#include "base/mem.h"
#include "format/bitmapext.h"

/* 24 bytes, a name of at most 65535, and extra data as long as anybody would store */
#define WINDOW_BYTES	    (256U * 1024U)
#define LONGEST_ENTRY_BYTES (128U * 1024U)
#define MAX_NAME_BYTES	    65535U

/* A name that was seen: 24 bytes for each of at most 65535 bitmaps. */
struct name {
	uint64_t hash;
	uint64_t off; /* in the file */
	uint32_t len, index;
};

struct walk {
	struct qk_audit *a;
	uint8_t *buf;
	uint64_t off, end; /* of buf[0] in the file; of the directory */
	size_t n, at;
	uint32_t index;
	struct name *names; /* one for each bitmap of the directory */
};

static void bad_directory(struct qk_audit *a, uint64_t off, uint32_t index, const char *why)
{
	uint32_t n = a->ext->bitmaps.n_bitmaps;

	qk_audit_report(a,
		&(struct qk_audit_note){
			QCOW_FINDING_BITMAP_DIRECTORY, off, QCOW_NO_OFFSET, index, n},
		"bitmap %u of %u: %s", index, n, why);
}

static bool fill(struct walk *w)
{
	if (w->n - w->at >= LONGEST_ENTRY_BYTES || (w->n != 0 && w->off + w->n >= w->end))
		return true;
	bool is_zero = false;
	w->off += w->at;
	w->at = 0;
	w->n = (size_t)qk_min(WINDOW_BYTES, w->end - w->off);
	if (!qk_audit_read(w->a, w->buf, w->n, w->off, &is_zero, "bitmap directory"))
		return false;
	if (is_zero)
		memset(w->buf, 0, w->n);
	return true;
}

static void judge(struct walk *w, const struct qk_bitmap_entry *e, struct qk_bitmap_table *t)
{
	struct qk_audit *a = w->a;
	uint64_t bytes = (uint64_t)e->table_entries * 8;

	t->finding = qk_bitmap_judge(a->geometry, a->header->size, e);
	if (t->finding == 0 && !qk_in_range(e->table_off.v, bytes, qk_audit_end(a)))
		t->finding = QCOW_FINDING_BITMAP_TABLE;
	if (t->finding != 0) {
		t->n_entries = 0;
		qk_audit_report(a,
			&(struct qk_audit_note){t->finding, t->entry_off, QCOW_NO_OFFSET,
				e->table_off.v, e->table_off.v},
			"bitmap %u: table of %u entries at 0x%llx, granularity 2^%u", t->index,
			e->table_entries, (unsigned long long)e->table_off.v, e->granularity_bits);
	}
	if ((e->flags & QK_BITMAP_IN_USE) != 0)
		qk_audit_report(a,
			&(struct qk_audit_note){QCOW_FINDING_BITMAP_INCONSISTENT, t->entry_off,
				QCOW_NO_OFFSET, e->flags, e->flags},
			"bitmap %u", t->index);
}

/* ---- names: each only once ---- */

static void note_name(struct walk *w, const struct qk_bitmap_entry *e, uint64_t entry_off)
{
	struct name *name = &w->names[w->index];

	*name = (struct name){.hash = UINT64_C(0xcbf29ce484222325), /* FNV-1a */
		.off = entry_off + QK_BITMAP_FIXED_BYTES + e->extra.n,
		.len = (uint32_t)e->name.n,
		.index = w->index};
	for (size_t i = 0; i < e->name.n; i++)
		name->hash = (name->hash ^ e->name.p[i]) * UINT64_C(0x100000001b3);
}

static int by_hash(const void *x, const void *y)
{
	const struct name *a = x, *b = y;

	if (a->hash != b->hash)
		return a->hash < b->hash ? -1 : 1;
	return a->index < b->index ? -1 : a->index > b->index;
}

/* The window is free by now and holds both. */
static bool is_same_name(struct walk *w, const struct name *a, const struct name *b)
{
	uint8_t *other = w->buf + MAX_NAME_BYTES;
	bool is_zero = false;

	if (a->len != b->len || !qk_audit_read(w->a, w->buf, a->len, a->off, &is_zero, "name"))
		return false;
	if (is_zero)
		memset(w->buf, 0, a->len);
	if (!qk_audit_read(w->a, other, b->len, b->off, &is_zero, "name"))
		return false;
	if (is_zero)
		memset(other, 0, b->len);
	return memcmp(w->buf, other, a->len) == 0;
}

static void judge_names(struct walk *w)
{
	qsort(w->names, w->index, sizeof(*w->names), by_hash);
	for (uint32_t i = 1; i < w->index; i++) {
		const struct name *a = &w->names[i - 1], *b = &w->names[i];
		if (a->hash == b->hash && is_same_name(w, a, b))
			qk_audit_report(w->a,
				&(struct qk_audit_note){QCOW_FINDING_BITMAP_DIRECTORY, b->off,
					QCOW_NO_OFFSET, b->index, b->index},
				"bitmap %u has the name of bitmap %u", b->index, a->index);
	}
}

/* The next bitmap; false where there is none that could be decoded. */
static bool next_bitmap(struct walk *w, struct qk_bitmap_table *t)
{
	struct qk_bitmap_entry e = {0};

	if (!fill(w))
		return false;
	struct qk_reader r = qk_reader_init(w->buf + w->at, w->n - w->at);
	*t = (struct qk_bitmap_table){.entry_off = w->off + w->at, .index = w->index};
	if (!qk_bitmap_decode(&r, &e)) {
		bad_directory(w->a, t->entry_off, w->index, "the entry runs past the directory");
		return false;
	}
	w->at += r.at;
	note_name(w, &e, t->entry_off);
	w->index++;
	t->off = e.table_off.v;
	t->n_entries = e.table_entries;
	judge(w, &e, t);
	return true;
}

static bool directory_is_usable(struct qk_audit *a)
{
	const struct qk_bitmaps_ext *b = &a->ext->bitmaps;
	const char *why = NULL;

	if (b->n_bitmaps == 0 || b->n_bitmaps > QK_MAX_BITMAPS)
		why = "the number of bitmaps is out of range";
	else if (b->directory_size == 0 || b->directory_size > QK_MAX_BITMAP_DIRECTORY_BYTES)
		why = "the size of the directory is out of range";
	else if (!qk_is_aligned(b->directory_off, a->geometry->cluster_size))
		why = "the directory is not aligned to clusters";
	else if (!qk_in_range(b->directory_off, b->directory_size, qk_audit_end(a)))
		why = "the directory lies beyond the end of the file";
	else if (qk_bitmaps_ext_judge(a->geometry, b) != 0)
		why = "the extension has a reserved field set, or a directory that cannot be one";
	if (why != NULL)
		bad_directory(a, b->directory_off, 0, why);
	return why == NULL;
}

enum qcow_status qk_bitmaplist_each(struct qk_audit *a, uint64_t *directory_bytes,
	enum qcow_status (*each)(
		void *ctx, const struct qk_bitmap_table *t, struct qcow_error *err),
	void *ctx, struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *buf = NULL;
	QK_AUTO_FREE struct name *names = NULL;
	struct qk_bitmap_table t = {0};

	*directory_bytes = 0;
	if (!qk_audit_has_bitmaps(a) || !directory_is_usable(a))
		return QCOW_OK;
	buf = qk_malloc(WINDOW_BYTES, 1);
	names = qk_calloc(a->ext->bitmaps.n_bitmaps, sizeof(*names));
	if (buf == NULL || names == NULL)
		return QK_FAIL_NOMEM(err);
	*directory_bytes = a->ext->bitmaps.directory_size;
	struct walk w = {.a = a, .buf = buf, .off = a->ext->bitmaps.directory_off, .names = names};
	w.end = w.off + *directory_bytes;
	while (w.index < a->ext->bitmaps.n_bitmaps && next_bitmap(&w, &t))
		QK_TRY(each(ctx, &t, err));
	if (w.index == a->ext->bitmaps.n_bitmaps && w.off + w.at != w.end)
		bad_directory(a, w.off + w.at, w.index, "the directory is longer than its entries");
	judge_names(&w);
	return QCOW_OK;
}
