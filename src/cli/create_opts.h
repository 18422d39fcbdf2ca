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
	const char *key_secret; /* as typed, or NULL; create.secret is what it stands for */
	bool has_size;
	uint64_t size;
	const char
		*path; /* of the new image, what the personality's errors begin with; may be NULL */
	bool luks; /* the format is luks: its keys have no "encrypt." before them */
	/* The personality: a key (as QEMU calls it) and its value that nothing allows. */
	const char *refused_key, *refused_value;
};

/* Read `list` for a target of `format` into *out, whose `path` the caller has set. False: refused and
 * reported. The list must live as long as the result. Unknown keys are refused with the nearest known one. */
bool cli_create_opts_parse(struct cli *cli, const char *format, const struct cli_keyvals *list,
	struct cli_create_opts *out);

/* The personality, like QEMU, says "Formatting…" before it refuses the word of a choice. True: there is one,
 * and it is reported for the image `path` ("": without its name). */
bool cli_create_opts_refused(struct cli *cli, const struct cli_create_opts *opts, const char *path);

/* The passphrase of an encrypted image: the secret that key-secret names, else --secret-file. Into
 * opts->create.secret. False: there is none, reported behind `prefix` ("FILE: " in the personality, or ""). */
bool cli_create_opts_find_secret(struct cli *cli, struct cli_create_opts *opts, const char *prefix);

/* Does some -o of the command ask for help ("help" or "?")? Then the options of `format` (NULL: the default one)
 * were printed. The personality lists those of the file only for a target that is named. False also for a format that
 * nobody knows. */
bool cli_create_opts_help(struct cli *cli, const struct cli_args *args, const char *format);

#endif
