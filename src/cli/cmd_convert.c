/* SPDX-License-Identifier: MIT */
/*
 * qcow convert: copy disks into a new image or onto a raw target.
 *
 * This file reads the options and runs the copy; convert_io.c opens and removes files. After SIGINT,
 * SIGTERM or SIGHUP the copy stops, what was made is removed, and the signal then ends the process; a
 * stream to standard output leaves nothing to remove and is ended at once.
 */
#include "cli/convert_io.h"

#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/num.h"

#define MAX_SPARSE_BYTES ((uint64_t)16 << 20)

static const struct cli_option options[] = {
	{.letter = 'f',
		.name = "format",
		.arg = "FMT",
		.choices = "@format",
		.help = "format of the sources; probed where it is not given"},
	{.name = "source-format", .arg = "FMT", .key = "format", .help = "the same as -f"},
	CLI_OPT_IMAGE_OPTS,
	{.name = "source-image-opts", .key = "image-opts", .help = "the same as --image-opts"},
	{.letter = 'T',
		.name = "source-cache",
		.arg = "CACHE",
		.choices = "none|writeback|writethrough|directsync|unsafe",
		.help = "cache mode of the sources"},
	{.letter = 'l',
		.name = "snapshot",
		.arg = "SNAPSHOT",
		.help = "read an internal snapshot: its id or name, snapshot.id=ID, "
			"snapshot.name=NAME"},
	CLI_OPT_FORCE_SHARE,
	{.name = "salvage", .help = "store zeros where the source cannot be read, and go on"},
	{.letter = 'O',
		.name = "target-format",
		.arg = "FMT",
		.choices = "@format",
		.help = "format of the target, qcow2, raw or luks"},
	{.name = "target-image-opts", .help = "TARGET is an option string: key=value,… (with -n)"},
	{.letter = 't',
		.name = "target-cache",
		.arg = "CACHE",
		.choices = "none|writeback|writethrough|directsync|unsafe",
		.help = "cache mode of the target; unsafe: do not sync it at the end"},
	{.letter = 'o',
		.name = "options",
		.arg = "KEY=VALUE,…",
		.help = "options of the new image; -o help lists them"},
	{.name = "target-format-options",
		.arg = "KEY=VALUE,…",
		.key = "options",
		.help = "the same as -o"},
	{.letter = 'c', .name = "compress", .help = "compress the clusters of a qcow2 target"},
	{.name = "level",
		.arg = "N",
		.flags = CLI_OPT_QCOW,
		.help = "compression level: zlib 1 to 12, zstd 1 to 19"},
	{.letter = 'S',
		.name = "sparse-size",
		.arg = "SIZE",
		.help = "leave out runs of at least SIZE zeros (4k); 0: store every byte"},
	{.letter = 'b',
		.name = "backing",
		.arg = "FILE",
		.choices = "@file",
		.help = "make the target an overlay of FILE; what FILE holds is not copied"},
	{.letter = 'B',
		.name = "old-backing",
		.arg = "FILE",
		.key = "backing",
		.choices = "@file",
		.help = "the same as -b"},
	{.letter = 'F',
		.name = "backing-format",
		.arg = "FMT",
		.choices = "@format",
		.help = "format of the backing file"},
	{.letter = 'n',
		.name = "no-create",
		.help = "the target is there already and stays as long as it is"},
	{.name = "target-is-zero", .help = "the target reads as zeros already (with -n)"},
	{.letter = 'm', .name = "parallel", .arg = "N", .help = "number of workers, 1 to 16"},
	{.letter = 'W', .name = "oob-writes", .help = "write a raw target in any order"},
	{.letter = 'C',
		.name = "copy-range-offloading",
		.help = "accepted; blocks are shared wherever the file system can"},
	{.letter = 'r', .name = "rate-limit", .arg = "RATE", .help = "bytes a second at most"},
	{.name = "bitmaps", .help = "copy the source's persistent bitmaps"},
	{.name = "skip-broken-bitmaps", .help = "with --bitmaps: leave out broken ones"},
	CLI_OPT_PROGRESS,
	CLI_OPT_QUIET,
	CLI_OPT_OUTPUT_QCOW,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPT_SANDBOX,
	CLI_OPT_VERBOSE,
	CLI_OPTIONS_END,
};

