/* SPDX-License-Identifier: MIT */
/*
 * Images on stores that are full: devices that cannot grow, and files whose file system says no. A write that
 * fails for want of space leaves each sector old or new, nothing is lost, discards make room again, and the
 * order checker judges every write that passes.
 */
#include "space_lab.h"

#include <stdlib.h>

#define SIZE	 (512U << 10) /* of the disk */
#define SECTOR	 512U
#define N_STEPS	 3000U
#define MAX_LEN	 (48U << 10)
#define MIN_FULL 10U /* writes that must have failed, for the test to say something */

struct full {
	struct qkt_fault *fault;
	struct qkt_order *order;
	struct qcow_image *image;
	uint8_t *disk, *buf;
	unsigned n_nospc;
};

/* The sectors of a write that failed are old or new: see which. */
static void learn(struct full *f, uint64_t off, uint64_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *now = malloc(len);

	assert_non_null(now);
	assert_ok(qcow_pread(f->image, now, len, off, &err), err);
	for (uint64_t at = 0; at < len; at += SECTOR) {
		if (memcmp(now + at, f->buf + at, SECTOR) != 0)
			assert_memory_equal(now + at, f->disk + off + at, SECTOR);
		memcpy(f->disk + off + at, now + at, SECTOR);
	}
	free(now);
}

static void step_write(struct full *f, struct qkt_rng *rng, uint64_t off, uint64_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	qkt_rng_fill(rng, f->buf, len);
	enum qcow_status status = qcow_pwrite(f->image, f->buf, len, off, 0, &err);
	if (status == QCOW_OK) {
		memcpy(f->disk + off, f->buf, len);
		return;
	}
	assert_status(status, QCOW_E_NOSPC, err);
	f->n_nospc++;
	learn(f, off, len);
}

static void step(struct full *f, struct qkt_rng *rng, uint64_t cluster)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t off = qkt_rng_below(rng, SIZE / SECTOR) * SECTOR;
	uint64_t len = (1 + qkt_rng_below(rng, MAX_LEN / SECTOR)) * SECTOR;
	enum qcow_status status = QCOW_OK;

	len = len > SIZE - off ? SIZE - off : len;
	switch (qkt_rng_below(rng, 16)) {
	case 0:
	case 1:
		/* whole clusters, unmapped: they read as zeros and make room */
		off = off / cluster * cluster;
		len = (len + cluster - 1) / cluster * cluster;
		len = len > SIZE - off ? SIZE - off : len;
		memset(f->buf, 0, len);
		status = qcow_zero(f->image, off, len, QCOW_IO_UNMAP, &err);
		if (status == QCOW_OK)
			memset(f->disk + off, 0, len);
		else
			learn(f, off, len);
		assert_true(status == QCOW_OK || status == QCOW_E_NOSPC);
		break;
	case 2:
		status = qcow_flush(f->image, &err);
		assert_true(status == QCOW_OK || status == QCOW_E_NOSPC);
		break;
	case 3:
		assert_ok(qcow_pread(f->image, f->buf, len, off, &err), err);
		assert_memory_equal(f->buf, f->disk + off, len);
		break;
	default:
		step_write(f, rng, off, len);
	}
}

static void open_full(struct full *f, const struct lab_options *o)
{
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;

	*f = (struct full){.fault = qkt_fault_new(), .order = qkt_order_new(NULL)};
	struct qcow_store *base = lab_store(o);
	open.flags = QCOW_OPEN_WRITE;
	assert_ok(qcow_open(qkt_guard(f->fault, f->order, base, 0), &open, &f->image, &err), err);
	f->disk = calloc(1, SIZE);
	f->buf = malloc(SIZE);
	assert_true(f->disk != NULL && f->buf != NULL);
}

static void close_full(struct full *f)
{
	struct qcow_check_options check = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	struct qcow_error err = QCOW_ERROR_INIT;

	qkt_fault_disarm(f->fault);
	assert_ok(qcow_flush(f->image, &err), err);
	assert_ok(qcow_check(f->image, &check, &result, &err), err);
	assert_int_equal(result.corruptions, 0);
	assert_ok(qcow_pread(f->image, f->buf, SIZE, 0, &err), err);
	assert_memory_equal(f->buf, f->disk, SIZE);
	qcow_close(f->image);
	qkt_order_free(f->order);
	qkt_fault_free(f->fault);
	free(f->disk);
	free(f->buf);
}

