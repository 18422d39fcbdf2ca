/* SPDX-License-Identifier: MIT */
/*
 * keeper: a process in a sandbox cannot remove the files that it made. It is therefore a child, and its parent,
 * which looks at no image, does so where the child fails.
 */
#ifndef QK_CLI_KEEPER_H
#define QK_CLI_KEEPER_H

#include <limits.h>

#include "cli/cli.h"

enum {
	CLI_KEEPER_FILES = 2
};

/* Shared by both processes. */
struct cli_keeper {
	struct {
		bool made;
		char path[PATH_MAX];
	} files[CLI_KEEPER_FILES];
};

/*
 * Fork. In the child *out is the shared record, and true; it is killed where the parent dies. The parent waits,
 * passes signals on, removes what is recorded unless the child ended with 0, and gets false and the exit code of
 * the whole. Call it with one thread. A failure is reported: false.
 */
bool cli_keeper_split(struct cli *cli, struct cli_keeper **out, int *exit_code);

/* Record that a file was made (`at` < CLI_KEEPER_FILES), or with made == false that it is gone again. NULL keepers
 * are allowed. */
void cli_keeper_note(struct cli_keeper *keeper, size_t at, const char *path, bool made);

#endif
