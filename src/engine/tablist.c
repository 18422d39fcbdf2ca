/* SPDX-License-Identifier: MIT */
/*
 * tablist: see tablist.h. Owns the lists of an image; never looks at an L1 table or a bitmap's data.
 *
 * Invariants: T1 starts[i] and the fixed part behind it lie within the file; T2 a record, once made,
 * never changes and is freed by the release alone.
 * Locking: list->lock guards records; no other lock is taken under it, reads happen under it.
 */
#include "engine/tablist.h"

#include <inttypes.h>

#include "base/mem.h"
#include "engine/image.h"
#include "format/bitmapext.h"

/* Holds the longest entry that can be valid: 40 + 1024 + 2 * 65535 + 7 bytes is 132141. */
#define WINDOW_BYTES ((size_t)QK_KIB(192))

struct qk_tablist_record {
	unsigned finding;
	union {
		struct qcow_snapshot snapshot;
		struct qcow_bitmap bitmap;
	} u;
	char strings[]; /* id and name, NUL terminated each, then the extra data */
};

/* How the two tables differ. */
struct kind {
	const char *what;
	unsigned finding;
	uint64_t max_bytes;
	bool has_size; /* the image says how long the table is, and the entries must fill it */
	/* Step the reader over one entry; false where it overruns. */
	bool (*skip)(struct qk_reader *r, uint64_t *used);
	struct qk_tablist_record *(*make)(const struct qcow_image *image, struct qk_reader *r);
};

static bool skip_snapshot(struct qk_reader *r, uint64_t *used)
{
	struct qk_snapshot_entry e;
	if (!qk_snapshot_decode(r, &e))
		return false;
	*used = QK_SNAPSHOT_FIXED_BYTES + (uint64_t)e.extra.n + e.id.n + e.name.n;
	return true;
}

static bool skip_bitmap(struct qk_reader *r, uint64_t *used)
{
	struct qk_bitmap_entry e;
	if (!qk_bitmap_decode(r, &e))
		return false;
	*used = QK_BITMAP_FIXED_BYTES + (uint64_t)e.extra.n + e.name.n;
	return true;
}

/* Copy `s` behind *at with a NUL and step over it. */
static char *put_string(char **at, struct qk_span s)
{
	char *start = *at;
	if (s.n != 0)
		memcpy(start, s.p, s.n);
	start[s.n] = '\0';
	*at += s.n + 1;
	return start;
}

static struct qk_tablist_record *make_snapshot(const struct qcow_image *image, struct qk_reader *r)
{
	struct qk_snapshot_entry e;
	if (!qk_snapshot_decode(r, &e))
		return NULL;
	struct qk_tablist_record *rec = qk_calloc(
		sizeof(*rec) + e.id.n + e.name.n + e.extra.n + 3, 1);
	if (rec == NULL)
		return NULL;
	char *at = rec->strings;
	rec->finding = qk_snapshot_judge(&image->geometry, &e);
	rec->u.snapshot = (struct qcow_snapshot){
		.id = put_string(&at, e.id),
		.name = put_string(&at, e.name),
		.id_bytes = e.id.n,
		.name_bytes = e.name.n,
		.l1_offset = e.l1_off.v,
		.l1_entries = e.l1_entries,
		.date_sec = e.date_sec,
		.date_nsec = e.date_nsec,
		.vm_clock_nsec = e.vm_clock_nsec,
		.vm_state_size = e.has_vm_state_size64 ? e.vm_state_size64 : e.vm_state_size32,
		.disk_size = e.has_disk_size ? e.disk_size : image->header.size,
		.has_disk_size = e.has_disk_size,
		.icount = e.has_icount ? e.icount : UINT64_MAX,
		.extra = (const uint8_t *)put_string(&at, e.extra),
		.extra_bytes = (uint32_t)e.extra.n,
	};
	return rec;
}

