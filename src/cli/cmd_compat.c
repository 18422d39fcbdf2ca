/* SPDX-License-Identifier: MIT */
/*
 * cmd_compat: `qcow compat`: the names of QEMU's programs as links to this one, which is what its name says (compat/).
 *
 * A file that is there is replaced only if it is a link, and one to another program only if asked to: qemu-img
 * itself is never lost. A link is made under another name and renamed, so the name is there all the time.
 */
#include "cli/cli.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

static const char *const names[] = {"qemu-img", "qemu-io", "qemu-nbd"};

struct link {
	const char *dir, *name;
	const char *target; /* this program */
	bool force;
};

/* What is at `path`: QCOW_OK where it is our link already (*done) or may be replaced. False: reported. */
static bool may_replace(struct cli *cli, const struct link *l, const char *path, bool *done)
{
	char now[PATH_MAX];
	struct stat st;
	*done = false;
	if (lstat(path, &st) != 0) {
		if (errno == ENOENT)
			return true;
		cli_error(cli, "cannot look at '%s': %s", path, strerror(errno));
		return false;
	}
	ssize_t n = S_ISLNK(st.st_mode) ? readlink(path, now, sizeof(now) - 1) : -1;
	now[n > 0 ? n : 0] = '\0';
	*done = strcmp(now, l->target) == 0;
	if (*done || (n >= 0 && l->force))
		return true;
	if (n >= 0)
		cli_error(cli, "'%s' is a link to '%s'; --force replaces it", path, now);
	else
		cli_error(cli, "'%s' is a file of its own, which is not replaced", path);
	return false;
}

static bool make_link(struct cli *cli, const struct link *l)
{
	QK_AUTO_FREE char *path = NULL;
	QK_AUTO_FREE char *fresh = NULL;
	bool done = false;
	if (asprintf(&path, "%s/%s", l->dir, l->name) < 0 ||
		asprintf(&fresh, "%s/.%s.%ld", l->dir, l->name, (long)getpid()) < 0)
		cli_out_of_memory();
	if (!may_replace(cli, l, path, &done))
		return false;
	if (done)
		return true;
	if (symlink(l->target, fresh) == 0 && rename(fresh, path) == 0)
		return true;
	cli_error(cli, "cannot make the link '%s': %s", path, strerror(errno));
	(void)unlink(fresh);
	return false;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	char self[PATH_MAX];
	struct link l = {
		.dir = cli_arg(args, "link"), .target = self, .force = cli_flag(args, "force")};
	bool ok = true;
	if (l.dir == NULL) {
		for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
			(void)printf("%s\n", qk_compat_traits(names[i])->version);
		return 0;
	}
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (n < 0) {
		cli_error(cli, "cannot find this program's own file: %s", strerror(errno));
		return 1;
	}
	self[n] = '\0';
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		l.name = names[i];
		ok = make_link(cli, &l) && ok;
	}
	return ok ? 0 : 1;
}

static const struct cli_option options[] = {
	{.name = "link",
		.arg = "DIR",
		.choices = "@file",
		.help = "make the links in this folder: put it first on PATH"},
	{.name = "force", .help = "replace links to other programs"},
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_compat = {
	.name = "compat",
	.summary = "Be qemu-img, qemu-io and qemu-nbd: links under their names",
	.synopsis = "[--link DIR [--force]]",
	.about = "Started under one of these names the program takes QEMU's command lines and "
		 "prints "
		 "what QEMU prints.\n"
		 "Without --link it says which versions it then is.",
	.options = options,
	.flags = CLI_OPT_QCOW,
	.run = run,
};
