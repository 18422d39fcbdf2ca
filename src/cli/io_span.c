/* SPDX-License-Identifier: MIT */
/* io_span: see io_span.h. */
#include "cli/io_span.h"

#include <stddef.h>

static bool is_free(const struct io_spans *spans, const struct io_span *span)
{
	for (const struct io_span *s = spans->first; s != NULL; s = s->next)
		if (s->off < span->end && span->off < s->end && (s->is_alone || span->is_alone))
			return false;
	return true;
}

void io_span_enter(struct io_spans *spans, struct io_span *span)
{
	(void)pthread_mutex_lock(&spans->lock);
	while (!is_free(spans, span))
		(void)pthread_cond_wait(&spans->changed, &spans->lock);
	span->next = spans->first;
	spans->first = span;
	(void)pthread_mutex_unlock(&spans->lock);
}

void io_span_leave(struct io_spans *spans, struct io_span *span)
{
	(void)pthread_mutex_lock(&spans->lock);
	struct io_span **at = &spans->first;
	while (*at != span && *at != NULL)
		at = &(*at)->next;
	if (*at != NULL)
		*at = span->next;
	(void)pthread_cond_broadcast(&spans->changed);
	(void)pthread_mutex_unlock(&spans->lock);
}
