/* SPDX-License-Identifier: MIT */
/*
 * stream: the disk as a stream of bytes. Reading and decoding run ahead in parallel, writing is in order.
 */
#include <qcowkit/ops.h>

#include "base/err.h"
#include "base/num.h"
#include "ops/copy.h"

enum qcow_status qcow_convert_to_fd(struct qcow_image *source, int fd,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	if (source == NULL || fd < 0)
		return QK_FAIL(err, QCOW_E_INVAL, "a stream needs a source and a descriptor");
	struct qcow_image *images[] = {source};
	struct qk_copy copy = {
		/* Zeros are not looked for: they are written anyway. Holes need no reading. */
		.policy = {.unit_bytes = QK_KIB(64),
			.chunk_bytes = QK_KIB(512),
			.sparse_bytes = UINT64_MAX},
	};
	if (progress != NULL)
		copy.progress = *progress;
	/* its bytes and no more, also where the last sector is not full */
	enum qcow_status status = qk_source_init(&copy.source, images, 1, qcow_size(source), err);
	if (status == QCOW_OK)
		status = qk_sink_open_stream(&copy.sink, fd, err);
	copy.sink.unit_bytes = copy.policy.unit_bytes;
	if (status == QCOW_OK)
		status = qk_copy_run(&copy, err);
	qk_sink_abandon(&copy.sink);
	qk_source_release(&copy.source);
	return status;
}
