/* SPDX-License-Identifier: MIT */
/*
 * cmd_check: compares the references of an image with its refcounts. stdout carries the summary (or the
 * JSON), stderr one line for each error and leak: a clean image writes nothing there, also where notes
 * exist.
 */
#include "cli/cli.h"

#include <inttypes.h>
#include <string.h>

#include "base/num.h"

#include "cli/check.h"

#define DEFAULT_MAX_FINDINGS 1000u

/* ---- one finding ---- */

static bool is_refcount(unsigned id)
{
	return id == QCOW_FINDING_REFCOUNT_TOO_LOW || id == QCOW_FINDING_REFCOUNT_TOO_HIGH ||
	       id == QCOW_FINDING_METADATA_OVERLAP;
}

static void put_offset(FILE *out, const char *name, uint64_t off)
{
	if (off != QCOW_NO_OFFSET)
		(void)fprintf(out, ", %s 0x%" PRIx64, name, off);
}

static void put_line(struct check *c, const struct qcow_finding *f)
{
	bool is_note = f->severity == QCOW_SEVERITY_NOTE;
	FILE *out = is_note ? stdout : stderr;
	const char *what = is_note ? "NOTE" : f->severity == QCOW_SEVERITY_LEAK ? "LEAK" : "ERROR";

	if (c->cli->qemu && (is_note || check_qemu_put(&c->lines, f, stderr)))
		return;
	(void)fprintf(out, "%s %s: %s (", what, qcow_finding_name(f->id), qcow_finding_text(f->id));
	cli_put_escaped(out, f->where);
	put_offset(out, "host offset", f->host_off);
	put_offset(out, "guest offset", f->guest_off);
	if (f->expected != f->stored && !is_refcount(f->id))
		(void)fprintf(out, ", should be 0x%" PRIx64, f->expected);
	(void)fprintf(out, ")\n");
}

static const char *severity_name(enum qcow_severity severity)
{
	switch (severity) {
	case QCOW_SEVERITY_CORRUPTION:
		return "corruption";
	case QCOW_SEVERITY_LEAK:
		return "leak";
	case QCOW_SEVERITY_NOTE:
		break;
	}
	return "note";
}

/* Values of 64 bits do not fit JSON's integers: entries of tables are shown as "0x…". */
static json_t *hex(uint64_t value)
{
	char text[24];

	(void)snprintf(text, sizeof(text), "0x%" PRIx64, value);
	return json_string(text);
}

static json_t *value_of(const struct qcow_finding *f, uint64_t value)
{
	return is_refcount(f->id) ? cli_json_u64(value) : hex(value);
}

static void keep_finding(struct check *c, const struct qcow_finding *f)
{
	json_t *o = json_object();

	cli_json_set(o, "id", cli_json_u64(f->id));
	cli_json_set(o, "name", cli_json_string(qcow_finding_name(f->id)));
	cli_json_set(o, "severity", cli_json_string(severity_name(f->severity)));
	cli_json_set(o, "text", cli_json_string(qcow_finding_text(f->id)));
	cli_json_set(o, "where", cli_json_string(f->where));
	if (f->host_off != QCOW_NO_OFFSET)
		cli_json_set(o, "host-offset", cli_json_u64(f->host_off));
	if (f->guest_off != QCOW_NO_OFFSET)
		cli_json_set(o, "guest-offset", cli_json_u64(f->guest_off));
	cli_json_set(o, "stored", value_of(f, f->stored));
	cli_json_set(o, "expected", value_of(f, f->expected));
	(void)json_array_append_new(c->findings, o);
}

void check_on_finding(void *ctx, const struct qcow_finding *f)
{
	struct check *c = ctx;

	c->n_shown++;
	if (c->findings != NULL)
		keep_finding(c, f);
	else if (!c->quiet && !(c->as_json && f->severity == QCOW_SEVERITY_NOTE))
		put_line(c, f);
}

/* ---- the whole ---- */

static double percent(uint64_t part, uint64_t whole)
{
	return (double)part * 100.0 / (double)whole;
}

