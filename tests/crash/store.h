/* SPDX-License-Identifier: MIT */
/* store: stores for the library on a disk, and on bytes that never change. One thread at a time. */
#ifndef QKC_STORE_H
#define QKC_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include <qcowkit/store.h>

#include "disk.h"
#include "log.h"
#include "plan.h"

/* Which call fails: counted from when it is set. Its owner may change it at any time. */
struct qkc_fault {
	enum qkc_fail what;
	enum qkc_only_file file;
	uint64_t nth, count;
};

/* On a disk, which stays the caller's. With a log it may be written, and what is done is added to the log; a
 * call that fails adds what it did. `fault` may be NULL. */
struct qcow_store *qkc_disk_store(
	struct qkc_disk *d, struct qkc_log *log, struct qkc_fault *fault, bool can_grow);

/* On its data file. `fault` may be that of the image: calls of both are counted. */
struct qcow_store *qkc_disk_data_store(
	struct qkc_disk *d, struct qkc_log *log, struct qkc_fault *fault, bool can_grow);

/* Read-only, on bytes that stay the caller's. */
struct qcow_store *qkc_bytes_store(const uint8_t *bytes, uint64_t n_bytes);

#endif
