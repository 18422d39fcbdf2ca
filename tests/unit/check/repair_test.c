/* SPDX-License-Identifier: MIT */
/*
 * Repair of random damage: words of L1, L2 and refcount tables and refcounts of small images in memory are replaced by
 * what may look right. Afterwards a check finds nothing, a second repair writes nothing, undoing gives every byte back,
 * and each cluster of the disk that no damaged word speaks of reads as it did. The same where a call of the store or
 * an allocation fails, in the states that a crash leaves (never worse than before), and on stores that cannot grow.
 */
#include "cm.h"

#include <stdlib.h>

#include <qcowkit/manage.h>

#include "failmalloc.h"
#include "fault.h"
#include "host.h"
#include "image.h"
#include "model.h"
#include "rng.h"
#include "sick.h"

/* ---- judging ---- */

#define N_IDS 64U

struct counts {
	uint64_t n[N_IDS]; /* of each finding */
};

static void count_finding(void *ctx, const struct qcow_finding *f)
{
	if (f->id < N_IDS)
		((struct counts *)ctx)->n[f->id]++;
}

/* `counts` may be NULL. */
static enum qcow_status look(const uint8_t *bytes, size_t n, struct qcow_check_result *r,
	struct counts *counts, struct qcow_error *err)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_check_options c = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_image *image = NULL;

	o.flags = QCOW_OPEN_CHECK | QCOW_OPEN_NO_BACKING;
	enum qcow_status status = qcow_open(qkt_store_of(bytes, n), &o, &image, err);
	if (counts != NULL) {
		*counts = (struct counts){{0}};
		c.on_finding = count_finding;
		c.ctx = counts;
	}
	if (status == QCOW_OK)
		status = qcow_check(image, &c, r, err);
	qcow_close(image);
	return status;
}

/* What no damaged word speaks of reads as it did. */
static void judge_guest(const struct qkt_sick *s, const uint8_t *bytes, size_t n, const char *when)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	uint8_t *buf = malloc(s->base->cluster);
	uint8_t *want = malloc(s->base->cluster);

	o.flags = QCOW_OPEN_CHECK | QCOW_OPEN_NO_BACKING;
	assert_ok(qcow_open(qkt_store_of(bytes, n), &o, &image, &err), err);
	for (uint64_t g = 0; g < s->base->n_guest; g++) {
		uint64_t len = s->base->cluster;
		if (s->is_free[g])
			continue;
		assert_ok(qcow_pread(image, buf, len, g * len, &err), err);
		memset(want, 0, len);
		if (s->base->host[g] != 0)
			qkt_content_of(g, want, len);
		if (memcmp(buf, want, len) != 0)
			fail_msg("%s: cluster %llu of the disk changed", when,
				(unsigned long long)g);
	}
	qcow_close(image);
	free(buf);
	free(want);
}

static void judge_clean(const struct qkt_sick *s, const uint8_t *bytes, size_t n, const char *when)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_result r;

	assert_ok(look(bytes, n, &r, NULL, &err), err);
	if (r.corruptions != 0 || r.leaks != 0)
		fail_msg("%s: %llu corruptions, %llu leaks", when,
			(unsigned long long)r.corruptions, (unsigned long long)r.leaks);
	judge_guest(s, bytes, n, when);
}

/* ---- repairing ---- */

static uint8_t *bytes_of(struct qcow_store *s, size_t *n)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t size = 0;

	assert_ok(qcow_store_size(s, &size, &err), err);
	uint8_t *bytes = malloc(size);
	assert_non_null(bytes);
	assert_ok(qcow_store_read(s, bytes, size, 0, &err), err);
	*n = size;
	return bytes;
}

/* A store with the image; it is below `fault` where that is not NULL. */
static struct qcow_store *bed_of(
	const struct qkt_sick *s, const uint8_t *bytes, size_t n, struct qkt_fault *fault)
{
	struct qcow_store *store = qkt_store_of(bytes, n);

	if (s->fixed)
		store = qkt_fixed_wrap(store);
	return fault == NULL ? store : qkt_fault_wrap(fault, store, 0);
}

/* NOSPC is what a device without room for a second structure answers. */
static bool repair(const struct qkt_sick *s, struct qcow_store *store, struct qcow_store *undo,
	struct qcow_repair_result *result)
{
	struct qcow_repair_options o = QCOW_REPAIR_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;

	o.undo = undo;
	enum qcow_status status = qcow_repair(store, &o, result, &err);
	if (status == QCOW_E_NOSPC && s->fixed)
		return false;
	assert_ok(status, err);
	return true;
}

