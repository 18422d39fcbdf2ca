/* SPDX-License-Identifier: MIT */
/*
 * fit: will the target certainly not hold what has to be written?
 */
#ifndef QK_OPS_FIT_H
#define QK_OPS_FIT_H

#include "ops/copy.h"

/*
 * QCOW_E_NOSPC where the file system of `store` certainly has less room than the copy needs; QCOW_OK
 * in every other case, also in doubt. Reads the source only where its data extents exceed the free
 * space, and then no further than the answer needs. `at_least` are bytes known to be needed.
 * QCOW_E_CANCELLED.
 */
enum qcow_status qk_fit_check(
	struct qk_copy *copy, struct qcow_store *store, uint64_t at_least, struct qcow_error *err);

#endif
