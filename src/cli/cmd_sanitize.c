/* SPDX-License-Identifier: MIT */
/*
 * cmd_sanitize: the same disk in a fresh image, with a header that this program wrote and nothing beside the
 * disk: no reference, snapshot, bitmap, feature name or unknown extension comes across.
 *
 * The source is judged as vet does; what only gets lost on the way is no reason to refuse it. The image that
 * was judged is the one that is read, so nobody can change the file's name under us. The work is done in a
 * child, and its parent removes the target unless all went well.
 */
#include "cli/cli.h"

#include <string.h>
#include <sys/stat.h>

#include "base/num.h"
#include "cli/keeper.h"
#include "cli/vet.h"

enum {
	EXIT_OK = 0,
	EXIT_FAILED = 1,
	EXIT_REFUSED = 2
};

/* These do not come across, whatever the policy says of them. */
#define REMOVED                                                                                   \
	(QCOW_VET_CORRUPT | QCOW_VET_DIRTY | QCOW_VET_VERSION_2 | QCOW_VET_LAZY_REFCOUNTS |       \
		QCOW_VET_EXTENDED_L2 | QCOW_VET_ZSTD | QCOW_VET_COMPRESSED | QCOW_VET_SNAPSHOTS | \
		QCOW_VET_BITMAPS | QCOW_VET_UNKNOWN)
/* Its data would come out in clear. */
#define ENCRYPTED (QCOW_VET_AES | QCOW_VET_LUKS)

struct sanitize {
	struct cli *cli;
	const struct cli_args *args;
	struct qcow_vet_options policy;
	struct qcow_store *target;
	struct qcow_image *source;
};

/* ---- judging ---- */

/* Exit code. *image: what was judged, where the answer is EXIT_OK. Takes the store. */
static int judge(struct sanitize *s, const char *path, struct qcow_store *store,
	struct qcow_vet_options *policy, struct qcow_image **image)
{
	struct qcow_vet_result result = {0};
	struct qcow_error err = QCOW_ERROR_INIT;
	json_t *refused = json_array();
	int rc = EXIT_OK;
	policy->on_refusal = cli_vet_refusal;
	policy->ctx = refused;
	if (qcow_vet(store, policy, &result, &err) != QCOW_OK) {
		rc = cli_fail(s->cli, &err, "cannot judge '%s'", path);
	} else if (!result.ok) {
		cli_error(s->cli, "'%s' is refused", path);
		cli_vet_put_refusals(refused, result.refusals, stderr);
		rc = EXIT_REFUSED;
	}
	json_decref(refused);
	if (rc == EXIT_OK)
		*image = result.image;
	else
		qcow_close(result.image);
	return rc;
}

static int judge_target(struct sanitize *s, const char *path)
{
	struct qcow_vet_options policy = QCOW_VET_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	struct qcow_store *store = s->target;
	policy.max_size = s->policy.max_size;
	policy.max_snapshots = 0;
	policy.max_bitmaps = 0;
	s->target = NULL;
	int rc = judge(s, path, store, &policy, &image);
	qcow_close(image);
	return rc == EXIT_REFUSED ? EXIT_FAILED
				  : rc; /* what we wrote is our fault, not the source's */
}

/* ---- files ---- */

static bool is_same_file(const struct qcow_image *a, const struct qcow_image *b)
{
	struct stat x, y;
	return fstat(qcow_store_fd(qcow_image_store(a)), &x) == 0 &&
	       fstat(qcow_store_fd(qcow_image_store(b)), &y) == 0 && x.st_dev == y.st_dev &&
	       x.st_ino == y.st_ino;
}

/* The judged image names files, and the policy allows them: read it with them. */
static bool open_references(struct sanitize *s)
{
	struct cli_open_request request;
	struct qcow_image *whole = NULL;
	const char *path = s->args->operands[0];
	if (!cli_open_request_init(s->cli, s->args, path, 0, &request))
		return false;
	request.operand.format = s->policy.format;
	if (cli_open(s->cli, &request, &whole) != QCOW_OK)
		return false;
	bool same = is_same_file(s->source, whole);
	qcow_close(s->source);
	s->source = whole;
	if (!same)
		cli_error(s->cli, "'%s' was replaced by another file while it was judged", path);
	return same;
}

static bool has_references(const struct qcow_image *image)
{
	struct qcow_info info;
	qcow_get_info(image, &info);
	return info.backing_name != NULL || (info.incompatible & QCOW_INCOMPAT_DATA_FILE) != 0;
}

