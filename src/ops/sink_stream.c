/* SPDX-License-Identifier: MIT */
/*
 * sink_stream: the bytes of the disk in order, into a descriptor that cannot seek. Writing happens in
 * the ordered stage, while other threads read and decode what follows.
 */
#include "ops/sink.h"

#include <unistd.h>

#include "base/err.h"
#include "base/mem.h"
#include "base/num.h"

static enum qcow_status write_all(int fd, const uint8_t *p, uint64_t len, struct qcow_error *err)
{
	while (len > 0) {
		ssize_t n = write(fd, p, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return QK_FAIL_OS(err, errno, "cannot write to the output stream");
		p += n;
		len -= (uint64_t)n;
	}
	return QCOW_OK;
}

static enum qcow_status place_data(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
	struct qk_put put, struct qcow_error *err)
{
	(void)off;
	QK_ASSERT(R1, put.kind == QK_PUT_WRITE);
	return write_all(sink->fd, chunk->buf + put.from, put.len, err);
}

static enum qcow_status place_zero(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
	uint64_t len, struct qcow_error *err)
{
	(void)chunk;
	(void)off;
	while (len > 0) {
		uint64_t n = qk_min(len, QK_SINK_ZEROS_BYTES);
		QK_TRY(write_all(sink->fd, sink->zeros, n, err));
		len -= n;
	}
	return QCOW_OK;
}

static const struct qk_sink_ops stream_ops = {
	.data = place_data,
	.zero = place_zero,
};

enum qcow_status qk_sink_open_stream(struct qk_sink *sink, int fd, struct qcow_error *err)
{
	*sink = (struct qk_sink){.fd = fd};
	sink->zeros = qk_calloc(1, QK_SINK_ZEROS_BYTES);
	if (sink->zeros == NULL)
		return QK_FAIL_NOMEM(err);
	sink->ops = &stream_ops;
	return QCOW_OK;
}
