/* SPDX-License-Identifier: MIT */
/*
 * pipe: a bounded, parallel pipeline over pieces of work that have an order.
 *
 *         next          work           place            store
 *   (one at a time, (any number at  (one at a time,  (any number at
 *     in order)         once)          in order)         once)
 *
 * Every piece sits in one of a fixed number of slots, which the caller made and whose buffers are used
 * again and again. Threads have no fixed role: each takes whatever is most urgent. The calling thread
 * is one of them, so a pipe of one worker makes no thread at all.
 */
#ifndef QK_OPS_PIPE_H
#define QK_OPS_PIPE_H

#include <qcowkit/qcowkit.h>

#define QK_PIPE_MAX_WORKERS 16

/* The four stages; place and store may be NULL: nothing to do. `worker` is 0 … n_workers - 1, for scratch memory that
 * a thread keeps. */
struct qk_pipe_stages {
	/* Describe the next piece in `item`, or set *end. *cost_bytes counts against the rate. */
	enum qcow_status (*next)(
		void *ctx, void *item, bool *end, uint64_t *cost_bytes, struct qcow_error *err);
	enum qcow_status (*work)(void *ctx, void *item, unsigned worker, struct qcow_error *err);
	enum qcow_status (*place)(void *ctx, void *item, struct qcow_error *err);
	enum qcow_status (*store)(void *ctx, void *item, unsigned worker, struct qcow_error *err);
	/* The piece is through: add it to the totals; answers its weight for the progress. Runs under
	 * the pipe's lock. */
	uint64_t (*done)(void *ctx, void *item);
};

struct qk_pipe_job {
	const struct qk_pipe_stages *stages;
	void *ctx;
	void **items; /* one a slot; of qk_pipe_run_pieces: unused */
	unsigned n_items; /* at least one */
	unsigned n_workers; /* 1 to QK_PIPE_MAX_WORKERS; fewer run where threads cannot be made */
	bool any_order; /* place pieces as they become ready; place may then run on several at once */
	uint64_t rate_bytes_per_sec; /* 0 = unlimited */
	uint64_t total; /* sum of all weights */
	struct qcow_progress progress;
};

/*
 * Run until `next` says end or something fails. The failure of the piece that comes first wins, nothing
 * new is begun after it, and all threads are joined at return. QCOW_E_CANCELLED where the progress's
 * cancel callback says so; QCOW_E_NOMEM; what the stages return.
 */
enum qcow_status qk_pipe_run(const struct qk_pipe_job *job, struct qcow_error *err);

/*
 * The same with two items a worker that are made here: item_bytes each, zero but for their first member, which is a
 * uint8_t *, to buffer_bytes of their own, aligned for O_DIRECT.
 */
enum qcow_status qk_pipe_run_pieces(const struct qk_pipe_job *job, size_t item_bytes,
	size_t buffer_bytes, struct qcow_error *err);

/* 0 = the number of processors, at least 2; at most QK_PIPE_MAX_WORKERS. */
unsigned qk_pipe_workers(unsigned wanted);

#endif