/* ---- options ---- */

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);
	return n >= m && strcmp(text + n - m, end) == 0;
}

static bool choose_format(struct convert_job *job, const char *target)
{
	const char *format = cli_arg(job->args, "target-format");
	if (cli_flag(job->args, "target-image-opts") && format != NULL) {
		cli_error(job->cli, "--target-image-opts and -O are mutually exclusive");
		return false;
	}
	if (format == NULL)
		format = !job->cli->qemu && ends_with(target, ".qcow2") ? "qcow2" : "raw";
	const struct cli_operand operand = {.text = target, .image_opts = true};
	job->format = cli_flag(job->args, "target-image-opts")
			      ? cli_target_driver(job->cli, &operand)
			      : qk_strndup(format, strlen(format));
	if (job->format == NULL) {
		cli_error(job->cli, "Cannot allocate memory");
		return false;
	}
	if (strcmp(job->format, "qcow2") == 0 || strcmp(job->format, "raw") == 0 ||
		strcmp(job->format, "luks") == 0)
		return true;
	cli_error(job->cli, "Unknown file format '%s'", job->format);
	cli_hint(job->cli, "targets are qcow2, raw and luks");
	return false;
}

static bool read_numbers(struct convert_job *job)
{
	struct cli *cli = job->cli;
	const char *workers = cli_arg(job->args, "parallel");
	const char *sparse = cli_arg(job->args, "sparse-size");
	const char *rate = cli_arg(job->args, "rate-limit");
	const char *level = cli_arg(job->args, "level");
	uint64_t n = 0;
	if (workers != NULL) {
		if (!cli_parse_number(cli, "number of coroutines", workers, 1, 16, &n))
			return false;
		job->options.n_workers = (unsigned)n;
	}
	if (sparse != NULL) {
		if (!cli_parse_size(cli, "sparse size", sparse, &n))
			return false;
		if (n > MAX_SPARSE_BYTES || (n % 512 != 0 && cli->qemu)) {
			cli_error(cli,
				"Invalid buffer size for sparse output specified. Valid sizes are "
				"multiples of 512 up to %llu. Select 0 to disable sparse detection "
				"(fully allocates output).",
				(unsigned long long)MAX_SPARSE_BYTES);
			return false;
		}
		job->options.sparse_bytes = n & ~(uint64_t)511;
	}
	if (rate != NULL &&
		!cli_parse_size(cli, "rate limit", rate, &job->options.rate_bytes_per_sec))
		return false;
	if (level == NULL)
		return true;
	if (!cli_parse_number(cli, "level", level, 1, 22, &n))
		return false;
	job->options.level = (int)n;
	return true;
}

