/* SPDX-License-Identifier: MIT */
/*
 * blkdebug: a store that fails or stops requests on purpose, as its rules say: driver=blkdebug of QEMU, for tests.
 *
 * A rule waits for an event: inject-error makes requests fail from the event on, set-state changes the node's
 * state, on which rules may depend (it begins at 1), a break stops the request. QEMU's events are steps of its own
 * driver. Here they are known by what a request touches, as the qcow2 header of the file says it:
 *
 *   read    of an L2 table l2_load, of the refcount table reftable_load, of a refcount block refblock_load, else read_aio
 *   write   to the L1 table l1_update, to an L2 table l2_update, to the refcount table reftable_update, to a refcount
 *           block refblock_update and refblock_update_part, else write_aio; each first pwritev
 *   zeros   pwritev_zero          discard  cluster_free         flush   flush_to_os, flush_to_disk
 *   cor_write before copy-on-read writes; none when the node is opened
 *
 * Tables that nothing names yet count as data, and so does all where the file is not qcow2. The other events have
 * valid names and never come.
 *
 * A request that stops, and one that goes on, is told of on stdout, in QEMU's words.
 *
 * Threads: requests come from any; break, resume and the rest from the main thread.
 */
#ifndef QK_CLI_BLKDEBUG_H
#define QK_CLI_BLKDEBUG_H

#include "cli/cli.h"

/* Put a node over `below`. `spec`: config, inject-error, set-state, align, max-transfer, max-write-zero,
 * max-discard, and what only advises. With `no_flush` a flush ends here, as it does in QEMU's cache=unsafe. On success `below` is the node's, and the node is the newest of
 * cli->blkdebugs until its close. QCOW_E_INVAL, QCOW_E_NOENT (config), QCOW_E_NOMEM. */
enum qcow_status cli_blkdebug_new(struct cli *cli, const json_t *spec, struct qcow_store *below,
	bool no_flush, struct qcow_store **out, struct qcow_error *err) QK_MUST_USE;

/* An event from above the store: runs the newest node's rules and fails where they say so for [off, +len). */
enum qcow_status cli_blkdebug_event(struct cli *cli, const char *event, uint64_t off, uint64_t len,
	struct qcow_error *err) QK_MUST_USE;

/* On the newest node. 0, or an errno: ENOTSUP (there is none), ENOENT (no such event or tag), ENOMEM. */
int cli_blkdebug_break(struct cli *cli, const char *event, const char *tag);
int cli_blkdebug_remove_break(struct cli *cli, const char *tag);
int cli_blkdebug_resume(struct cli *cli, const char *tag);
/* Until a request stands at the break: 0. ENOENT where all of those in flight stand at other breaks, so that none
 * can come. `in_flight` says how many have not ended. */
int cli_blkdebug_wait(
	struct cli *cli, const char *tag, size_t (*in_flight)(const void *ctx), const void *ctx);

#endif
