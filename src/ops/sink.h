/* SPDX-License-Identifier: MIT */
/*
 * sink: where convert's chunks go. Placing decides, in guest order, what has to be done for a chunk;
 * storing does it, from any thread.
 */
#ifndef QK_OPS_SINK_H
#define QK_OPS_SINK_H

#include "ops/chunk.h"

struct qk_sink;

/* The kinds of targets. All are called in guest order, one at a time. */
struct qk_sink_ops {
	/* [off, +len) are the guest's bytes at `put->from`: buffer or clone source, as put->kind says. */
	enum qcow_status (*data)(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
		struct qk_put put, struct qcow_error *err);
	enum qcow_status (*zero)(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
		uint64_t len, struct qcow_error *err);
	/* NULL: nothing is packed for it */
	enum qcow_status (*packed)(struct qk_sink *sink, uint64_t off, const void *data, size_t len,
		struct qcow_error *err);
	/* NULL: nothing is left to do */
	enum qcow_status (*finish)(struct qk_sink *sink, struct qcow_error *err);
	void (*abandon)(struct qk_sink *sink);
};

struct qk_sink {
	const struct qk_sink_ops *ops;
	struct qcow_store *store; /* takes the puts */
	uint64_t unit_bytes;
	/* qcow2 */
	struct qcow_builder *builder;
	uint64_t
		explicit_zero_bytes; /* below this offset zeros have to be said: a backing file is there */
	/* an image that is there */
	struct qcow_image *image;
	bool compress;
	/* raw, and an image that is there */
	bool must_zero; /* what is not written does not read as zeros */
	/* stream */
	int fd;
	uint8_t *zeros; /* QK_SINK_ZEROS_BYTES of them */
};

#define QK_SINK_ZEROS_BYTES ((size_t)256 << 10)

/* `data` and `zero` of targets in which guest offsets are where things go. Zeros are said where must_zero is set. */
enum qcow_status qk_sink_data_at_offset(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
	struct qk_put put, struct qcow_error *err);
enum qcow_status qk_sink_zero_at_offset(struct qk_sink *sink, struct qk_chunk *chunk, uint64_t off,
	uint64_t len, struct qcow_error *err);

/* A new qcow2 image in `target`. Errors as qcow_builder_new. */
enum qcow_status qk_sink_open_qcow2(struct qk_sink *sink, struct qcow_store *target,
	struct qcow_store *target_data, const struct qcow_create_options *create,
	struct qcow_error *err);

/* A raw disk of create->virtual_size bytes; `keep`: it stays as long as it is and is not emptied. */
enum qcow_status qk_sink_open_raw(struct qk_sink *sink, struct qcow_store *target,
	const struct qcow_convert_options *options, uint64_t size, struct qcow_error *err);

/* An image that is open for writing and holds at least `size` bytes. QCOW_E_NOSPC where it is smaller. */
enum qcow_status qk_sink_open_image(struct qk_sink *sink,
	const struct qcow_convert_options *options, uint64_t size, struct qcow_error *err);

/* A stream: everything is written in order while it is placed. */
enum qcow_status qk_sink_open_stream(struct qk_sink *sink, int fd, struct qcow_error *err);

/* Decide where everything of the chunk goes: fills chunk->puts. In guest order, one thread. */
enum qcow_status qk_sink_place(
	struct qk_sink *sink, struct qk_chunk *chunk, struct qcow_error *err);

/* Do chunk->puts, in pieces of at most buf_bytes where blocks cannot be shared. Any thread. */
enum qcow_status qk_sink_store(
	struct qk_sink *sink, struct qk_chunk *chunk, uint64_t buf_bytes, struct qcow_error *err);

/* Complete the target, or leave it as it is. The sink is released by both. */
enum qcow_status qk_sink_finish(struct qk_sink *sink, struct qcow_error *err);
void qk_sink_abandon(struct qk_sink *sink);

#endif
