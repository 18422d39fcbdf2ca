/* SPDX-License-Identifier: MIT */
/*
 * whole: operations that manage an image are wholly done or not at all. Each runs once, on an image that QEMU made, and
 * every state that a crash may leave (explore.h) shows what the image was before it or what it is after it: size, version,
 * refcount width, lazy refcounts, the key slots that are active, the backing file, the disk, the snapshots, the bitmaps (or they
 * are in use), as the oracle reads them, and no error; a raw data file is the disk. Once the operation has returned it is the image after it, whatever is lost.
 *
 * With a file `base` below the image that is written too, as a commit does, the disk is what the oracle reads through both: in
 * every state. The base has no error, its snapshots are what they were, and afterwards it is what it was when the run ended.
 */
#ifndef QKC_WHOLE_H
#define QKC_WHOLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <qcowkit/qcowkit.h>

enum qkc_how {
	QKC_ON_DEVICE = 1, /* the stores cannot grow */
	/* A file `base` lies below the image, and below `backing`, and is written too: qcow2 or raw. */
	QKC_OVER_BASE = 2,
	QKC_OVER_RAW_BASE = 4,
	/* It writes to the disk, no more: until it has returned, each sector is old or new. */
	QKC_IN_PARTS = 8,
	QKC_TIDIES = 16, /* done, it gives space back: that may fail, and nobody is told */
	QKC_MARKS = 32 /* bitmaps know of it first, and of more than is true where it fails */
};

struct qkc_operation {
	const char *name;
	const char *
		setup; /* shell commands in the test's folder that make `img`, and `data` where it has a data file */
	/* A raw file in that folder, below the image, or NULL. Where the image records "other.raw", that one is. */
	const char *backing;
	const char *passphrase; /* or NULL: nothing is encrypted */
	enum qcow_status (*run)(struct qcow_image *image, struct qcow_error *err);
	/* Asked of one state in 16, which the library has opened for writing: does it go on as it should? NULL: all is
	 * well. What it did is judged too: no errors in the image. */
	const char *(*again)(struct qcow_image *image);
	uint64_t min_states; /* fewer distinct ones fail */
	unsigned how; /* enum qkc_how bits */
};

struct qkc_whole_result {
	uint64_t n_distinct, n_bad;
	char first_bad[256];
};

/* Explore one. `seed` decides which states are tried where there are too many. */
struct qkc_whole_result qkc_whole_explore(const struct qkc_operation *o, uint64_t seed);

/* Explore `n`, print a line each. Answers the bad states, and the operations with too few states. `stream`: another one for
 * each test, so that they do not draw the same. */
uint64_t qkc_whole_explore_all(const struct qkc_operation *o, size_t n, uint64_t stream);

/*
 * Each operation again, where the Nth write, zero or growth of its files fails, or the Nth flush, or space ends with it, for N =
 * 1, 2, … (strides in long ones): once it has been closed, with the files well again, the image is what it was before or is
 * after it, and after it where the operation said so, which it must not after a flush that failed (but QKC_TIDIES). Answers how many times it was
 * not so, and operations without a failure.
 */
uint64_t qkc_whole_fail_all(const struct qkc_operation *o, size_t n);

/* The test program of `n` operations: both of the above, as a test of the name `claim` and one that every call may fail. */
int qkc_whole_main(const char *claim, const struct qkc_operation *o, size_t n, uint64_t stream);

#endif