void check_put_summary(const struct check *c, const struct qcow_check_result *r)
{
	/* a repair's list is about what was found before it */
	const struct qcow_check_result *listed = c->repaired != NULL ? &c->repaired->before : r;
	uint64_t n = listed->corruptions + listed->leaks + listed->notes;

	if (n > c->n_shown && !c->cli->qemu)
		(void)printf("%" PRIu64 " more findings are not shown (--max-findings).\n",
			n - c->n_shown);
	if (r->corruptions == 0 && r->leaks == 0 && r->check_errors == 0)
		(void)printf("No errors were found on the image.\n");
	if (r->corruptions != 0)
		(void)printf(
			"\n%" PRIu64 " errors were found on the image.\n"
			"Data may be corrupted, or further writes to the image may corrupt it.\n",
			r->corruptions);
	if (r->leaks != 0)
		(void)printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
			     "This means waste of disk space, but no harm to data.\n",
			r->leaks);
	if (r->check_errors != 0)
		(void)printf("\n%" PRIu64 " internal errors have occurred during the check.\n",
			r->check_errors);
	if (r->total_clusters != 0 && r->allocated_clusters != 0)
		(void)printf("%" PRIu64 "/%" PRIu64 " = %.2f%% allocated, %.2f%% fragmented, "
			     "%.2f%% compressed clusters\n",
			r->allocated_clusters, r->total_clusters,
			percent(r->allocated_clusters, r->total_clusters),
			percent(r->fragmented_clusters, r->allocated_clusters),
			percent(r->compressed_clusters, r->allocated_clusters));
	if (r->image_end_offset != 0)
		(void)printf("Image end offset: %" PRIu64 "\n", r->image_end_offset);
}

static void set_unless_zero(json_t *o, const char *key, uint64_t value)
{
	if (value != 0)
		cli_json_set(o, key, cli_json_u64(value));
}

static int put_json(struct check *c, const char *name, const struct qcow_check_result *r)
{
	json_t *o = json_object();
	uint64_t leaks_fixed = 0, corruptions_fixed = 0;

	cli_json_set(o, "image-end-offset", cli_json_u64(r->image_end_offset));
	set_unless_zero(o, "compressed-clusters", r->compressed_clusters);
	cli_json_set(o, "total-clusters", cli_json_u64(r->total_clusters));
	set_unless_zero(o, "corruptions", r->corruptions);
	check_put_fixed(c, &leaks_fixed, &corruptions_fixed);
	set_unless_zero(o, "corruptions-fixed", corruptions_fixed);
	cli_json_set(o, "check-errors", cli_json_u64(r->check_errors));
	set_unless_zero(o, "leaks", r->leaks);
	set_unless_zero(o, "leaks-fixed", leaks_fixed);
	set_unless_zero(o, "allocated-clusters", r->allocated_clusters);
	cli_json_set(o, "filename", cli_json_string(name));
	cli_json_set(o, "format", cli_json_string("qcow2"));
	set_unless_zero(o, "fragmented-clusters", r->fragmented_clusters);
	if (c->findings != NULL) {
		const struct qcow_check_result *listed = c->repaired != NULL ? &c->repaired->before
									     : r;
		uint64_t n = listed->corruptions + listed->leaks + listed->notes;
		set_unless_zero(o, "notes", r->notes);
		set_unless_zero(o, "findings-not-shown", n - c->n_shown);
		cli_json_set(o, "findings", json_incref(c->findings));
	}
	if (c->steps != NULL && c->repaired != NULL) {
		cli_json_set(o, "dry-run", json_boolean(c->dry_run));
		set_unless_zero(o, "steps-not-shown", c->repaired->n_steps - c->n_steps_shown);
		cli_json_set(o, "steps", json_incref(c->steps));
	}
	return cli_json_print(c->cli, o);
}

static int exit_code(const struct qcow_check_result *r)
{
	if (r->check_errors != 0)
		return CHECK_INCOMPLETE;
	if (r->corruptions != 0)
		return CHECK_CORRUPT;
	return r->leaks != 0 ? CHECK_LEAKS : CHECK_CLEAN;
}

