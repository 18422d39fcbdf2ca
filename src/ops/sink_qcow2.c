/* SPDX-License-Identifier: MIT */
/*
 * sink_qcow2: a new qcow2 image or LUKS file through a builder. Reservations are made here, in guest order, which is
 * why the image is the same for every number of threads.
 */
#include "ops/sink.h"

#include "base/err.h"
#include "base/num.h"

static enum qcow_status place_data(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
	struct qk_put put, struct qcow_error *err)
{
	uint64_t left = put.len;
	while (left > 0) {
		QK_TRY(qcow_builder_reserve(
			sink->builder, off, left, &put.host_off, &put.len, err));
		QK_ASSERT(Q1, put.len > 0 && put.len <= left);
		QK_TRY(qk_chunk_add_put(chunk, put, err));
		off += put.len;
		put.from += put.len;
		left -= put.len;
	}
	return QCOW_OK;
}

static enum qcow_status place_zero(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
	uint64_t len, struct qcow_error *err)
{
	(void)chunk;
	/* Without a backing file under it an unallocated cluster reads as zeros. */
	if (off >= sink->explicit_zero_bytes)
		return QCOW_OK;
	uint64_t needed = 0;
	if (!qk_align_up(sink->explicit_zero_bytes - off, sink->unit_bytes, &needed))
		needed = len;
	return qcow_builder_zero(sink->builder, off, qk_min(len, needed), err);
}

static enum qcow_status place_packed(
	struct qk_sink *sink, uint64_t off, const void *data, size_t len, struct qcow_error *err)
{
	return qcow_builder_compressed(sink->builder, off, data, len, err);
}

static enum qcow_status finish(struct qk_sink *sink, struct qcow_error *err)
{
	return qcow_builder_finish(sink->builder, err);
}

static void abandon(struct qk_sink *sink)
{
	qcow_builder_abandon(sink->builder);
}

static const struct qk_sink_ops qcow2_ops = {
	.data = place_data,
	.zero = place_zero,
	.packed = place_packed,
	.finish = finish,
	.abandon = abandon,
};

enum qcow_status qk_sink_open_qcow2(struct qk_sink *sink, struct qcow_store *target,
	struct qcow_store *target_data, const struct qcow_create_options *create,
	struct qcow_error *err)
{
	*sink = (struct qk_sink){.store = target_data != NULL ? target_data : target,
		.unit_bytes = create->cluster_size};
	QK_TRY(qcow_builder_new(target, target_data, create, &sink->builder, err));
	sink->ops = &qcow2_ops;
	return QCOW_OK;
}
