/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_INFO_H
#define QK_CLI_INFO_H

#include "cli/cli.h"

/* The "encrypt" object of an encrypted image: its format, and for LUKS what its header says in clear.
 * Reads the header from the image's store; a header that is not readable shows the format alone. */
json_t *cli_info_encryption(struct qcow_image *image, const struct qcow_info *in);

/* "format-specific" of a LUKS file. Read from the image, printed as it is. */
json_t *cli_info_luks(struct qcow_image *image, const struct qcow_info *in);

/* "Format specific information:" and its lines, for qcow2 images; nothing for others. */
void cli_info_put_specific(struct cli *cli, struct qcow_image *image);

#endif
