/* SPDX-License-Identifier: MIT */
#include "row.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <host.h>

#include "base.h"
#include "guest.h"
#include "judge.h"
#include "ours.h"
#include "peer.h"

#define QEMU_ONE_IN  64u
#define FEW_VARIANTS 16u

struct context {
	const struct qkc_row *row;
	struct qkc_result *out;
	unsigned variant;
	const struct qkc_plan *plan;
	const struct qkc_base *base;
	struct qkc_expect *expect;
	struct qkc_look look;
	unsigned n_told;
};

/* ---- what the guest may see ---- */

static uint64_t content_hash(
	const struct qkc_plan *p, const struct qkc_step *s, uint32_t number, uint64_t sector)
{
	uint8_t bytes[QKC_SECTOR];
	uint64_t start = sector * QKC_SECTOR;
	/* the end of the disk cuts a sector short, and not the state behind it */
	uint64_t left = start < p->disk_bytes ? p->disk_bytes - start : QKC_SECTOR;
	uint64_t want = left < QKC_SECTOR ? left : QKC_SECTOR;
	if (s->off > start || s->off + s->len < start + want)
		qkc_sector_after(p, number, sector, bytes); /* a part of it is written */
	else if (s->act > QKC_DO_WRITE_COMPRESSED)
		return 0;
	else
		qkc_content(number, start, bytes, sizeof(bytes));
	return qkc_part_hash(bytes, (size_t)(left < QKC_SECTOR ? left : QKC_SECTOR));
}

static void enter_operation(struct context *c, uint32_t number)
{
	const struct qkc_step *s = &c->plan->steps[number - 1];
	if (s->act == QKC_DO_SNAPSHOT)
		qkc_expect_create(c->expect, number);
	else if (s->act == QKC_DO_APPLY)
		qkc_expect_apply(c->expect, number, s->off);
	else
		qkc_expect_delete(c->expect, number, s->off);
}

static void enter_step(struct context *c, uint32_t number, bool is_done)
{
	const struct qkc_plan *p = c->plan;
	struct qkc_step s = p->steps[number - 1];
	struct qkc_guest *g = qkc_expect_guest(c->expect);
	enum qkc_write_kind kind = s.act == QKC_DO_WRITE_FUA || s.act == QKC_DO_WRITE_STATE
					   ? QKC_FUA
					   : QKC_PLAIN;
	if (qkc_is_operation(s.act) && is_done)
		enter_operation(c, number);
	if (s.act >= QKC_DO_FLUSH)
		return;
	if (s.act == QKC_DO_DISCARD) {
		s = qkc_discarded(p, &s);
		if (c->row->is_peer)
			kind = QKC_MAYBE; /* a discard is a hint */
		else if (p->config.version == 2 && p->backing_bytes != 0)
			return;
	}
	if (!is_done)
		kind = QKC_MAYBE;
	uint64_t past = (s.off + s.len + QKC_SECTOR - 1) / QKC_SECTOR;
	for (uint64_t i = s.off / QKC_SECTOR; i < past; i++) {
		uint64_t hash = content_hash(p, &s, number, i);
		if (hash != 0 || qkc_guest_knows(g, i))
			qkc_guest_write(g, number, kind, i, hash);
	}
}

/* Steps that failed for an I/O error leave what was written since the last flush in doubt. */
static void enter_steps(struct context *c, const enum qkc_outcome *outcomes)
{
	uint32_t flushed = 0;
	bool in_doubt = false;
	for (uint32_t i = 1; i <= c->plan->n_steps; i++) {
		enum qkc_act act = c->plan->steps[i - 1].act;
		bool is_done = outcomes[i - 1] == QKC_STEP_DONE;
		in_doubt = in_doubt || outcomes[i - 1] == QKC_STEP_FAILED;
		enter_step(c, i, is_done);
		if ((act == QKC_DO_RECOVER || act == QKC_DO_REOPEN) && in_doubt)
			qkc_guest_doubt(qkc_expect_guest(c->expect), flushed + 1);
		if ((act == QKC_DO_FLUSH || act == QKC_DO_WRITE_STATE || qkc_is_operation(act) ||
			    act == QKC_DO_RECOVER || act == QKC_DO_REOPEN) &&
			is_done) {
			flushed = i;
			in_doubt = false;
		}
	}
}

