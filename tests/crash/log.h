/* SPDX-License-Identifier: MIT */
/*
 * log: what a program did to one image file and its data file, in the order it did it, together with the steps of the
 * workload it did it for. Offsets are those of disk.h.
 */
#ifndef QKC_LOG_H
#define QKC_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum qkc_event_kind {
	QKC_WRITE,
	QKC_ZERO, /* the range reads as zeros and the file is as long */
	QKC_PUNCH, /* as ZERO, never past the end */
	QKC_TRUNCATE, /* len: the new size; from QKC_DATA_FILE on the data file's end */
	QKC_FLUSH, /* complete; these three are of the file in which `off` lies */
	QKC_FLUSH_FAILED, /* what was written before it may be lost, for ever */
	QKC_FLUSH_DROPPED, /* a flush that failed, and the host has forgotten what was written since the last */
	QKC_BEGIN, /* off: the number of a step that begins, from 1 */
	QKC_END, /* off: its number; len: 1 = it is done, 0 = it has failed */
	QKC_N_KINDS
};

struct qkc_event {
	enum qkc_event_kind kind;
	uint64_t off, len;
	uint8_t *bytes; /* WRITE; the log's */
};

struct qkc_log {
	struct qkc_event *events;
	size_t n, room;
};

/* Copies the bytes. */
void qkc_log_add(struct qkc_log *log, enum qkc_event_kind kind, uint64_t off, uint64_t len,
	const uint8_t *bytes);
void qkc_log_clear(struct qkc_log *log);

/* Is it done to the data file? Not for BEGIN and END. */
bool qkc_event_is_data(const struct qkc_event *e);

/* One line without its end, "write 0x50000 +65536". */
void qkc_event_print(const struct qkc_event *e, char *line, size_t n);

#endif