static bool open_target(struct sanitize *s, struct cli_keeper *keeper)
{
	const char *path = s->args->operands[1];
	struct qcow_error err = QCOW_ERROR_INIT;
	unsigned flags = QCOW_FILE_WRITE | QCOW_FILE_CREATE | QCOW_FILE_EXCL;
	if (qcow_file_open(path, flags, &s->target, &err) != QCOW_OK) {
		(void)cli_fail(s->cli, &err, "cannot make");
		return false;
	}
	cli_keeper_note(keeper, 0, path, true);
	return cli_sync_folder(s->cli, path);
}

/* ---- the work ---- */

static bool copy(struct sanitize *s)
{
	struct qcow_convert_options options = QCOW_CONVERT_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	options.sources = &s->source;
	options.n_sources = 1;
	options.compress = cli_flag(s->args, "compress");
	options.create.durable = true;
	struct cli_progress *progress = cli_progress_begin(s->cli, s->args, &options.progress);
	if (progress == NULL)
		return false;
	bool ok = qcow_convert(s->target, NULL, &options, NULL, &err) == QCOW_OK;
	cli_progress_end(progress, ok);
	if (!ok)
		(void)cli_fail(s->cli, &err, "error while converting to %s", s->args->operands[1]);
	return ok;
}

static int judge_and_copy(struct sanitize *s, struct qcow_store *store)
{
	int rc = judge(s, s->args->operands[0], store, &s->policy, &s->source);
	if (rc != EXIT_OK)
		return rc;
	if (has_references(s->source) && !open_references(s))
		return EXIT_FAILED;
	return copy(s) ? judge_target(s, s->args->operands[1]) : EXIT_FAILED;
}

static int work(struct sanitize *s, struct cli_keeper *keeper)
{
	struct qcow_store *store = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	const struct cli_sandbox sandbox = cli_sandbox_from_args(s->args, QK_GIB(1), 0);
	unsigned flags = cli_flag(s->args, "force-share") ? QCOW_FILE_SHARE : 0;
	if (qcow_file_open(s->args->operands[0], flags, &store, &err) != QCOW_OK)
		return cli_fail(s->cli, &err, "cannot open");
	int rc = EXIT_FAILED;
	if (!open_target(s, keeper))
		qcow_store_close(store);
	else if (sandbox.wanted && cli_lock_down(s->cli, &sandbox, &err) != QCOW_OK) {
		(void)cli_fail(s->cli, &err, "'%s'", s->args->operands[0]);
		qcow_store_close(store);
	} else
		rc = judge_and_copy(s, store);
	qcow_close(s->source);
	qcow_store_close(s->target);
	return rc;
}

static bool read_policy(struct sanitize *s)
{
	const char *format = cli_arg(s->args, "format");
	s->policy = (struct qcow_vet_options)QCOW_VET_OPTIONS_INIT;
	if (format != NULL)
		s->policy.format = format;
	if (!cli_vet_policy(s->cli, s->args, &s->policy))
		return false;
	s->policy.features = (s->policy.features | REMOVED) & ~(uint32_t)ENCRYPTED;
	s->policy.max_snapshots = UINT32_MAX;
	s->policy.max_bitmaps = UINT32_MAX;
	bool refers = (s->policy.features & (QCOW_VET_BACKING | QCOW_VET_DATA_FILE)) != 0;
	if (refers && cli_flag(s->args, "untrusted")) {
		cli_error(s->cli, "--untrusted opens no other file: it does not go with "
				  "--allow-backing and --allow-data-file");
		return false;
	}
	return true;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct sanitize s = {.cli = cli, .args = args};
	struct cli_keeper *keeper = NULL;
	int rc = EXIT_FAILED;
	if (!read_policy(&s) || !cli_keeper_split(cli, &keeper, &rc))
		return rc;
	return work(&s, keeper);
}

static const struct cli_option options[] = {
	{.letter = 'f',
		.name = "format",
		.arg = "FMT",
		.choices = "qcow2|raw",
		.help = "the format that IN has to have, qcow2 where it is not given"},
	{.letter = 'c', .name = "compress", .help = "compress the clusters of OUT"},
	CLI_VET_POLICY_OPTIONS,
	CLI_OPT_PROBE,
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_PROGRESS,
	CLI_OPT_QUIET,
	CLI_OPT_SANDBOX,
	CLI_OPT_VERBOSE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_sanitize = {
	.name = "sanitize",
	.summary = "Copy a disk into a fresh image that names nothing and holds nothing else",
	.synopsis = "[-f FMT] [-c] [POLICY]… [--untrusted] [-p] [-U] IN OUT",
	.about = "Judges IN as vet does, writes its disk to OUT, which must not be there yet, and "
		 "judges\n"
		 "OUT. References, snapshots, bitmaps and header extensions are left behind.\n"
		 "Exit codes: 0 done, 1 failed, 2 IN is refused.",
	.options = options,
	.min_operands = 2,
	.max_operands = 2,
	.flags = CLI_OPT_QCOW,
	.usage_exit = 1,
	.run = run,
};
