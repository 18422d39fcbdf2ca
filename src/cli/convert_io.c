/* SPDX-License-Identifier: MIT */
/*
 * convert_io: opens what convert reads and writes.
 *
 * A file that was there before is never removed, whatever happens; one that this run made is removed
 * unless the run succeeds. Standard input that cannot seek is kept in an unlinked file, so there is
 * nothing to clean up even after SIGKILL.
 */
#include "cli/convert_io.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/num.h"
#include "cli/object.h"
#include "cli/spec.h"

#define SPOOL_BYTES	  ((size_t)1 << 20)
#define SPOOL_GRAIN_BYTES ((size_t)4096)

static char *copy_text(const char *text)
{
	return qk_strndup(text, strlen(text));
}

static bool out_of_memory(struct cli *cli)
{
	cli_error(cli, "Cannot allocate memory");
	return false;
}

char *convert_path_of(struct cli *cli, const char *text, bool image_opts)
{
	struct cli_operand operand = {.text = text, .image_opts = image_opts};
	struct qcow_error err = QCOW_ERROR_INIT;
	json_t *spec = NULL;
	const char *path = NULL;
	if (cli_spec_parse(cli, &operand, &spec, &err) != QCOW_OK) {
		(void)cli_fail(cli, &err, "%s", text);
		return NULL;
	}
	for (const json_t *node = spec; node != NULL && path == NULL;
		node = json_object_get(node, "file"))
		path = json_string_value(json_object_get(node, "filename"));
	/* a node without a file, an export say, goes by what was typed */
	char *copy = copy_text(path != NULL ? path : text);
	if (copy == NULL)
		(void)out_of_memory(cli);
	json_decref(spec);
	return copy;
}

/* ---- sources ---- */

/* An unlinked file in $TMPDIR or /var/tmp. -1: errno says why. */
static int open_spool(const char **where)
{
	const char *folder = getenv("TMPDIR");
	if (folder == NULL || folder[0] == '\0')
		folder = "/var/tmp";
	*where = folder;
	int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
		return fd;
	char path[4096];
	int n = snprintf(path, sizeof(path), "%s/qcow-stdin-XXXXXX", folder);
	if (n < 0 || (size_t)n >= sizeof(path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	fd = mkostemp(path, O_CLOEXEC);
	if (fd >= 0)
		(void)unlink(path);
	return fd;
}

/* Write what is not zero of buf; the file is extended by the caller in the end. */
static bool write_sparse(int fd, const uint8_t *buf, size_t len, uint64_t off)
{
	for (size_t at = 0; at < len;) {
		size_t n = qk_min(SPOOL_GRAIN_BYTES, len - at);
		if (!qk_is_zero(buf + at, n)) {
			ssize_t done = pwrite(fd, buf + at, n, (off_t)(off + at));
			if (done < 0 && errno != EINTR)
				return false;
			if (done < 0)
				continue;
			n = (size_t)done;
		}
		at += n;
	}
	return true;
}

/* Copy a stream to the end. False: errno says why. */
static bool spool(int from, int to)
{
	QK_AUTO_FREE uint8_t *buf = qk_malloc(1, SPOOL_BYTES);
	uint64_t off = 0;
	if (buf == NULL) {
		errno = ENOMEM;
		return false;
	}
	for (;;) {
		ssize_t n = read(from, buf, SPOOL_BYTES);
		if (n < 0)
			return false;
		if (n == 0)
			return ftruncate(to, (off_t)off) == 0;
		if (!write_sparse(to, buf, (size_t)n, off))
			return false;
		off += (uint64_t)n;
	}
}

/* A store of what comes in on standard input: itself where it is a file, else a copy. */
static struct qcow_store *open_stdin(struct cli *cli)
{
	struct stat st;
	struct qcow_store *store = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	const char *where = "";
	int fd = -1;
	if (fstat(STDIN_FILENO, &st) == 0 && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))) {
		fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
	} else {
		fd = open_spool(&where);
		if (fd >= 0 && !spool(STDIN_FILENO, fd)) {
			int saved = errno;
			(void)close(fd);
			fd = -1;
			errno = saved;
		}
	}
	if (fd < 0) {
		cli_error(cli, "cannot keep standard input%s%s: %s", where[0] != '\0' ? " in " : "",
			where, strerror(errno));
		return NULL;
	}
	if (qcow_file_open_fd(fd, 0, &store, &err) != QCOW_OK) {
		(void)close(fd);
		(void)cli_fail(cli, &err, "standard input");
		return NULL;
	}
	if (qcow_store_set_name(store, "standard input", &err) != QCOW_OK) {
		qcow_store_close(store);
		(void)out_of_memory(cli);
		return NULL;
	}
	return store;
}

static bool open_stdin_image(struct convert_job *job, struct qcow_image **out)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = open_stdin(job->cli);
	if (store == NULL)
		return false;
	/* Not probed: a stream is a disk's bytes unless the user says otherwise. */
	options.format = cli_arg(job->args, "format");
	if (options.format == NULL)
		options.format = "raw";
	options.get_secret = cli_passphrase;
	options.secret_ctx = job->cli;
	options.cancelled = job->cli->cancelled;
	if (qcow_open(store, &options, out, &err) == QCOW_OK)
		return true;
	(void)cli_fail(job->cli, &err, "standard input");
	return false;
}

