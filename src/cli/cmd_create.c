/* SPDX-License-Identifier: MIT */
/*
 * qcow create: make a new, empty image.
 *
 * What is recorded (names, formats) is recorded as typed; a relative backing or data file name is looked
 * for from the image's folder, as every reader will. A run that fails removes only what it made.
 */
#include "cli/cli.h"

#include <qcowkit/ops.h>

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/num.h"
#include "cli/create_opts.h"
#include "cli/driver.h"

#define ZERO_BUFFER_BYTES (1U << 20)

/* QEMU counts disks in sectors and would not see the rest of the last one. */
#define SECTOR_BYTES 512U

static const struct cli_option options[] = {
	{.letter = 'f',
		.name = "format",
		.arg = "FMT",
		.choices = "@format",
		.help = "format of the new image: qcow2, raw or luks"},
	{.letter = 'o',
		.name = "options",
		.arg = "KEY=VALUE,…",
		.help = "options of the new image; -o help lists them"},
	{.letter = 'b',
		.name = "backing",
		.arg = "FILE",
		.choices = "@file",
		.help = "make the image an overlay of FILE"},
	{.letter = 'B',
		.name = "backing-format",
		.arg = "FMT",
		.choices = "@format",
		.help = "format of the backing file"},
	{.letter = 'F',
		.name = "old-backing-format",
		.arg = "FMT",
		.key = "backing-format",
		.choices = "@format",
		.help = "the same as -B"},
	{.letter = 'u',
		.name = "backing-unsafe",
		.help = "do not look whether the backing file is there; needs SIZE"},
	CLI_OPT_PROGRESS,
	CLI_OPT_QUIET,
	CLI_OPT_OUTPUT_QCOW,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPT_UNTRUSTED,
	CLI_OPTIONS_END,
};

struct job {
	struct cli *cli;
	const struct cli_args *args;
	const char *path;
	const char *format;
	struct cli_keyvals keyvals; /* -o */
	struct cli_create_opts opts;
	uint64_t size; /* as asked for */
	char *backing_path, *data_path;
	char *found_format; /* of the backing file, where none was given */
	struct qcow_store *store, *data;
	bool made_file, made_data;
};

static bool is_qcow2(const struct job *job)
{
	return strcmp(job->format, "qcow2") == 0;
}

static bool out_of_memory(struct job *job)
{
	cli_error(job->cli, "Cannot allocate memory");
	return false;
}

static bool is_same_file(const char *a, const char *b)
{
	struct stat st_a;
	struct stat st_b;

	return stat(a, &st_a) == 0 && stat(b, &st_b) == 0 && st_a.st_dev == st_b.st_dev &&
	       st_a.st_ino == st_b.st_ino;
}

/* ---- what is asked for ---- */

static bool choose_format(struct job *job)
{
	job->format = cli_arg(job->args, "format");
	if (job->format == NULL)
		job->format = job->cli->qemu ? "raw" : "qcow2";
	if (strcmp(job->format, "qcow2") == 0 || strcmp(job->format, "raw") == 0 ||
		strcmp(job->format, "luks") == 0)
		return true;
	cli_error(job->cli, "%s: Unknown file format '%s'", job->path, job->format);
	cli_hint(job->cli, "new images are qcow2, raw or luks");
	return false;
}

/* The personality refuses a word that is no format like that of any other choice. */
static void note_backing_format(struct job *job)
{
	const char *name = job->opts.create.backing_format, *known = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	if (!job->cli->qemu || name == NULL || job->opts.refused_key != NULL ||
		cli_driver_check(job->cli, name, &known, &err) == QCOW_OK ||
		cli_driver_is_foreign(name))
		return;
	job->opts.refused_key = "backing-fmt";
	job->opts.refused_value = name;
}

