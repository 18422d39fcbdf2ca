/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_SNAPLIST_H
#define QK_CLI_SNAPLIST_H

#include "cli/cli.h"

/* The snapshots of an image as a list that is read while it is printed. A failure is reported where it is met, and
 * ends the list. */
struct cli_snapshots {
	struct cli_json_list list;
	struct cli *cli;
	struct qcow_image *image;
	bool *damaged; /* set by a failure */
};

void cli_snapshots_init(
	struct cli_snapshots *s, struct cli *cli, struct qcow_image *image, bool *damaged);

/* The table of snapshot -l and info; nothing where the list is empty. Names are escaped. */
void cli_snapshot_table(struct cli_json_list *list);

#endif
