/* SPDX-License-Identifier: MIT */
/*
 * qcow dd: copy blocks of a disk, with dd's operands.
 *
 * The library copies (qcow_dd); this reads the operands, makes or opens the target and says how large it is. In the
 * personality the words and the arithmetic are qemu-img's: count counts the blocks that are skipped too.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qcowkit/manage.h>
#include <qcowkit/ops.h>

#include "base/mem.h"
#include "base/num.h"
#include "cli/cli.h"

#define SECTOR_BYTES 512U

struct dd {
	struct cli *cli;
	const struct cli_args *args;
	const char *in, *out, *format;
	uint64_t block, count, skip, seek; /* count UINT64_MAX: all */
	bool notrunc, sparse, made_file;
	struct qcow_image *source, *target;
	struct qcow_dd_options options;
	uint64_t size; /* of the target's disk */
};

/* ---- operands ---- */

static bool read_number(struct dd *d, const char *name, const char *text, uint64_t *out)
{
	bool out_of_range = false;
	if (!d->cli->qemu)
		return cli_parse_size(d->cli, name, text, out);
	const char *why = cli_read_size(text, out, &out_of_range);
	if (why == NULL)
		return true;
	if (out_of_range)
		cli_error(d->cli, "Invalid %s specified. Must be between %u and %" PRId64 ".", name,
			strcmp(name, "bs") == 0, strcmp(name, "bs") == 0 ? INT_MAX : INT64_MAX);
	else
		cli_error(d->cli, "Invalid %s specified: '%s'", name, text);
	return false;
}

static bool read_block(struct dd *d, const char *text)
{
	if (!read_number(d, "bs", text, &d->block))
		return false;
	if (d->block >= 1 && d->block <= INT_MAX)
		return true;
	cli_error(d->cli, "Invalid bs specified. Must be between 1 and %d.", INT_MAX);
	return false;
}

static bool read_conv(struct dd *d, const char *text)
{
	while (*text != '\0') {
		size_t n = strcspn(text, ",");
		if (n == strlen("notrunc") && strncmp(text, "notrunc", n) == 0)
			d->notrunc = true;
		else if (n == strlen("sparse") && strncmp(text, "sparse", n) == 0)
			d->sparse = true;
		else {
			cli_error(d->cli, "unknown conversion '%.*s'", (int)n, text);
			cli_hint(d->cli, "conv knows notrunc and sparse");
			return false;
		}
		text += n + (text[n] == ',');
	}
	return true;
}

static bool read_operand(struct dd *d, const char *operand)
{
	const char *value = strchr(operand, '=');
	size_t n = value != NULL ? (size_t)(value - operand) : strlen(operand);
	const struct {
		const char *name;
		const char **text;
	} texts[] = {{"if", &d->in}, {"of", &d->out}};
	for (size_t i = 0; value != NULL && i < 2; i++) {
		if (n != 2 || strncmp(operand, texts[i].name, n) != 0)
			continue;
		*texts[i].text = value + 1;
		return true;
	}
	if (value != NULL && n == 2 && strncmp(operand, "bs", n) == 0)
		return read_block(d, value + 1);
	if (value != NULL && n == 5 && strncmp(operand, "count", n) == 0)
		return read_number(d, "count", value + 1, &d->count);
	if (value != NULL && n == 4 && strncmp(operand, "skip", n) == 0)
		return read_number(d, "skip", value + 1, &d->skip);
	if (value != NULL && n == 4 && strncmp(operand, "seek", n) == 0 && !d->cli->qemu)
		return read_number(d, "seek", value + 1, &d->seek);
	if (value != NULL && n == 4 && strncmp(operand, "conv", n) == 0 && !d->cli->qemu)
		return read_conv(d, value + 1);
	cli_error(d->cli, "unrecognized operand %.*s", (int)n, operand);
	cli_hint(d->cli, "operands are if=, of=, bs=, count=, skip=, seek= and conv=");
	return false;
}

static bool read_operands(struct dd *d)
{
	for (size_t i = 0; i < d->args->n_operands; i++)
		if (!read_operand(d, d->args->operands[i]))
			return false;
	if (d->in == NULL || d->out == NULL) {
		cli_error(d->cli, "Must specify both input and output files");
		return false;
	}
	if (d->format == NULL)
		d->format = "raw";
	if (strcmp(d->format, "raw") == 0 || strcmp(d->format, "qcow2") == 0)
		return true;
	cli_error(d->cli, d->cli->qemu ? "Unknown file format" : "'%s' is no format of a target",
		d->format);
	cli_hint(d->cli, "targets are raw and qcow2");
	return false;
}

/* ---- how much, from where to where ---- */

static uint64_t source_size(const struct dd *d)
{
	struct qcow_info info;
	uint64_t size = qcow_size(d->source);
	qcow_get_info(d->source, &info);
	return d->cli->qemu && info.version == 0 ? qk_div_up(size, SECTOR_BYTES) * SECTOR_BYTES
						 : size;
}

/* Bytes of n blocks, or UINT64_MAX. */
static uint64_t blocks(const struct dd *d, uint64_t n)
{
	uint64_t bytes = UINT64_MAX;
	return n == UINT64_MAX || !qk_mul(n, d->block, &bytes) ? UINT64_MAX : bytes;
}