static bool read_options(struct job *job)
{
	const char *backing = cli_arg(job->args, "backing");
	const char *backing_format = cli_arg(job->args, "backing-format");

	job->opts.path = job->path;
	if (!choose_format(job) ||
		!cli_keyvals_from_args(job->cli, job->args, "options", &job->keyvals) ||
		!cli_create_opts_parse(job->cli, job->format, &job->keyvals, &job->opts))
		return false;
	if (backing != NULL)
		job->opts.create.backing_name = backing;
	if (backing_format != NULL)
		job->opts.create.backing_format = backing_format;
	if (!is_qcow2(job) && job->opts.create.backing_name != NULL) {
		cli_error(job->cli, "%s: Backing file not supported for file format '%s'",
			job->path, job->format);
		return false;
	}
	if (!is_qcow2(job) && job->opts.create.backing_format != NULL) {
		cli_error(job->cli, "%s: Backing file format not supported for file format '%s'",
			job->path, job->format);
		return false;
	}
	note_backing_format(job);
	return true;
}

/* A backing file whose format nobody recorded must be probed by every reader, and a guest that writes
 * into a raw one chooses what they find. `found`: what it is now, or NULL. */
static bool refuse_no_format(struct job *job, const char *found)
{
	cli_error(job->cli, "%s: Backing file specified without backing format", job->path);
	if (job->cli->qemu && found != NULL)
		cli_more(job->cli, "Detected format of %s.", found);
	if (!job->cli->qemu || found == NULL)
		cli_hint(job->cli, "say which with -F qcow2 or -F raw");
	return false;
}

static bool refuse_backing(struct job *job, const struct qcow_error *err)
{
	if (!job->cli->qemu) {
		(void)cli_fail(job->cli, err, "cannot open '%s'", job->backing_path);
		cli_hint(job->cli, "-u and a SIZE create the image without its backing file");
	} else {
		/* QEMU names the file where its system call failed, and only there */
		if (err->os_errno != 0)
			cli_error(job->cli, "%s: Could not open '%s': %s", job->path,
				job->backing_path, strerror(err->os_errno));
		else if (err->status == QCOW_E_NOT_QCOW2)
			cli_error(job->cli, "%s: Image is not in qcow2 format", job->path);
		else
			(void)cli_fail(job->cli, err, "%s", job->path);
		cli_more(job->cli, "Could not open backing image.");
	}
	return false;
}

/* Open the backing file for its size, its format, and to see that it can be opened. */
static bool look_at_backing(struct job *job, uint64_t *size)
{
	struct cli_open_request request;
	struct qcow_image *image = NULL;
	struct qcow_info info;
	struct qcow_error err = QCOW_ERROR_INIT;
	bool ok = true;

	unsigned share = job->cli->traits->overlays_live ? (unsigned)CLI_OPEN_SHARE : 0;
	if (!cli_open_request_init(
		    job->cli, job->args, job->backing_path, CLI_OPEN_CHECK | share, &request))
		return false;
	request.operand.image_opts = false;
	request.operand.format = job->opts.create.backing_format;
	if (cli_try_open(job->cli, &request, &image, &err) != QCOW_OK)
		return refuse_backing(job, &err);
	qcow_get_info(image, &info);
	*size = qk_div_up(qcow_size(image), SECTOR_BYTES) * SECTOR_BYTES;
	if (job->opts.create.backing_format == NULL && job->cli->qemu) {
		ok = refuse_no_format(job, info.format);
	} else if (job->opts.create.backing_format == NULL) {
		job->found_format = qk_strndup(info.format, strlen(info.format));
		job->opts.create.backing_format = job->found_format;
		ok = job->found_format != NULL || out_of_memory(job);
	}
	qcow_close(image);
	return ok;
}