/* The source is open and nothing of it has been read: the target has to be opened now. */
static enum qcow_status open_target_first(void *ctx, struct qcow_error *err)
{
	struct convert_job *job = ctx;
	if (job->to_stdout || convert_open_target(job))
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_CANCELLED, "the target cannot be opened");
}

static bool open_source(struct convert_job *job, const char *operand, struct qcow_image **out)
{
	struct cli_open_request request;
	if (!job->cli->qemu && strcmp(operand, "-") == 0)
		return open_stdin_image(job, out);
	if (!cli_open_request_init(job->cli, job->args, operand, CLI_OPEN_UNSHARED, &request))
		return false;
	request.snapshot = cli_arg(job->args, "snapshot");
	request.sandbox = job->sandbox;
	if (job->sandbox.wanted) {
		request.ready = open_target_first;
		request.ready_ctx = job;
	}
	if ((cli_cache_file_flags(cli_arg(job->args, "source-cache")) & QCOW_FILE_DIRECT) != 0)
		request.flags |= CLI_OPEN_DIRECT;
	return cli_open(job->cli, &request, out) == QCOW_OK;
}

bool convert_open_sources(struct convert_job *job)
{
	unsigned n = (unsigned)job->args->n_operands - 1;
	job->sources = qk_calloc(n, sizeof(struct qcow_image *));
	if (job->sources == NULL)
		return out_of_memory(job->cli);
	for (; job->n_sources < n; job->n_sources++)
		if (!open_source(job, job->args->operands[job->n_sources],
			    &job->sources[job->n_sources]))
			return false;
	job->options.sources = job->sources;
	job->options.n_sources = job->n_sources;
	return true;
}

bool convert_open_backing(struct convert_job *job, const char *name)
{
	struct cli_open_request request;
	struct qcow_info info;
	const char *format = job->opts.create.backing_format;
	if (format == NULL && job->cli->qemu) {
		cli_error(job->cli, "Use of backing file requires explicit backing format");
		return false;
	}
	job->backing_path = cli_join_path(job->target_path, name);
	if (job->backing_path == NULL)
		return out_of_memory(job->cli);
	if (!cli_open_request_init(
		    job->cli, job->args, job->backing_path, CLI_OPEN_UNSHARED, &request))
		return false;
	request.operand.image_opts = false;
	request.operand.format = format;
	if (cli_open(job->cli, &request, &job->backing) != QCOW_OK)
		return false;
	qcow_get_info(job->backing, &info);
	job->backing_format = copy_text(format != NULL ? format : info.format);
	if (job->backing_format == NULL)
		return out_of_memory(job->cli);
	job->opts.create.backing_name = name;
	job->opts.create.backing_format = job->backing_format;
	job->options.backing = job->backing;
	return true;
}

/* ---- targets ---- */

static bool store_is(struct qcow_store *store, const struct stat *st)
{
	struct stat other;
	int fd = store != NULL ? qcow_store_fd(store) : -1;
	return fd >= 0 && fstat(fd, &other) == 0 && other.st_dev == st->st_dev &&
	       other.st_ino == st->st_ino && other.st_rdev == st->st_rdev;
}

static bool chain_holds(struct qcow_image *image, const struct stat *st)
{
	for (; image != NULL; image = qcow_backing(image))
		if (store_is(qcow_image_store(image), st) ||
			store_is(qcow_image_data_store(image), st) ||
			store_is(qcow_image_header_store(image), st))
			return true;
	return false;
}

/* False: the path is a file that this run reads; reported. */
static bool check_not_read(struct convert_job *job, const char *path, const struct stat *st)
{
	bool is_read = chain_holds(job->backing, st);
	for (unsigned i = 0; i < job->n_sources && !is_read; i++)
		is_read = chain_holds(job->sources[i], st);
	if (!is_read)
		return true;
	cli_error(job->cli, "%s: it is a source too: Failed to get \"write\" lock", path);
	cli_hint(job->cli, "write to a new file, then rename it over '%s'", path);
	return false;
}

/* A LUKS file that is there (-n): its passphrase, and its detached header, which is then the target's first
 * store, and the disk the second. */
static bool take_header(struct convert_job *job, const struct cli_target *target)
{
	const struct cli_secret *s = target->secret;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_secret_request want = {job->target_path, QCOW_ENCRYPTION_LUKS};
	if (!job->options.keep_target || !job->opts.luks)
		return true;
	if (target->header != NULL) {
		job->data = target->store;
		job->target = target->header;
		job->opts.create.luks_detached_header = true;
	}
	if (s != NULL) {
		job->opts.create.secret = (struct qcow_secret){s->data, s->bytes};
		return true;
	}
	if (cli_passphrase(job->cli, &want, &job->opts.create.secret, &err) == QCOW_OK)
		return true;
	(void)cli_fail(job->cli, &err, "%s", job->target_path);
	return false;
}