static bool find_range(struct dd *d)
{
	struct qcow_dd_options *o = &d->options;
	uint64_t end = source_size(d), skip = blocks(d, d->skip);
	*o = (struct qcow_dd_options)QCOW_DD_OPTIONS_INIT;
	if (d->cli->qemu)
		end = qk_min(end, blocks(d, d->count));
	if (skip > end)
		cli_error(d->cli, "%s: cannot skip to specified offset", d->in);
	o->source_off = qk_min(skip, end);
	o->len = end - o->source_off;
	if (!d->cli->qemu)
		o->len = qk_min(o->len, blocks(d, d->count));
	o->target_off = blocks(d, d->seek);
	o->block_bytes = d->block;
	o->sparse = d->sparse;
	if (!qk_add(o->target_off, o->len, &d->size) || d->size > INT64_MAX) {
		cli_error(d->cli, "seek=%" PRIu64 " lies beyond what a disk can have", d->seek);
		return false;
	}
	/* QEMU sees no more of a qcow2 disk than whole sectors */
	if (d->cli->qemu || strcmp(d->format, "qcow2") == 0)
		d->size = qk_div_up(d->size, SECTOR_BYTES) * SECTOR_BYTES;
	return true;
}

/* ---- the target ---- */

static bool fail_target(struct dd *d, struct qcow_error *err)
{
	if (d->cli->qemu && (err->os_errno != 0 || err->status == QCOW_E_LOCKED))
		cli_report_create(d->cli, "creating output image", d->out, err);
	else
		(void)cli_fail(d->cli, err, "cannot write '%s'", d->out);
	return false;
}

static bool is_source(const struct dd *d)
{
	struct stat in, out;
	int fd = qcow_store_fd(qcow_image_store(d->source));
	return fd >= 0 && fstat(fd, &in) == 0 && stat(d->out, &out) == 0 &&
	       in.st_dev == out.st_dev && in.st_ino == out.st_ino;
}

/* An empty disk in `store`, unless what is there is to stay. */
static enum qcow_status make_disk(
	struct dd *d, struct qcow_store *store, bool is_there, struct qcow_error *err)
{
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_store_caps caps;
	if (d->notrunc && is_there)
		return QCOW_OK;
	if (strcmp(d->format, "qcow2") == 0) {
		create.virtual_size = d->size;
		return qcow_create(store, NULL, &create, err);
	}
	qcow_store_caps(store, &caps);
	if (!caps.can_grow)
		return QCOW_OK;
	QK_TRY(qcow_store_truncate(store, 0, err));
	return qcow_store_truncate(store, d->size, err);
}

/* Takes `store` over. A disk that stays and is too short grows. */
static enum qcow_status open_disk(struct dd *d, struct qcow_store *store, struct qcow_error *err)
{
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	open.format = d->format;
	open.flags = QCOW_OPEN_WRITE;
	QK_TRY(qcow_open(store, &open, &d->target, err));
	return qcow_size(d->target) < d->size ? qcow_resize(d->target, d->size, NULL, err)
					      : QCOW_OK;
}

static bool open_target(struct dd *d)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	bool is_there = access(d->out, F_OK) == 0;
	if (is_source(d)) {
		cli_error(d->cli, "'%s' and '%s' are the same file", d->in, d->out);
		return false;
	}
	if (qcow_file_open(d->out, QCOW_FILE_WRITE | QCOW_FILE_CREATE, &store, &err) != QCOW_OK)
		return fail_target(d, &err);
	d->made_file = !is_there;
	if (make_disk(d, store, is_there, &err) != QCOW_OK) {
		qcow_store_close(store);
		return fail_target(d, &err);
	}
	return open_disk(d, store, &err) == QCOW_OK || fail_target(d, &err);
}

/* ---- the command ---- */

static bool copy(struct dd *d)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_dd_result result;
	d->options.progress.cancelled = d->cli->cancelled;
	bool ok = qcow_dd(d->source, d->target, &d->options, &result, &err) == QCOW_OK &&
		  qcow_flush(d->target, &err) == QCOW_OK;
	if (!ok && !cli_signals_caught())
		(void)cli_fail(d->cli, &err, "error while copying '%s' to '%s'", d->in, d->out);
	return ok && (!d->made_file || cli_sync_folder(d->cli, d->out));
}

static bool run_dd(struct dd *d)
{
	struct cli_open_request request;
	if (!read_operands(d) || !cli_open_request_init(d->cli, d->args, d->in, 0, &request) ||
		cli_open(d->cli, &request, &d->source) != QCOW_OK)
		return false;
	if (!find_range(d))
		return false;
	cli_signals_catch(d->cli);
	return open_target(d) && copy(d);
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct dd d = {.cli = cli,
		.args = args,
		.format = cli_arg(args, "output-format"),
		.block = SECTOR_BYTES,
		.count = UINT64_MAX};
	bool ok = run_dd(&d);
	qcow_close(d.source);
	ok = cli_close(cli, d.target, ok);
	if (!ok && d.made_file)
		(void)unlink(d.out);
	if (!ok)
		cli_signals_end();
	return ok ? 0 : 1;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.letter = 'O',
		.name = "output-format",
		.arg = "FMT",
		.choices = "@format",
		.help = "format of the target: raw (the default) or qcow2"},
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_PROBE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_dd = {
	.name = "dd",
	.summary = "copy blocks of a disk",
	.synopsis =
		"[-f FMT | --image-opts] [-O FMT] [-U] if=FILE of=FILE [bs=N] [count=N] [skip=N] "
		"[seek=N] [conv=notrunc,sparse]",
	.about =
		"Copies count blocks of bs bytes (512), from block skip of the disk in the one "
		"file\n"
		"to block seek of the disk in the other, which is made anew. With conv=notrunc it\n"
		"stays and grows where it is too short; with conv=sparse blocks of zeros are\n"
		"not written.",
	.options = options,
	.min_operands = 0,
	.max_operands = CLI_MANY,
	.run = run,
};