static struct qk_tablist_record *make_bitmap(const struct qcow_image *image, struct qk_reader *r)
{
	struct qk_bitmap_entry e;
	if (!qk_bitmap_decode(r, &e))
		return NULL;
	struct qk_tablist_record *rec = qk_calloc(sizeof(*rec) + e.name.n + 1, 1);
	if (rec == NULL)
		return NULL;
	char *at = rec->strings;
	rec->finding = qk_bitmap_judge(&image->geometry, image->header.size, &e);
	rec->u.bitmap = (struct qcow_bitmap){
		.name = put_string(&at, e.name),
		.granularity_bits = e.granularity_bits,
		.in_use = (e.flags & QK_BITMAP_IN_USE) != 0,
		.is_auto = (e.flags & QK_BITMAP_AUTO) != 0,
		.extra_data_compatible = (e.flags & QK_BITMAP_EXTRA_COMPATIBLE) != 0,
		.flags = e.flags,
		.table_offset = e.table_off.v,
		.table_entries = e.table_entries,
		.extra_bytes = (uint32_t)e.extra.n,
	};
	return rec;
}

static const struct kind snapshot_kind = {"snapshot table", QCOW_FINDING_SNAPSHOT_TABLE,
	QK_MAX_SNAPSHOT_TABLE_BYTES, false, skip_snapshot, make_snapshot};
static const struct kind bitmap_kind = {"bitmap directory", QCOW_FINDING_BITMAP_DIRECTORY,
	QK_MAX_BITMAP_DIRECTORY_BYTES, true, skip_bitmap, make_bitmap};

/* A stretch of the store in memory; past the end of the file it holds zeros. */
struct window {
	uint8_t *p;
	uint64_t off;
	size_t n;
};

/* Make [off, off + most) visible, as far as the file goes; most <= WINDOW_BYTES. */
static enum qcow_status refill(const struct qcow_image *image, struct window *w, uint64_t off,
	uint64_t most, struct qcow_error *err)
{
	/* Up to 7 bytes of padding of the last entry may lie past the end of the file. */
	uint64_t left = off < image->file_size ? image->file_size - off + 7 : 0;
	w->off = off;
	w->n = (size_t)qk_min(left, most);
	return w->n == 0 ? QCOW_OK : qcow_store_read_padded(image->store, w->p, w->n, off, err);
}

/* Step over entry `i` at off; *next gets the offset of the one behind it. */
static enum qcow_status step(const struct qcow_image *image, const struct kind *kind,
	struct window *w, uint64_t *off, struct qcow_error *err)
{
	for (int attempt = 0; attempt < 2; attempt++) {
		if (*off >= w->off && *off - w->off <= w->n) {
			size_t at = (size_t)(*off - w->off);
			struct qk_reader r = qk_reader_init(w->p + at, w->n - at);
			uint64_t used = 0;
			if (kind->skip(&r, &used) && qk_in_range(*off, used, image->file_size)) {
				*off += r.at;
				return QCOW_OK;
			}
		}
		if (attempt == 0)
			QK_TRY(refill(image, w, *off, WINDOW_BYTES, err));
	}
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, kind->finding, *off, QCOW_NO_OFFSET,
		"an entry of the %s at %" PRIu64 " overruns the file (%" PRIu64
		" bytes) or is longer than any valid one",
		kind->what, *off, image->file_size);
}

/* Fill list->starts. QCOW_E_CORRUPT where the table cannot be walked. */
static enum qcow_status walk(const struct qcow_image *image, struct qk_tablist *list,
	const struct kind *kind, uint64_t end, struct qcow_error *err)
{
	uint8_t *buffer QK_AUTO_FREE = qk_malloc(WINDOW_BYTES, 1);
	if (buffer == NULL)
		return QK_FAIL_NOMEM(err);
	struct window w = {.p = buffer, .off = list->off};
	uint64_t off = list->off;
	for (uint32_t i = 0; i < list->n; i++) {
		list->starts[i] = (uint32_t)(off - list->off);
		QK_TRY(step(image, kind, &w, &off, err));
		if (off > end)
			return QK_FAIL_AT(err, QCOW_E_CORRUPT, kind->finding, list->off,
				QCOW_NO_OFFSET,
				"entry %" PRIu32 " of %" PRIu32 " of the %s ends at %" PRIu64
				", past the end of the table at %" PRIu64,
				i, list->n, kind->what, off, end);
	}
	if (kind->has_size && off != end)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, kind->finding, list->off, QCOW_NO_OFFSET,
			"the %" PRIu32 " entries of the %s end at %" PRIu64
			", the table at %" PRIu64,
			list->n, kind->what, off, end);
	return QCOW_OK;
}

