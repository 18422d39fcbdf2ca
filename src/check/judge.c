/* SPDX-License-Identifier: MIT */
/*
 * judge: runs the passes of a check and adds up its result. Owns the division of the memory bound, the
 * totals, and the cap on callbacks; what is wrong is found by audit (structures) and compare (refcounts).
 *
 * Memory: 5/8 of the bound are the census, 1/8 the set of L2 tables; the rest covers the refcount table
 * (at most 8 MiB), the snapshot list and the buffers (5 MiB).
 */
#include "check/judge.h"

#include "audit/refs.h"
#include "base/mem.h"
#include "check/compare.h"

#define DEFAULT_MEMORY_BYTES QK_MIB(64)
#define MIN_MEMORY_BYTES     QK_MIB(1)

struct judge {
	const struct qcow_check_options *options;
	struct qcow_check_result result;
	uint64_t n_shown;
};

static void count_finding(void *ctx, const struct qcow_finding *f)
{
	struct judge *j = ctx;
	const struct qcow_check_options *o = j->options;

	if (f->id == QCOW_FINDING_TABLE_READ_FAILED)
		j->result.check_errors++;
	switch (f->severity) {
	case QCOW_SEVERITY_CORRUPTION:
		j->result.corruptions++;
		break;
	case QCOW_SEVERITY_LEAK:
		/* QEMU counts clusters, not the references too many */
		j->result.leaks++;
		break;
	case QCOW_SEVERITY_NOTE:
		j->result.notes++;
		break;
	}
	if (o->on_finding == NULL || (o->max_findings != 0 && j->n_shown >= o->max_findings))
		return;
	j->n_shown++;
	o->on_finding(o->ctx, f);
}

/* One pass from cluster `lo` on: count, with wide counters where narrow ones do not suffice, compare, explain. */
static enum qcow_status run_pass(
	struct qk_refs *r, struct qk_compare *c, uint64_t lo, struct qcow_error *err)
{
	qk_census_begin(c->census, lo, c->n_clusters, false);
	QK_TRY(qk_refs_count(r, err));
	if (c->census->need_wide) {
		r->a->quiet = true;
		qk_census_begin(c->census, lo, c->n_clusters, true);
		QK_TRY(qk_refs_count(r, err));
	}
	qk_compare_pass(c);
	r->a->quiet = true;
	if (c->n_disagree != 0)
		QK_TRY(qk_refs_explain(r, err));
	return QCOW_OK;
}

static enum qcow_status run_passes(
	struct judge *j, struct qk_refs *r, struct qk_compare *c, struct qcow_error *err)
{
	const struct qk_l2stats *stats = &r->scan.stats;
	const struct qcow_progress *p = r->a->progress;
	uint64_t end = qk_audit_end(r->a);
	uint64_t lo = 0;

	qk_compare_past_end(c);
	while (lo < c->n_clusters) {
		QK_TRY(run_pass(r, c, lo, err));
		QK_ASSERT(J1, c->census->hi > lo);
		lo = c->census->hi;
	}
	if (p->report != NULL)
		p->report(p->ctx, end, end);
	j->result.allocated_clusters = stats->allocated;
	j->result.fragmented_clusters = stats->fragmented;
	j->result.compressed_clusters = stats->compressed;
	j->result.total_clusters = qk_div_up(r->a->header->size, r->a->geometry->cluster_size);
	j->result.image_end_offset = c->last_in_use << r->a->geometry->cluster_bits;
	return QCOW_OK;
}

static enum qcow_status run(struct judge *j, struct qk_audit *a, struct qk_refs *r,
	struct qk_census *census, struct qcow_error *err)
{
	uint64_t memory = qk_max(j->options->memory_bytes, MIN_MEMORY_BYTES);
	QK_AUTO_FREE uint8_t *block = NULL;

	if (j->options->memory_bytes == 0)
		memory = DEFAULT_MEMORY_BYTES;
	struct qk_refs_request q = {.audit = a,
		.census = census,
		.memory_bytes = memory / 8,
		.decode_streams = (j->options->flags & QCOW_CHECK_DATA) != 0};
	struct qk_compare c = {.a = a, .census = census, .rt = &r->rt};
	c.n_clusters = qk_audit_end(a) >> a->geometry->cluster_bits;
	QK_TRY(qk_refs_init(r, &q, err));
	QK_TRY(qk_census_init(census, memory / 8 * 5, c.n_clusters, err));
	block = qk_malloc_aligned(4096, a->geometry->cluster_size);
	if (block == NULL)
		return QK_FAIL_NOMEM(err);
	c.block = block;
	return run_passes(j, r, &c, err);
}

enum qcow_status qk_judge_check(struct qk_audit *audit, const struct qcow_check_options *options,
	struct qcow_check_result *result, struct qcow_error *err)
{
	struct judge j = {.options = options};
	struct qk_refs refs = {0};
	struct qk_census census = {0};

	audit->report = count_finding;
	audit->report_ctx = &j;
	audit->progress = &options->progress;
	enum qcow_status status = run(&j, audit, &refs, &census, err);
	qk_refs_release(&refs);
	qk_census_release(&census);
	if (status == QCOW_OK)
		*result = j.result;
	return status;
}