/* ---- judging ---- */

static void tell_plan(const struct context *c)
{
	for (size_t i = 0; i < c->plan->n_steps; i++) {
		char line[80];
		qkc_step_print(&c->plan->steps[i], line, sizeof(line));
		(void)printf("    step %zu: %s\n", i + 1, line);
	}
}

static void tell(struct context *c, const struct qkc_state *s, const char *why)
{
	const struct qkc_row *row = c->row;
	if (c->out->first_bad[0] == '\0')
		(void)snprintf(c->out->first_bad, sizeof(c->out->first_bad),
			"state %" PRIu64 ": %s", s->id, why);
	if (c->n_told++ >= row->max_told)
		return;
	(void)printf("FAILED %s | v%u cluster %u refcount %u | state %" PRIu64 ": %s\n",
		row->workload->name, row->config.version, 1u << row->config.cluster_bits,
		row->config.refcount_bits, s->id, why);
	(void)printf("  again: make crash ARGS=\"--only '%s' --config %u,%u,%u --seed %" PRIu64
		     " --variant %u --state %" PRIu64 " --random %u --cuts %u --subsets %u "
		     "--again %u%s\"\n",
		row->workload->name, row->config.version, 1u << row->config.cluster_bits,
		row->config.refcount_bits, row->seed, c->variant, s->id, row->n_random, row->n_cuts,
		row->subset_bits, row->again_one_in, row->is_peer ? " --peer" : "");
	tell_plan(c);
	qkc_story(s, stdout);
	(void)fflush(stdout);
}

static bool show_qemu(struct context *c, const struct qkc_disk *d, char *why)
{
	uint64_t *left = c->row->qemu_left;
	if (left == NULL || *left == 0 || qkc_tolerance(c->plan) != 0 ||
		qkc_disk_hash(d) % QEMU_ONE_IN != 0)
		return true;
	(*left)--;
	c->out->n_qemu++;
	qkc_disk_save(d, qkt_path("state.qcow2"));
	if (c->plan->has_data_file)
		qkc_disk_save_data(d, qkt_path("state.data"));
	int rc = qkt_run("qemu-img check -U -q %s",
		c->plan->has_data_file
			? "--image-opts driver=qcow2,data-file.driver=file,data-file.filename="
			  "state.data,file.filename=state.qcow2"
		: c->plan->crypt == NULL ? "state.qcow2"
					 : "--object secret,id=k,data=" QKC_PASSPHRASE
					   " --image-opts driver=qcow2,encrypt.key-secret=k,"
					   "file.filename=state.qcow2");
	if (rc == 0 || rc == 3)
		return true;
	(void)snprintf(why, QKC_WHY_BYTES, "qemu-img check: status %d: %.150s", rc, qkt_stdout());
	return false;
}

static bool judge_at(struct context *c, struct qkc_disk *d, const struct qkc_moment *at, char *why)
{
	struct qkc_by_moment by = {qkc_expect_guest(c->expect), at};
	struct qkc_rule rule = qkc_rule_at(&by);
	rule.version = qkc_expect_version_at(c->expect, at->ended);
	return qkc_judge_disk(c->expect, d, rule, &c->look, why);
}

/* While an operation is under way: all of it as before, or all of it as after. */
static bool judge_moments(
	struct context *c, struct qkc_disk *d, const struct qkc_moment *at, char *why)
{
	struct qkc_moment before = *at, after = *at;
	char other[QKC_WHY_BYTES];
	bool is_within = at->started > at->ended && at->started != 0 &&
			 qkc_is_operation(c->plan->steps[at->started - 1].act);
	if (!is_within)
		return judge_at(c, d, at, why);
	before.started = at->ended;
	after.ended = after.floor = at->started;
	if (judge_at(c, d, &after, other))
		return true;
	return judge_at(c, d, &before, why);
}

