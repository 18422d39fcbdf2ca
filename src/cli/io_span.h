/* SPDX-License-Identifier: MIT */
/*
 * io_span: byte ranges that requests are busy with, where what lies above the format reads and then writes: a request that
 * does so is alone in its range. Where nothing does, no range is kept.
 */
#ifndef QK_CLI_IO_SPAN_H
#define QK_CLI_IO_SPAN_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Held by a request; on its stack. */
struct io_span {
	uint64_t off, end;
	bool is_alone;
	struct io_span *next;
};

struct io_spans {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct io_span *first;
};

#define IO_SPANS_INIT                                                                   \
	{                                                                               \
		.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, \
	}

/* Wait until nobody who must be alone is in [off, end), nor anybody else if `span` must be, and be there. Any thread. */
void io_span_enter(struct io_spans *spans, struct io_span *span);
void io_span_leave(struct io_spans *spans, struct io_span *span);

#endif
