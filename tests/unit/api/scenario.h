/* SPDX-License-Identifier: MIT */
/*
 * scenario: one chain of images made by QEMU, and one walk through every reading call of the library
 * on it, for tests in which something fails on the way.
 *
 *   top.qcow2   version 3, 4 KiB clusters, a snapshot, a bitmap, plain and zero clusters
 *   mid.qcow2   version 3, extended L2, zstd: subclusters and compressed clusters
 *   low.qcow2   version 2, zlib compressed clusters
 *   base.raw    shorter than the disk, with holes
 */
#ifndef QKT_SCENARIO_H
#define QKT_SCENARIO_H

#include <qcowkit/qcowkit.h>

#include "fault.h"

#define SCENARIO_BYTES ((size_t)2 << 20)

/* What a run met. A call that fails ends nothing: all others are tried too. */
struct outcome {
	enum qcow_status status; /* of the first call that failed */
	struct qcow_error err; /* its */
	const char *call; /* its name */
	unsigned n_failed;
	unsigned n_calls;
	uint64_t check_errors; /* tables that check and walk say they could not read */
	uint64_t hits_before_check; /* of the fault, when open, get, map and pread were done */
	const char *wrong; /* what was answered wrongly, or NULL */
};

/* Make the images in qkt_dir() and read the truth, which is QEMU's. Skips the test without QEMU. */
void scenario_make(void);

/* SCENARIO_BYTES: the disk as qemu-img converts it. */
const uint8_t *scenario_truth(void);

/* Open the chain, ask everything, read everything, check, walk, close. Allocates nothing itself. With
 * `fault` each layer's store stands behind it (which allocates). */
void scenario_run(struct qkt_fault *fault, struct outcome *out);

/* Open top.qcow2 and its chain; QCOW_OPEN_* flags. */
enum qcow_status scenario_open(
	struct qkt_fault *fault, uint32_t flags, struct qcow_image **out, struct qcow_error *err);

#endif