static bool read_backing(struct job *job, uint64_t *size, bool *has_size)
{
	const char *name = job->opts.create.backing_name;

	if (name == NULL)
		return true;
	if (name[0] == '\0') {
		cli_error(job->cli, "%s: Expected backing file name, got empty string", job->path);
		return false;
	}
	if (job->opts.create.backing_format == NULL && cli_flag(job->args, "backing-unsafe"))
		return refuse_no_format(job, NULL);
	size_t protocol_bytes = 0;
	bool is_path = !cli_path_protocol(name, &protocol_bytes);
	job->backing_path = is_path ? cli_join_path(job->path, name)
				    : qk_strndup(name, strlen(name));
	if (job->backing_path == NULL)
		return out_of_memory(job);
	if (is_same_file(job->backing_path, job->path) || strcmp(name, job->path) == 0) {
		cli_error(job->cli,
			"%s: Error: Trying to create an image with the same filename as the "
			"backing file",
			job->path);
		return false;
	}
	if (cli_flag(job->args, "backing-unsafe"))
		return true;
	if (!look_at_backing(job, size))
		return false;
	*has_size = true;
	return true;
}

static bool read_size(struct job *job)
{
	const char *text = job->args->n_operands > 1 ? job->args->operands[1] : NULL;
	bool has_size = false;

	if (text != NULL && job->opts.has_size) {
		cli_error(job->cli, "%s: The image size must be specified only once", job->path);
		return false;
	}
	if (!read_backing(job, &job->size, &has_size))
		return false;
	if (text != NULL)
		return cli_parse_size(job->cli, "image size", text, &job->size);
	if (job->opts.has_size)
		job->size = job->opts.size;
	else if (job->opts.create.luks_detached_header)
		job->size = 0; /* the disk is elsewhere */
	else if (!has_size) {
		cli_error(job->cli, "%s: Image creation needs a size parameter", job->path);
		return false;
	}
	return true;
}

/* The disk is whole sectors. */
static bool round_size(struct job *job)
{
	uint64_t size = 0;

	if (!qk_align_up(job->size, SECTOR_BYTES, &size) || size > INT64_MAX) {
		cli_error(job->cli,
			"%s: Invalid image size specified. Must be between 0 and %" PRId64 ".",
			job->path, INT64_MAX);
		return false;
	}
	job->opts.create.virtual_size = size;
	return true;
}

/* ---- "Formatting …" ---- */

static void put_text(const char *key, const char *value)
{
	(void)printf(" %s=", key);
	for (const char *comma = NULL; value[0] != '\0'; value = comma) {
		char part[256];
		comma = value + strcspn(value, ",");
		if (*comma == ',')
			comma++;
		if ((size_t)(comma - value) >= sizeof(part))
			comma = value + sizeof(part) - 1;
		(void)snprintf(part, sizeof(part), "%.*s", (int)(comma - value), value);
		cli_put_escaped(stdout, part);
		if (comma[-1] == ',')
			(void)putchar(',');
	}
}

static void put_number(const char *key, uint64_t value)
{
	(void)printf(" %s=%" PRIu64, key, value);
}

static void put_bool(const char *key, bool value)
{
	(void)printf(" %s=%s", key, value ? "on" : "off");
}

/* Is the key among the -o as typed? Options that have a default are always shown, others only then. */
static const char *typed(const struct job *job, const char *key)
{
	return cli_keyvals_get(&job->keyvals, key);
}

