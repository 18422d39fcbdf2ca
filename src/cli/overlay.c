/* SPDX-License-Identifier: MIT */
#include "cli/overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static int open_unnamed(struct qcow_error *err)
{
	const char *folder = getenv("TMPDIR");
	folder = folder != NULL && folder[0] != '\0' ? folder : "/var/tmp";
	int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		(void)QK_FAIL_OS(err, errno, "no temporary file in '%s'", folder);
	return fd;
}

enum qcow_status cli_overlay_open(
	struct qcow_image *below, struct qcow_image **out, struct qcow_error *err)
{
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	int fd = open_unnamed(err);
	if (fd < 0)
		return err->status;
	enum qcow_status status = qcow_file_open_fd(
		fd, QCOW_FILE_WRITE | QCOW_FILE_NO_LOCK, &store, err);
	if (status != QCOW_OK) {
		(void)close(fd);
		return status;
	}
	create.virtual_size = (qcow_size(below) + 511) / 512 * 512;
	create.backing_name = "temporary";
	create.backing_format = "raw";
	status = qcow_create(store, NULL, &create, err);
	if (status != QCOW_OK) {
		qcow_store_close(store);
		return status;
	}
	options.flags = QCOW_OPEN_WRITE;
	options.format = "qcow2";
	options.backing = below;
	return qcow_open(store, &options, out, err);
}
