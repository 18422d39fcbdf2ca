/* SPDX-License-Identifier: MIT */
/*
 * check_repair: repairing with qcow check -r, showing the plan, and undoing.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "cli/check.h"

/* ---- steps ---- */

static const char *phase_name(enum qcow_repair_phase phase)
{
	static const char *const names[QCOW_REPAIR_PHASES] = {
		"unlink", "raise", "header", "relink", "lower", "set-copied", "finish"};

	return (unsigned)phase < QCOW_REPAIR_PHASES ? names[phase] : "?";
}

static const char *kind_name(enum qcow_repair_kind kind)
{
	switch (kind) {
	case QCOW_REPAIR_L1_ENTRY:
		return "L1 entry";
	case QCOW_REPAIR_L2_ENTRY:
		return "L2 entry";
	case QCOW_REPAIR_BITMAP_ENTRY:
		return "bitmap table entry";
	case QCOW_REPAIR_REFCOUNTS:
		return "refcounts";
	case QCOW_REPAIR_HEADER_FIELD:
		return "header field";
	case QCOW_REPAIR_NEW_REFCOUNTS:
		return "new refcount structure";
	case QCOW_REPAIR_NEW_L1:
		return "new L1 table";
	case QCOW_REPAIR_NEW_SNAPSHOTS:
		return "new snapshot table";
	case QCOW_REPAIR_NEW_COPY:
		return "new copy for the entry";
	}
	return "?";
}

static void put_step(const struct qcow_repair_step *s)
{
	(void)printf("PLAN %s: %s", phase_name(s->phase), kind_name(s->kind));
	if (s->host_off != QCOW_NO_OFFSET)
		(void)printf(" at 0x%" PRIx64, s->host_off);
	if (s->host_off != QCOW_NO_OFFSET && s->kind != QCOW_REPAIR_NEW_COPY)
		(void)printf(", 0x%" PRIx64 " becomes 0x%" PRIx64, s->was, s->now);
	if (s->finding != 0)
		(void)printf(" (%s)", qcow_finding_name(s->finding));
	(void)printf("\n");
}

static json_t *hex(uint64_t value)
{
	char text[24];

	(void)snprintf(text, sizeof(text), "0x%" PRIx64, value);
	return json_string(text);
}

static void keep_step(struct check *c, const struct qcow_repair_step *s)
{
	json_t *o = json_object();

	cli_json_set(o, "phase", cli_json_string(phase_name(s->phase)));
	cli_json_set(o, "kind", cli_json_string(kind_name(s->kind)));
	if (s->finding != 0)
		cli_json_set(o, "finding", cli_json_string(qcow_finding_name(s->finding)));
	if (s->host_off != QCOW_NO_OFFSET)
		cli_json_set(o, "host-offset", cli_json_u64(s->host_off));
	if (s->host_off != QCOW_NO_OFFSET && s->kind != QCOW_REPAIR_NEW_COPY) {
		cli_json_set(o, "was", hex(s->was));
		cli_json_set(o, "now", hex(s->now));
	}
	(void)json_array_append_new(c->steps, o);
}

static void on_step(void *ctx, const struct qcow_repair_step *s)
{
	struct check *c = ctx;

	if (s->finding == QCOW_FINDING_COPIED_WRONG || s->finding == QCOW_FINDING_COPIED_MISSING)
		c->n_copied_steps++;
	if (c->max_findings != 0 && c->n_steps_shown >= c->max_findings)
		return;
	c->n_steps_shown++;
	if (c->steps != NULL)
		keep_step(c, s);
	else if (c->dry_run && !c->quiet)
		put_step(s);
}

static void on_finding(void *ctx, const struct qcow_finding *f)
{
	struct check *c = ctx;

	if (f->id == QCOW_FINDING_COPIED_WRONG)
		c->n_copied_found++;
	check_on_finding(ctx, f);
}

/* ---- the result ---- */

/* QEMU counts every COPIED that it changes, also where the refcount of before agreed with it. */
void check_put_fixed(const struct check *c, uint64_t *leaks, uint64_t *corruptions)
{
	*leaks = *corruptions = 0;
	if (c->repaired == NULL || c->dry_run)
		return;
	*leaks = c->repaired->leaks_fixed;
	*corruptions = c->repaired->corruptions_fixed;
	if (c->cli->qemu && c->repair == QCOW_REPAIR_ALL && *corruptions >= c->n_copied_found)
		*corruptions += c->n_copied_steps - c->n_copied_found;
}

