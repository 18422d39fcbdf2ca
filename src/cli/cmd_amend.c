/* SPDX-License-Identifier: MIT */
/*
 * qcow amend: options that were chosen when an image was made are changed.
 */
#include "cli/cli.h"

#include <string.h>

#include <qcowkit/manage.h>

#include "cli/object.h"

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.letter = 'o',
		.name = "options",
		.arg = "KEY=VALUE,…",
		.help = "what is to be changed; -o help lists the options"},
	CLI_OPT_CACHE,
	{.name = "force", .help = "also what may lose the way to the data"},
	CLI_OPT_DRY_RUN("say whether it could be done, and change nothing"),
	CLI_OPT_PROGRESS,
	CLI_OPT_OUTPUT_QCOW,
	CLI_OPT_OBJECT,
	CLI_OPT_SECRET_FILE,
	CLI_OPT_QUIET,
	CLI_OPTIONS_END,
};

struct job {
	struct cli *cli;
	const struct cli_args *args;
	struct cli_keyvals keyvals;
	struct qcow_image *image;
	struct qcow_amend_options amend;
	struct qcow_resize_options resize;
	bool has_size;
	uint64_t size;
	struct qcow_key_options keys;
	bool has_keys, is_luks;
};

/* ---- -o ---- */

static int print_luks_help(void)
{
	(void)puts("Amend options for 'luks':\n"
		   "  iter-time=<num>        - Time to spend in PBKDF in milliseconds\n"
		   "  keyslot=<num>          - Select a single keyslot to modify explicitly\n"
		   "  new-secret=<str>       - New secret to set in the matching keyslots. Empty "
		   "string to erase\n"
		   "  old-secret=<str>       - Select all keyslots that match this password\n"
		   "  state=<str>            - Select new state of affected keyslots "
		   "(active/inactive)");
	return 0;
}

static int print_help(void)
{
	(void)puts(
		"Amend options for 'qcow2':\n"
		"  backing_file=<str>     - File name of a base image\n"
		"  backing_fmt=<str>      - Image format of the base image\n"
		"  compat=<str>           - Compatibility level (v2 [0.10] or v3 [1.1])\n"
		"  data_file=<str>        - File name of an external data file\n"
		"  data_file_raw=<bool (on/off)> - The external data file must stay valid as a raw "
		"image\n"
		"  encrypt.iter-time=<num> - Time to spend in PBKDF in milliseconds\n"
		"  encrypt.keyslot=<num>  - Select a single keyslot to modify explicitly\n"
		"  encrypt.new-secret=<str> - New secret to set in the matching keyslots. Empty "
		"string to erase\n"
		"  encrypt.old-secret=<str> - Select all keyslots that match this password\n"
		"  encrypt.state=<str>    - Select new state of affected keyslots "
		"(active/inactive)\n"
		"  lazy_refcounts=<bool (on/off)> - Postpone refcount updates\n"
		"  refcount_bits=<num>    - Width of a reference count entry in bits\n"
		"  size=<size>            - Virtual disk size");
	return 0;
}

static bool take_version(struct job *job, const char *value)
{
	if (strcmp(value, "0.10") == 0 || strcmp(value, "v2") == 0)
		job->amend.version = 2;
	else if (strcmp(value, "1.1") == 0 || strcmp(value, "v3") == 0)
		job->amend.version = 3;
	else
		cli_error(job->cli, "Unknown compatibility level %s", value);
	return job->amend.version != 0;
}

static bool take_width(struct job *job, const char *value)
{
	uint64_t bits = 0;
	if (!cli_parse_number(job->cli, "refcount_bits", value, 0, UINT32_MAX, &bits))
		return false;
	job->amend.refcount_bits = (uint32_t)bits;
	if (bits != 0 && bits <= 64 && (bits & (bits - 1)) == 0)
		return true;
	cli_error(job->cli, "Refcount width must be a power of two and may not exceed 64 bits");
	return false;
}

static bool take_switch(
	struct job *job, const char *key, const char *value, enum qcow_amend_switch *out)
{
	bool is_on = false;
	if (!cli_parse_bool(job->cli, key, value, &is_on))
		return false;
	*out = is_on ? QCOW_AMEND_ON : QCOW_AMEND_OFF;
	return true;
}

/* The backing file may be named as it is. */
static bool check_backing(struct job *job, const char *key, const char *value)
{
	struct qcow_info info;
	qcow_get_info(job->image, &info);
	bool is_name = strcmp(key, "backing_file") == 0;
	const char *now = is_name ? info.backing_name : info.backing_format;
	if (strcmp(value, now != NULL ? now : "") == 0)
		return true;
	cli_error(job->cli, "Cannot amend the backing %s", is_name ? "file" : "format");
	cli_more(job->cli, "You can use '%s rebase' instead.", job->cli->prog);
	return false;
}

