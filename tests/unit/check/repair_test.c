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

#define DISK	 (256U << 10)
#define COPIED	 (UINT64_C(1) << 63)
#define MAX_HOST (64U << 10) /* clusters of an image */

struct base {
	uint64_t cluster;
	unsigned bits, version;
	uint8_t *bytes;
	size_t n;
	uint64_t n_guest; /* clusters of the disk */
	uint64_t l1, rt;
	uint64_t *host, *l2; /* of each guest cluster: host cluster and L2 table's, 0 none */
};

/* An image that was damaged. */
struct sick {
	const struct base *base;
	uint8_t *bytes;
	size_t n;
	bool *is_free; /* by guest cluster: a damaged word speaks of it, it may change */
	bool fixed;
};

static uint64_t load(const uint8_t *p)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < 8; i++)
		v = v << 8 | p[i];
	return v;
}

static void store(uint8_t *p, uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		p[i] = (uint8_t)(v >> (56 - 8 * i));
}

/* ---- images ---- */

static struct qcow_store *store_of(const uint8_t *bytes, size_t n)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *s = NULL;

	assert_ok(qcow_memory_open(n, &s, &err), err);
	assert_ok(qcow_store_write(s, bytes, n, 0, &err), err);
	return s;
}

static void content_of(uint64_t guest, uint8_t *buf, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		buf[i] = (uint8_t)(guest * 7 + i * 13 + 1);
}

/* Where the clusters lie, read by the specification. */
static void learn(struct base *b)
{
	uint64_t per = b->cluster / 8;

	b->l1 = load(b->bytes + 40);
	b->rt = load(b->bytes + 48);
	b->host = calloc(b->n_guest, sizeof(*b->host));
	b->l2 = calloc(b->n_guest, sizeof(*b->l2));
	assert_true(b->host != NULL && b->l2 != NULL);
	for (uint64_t g = 0; g < b->n_guest; g++) {
		uint64_t l2 = load(b->bytes + b->l1 + g / per * 8) & ~COPIED;
		b->l2[g] = l2 / b->cluster;
		b->host[g] = l2 == 0 ? 0
				     : (load(b->bytes + l2 + g % per * 8) & ~COPIED) / b->cluster;
	}
}

static void make_base(struct base *b, uint64_t cluster, unsigned bits, unsigned version)
{
	struct qcow_create_options c = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *s = NULL;
	struct qcow_image *image = NULL;
	uint8_t *buf = malloc(cluster);

	*b = (struct base){
		.cluster = cluster, .bits = bits, .version = version, .n_guest = DISK / cluster};
	c.cluster_size = cluster;
	c.refcount_bits = bits;
	c.version = version;
	c.virtual_size = DISK;
	assert_ok(qcow_file_open(qkt_path("base"), QCOW_FILE_WRITE | QCOW_FILE_CREATE, &s, &err),
		err);
	assert_ok(qcow_store_truncate(s, 0, &err), err);
	assert_ok(qcow_create(s, NULL, &c, &err), err);
	o.flags = QCOW_OPEN_WRITE;
	assert_ok(qcow_open(s, &o, &image, &err), err);
	for (uint64_t g = 0; g < b->n_guest; g++) {
		if (g % 5 == 3 || (g > 20 && g < 90))
			continue;
		content_of(g, buf, cluster);
		assert_ok(qcow_pwrite(image, buf, cluster, g * cluster, 0, &err), err);
	}
	assert_ok(qcow_flush(image, &err), err);
	qcow_close(image);
	free(buf);
	b->bytes = qkt_slurp(qkt_path("base"), &b->n);
	learn(b);
}

static void drop_base(struct base *b)
{
	free(b->bytes);
	free(b->host);
	free(b->l2);
}

/* ---- damage ---- */

/* A word speaks of a host cluster: whatever lies there may change. */
static void speak_of(struct sick *s, uint64_t host)
{
	for (uint64_t g = 0; g < s->base->n_guest; g++) {
		if (host != 0 && (s->base->host[g] == host || s->base->l2[g] == host))
			s->is_free[g] = true;
	}
}