/* What does not go together; the rest is the library's to refuse. */
static bool check_together(struct convert_job *job)
{
	const struct cli_args *args = job->args;
	const struct {
		bool wrong;
		const char *text;
	} rules[] = {
		{cli_flag(args, "skip-broken-bitmaps") && !cli_flag(args, "bitmaps"),
			"Use of --skip-broken-bitmaps requires --bitmaps"},
		{cli_flag(args, "target-is-zero") && !cli_flag(args, "no-create"),
			"--target-is-zero requires use of -n flag"},
		{cli_flag(args, "target-image-opts") && !cli_flag(args, "no-create"),
			"--target-image-opts requires use of -n flag"},
		{cli_flag(args, "compress") && strcmp(job->format, "qcow2") != 0,
			"Compression not supported for this file format"},
		{job->keyvals.n > 0 && cli_flag(args, "no-create"),
			"-o has no effect when skipping image creation"},
		{cli_arg(args, "level") != NULL && !cli_flag(args, "compress"),
			"--level is for compressed targets: add -c"},
		{cli_arg(args, "level") != NULL && cli_flag(args, "no-create"),
			"--level is for new images: with -n it is the target's own"},
		{cli_arg(args, "snapshot") != NULL && args->n_operands > 2,
			"No support for concatenating multiple snapshot"},
		{cli_flag(args, "bitmaps") && args->n_operands > 2,
			"Copying bitmaps only possible with single source"},
		{cli_flag(args, "bitmaps") && cli_arg(args, "snapshot") != NULL,
			"bitmaps are about the disk, not about a snapshot: --bitmaps and -l do not "
			"go together"},
		{cli_flag(args, "bitmaps") && strcmp(job->format, "raw") == 0,
			"Format driver 'raw' does not support bitmaps"},
		{cli_arg(args, "backing") != NULL && args->n_operands > 2,
			"Having a backing file for the target makes no sense when concatenating "
			"multiple input images"},
		{cli_arg(args, "backing") != NULL && cli_flag(args, "no-create"),
			"-B makes a new image, -n keeps the target: they do not go together"},
		{cli_flag(args, "untrusted") && args->n_operands > 2,
			"with --untrusted there is one source"},
		{cli_flag(args, "untrusted") && cli_flag(args, "no-create") &&
				strcmp(job->format, "qcow2") == 0,
			"with --untrusted a qcow2 target is a new one: it cannot be read in the "
			"sandbox"},
		{cli_flag(args, "untrusted") && strcmp(args->operands[0], "-") == 0,
			"--untrusted reads a file, not standard input"},
		{cli_flag(args, "untrusted") && (cli_arg(args, "backing") != NULL ||
							job->opts.create.backing_name != NULL),
			"with --untrusted the target has no backing file"},
	};
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		if (!rules[i].wrong)
			continue;
		cli_error(job->cli, "%s", rules[i].text);
		return false;
	}
	return true;
}

static bool check_new_image(struct convert_job *job)
{
	bool preallocates = job->opts.create.preallocation != QCOW_PREALLOC_OFF;
	if (cli_flag(job->args, "compress") && preallocates) {
		cli_error(job->cli, "Compression and preallocation not supported at the same time");
		return false;
	}
	if (job->opts.create.luks_detached_header) {
		cli_error(job->cli,
			"a detached LUKS header is made by create, and its disk written with "
			"-n --target-image-opts driver=luks,file.filename=…,header.filename=…");
		return false;
	}
	bool has_backing = cli_arg(job->args, "backing") != NULL ||
			   job->opts.create.backing_name != NULL;
	if (job->opts.luks && has_backing) {
		cli_error(job->cli, "Backing file not supported for file format 'luks'");
		return false;
	}
	if (cli_arg(job->args, "backing-format") != NULL && strcmp(job->format, "qcow2") != 0) {
		cli_error(job->cli, "Backing file format not supported for file format '%s'",
			job->format);
		return false;
	}
	return true;
}

/* The passphrase of a new target. One that is there (-n) has its own, by its operand. */
static bool find_secret(struct convert_job *job, const char *target)
{
	char prefix[PATH_MAX + 64] = "";
	if (job->cli->qemu)
		(void)snprintf(prefix, sizeof(prefix), "%s: error while converting %s: ", target,
			job->format);
	return cli_flag(job->args, "no-create") ||
	       cli_create_opts_find_secret(job->cli, &job->opts, prefix);
}

static bool read_options(struct convert_job *job)
{
	const struct cli_args *args = job->args;
	const char *target = args->operands[args->n_operands - 1];
	job->options = (struct qcow_convert_options)QCOW_CONVERT_OPTIONS_INIT;
	if (!choose_format(job, target) ||
		!cli_keyvals_from_args(job->cli, args, "options", &job->keyvals) ||
		!check_together(job) ||
		!cli_create_opts_parse(job->cli, job->format, &job->keyvals, &job->opts) ||
		cli_create_opts_refused(job->cli, &job->opts, target) || !check_new_image(job) ||
		!find_secret(job, target) || !read_numbers(job))
		return false;
	const char *backing_format = cli_arg(args, "backing-format");
	if (backing_format != NULL)
		job->opts.create.backing_format = backing_format;
	job->options.format = job->format;
	job->options.compress = cli_flag(args, "compress");
	job->options.keep_target = cli_flag(args, "no-create");
	job->options.target_is_zero = cli_flag(args, "target-is-zero");
	job->options.whole_sectors = job->cli->qemu;
	job->options.salvage = cli_flag(args, "salvage");
	/* a permission, not an order: compressed clusters are written one behind the other */
	job->options.out_of_order = cli_flag(args, "oob-writes") && !job->options.compress;
	job->to_stdout = !job->cli->qemu && strcmp(target, "-") == 0;
	if (job->to_stdout && (strcmp(job->format, "raw") != 0 || isatty(STDOUT_FILENO) != 0)) {
		cli_error(job->cli, "standard output takes a raw disk, and not on a terminal");
		return false;
	}
	return true;
}

