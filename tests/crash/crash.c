/* SPDX-License-Identifier: MIT */
/*
 * crash: runs workloads, makes the states that a crash may leave of each, and judges them all.
 *
 * usage: crash [OPTION]...
 *   --peers         the same workloads by qemu-io, side by side with ours
 *   --peer          qemu-io alone
 *   --quick         three configurations, a quarter of the states;  --long: at least 5 million states
 *   --half          three configurations, and of the others half by the seed
 *   --only NAME     workloads whose name contains NAME;  --config VERSION,CLUSTER,REFCOUNT_BITS
 *   --seed N        of all that is random
 *   --variant N --state N  judge that state alone and tell its story;  --save FILE: and write its image there, its data
 *                   file beside it
 *   --subsets N  --random N  --cuts N  --again N  --tell N    see explore.h and row.h
 *   --want N        other variants of each workload until there are so many states of it
 *   --min N         fail below so many distinct states in all
 *   --qemu-io PROGRAM  --shim FILE   for peers
 *   --list          names of workloads
 * Exit status 1 where a state is bad or a row has fewer states than it must.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <host.h>

#include "row.h"

#define LONG_MIN_STATES UINT64_C(5000000)
#define QEMU_SAMPLE	500u

static const struct qkc_config all_configs[] = {{3, 16, 16}, {3, 12, 16}, {2, 9, 16}, {3, 9, 16},
	{2, 12, 16}, {2, 16, 16}, {3, 9, 1}, {3, 12, 1}, {3, 16, 1}, {3, 9, 64}, {3, 12, 64},
	{3, 16, 64}};
#define N_QUICK 3u

struct request {
	struct qkc_row row;
	const char *only;
	struct qkc_config config;
	bool has_config, is_quick, is_half, is_long, peers, list;
	uint64_t min_states;
};

struct sum {
	struct qkc_totals totals;
	uint64_t n_again, n_nested, n_qemu, n_rows, n_failed;
};

static void add(struct sum *sum, const struct qkc_result *r)
{
	sum->totals.n_visited += r->totals.n_visited;
	sum->totals.n_distinct += r->totals.n_distinct;
	sum->totals.n_judged += r->totals.n_judged;
	sum->totals.n_bad += r->totals.n_bad;
	sum->n_again += r->n_again;
	sum->n_nested += r->n_nested;
	sum->n_qemu += r->n_qemu;
	sum->n_rows++;
}

static bool fits(const struct qkc_workload *w, const struct qkc_config *c, bool is_peer)
{
	if ((w->only & QKC_SMALL_CLUSTERS && c->cluster_bits > 12) ||
		(w->only & QKC_TINY_CLUSTERS && c->cluster_bits > 9) ||
		(w->only & QKC_V3 && c->version != 3) ||
		(w->only & QKC_EXTENDED && (c->version != 3 || c->cluster_bits < 14)) ||
		(w->only & QKC_NO_WIDTH_1 && c->refcount_bits == 1) ||
		(w->only & QKC_WIDTH_16 && c->refcount_bits != 16) ||
		(w->only & QKC_LUKS &&
			(c->version != 3 || c->cluster_bits != 12 || c->refcount_bits != 16)))
		return false;
	/* with wide entries a refcount block is soon full; with narrow ones it takes megabytes */
	if (w->only & (QKC_SMALL_CLUSTERS | QKC_TINY_CLUSTERS) && c->refcount_bits == 1)
		return false;
	return !(w->only & (is_peer ? (unsigned)QKC_OURS : (unsigned)QKC_THEIRS));
}

static bool is_wanted(const struct request *q, const struct qkc_workload *w)
{
	return q->only == NULL || strstr(w->name, q->only) != NULL;
}

/* ---- one program ---- */

static void run_row(struct qkc_row *row, bool is_quick, struct sum *sum)
{
	struct qkc_result r;
	bool ran = qkc_row_run(row, &r);
	uint64_t min = row->workload->min_states / (row->config.cluster_bits == 9 ? 2 : 1);
	if (is_quick)
		min /= 4;
	bool few = ran && row->only_id == 0 && r.totals.n_distinct < min;
	add(sum, &r);
	(void)printf("%-26s | v%u cluster %5u refcount %2u | %8" PRIu64 " | %5" PRIu64 "%s\n",
		row->workload->name, row->config.version, 1u << row->config.cluster_bits,
		row->config.refcount_bits, r.totals.n_distinct, r.totals.n_bad,
		few ? " | too few states" : "");
	if (!ran)
		(void)printf("FAILED %s | %s\n  again: make crash ARGS=\"--only '%s' --config "
			     "%u,%u,%u --seed "
			     "%" PRIu64 "\"\n",
			row->workload->name, r.first_bad, row->workload->name, row->config.version,
			1u << row->config.cluster_bits, row->config.refcount_bits, row->seed);
	if (few)
		(void)printf("FAILED %s: %" PRIu64 " distinct states, %" PRIu64 " at least\n",
			row->workload->name, r.totals.n_distinct, min);
	(void)fflush(stdout);
	sum->n_failed += !ran || few || r.totals.n_bad != 0;
}

