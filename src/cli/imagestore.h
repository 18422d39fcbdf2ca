/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_IMAGESTORE_H
#define QK_CLI_IMAGESTORE_H

#include "cli/cli.h"

/* The disk of an image as a store, for nodes that lie over another format (driver=blkdebug,image.driver=qcow2). The
 * image passes to the store, and is closed where that fails. It has the disk's size and cannot grow. Any thread, as the
 * image. A close of the image that fails is told in cli->close_status. QCOW_E_NOMEM. */
enum qcow_status cli_image_store_new(struct cli *cli, struct qcow_image *image, bool writable,
	struct qcow_store **out, struct qcow_error *err) QK_MUST_USE;

#endif
