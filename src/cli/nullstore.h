/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_NULLSTORE_H
#define QK_CLI_NULLSTORE_H

#include <jansson.h>

#include "cli/cli.h"

/* What such a store is called. */
#define CLI_NULL_STORE_NAME "null-co://"

/* {driver: null-co, size}: a disk of that size, else 1 GiB, that forgets what is written and reads as zeros, without any
 * I/O. QCOW_E_INVAL, QCOW_E_NOMEM. */
enum qcow_status cli_null_store_open(struct cli *cli, const json_t *spec, bool writable,
	struct qcow_store **out, struct qcow_error *err) QK_MUST_USE;

#endif
