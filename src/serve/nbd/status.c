/* SPDX-License-Identifier: MIT */
/*
 * status: BLOCK_STATUS: one chunk for each context that is asked about (see exec.h).
 */
#include "serve/nbd/exec.h"

#include <string.h>

#include "base/err.h"

/* The longest extent that 32 bits take, a multiple of any block size. */
#define MAX_SHORT_EXTENT UINT64_C(0xffff0000)

/* One context of the request. */
struct asked {
	const struct qk_nbd_job *job;
	const struct qk_nbd_context *context;
	unsigned bitmap; /* its number in the export now */
};

static enum qcow_status find_bitmap(
	const struct qk_nbd_node *node, const char *name, unsigned *out, struct qcow_error *err)
{
	for (unsigned i = 0; i < node->n_bitmaps; i++) {
		if (strcmp(node->bitmaps[i], name) == 0) {
			*out = i;
			return QCOW_OK;
		}
	}
	return QK_FAIL(err, QCOW_E_NOENT, "the bitmap is not there any more");
}

/* The extent at `off`: its length and flags. */
static enum qcow_status extent_at(const struct asked *a, uint64_t off, uint64_t len,
	uint64_t *out_len, uint32_t *flags, struct qcow_error *err)
{
	const struct qk_nbd_node *node = a->job->session->node;
	struct qcow_bitmap_extent marks;
	struct qcow_extent extent;
	if (a->context->kind == QK_NBD_CONTEXT_BITMAP) {
		QK_TRY(node->ops->dirty(node->ctx, a->bitmap, off, len, &marks, err));
		*out_len = marks.len;
		*flags = marks.dirty;
		return QCOW_OK;
	}
	QK_TRY(node->ops->map(node->ctx, off, len, UINT32_MAX, &extent, err));
	*out_len = extent.len;
	if (a->context->kind == QK_NBD_CONTEXT_DEPTH)
		*flags = (extent.flags & QCOW_EXTENT_PRESENT) != 0 ? extent.depth + 1 : 0;
	else
		*flags = ((extent.flags & QCOW_EXTENT_DATA) == 0 ? QK_NBD_STATE_HOLE : 0) |
			 ((extent.flags & QCOW_EXTENT_ZERO) != 0 ? QK_NBD_STATE_ZERO : 0);
	return QCOW_OK;
}

static void put_extent(struct qk_nbd_buf *out, bool is_extended, uint64_t len, uint32_t flags)
{
	if (is_extended) {
		qk_nbd_buf_add64(out, len);
		qk_nbd_buf_add64(out, flags);
	} else {
		qk_nbd_buf_add32(out, (uint32_t)len);
		qk_nbd_buf_add32(out, flags);
	}
}

/* An extent as the client may hear of it: whole blocks, and no more than fits its length field. What reads like data is
 * always true: where a block holds both, flags become 0. */
struct descriptor {
	uint64_t len;
	uint32_t flags;
};

/* The next descriptor at `off`: extents that say the same are one. */
static enum qcow_status next_descriptor(const struct asked *a, uint64_t off, uint64_t end,
	struct descriptor *out, struct qcow_error *err)
{
	const struct qk_nbd_session *session = a->job->session;
	uint64_t max = session->mode == QK_NBD_EXTENDED ? UINT64_MAX : MAX_SHORT_EXTENT;
	uint64_t block = session->min_block;
	*out = (struct descriptor){0};
	end = off + qk_min(end - off, max);
	while (off < end) {
		uint64_t len = 0;
		uint32_t flags = 0;
		QK_TRY(extent_at(a, off, end - off, &len, &flags, err));
		if (len == 0 || len > end - off)
			return QK_FAIL(err, QCOW_E_BUG, "an extent of %u bytes", (unsigned)len);
		if (out->len != 0 && flags != out->flags && out->len % block == 0)
			break;
		if (out->len == 0)
			out->flags = flags;
		else if (a->context->kind == QK_NBD_CONTEXT_BITMAP)
			out->flags |= flags;
		else
			out->flags &= flags;
		out->len += len;
		off += len;
	}
	return QCOW_OK;
}

static size_t most_extents(const struct qk_nbd_job *job)
{
	size_t bytes = job->session->mode == QK_NBD_EXTENDED ? 16 : 8;
	size_t n = QK_NBD_STATUS_BYTES / (bytes * job->session->n_contexts);
	bool is_one = (job->rq.flags & QK_NBD_CMD_FLAG_REQ_ONE) != 0;
	return is_one ? 1 : qk_min(n, QK_NBD_STATUS_EXTENTS);
}

