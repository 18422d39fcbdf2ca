/* SPDX-License-Identifier: MIT */
/*
 * vet: the policy options that vet and sanitize share, and how a refusal is told.
 */
#ifndef QK_CLI_VET_H
#define QK_CLI_VET_H

#include <qcowkit/ops.h>

#include "cli/cli.h"

/* The rows of the policy, for an option table. */
#define CLI_VET_POLICY_OPTIONS                                                             \
	{.name = "no-backing", .help = "refuse a backing file (the default)"},             \
		{.name = "allow-backing", .help = "allow that it names a backing file"},   \
		{.name = "no-data-file", .help = "refuse a data file (the default)"},      \
		{.name = "allow-data-file", .help = "allow that it names a data file"},    \
		{.name = "max-size",                                                       \
			.arg = "SIZE",                                                     \
			.help = "refuse a disk of more than SIZE bytes"},                  \
		{.name = "max-ratio",                                                      \
			.arg = "N",                                                        \
			.help = "refuse more than N bytes of disk for each byte of file"}, \
		{.name = "max-data-ratio",                                                 \
			.arg = "N",                                                        \
			.help = "refuse more than N bytes of data for each byte of file"}, \
		{.name = "max-snapshots",                                                  \
			.arg = "N",                                                        \
			.help = "refuse more than N internal snapshots"},                  \
		{.name = "max-bitmaps", .arg = "N", .help = "refuse more than N bitmaps"}, \
		{.name = "allow-features",                                                 \
			.arg = "LIST",                                                     \
			.help = "allow these features and no others: zstd,extended-l2,…"}, \
	{                                                                                  \
		.name = "deny-features", .arg = "LIST", .help = "refuse these features"    \
	}

/* The policy in `args` into *options. False: reported. */
bool cli_vet_policy(struct cli *cli, const struct cli_args *args, struct qcow_vet_options *options);

/* struct qcow_vet_options.on_refusal: append it to `refused`, a JSON array. */
void cli_vet_refusal(void *refused, const struct qcow_refusal *refusal);

/* A line for each, and one for those of `all` that are not in the list. */
void cli_vet_put_refusals(const json_t *refused, uint64_t all, FILE *out);

#endif
