/* SPDX-License-Identifier: MIT */
/*
 * convert_io: the files of a convert: sources, standard input, targets, and the removal of what was made.
 */
#ifndef QK_CLI_CONVERT_IO_H
#define QK_CLI_CONVERT_IO_H

#include "cli/cli.h"
#include "cli/create_opts.h"
#include "cli/keeper.h"

#include <qcowkit/ops.h>

struct convert_job {
	struct cli *cli;
	const struct cli_args *args;
	struct cli_keyvals keyvals; /* -o */
	struct cli_create_opts opts;
	struct qcow_convert_options options;
	char *format; /* of the target */
	struct qcow_image **sources;
	unsigned n_sources;
	char *target_path; /* where the target's bytes are: a path also where the operand is json: */
	struct qcow_store *target, *data;
	struct qcow_image *target_image; /* -n onto qcow2: instead of target */
	char *backing_path, *data_path;
	char *backing_format;
	struct qcow_image *backing;
	bool to_stdout, made_target, made_data;
	struct cli_sandbox sandbox;
	struct convert_skipped *skipped; /* bitmaps to be told of in the end, the last one first */
	struct cli_keeper *keeper; /* in a sandbox: who removes what was made; else NULL */
};

/* The path in an operand, whatever way it is written. NULL: refused and reported. Free it. */
char *convert_path_of(struct cli *cli, const char *text, bool image_opts);

/* Open every source; "-" is standard input (not in the personality). With a sandbox: the target too, and then
 * the sandbox is entered before the source is looked at. False: reported. */
bool convert_open_sources(struct convert_job *job);

/* Open the backing image of -B and fill in its name and format. False: reported. */
bool convert_open_backing(struct convert_job *job, const char *name);

/* Is what is made to be durable when the program ends? */
bool convert_wants_sync(const struct convert_job *job);

/* Open or make the target, and the data file that -o data_file names; refuses a target that is also a
 * source or part of one. False: reported. */
bool convert_open_target(struct convert_job *job);

/* The target is open, the sources were opened after it: is it none of them? False: reported. */
bool convert_check_target(struct convert_job *job);

/* Close everything; `ok` false: remove the files that this run made. False where `ok` is, or where that fails. */
bool convert_close(struct convert_job *job, bool ok);

#endif
