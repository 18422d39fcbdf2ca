/* SPDX-License-Identifier: MIT */
/*
 * Eight threads read overlapping ranges of one open chain with compressed layers, and map it, and ask
 * it; every byte is compared with QEMU's conversion. To be run with ThreadSanitizer, too.
 */
#include "cm.h"

#include <pthread.h>
#include <stdlib.h>

#include "host.h"
#include "rng.h"
#include "scenario.h"

#define N_THREADS 8
#define N_ROUNDS  150
#define MOST	  200000u

struct reader {
	struct qcow_image *image;
	pthread_barrier_t *start;
	uint64_t seed;
	uint8_t *buf;
	struct qcow_error err;
	const char *wrong;
};

/* All threads want the same clusters at about the same time: the ranges drift through the disk. */
static void read_some(struct reader *r, struct qkt_rng *rng, size_t round)
{
	size_t around = SCENARIO_BYTES / N_ROUNDS * round;
	size_t off = around + (size_t)qkt_rng_below(rng, 100000);
	off = off < SCENARIO_BYTES ? off : SCENARIO_BYTES - 1;
	size_t len = (size_t)qkt_rng_below(rng, MOST) + 1;
	len = len < SCENARIO_BYTES - off ? len : SCENARIO_BYTES - off;
	if (qcow_pread(r->image, r->buf, len, off, &r->err) != QCOW_OK)
		r->wrong = r->err.message;
	else if (memcmp(r->buf, scenario_truth() + off, len) != 0)
		r->wrong = "bytes read";
}

static void map_some(struct reader *r, struct qkt_rng *rng)
{
	struct qcow_extent e;
	uint64_t off = qkt_rng_below(rng, SCENARIO_BYTES);
	if (qcow_map(r->image, off, SCENARIO_BYTES - off, UINT32_MAX, &e, &r->err) != QCOW_OK)
		r->wrong = r->err.message;
	else if (e.off != off || e.len == 0)
		r->wrong = "extent";
}

static void ask(struct reader *r)
{
	struct qcow_info info;
	struct qcow_snapshot snapshot;
	qcow_get_info(r->image, &info);
	if (info.virtual_size != SCENARIO_BYTES)
		r->wrong = "size";
	if (qcow_get_snapshot(r->image, 0, &snapshot, &r->err) != QCOW_OK)
		r->wrong = r->err.message;
}

static void *run(void *arg)
{
	struct reader *r = arg;
	struct qkt_rng rng = qkt_rng_fixed(r->seed);
	(void)pthread_barrier_wait(r->start);
	for (size_t round = 0; round < N_ROUNDS && r->wrong == NULL; round++) {
		read_some(r, &rng, round);
		map_some(r, &rng);
		ask(r);
	}
	return NULL;
}

static void read_by_all(struct qcow_image *image, uint64_t seed)
{
	pthread_barrier_t start;
	pthread_t threads[N_THREADS];
	static struct reader readers[N_THREADS];
	assert_int_equal(pthread_barrier_init(&start, NULL, N_THREADS), 0);
	for (unsigned i = 0; i < N_THREADS; i++) {
		readers[i] = (struct reader){.image = image, .start = &start, .seed = seed + i};
		readers[i].buf = malloc(MOST);
		assert_non_null(readers[i].buf);
		assert_int_equal(pthread_create(&threads[i], NULL, run, &readers[i]), 0);
	}
	for (unsigned i = 0; i < N_THREADS; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		free(readers[i].buf);
		if (readers[i].wrong != NULL)
			fail_msg("thread %u: %s", i, readers[i].wrong);
	}
	assert_int_equal(pthread_barrier_destroy(&start), 0);
}

static void threads_read_the_same_bytes_from_a_chain(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(0x746872);
	struct qcow_error err = QCOW_ERROR_INIT;
	/* anew each time: the first readers of a table or cluster are where the races are */
	for (int i = 0; i < 4; i++) {
		struct qcow_image *image = NULL;
		assert_ok(scenario_open(NULL, 0, &image, &err), err);
		read_by_all(image, qkt_rng_next(&rng));
		qcow_close(image);
	}
}

/* Nothing half read is kept for the next reader. */
static void a_failed_read_leaves_no_trace(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	for (uint64_t nth = 1; nth < 20; nth++) {
		struct qkt_fault *f = qkt_fault_new();
		struct qcow_image *image = NULL;
		uint8_t *buf = malloc(SCENARIO_BYTES);
		assert_non_null(buf);
		assert_ok(scenario_open(f, 0, &image, &err), err);
		qkt_fault_arm(f, QKT_READ, nth, QKT_SHORT, false);
		assert_status(qcow_pread(image, buf, SCENARIO_BYTES, 0, &err), QCOW_E_IO, err);
		assert_ok(qcow_pread(image, buf, SCENARIO_BYTES, 0, &err), err);
		assert_memory_equal(buf, scenario_truth(), SCENARIO_BYTES);
		qcow_close(image);
		qkt_fault_free(f);
		free(buf);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads_read_the_same_bytes_from_a_chain),
		cmocka_unit_test(a_failed_read_leaves_no_trace),
	};
	scenario_make();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
