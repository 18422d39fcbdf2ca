/* SPDX-License-Identifier: MIT */
/*
 * bitmap_write: what a persistent bitmap holds is changed in fresh clusters: a table of its own, data clusters where bits
 * were added, and those of the old table where not. The disk goes on naming the old table; who names the new one
 * drops what was replaced afterwards. Memory: three windows of a table and a few clusters, whatever the disk's size.
 * Specification: "Bitmap table", "Bitmap data".
 */
#ifndef QK_ENGINE_BITMAP_WRITE_H
#define QK_ENGINE_BITMAP_WRITE_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "engine/bitmap.h"
#include "engine/fresh.h"

/* A bitmap in the making. */
struct qk_bitmap_target {
	unsigned granularity_bits;
	uint32_t table_entries;
	uint64_t n_bits;
	uint64_t
		stable_off; /* the table that the disk names, which stays as it is with its data; 0: none */
	uint64_t
		table_off; /* the table with what it holds by now: stable_off, or a fresh one; 0: all clear */
};

/* Bits to be added, of the target's granularity. */
struct qk_bitmap_bits {
	/* The first bit from `bit` on that may be set; n_bits or more: none is. */
	enum qcow_status (*skip)(void *ctx, uint64_t bit, uint64_t *next, struct qcow_error *err);
	/* Or bits [first, first + n) into p; `first` is a multiple of 8, and n too unless the bitmap ends there. */
	enum qcow_status (*add)(
		void *ctx, uint64_t first, uint64_t n, uint8_t *p, struct qcow_error *err);
	void *ctx;
};

struct qk_bitmap_writer {
	struct qcow_image *image;
	struct qk_fresh *fresh;
	const struct qcow_progress *progress; /* asked whether to go on; or NULL */
	uint8_t *now, *stable; /* windows of tables */
	uint8_t *data, *more; /* a cluster each */
};

/* Fails with QCOW_E_NOMEM; released by the caller also then. */
enum qcow_status qk_bitmap_writer_init(struct qk_bitmap_writer *w, struct qcow_image *image,
	struct qk_fresh *fresh, struct qcow_error *err) QK_MUST_USE;
void qk_bitmap_writer_release(struct qk_bitmap_writer *w);

/* t |= bits. On success t->table_off is a fresh table. QCOW_E_CORRUPT (BITMAP_TABLE), QCOW_E_NOSPC, QCOW_E_CANCELLED,
 * QCOW_E_NOMEM, QCOW_E_IO; what was taken meanwhile is the caller's to give back. */
enum qcow_status qk_bitmap_write(struct qk_bitmap_writer *w, struct qk_bitmap_target *t,
	const struct qk_bitmap_bits *bits, struct qcow_error *err) QK_MUST_USE;

/* The bits that a reader answers, at the target's granularity: `bits` for qk_bitmap_write. */
struct qk_bitmap_copy {
	struct qcow_bitmap_reader *reader; /* of a disk of the same size */
	unsigned granularity_bits; /* of the target */
	uint8_t *part; /* scratch */
};
enum qcow_status qk_bitmap_copy_init(struct qk_bitmap_copy *copy, struct qcow_bitmap_reader *reader,
	unsigned granularity_bits, struct qcow_error *err) QK_MUST_USE;
void qk_bitmap_copy_release(struct qk_bitmap_copy *copy);
struct qk_bitmap_bits qk_bitmap_copy_bits(struct qk_bitmap_copy *copy);

/* A table that clears everything, in t->table_off. Errors as qk_bitmap_write. */
enum qcow_status qk_bitmap_write_clear(
	struct qk_bitmap_writer *w, struct qk_bitmap_target *t, struct qcow_error *err) QK_MUST_USE;

/* A table that is fresh is not wanted after all: it and its data become spare. t->table_off is stable_off again. */
enum qcow_status qk_bitmap_write_undo(
	struct qk_bitmap_writer *w, struct qk_bitmap_target *t, struct qcow_error *err) QK_MUST_USE;

/* Nothing names the table at `old_off` any more, that is stable: one reference less for it and for its data, but for what
 * the table at `now_off` (0: none), of as many entries, has at the same place. What cannot be dropped is a leak, and
 * logged. */
void qk_bitmap_drop(
	struct qcow_image *image, uint64_t old_off, uint64_t now_off, uint32_t table_entries);

/* The same for the directory that image->ext names, which nothing else does any more. */
void qk_bitmap_drop_directory(struct qcow_image *image);

#endif
