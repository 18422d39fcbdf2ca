/* SPDX-License-Identifier: MIT */
/*
 * sink_raw: the bytes of the disk at their own offsets, in a file or on a block device.
 */
#include "ops/sink.h"

#include <inttypes.h>

#include "base/err.h"
#include "base/num.h"

static enum qcow_status refuse_packed(
	struct qk_sink *sink, uint64_t off, const void *data, size_t len, struct qcow_error *err)
{
	(void)sink;
	(void)off;
	(void)data;
	(void)len;
	return QK_FAIL(err, QCOW_E_INVAL, "a raw disk holds no compressed clusters");
}

static const struct qk_sink_ops raw_ops = {
	.data = qk_sink_data_at_offset,
	.zero = qk_sink_zero_at_offset,
	.packed = refuse_packed,
};

/* Empty the file and give it its length; preallocate where that is asked for. */
static enum qcow_status make_fresh(struct qk_sink *sink, struct qcow_store *target,
	const struct qcow_convert_options *options, uint64_t size, struct qcow_error *err)
{
	struct qcow_store_caps caps;
	qcow_store_caps(target, &caps);
	QK_TRY(qcow_store_truncate(target, 0, err));
	QK_TRY(qcow_store_truncate(target, size, err));
	sink->must_zero = !caps.reads_zero_past_end && !options->target_is_zero;
	if (options->create.preallocation == QCOW_PREALLOC_FALLOC && size > 0)
		return qcow_store_zero(target, 0, size, QCOW_ZERO_ALLOCATE, err);
	return QCOW_OK;
}

enum qcow_status qk_sink_open_raw(struct qk_sink *sink, struct qcow_store *target,
	const struct qcow_convert_options *options, uint64_t size, struct qcow_error *err)
{
	*sink = (struct qk_sink){.store = target};
	struct qcow_store_caps caps;
	qcow_store_caps(target, &caps);
	if (!options->keep_target && caps.can_grow) {
		QK_TRY(make_fresh(sink, target, options, size, err));
		sink->ops = &raw_ops;
		return QCOW_OK;
	}
	uint64_t have = 0;
	QK_TRY(qcow_store_size(target, &have, err));
	if (have < size)
		return QK_FAIL(err,
			options->keep_target && caps.can_grow ? QCOW_E_INVAL : QCOW_E_NOSPC,
			"the target holds %" PRIu64 " bytes, the disk has %" PRIu64
			": No space left on device",
			have, size);
	sink->must_zero = !options->target_is_zero;
	sink->ops = &raw_ops;
	return QCOW_OK;
}
