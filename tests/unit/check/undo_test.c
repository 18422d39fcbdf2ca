/* SPDX-License-Identifier: MIT */
/*
 * Undoing a repair of random damage: a repair or an undoing that was cut short (killed, power lost) ends, by undoing once
 * more, in the image of before, byte for byte; an image that anybody else has written to since is refused and stays.
 */
#include "cm.h"

#include <stdlib.h>

#include <qcowkit/manage.h>

#include "check/undo.h"
#include "fault.h"
#include "host.h"
#include "image.h"
#include "model.h"
#include "rng.h"
#include "sick.h"

enum which {
	IMAGE,
	UNDO
};

/* An image and its undo file, with a log of what is done to both. */
struct bed {
	const struct qkt_sick *sick;
	struct qkt_fault *fault;
	struct qcow_store *store[2];
	struct qkt_model start[2]; /* at the beginning of the log */
};

static struct qkt_model slurp(struct qcow_store *s)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t size = 0;

	assert_ok(qcow_store_size(s, &size, &err), err);
	struct qkt_model m = qkt_model_new((size_t)size);
	assert_ok(qcow_store_read(s, m.bytes, m.size, 0, &err), err);
	return m;
}

/* Copies of both are the bed's. */
static struct bed bed_of(
	const struct qkt_sick *s, const struct qkt_model *image, const struct qkt_model *saved)
{
	struct bed b = {.sick = s, .fault = qkt_fault_new()};
	const struct qkt_model *from[2] = {image, saved};

	for (unsigned i = 0; i < 2; i++) {
		struct qcow_store *inner = qkt_store_of(from[i]->bytes, from[i]->size);
		b.start[i] = qkt_model_new(0);
		qkt_model_write(&b.start[i], from[i]->bytes, from[i]->size, 0);
		if (s->fixed && i == IMAGE)
			inner = qkt_fixed_wrap(inner);
		b.store[i] = qkt_fault_wrap(b.fault, inner, i);
	}
	qkt_fault_log(b.fault);
	return b;
}

static void drop_bed(struct bed *b)
{
	for (unsigned i = 0; i < 2; i++) {
		qcow_store_close(b->store[i]);
		qkt_model_free(&b->start[i]);
	}
	qkt_fault_free(b->fault);
}

static struct bed bed_of_sick(const struct qkt_sick *s)
{
	struct qkt_model image = {s->bytes, s->n};
	struct qkt_model nothing = {NULL, 0};

	return bed_of(s, &image, &nothing);
}

/* False where a device has no room. */
static bool repair(struct bed *b)
{
	struct qcow_repair_options o = QCOW_REPAIR_OPTIONS_INIT;
	struct qcow_repair_result result;
	struct qcow_error err = QCOW_ERROR_INIT;

	o.undo = b->store[UNDO];
	enum qcow_status status = qcow_repair(b->store[IMAGE], &o, &result, &err);
	if (status == QCOW_E_NOSPC && b->sick->fixed)
		return false;
	assert_ok(status, err);
	return result.n_steps != 0;
}

/* ---- states ---- */

/* Each store after entry `end` of the log: all of it (rng NULL), or what a power loss may leave of it. */
static void state_after(const struct bed *b, size_t end, struct qkt_rng *rng, struct qkt_model m[2])
{
	uint64_t epoch[2] = {0, 0};

	for (size_t i = 0; i <= end; i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(b->fault, i);
		if (e->epoch > epoch[e->store_id])
			epoch[e->store_id] = e->epoch;
		if (e->call == QKT_FLUSH)
			epoch[e->store_id] = e->epoch + 1;
	}
	for (unsigned i = 0; i < 2; i++) {
		m[i] = qkt_model_new(0);
		qkt_model_write(&m[i], b->start[i].bytes, b->start[i].size, 0);
	}
	for (size_t i = 0; i <= end; i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(b->fault, i);
		uint64_t n = e->len / 512 + 2;
		if (rng == NULL || e->epoch < epoch[e->store_id] || qkt_rng_below(rng, 3) == 0)
			qkt_log_apply(e, &m[e->store_id], 0, UINT64_MAX);
		else if (e->call == QKT_WRITE && qkt_rng_below(rng, 2) == 0)
			qkt_log_apply(e, &m[e->store_id], qkt_rng_below(rng, n),
				1 + qkt_rng_below(rng, n));
	}
}