static void put_qcow2_options(const struct job *job)
{
	static const char *const encryption[] = {"encrypt.format", "encrypt.key-secret",
		"encrypt.cipher-alg", "encrypt.cipher-mode", "encrypt.ivgen-alg",
		"encrypt.ivgen-hash-alg", "encrypt.hash-alg", "encrypt.iter-time"};
	const struct qcow_create_options *o = &job->opts.create;

	if (typed(job, "encryption") != NULL)
		put_text("encryption", typed(job, "encryption"));
	for (size_t i = 0; i < sizeof(encryption) / sizeof(encryption[0]); i++)
		if (typed(job, encryption[i]) != NULL)
			put_text(encryption[i], typed(job, encryption[i]));
	put_number("cluster_size", o->cluster_size);
	put_bool("extended_l2", o->extended_l2);
	if (typed(job, "preallocation") != NULL)
		put_text("preallocation", typed(job, "preallocation"));
	const char *compression = typed(job, "compression_type");
	put_text("compression_type", compression != NULL ? compression : "zlib");
	if (typed(job, "keep_data_file") != NULL)
		put_bool("keep_data_file", o->keep_data_file);
	put_number("size", job->size);
	if (typed(job, "compat") != NULL)
		put_text("compat", typed(job, "compat"));
	if (o->backing_name != NULL)
		put_text("backing_file", o->backing_name);
	if (o->backing_format != NULL)
		put_text("backing_fmt", o->backing_format);
	if (o->data_file_name != NULL)
		put_text("data_file", o->data_file_name);
	if (typed(job, "data_file_raw") != NULL)
		put_bool("data_file_raw", o->data_file_raw);
	put_bool("lazy_refcounts", o->lazy_refcounts);
	put_number("refcount_bits", o->refcount_bits);
}

static void put_luks_options(const struct job *job)
{
	static const char *const keys[] = {"key-secret", "cipher-alg", "cipher-mode", "ivgen-alg",
		"ivgen-hash-alg", "hash-alg", "iter-time", "detached-header", "preallocation"};
	bool has_size = job->args->n_operands > 1 || job->opts.has_size;

	if (has_size)
		put_number("size", job->size);
	else
		(void)printf(" size=-1"); /* as QEMU: none */
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (typed(job, keys[i]) != NULL)
			put_text(keys[i], typed(job, keys[i]));
}

/* The same facts for programs. */
static void announce_json(const struct job *job)
{
	const struct qcow_create_options *o = &job->opts.create;
	json_t *root = json_object();

	cli_json_set(root, "filename", cli_json_string(job->path));
	cli_json_set(root, "format", cli_json_string(job->format));
	cli_json_set(root, "virtual-size", cli_json_u64(job->size));
	if (is_qcow2(job)) {
		cli_json_set(root, "compat", cli_json_string(o->version == 2 ? "0.10" : "1.1"));
		cli_json_set(root, "cluster-size", cli_json_u64(o->cluster_size));
		cli_json_set(root, "refcount-bits", cli_json_u64(o->refcount_bits));
		cli_json_set(root, "extended-l2", json_boolean(o->extended_l2));
		cli_json_set(root, "lazy-refcounts", json_boolean(o->lazy_refcounts));
		cli_json_set(root, "compression-type",
			cli_json_string(o->compression == QCOW_COMPRESSION_ZSTD ? "zstd" : "zlib"));
		if (o->backing_name != NULL)
			cli_json_set(root, "backing-filename", cli_json_string(o->backing_name));
		if (o->data_file_name != NULL)
			cli_json_set(root, "data-file", cli_json_string(o->data_file_name));
	}
	(void)cli_json_print(job->cli, root);
	(void)fflush(stdout);
}

static void announce(const struct job *job)
{
	if (cli_flag(job->args, "quiet"))
		return;
	if (cli_wants_json(job->args)) {
		announce_json(job);
		return;
	}
	(void)printf("Formatting '");
	cli_put_escaped(stdout, job->path);
	(void)printf("', fmt=%s", job->format);
	if (strcmp(job->format, "luks") == 0) {
		put_luks_options(job);
	} else if (strcmp(job->format, "raw") == 0) {
		put_number("size", job->size);
		if (typed(job, "nocow") != NULL)
			put_text("nocow", typed(job, "nocow"));
		if (typed(job, "preallocation") != NULL)
			put_text("preallocation", typed(job, "preallocation"));
	} else {
		put_qcow2_options(job);
	}
	if (strcmp(job->format, "raw") != 0 && typed(job, "nocow") != NULL)
		put_text("nocow", typed(job, "nocow"));
	(void)putchar('\n');
	(void)fflush(stdout);
}

/* ---- making it ---- */

