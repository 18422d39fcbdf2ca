/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_SNAPLIST_H
#define QK_CLI_SNAPLIST_H

#include "cli/cli.h"

/* One snapshot as QEMU's JSON. */
json_t *cli_snapshot_json(const struct qcow_snapshot *snapshot);

/* The table of snapshot -l and info, from a JSON array of cli_snapshot_json. Names are escaped. */
void cli_snapshot_table(const json_t *list, FILE *out);

#endif