static void run_config(
	const struct request *q, const struct qkc_config *c, bool left_out, struct sum *sum)
{
	for (size_t i = 0; i < qkc_n_workloads; i++) {
		struct qkc_row row = q->row;
		row.workload = &qkc_workloads[i];
		row.config = *c;
		if (left_out &&
			(i + q->row.seed + c->version + c->cluster_bits + c->refcount_bits) % 2)
			continue;
		if (is_wanted(q, row.workload) && fits(row.workload, c, row.is_peer))
			run_row(&row, q->is_quick, sum);
	}
}

static int run_all(struct request *q)
{
	struct sum sum = {0};
	uint64_t qemu_left = QEMU_SAMPLE;
	time_t start = time(NULL);
	size_t n = q->is_quick ? N_QUICK : sizeof(all_configs) / sizeof(*all_configs);
	q->row.qemu_left = q->row.is_peer ? NULL : &qemu_left;
	(void)puts(
		"operation                  | configuration                    | distinct states "
		"(by content) | bad");
	do {
		if (q->has_config)
			run_config(q, &q->config, false, &sum);
		for (size_t i = 0; i < n && !q->has_config; i++)
			run_config(q, &all_configs[i], q->is_half && i >= N_QUICK, &sum);
		q->row.seed++;
	} while (sum.totals.n_distinct < q->min_states && q->is_long && sum.n_failed == 0);
	(void)printf("%" PRIu64 " states visited, %" PRIu64 " distinct, %" PRIu64 " bad; %" PRIu64
		     " written to afterwards, %" PRIu64 " states of crashes in that; %" PRIu64
		     " seen by qemu-img check; %ld s\n",
		sum.totals.n_visited, sum.totals.n_distinct, sum.totals.n_bad, sum.n_again,
		sum.n_nested, sum.n_qemu, (long)(time(NULL) - start));
	bool few = sum.totals.n_distinct < q->min_states;
	if (few)
		(void)printf(
			"FAILED: fewer than %" PRIu64 " distinct states in all\n", q->min_states);
	(void)printf("%" PRIu64 " passed, %" PRIu64 " failed\n", sum.n_rows - sum.n_failed,
		sum.n_failed + few);
	return sum.n_failed != 0 || few ? 1 : 0;
}

/* ---- side by side ---- */

static void run_both(const struct request *q, const struct qkc_workload *w, struct sum sums[2])
{
	for (size_t i = 0; i < N_QUICK; i++)
		for (unsigned peer = 0; peer < 2; peer++) {
			struct qkc_row row = q->row;
			struct qkc_result r;
			row.is_peer = peer != 0;
			row.workload = w;
			row.config = q->has_config ? q->config : all_configs[i];
			if (!fits(w, &row.config, row.is_peer) || (q->has_config && i != 0))
				continue;
			sums[peer].n_failed += !qkc_row_run(&row, &r);
			add(&sums[peer], &r);
		}
}

static void print_cell(const struct sum *s)
{
	if (s->n_rows == 0 || s->n_failed == s->n_rows)
		(void)printf(" | %8s | %5s", "-", "-");
	else
		(void)printf(" | %8" PRIu64 " | %5" PRIu64, s->totals.n_distinct, s->totals.n_bad);
}

static int run_peers(const struct request *q)
{
	struct sum all[2] = {{.n_rows = 0}, {.n_rows = 0}};
	(void)printf(
		"%-26s | %8s | %5s | %8s | %5s\n", "operation", "qcowkit", "bad", "QEMU", "bad");
	for (size_t i = 0; i < qkc_n_workloads; i++) {
		const struct qkc_workload *w = &qkc_workloads[i];
		struct sum sums[2] = {{.n_rows = 0}, {.n_rows = 0}};
		if (!is_wanted(q, w) || w->only & QKC_OURS)
			continue;
		run_both(q, w, sums);
		(void)printf("%-26s", w->name);
		for (unsigned k = 0; k < 2; k++) {
			print_cell(&sums[k]);
			all[k].totals.n_distinct += sums[k].totals.n_distinct;
			all[k].totals.n_bad += sums[k].totals.n_bad;
			all[k].n_rows += sums[k].n_rows;
			all[k].n_failed += sums[k].n_failed;
		}
		(void)putchar('\n');
		(void)fflush(stdout);
	}
	(void)printf("%-26s", "all");
	print_cell(&all[0]);
	print_cell(&all[1]);
	(void)putchar('\n');
	return all[0].totals.n_bad != 0 || all[0].n_failed != 0;
}

/* ---- arguments ---- */

