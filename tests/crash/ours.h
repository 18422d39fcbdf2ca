/* SPDX-License-Identifier: MIT */
/* ours: the library at work on a disk: runs a plan, reads a state, and goes on writing after a crash. */
#ifndef QKC_OURS_H
#define QKC_OURS_H

#include <stdbool.h>
#include <stdint.h>

#include "base.h"
#include "judge.h"
#include "log.h"
#include "plan.h"

/* Runs the steps on a copy of the base's image and fills the log. False where the library does what no crash
 * excuses: a step fails that was not made to, what was written is not read, a clean close leaves leaks. */
bool qkc_ours_run(const struct qkc_plan *p, const struct qkc_base *base, struct qkc_log *log,
	enum qkc_outcome *outcomes, char *why);

/* What the judge must not mind in a plan's images: QKC_MAY_ bits. */
unsigned qkc_tolerance(const struct qkc_plan *p);

struct qkc_again {
	const struct qkc_expect *expect;
	const struct qkc_base *base;
	const struct qkc_look *look; /* the state as the oracle reads it */
	uint64_t seed; /* of the state; decides what is written to it */
	unsigned one_in; /* of so many states one is written to; 0: none */
	uint64_t n_again, n_nested; /* out */
};

/* After a crash: the library reads what the oracle reads; and where it goes on to write, the rest of the
 * disk stays as it is, also where that ends in another crash. The disk is changed: undo it. */
bool qkc_ours_judge(struct qkc_again *a, struct qkc_disk *d, char *why);

#endif