int check_put_result(struct check *c, const struct cli_operand *operand, struct qcow_image *image,
	const struct qcow_check_result *result)
{
	bool is_silent = c->quiet && c->cli->qemu; /* QEMU's -q is quiet in JSON too */
	if (c->as_json && !is_silent) {
		char *name = cli_display_name(c->cli, operand, image);
		if (name == NULL)
			cli_error(c->cli, "Cannot allocate memory");
		int rc = name == NULL ? 1 : put_json(c, name, result);
		free(name);
		if (rc != 0)
			return CHECK_INCOMPLETE;
	} else if (!c->quiet) {
		check_put_summary(c, result);
	}
	return exit_code(result);
}

static int check_image(struct check *c, const struct cli_args *args,
	const struct cli_operand *operand, struct qcow_image *image,
	struct qcow_check_options *options)
{
	struct qcow_check_result result = {0};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct cli_progress *progress = cli_progress_begin(c->cli, args, &options->progress);

	if (progress == NULL)
		return CHECK_INCOMPLETE;
	enum qcow_status status = qcow_check(image, options, &result, &err);
	cli_progress_end(progress, status == QCOW_OK);
	if (status != QCOW_OK)
		return cli_fail(c->cli, &err, "Check failed");
	return check_put_result(c, operand, image, &result);
}

static int check_operand(struct check *c, const struct cli_args *args,
	const struct cli_open_request *request, struct qcow_check_options *options)
{
	struct qcow_image *image = NULL;
	struct qcow_info info;

	if (cli_open(c->cli, request, &image) != QCOW_OK)
		return CHECK_INCOMPLETE;
	qcow_get_info(image, &info);
	c->lines.cluster_size = info.cluster_size;
	c->lines.l1_offset = info.l1_offset;
	c->lines.l1_entries = info.l1_entries;
	int rc = CHECK_UNSUPPORTED;
	if (strcmp(info.format, "qcow2") != 0)
		cli_error(c->cli, "This image format does not support checks");
	else if (cli_arg(args, "undo-apply") != NULL)
		rc = check_undo(c, image, cli_arg(args, "undo-apply"));
	else if (c->repair != 0)
		rc = check_repair(c, args, &request->operand, image);
	else
		rc = check_image(c, args, &request->operand, image, options);
	qcow_close(image);
	return rc;
}

static bool options_agree(struct check *c, const struct cli_args *args)
{
	bool puts_back = cli_arg(args, "undo-apply") != NULL;
	const char *why = NULL;

	if (c->repair == 0 && (c->dry_run || c->undo != NULL))
		why = "--dry-run and --undo go with -r";
	else if (puts_back && c->repair != 0)
		why = "--undo-apply puts back what a repair has replaced: it does not go with -r";
	else if (c->dry_run && c->undo != NULL)
		why = "--dry-run replaces nothing that --undo could save";
	else if ((puts_back || c->repair != 0) && !c->dry_run && cli_flag(args, "force-share"))
		why = "-U is for images that somebody else writes: such an image cannot be "
		      "repaired";
	else if ((puts_back || c->repair != 0) && !c->dry_run && cli_flag(args, "untrusted"))
		why = "--untrusted only reads: it does not go with -r, but for --dry-run";
	if (why != NULL)
		(void)cli_usage(c->cli, "%s", why);
	return why == NULL;
}

/* Options into *options and *c; false: refused and reported. */
static bool take_options(
	struct check *c, const struct cli_args *args, struct qcow_check_options *options)
{
	const char *max = cli_arg(args, "max-findings");
	const char *repair = cli_arg(args, "repair");

