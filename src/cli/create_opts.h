/* SPDX-License-Identifier: MIT */
/*
 * create_opts: "-o key=value" as create and convert take it, as options of the library.
 */
#ifndef QK_CLI_CREATE_OPTS_H
#define QK_CLI_CREATE_OPTS_H

#include <stdio.h>

#include "cli/cli.h"

struct cli_create_opts {
	struct qcow_create_options create; /* strings point into the key=value list */
	bool has_size;
	uint64_t size;
};

/* Read `list` for a target of `format`. False: refused and reported. The list must live as long as the
 * result. Unknown keys are refused with the nearest known one. */
bool cli_create_opts_parse(struct cli *cli, const char *format, const struct cli_keyvals *list,
	struct cli_create_opts *out);

/* Does some -o ask for help ("help" or "?")? */
bool cli_create_opts_wants_help(const struct cli_keyvals *list);

/* Print the options of a format. */
void cli_create_opts_help(const char *format, FILE *out);

#endif
