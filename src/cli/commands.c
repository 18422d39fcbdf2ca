/* SPDX-License-Identifier: MIT */
/*
 * commands: the table of every command, in the order of --help.
 */
#include "cli/cli.h"

extern const struct cli_command cli_cmd_amend;
extern const struct cli_command cli_cmd_bench;
extern const struct cli_command cli_cmd_bitmap;
extern const struct cli_command cli_cmd_check;
extern const struct cli_command cli_cmd_commit;
extern const struct cli_command cli_cmd_compare;
extern const struct cli_command cli_cmd_compat;
extern const struct cli_command cli_cmd_completion;
extern const struct cli_command cli_cmd_convert;
extern const struct cli_command cli_cmd_create;
extern const struct cli_command cli_cmd_ctl;
extern const struct cli_command cli_cmd_dd;
extern const struct cli_command cli_cmd_dump;
extern const struct cli_command cli_cmd_info;
extern const struct cli_command cli_cmd_io;
extern const struct cli_command cli_cmd_map;
extern const struct cli_command cli_cmd_measure;
extern const struct cli_command cli_cmd_mount;
extern const struct cli_command cli_cmd_rebase;
extern const struct cli_command cli_cmd_resize;
extern const struct cli_command cli_cmd_sanitize;
extern const struct cli_command cli_cmd_serve;
extern const struct cli_command cli_cmd_snapshot;
extern const struct cli_command cli_cmd_vet;

const struct cli_command *const cli_commands[] = {
	&cli_cmd_amend,
	&cli_cmd_bench,
	&cli_cmd_bitmap,
	&cli_cmd_check,
	&cli_cmd_commit,
	&cli_cmd_compare,
	&cli_cmd_compat,
	&cli_cmd_completion,
	&cli_cmd_convert,
	&cli_cmd_create,
	&cli_cmd_ctl,
	&cli_cmd_dd,
	&cli_cmd_dump,
	&cli_cmd_info,
	&cli_cmd_io,
	&cli_cmd_map,
	&cli_cmd_measure,
	&cli_cmd_mount,
	&cli_cmd_rebase,
	&cli_cmd_resize,
	&cli_cmd_sanitize,
	&cli_cmd_serve,
	&cli_cmd_snapshot,
	&cli_cmd_vet,
	NULL,
};
