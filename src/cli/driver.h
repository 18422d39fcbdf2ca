/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_DRIVER_H
#define QK_CLI_DRIVER_H

#include <jansson.h>

#include "cli/cli.h"

/* Is it one that opens bytes, and no format over them? */
bool cli_driver_is_protocol(const char *driver);

/* Does a node with this driver and this path, either may be NULL, lie behind blkdebug; on an NBD server? */
bool cli_driver_is_blkdebug(const char *driver, const char *path);
bool cli_driver_is_nbd(const char *driver, const char *path);

/* Is it a format that QEMU reads and we do not? What to do then: */
bool cli_driver_is_foreign(const char *name);
#define CLI_FOREIGN_HELP "QEMU's 'qemu-img convert -O qcow2' makes a qcow2 image of such a one"

/* The name of a driver that is built in as a static string. QCOW_E_UNSUPPORTED. */
enum qcow_status cli_driver_check(
	struct cli *cli, const char *name, const char **out, struct qcow_error *err) QK_MUST_USE;

/* Every member of a node is one that we honour, or one that changes nothing that a reader can see.
 * QCOW_E_UNSUPPORTED. */
enum qcow_status cli_driver_check_members(const json_t *spec, struct qcow_error *err) QK_MUST_USE;

#endif