static bool refuse_option(struct job *job, const char *key)
{
	cli_error(job->cli, "Invalid parameter '%s'", key);
	cli_more(job->cli, "This option is only supported for image creation");
	return false;
}

/* ---- keys ---- */

static bool take_secret(struct job *job, const char *id, struct qcow_secret *out)
{
	const struct cli_secret *s = cli_secret_find(job->cli, id);
	if (s == NULL) {
		cli_error(job->cli, "No secret with id '%s'", id);
		return false;
	}
	*out = (struct qcow_secret){s->data, s->bytes};
	return true;
}

static bool take_state(struct job *job, const char *value)
{
	if (strcmp(value, "active") == 0)
		job->keys.action = QCOW_KEY_ADD;
	else if (strcmp(value, "inactive") == 0)
		job->keys.action = QCOW_KEY_ERASE;
	else
		cli_error(job->cli, "Parameter 'state' does not accept value '%s'", value);
	return job->keys.action != QCOW_KEY_NONE;
}

static bool take_slot(struct job *job, const char *value)
{
	uint64_t slot = 0;
	if (!cli_parse_number(job->cli, "keyslot", value, 0, INT32_MAX, &slot))
		return false;
	job->keys.slot = (int)slot;
	return true;
}

static bool take_time(struct job *job, const char *value)
{
	uint64_t ms = 0;
	if (!cli_parse_number(job->cli, "iter-time", value, 1, UINT32_MAX - 1, &ms))
		return false;
	job->keys.iter_time_ms = (uint32_t)ms;
	return true;
}

/* An option of key slots, without its "encrypt."; *is_known where it is one. */
static bool take_key_option(struct job *job, const char *key, const char *value, bool *is_known)
{
	*is_known = true;
	job->has_keys = true;
	if (strcmp(key, "state") == 0)
		return take_state(job, value);
	if (strcmp(key, "keyslot") == 0)
		return take_slot(job, value);
	if (strcmp(key, "iter-time") == 0)
		return take_time(job, value);
	if (strcmp(key, "new-secret") == 0)
		return take_secret(job, value, &job->keys.new_secret);
	if (strcmp(key, "old-secret") == 0)
		return take_secret(job, value, &job->keys.old_secret);
	*is_known = false;
	return false;
}

static bool take_option(struct job *job, const char *key, const char *value)
{
	bool is_key = job->is_luks || strncmp(key, "encrypt.", strlen("encrypt.")) == 0;
	if (is_key) {
		bool ok = take_key_option(
			job, job->is_luks ? key : key + strlen("encrypt."), value, &is_key);
		if (is_key)
			return ok;
	}
	if (job->is_luks)
		return refuse_option(job, key);
	if (strcmp(key, "compat") == 0)
		return take_version(job, value);
	if (strcmp(key, "refcount_bits") == 0)
		return take_width(job, value);
	if (strcmp(key, "lazy_refcounts") == 0)
		return take_switch(job, key, value, &job->amend.lazy_refcounts);
	if (strcmp(key, "data_file_raw") == 0)
		return take_switch(job, key, value, &job->amend.data_file_raw);
	if (strcmp(key, "backing_file") == 0 || strcmp(key, "backing_fmt") == 0)
		return check_backing(job, key, value);
	if (strcmp(key, "data_file") == 0) {
		job->amend.data_file_name = value;
		return true;
	}
	if (strcmp(key, "size") == 0) {
		job->has_size = true;
		return cli_parse_size(job->cli, "image size", value, &job->size);
	}
	return refuse_option(job, key);
}

static bool take_options(struct job *job)
{
	struct qcow_info info;
	qcow_get_info(job->image, &info);
	job->is_luks = strcmp(info.format, "luks") == 0;
	if (info.version == 0 && !job->is_luks) {
		cli_error(job->cli, "Format driver '%s' does not support option amendment",
			info.format);
		return false;
	}
	for (size_t i = 0; i < job->keyvals.n; i++) {
		const char *value = job->keyvals.v[i].value;
		if (!take_option(job, job->keyvals.v[i].key, value != NULL ? value : "on"))
			return false;
	}
	if (!job->has_keys || job->keys.action != QCOW_KEY_NONE)
		return true;
	cli_error(job->cli, "Parameter '%sstate' is missing", job->is_luks ? "" : "encrypt.");
	return false;
}

/* ---- doing it ---- */

static enum qcow_status change_keys(struct job *job, struct qcow_error *err)
{
	if (!job->has_keys)
		return QCOW_OK;
	job->keys.force = cli_flag(job->args, "force");
	job->keys.dry_run = job->amend.dry_run;
	job->keys.progress = job->amend.progress;
	return qcow_amend_keys(job->image, &job->keys, err);
}

static enum qcow_status resize(struct job *job, bool is_dry, struct qcow_error *err)
{
	if (!job->has_size)
		return QCOW_OK;
	job->resize.shrink = true;
	job->resize.dry_run = is_dry;
	return qcow_resize(job->image, job->size, &job->resize, err);
}