static uint64_t random_word(const struct sick *s, struct qkt_rng *rng)
{
	uint64_t n = s->n / s->base->cluster;
	uint64_t off = qkt_rng_below(rng, n + 3) * s->base->cluster;

	switch (qkt_rng_below(rng, 8)) {
	case 0:
		return 0;
	case 1:
		return off | COPIED | UINT64_C(1) << (1 + qkt_rng_below(rng, 8));
	case 2:
		return off | COPIED | UINT64_C(1) << (56 + qkt_rng_below(rng, 6));
	case 3:
		return off + 512 * qkt_rng_below(rng, 8);
	case 4:
		return off | 1;
	case 5:
		return off;
	default:
		return off | COPIED;
	}
}

static void hurt_l2(struct sick *s, struct qkt_rng *rng)
{
	const struct base *b = s->base;
	uint64_t per = b->cluster / 8;
	uint64_t g = qkt_rng_below(rng, b->n_guest);
	uint64_t word = random_word(s, rng);

	if (b->l2[g] == 0)
		return;
	s->is_free[g] = true;
	speak_of(s, (word & UINT64_C(0x00fffffffffffe00)) / b->cluster);
	store(s->bytes + b->l2[g] * b->cluster + g % per * 8, word);
}

static void hurt_l1(struct sick *s, struct qkt_rng *rng)
{
	const struct base *b = s->base;
	uint64_t per = b->cluster / 8;
	uint64_t i = qkt_rng_below(rng, (b->n_guest + per - 1) / per);
	uint64_t word = random_word(s, rng);

	for (uint64_t g = i * per; g < (i + 1) * per && g < b->n_guest; g++) {
		s->is_free[g] = true;
		speak_of(s, b->host[g]);
	}
	speak_of(s, (word & UINT64_C(0x00fffffffffffe00)) / b->cluster);
	store(s->bytes + b->l1 + i * 8, word);
}

static void hurt_refcounts(struct sick *s, struct qkt_rng *rng)
{
	/* the block that it was before anything was damaged */
	uint64_t block = load(s->base->bytes + s->base->rt);

	if (qkt_rng_below(rng, 4) == 0)
		memset(s->bytes + block, (int)qkt_rng_below(rng, 256), s->base->cluster);
	else
		s->bytes[block + qkt_rng_below(rng, s->base->cluster)] = (uint8_t)qkt_rng_below(
			rng, 256);
}

static void hurt(struct sick *s, struct qkt_rng *rng)
{
	switch (qkt_rng_below(rng, 6)) {
	case 0:
		hurt_l1(s, rng);
		break;
	case 1:
		store(s->bytes + s->base->rt + qkt_rng_below(rng, 3) * 8, random_word(s, rng));
		break;
	case 2:
		hurt_refcounts(s, rng);
		break;
	default:
		hurt_l2(s, rng);
	}
}

static void fall_sick(struct sick *s, const struct base *b, struct qkt_rng *rng)
{
	*s = (struct sick){.base = b, .n = b->n, .fixed = qkt_rng_below(rng, 3) == 0};
	/* a device has room behind the image */
	if (s->fixed)
		s->n += 64 * b->cluster;
	s->bytes = calloc(1, s->n);
	s->is_free = calloc(b->n_guest, sizeof(*s->is_free));
	assert_true(s->bytes != NULL && s->is_free != NULL);
	memcpy(s->bytes, b->bytes, b->n);
	for (uint64_t n = 1 + qkt_rng_below(rng, 4); n != 0; n--)
		hurt(s, rng);
	if (b->version == 3 && qkt_rng_below(rng, 4) == 0)
		s->bytes[79] |= (uint8_t)(1 + qkt_rng_below(rng, 3));
}

static void get_well(struct sick *s)
{
	free(s->bytes);
	free(s->is_free);
}

/* ---- judging ---- */

static enum qcow_status look(
	const uint8_t *bytes, size_t n, struct qcow_check_result *r, struct qcow_error *err)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;

	o.flags = QCOW_OPEN_CHECK | QCOW_OPEN_NO_BACKING;
	enum qcow_status status = qcow_open(store_of(bytes, n), &o, &image, err);
	if (status == QCOW_OK)
		status = qcow_check(image, NULL, r, err);
	qcow_close(image);
	return status;
}

