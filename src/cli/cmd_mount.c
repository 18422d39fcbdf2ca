/* SPDX-License-Identifier: MIT */
/*
 * cmd_mount: `qcow mount`, and mount.qcow, which mount(8) runs: what is in an image as files of a folder.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/mount.h"

#ifdef QK_FUSE
#include "serve/fuse/fuse.h"

/* What the options say, -o among them. */
struct wanted {
	struct qk_fuse_options fuse;
	bool writes, grows;
	char *rest; /* for libfuse: key,key=value */
	size_t rest_bytes;
};

/* ---- options ---- */

/* What fstab(5) has for mount(8) alone, and what every file system is told although it means nothing here: reading changes no
 * time, locks are not mandatory. */
static bool is_for_mount(const char *key)
{
	static const char *const words[] = {"auto", "comment", "defaults", "fail", "group",
		"noauto", "nofail", "nogroup", "noowner", "nouser", "owner", "user", "users",
		"_netdev", "_rnetdev", "atime", "diratime", "relatime", "strictatime", "lazytime",
		"nolazytime", "iversion", "noiversion", "mand", "nomand", "loud", "silent"};
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcmp(words[i], key) == 0)
			return true;
	return strncmp(key, "x-", 2) == 0 || strncmp(key, "X-", 2) == 0;
}

/* ',' and '\' in a value are libfuse's too. */
static void pass_on(struct wanted *w, const char *key, const char *value)
{
	size_t room = w->rest_bytes + strlen(key) + (value != NULL ? 2 * strlen(value) : 0) + 3;
	char *all = qk_realloc(w->rest, room, 1);
	if (all == NULL)
		cli_out_of_memory();
	w->rest = all;
	char *at = all + w->rest_bytes;
	at += snprintf(at, room - w->rest_bytes, "%s%s%s", w->rest_bytes > 0 ? "," : "", key,
		value != NULL ? "=" : "");
	for (; value != NULL && *value != '\0'; value++) {
		if (*value == ',' || *value == '\\')
			*at++ = '\\';
		*at++ = *value;
	}
	*at = '\0';
	w->rest_bytes = (size_t)(at - all);
}

static bool take_umask(struct cli *cli, const char *text, mode_t *out)
{
	char *end = NULL;
	unsigned long n = strtoul(text, &end, 8);
	if (*text < '0' || *text > '7' || *end != '\0' || n > 0777)
		return cli_usage(cli, "umask: '%s' is no octal mode", text), false;
	*out = (mode_t)n;
	return true;
}

/* An option of ours, by -o or as --KEY: 1, 0 where it is none of ours, -1 where it is wrong, which is reported. */
static int take_own(struct cli *cli, struct wanted *w, const char *key, const char *value)
{
	uint64_t n = 0;
	if (strcmp(key, "uid") == 0 || strcmp(key, "gid") == 0) {
		if (value == NULL || !cli_parse_number(cli, key, value, 0, UINT32_MAX - 1, &n))
			return -1;
		if (key[0] == 'u')
			w->fuse.uid = (uid_t)n;
		else
			w->fuse.gid = (gid_t)n;
		return 1;
	}
	if (strcmp(key, "umask") == 0)
		return value != NULL && take_umask(cli, value, &w->fuse.umask) ? 1 : -1;
	if (value != NULL)
		return 0;
	if (strcmp(key, "rw") == 0 || strcmp(key, "ro") == 0)
		w->writes = key[1] == 'w';
	else if (strcmp(key, "grow") == 0)
		w->grows = true;
	else
		return 0;
	return 1;
}

static bool take_list(struct cli *cli, const struct cli_args *args, struct wanted *w)
{
	struct cli_keyvals list = {0};
	bool ok = cli_keyvals_from_args(cli, args, "options", &list);
	for (size_t i = 0; i < list.n && ok; i++) {
		const char *key = list.v[i].key, *value = list.v[i].value;
		if (is_for_mount(key))
			continue;
		int own = take_own(cli, w, key, value);
		ok = own >= 0;
		if (own == 0)
			pass_on(w, key, value);
	}
	cli_keyvals_release(&list);
	return ok;
}