static void save_state(const struct qkc_disk *d, const char *path)
{
	char data[4096];
	qkc_disk_save(d, path);
	if (qkc_disk_data_end(d) == 0)
		return;
	(void)snprintf(data, sizeof(data), "%s.data", path);
	qkc_disk_save_data(d, data);
}

static bool judge_state(void *ctx, struct qkc_disk *d, const struct qkc_state *s)
{
	struct context *c = ctx;
	char why[QKC_WHY_BYTES] = "";
	if (c->row->only_id != 0 && c->row->save != NULL)
		save_state(d, c->row->save);
	bool good = judge_moments(c, d, &s->at, why) && show_qemu(c, d, why);
	if (good && !c->row->is_peer) {
		struct qkc_again again = {.expect = c->expect,
			.base = c->base,
			.look = &c->look,
			.seed = qkc_disk_hash(d),
			.one_in = c->row->again_one_in};
		good = qkc_ours_judge(&again, d, why);
		c->out->n_again += again.n_again;
		c->out->n_nested += again.n_nested;
	}
	if (!good)
		tell(c, s, why);
	else if (c->row->only_id != 0)
		qkc_story(s, stdout);
	return good;
}

/* ---- a row ---- */

static bool run_steps(struct context *c, struct qkc_log *log, enum qkc_outcome *outcomes)
{
	if (c->row->is_peer) {
		qkc_peer_run(c->plan, c->row->qemu_io, c->row->shim, log, outcomes);
		return true;
	}
	char why[QKC_WHY_BYTES];
	if (qkc_ours_run(c->plan, c->base, log, outcomes, why))
		return true;
	(void)snprintf(c->out->first_bad, sizeof(c->out->first_bad), "%s", why);
	return false;
}

static void explore(struct context *c, const struct qkc_log *log)
{
	const struct qkc_row *row = c->row;
	struct qkc_explore x = {.initial = c->base->image,
		.log = log,
		.seed = row->seed,
		.subset_bits = row->subset_bits,
		.n_random = row->n_random,
		.n_cuts = row->n_cuts,
		.only_id = row->only_id,
		.judge = judge_state,
		.ctx = c};
	qkc_explore(&x, &c->out->totals);
}

static bool run_variant(const struct qkc_row *row, unsigned variant, struct qkc_result *out)
{
	struct qkc_plan plan = qkc_plan_make(row->workload, &row->config, row->seed, variant);
	struct qkc_base base = qkc_base_make(&plan);
	struct context c = {
		.row = row, .out = out, .variant = variant, .plan = &plan, .base = &base};
	struct qkc_log log = {0};
	enum qkc_outcome *outcomes = qkc_need(plan.n_steps, sizeof(*outcomes));
	char why[QKC_WHY_BYTES];
	c.expect = qkc_expect_new(
		base.image, base.backing, base.backing_bytes, qkc_tolerance(&plan), why);
	bool ran = c.expect != NULL;
	if (!ran)
		(void)snprintf(out->first_bad, sizeof(out->first_bad), "its base image: %s", why);
	ran = ran && run_steps(&c, &log, outcomes);
	if (ran) {
		enter_steps(&c, outcomes);
		explore(&c, &log);
	}
	qkc_log_clear(&log);
	qkc_look_free(&c.look);
	qkc_expect_free(c.expect);
	qkc_base_free(&base);
	qkc_plan_clear(&plan);
	free(outcomes);
	return ran;
}

bool qkc_row_run(const struct qkc_row *row, struct qkc_result *out)
{
	*out = (struct qkc_result){0};
	bool ran = true;
	if (row->only_id != 0)
		ran = run_variant(row, row->only_variant, out);
	/* until there are enough, or the last ones brought hardly any: of a process that is killed there are few states */
	uint64_t before = 0;
	for (unsigned v = 0; ran && row->only_id == 0 && v < row->max_variants; v++) {
		ran = run_variant(row, v, out);
		if (out->totals.n_distinct >= row->want_states)
			break;
		if (v % FEW_VARIANTS != FEW_VARIANTS - 1)
			continue;
		if (out->totals.n_distinct - before < row->want_states / 25)
			break;
		before = out->totals.n_distinct;
	}
	qkc_set_free(&out->totals.contents);
	return ran;
}