/* ---- running ---- */

static void report_salvage(void *ctx, uint64_t off, uint64_t len, const struct qcow_error *why)
{
	struct convert_job *job = ctx;
	cli_error(job->cli, "warning: %llu bytes at offset %llu are stored as zeros: %s",
		(unsigned long long)len, (unsigned long long)off, why->message);
}

struct convert_skipped {
	struct convert_skipped *older;
	char name[];
};

static bool tell_later(struct convert_job *job, const char *name)
{
	size_t n = strlen(name) + 1;
	struct convert_skipped *skipped = qk_malloc(sizeof(*skipped) + n, 1);
	if (skipped == NULL)
		return false;
	memcpy(skipped->name, name, n);
	skipped->older = job->skipped;
	job->skipped = skipped;
	return true;
}

static void report_skipped_bitmap(void *ctx, const char *name, const struct qcow_error *why)
{
	struct convert_job *job = ctx;
	bool is_inconsistent = why->finding == QCOW_FINDING_BITMAP_INCONSISTENT;
	if (job->cli->qemu && is_inconsistent && tell_later(job, name))
		return; /* in QEMU's order, which is the other way round */
	if (is_inconsistent)
		cli_error(job->cli, "warning: Skipping inconsistent bitmap '%s'", name);
	else
		cli_error(job->cli, "warning: Skipping bitmap '%s': %s", name, why->message);
}

static void report_skipped_last(struct convert_job *job)
{
	while (job->skipped != NULL) {
		struct convert_skipped *skipped = job->skipped;
		cli_error(job->cli, "warning: Skipping inconsistent bitmap '%s'", skipped->name);
		job->skipped = skipped->older;
		free(skipped);
	}
}

/* As QEMU says it. False: it was another failure. */
static bool report_inconsistent(struct convert_job *job, const struct qcow_error *err)
{
	if (!job->cli->qemu || err->finding != QCOW_FINDING_BITMAP_INCONSISTENT)
		return false;
	cli_error(job->cli, "%s", err->message);
	(void)fprintf(stderr, "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to "
			      "delete it\n");
	return true;
}

static bool run_to_stdout(struct convert_job *job)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	for (unsigned i = 0; i < job->n_sources; i++) {
		if (qcow_convert_to_fd(job->sources[i], STDOUT_FILENO, NULL, &err) == QCOW_OK)
			continue;
		(void)cli_fail(job->cli, &err, "standard output");
		return false;
	}
	return true;
}

static bool sync_target(struct convert_job *job, struct qcow_error *err)
{
	/* what is built (create.durable) or written to as an image is synced where that ends */
	if (!convert_wants_sync(job) || job->target_image != NULL ||
		strcmp(job->format, "raw") != 0)
		return true;
	return qcow_store_flush(job->target, err) == QCOW_OK;
}

/* No library: by now the target is whole, and memory for the text must not be what fails. */
static bool print_result(const struct convert_job *job, const struct qcow_convert_result *r)
{
	if (!cli_wants_json(job->args) || cli_flag(job->args, "quiet"))
		return true;
	(void)printf("{\n    \"bytes-read\": %llu,\n    \"bytes-written\": %llu,\n"
		     "    \"bytes-cloned\": %llu,\n    \"bytes-zero\": %llu,\n"
		     "    \"bytes-salvaged\": %llu\n}\n",
		(unsigned long long)r->bytes_read, (unsigned long long)r->bytes_written,
		(unsigned long long)r->bytes_cloned, (unsigned long long)r->bytes_zero,
		(unsigned long long)r->bytes_salvaged);
	return fflush(stdout) == 0;
}