static bool take_options(struct cli *cli, const struct cli_args *args, struct wanted *w)
{
	static const char *const with_value[] = {"uid", "gid", "umask"};
	w->fuse.uid = getuid();
	w->fuse.gid = getgid();
	w->fuse.umask = 077;
	if (!take_list(cli, args, w))
		return false;
	for (size_t i = 0; i < sizeof(with_value) / sizeof(with_value[0]); i++) {
		const char *value = cli_arg(args, with_value[i]);
		if (value != NULL && take_own(cli, w, with_value[i], value) < 0)
			return false;
	}
	w->writes = w->writes || cli_flag(args, "writable");
	w->grows = w->grows || cli_flag(args, "grow");
	if (cli_flag(args, "allow-other"))
		pass_on(w, "allow_other", NULL);
	if (!w->writes)
		pass_on(w, "ro", NULL);
	w->fuse.source = args->operands[0];
	w->fuse.options = w->rest;
	if (cli_flag(args, "file"))
		w->fuse.only = cli_arg(args, "file") != NULL ? cli_arg(args, "file") : MOUNT_DISK;
	return true;
}

/* ---- the file system ---- */

static enum qcow_status on_grow(
	void *ctx, const char *name, uint64_t new_size, struct qcow_error *err)
{
	if (strcmp(name, MOUNT_DISK) != 0)
		return QK_FAIL(err, QCOW_E_NOTSUP, "only the disk can grow");
	return serve_resize(ctx, name, new_size, err);
}

static void on_unused(void *ctx, void *export_ctx)
{
	(void)ctx;
	serve_lazy_close(export_ctx);
}

/* From a thread of the file system: it is one client, which has left. */
static void on_end(void *ctx)
{
	struct serve *s = ctx;
	uint64_t one = 1;
	atomic_store(&s->was_served, true);
	(void)!write(s->wake, &one, sizeof(one));
}

static void on_log(void *ctx, const char *text)
{
	struct serve *s = ctx;
	cli_more(s->cli, "%s", text);
}

static bool show(struct serve *s, struct wanted *w)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	const char *mountpoint = s->args->operands[1];
	const struct serve_operand operand = {.text = s->args->operands[0],
		.name = MOUNT_DISK,
		.format = cli_arg(s->args, "format"),
		.image_opts = cli_flag(s->args, "image-opts"),
		.read_only = !w->writes};
	w->fuse.grow = w->grows ? on_grow : NULL;
	w->fuse.on_unused = on_unused;
	w->fuse.on_end = on_end;
	w->fuse.log = on_log;
	w->fuse.ctx = s;
	if (qk_fuse_new(&w->fuse, &s->fuse, &err) != QCOW_OK)
		return cli_fail(s->cli, &err, "cannot make the file system"), false;
	if (!serve_open(s, &operand))
		return false;
	if (qk_fuse_mount(s->fuse, mountpoint, &err) != QCOW_OK ||
		qk_fuse_start(s->fuse, &err) != QCOW_OK)
		return cli_fail(s->cli, &err, "cannot mount at '%s'", mountpoint), false;
	return true;
}

static int mount_image(struct serve *s, struct wanted *w)
{
	const char *ctl = cli_arg(s->args, "control");
	if (!serve_catch_signals(s) || !serve_follow_parent(s) || !show(s, w))
		return 1;
	if ((ctl != NULL && !serve_ctl_open(s, ctl)) || !serve_is_ready(s))
		return 1;
	return serve_loop(s);
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct serve s = {.cli = cli,
		.args = args,
		.front = &serve_front_mount,
		.ready_fd = -1,
		.ctl_listener = -1,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.released = PTHREAD_COND_INITIALIZER};
	struct wanted w = {.writes = false};
	int exit_code = 1;
	bool forks = cli_flag(args, "fork") || cli->traits->forks;
	bool goes_on = cli_objects_add_all(cli, args) && take_options(cli, args, &w);
	if (goes_on && cli_flag(args, "fake")) {
		goes_on = false;
		exit_code = 0;
	}
	if (!goes_on || (forks && !serve_fork(&s, &exit_code))) {
		free(w.rest);
		return exit_code;
	}
	s.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	serve_open_many_files(&s);
	if (s.wake >= 0)
		exit_code = mount_image(&s, &w);
	else
		cli_error(cli, "cannot wait for events: %s", strerror(errno));
	serve_ctl_close(&s);
	qk_fuse_free(s.fuse);
	if (!serve_forget_all(&s))
		exit_code = 1;
	(void)close(s.wake);
	if (s.signals > 0)
		(void)close(s.signals);
	free(w.rest);
	return exit_code;
}