/* A version 2 image with snapshots has one size: an upgrade comes before it, a downgrade behind it. */
static enum qcow_status carry_out(struct job *job, struct qcow_error *err)
{
	bool is_dry = job->amend.dry_run, size_first = job->amend.version == 2;
	enum qcow_status status = change_keys(job, err);
	if (status != QCOW_OK || job->is_luks)
		return status;
	job->amend.dry_run = true;
	status = qcow_amend(job->image, &job->amend, err);
	job->amend.dry_run = is_dry;
	if (status == QCOW_OK && (size_first || is_dry))
		status = resize(job, is_dry, err);
	if (status == QCOW_OK && !is_dry)
		status = qcow_amend(job->image, &job->amend, err);
	if (status == QCOW_OK && !size_first && !is_dry)
		status = resize(job, false, err);
	if (status == QCOW_OK && !is_dry)
		status = qcow_flush(job->image, err);
	return status;
}

static int print_result(const struct job *job)
{
	struct qcow_info info;
	if (!cli_wants_json(job->args))
		return 0;
	json_t *root = json_object();
	qcow_get_info(job->image, &info);
	cli_json_set(root, "filename", cli_json_string(job->args->operands[0]));
	cli_json_set(root, "dry-run", json_boolean(job->amend.dry_run));
	if (job->is_luks)
		return cli_json_print(job->cli, root);
	cli_json_set(root, "compat", cli_json_string(info.version == 2 ? "0.10" : "1.1"));
	cli_json_set(root, "refcount-bits", cli_json_u64(info.refcount_bits));
	cli_json_set(root, "lazy-refcounts",
		json_boolean((info.compatible & QCOW_COMPAT_LAZY_REFCOUNTS) != 0));
	cli_json_set(root, "virtual-size", cli_json_u64(info.virtual_size));
	return cli_json_print(job->cli, root);
}

static int amend(struct job *job)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (!take_options(job))
		return 1;
	struct cli_progress *progress = cli_progress_begin(
		job->cli, job->args, &job->amend.progress);
	if (progress == NULL)
		return 1;
	cli_signals_catch(job->cli);
	enum qcow_status status = carry_out(job, &err);
	cli_progress_end(progress, status == QCOW_OK);
	if (status == QCOW_OK)
		return print_result(job);
	if (status == QCOW_E_CANCELLED && cli_signals_caught())
		return 1;
	return cli_fail(job->cli, &err, "%s", job->cli->qemu ? "" : "cannot amend");
}

static bool is_format(const struct job *job, const char *format)
{
	const char *given = cli_arg(job->args, "format");
	return given != NULL && strcmp(given, format) == 0;
}

static bool wants_help(const struct job *job)
{
	for (size_t i = 0; i < job->keyvals.n; i++)
		if (strcmp(job->keyvals.v[i].key, "help") == 0 ||
			strcmp(job->keyvals.v[i].key, "?") == 0)
			return true;
	return false;
}

static int run_job(struct job *job)
{
	struct cli_open_request request;
	if (!cli_keyvals_from_args(job->cli, job->args, "options", &job->keyvals))
		return 1;
	if (wants_help(job) && is_format(job, "raw")) {
		cli_error(job->cli, "Format driver 'raw' does not support option amendment");
		return 1;
	}
	if (wants_help(job))
		return is_format(job, "luks") ? print_luks_help() : print_help();
	if (job->args->n_operands != 1)
		return cli_usage(job->cli, "Expecting one image file name");
	if (!cli_open_request_init(job->cli, job->args, job->args->operands[0],
		    job->amend.dry_run ? 0 : (unsigned)CLI_OPEN_WRITE, &request) ||
		cli_open(job->cli, &request, &job->image) != QCOW_OK)
		return 1;
	int rc = amend(job);
	return cli_close(job->cli, job->image, rc == 0) ? rc : 1;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct job job = {.cli = cli,
		.args = args,
		.amend = QCOW_AMEND_OPTIONS_INIT,
		.resize = QCOW_RESIZE_OPTIONS_INIT,
		.keys = QCOW_KEY_OPTIONS_INIT};
	if (cli_arg(args, "options") == NULL)
		return cli_usage(cli, "Must specify options (-o)");
	job.amend.dry_run = cli_flag(args, "dry-run");
	int rc = run_job(&job);
	cli_keyvals_release(&job.keyvals);
	return rc;
}

const struct cli_command cli_cmd_amend = {
	.name = "amend",
	.summary = "Change options that were chosen when an image was made",
	.synopsis = "[-f FMT | --image-opts] -o KEY=VALUE,… [--force] [--dry-run] [-p] [-q] FILE",
	.options = options,
	.min_operands = 0,
	.max_operands = 1,
	.run = run,
};