/* Open `path` for writing; *made: it was not there. */
static bool open_file(
	struct job *job, const char *path, bool must_exist, struct qcow_store **out, bool *made)
{
	struct cli_operand operand = {.text = path};
	struct cli_target target;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct stat st;
	bool exists = stat(path, &st) == 0;
	unsigned flags = QCOW_FILE_WRITE;

	if (!exists && !must_exist)
		flags |= QCOW_FILE_CREATE | QCOW_FILE_EXCL;
	if (cli_open_target(job->cli, &operand, flags, &target, &err) != QCOW_OK) {
		cli_report_create(job->cli, NULL, path, &err);
		return false;
	}
	*out = target.store;
	*made = !exists;
	return exists || cli_sync_folder(job->cli, path);
}

static bool open_data_file(struct job *job)
{
	const char *name = job->opts.create.data_file_name;

	if (name == NULL)
		return true;
	job->data_path = cli_join_path(job->path, name);
	if (job->data_path == NULL)
		return out_of_memory(job);
	if (is_same_file(job->data_path, job->path) ||
		(job->backing_path != NULL && is_same_file(job->data_path, job->backing_path))) {
		cli_error(job->cli, "%s: the data file is the image itself or its backing file",
			job->data_path);
		return false;
	}
	return open_file(
		job, job->data_path, job->opts.create.keep_data_file, &job->data, &job->made_data);
}

static enum qcow_status write_zeros(struct qcow_store *store, uint64_t size,
	const struct qcow_progress *progress, struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *zeros = qk_calloc(1, ZERO_BUFFER_BYTES);

	if (zeros == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t off = 0; off < size; off += ZERO_BUFFER_BYTES) {
		if (progress->cancelled != NULL && progress->cancelled(progress->ctx))
			return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
		QK_TRY(qcow_store_write(
			store, zeros, qk_min(ZERO_BUFFER_BYTES, size - off), off, err));
		if (progress->report != NULL)
			progress->report(progress->ctx, off, size);
	}
	return QCOW_OK;
}

/* A raw image is its size. What stands on a device of fixed size stays, as with qemu-img. */
static enum qcow_status create_raw(
	struct job *job, const struct qcow_progress *progress, struct qcow_error *err)
{
	uint64_t size = job->opts.create.virtual_size;
	uint64_t room = 0;
	struct qcow_store_caps caps = {0};

	qcow_store_caps(job->store, &caps);
	if (!caps.can_grow) {
		QK_TRY(qcow_store_size(job->store, &room, err));
		if (room < size)
			return QK_FAIL(err, QCOW_E_NOSPC,
				"the device has %" PRIu64 " bytes, the image %" PRIu64
				": No space left on device",
				room, size);
		return QCOW_OK;
	}
	QK_TRY(qcow_store_truncate(job->store, 0, err));
	QK_TRY(qcow_store_truncate(job->store, size, err));
	if (job->opts.create.preallocation == QCOW_PREALLOC_FULL)
		return write_zeros(job->store, size, progress, err);
	if (job->opts.create.preallocation == QCOW_PREALLOC_FALLOC && size != 0)
		return qcow_store_zero(job->store, 0, size, QCOW_ZERO_ALLOCATE, err);
	return QCOW_OK;
}

static enum qcow_status validate(struct job *job, struct qcow_error *err)
{
	if (strcmp(job->format, "raw") != 0)
		return qcow_create_validate(&job->opts.create, err);
	if (job->opts.create.preallocation == QCOW_PREALLOC_METADATA)
		return QK_FAIL(err, QCOW_E_INVAL, "Unsupported preallocation mode: metadata");
	return QCOW_OK;
}

/* Preallocation is refused where a device cannot hold it, before anything is written to it. */
static enum qcow_status check_room(struct job *job, struct qcow_error *err)
{
	struct qcow_measure_result measured = {0};
	struct qcow_store_caps caps = {0};
	uint64_t room = 0;