static uint64_t number(const char *text)
{
	char *end;
	uint64_t v = strtoull(text, &end, 10);
	if (*text != '\0' && *end == '\0')
		return v;
	(void)fprintf(stderr, "crash: '%s' is not a number\n", text);
	exit(2);
}

static void take_config(struct request *q, const char *text)
{
	unsigned cluster = 0;
	struct qkc_config *c = &q->config;
	if (sscanf(text, "%u,%u,%u", &c->version, &cluster, &c->refcount_bits) != 3 ||
		cluster < 512) {
		(void)fprintf(stderr, "crash: --config wants VERSION,CLUSTER,REFCOUNT_BITS\n");
		exit(2);
	}
	for (c->cluster_bits = 9; 1u << c->cluster_bits < cluster;)
		c->cluster_bits++;
	q->has_config = true;
}

static void set_depth(struct request *q, bool is_long)
{
	q->row.subset_bits = is_long ? 12 : 7;
	q->row.n_random = is_long ? 100 : 12;
	q->row.n_cuts = is_long ? 16 : 3;
	q->row.again_one_in = is_long ? 8 : 4;
	q->row.want_states = is_long ? 16000 : 140;
	q->row.max_variants = is_long ? 400 : 12;
}

static const struct option options[] = {{"peers", no_argument, NULL, 'p'},
	{"peer", no_argument, NULL, 'P'}, {"quick", no_argument, NULL, 'q'},
	{"long", no_argument, NULL, 'l'}, {"half", no_argument, NULL, 'H'},
	{"only", required_argument, NULL, 'o'}, {"config", required_argument, NULL, 'c'},
	{"seed", required_argument, NULL, 's'}, {"state", required_argument, NULL, 'i'},
	{"variant", required_argument, NULL, 'v'}, {"want", required_argument, NULL, 'w'},
	{"save", required_argument, NULL, 'S'}, {"subsets", required_argument, NULL, 'b'},
	{"random", required_argument, NULL, 'r'}, {"cuts", required_argument, NULL, 'u'},
	{"again", required_argument, NULL, 'a'}, {"tell", required_argument, NULL, 't'},
	{"min", required_argument, NULL, 'm'}, {"qemu-io", required_argument, NULL, 'Q'},
	{"shim", required_argument, NULL, 'h'}, {"list", no_argument, NULL, 'L'},
	{NULL, 0, NULL, 0}};

static void take_number(struct request *q, int c, uint64_t v)
{
	if (c == 's')
		q->row.seed = v;
	else if (c == 'i')
		q->row.only_id = v;
	else if (c == 'v')
		q->row.only_variant = (unsigned)v;
	else if (c == 'w')
		q->row.want_states = v;
	else if (c == 'b')
		q->row.subset_bits = (unsigned)v;
	else if (c == 'r')
		q->row.n_random = (unsigned)v;
	else if (c == 'u')
		q->row.n_cuts = (unsigned)v;
	else if (c == 'a')
		q->row.again_one_in = (unsigned)v;
	else if (c == 't')
		q->row.max_told = (unsigned)v;
	else
		q->min_states = v;
}

static void take_option(struct request *q, int c)
{
	switch (c) {
	case 'p':
		q->peers = true;
		break;
	case 'P':
		q->row.is_peer = true;
		break;
	case 'q':
		q->is_quick = true;
		q->row.want_states = 40;
		break;
	case 'H':
		q->is_half = true;
		break;
	case 'l':
		q->is_long = true;
		q->min_states = LONG_MIN_STATES;
		set_depth(q, true);
		break;
	case 'o':
		q->only = optarg;
		break;
	case 'c':
		take_config(q, optarg);
		break;
	case 'S':
		q->row.save = optarg;
		break;
	case 'Q':
		q->row.qemu_io = optarg;
		break;
	case 'h':
		q->row.shim = optarg;
		break;
	case 'L':
		q->list = true;
		break;
	case '?':
		exit(2);
	default:
		take_number(q, c, number(optarg));
	}
}

int main(int argc, char **argv)
{
	struct request q = {.row = {.seed = 1, .qemu_io = "qemu-io", .max_told = 1}};
	const char *seed = getenv("QK_SEED"), *shim = getenv("QKC_SHIM");
	set_depth(&q, false);
	if (seed != NULL)
		q.row.seed = number(seed);
	q.row.shim = shim;
	for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
		take_option(&q, c);
	for (size_t i = 0; q.list && i < qkc_n_workloads; i++)
		(void)puts(qkc_workloads[i].name);
	if (q.list)
		return 0;
	if ((q.peers || q.row.is_peer) && q.row.shim == NULL) {
		(void)fprintf(stderr, "crash: peers need --shim\n");
		return 2;
	}
	(void)printf("seed %" PRIu64 "\n", q.row.seed);
	return q.peers ? run_peers(&q) : run_all(&q);
}