static void assert_as_before(const struct qkt_sick *s, struct qcow_store *store, const char *when)
{
	struct qkt_model m = slurp(store);

	if (m.size != s->n || memcmp(m.bytes, s->bytes, s->n) != 0)
		fail_msg("%s: not as it was", when);
	qkt_model_free(&m);
}

/* What the call does; where it has next to no memory, and goes through it in many parts. */
static enum qcow_status undo(const struct bed *b, bool in_parts, struct qcow_error *err)
{
	const struct qk_undo_bounds bounds = {3, 2};

	return in_parts ? qk_undo_apply_within(b->store[IMAGE], b->store[UNDO], &bounds, err)
			: qcow_repair_undo(b->store[IMAGE], b->store[UNDO], err);
}

/* Undoing ends with the image of before. A record's head that is not durable means that nothing was replaced. */
static void undo_ends_well(
	const struct qkt_sick *s, const struct qkt_model m[2], bool in_parts, const char *when)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bed b = bed_of(s, &m[IMAGE], &m[UNDO]);

	enum qcow_status status = undo(&b, in_parts, &err);
	if (status != QCOW_OK && status != QCOW_E_FORMAT)
		fail_msg("%s: %s", when, err.message);
	assert_as_before(s, b.store[IMAGE], when);
	drop_bed(&b);
}

static void explore(const struct bed *b, struct qkt_rng *rng, const char *what)
{
	size_t n = qkt_fault_log_count(b->fault);
	char when[96];

	for (size_t i = 0; i < n; i++) {
		for (unsigned k = 0; k < 3; k++) {
			struct qkt_model m[2];
			state_after(b, i, k == 0 ? NULL : rng, m);
			(void)snprintf(when, sizeof(when), "%s, %s after call %zu of %zu", what,
				k == 0 ? "killed" : "power lost", i + 1, n);
			undo_ends_well(b->sick, m, i % 2 == 0, when);
			qkt_model_free(&m[0]);
			qkt_model_free(&m[1]);
		}
	}
}

/* ---- what is tried ---- */

static void cut_short(const struct qkt_sick *s, struct qkt_rng *rng)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bed b = bed_of_sick(s);

	(void)repair(&b);
	explore(&b, rng, "repair");
	struct qkt_model image = slurp(b.store[IMAGE]);
	struct qkt_model saved = slurp(b.store[UNDO]);
	drop_bed(&b);
	b = bed_of(s, &image, &saved);
	assert_ok(undo(&b, true, &err), err);
	assert_as_before(s, b.store[IMAGE], "undone");
	explore(&b, rng, "undoing");
	/* and once more: there is nothing to do */
	assert_ok(qcow_repair_undo(b.store[IMAGE], b.store[UNDO], &err), err);
	assert_as_before(s, b.store[IMAGE], "undone twice");
	drop_bed(&b);
	qkt_model_free(&image);
	qkt_model_free(&saved);
}

/* The image is not what the repair left: nothing is written, neither there nor in the undo file. */
static void is_refused(const struct qkt_sick *s, const struct qkt_model *image,
	const struct qkt_model *saved, const char *why)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bed b = bed_of(s, image, saved);

	for (unsigned in_parts = 0; in_parts < 2; in_parts++) {
		enum qcow_status status = undo(&b, in_parts != 0, &err);
		if (status != QCOW_E_INVAL)
			fail_msg("%s: %d, not refused", why, (int)status);
	}
	assert_int_equal(qkt_fault_log_count(b.fault), 0);
	drop_bed(&b);
}

