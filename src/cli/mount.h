/* SPDX-License-Identifier: MIT */
/*
 * mount: what the files of `qcow mount` share. Images, exports, the control socket and the process are those of `qcow serve`
 * (cli/serve.h); instead of the NBD server a file system shows them.
 *
 *   cmd_mount.c    options, from start to end
 *   mount_front.c  exports shown by the file system
 *   mount_name.c   file names for what an image calls as it likes
 */
#ifndef QK_CLI_MOUNT_H
#define QK_CLI_MOUNT_H

#include "cli/serve.h"

#define MOUNT_NAME_BYTES 255U
#define MOUNT_DISK	 "disk" /* the export of the image's own disk */

/* `text` as a file name of at most `most` bytes: '/', '%', control bytes, what is not UTF-8, and a '.' at the start as %XX.
 * NULL: it is empty, or does not fit, or out of memory (*no_memory). Free it. */
char *mount_name(const char *text, size_t most, bool *no_memory);

/* `folder`/NAME for a thing of an image that calls itself `name`, has an `id` (or NULL) and is number `number`: its name, else the
 * start of it with "%id=ID", else "%n=NUMBER", whichever is a file name first and is not `is_taken`. NULL: out of memory. */
char *mount_path(const char *folder, const struct serve_part *thing, const char *suffix,
	bool (*is_taken)(void *ctx, const char *path), void *ctx);

extern const struct serve_front serve_front_mount;

#endif
