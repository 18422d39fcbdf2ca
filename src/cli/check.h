/* SPDX-License-Identifier: MIT */
/* check: what the command's checking and its repairing share. */
#ifndef QK_CLI_CHECK_H
#define QK_CLI_CHECK_H

#include <qcowkit/manage.h>

#include "cli/check_qemu.h"
#include "cli/cli.h"

enum {
	CHECK_CLEAN = 0,
	CHECK_INCOMPLETE = 1,
	CHECK_CORRUPT = 2,
	CHECK_LEAKS = 3,
	CHECK_UNSUPPORTED = 63
};

struct check {
	struct cli *cli;
	bool as_json, quiet;
	struct check_qemu lines; /* for the personality */
	json_t *findings; /* with JSON for programs of ours, else NULL */
	uint64_t n_shown, max_findings;
	/* repair */
	enum qcow_repair_mode repair; /* 0: only look */
	bool dry_run;
	const char *undo; /* a file to be made, or NULL */
	json_t *steps; /* of a plan, with JSON for programs of ours, else NULL */
	uint64_t n_steps_shown;
	uint64_t n_copied_found, n_copied_steps; /* the personality counts what it mends */
	const struct qcow_repair_result *repaired; /* or NULL */
};

/* A finding: shown, or kept. */
void check_on_finding(void *ctx, const struct qcow_finding *f);

/* What was found, and what is left of it: summary or JSON; the exit code. */
int check_put_result(struct check *c, const struct cli_operand *operand, struct qcow_image *image,
	const struct qcow_check_result *result);
void check_put_summary(const struct check *c, const struct qcow_check_result *r);

/* check_repair.c: repair the image, whose store is open for writing unless dry_run; the exit code. */
int check_repair(struct check *c, const struct cli_args *args, const struct cli_operand *operand,
	struct qcow_image *image);
/* --undo-apply: put back what `path` holds; the exit code. */
int check_undo(struct check *c, struct qcow_image *image, const char *path);
/* Counts that a repair adds to QEMU's JSON, and to ours. */
void check_put_fixed(const struct check *c, uint64_t *leaks, uint64_t *corruptions);

#endif
