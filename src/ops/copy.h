/* SPDX-License-Identifier: MIT */
/*
 * copy: a source, a sink and a policy, run through the pipe. What convert and its stream form share.
 */
#ifndef QK_OPS_COPY_H
#define QK_OPS_COPY_H

#include "ops/chunk.h"
#include "ops/pipe.h"
#include "ops/sink.h"
#include "ops/source.h"

/* The smallest piece that file systems share; where theirs is larger, sharing is refused and copied. */
#define QK_CLONE_GRAIN_BYTES ((uint64_t)4096)

struct qk_copy {
	struct qk_source source;
	struct qk_sink sink;
	struct qk_policy policy;
	/* share blocks of stores on this device; 0 = never */
	uint64_t clone_dev;
	struct qcow_store *clone_store; /* the last store asked about … */
	bool clone_store_ok; /* … and the answer */
	/* compression */
	enum qcow_compression compression;
	int level;
	/* how to run */
	unsigned n_workers; /* wanted */
	bool any_order;
	uint64_t rate_bytes_per_sec;
	void (*on_salvage)(void *ctx, uint64_t off, uint64_t len, const struct qcow_error *why);
	void *salvage_ctx;
	struct qcow_progress progress;
	/* the walk */
	uint64_t at;
	struct qcow_convert_result result;
};

/* Copy the whole source into the sink; the sink is neither finished nor abandoned. Memory: at most
 * 32 MiB of chunks (one chunk a worker where they are larger) and two clusters a worker. */
enum qcow_status qk_copy_run(struct qk_copy *copy, struct qcow_error *err);

#endif