/* Repair what a crash or a failure has left. */
static void heal(const struct qkt_sick *s, const uint8_t *bytes, size_t n, const char *when)
{
	struct qcow_repair_result result;
	struct qcow_store *store = bed_of(s, bytes, n, NULL);
	size_t n_after = 0;

	if (repair(s, store, NULL, &result)) {
		uint8_t *after = bytes_of(store, &n_after);
		judge_clean(s, after, n_after, when);
		free(after);
	}
	qcow_store_close(store);
}

/* One repair with all that holds after it; the log of its writes stays in `fault`. */
static bool repair_well(const struct qkt_sick *s, struct qkt_fault *fault)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_repair_result result;
	struct qcow_store *store = bed_of(s, s->bytes, s->n, fault);
	struct qcow_store *undo = NULL;
	size_t n = 0;

	assert_ok(qcow_memory_open(0, &undo, &err), err);
	bool done = repair(s, store, undo, &result);
	if (done) {
		uint8_t *after = bytes_of(store, &n);
		judge_clean(s, after, n, "after");
		free(after);
		uint64_t n_writes = qkt_fault_log_count(fault);
		assert_true(repair(s, store, NULL, &result));
		assert_int_equal(result.n_steps, 0);
		assert_int_equal(qkt_fault_log_count(fault), n_writes);
	}
	struct qcow_store *again = NULL;
	uint8_t *after = bytes_of(store, &n);
	again = qkt_store_of(after, n);
	assert_ok(qcow_repair_undo(again, undo, &err), err);
	free(after);
	after = bytes_of(again, &n);
	assert_int_equal(n, s->n);
	assert_memory_equal(after, s->bytes, n);
	free(after);
	qcow_store_close(again);
	qcow_store_close(undo);
	qcow_store_close(store);
	return done;
}

/* ---- crashes ---- */

static bool is_about_refcounts(unsigned id)
{
	return id == QCOW_FINDING_REFCOUNT_TOO_LOW || id == QCOW_FINDING_COPIED_WRONG;
}

/* Were there refcounts that nothing could be compared with, or that shared a cluster with a table? What is wrong with
 * them is seen when there are others. */
static bool hides_refcounts(const struct counts *c)
{
	return c->n[QCOW_FINDING_METADATA_OVERLAP] != 0 ||
	       c->n[QCOW_FINDING_REFTABLE_ENTRY_UNALIGNED] != 0 ||
	       c->n[QCOW_FINDING_REFTABLE_ENTRY_RESERVED] != 0 ||
	       c->n[QCOW_FINDING_REFTABLE_ENTRY_BEYOND_FILE] != 0 ||
	       c->n[QCOW_FINDING_REFCOUNT_BLOCK_TWICE] != 0;
}

static uint64_t n_corruptions(const struct counts *c, bool without_refcounts)
{
	uint64_t n = 0;

	for (unsigned id = 1; id < N_IDS; id++) {
		if (qcow_finding_severity(id) == QCOW_SEVERITY_CORRUPTION &&
			!(without_refcounts && is_about_refcounts(id)))
			n += c->n[id];
	}
	return n;
}

static void judge_state(const struct qkt_sick *s, const struct qkt_model *m,
	const struct counts *before, const char *when)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_result r;
	struct counts now;
	bool blind = hides_refcounts(before);

	assert_ok(look(m->bytes, m->size, &r, &now, &err), err);
	if (n_corruptions(&now, blind) > n_corruptions(before, blind))
		fail_msg("%s: %llu corruptions, %llu before the repair", when,
			(unsigned long long)n_corruptions(&now, blind),
			(unsigned long long)n_corruptions(before, blind));
	judge_guest(s, m->bytes, m->size, when);
	heal(s, m->bytes, m->size, when);
}

/* The log up to entry `end`; of those in the last epoch the sectors that the seed says, or all. */
static void state_after(const struct qkt_sick *s, struct qkt_fault *fault, size_t end,
	uint64_t epoch, struct qkt_rng *rng, struct qkt_model *m)
{
	qkt_model_resize(m, 0);
	qkt_model_write(m, s->bytes, s->n, 0);
	for (size_t i = 0; i < end; i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(fault, i);
		uint64_t n = e->len / 512 + 1;
		if (rng == NULL || e->epoch < epoch || e->call != QKT_WRITE) {
			if (rng == NULL || e->epoch < epoch || qkt_rng_below(rng, 2) == 0)
				qkt_log_apply(e, m, 0, UINT64_MAX);
			continue;
		}
		if (qkt_rng_below(rng, 3) == 0)
			qkt_log_apply(e, m, 0, UINT64_MAX);
		else if (qkt_rng_below(rng, 2) == 0)
			qkt_log_apply(e, m, qkt_rng_below(rng, n), 1 + qkt_rng_below(rng, n));
	}
}

