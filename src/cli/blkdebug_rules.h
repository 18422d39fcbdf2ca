/* SPDX-License-Identifier: MIT */
/*
 * blkdebug_rules: the rules of a blkdebug node, read from its options and its config file.
 */
#ifndef QK_CLI_BLKDEBUG_RULES_H
#define QK_CLI_BLKDEBUG_RULES_H

#include "cli/cli.h"

/* Kinds of requests, one bit each: iotype. */
enum blkdebug_io {
	BLKDEBUG_READ = 1,
	BLKDEBUG_WRITE = 2,
	BLKDEBUG_ZERO = 4,
	BLKDEBUG_DISCARD = 8,
	BLKDEBUG_FLUSH = 16
};

struct blkdebug_rule {
	struct blkdebug_rule *next;
	enum {
		BLKDEBUG_INJECT,
		BLKDEBUG_SET_STATE,
		BLKDEBUG_BREAK
	} action;
	const char *event; /* a constant */
	uint64_t state; /* in which it holds; 0: in any */
	/* inject-error: */
	unsigned io; /* enum blkdebug_io bits that fail */
	int os_errno;
	uint64_t off; /* only requests that cover this byte; UINT64_MAX: all */
	bool once, is_active;
	uint64_t new_state; /* set-state */
	char *tag; /* of a break */
};

/* The constant for an event's name, or NULL: QEMU has no such event. */
const char *blkdebug_event_name(const char *name);

/* Append the rules of `spec` (inject-error, set-state: lists) and of its config file to *rules. What was made is in
 * the list on failure too. QCOW_E_INVAL, QCOW_E_NOENT, QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status blkdebug_read_rules(
	const json_t *spec, struct blkdebug_rule **rules, struct qcow_error *err) QK_MUST_USE;

void blkdebug_free_rules(struct blkdebug_rule *rules);

#endif
