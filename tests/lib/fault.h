/* SPDX-License-Identifier: MIT */
/*
 * fault: a store around any other one that fails when told to, counts its calls, and keeps a log of
 * what was written between which flushes, from which the states after a crash can be built.
 *
 * One struct qkt_fault may stand behind several stores (the layers of a chain, an image and its data
 * file): they then share the counts, the log and the barriers. Safe to use from several threads.
 */
#ifndef QKT_FAULT_H
#define QKT_FAULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <qcowkit/store.h>

#include "model.h"

enum qkt_call {
	QKT_READ,
	QKT_WRITE,
	QKT_FLUSH,
	QKT_SIZE,
	QKT_TRUNCATE,
	QKT_ZERO,
	QKT_PUNCH,
	QKT_EXTENTS,
	QKT_CLONE,
	QKT_ANY, /* in qkt_fault_arm: every kind; in counts: the sum */
	QKT_N_CALLS
};

enum qkt_failure {
	QKT_EIO, /* QCOW_E_IO, nothing is done */
	QKT_ENOSPC, /* QCOW_E_NOSPC, nothing is done */
	QKT_SHORT /* QCOW_E_IO, the first half is done: of a read, write, zero or punch */
};

struct qkt_fault;

struct qkt_fault *qkt_fault_new(void);

/* After the stores were closed. */
void qkt_fault_free(struct qkt_fault *f);

/* A store that passes everything on to `inner`, which it owns. It has inner's name and capabilities,
 * but no descriptor: what goes around it would be seen by nobody. `id` names it in the log. */
struct qcow_store *qkt_fault_wrap(struct qkt_fault *f, struct qcow_store *inner, unsigned id);

/* The `nth` call (from 1) of that kind from now on fails; with `for_ever` those after it too. The
 * counts start again from 0. */
void qkt_fault_arm(struct qkt_fault *f, enum qkt_call call, uint64_t nth, enum qkt_failure failure,
	bool for_ever);
void qkt_fault_disarm(struct qkt_fault *f);

/* Each call of that kind begins `us` microseconds late from now on; 0: no more. */
void qkt_fault_slow(struct qkt_fault *f, enum qkt_call call, unsigned us);

/* How often it failed since it was armed; how many calls of a kind there were since. */
uint64_t qkt_fault_hits(struct qkt_fault *f);
uint64_t qkt_fault_count(struct qkt_fault *f, enum qkt_call call);

/* One change, in the order of the calls. What a failed call may have done is not in the log. */
struct qkt_log_entry {
	enum qkt_call call; /* WRITE, TRUNCATE, ZERO, PUNCH or FLUSH */
	unsigned store_id;
	uint64_t epoch; /* flushes of that store that were complete before it */
	uint64_t off, len; /* TRUNCATE: off is the size; FLUSH: none */
	uint8_t *bytes; /* WRITE: what was written, else NULL */
};

/* Keep a log from now on. */
void qkt_fault_log(struct qkt_fault *f);
size_t qkt_fault_log_count(struct qkt_fault *f);
/* Valid until the next call on a store. */
const struct qkt_log_entry *qkt_fault_log_entry(struct qkt_fault *f, size_t index);

/* Do to the array what `e` did to the store; of a write only the 512-byte sectors of the disk whose
 * number counted from its first is in [first, first + n): UINT64_MAX for all. */
void qkt_log_apply(const struct qkt_log_entry *e, struct qkt_model *m, uint64_t first, uint64_t n);

#endif