static void changed_since(const struct qkt_sick *s, struct qkt_rng *rng)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bed b = bed_of_sick(s);

	if (!repair(&b)) {
		drop_bed(&b);
		return;
	}
	struct qkt_model image = slurp(b.store[IMAGE]);
	struct qkt_model saved = slurp(b.store[UNDO]);
	size_t n = qkt_fault_log_count(b.fault);
	for (unsigned tries = 0; tries < 32; tries++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(
			b.fault, (size_t)qkt_rng_below(rng, n));
		if (e->call != QKT_WRITE || e->store_id != IMAGE)
			continue;
		uint64_t at = e->off + qkt_rng_below(rng, e->len);
		uint8_t was = image.bytes[at];
		image.bytes[at] ^= (uint8_t)(1 + qkt_rng_below(rng, 255));
		is_refused(s, &image, &saved, "a byte that the repair wrote");
		/* what another has written may be what was there before the repair */
		image.bytes[at] = at < s->n ? s->bytes[at] : 0;
		if (image.bytes[at] != was)
			is_refused(s, &image, &saved, "a byte that is as before");
		image.bytes[at] = was;
	}
	if (!s->fixed) {
		struct qkt_model longer = qkt_model_new(0);
		qkt_model_write(&longer, image.bytes, image.size, 0);
		qkt_model_resize(&longer, image.size + s->base->cluster);
		is_refused(s, &longer, &saved, "a longer file");
		qkt_model_resize(&longer, image.size - 1);
		is_refused(s, &longer, &saved, "a shorter file");
		qkt_model_free(&longer);
	}
	assert_ok(qcow_repair_undo(b.store[IMAGE], b.store[UNDO], &err), err);
	assert_as_before(s, b.store[IMAGE], "undone");
	/* undone already, and changed since */
	struct qkt_model done = slurp(b.store[UNDO]);
	is_refused(s, &image, &done, "repaired again by another");
	qkt_model_free(&done);
	drop_bed(&b);
	qkt_model_free(&image);
	qkt_model_free(&saved);
}

/* A repair that was cut short, and an image that was written to since: sectors that the repair never made. */
static void changed_in_between(const struct qkt_sick *s, struct qkt_rng *rng)
{
	struct bed b = bed_of_sick(s);

	(void)repair(&b);
	size_t n = qkt_fault_log_count(b.fault);
	for (size_t i = 0; i < n; i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(b.fault, i);
		struct qkt_model m[2];
		if (e->call != QKT_WRITE || e->store_id != IMAGE)
			continue;
		uint64_t at = e->off + qkt_rng_below(rng, e->len);
		state_after(&b, i, NULL, m);
		m[IMAGE].bytes[at] ^= (uint8_t)(1 + qkt_rng_below(rng, 255));
		is_refused(s, &m[IMAGE], &m[UNDO], "a byte of a repair that was cut short");
		qkt_model_free(&m[0]);
		qkt_model_free(&m[1]);
	}
	drop_bed(&b);
}

/* ---- tests ---- */

static void each_sick(
	uint64_t salt, unsigned n, void (*work)(const struct qkt_sick *s, struct qkt_rng *rng))
{
	static const struct {
		uint64_t cluster;
		unsigned bits, version;
	} kinds[] = {{512, 16, 3}, {4096, 16, 2}, {1024, 1, 3}};
	struct qkt_rng rng = qkt_rng_init(salt);

	for (unsigned k = 0; k < 3; k++) {
		struct qkt_base base;
		qkt_make_base(&base, kinds[k].cluster, kinds[k].bits, kinds[k].version);
		for (unsigned i = 0; i < n; i++) {
			struct qkt_sick s;
			qkt_fall_sick(&s, &base, &rng);
			work(&s, &rng);
			qkt_get_well(&s);
		}
		qkt_drop_base(&base);
	}
}

static void what_was_cut_short_is_undone(void **state)
{
	(void)state;
	each_sick(1, 4, cut_short);
}

static void a_changed_image_is_refused(void **state)
{
	(void)state;
	each_sick(2, 8, changed_since);
}

static void a_changed_half_of_a_repair_is_refused(void **state)
{
	(void)state;
	each_sick(3, 4, changed_in_between);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_cut_short_is_undone),
		cmocka_unit_test(a_changed_image_is_refused),
		cmocka_unit_test(a_changed_half_of_a_repair_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
