/* SPDX-License-Identifier: MIT */
/*
 * fit: will the target certainly not hold what has to be written?
 */
#ifndef QK_OPS_FIT_H
#define QK_OPS_FIT_H

#include "ops/copy.h"

/* What is known before the copy about the target. */
struct qk_fit {
	struct qcow_store *store; /* takes the data; borrowed */
	uint64_t at_least; /* bytes that it must have whatever the source holds */
	uint64_t cluster_bytes; /* of the qcow2 image that is made in it; 0: only data goes there */
};

/*
 * QCOW_E_NOSPC where the target is a device, or on a file system, that certainly has less room than the copy
 * needs; QCOW_OK in every other case, also in doubt. Reads the source only where its data extents exceed
 * the free space, and then no further than the answer needs. QCOW_E_CANCELLED.
 */
enum qcow_status qk_fit_check(
	struct qk_copy *copy, const struct qk_fit *fit, struct qcow_error *err);

#endif
