/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_NBD_NODE_H
#define QK_CLI_NBD_NODE_H

#include <jansson.h>

#include "cli/cli.h"

/* Connect to the export that a node describes: {driver: nbd, server: {type: unix, path | type: inet, host, port}, export,
 * tls-creds}, the older path, host and port beside them, or a filename that is an address. flags: QCOW_FILE_WRITE.
 * QCOW_E_INVAL, QCOW_E_UNSUPPORTED, errors of the connection. */
enum qcow_status cli_nbd_open(struct cli *cli, const json_t *spec, unsigned flags,
	struct qcow_store **out, struct qcow_error *err) QK_MUST_USE;

struct qk_nbd_address;
/* Speak TLS there with the credentials of this id. QCOW_E_KEY (none, or a server's), QCOW_E_NOMEM. */
enum qcow_status cli_nbd_use_creds(struct cli *cli, const char *id, struct qk_nbd_address *address,
	struct qcow_error *err) QK_MUST_USE;

/* The same for an address alone. */
enum qcow_status cli_nbd_open_name(const char *name, unsigned flags, struct qcow_store **out,
	struct qcow_error *err) QK_MUST_USE;

#endif