/* QEMU's convert does not sync unless a cache mode is asked for; ours does unless told not to. */
bool convert_wants_sync(const struct convert_job *job)
{
	const char *cache = cli_arg(job->args, "target-cache");
	return cache != NULL ? strcmp(cache, "unsafe") != 0 : !job->cli->qemu;
}

static bool fail_target(struct convert_job *job, const char *text, struct qcow_error *err)
{
	char during[64];
	(void)snprintf(during, sizeof(during), "converting %s", job->format);
	if (job->options.keep_target)
		cli_report_open(job->cli, NULL, text, err);
	else
		cli_report_create(job->cli, during, text, err);
	return false;
}

static bool open_file(struct convert_job *job, const struct cli_operand *operand, const char *path,
	struct qcow_store **out, bool *made)
{
	struct stat st;
	struct cli_target target;
	struct qcow_error err = QCOW_ERROR_INIT;
	bool exists = stat(path, &st) == 0;
	unsigned flags = QCOW_FILE_WRITE | cli_cache_file_flags(cli_arg(job->args, "target-cache"));
	if (exists && !check_not_read(job, path, &st))
		return false;
	if (!exists && !job->options.keep_target)
		flags |= QCOW_FILE_CREATE | QCOW_FILE_EXCL;
	if (cli_open_target(job->cli, operand, flags, &target, &err) != QCOW_OK)
		return fail_target(job, operand->text, &err);
	*out = target.store;
	if (!take_header(job, &target))
		return false;
	*made = !exists;
	cli_keeper_note(job->keeper, made == &job->made_data, path, *made);
	return !*made || !convert_wants_sync(job) || cli_sync_folder(job->cli, path);
}

static bool open_data_file(struct convert_job *job)
{
	const char *name = job->opts.create.data_file_name;
	if (name == NULL)
		return true;
	job->data_path = cli_join_path(job->target_path, name);
	if (job->data_path == NULL)
		return out_of_memory(job->cli);
	struct stat a, b;
	struct cli_operand operand = {.text = job->data_path, .format = "raw"};
	if (stat(job->data_path, &a) == 0 && stat(job->target_path, &b) == 0 &&
		a.st_dev == b.st_dev && a.st_ino == b.st_ino) {
		cli_error(job->cli, "%s: the data file is the image itself", job->data_path);
		return false;
	}
	return open_file(job, &operand, job->data_path, &job->data, &job->made_data);
}

/* -n onto a qcow2 image: opened as any other, but for writing. */
static bool open_target_image(struct convert_job *job)
{
	struct cli_open_request request;
	struct stat st;
	if (stat(job->target_path, &st) == 0 && !check_not_read(job, job->target_path, &st))
		return false;
	if (!cli_open_request_init(job->cli, job->args,
		    job->args->operands[job->args->n_operands - 1], CLI_OPEN_WRITE, &request))
		return false;
	request.operand.image_opts = cli_flag(job->args, "target-image-opts");
	request.operand.format = request.operand.image_opts ? NULL : job->format;
	request.flags &= ~(unsigned)(CLI_OPEN_SHARE | CLI_OPEN_DIRECT);
	request.flags |= cli_cache_open_flags(cli_arg(job->args, "target-cache"));
	unsigned filters = 0;
	request.filters = &filters;
	if (cli_open(job->cli, &request, &job->target_image) != QCOW_OK)
		return false;
	if ((filters & CLI_FILTER_COMPRESS) != 0)
		job->options.compress = true;
	job->options.target_image = job->target_image;
	return true;
}

bool convert_open_target(struct convert_job *job)
{
	if (job->options.keep_target && strcmp(job->format, "qcow2") == 0)
		return open_target_image(job);
	struct cli_operand operand = {
		.text = job->args->operands[job->args->n_operands - 1],
		.format = job->format,
		.image_opts = cli_flag(job->args, "target-image-opts"),
	};
	return open_file(job, &operand, job->target_path, &job->target, &job->made_target) &&
	       open_data_file(job);
}

bool convert_check_target(struct convert_job *job)
{
	struct stat st;
	if (job->target_image != NULL) /* checked as it was opened, before the sandbox */
		return true;
	int fd = qcow_store_fd(job->target);
	return fd < 0 || fstat(fd, &st) != 0 || check_not_read(job, job->target_path, &st);
}

bool convert_close(struct convert_job *job, bool ok)
{
	ok = cli_close(job->cli, job->target_image, ok);
	/* in a sandbox neither works, and the keeper does it */
	if (!ok && job->made_target && unlink(job->target_path) == 0)
		cli_keeper_note(job->keeper, 0, job->target_path, false);
	if (!ok && job->made_data && unlink(job->data_path) == 0)
		cli_keeper_note(job->keeper, 1, job->data_path, false);
	qcow_store_close(job->target);
	qcow_store_close(job->data);
	qcow_close(job->backing);
	for (unsigned i = 0; i < job->n_sources; i++)
		qcow_close(job->sources[i]);
	free((void *)job->sources);
	free(job->format);
	free(job->target_path);
	free(job->backing_path);
	free(job->backing_format);
	free(job->data_path);
	cli_keyvals_release(&job->keyvals);
	return ok;
}