static enum qcow_status load(struct qcow_image *image, struct qk_tablist *list,
	const struct kind *kind, uint64_t max_bytes, struct qcow_error *err)
{
	if (list->n == 0)
		return QCOW_OK;
	if (pthread_mutex_init(&list->lock, NULL) != 0)
		return QK_FAIL_NOMEM(err);
	list->has_lock = true;
	uint64_t end = 0;
	/* every entry takes at least its fixed part: a claim that the file cannot hold is not allocated */
	uint64_t least = (uint64_t)list->n * QK_BITMAP_FIXED_BYTES;
	if (max_bytes > kind->max_bytes || !qk_add(list->off, max_bytes, &end) ||
		!qk_in_range(list->off, least, image->file_size)) {
		list->is_bad = true;
		(void)QK_FAIL_AT(&list->why, QCOW_E_CORRUPT, kind->finding, list->off,
			QCOW_NO_OFFSET,
			"the %s of %" PRIu32 " entries at %" PRIu64
			" does not fit the file (%" PRIu64 " bytes) or the limit of %" PRIu64
			" bytes",
			kind->what, list->n, list->off, image->file_size, kind->max_bytes);
		return QCOW_OK;
	}
	list->starts = qk_calloc(list->n, sizeof(*list->starts));
	list->records = qk_calloc(list->n, sizeof(struct qk_tablist_record *));
	if (list->starts == NULL || list->records == NULL)
		return QK_FAIL_NOMEM(err);
	enum qcow_status status = walk(image, list, kind, end, &list->why);
	list->is_bad = status != QCOW_OK;
	if (status == QCOW_E_CORRUPT || status == QCOW_OK)
		return QCOW_OK;
	if (err != NULL)
		*err = list->why;
	return status;
}

enum qcow_status qk_snapshots_load(struct qcow_image *image, struct qcow_error *err)
{
	image->snapshots.n = image->header.n_snapshots;
	image->snapshots.off = image->header.snapshots_off;
	return load(image, &image->snapshots, &snapshot_kind, QK_MAX_SNAPSHOT_TABLE_BYTES, err);
}

enum qcow_status qk_bitmaps_load(struct qcow_image *image, struct qcow_error *err)
{
	if (!image->ext.has_bitmaps || (image->header.autoclear & QCOW_AUTOCLEAR_BITMAPS) == 0)
		return QCOW_OK;
	image->bitmaps.n = image->ext.bitmaps.n_bitmaps;
	image->bitmaps.off = image->ext.bitmaps.directory_off;
	if (qk_bitmaps_ext_judge(&image->geometry, &image->ext.bitmaps) != 0) {
		image->bitmaps.is_bad = true;
		(void)QK_FAIL_AT(&image->bitmaps.why, QCOW_E_CORRUPT, bitmap_kind.finding,
			image->bitmaps.off, QCOW_NO_OFFSET,
			"the bitmaps extension names %" PRIu32 " bitmaps in %" PRIu64
			" bytes at %" PRIu64 ", with %" PRIu32
			" in its reserved field: no such directory can be",
			image->bitmaps.n, image->ext.bitmaps.directory_size, image->bitmaps.off,
			image->ext.bitmaps.reserved);
		return QCOW_OK;
	}
	return load(image, &image->bitmaps, &bitmap_kind, image->ext.bitmaps.directory_size, err);
}

