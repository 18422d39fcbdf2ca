/* SPDX-License-Identifier: MIT */
/*
 * The stage alone: what a chunk falls back to when a publication, and then the recovery, fails.
 */
#include "cm.h"

#include "engine/stage.h"

#define COPIED UINT64_C(0x8000000000000000)
#define A      (COPIED | 0x50000)
#define B      (COPIED | 0x60000)
#define C      (COPIED | 0x70000)

static void stage_words(struct qk_stage *stage, struct qk_chunk *chunk, uint32_t i, uint64_t word)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_stage_change change = {
		.chunk = chunk, .first = i, .n = 1, .words = {word}, .needs_barrier = true};
	assert_ok(qk_stage_commit(stage, &change, &err), err);
}

static bool keep(void *ctx, const struct qk_chunk *chunk)
{
	(void)ctx;
	(void)chunk;
	return true;
}

static uint64_t seen(struct qk_stage *stage, uint32_t i)
{
	struct qk_slice slice = {0};
	assert_true(qk_stage_find(stage, 0, &slice));
	return qk_slice_word(&slice, i);
}

static struct qk_stage *with_two_entries(void)
{
	static const uint64_t none[QK_STAGE_WORDS];
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_stage *stage = NULL;
	struct qk_chunk *chunk = NULL;
	assert_ok(qk_stage_new(65536, 65536, &stage, &err), err);
	assert_ok(qk_stage_add(stage, 0, 0x40000, none, &chunk, &err), err);
	stage_words(stage, chunk, 0, A);
	stage_words(stage, chunk, 1, B);
	qk_stage_swap(stage);
	stage_words(stage, chunk, 0, C); /* while A is being published */
	qk_stage_unpin(stage, chunk);
	return stage;
}

/* A and B were stable and their sector was being written; then the flush that was to make C stable failed. */
static void what_was_lost_is_not_kept_beside_what_may_be_named(void **state)
{
	(void)state;
	struct qk_stage *stage = with_two_entries();
	qk_stage_reopen(stage, true);
	assert_int_equal(seen(stage, 0), C);
	qk_stage_swap(stage); /* a recovery, */
	qk_stage_reopen(stage, false); /* whose first flush fails */
	assert_true(qk_stage_forget(stage, keep, NULL));
	assert_int_equal(seen(stage, 0), A);
	assert_int_equal(seen(stage, 1), B);
	qk_stage_free(stage);
}

/* Nothing was named: no word of it is left. */
static void what_nothing_names_is_forgotten(void **state)
{
	(void)state;
	struct qk_slice slice = {0};
	struct qk_stage *stage = with_two_entries();
	qk_stage_reopen(stage, false);
	assert_true(qk_stage_forget(stage, keep, NULL));
	assert_false(qk_stage_find(stage, 0, &slice));
	assert_true(qk_stage_is_empty(stage));
	qk_stage_free(stage);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_lost_is_not_kept_beside_what_may_be_named),
		cmocka_unit_test(what_nothing_names_is_forgotten),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