static void explore(const struct qkt_sick *s, struct qkt_fault *fault, struct qkt_rng *rng)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_result r;
	struct counts before;
	struct qkt_model m = qkt_model_new(s->n);
	size_t n = qkt_fault_log_count(fault);
	char when[96];

	assert_ok(look(s->bytes, s->n, &r, &before, &err), err);
	for (size_t i = 0; i < n; i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(fault, i);
		uint64_t epoch = e->epoch;
		if (e->call == QKT_FLUSH)
			continue;
		state_after(s, fault, i + 1, 0, NULL, &m);
		(void)snprintf(when, sizeof(when), "killed after write %zu of %zu", i + 1, n);
		judge_state(s, &m, &before, when);
		state_after(s, fault, i + 1, epoch, rng, &m);
		(void)snprintf(when, sizeof(when), "power lost after write %zu of %zu", i + 1, n);
		judge_state(s, &m, &before, when);
	}
	qkt_model_free(&m);
}

/* ---- failures ---- */

static void fail_each(const struct qkt_sick *s, bool of_memory)
{
	for (uint64_t nth = 1; nth < 4000; nth += 1 + nth / 24) {
		struct qkt_fault *fault = qkt_fault_new();
		struct qcow_repair_options o = QCOW_REPAIR_OPTIONS_INIT;
		struct qcow_repair_result result;
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_store *store = bed_of(s, s->bytes, s->n, fault);
		size_t n = 0;

		if (of_memory)
			qkt_failmalloc_arm(nth, false);
		else
			qkt_fault_arm(fault, QKT_ANY, nth, QKT_EIO, false);
		enum qcow_status status = qcow_repair(store, &o, &result, &err);
		bool hit = of_memory ? qkt_failmalloc_hits() != 0 : qkt_fault_hits(fault) != 0;
		qkt_failmalloc_arm(0, false);
		qkt_fault_disarm(fault);
		if (!hit) {
			qcow_store_close(store);
			qkt_fault_free(fault);
			return;
		}
		assert_true(status != QCOW_E_BUG);
		uint8_t *after = bytes_of(store, &n);
		heal(s, after, n, of_memory ? "out of memory" : "a call failed");
		free(after);
		qcow_store_close(store);
		qkt_fault_free(fault);
	}
}

/* ---- tests ---- */

static void each_sick(struct qkt_rng *rng, unsigned n,
	void (*work)(const struct qkt_sick *s, struct qkt_rng *rng))
{
	static const struct {
		uint64_t cluster;
		unsigned bits, version;
	} kinds[] = {{512, 16, 3}, {4096, 16, 2}, {512, 1, 3}, {512, 64, 3}, {1024, 4, 3}};

	for (unsigned k = 0; k < 5; k++) {
		struct qkt_base b;
		qkt_make_base(&b, kinds[k].cluster, kinds[k].bits, kinds[k].version);
		for (unsigned i = 0; i < n; i++) {
			struct qkt_sick s;
			qkt_fall_sick(&s, &b, rng);
			work(&s, rng);
			qkt_get_well(&s);
		}
		qkt_drop_base(&b);
	}
}

static void do_repair(const struct qkt_sick *s, struct qkt_rng *rng)
{
	struct qkt_fault *fault = qkt_fault_new();

	(void)rng;
	qkt_fault_log(fault);
	(void)repair_well(s, fault);
	qkt_fault_free(fault);
}

static void do_explore(const struct qkt_sick *s, struct qkt_rng *rng)
{
	struct qkt_fault *fault = qkt_fault_new();
	struct qcow_repair_result result;

	qkt_fault_log(fault);
	struct qcow_store *store = bed_of(s, s->bytes, s->n, fault);
	if (repair(s, store, NULL, &result))
		explore(s, fault, rng);
	qcow_store_close(store);
	qkt_fault_free(fault);
}

static void do_fail(const struct qkt_sick *s, struct qkt_rng *rng)
{
	(void)rng;
	fail_each(s, false);
	fail_each(s, true);
}

static void random_damage_is_repaired(void **state)
{
	struct qkt_rng rng = qkt_rng_init(1);

	(void)state;
	each_sick(&rng, 25, do_repair);
}

static void no_crash_makes_it_worse(void **state)
{
	struct qkt_rng rng = qkt_rng_init(2);

	(void)state;
	each_sick(&rng, 3, do_explore);
}

static void no_failure_makes_it_worse(void **state)
{
	struct qkt_rng rng = qkt_rng_init(3);

	(void)state;
	each_sick(&rng, 1, do_fail);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_damage_is_repaired),
		cmocka_unit_test(no_crash_makes_it_worse),
		cmocka_unit_test(no_failure_makes_it_worse),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
