/* SPDX-License-Identifier: MIT */
/* snapread: see snapread.h. Owns no memory. Invariant SR1: what is decoded lies in the window whole. */
#include "audit/snapread.h"

#include <string.h>

#include "base/bytes.h"
#include "base/num.h"
#include "format/limits.h"

/* What is read of an entry to know how long it is, and all that counts of too much extra data. */
#define HEAD_BYTES   (QK_SNAPSHOT_FIXED_BYTES + QK_MAX_SNAPSHOT_EXTRA)
#define LEAST_AHEAD  4096U
#define AT_ID_LEN    12U
#define AT_NAME_LEN  14U
#define AT_EXTRA_LEN 36U

/* Make the window hold `ahead` bytes from the entry on, or all that the file has. */
static enum qcow_status fill(struct qk_snapread *r, size_t ahead, struct qcow_error *err)
{
	uint64_t end = r->buf_off + r->n_buf;
	uint64_t want = qk_min(ahead, r->end - r->off);
	if (r->off >= r->buf_off && r->off <= end && want <= end - r->off)
		return QCOW_OK;
	r->ahead = qk_min(qk_max(2 * r->ahead, LEAST_AHEAD), QK_SNAPREAD_BYTES);
	uint64_t n = qk_min(qk_max(want, r->ahead), r->end - r->off);
	r->n_buf = 0;
	QK_TRY(r->read(r->ctx, r->buf, (size_t)n, r->off, err));
	r->buf_off = r->off;
	r->n_buf = (size_t)n;
	return QCOW_OK;
}

static const uint8_t *entry_at(const struct qk_snapread *r)
{
	return r->buf + (r->off - r->buf_off);
}

/* Head, id and name, side by side at the beginning of the window, with as much extra data as there may be. */
static enum qcow_status read_apart(struct qk_snapread *r, uint64_t extra_len, uint64_t rest_len,
	struct qk_snapshot_entry *out, struct qcow_error *err)
{
	memmove(r->buf, entry_at(r), HEAD_BYTES);
	r->n_buf = r->ahead = 0;
	if (rest_len != 0)
		QK_TRY(r->read(r->ctx, r->buf + HEAD_BYTES, (size_t)rest_len,
			r->off + QK_SNAPSHOT_FIXED_BYTES + extra_len, err));
	memset(r->buf + HEAD_BYTES + rest_len, 0, sizeof(uint64_t));
	qk_store32(r->buf + AT_EXTRA_LEN, QK_MAX_SNAPSHOT_EXTRA);
	struct qk_reader reader = qk_reader_init(
		r->buf, (size_t)(HEAD_BYTES + rest_len + sizeof(uint64_t)));
	bool is_decoded = qk_snapshot_decode(&reader, out);
	QK_ASSERT(SR1, is_decoded);
	out->extra.n = (size_t)extra_len;
	return QCOW_OK;
}

enum qcow_status qk_snapread_next(struct qk_snapread *r, struct qk_snapshot_entry *out,
	bool *is_whole, struct qcow_error *err)
{
	*is_whole = false;
	*out = (struct qk_snapshot_entry){0};
	if (r->off >= r->end || r->end - r->off < QK_SNAPSHOT_FIXED_BYTES)
		return QCOW_OK;
	QK_TRY(fill(r, HEAD_BYTES, err));
	const uint8_t *head = entry_at(r);
	uint64_t extra_len = qk_load32(head + AT_EXTRA_LEN);
	uint64_t id_len = qk_load16(head + AT_ID_LEN), name_len = qk_load16(head + AT_NAME_LEN);
	uint64_t bytes = qk_snapshot_entry_bytes(extra_len, id_len, name_len);
	if (bytes > QK_SNAPREAD_BYTES || bytes > r->end - r->off)
		return QCOW_OK;
	if (extra_len > QK_MAX_SNAPSHOT_EXTRA) {
		QK_TRY(read_apart(r, extra_len, id_len + name_len, out, err));
	} else {
		QK_TRY(fill(r, (size_t)bytes, err));
		struct qk_reader reader = qk_reader_init(entry_at(r), (size_t)bytes);
		bool is_decoded = qk_snapshot_decode(&reader, out);
		QK_ASSERT(SR1, is_decoded);
	}
	r->off += bytes;
	*is_whole = true;
	return QCOW_OK;
}
