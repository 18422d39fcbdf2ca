/* SPDX-License-Identifier: MIT */
/*
 * bitmaplist: the bitmap directory, entry by entry. Specification: "Bitmaps".
 */
#ifndef QK_AUDIT_BITMAPLIST_H
#define QK_AUDIT_BITMAPLIST_H

#include "audit/audit.h"

struct qk_bitmap_table {
	uint64_t entry_off; /* of the directory entry */
	uint64_t off, n_entries; /* 0 entries where the table cannot be used */
	uint32_t index;
	unsigned finding;
};

/*
 * Read the directory through a bounded window and call `each` for every bitmap, until it fails. What is
 * wrong is reported. Does nothing where the image has no (trusted) bitmaps.
 * *directory_bytes: of the file that the directory takes, 0 where it cannot be used.
 */
enum qcow_status qk_bitmaplist_each(struct qk_audit *a, uint64_t *directory_bytes,
	enum qcow_status (*each)(
		void *ctx, const struct qk_bitmap_table *t, struct qcow_error *err),
	void *ctx, struct qcow_error *err) QK_MUST_USE;

#endif
