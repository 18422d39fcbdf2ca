/* SPDX-License-Identifier: MIT */
/*
 * judge: is this image one that a crash may leave? Asked of the oracle of tests/oracle, a reader written from
 * the specification, and of nothing of ours: its check finds no error (leaks are allowed), every sector of
 * the disk holds one of its allowed values, the snapshots are what they were.
 */
#ifndef QKC_JUDGE_H
#define QKC_JUDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "disk.h"
#include "guest.h"

#define QKC_WHY_BYTES 240u

enum {
	QKC_MAY_BE_DIRTY = 1, /* refcounts may be anything while the dirty bit is set */
	QKC_MAY_LACK_COPIED = 2
};

#define QKC_STATE_ROOM (UINT64_C(4) << 20) /* what lies behind the disk ends here */

/* What must stay as it was: taken from the image before the first step. */
struct qkc_expect;

/* The guest's disk starts as the oracle reads it now. `backing`: a raw disk below it, or NULL; it must
 * outlive the result. NULL, with the reason in `why`, where the oracle refuses the image or finds errors. */
struct qkc_expect *qkc_expect_new(const struct qkc_disk *d, const uint8_t *backing,
	uint64_t backing_bytes, unsigned tolerates, char *why);
void qkc_expect_free(struct qkc_expect *e);
struct qkc_guest *qkc_expect_guest(struct qkc_expect *e);
const struct qkc_guest *qkc_expect_guest_const(const struct qkc_expect *e);
uint64_t qkc_expect_cluster_bytes(const struct qkc_expect *e);
/* Where the state of a machine begins, behind the disk. It is a part of what the guest may see, in snapshots too. */
uint64_t qkc_expect_state_off(const struct qkc_expect *e);
uint32_t qkc_expect_version(const struct qkc_expect *e);

/* The disk as the oracle read it: its sectors that are not zeros, in order. */
struct qkc_look {
	struct qkc_looked {
		uint64_t sector, hash;
	} * sectors;
	size_t n, room;
	uint32_t version; /* of the snapshots: the rule's */
	struct qkc_look *
		raw; /* the same of a raw data file alone, which may be ahead by what is not flushed; or NULL */
};
void qkc_look_free(struct qkc_look *look);
uint64_t qkc_look_at(const struct qkc_look *look, uint64_t sector);
/* Index of the first one at or after the sector; n: none. */
size_t qkc_look_find(const struct qkc_look *look, uint64_t sector);

/* What the guest's sectors may hold. */
struct qkc_rule {
	bool (*allows)(const void *ctx, uint64_t sector, uint64_t hash);
	/* the first sector in [sector, past) where zeros may be wrong; UINT64_MAX: none */
	uint64_t (*next)(const void *ctx, uint64_t sector, uint64_t past);
	const void *ctx;
	uint32_t version; /* of the snapshots */
	const void *raw_ctx; /* for a raw data file read alone; NULL: ctx */
};

/* By the guest's history, at a moment. */
struct qkc_by_moment {
	const struct qkc_guest *guest;
	const struct qkc_moment *at;
};
struct qkc_rule qkc_rule_at(const struct qkc_by_moment *ctx);

/* ---- operations on snapshots: their steps in order, each after what the steps before it wrote ---- */

/* Version 0 is the start; each operation that was done makes the next. */
void qkc_expect_create(struct qkc_expect *e, uint32_t step);
void qkc_expect_apply(struct qkc_expect *e, uint32_t step, uint64_t index);
void qkc_expect_delete(struct qkc_expect *e, uint32_t step, uint64_t mask);
/* The version after all operations up to this step. */
uint32_t qkc_expect_version_at(const struct qkc_expect *e, uint32_t step);

/* False: bad, and `why` says in what. `look` (may be NULL) is filled where the disk could be read. */
bool qkc_judge_disk(const struct qkc_expect *e, const struct qkc_disk *d, struct qkc_rule rule,
	struct qkc_look *look, char *why);

/* Leaked clusters of an image; UINT64_MAX where the oracle refuses it or finds errors. */
uint64_t qkc_leaks(const struct qkc_disk *d, unsigned tolerates);

#endif