void qk_tablist_release(struct qk_tablist *list)
{
	for (uint32_t i = 0; list->records != NULL && i < list->n; i++)
		free(list->records[i]);
	free(list->records);
	free(list->starts);
	if (list->has_lock)
		(void)pthread_mutex_destroy(&list->lock);
	*list = (struct qk_tablist){0};
}

void qk_tablist_move(struct qk_tablist *to, struct qk_tablist *from)
{
	*to = *from;
	if (from->has_lock) {
		/* neither can fail with default attributes on the platforms that we build for */
		(void)pthread_mutex_destroy(&from->lock);
		(void)pthread_mutex_init(&to->lock, NULL);
	}
	*from = (struct qk_tablist){0};
}

/* Read entry `index` and make its record. */
static enum qcow_status make_record(const struct qcow_image *image, const struct qk_tablist *list,
	const struct kind *kind, uint32_t index, struct qk_tablist_record **out,
	struct qcow_error *err)
{
	uint64_t off = list->off + list->starts[index];
	/* up to the next entry: a table may have 65536 of them, and somebody asks for each */
	bool is_last = index + 1 == list->n;
	uint64_t most = is_last ? WINDOW_BYTES : list->starts[index + 1] - list->starts[index];
	uint8_t *buffer QK_AUTO_FREE = qk_malloc(most, 1);
	if (buffer == NULL)
		return QK_FAIL_NOMEM(err);
	struct window w = {.p = buffer};
	QK_TRY(refill(image, &w, off, most, err));
	struct qk_reader r = qk_reader_init(w.p, w.n);
	*out = kind->make(image, &r);
	if (*out == NULL && r.bad)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, kind->finding, off, QCOW_NO_OFFSET,
			"entry %" PRIu32 " of the %s changed while the image was open", index,
			kind->what);
	return *out != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

/* The table could not be walked: the failure of that. */
static enum qcow_status fail_as_list(const struct qk_tablist *list, struct qcow_error *err)
{
	if (err != NULL)
		*err = list->why;
	return QCOW_E_CORRUPT;
}

static enum qcow_status get_record(const struct qcow_image *image, struct qk_tablist *list,
	const struct kind *kind, uint32_t index, struct qcow_error *err)
{
	if (index >= list->n)
		return QK_FAIL(err, QCOW_E_RANGE,
			"entry %" PRIu32 " of a %s of %" PRIu32 " entries", index, kind->what,
			list->n);
	if (list->is_bad)
		return fail_as_list(list, err);
	(void)pthread_mutex_lock(&list->lock);
	enum qcow_status status = list->records[index] != NULL
					  ? QCOW_OK
					  : make_record(image, list, kind, index,
						    &list->records[index], err);
	(void)pthread_mutex_unlock(&list->lock);
	return status;
}

enum qcow_status qk_snapshot_get(struct qcow_image *image, uint32_t index,
	struct qcow_snapshot *out, unsigned *finding, struct qcow_error *err)
{
	QK_TRY(get_record(image, &image->snapshots, &snapshot_kind, index, err));
	const struct qk_tablist_record *rec = image->snapshots.records[index];
	*out = rec->u.snapshot;
	if (finding != NULL)
		*finding = rec->finding;
	return QCOW_OK;
}

enum qcow_status qk_bitmap_get(struct qcow_image *image, uint32_t index, struct qcow_bitmap *out,
	unsigned *finding, struct qcow_error *err)
{
	QK_TRY(get_record(image, &image->bitmaps, &bitmap_kind, index, err));
	const struct qk_tablist_record *rec = image->bitmaps.records[index];
	*out = rec->u.bitmap;
	if (finding != NULL)
		*finding = rec->finding;
	return QCOW_OK;
}

struct each {
	bool (*visit)(struct each *each, uint32_t index, const struct qk_tablist_record *rec);
	bool (*snapshot)(
		void *ctx, uint32_t index, const struct qcow_snapshot *s, unsigned finding);
	bool (*bitmap)(void *ctx, uint32_t index, const struct qcow_bitmap *b, unsigned finding);
	void *ctx;
};