static void put_fixed(const struct check *c)
{
	uint64_t leaks = 0, corruptions = 0;

	check_put_fixed(c, &leaks, &corruptions);
	if (leaks == 0 && corruptions == 0)
		return;
	(void)printf("The following inconsistencies were found and repaired:\n\n    %" PRIu64
		     " leaked clusters\n    %" PRIu64 " corruptions\n\n"
		     "Double checking the fixed image now...\n",
		leaks, corruptions);
}

static void put_plan_end(const struct check *c)
{
	const struct qcow_repair_result *r = c->repaired;

	if (r->n_steps > c->n_steps_shown)
		(void)printf("%" PRIu64 " more steps are not shown (--max-findings).\n",
			r->n_steps - c->n_steps_shown);
	if (r->is_partial)
		(void)printf("The repair takes more than one round; this is the first.\n");
	if (r->n_steps == 0 && r->before.corruptions + r->before.leaks != 0)
		(void)printf("Nothing of this can be repaired%s.\n",
			c->repair == QCOW_REPAIR_LEAKS && r->before.corruptions != 0
				? " by -r leaks"
				: "");
}

/* ---- the file for undoing ---- */

static bool make_undo(struct check *c, struct qcow_store **out)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	*out = NULL;
	if (c->undo == NULL)
		return true;
	if (qcow_file_open(c->undo, QCOW_FILE_WRITE | QCOW_FILE_CREATE | QCOW_FILE_EXCL, out,
		    &err) != QCOW_OK) {
		(void)cli_fail(c->cli, &err, "cannot make the file for undoing");
		return false;
	}
	return cli_sync_folder(c->cli, c->undo);
}

/* Nothing was replaced: nothing is to be undone. */
static void drop_undo(const struct check *c, const struct qcow_repair_result *r)
{
	if (c->undo != NULL && r->n_steps == 0)
		(void)unlink(c->undo);
}

int check_undo(struct check *c, struct qcow_image *image, const char *path)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *undo = NULL;

	if (qcow_file_open(path, QCOW_FILE_WRITE, &undo, &err) != QCOW_OK)
		return cli_fail(c->cli, &err, "cannot open the file for undoing");
	enum qcow_status status = qcow_repair_undo(qcow_image_store(image), undo, &err);
	qcow_store_close(undo);
	if (status != QCOW_OK)
		return cli_fail(c->cli, &err, "the repair is not undone");
	if (!c->quiet && !c->as_json)
		(void)printf("The image is as it was before the repair.\n");
	return CHECK_CLEAN;
}

/* ---- the whole ---- */

static int put_result(struct check *c, const struct cli_operand *operand, struct qcow_image *image,
	const struct qcow_repair_result *r)
{
	if (!c->as_json && !c->quiet && c->dry_run)
		put_plan_end(c);
	else if (!c->as_json && !c->quiet)
		put_fixed(c);
	return check_put_result(c, operand, image, &r->after);
}

int check_repair(struct check *c, const struct cli_args *args, const struct cli_operand *operand,
	struct qcow_image *image)
{
	struct qcow_repair_options options = QCOW_REPAIR_OPTIONS_INIT;
	struct qcow_repair_result result = {0};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct cli_progress *progress = cli_progress_begin(c->cli, args, &options.progress);

	if (progress == NULL || !make_undo(c, &options.undo)) {
		cli_progress_end(progress, false);
		return CHECK_INCOMPLETE;
	}
	options.mode = c->repair;
	options.dry_run = c->dry_run;
	options.on_finding = on_finding;
	options.max_findings = c->max_findings;
	options.on_step = on_step;
	options.ctx = c;
	enum qcow_status status = qcow_repair(qcow_image_store(image), &options, &result, &err);
	cli_progress_end(progress, status == QCOW_OK);
	qcow_store_close(options.undo);
	drop_undo(c, &result);
	c->repaired = &result;
	int rc = status == QCOW_OK ? put_result(c, operand, image, &result)
				   : cli_fail(c->cli, &err, "Repair failed");
	c->repaired = NULL;
	return rc;
}
