/* SPDX-License-Identifier: MIT */
/*
 * snapread: the entries of a snapshot table one by one, through a window. Extra data beyond its limit is passed over and
 * not read, so what a table costs is bounded by the number of its entries, their ids and names, and not by its length.
 * Specification: "Snapshots".
 */
#ifndef QK_AUDIT_SNAPREAD_H
#define QK_AUDIT_SNAPREAD_H

#include "base/err.h"
#include "format/snaptab.h"

#define QK_SNAPREAD_BYTES ((size_t)256 * 1024) /* no entry is longer */

struct qk_snapread {
	/* Bytes [off, off + n) of the file, zeros past its end. */
	enum qcow_status (*read)(
		void *ctx, uint8_t *buf, size_t n, uint64_t off, struct qcow_error *err);
	void *ctx;
	uint64_t end; /* of the file's last cluster */
	uint64_t off; /* of the next entry */
	uint8_t *buf; /* QK_SNAPREAD_BYTES, the caller's */
	/* its own */
	uint64_t buf_off;
	size_t n_buf;
	size_t ahead; /* to read at once: the more the longer nothing was passed over */
};

/* The next entry; its spans point into the window, until the next call. Of extra data that is longer than
 * QK_MAX_SNAPSHOT_EXTRA no more than that is there, whatever the length of the span says. *is_whole false: it runs past the
 * end of the file or past every limit, and r->off stays. What `read` returns. */
enum qcow_status qk_snapread_next(struct qk_snapread *r, struct qk_snapshot_entry *out,
	bool *is_whole, struct qcow_error *err) QK_MUST_USE;

#endif
