/* SPDX-License-Identifier: MIT */
/*
 * explore: the states that a crash may leave behind, made from a log.
 *
 *   kill   every prefix of the issued calls: SIGKILL, the page cache survives
 *   loss   power is lost before a flush is complete: of the writes since the one before, all subsets where
 *          they are few; else all but one, one alone, prefixes, suffixes and random subsets
 *   torn   as loss, but one write, or several, kept in some of their sectors only
 *
 * A flush of the image says nothing of what was written to its data file, nor the other way round.
 * A sector is kept whole or not at all, in one of the versions that it had since the last flush. A flush
 * that fails orders nothing, and what was written before it may be lost for ever, whatever is flushed later; or it
 * is lost at once, where the host drops its cache (after no other failure only) of that file: what was written to the other
 * may still be on the disk or not.
 * States are numbered in the order they are visited, so that a number names one again. The judge is asked once
 * for each content, and again where more had been promised to the guest by then.
 */
#ifndef QKC_EXPLORE_H
#define QKC_EXPLORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "disk.h"
#include "log.h"

/* The flags in `len` of QKC_END. */
enum {
	QKC_DONE = 1,
	QKC_IS_FLUSH = 2, /* when done: steps before it are durable */
	QKC_IS_FUA = 4 /* when done: this one is */
};

/* What the guest knew when the crash came. Steps count from 1. */
struct qkc_moment {
	uint32_t started; /* the last step that has begun */
	uint32_t ended;
	uint32_t floor; /* the last flush that is done: what steps before it wrote is durable */
	uint32_t rank; /* how many promises were made: flushes and FUA writes done */
};

struct qkc_walk;

struct qkc_state {
	const char *kind; /* "kill", "loss", "torn" */
	uint64_t id;
	struct qkc_moment at;
	const struct qkc_walk *walk; /* for qkc_story */
};

/* False: the state is bad. The disk may be changed; the explorer takes it back. */
typedef bool (*qkc_judge)(void *ctx, struct qkc_disk *d, const struct qkc_state *s);

struct qkc_explore {
	const struct qkc_disk *initial;
	const struct qkc_log *log;
	uint64_t seed;
	unsigned subset_bits; /* all subsets up to this many writes in an epoch */
	unsigned
		n_random; /* random subsets an epoch above that, and random torn ones in every epoch */
	unsigned n_cuts; /* places where a write is torn, at most */
	uint64_t only_id; /* judge this state alone; 0: all */
	qkc_judge judge;
	void *ctx;
};

/* A set of hashes, each with a number. Zeros are an empty one. */
struct qkc_set {
	struct qkc_member *table;
	size_t n, room;
};
void qkc_set_free(struct qkc_set *set);
/* The number of a hash, to be changed; 0 where it was not in the set. Valid until the next call. */
uint32_t *qkc_set_at(struct qkc_set *set, uint64_t hash);

struct qkc_totals {
	uint64_t n_visited, n_distinct, n_judged, n_bad;
	struct qkc_set contents; /* counts as distinct what is not in it yet; the caller's */
};

/* Adds to the totals. */
void qkc_explore(const struct qkc_explore *x, struct qkc_totals *totals);

/* Print what of the log the state keeps. */
void qkc_story(const struct qkc_state *s, FILE *out);

#endif
