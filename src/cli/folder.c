/* SPDX-License-Identifier: MIT */
/*
 * folder: paths beside a file, and the entry of a new file in its folder. A synced file whose name a crash takes away is lost all the
 * same.
 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

/* The folder that `path` lies in: text of the caller's, NULL: out of memory. */
static char *folder_of(const char *path)
{
	const char *slash = strrchr(path, '/');
	if (slash == NULL)
		return qk_strndup(".", 1);
	return qk_strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

char *cli_join_path(const char *from, const char *name)
{
	const char *slash = strrchr(from, '/');
	if (name[0] == '/' || slash == NULL)
		return qk_strndup(name, strlen(name));
	size_t folder = (size_t)(slash - from) + 1, n = strlen(name);
	char *joined = qk_malloc((uint64_t)folder + n + 1, 1);
	if (joined != NULL) {
		memcpy(joined, from, folder);
		memcpy(joined + folder, name, n + 1);
	}
	return joined;
}

bool cli_sync_folder(struct cli *cli, const char *path)
{
	QK_AUTO_FREE char *folder = folder_of(path);
	if (folder == NULL) {
		cli_error(cli, "out of memory");
		return false;
	}
	int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) /* one that may be written and not be read */
		return true;
	/* EINVAL: the file system has nothing to sync there */
	bool ok = fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP;
	if (!ok)
		cli_error(cli, "%s: making a new file durable: %s", folder, strerror(errno));
	(void)close(fd);
	return ok;
}