#else

static int run(struct cli *cli, const struct cli_args *args)
{
	(void)args;
	cli_error(cli, "mount needs libfuse3, which was not there when this program was built");
	return 1;
}

#endif

static const struct cli_option options[] = {
	/* what mount(8) says to its helpers: these letters are not those of `qcow mount` */
	{.letter = 'f',
		.name = "fake",
		.flags = CLI_OPT_HELPER,
		.help = "look at the options, and mount nothing"},
	{.letter = 'n', .name = "no-mtab", .flags = CLI_OPT_HELPER, .help = "there is none"},
	{.letter = 's',
		.name = "sloppy",
		.flags = CLI_OPT_HELPER,
		.help = "nothing is changed by it"},
	{.letter = 'v', .name = "verbosely", .flags = CLI_OPT_HELPER, .help = "nothing is said"},
	{.letter = 't',
		.name = "type",
		.arg = "TYPE",
		.flags = CLI_OPT_HELPER,
		.help = "the type that mount(8) was given"},
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.letter = 'w',
		.name = "writable",
		.help = "the disk and its partitions can be written to"},
	{.name = "grow", .help = "truncate may make the disk longer"},
	{.name = "file",
		.arg = "VIEW",
		.flags = CLI_OPT_ARG_OPTIONAL,
		.help = "MOUNTPOINT is a regular file, which shows one of the files: disk if not "
			"given"},
	{.letter = 'o',
		.name = "options",
		.arg = "OPTIONS",
		.help = "as for mount(8): rw, ro, grow, uid=, gid=, umask=, allow_other, "
			"auto_unmount, …"},
	{.name = "allow-other",
		.help = "other users may look, as far as the mode of files lets them"},
	{.name = "uid", .arg = "UID", .help = "the owner of the files, you if not given"},
	{.name = "gid", .arg = "GID", .help = "their group, yours if not given"},
	{.name = "umask", .arg = "OCTAL", .help = "what their mode lacks, 077 if not given"},
	{.name = "cache",
		.arg = "CACHE",
		.choices = "none|writeback|writethrough|directsync|unsafe",
		.help = "cache mode of the image"},
	{.name = "discard",
		.arg = "MODE",
		.choices = "ignore|off|unmap|on",
		.help = "may punched holes give up space? unmap if not given"},
	{.name = "detect-zeroes",
		.arg = "MODE",
		.choices = "off|on|unmap",
		.help = "store writes of zeros as zeros; unmap: and give up the space"},
	{.name = "control",
		.arg = "PATH",
		.choices = "@file",
		.help = "take commands of 'qcow ctl' at this socket"},
	{.name = "exit-with-parent", .help = "end when the process that started this one ends"},
	{.name = "fork", .help = "go into the background; return when it is mounted"},
	{.name = "pid-file",
		.arg = "FILE",
		.choices = "@file",
		.help = "write the server's process id there when it is mounted"},
	{.letter = 'v',
		.name = "verbose",
		.help = "with --fork: go on saying on stderr what fails"},
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_mount = {
	.name = "mount",
	.summary = "Mount a folder that shows what is in an image as files",
	.synopsis = "[-w] [-o OPTIONS] [--file[=VIEW]] [--fork] FILE MOUNTPOINT",
	.about = "The folder has disk, snapshots/NAME, chain/N, partitions/pN and "
		 "bitmaps/NAME.json.\n"
		 "It is unmounted by SIGTERM, SIGINT, 'qcow ctl SOCKET stop', umount or "
		 "fusermount3 -u.",
	.options = options,
	.flags = CLI_OPT_QCOW,
	.min_operands = 2,
	.max_operands = 2,
	.run = run,
};