	qcow_store_caps(job->store, &caps);
	if (caps.can_grow || job->data != NULL || strcmp(job->format, "qcow2") != 0 ||
		job->opts.create.preallocation == QCOW_PREALLOC_OFF)
		return QCOW_OK;
	QK_TRY(qcow_store_size(job->store, &room, err));
	QK_TRY(qcow_measure(NULL, job->format, &job->opts.create, &measured, err));
	if (measured.fully_allocated <= room)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_NOSPC,
		"the device has %" PRIu64 " bytes, the image needs %" PRIu64
		": No space left on device",
		room, measured.fully_allocated);
}

static enum qcow_status write_image(
	struct job *job, const struct qcow_progress *progress, struct qcow_error *err)
{
	QK_TRY(check_room(job, err));
	if (strcmp(job->format, "raw") != 0) {
		job->opts.create.progress = *progress;
		job->opts.create.durable = true;
		return qcow_create(job->store, job->data, &job->opts.create, err);
	}
	QK_TRY(create_raw(job, progress, err));
	return qcow_store_flush(job->store, err);
}

static bool make_image(struct job *job)
{
	struct qcow_progress shown = {0};
	struct qcow_error err = QCOW_ERROR_INIT;

	cli_signals_catch(job->cli);
	if (!open_file(job, job->path, false, &job->store, &job->made_file) || !open_data_file(job))
		return false;
	struct cli_progress *progress = cli_progress_begin(job->cli, job->args, &shown);
	if (progress == NULL)
		return false;
	bool ok = write_image(job, &shown, &err) == QCOW_OK;
	cli_progress_end(progress, ok);
	if (!ok && !cli_signals_caught())
		(void)cli_fail(job->cli, &err, "%s", job->path);
	return ok;
}

static bool run_job(struct job *job)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	if (!read_options(job) || !read_size(job) || !round_size(job))
		return false;
	/* QEMU has announced the image before its driver looks at the options */
	if (job->cli->qemu)
		announce(job);
	char prefix[PATH_MAX + 2] = "";
	if (job->cli->qemu)
		(void)snprintf(prefix, sizeof(prefix), "%s: ", job->path);
	if (cli_create_opts_refused(job->cli, &job->opts, job->path) ||
		!cli_create_opts_find_secret(job->cli, &job->opts, prefix))
		return false;
	if (validate(job, &err) != QCOW_OK) {
		(void)cli_fail(job->cli, &err, "%s", job->path);
		return false;
	}
	if (!job->cli->qemu)
		announce(job);
	return make_image(job);
}

static void release(struct job *job, bool ok)
{
	qcow_store_close(job->store);
	qcow_store_close(job->data);
	if (!ok && job->made_file)
		(void)unlink(job->path);
	if (!ok && job->made_data)
		(void)unlink(job->data_path);
	free(job->backing_path);
	free(job->data_path);
	free(job->found_format);
	cli_keyvals_release(&job->keyvals);
}

static int run(struct cli *cli, const struct cli_args *args)
{
	if (cli_create_opts_help(cli, args, cli_arg(args, "format")))
		return 0;
	if (args->n_operands == 0)
		return cli_usage(cli, "Expecting image file name");
	if (!cli_objects_add_all(cli, args))
		return 1;
	struct job job = {.cli = cli, .args = args, .path = args->operands[0]};
	bool ok = run_job(&job);
	release(&job, ok);
	cli_signals_end();
	return ok ? 0 : 1;
}

const struct cli_command cli_cmd_create = {
	.name = "create",
	.summary = "make a new, empty image",
	.synopsis = "[-f FMT] [-o KEY=VALUE,…] [-b FILE [-F FMT]] [-u] [-q] "
		    "[--output human|json] FILE [SIZE]",
	.about = "Without SIZE the disk is as large as that of the backing file. A FILE that is "
		 "there\n"
		 "already is emptied. A relative backing file is looked for from FILE's folder.",
	.options = options,
	.min_operands = 0,
	.max_operands = 2,
	.run = run,
};
