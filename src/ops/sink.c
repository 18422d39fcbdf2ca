/* SPDX-License-Identifier: MIT */
/*
 * sink: what is the same for every kind of target: walking a chunk's runs, and moving the bytes.
 */
#include "ops/sink.h"

#include <stdlib.h>

#include "base/err.h"
#include "base/num.h"

enum qcow_status qk_sink_data_at_offset(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
	struct qk_put put, struct qcow_error *err)
{
	(void)sink;
	put.host_off = off;
	return qk_chunk_add_put(chunk, put, err);
}

enum qcow_status qk_sink_zero_at_offset(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
	uint64_t len, struct qcow_error *err)
{
	if (!sink->must_zero)
		return QCOW_OK;
	return qk_chunk_add_put(
		chunk, (struct qk_put){.kind = QK_PUT_ZERO, .host_off = off, .len = len}, err);
}

static enum qcow_status place_packed(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t unit,
	uint64_t after, struct qcow_error *err)
{
	for (; unit < after; unit++) {
		uint64_t at = unit * sink->unit_bytes;
		QK_TRY(sink->ops->packed(
			sink, chunk->off + at, chunk->buf + at, chunk->packed_bytes[unit], err));
		chunk->bytes_written += chunk->packed_bytes[unit];
	}
	return QCOW_OK;
}

static enum qcow_status place_zero(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
	uint64_t len, struct qcow_error *err)
{
	chunk->bytes_zero += len;
	return sink->ops->zero(sink, chunk, off, len, err);
}

static enum qcow_status place_run(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t unit,
	uint64_t after, struct qcow_error *err)
{
	uint64_t at = unit * sink->unit_bytes;
	uint64_t len = qk_min(after * sink->unit_bytes, chunk->len) - at;
	switch ((enum qk_unit_state)chunk->states[unit]) {
	case QK_UNIT_DATA:
		chunk->bytes_written += len;
		return sink->ops->data(sink, chunk, chunk->off + at,
			(struct qk_put){.kind = QK_PUT_WRITE, .from = at, .len = len}, err);
	case QK_UNIT_PACKED:
		return place_packed(sink, chunk, unit, after, err);
	case QK_UNIT_ZERO:
	case QK_UNIT_FOUND:
		return place_zero(sink, chunk, chunk->off + at, len, err);
	case QK_UNIT_BACKING:
		break;
	}
	return QCOW_OK;
}

enum qcow_status qk_sink_place(struct qk_sink *sink, struct qk_chunk *chunk, struct qcow_error *err)
{
	uint64_t n_units = qk_div_up(chunk->len, sink->unit_bytes);
	switch (chunk->kind) {
	case QK_CHUNK_ZERO:
		return place_zero(sink, chunk, chunk->off, chunk->len, err);
	case QK_CHUNK_BACKING:
		return QCOW_OK;
	case QK_CHUNK_CLONE:
		return sink->ops->data(sink, chunk, chunk->off,
			(struct qk_put){
				.kind = QK_PUT_CLONE, .from = chunk->clone_off, .len = chunk->len},
			err);
	case QK_CHUNK_MIXED:
		break;
	}
	for (uint64_t unit = 0, after = 0; unit < n_units; unit = after) {
		after = qk_chunk_run(chunk, unit, n_units);
		QK_TRY(place_run(sink, chunk, unit, after, err));
	}
	return QCOW_OK;
}

/* Share blocks; where the file system refuses, copy through the chunk's buffer. */
static enum qcow_status clone_or_copy(struct qk_sink *sink, struct qk_chunk *chunk,
	const struct qk_put *put, uint64_t buf_bytes, struct qcow_error *err)
{
	enum qcow_status status = qcow_store_clone(
		sink->store, put->host_off, chunk->clone_store, put->from, put->len, err);
	if (status == QCOW_OK)
		chunk->bytes_cloned += put->len;
	if (status != QCOW_E_NOTSUP)
		return status;
	qk_err_clear(err);
	for (uint64_t at = 0; at < put->len;) {
		uint64_t n = qk_min(put->len - at, buf_bytes);
		QK_TRY(qcow_store_read_padded(
			chunk->clone_store, chunk->buf, n, put->from + at, err));
		QK_TRY(qcow_store_write(sink->store, chunk->buf, n, put->host_off + at, err));
		at += n;
	}
	chunk->bytes_read += put->len;
	chunk->bytes_written += put->len;
	return QCOW_OK;
}

/* Whole clusters, and the end of the disk. What is left of a cluster where the target is longer is plain. */
static enum qcow_status compress_put(
	struct qk_sink *sink, const struct qk_put *put, const uint8_t *data, struct qcow_error *err)
{
	uint64_t whole = put->host_off + put->len == qcow_size(sink->image)
				 ? put->len
				 : qk_align_down(put->len, sink->unit_bytes);
	if (whole != 0)
		QK_TRY(qcow_write_compressed(sink->image, data, whole, put->host_off, 0, err));
	if (whole == put->len)
		return QCOW_OK;
	return qcow_pwrite(
		sink->image, data + whole, put->len - whole, put->host_off + whole, 0, err);
}

enum qcow_status qk_sink_store(
	struct qk_sink *sink, struct qk_chunk *chunk, uint64_t buf_bytes, struct qcow_error *err)
{
	for (unsigned i = 0; i < chunk->n_puts; i++) {
		const struct qk_put *put = &chunk->puts[i];
		if (sink->image != NULL && put->kind == QK_PUT_WRITE && sink->compress)
			QK_TRY(compress_put(sink, put, chunk->buf + put->from, err));
		else if (sink->image != NULL && put->kind == QK_PUT_WRITE)
			QK_TRY(qcow_pwrite(sink->image, chunk->buf + put->from, put->len,
				put->host_off, 0, err));
		else if (sink->image != NULL)
			QK_TRY(qcow_zero(sink->image, put->host_off, put->len, QCOW_IO_UNMAP, err));
		else if (put->kind == QK_PUT_WRITE && sink->builder != NULL)
			QK_TRY(qcow_builder_write(sink->builder, chunk->off + put->from,
				put->host_off, chunk->buf + put->from, put->len, err));
		else if (put->kind == QK_PUT_WRITE)
			QK_TRY(qcow_store_write(
				sink->store, chunk->buf + put->from, put->len, put->host_off, err));
		else if (put->kind == QK_PUT_ZERO)
			QK_TRY(qcow_store_zero(sink->store, put->host_off, put->len, 0, err));
		else
			QK_TRY(clone_or_copy(sink, chunk, put, buf_bytes, err));
	}
	return QCOW_OK;
}

enum qcow_status qk_sink_finish(struct qk_sink *sink, struct qcow_error *err)
{
	enum qcow_status status = sink->ops->finish != NULL ? sink->ops->finish(sink, err)
							    : QCOW_OK;
	free(sink->zeros);
	*sink = (struct qk_sink){0};
	return status;
}

void qk_sink_abandon(struct qk_sink *sink)
{
	if (sink->ops != NULL && sink->ops->abandon != NULL)
		sink->ops->abandon(sink);
	free(sink->zeros);
	*sink = (struct qk_sink){0};
}