static bool visit_snapshot(struct each *each, uint32_t index, const struct qk_tablist_record *rec)
{
	return each->snapshot(each->ctx, index, &rec->u.snapshot, rec->finding);
}

static bool visit_bitmap(struct each *each, uint32_t index, const struct qk_tablist_record *rec)
{
	return each->bitmap(each->ctx, index, &rec->u.bitmap, rec->finding);
}

/* Entries [first, last) */
static enum qcow_status each_record(const struct qcow_image *image, const struct qk_tablist *list,
	const struct kind *kind, uint32_t first, uint32_t last, struct each *each,
	struct qcow_error *err)
{
	if (first < last && list->is_bad)
		return fail_as_list(list, err);
	for (uint32_t i = first; i < last; i++) {
		struct qk_tablist_record *rec = NULL;
		QK_TRY(make_record(image, list, kind, i, &rec, err));
		bool goes_on = each->visit(each, i, rec);
		free(rec);
		if (!goes_on)
			break;
	}
	return QCOW_OK;
}

enum qcow_status qk_snapshots_each(struct qcow_image *image,
	bool (*visit)(void *ctx, uint32_t index, const struct qcow_snapshot *s, unsigned finding),
	void *ctx, struct qcow_error *err)
{
	const struct qk_tablist *list = &image->snapshots;
	struct each each = {.visit = visit_snapshot, .snapshot = visit, .ctx = ctx};
	return each_record(image, list, &snapshot_kind, 0, list->n, &each, err);
}

enum qcow_status qk_bitmaps_each(struct qcow_image *image,
	bool (*visit)(void *ctx, uint32_t index, const struct qcow_bitmap *b, unsigned finding),
	void *ctx, struct qcow_error *err)
{
	const struct qk_tablist *list = &image->bitmaps;
	struct each each = {.visit = visit_bitmap, .bitmap = visit, .ctx = ctx};
	return each_record(image, list, &bitmap_kind, 0, list->n, &each, err);
}

enum qcow_status qk_bitmap_look(struct qcow_image *image, uint32_t index,
	bool (*visit)(void *ctx, uint32_t index, const struct qcow_bitmap *b, unsigned finding),
	void *ctx, struct qcow_error *err)
{
	const struct qk_tablist *list = &image->bitmaps;
	struct each each = {.visit = visit_bitmap, .bitmap = visit, .ctx = ctx};
	if (index >= list->n)
		return QK_FAIL(err, QCOW_E_RANGE, "bitmap %" PRIu32 " of an image with %" PRIu32,
			index, list->n);
	return each_record(image, list, &bitmap_kind, index, index + 1, &each, err);
}

struct search {
	const char *key;
	bool by_id, found;
	uint32_t index;
};

static bool is_key(void *ctx, uint32_t index, const struct qcow_snapshot *s, unsigned finding)
{
	struct search *search = ctx;
	size_t n = search->by_id ? s->id_bytes : s->name_bytes;
	(void)finding;
	search->index = index;
	search->found = strlen(search->key) == n &&
			memcmp(search->key, search->by_id ? s->id : s->name, n) == 0;
	return !search->found;
}

enum qcow_status qk_snapshot_find(struct qcow_image *image, const char *key, bool by_id,
	bool by_name, struct qcow_snapshot *out, unsigned *finding, struct qcow_error *err)
{
	for (int pass = 0; pass < 2; pass++) {
		struct search search = {.key = key, .by_id = pass == 0};
		if (search.by_id ? (by_name && !by_id) : (by_id && !by_name))
			continue;
		QK_TRY(qk_snapshots_each(image, is_key, &search, err));
		if (search.found)
			return qk_snapshot_get(image, search.index, out, finding, err);
	}
	return QK_FAIL(err, QCOW_E_NOENT,
		"snapshot '%s' not found: the image has %" PRIu32 " snapshots", key,
		image->snapshots.n);
}