/* What no damaged word speaks of reads as it did. */
static void judge_guest(const struct sick *s, const uint8_t *bytes, size_t n, const char *when)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	uint8_t *buf = malloc(s->base->cluster);
	uint8_t *want = malloc(s->base->cluster);

	o.flags = QCOW_OPEN_CHECK | QCOW_OPEN_NO_BACKING;
	assert_ok(qcow_open(store_of(bytes, n), &o, &image, &err), err);
	for (uint64_t g = 0; g < s->base->n_guest; g++) {
		uint64_t len = s->base->cluster;
		if (s->is_free[g])
			continue;
		assert_ok(qcow_pread(image, buf, len, g * len, &err), err);
		memset(want, 0, len);
		if (s->base->host[g] != 0)
			content_of(g, want, len);
		if (memcmp(buf, want, len) != 0)
			fail_msg("%s: cluster %llu of the disk changed", when,
				(unsigned long long)g);
	}
	qcow_close(image);
	free(buf);
	free(want);
}

static void judge_clean(const struct sick *s, const uint8_t *bytes, size_t n, const char *when)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_result r;

	assert_ok(look(bytes, n, &r, &err), err);
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
	const struct sick *s, const uint8_t *bytes, size_t n, struct qkt_fault *fault)
{
	struct qcow_store *store = store_of(bytes, n);

	if (s->fixed)
		store = qkt_fixed_wrap(store);
	return fault == NULL ? store : qkt_fault_wrap(fault, store, 0);
}

/* NOSPC is what a device without room for a second structure answers. */
static bool repair(const struct sick *s, struct qcow_store *store, struct qcow_store *undo,
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
static void heal(const struct sick *s, const uint8_t *bytes, size_t n, const char *when)
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
static bool repair_well(const struct sick *s, struct qkt_fault *fault)
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
	again = store_of(after, n);
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

static void judge_state(const struct sick *s, const struct qkt_model *m,
	const struct qcow_check_result *before, const char *when)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_result r;

	assert_ok(look(m->bytes, m->size, &r, &err), err);
	if (r.corruptions > before->corruptions)
		fail_msg("%s: %llu corruptions, %llu before the repair", when,
			(unsigned long long)r.corruptions, (unsigned long long)before->corruptions);
	judge_guest(s, m->bytes, m->size, when);
	heal(s, m->bytes, m->size, when);
}

/* The log up to entry `end`; of those in the last epoch the sectors that the seed says, or all. */
static void state_after(const struct sick *s, struct qkt_fault *fault, size_t end, uint64_t epoch,
	struct qkt_rng *rng, struct qkt_model *m)
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

static void explore(const struct sick *s, struct qkt_fault *fault, struct qkt_rng *rng)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_result before;
	struct qkt_model m = qkt_model_new(s->n);
	size_t n = qkt_fault_log_count(fault);
	char when[96];

	assert_ok(look(s->bytes, s->n, &before, &err), err);
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

static void fail_each(const struct sick *s, bool of_memory)
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

static void each_sick(
	struct qkt_rng *rng, unsigned n, void (*work)(const struct sick *s, struct qkt_rng *rng))
{
	static const struct {
		uint64_t cluster;
		unsigned bits, version;
	} kinds[] = {{512, 16, 3}, {4096, 16, 2}, {512, 1, 3}, {512, 64, 3}, {1024, 4, 3}};

	for (unsigned k = 0; k < 5; k++) {
		struct base b;
		make_base(&b, kinds[k].cluster, kinds[k].bits, kinds[k].version);
		for (unsigned i = 0; i < n; i++) {
			struct sick s;
			fall_sick(&s, &b, rng);
			work(&s, rng);
			get_well(&s);
		}
		drop_base(&b);
	}
}

static void do_repair(const struct sick *s, struct qkt_rng *rng)
{
	struct qkt_fault *fault = qkt_fault_new();

	(void)rng;
	qkt_fault_log(fault);
	(void)repair_well(s, fault);
	qkt_fault_free(fault);
}

static void do_explore(const struct sick *s, struct qkt_rng *rng)
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

static void do_fail(const struct sick *s, struct qkt_rng *rng)
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
