/* SPDX-License-Identifier: MIT */
/*
 * tablist: the snapshot table and the bitmap directory, which are alike: n entries of different lengths
 * one behind the other. The open walks them once in a bounded window and keeps where each entry starts;
 * an entry is read again, and its strings are copied, when somebody asks for it. So the memory of an open
 * does not grow with what a table holds. Specification: "Snapshots", "Bitmaps".
 */
#ifndef QK_ENGINE_TABLIST_H
#define QK_ENGINE_TABLIST_H

#include <pthread.h>
#include <qcowkit/qcowkit.h>

#include "base/bytes.h"

struct qcow_image;
struct qk_tablist_record;

struct qk_tablist {
	uint32_t n; /* entries that the header claims */
	bool is_bad; /* the table cannot be walked: no entry can be had */
	struct qcow_error why; /* … and why */
	uint64_t off; /* of the table in the store */
	uint32_t *starts; /* n offsets from off */
	pthread_mutex_t lock; /* guards records; lock 1 of doc/LOCKING.md */
	bool has_lock;
	struct qk_tablist_record **records; /* n, each made at its first use and then constant */
};

/* Walk the table of `image`. A table that cannot be walked makes list->is_bad and QCOW_OK; failures are
 * QCOW_E_NOMEM and QCOW_E_IO. */
enum qcow_status qk_snapshots_load(struct qcow_image *image, struct qcow_error *err);
enum qcow_status qk_bitmaps_load(struct qcow_image *image, struct qcow_error *err);

void qk_tablist_release(struct qk_tablist *list);
/* `to`, which holds nothing, becomes what `from` was. */
void qk_tablist_move(struct qk_tablist *to, struct qk_tablist *from);

/* Entry `index`: strings live until the image is closed. QCOW_E_RANGE, QCOW_E_CORRUPT (the list is bad),
 * QCOW_E_IO, QCOW_E_NOMEM. `finding` (or NULL) gets what is wrong with this entry alone, or 0. Any thread. */
enum qcow_status qk_snapshot_get(struct qcow_image *image, uint32_t index,
	struct qcow_snapshot *out, unsigned *finding, struct qcow_error *err);
enum qcow_status qk_bitmap_get(struct qcow_image *image, uint32_t index, struct qcow_bitmap *out,
	unsigned *finding, struct qcow_error *err);

/* Entry after entry, without keeping any: strings live during the call. `visit` returns false to stop. Errors as
 * above; the entries before a failure were visited. Any thread; `visit` may call what it likes. */
enum qcow_status qk_snapshots_each(struct qcow_image *image,
	bool (*visit)(void *ctx, uint32_t index, const struct qcow_snapshot *s, unsigned finding),
	void *ctx, struct qcow_error *err);
enum qcow_status qk_bitmaps_each(struct qcow_image *image,
	bool (*visit)(void *ctx, uint32_t index, const struct qcow_bitmap *b, unsigned finding),
	void *ctx, struct qcow_error *err);

/* The same for bitmap `index` alone. QCOW_E_RANGE too. */
enum qcow_status qk_bitmap_look(struct qcow_image *image, uint32_t index,
	bool (*visit)(void *ctx, uint32_t index, const struct qcow_bitmap *b, unsigned finding),
	void *ctx, struct qcow_error *err);

/* The snapshot that `key` means: by id, by name, or with neither flag by id first, then by name.
 * QCOW_E_NOENT and what qk_snapshot_get returns. */
enum qcow_status qk_snapshot_find(struct qcow_image *image, const char *key, bool by_id,
	bool by_name, struct qcow_snapshot *out, unsigned *finding, struct qcow_error *err);

#endif