static bool run_to_target(struct convert_job *job)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_progress shown;
	struct cli_progress *progress = cli_progress_begin(job->cli, job->args, &shown);
	if (progress == NULL)
		return false;
	job->options.create = job->opts.create;
	job->options.create.durable = convert_wants_sync(job);
	if (job->opts.has_size)
		job->options.create.virtual_size = job->opts.size;
	job->options.progress = shown;
	job->options.on_salvage = cli_flag(job->args, "quiet") ? NULL : report_salvage;
	job->options.salvage_ctx = job;
	job->options.bitmaps = cli_flag(job->args, "bitmaps");
	job->options.skip_broken_bitmaps = cli_flag(job->args, "skip-broken-bitmaps");
	job->options.on_skipped_bitmap = report_skipped_bitmap;
	job->options.bitmap_ctx = job;
	struct qcow_convert_result result;
	bool ok = qcow_convert(job->target, job->data, &job->options, &result, &err) == QCOW_OK &&
		  sync_target(job, &err);
	cli_progress_end(progress, ok);
	report_skipped_last(job);
	if (!ok && !cli_signals_caught() && report_inconsistent(job, &err))
		return false;
	if (!ok && !cli_signals_caught() && job->cli->qemu)
		(void)cli_fail(job->cli, &err, "%s: error while converting %s", job->target_path,
			job->format);
	else if (!ok && !cli_signals_caught())
		(void)cli_fail(job->cli, &err, "error while converting to %s", job->target_path);
	return ok && print_result(job, &result);
}

static bool find_target_path(struct convert_job *job)
{
	const char *target = job->args->operands[job->args->n_operands - 1];
	job->target_path = convert_path_of(
		job->cli, target, cli_flag(job->args, "target-image-opts"));
	return job->target_path != NULL;
}

static bool open_target(struct convert_job *job)
{
	const char *backing = cli_arg(job->args, "backing");
	if (backing == NULL)
		backing = job->opts.create.backing_name;
	if (backing != NULL && !convert_open_backing(job, backing))
		return false;
	return convert_open_target(job);
}

static bool run_job(struct convert_job *job)
{
	bool sandboxed = job->sandbox.wanted;
	if (!read_options(job))
		return false;
	/* A stream leaves nothing to remove, and its reader may never read on: signals end it as they are. */
	if (job->to_stdout)
		return convert_open_sources(job) && run_to_stdout(job);
	if (sandboxed) {
		cli_signals_catch(job->cli);
		return find_target_path(job) && convert_open_sources(job) &&
		       convert_check_target(job) && run_to_target(job);
	}
	if (!convert_open_sources(job))
		return false;
	cli_signals_catch(job->cli);
	return find_target_path(job) && open_target(job) && run_to_target(job);
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct convert_job job = {.cli = cli, .args = args};
	if (cli_create_opts_help(cli, args, cli_arg(args, "target-format")))
		return 0;
	if (args->n_operands < 2)
		return cli_usage(cli, "Must specify image file name");
	if (!cli_objects_add_all(cli, args))
		return 1;
	job.sandbox = cli_sandbox_from_args(args, QK_GIB(1), 0);
	int rc = 1;
	if (job.sandbox.wanted && !cli_keeper_split(cli, &job.keeper, &rc))
		return rc;
	bool ok = run_job(&job);
	ok = convert_close(&job, ok);
	if (!ok)
		cli_signals_end();
	return ok ? 0 : 1;
}

const struct cli_command cli_cmd_convert = {
	.name = "convert",
	.summary = "copy disks into a new image, or images onto a disk",
	.synopsis = "[OPTION]… SOURCE… TARGET",
	.about =
		"Copies what a guest sees of the sources, one after the other, into TARGET. Zeros "
		"and\n"
		"holes take no room; on file systems that share blocks (XFS, btrfs) plain data is\n"
		"shared, not copied. SOURCE - is standard input, TARGET - standard output (raw).\n"
		"An interrupted run removes what it made, and never a file that was there before.",
	.options = options,
	.min_operands = 0,
	.max_operands = CLI_MANY,
	.run = run,
};