static void a_device_that_is_full_keeps_its_data(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(4711);
	static const struct lab_options all[] = {
		{.cluster_size = 512,
			.refcount_bits = 64,
			.fixed_clusters = 900,
			.disk_size = SIZE},
		{.cluster_size = 512,
			.refcount_bits = 16,
			.fixed_clusters = 700,
			.disk_size = SIZE},
		{.cluster_size = 4096,
			.refcount_bits = 1,
			.fixed_clusters = 100,
			.disk_size = SIZE},
		{.cluster_size = 4096,
			.refcount_bits = 16,
			.fixed_clusters = 90,
			.disk_size = SIZE,
			.version = 2},
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		struct full f;
		open_full(&f, &all[i]);
		for (unsigned n = 0; n < N_STEPS; n++)
			step(&f, &rng, all[i].cluster_size);
		assert_true(f.n_nospc >= MIN_FULL);
		close_full(&f);
	}
}

/* The file system is full from time to time: writes, truncates and flushes say so, once or for a while. */
static void a_file_system_that_is_full_keeps_its_data(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(4712);
	struct lab_options o = {.cluster_size = 512, .refcount_bits = 64, .disk_size = SIZE};

	for (unsigned round = 0; round < 6; round++) {
		struct full f;
		open_full(&f, &o);
		for (unsigned n = 0; n < N_STEPS; n++) {
			if (n % 10 == 0)
				qkt_fault_arm(f.fault, QKT_TRUNCATE, 1 + qkt_rng_below(&rng, 3),
					QKT_ENOSPC, qkt_rng_below(&rng, 2) == 0);
			step(&f, &rng, o.cluster_size);
		}
		close_full(&f);
	}
}

/* ---- a publication that links blocks in two rounds ---- */

#define N_TABLES 4U
#define TABLE	 (64U * SECTOR) /* of the disk, that one L2 table maps */
#define FROM	 (SIZE / 4)
#define REFTABLE 512U /* where it lies */
#define N_BEFORE \
	52U /* clusters: then 64 in a row are all that a new block counts, and it lies in the next one's part */

/* Tables with nothing in them, and staged clusters for all of their entries; from now on the `nth` write fails once, 0: none. */
static void open_staged(struct full *f, uint64_t nth)
{
	static const struct lab_options o = {
		.cluster_size = 512, .refcount_bits = 64, .disk_size = SIZE};
	struct qkt_rng rng = qkt_rng_init(1);
	struct qcow_error err = QCOW_ERROR_INIT;

	open_full(f, &o);
	for (uint64_t i = 0; i < N_TABLES + 2; i++)
		step_write(f, &rng, FROM + i * TABLE, SECTOR);
	assert_ok(qcow_flush(f->image, &err), err);
	for (uint64_t i = 0; i < N_TABLES + 2; i++) {
		assert_ok(qcow_zero(f->image, FROM + i * TABLE, SECTOR, QCOW_IO_UNMAP, &err), err);
		memset(f->disk + FROM + i * TABLE, 0, SECTOR);
	}
	assert_ok(qcow_flush(f->image, &err), err);
	step_write(f, &rng, 0, N_BEFORE * SECTOR);
	assert_ok(qcow_flush(f->image, &err), err);
	step_write(f, &rng, FROM, N_TABLES * TABLE);
	qkt_fault_log(f->fault);
	if (nth != 0)
		qkt_fault_arm(f->fault, QKT_WRITE, nth, QKT_ENOSPC, false);
}

/* The writes of a publication up to the last of the refcount table; *n_rounds: how many of these. */
static uint64_t count_links(unsigned *n_rounds)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct full f;
	uint64_t n = 0, last = 0;

	open_staged(&f, 0);
	size_t from = qkt_fault_log_count(f.fault);
	assert_ok(qcow_flush(f.image, &err), err);
	*n_rounds = 0;
	for (size_t i = from; i < qkt_fault_log_count(f.fault); i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(f.fault, i);
		n += e->call == QKT_WRITE;
		if (e->call != QKT_WRITE || e->off != REFTABLE)
			continue;
		last = n;
		++*n_rounds;
	}
	close_full(&f);
	return last;
}

/* What the disk may name by then keeps its refcounts, says the order checker: the blocks stay linked. */
static void room_ends_among_the_entries(void **state)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	unsigned n_rounds = 0, n_hits = 0;
	uint64_t n = count_links(&n_rounds);
	bool was_hit = true;

	(void)state;
	assert_true(n_rounds > 1);
	while (was_hit) {
		struct full f;
		open_staged(&f, ++n);
		enum qcow_status status = qcow_flush(f.image, &err);
		was_hit = qkt_fault_hits(f.fault) != 0;
		n_hits += was_hit;
		assert_true(status == (was_hit ? QCOW_E_NOSPC : QCOW_OK));
		close_full(&f);
	}
	assert_int_equal(n_hits, N_TABLES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(room_ends_among_the_entries),
		cmocka_unit_test(a_device_that_is_full_keeps_its_data),
		cmocka_unit_test(a_file_system_that_is_full_keeps_its_data),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
