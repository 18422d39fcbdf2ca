/* SPDX-License-Identifier: MIT */
/*
 * sink_image: an image that is there already and stays what it is but for its content: guest offsets are where things go.
 * Data is compressed by the image where that is asked for, cluster by cluster. Zeros are said, unless the target reads as zeros; unlike in a new image nothing is absent for sure.
 */
#include "ops/sink.h"

#include <inttypes.h>

#include "base/err.h"

static enum qcow_status finish(struct qk_sink *sink, struct qcow_error *err)
{
	return qcow_flush(sink->image, err);
}

static const struct qk_sink_ops image_ops = {
	.data = qk_sink_data_at_offset,
	.zero = qk_sink_zero_at_offset,
	.finish = finish,
};

enum qcow_status qk_sink_open_image(struct qk_sink *sink,
	const struct qcow_convert_options *options, uint64_t size, struct qcow_error *err)
{
	uint64_t have = qcow_size(options->target_image);
	*sink = (struct qk_sink){.image = options->target_image,
		.store = qcow_image_store(options->target_image),
		.compress = options->compress,
		.must_zero = !options->target_is_zero};
	if (have < size)
		return QK_FAIL(err, QCOW_E_INVAL,
			"the target holds %" PRIu64 " bytes, the disk has %" PRIu64
			": No space left on device",
			have, size);
	sink->ops = &image_ops;
	return QCOW_OK;
}
