/* SPDX-License-Identifier: MIT */
/*
 * spec: what an operand says, as one nested JSON object whatever way it was written:
 *   path                  {"filename": "path"}
 *   json:{"file.x": …}    {"file": {"x": …}}
 *   --image-opts file.x=… {"file": {"x": "…"}}
 * Values of image-opts are strings; numbers and booleans are read from both kinds.
 */
#ifndef QK_CLI_SPEC_H
#define QK_CLI_SPEC_H

#include <jansson.h>

#include "cli/cli.h"

/* Deeper nesting than this is refused. */
enum {
	CLI_SPEC_DEPTH = 32
};

/* Parse an operand. QCOW_E_INVAL with a sentence, QCOW_E_UNSUPPORTED (a protocol that is not built in),
 * QCOW_E_NOMEM. *out is the caller's (json_decref). */
enum qcow_status cli_spec_parse(struct cli *cli, const struct cli_operand *operand, json_t **out,
	struct qcow_error *err) QK_MUST_USE;

/* The same with `options` ("key=value,…", or NULL) over it: where they name a driver of a format, a path that stands
 * alone is that of its file. */
enum qcow_status cli_spec_parse_with(struct cli *cli, const struct cli_operand *operand,
	const char *options, json_t **out, struct qcow_error *err) QK_MUST_USE;

/* Move the path that stands alone into "file" where the driver is that of a format. QCOW_E_NOMEM. */
enum qcow_status cli_spec_lower_filename(json_t *spec, struct qcow_error *err) QK_MUST_USE;

/* Nodes that lie over a format and change how it is used. */
enum {
	CLI_FILTER_COMPRESS = 1, /* what is written is compressed, whole clusters at a time */
	CLI_FILTER_COPY_ON_READ = 2 /* what is read from below is kept */
};

/* Replace *spec by what lies below its filters; *filters: which there were. QCOW_E_INVAL, QCOW_E_UNSUPPORTED (other
 * members than the driver and its file). */
enum qcow_status cli_spec_peel(
	json_t **spec, unsigned *filters, struct qcow_error *err) QK_MUST_USE;

/* The parts of a blkdebug node's path, NULL or "blkdebug:CONFIG:PATH" or PATH: config into `spec`, the path into
 * `image`. QCOW_E_INVAL, QCOW_E_UNSUPPORTED (a second blkdebug), QCOW_E_NOMEM. */
enum qcow_status cli_spec_split_blkdebug(
	json_t *spec, json_t *image, const char *path, struct qcow_error *err) QK_MUST_USE;

/* The same for "json:{…}" alone. */
enum qcow_status cli_spec_parse_json(
	const char *text, json_t **out, struct qcow_error *err) QK_MUST_USE;

/* Members, NULL or the default where they are missing; another type than wanted is QCOW_E_INVAL. */
enum qcow_status cli_spec_string(
	const json_t *spec, const char *key, const char **out, struct qcow_error *err) QK_MUST_USE;
enum qcow_status cli_spec_u64(struct cli *cli, const json_t *spec, const char *key, uint64_t *out,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status cli_spec_bool(
	const json_t *spec, const char *key, bool *out, struct qcow_error *err) QK_MUST_USE;
/* What the options say about discards: "discard" whether the guest's are passed to the image, *unmaps (which holds what is
 * true without it), and *flags of qcow_open_options.discard. QCOW_E_INVAL. */
enum qcow_status cli_spec_discard(
	const json_t *spec, bool *unmaps, uint32_t *flags, struct qcow_error *err) QK_MUST_USE;
/* The name of a node's secret: encrypt.key-secret, and in luks nodes key-secret. *out NULL: it has none. */
enum qcow_status cli_spec_secret_id(
	const json_t *spec, const char **out, struct qcow_error *err) QK_MUST_USE;

#endif
