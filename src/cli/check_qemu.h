/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_CHECK_QEMU_H
#define QK_CLI_CHECK_QEMU_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <qcowkit/qcowkit.h>

/* The refcount that was reported for a cluster. */
struct check_refcount {
	uint64_t cluster, refcount;
};

/* What the lines need to know. Zero it, then set the geometry. */
struct check_qemu {
	uint64_t cluster_size, l1_offset, l1_entries;
	struct check_refcount *refcounts; /* ascending by cluster, the first MAX of them */
	size_t n_refcounts, room;
};

/* Print a finding as qemu-img check does. False: QEMU has no line for it, or it says a number that is not
 * known here; nothing was printed. */
bool check_qemu_put(struct check_qemu *q, const struct qcow_finding *f, FILE *out);
void check_qemu_release(struct check_qemu *q);

#endif