	if (repair != NULL)
		c->repair = strcmp(repair, "all") == 0 ? QCOW_REPAIR_ALL : QCOW_REPAIR_LEAKS;
	c->dry_run = cli_flag(args, "dry-run");
	c->undo = cli_arg(args, "undo");
	if (!options_agree(c, args))
		return false;
	options->max_findings = c->cli->qemu ? 0 : DEFAULT_MAX_FINDINGS;
	if (max != NULL && !cli_parse_number(c->cli, "option --max-findings", max, 0, UINT64_MAX,
				   &options->max_findings))
		return false;
	if (cli_flag(args, "data"))
		options->flags |= QCOW_CHECK_DATA;
	c->max_findings = options->max_findings;
	c->as_json = cli_wants_json(args);
	c->quiet = cli_flag(args, "quiet");
	if (c->as_json && !c->cli->qemu)
		c->findings = json_array();
	if (c->findings != NULL && c->repair != 0)
		c->steps = json_array();
	return true;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct check c = {.cli = cli};
	struct qcow_check_options options = QCOW_CHECK_OPTIONS_INIT;
	struct cli_open_request request;

	if (!take_options(&c, args, &options) ||
		!cli_open_request_init(cli, args, args->operands[0],
			CLI_OPEN_ALONE | CLI_OPEN_CHECK | CLI_OPEN_NO_DATA, &request))
		return CHECK_INCOMPLETE;
	if ((c.repair != 0 && !c.dry_run) || cli_arg(args, "undo-apply") != NULL)
		request.flags |= CLI_OPEN_STORE_WRITE;
	request.sandbox = cli_sandbox_from_args(args, QK_MIB(192), 600);
	/* a damaged image has many lines: one write each, not one a piece */
	(void)setvbuf(stderr, NULL, _IOLBF, BUFSIZ);
	options.on_finding = check_on_finding;
	options.ctx = &c;
	int rc = check_operand(&c, args, &request, &options);
	check_qemu_release(&c.lines);
	json_decref(c.findings);
	json_decref(c.steps);
	return rc;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	CLI_OPT_OUTPUT,
	{.name = "data", .flags = CLI_OPT_QCOW, .help = "decompress every compressed cluster too"},
	{.name = "max-findings",
		.arg = "N",
		.flags = CLI_OPT_QCOW,
		.help = "show at most N findings (0: all, the default is 1000); totals are exact"},
	{.letter = 'r',
		.name = "repair",
		.arg = "leaks|all",
		.choices = "leaks|all",
		.help = "repair leaked clusters, or whatever can be repaired"},
	CLI_OPT_DRY_RUN("with -r: print what would be done, and write nothing"),
	{.name = "undo",
		.arg = "UNDO",
		.flags = CLI_OPT_QCOW,
		.help = "with -r: save every byte that is replaced in the new file UNDO"},
	{.name = "undo-apply",
		.arg = "UNDO",
		.flags = CLI_OPT_QCOW,
		.help = "put back what a repair with --undo=UNDO has replaced"},
	{.letter = 'T',
		.name = "source-cache",
		.arg = "CACHE",
		.choices = "none|writeback|writethrough|directsync|unsafe",
		.help = "cache mode of the image"},
	{.name = "cache",
		.arg = "CACHE",
		.key = "source-cache",
		.flags = CLI_OPT_QEMU,
		.help = "the same as -T"},
	CLI_OPT_PROGRESS_QCOW,
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_QUIET,
	CLI_OPT_OBJECT,
	CLI_OPT_SANDBOX,
	CLI_OPT_VERBOSE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_check = {
	.name = "check",
	.summary = "Find damage in the metadata of an image, and repair it",
	.synopsis = "[-f FMT | --image-opts] [--output human|json] [--data] [--max-findings N]\n"
		    "           [-r leaks|all [--dry-run | --undo UNDO] | --undo-apply UNDO]\n"
		    "           [-T CACHE] [-p] [-U] [-q] FILE",
	.about = "Compares every reference to a cluster with the refcounts. Writes only with -r,\n"
		 "after the whole repair is planned, and with --undo-apply.\n"
		 "Exit codes: 0 clean, 1 not completed, 2 damaged, 3 leaked clusters only,\n"
		 "63 the format has no check.",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.usage_exit = 1,
	.run = run,
};
