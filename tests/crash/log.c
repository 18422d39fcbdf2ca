/* SPDX-License-Identifier: MIT */
#include "log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"

void qkc_log_add(struct qkc_log *log, enum qkc_event_kind kind, uint64_t off, uint64_t len,
	const uint8_t *bytes)
{
	if (log->n == log->room) {
		log->room = log->room != 0 ? log->room * 2 : 64;
		log->events = qkc_more(log->events, log->room, sizeof(*log->events));
	}
	struct qkc_event *e = &log->events[log->n++];
	*e = (struct qkc_event){.kind = kind, .off = off, .len = len};
	if (bytes != NULL) {
		e->bytes = qkc_need((size_t)len, 1);
		memcpy(e->bytes, bytes, (size_t)len);
	}
}

void qkc_log_clear(struct qkc_log *log)
{
	for (size_t i = 0; i < log->n; i++)
		free(log->events[i].bytes);
	free(log->events);
	*log = (struct qkc_log){0};
}

bool qkc_event_is_data(const struct qkc_event *e)
{
	return (e->kind == QKC_TRUNCATE ? e->len : e->off) >= QKC_DATA_FILE;
}

/* As if each file began at 0. */
void qkc_event_print(const struct qkc_event *e, char *line, size_t n)
{
	static const char *const names[QKC_N_KINDS] = {"write", "zero", "punch", "truncate",
		"flush", "flush fails", "flush fails, cache dropped", "step", "end of step"};
	char name[40];
	bool is_data = e->kind < QKC_BEGIN && qkc_event_is_data(e);
	uint64_t from = is_data ? QKC_DATA_FILE : 0;
	(void)snprintf(name, sizeof(name), "%s%s", is_data ? "data: " : "", names[e->kind]);
	switch (e->kind) {
	case QKC_WRITE:
	case QKC_ZERO:
	case QKC_PUNCH:
		(void)snprintf(line, n, "%s %#" PRIx64 " +%" PRIu64, name, e->off - from, e->len);
		break;
	case QKC_TRUNCATE:
		(void)snprintf(line, n, "%s to %" PRIu64, name, e->len - from);
		break;
	case QKC_BEGIN:
		(void)snprintf(line, n, "%s %" PRIu64, name, e->off);
		break;
	case QKC_END:
		(void)snprintf(line, n, "%s %" PRIu64 "%s", name, e->off,
			e->len != 0 ? "" : ", which failed");
		break;
	default:
		(void)snprintf(line, n, "%s", name);
	}
}
