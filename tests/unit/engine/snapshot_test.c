/* SPDX-License-Identifier: MIT */
/*
 * Snapshots made, applied, deleted and renamed at random among writes, on images of all kinds: the disk and each
 * snapshot are what an array of bytes says, for us and for qemu-img, which takes turns, and the refcounts are exact.
 */
#include "snapshot_lab.h"

static const char *qemus[2];
static size_t n_qemus;

static void step(struct lab *l, unsigned number)
{
	char name[16];
	unsigned what = (unsigned)qkt_rng_below(&l->rng, 10);
	(void)snprintf(name, sizeof(name), "s%u", number);
	if (what < 3 && l->n < LAB_SNAPS)
		lab_create(l, name);
	else if (what < 5 && l->n != 0)
		lab_apply(l, (unsigned)qkt_rng_below(&l->rng, l->n));
	else if (what < 7 && l->n > 2)
		lab_delete(l, (unsigned)qkt_rng_below(&l->rng, UINT64_C(1) << l->n));
	else if (what == 7 && l->n != 0)
		lab_rename(l, (unsigned)qkt_rng_below(&l->rng, l->n), name);
	for (uint64_t i = qkt_rng_below(&l->rng, 5); i != 0; i--)
		lab_write(l);
}

static void random_steps(const char *options, size_t cluster, size_t size, bool compresses)
{
	struct lab l;
	struct qkt_rng seed = qkt_rng_init(cluster + size);
	lab_start(&l, options, cluster, size, qkt_rng_next(&seed));
	l.compresses = compresses;
	for (unsigned i = 0; i < 45; i++) {
		step(&l, i);
		lab_check(&l);
		if (i % 6 == 5)
			lab_turn(&l, qemus[i / 6 % n_qemus], i);
		if (i % 15 == 14)
			lab_judge(&l, qemus[i / 15 % n_qemus]);
	}
	lab_delete(&l, (1u << l.n) - 1);
	lab_check(&l);
	lab_judge(&l, "");
	lab_free(&l);
}

static void version_3(void **state)
{
	(void)state;
	random_steps("", 65536, 3 << 20, true);
	random_steps("", 4096, (1 << 20) + 1536, true);
}

static void version_2(void **state)
{
	(void)state;
	random_steps(",compat=0.10", 65536, 3 << 20, true);
	random_steps(",compat=0.10", 512, 150000 / 512 * 512, true);
}

static void small_clusters(void **state)
{
	(void)state;
	random_steps("", 512, 200000 / 512 * 512, true);
}

static void extended(void **state)
{
	(void)state;
	random_steps(",extended_l2=on", 16384, 1 << 20, true);
}

static void widths(void **state)
{
	(void)state;
	random_steps(",refcount_bits=64", 1024, 300 * 1024, true);
	random_steps(",refcount_bits=8", 2048, 300 * 1024, false);
}

int main(void)
{
	qkt_need_program("qemu-img", "qemu-utils");
	n_qemus = qkt_qemus(qemus);
	const struct CMUnitTest tests[] = {cmocka_unit_test(version_3), cmocka_unit_test(version_2),
		cmocka_unit_test(small_clusters), cmocka_unit_test(extended),
		cmocka_unit_test(widths)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