static enum qcow_status put_descriptors(
	const struct asked *a, struct qk_nbd_buf *out, uint32_t *n, struct qcow_error *err)
{
	const struct qk_nbd_request *rq = &a->job->rq;
	bool is_extended = a->job->session->mode == QK_NBD_EXTENDED;
	uint64_t off = rq->off, end = rq->off + rq->len;
	size_t max = most_extents(a->job);
	for (*n = 0; off < end && *n < max; (*n)++) {
		struct descriptor d;
		enum qcow_status status = next_descriptor(a, off, end, &d, err);
		if (status != QCOW_OK && *n != 0)
			break; /* what is known is told, the next request hears of the failure */
		QK_TRY(status);
		put_extent(out, is_extended, d.len, d.flags);
		off += d.len;
	}
	return QCOW_OK;
}

static enum qcow_status put_context(struct asked *a, struct qk_nbd_buf *out, struct qcow_error *err)
{
	const struct qk_nbd_job *job = a->job;
	enum qk_nbd_mode mode = job->session->mode;
	size_t at = out->n, head = qk_nbd_chunk_bytes(mode);
	uint32_t n = 0;
	if (a->context->kind == QK_NBD_CONTEXT_BITMAP)
		QK_TRY(find_bitmap(job->session->node, a->context->bitmap, &a->bitmap, err));
	if (qk_nbd_buf_room(out, head) == NULL)
		return QK_FAIL_NOMEM(err);
	qk_nbd_buf_add32(out, a->context->id);
	if (mode == QK_NBD_EXTENDED)
		qk_nbd_buf_add32(out, 0);
	QK_TRY(put_descriptors(a, out, &n, err));
	if (out->bad)
		return QK_FAIL_NOMEM(err);
	qk_nbd_put_chunk(mode, out->p + at,
		&(struct qk_nbd_chunk){.type = mode == QK_NBD_EXTENDED
						       ? QK_NBD_REPLY_BLOCK_STATUS_EXT
						       : QK_NBD_REPLY_BLOCK_STATUS,
			.cookie = job->rq.cookie,
			.off = job->rq.off,
			.payload = out->n - at - head});
	if (mode == QK_NBD_EXTENDED)
		qk_store32(out->p + at + head + 4, n);
	return QCOW_OK;
}

static bool is_wanted(const struct qk_nbd_status_payload *only, uint32_t id)
{
	for (size_t i = 0; i < only->n_ids; i++) {
		if (qk_load32(only->ids + 4 * i) == id)
			return true;
	}
	return only->ids == NULL;
}

static enum qcow_status put_contexts(
	struct qk_nbd_job *job, const struct qk_nbd_status_payload *only, struct qcow_error *err)
{
	const struct qk_nbd_session *session = job->session;
	for (unsigned i = 0; i < session->n_contexts; i++) {
		struct asked a = {.job = job, .context = &session->contexts[i]};
		if (is_wanted(only, a.context->id))
			QK_TRY(put_context(&a, &job->more, err));
	}
	return QCOW_OK;
}

void qk_nbd_execute_status(struct qk_nbd_job *job)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_nbd_status_payload only = {0};
	const char *bad = NULL;
	uint8_t done[QK_NBD_EXT_REPLY_BYTES];
	if ((job->rq.flags & QK_NBD_CMD_FLAG_PAYLOAD_LEN) != 0)
		bad = qk_nbd_get_status_payload(
			job->session, (struct qk_span){job->data, job->n_data}, &job->rq, &only);
	if (bad != NULL) {
		qk_nbd_fail(job, QK_NBD_EINVAL, bad);
		return;
	}
	enum qcow_status status = QCOW_OK;
	if (!qk_in_range(job->rq.off, job->rq.len, atomic_load(&job->session->node->size)))
		status = QK_FAIL(&err, QCOW_E_RANGE, "the disk ends before that");
	if (status == QCOW_OK)
		status = put_contexts(job, &only, &err);
	if (status == QCOW_OK) {
		/* a chunk that ends the reply */
		qk_nbd_put_chunk(job->session->mode, done,
			&(struct qk_nbd_chunk){.flags = QK_NBD_REPLY_FLAG_DONE,
				.type = QK_NBD_REPLY_NONE,
				.cookie = job->rq.cookie,
				.off = job->rq.off});
		qk_nbd_buf_add(&job->more, done, qk_nbd_chunk_bytes(job->session->mode));
	}
	if (status == QCOW_OK && job->more.bad)
		status = QK_FAIL_NOMEM(&err);
	if (status != QCOW_OK) {
		job->more.bad = false;
		qk_nbd_fail_status(job, status, &err);
		return;
	}
	job->error = QK_NBD_OK;
	job->n_iov = 1;
	job->iov[0] = (struct iovec){job->more.p, job->more.n};
}
