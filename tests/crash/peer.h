/* SPDX-License-Identifier: MIT */
/* peer: runs a plan's steps with qemu-io, with shim.c preloaded, and gives the log. */
#ifndef QKC_PEER_H
#define QKC_PEER_H

#include <stdbool.h>

#include "base.h"
#include "log.h"
#include "plan.h"

/* `shim`: path of the preloaded library. Ends the program where qemu-io
 * cannot be run. The base's files must still be in the test's folder; base.qcow2 is written. */
void qkc_peer_run(const struct qkc_plan *p, const char *qemu_io, const char *shim,
	struct qkc_log *log, enum qkc_outcome *outcomes);

/* The flags for QKC_END of a step that is done. */
uint64_t qkc_end_flags(enum qkc_act act, bool is_done);

#endif
