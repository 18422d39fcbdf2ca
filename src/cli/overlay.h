/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_OVERLAY_H
#define QK_CLI_OVERLAY_H

#include "cli/cli.h"

/* An empty image over `below`, which passes to it on success: what a temporary run writes to. It lies in the folder for
 * temporary files, has no name, and is gone with the close. */
enum qcow_status cli_overlay_open(
	struct qcow_image *below, struct qcow_image **out, struct qcow_error *err) QK_MUST_USE;

#endif
