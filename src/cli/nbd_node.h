/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_NBD_NODE_H
#define QK_CLI_NBD_NODE_H

#include <jansson.h>

#include "cli/cli.h"

/* Connect to the export that a node describes: {driver: nbd, server: {type: unix, path | type: inet, host, port}, export,
 * tls-creds, open-timeout, reconnect-delay, x-dirty-bitmap}, the older path, host and port beside them, or a filename that is an address. flags: QCOW_FILE_WRITE.
 * QCOW_E_INVAL, QCOW_E_UNSUPPORTED, errors of the connection. */
enum qcow_status cli_nbd_open(struct cli *cli, const json_t *spec, unsigned flags,
	struct qcow_store **out, struct qcow_error *err) QK_MUST_USE;

struct qk_nbd_address;
/* Speak TLS there with the credentials of this id. QCOW_E_KEY (none, or a server's), QCOW_E_NOMEM. */
enum qcow_status cli_nbd_use_creds(struct cli *cli, const char *id, struct qk_nbd_address *address,
	struct qcow_error *err) QK_MUST_USE;

/* The same for an address alone. */
enum qcow_status cli_nbd_open_name(struct cli *cli, const char *name, unsigned flags,
	struct qcow_store **out, struct qcow_error *err) QK_MUST_USE;

/* What the server says of a range of a raw disk that is an export: flags of e (which qcow_map gave) that say more than a store's
 * extents can, and for less of it where more than one answer would be needed. With x-dirty-bitmap dirty ranges are neither data
 * nor zeros, as QEMU has it. Anything else stays as it is. Errors of the connection. */
enum qcow_status cli_nbd_refine(
	const struct cli *cli, struct qcow_extent *e, struct qcow_error *err) QK_MUST_USE;
void cli_nbd_release(struct cli *cli);

#endif
