/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_OBJECT_H
#define QK_CLI_OBJECT_H

#include "cli/cli.h"

/* One --object secret. */
struct cli_secret {
	struct cli_secret *next;
	char *id;
	char *data; /* not NUL terminated */
	size_t bytes;
};

/* The secret with this id, or NULL. It lives until cli_objects_release. */
const struct cli_secret *cli_secret_find(const struct cli *cli, const char *id);

#endif
