/* SPDX-License-Identifier: MIT */
/*
 * Images whose metadata is damaged at random, opened for writing: they are refused, or writing to them makes nothing worse.
 * No refcount ends below its references, no structures come to share a cluster, COPIED never lies, and no call
 * reports a bug. A third of them is dirty besides, and has its refcounts rebuilt first.
 */
#include "cm.h"
#include "qemu.h"

#include "host.h"
#include "rng.h"

#define N_IMAGES 400U /* of each base */
#define N_STEPS	 40U

/* Of one check. COPIED on one reference whose stored refcount is too high disagrees with that alone. */
static uint64_t n_worse, n_copied, n_high;

static void note(void *ctx, const struct qcow_finding *f)
{
	(void)ctx;
	n_worse += f->id == QCOW_FINDING_REFCOUNT_TOO_LOW || f->id == QCOW_FINDING_METADATA_OVERLAP;
	n_copied += f->id == QCOW_FINDING_COPIED_WRONG;
	n_high += f->id == QCOW_FINDING_REFCOUNT_TOO_HIGH;
}

static uint64_t bad_word(struct qkt_rng *rng, uint64_t old, uint64_t n_clusters, uint64_t cs)
{
	uint64_t place = qkt_rng_below(rng, n_clusters + 3) * cs;

	switch (qkt_rng_below(rng, 7)) {
	case 0:
		return 0;
	case 1:
		return UINT64_MAX;
	case 2:
		return UINT64_C(1) << qkt_rng_below(rng, 64);
	case 3:
		return UINT64_C(1) << 63 | place;
	case 4:
		return place;
	case 5:
		return old ^ UINT64_C(1) << qkt_rng_below(rng, 64);
	default:
		return qkt_rng_next(rng);
	}
}

/* Words of the header past the sizes, and of the first clusters, where the tables are. */
static void damage(struct qkt_rng *rng, uint8_t *image, size_t n)
{
	uint64_t cs = UINT64_C(1) << image[23];
	uint64_t tables = n < 40 * cs ? n : 40 * cs;

	for (uint64_t i = 0; i <= qkt_rng_below(rng, 4); i++) {
		uint64_t end = qkt_rng_below(rng, 4) == 0 ? 120 : tables;
		uint64_t off = qkt_rng_below(rng, end) / 8 * 8;
		uint64_t word = 0;
		if (off + 8 > n || (off < 72 && (off < 32 || off > 56)))
			continue;
		memcpy(&word, image + off, 8);
		word = bad_word(rng, __builtin_bswap64(word), n / cs, cs);
		word = __builtin_bswap64(word);
		memcpy(image + off, &word, 8);
	}
	if (image[7] == 3 && qkt_rng_below(rng, 3) == 0)
		image[79] |= 1;
}

static void step(struct qcow_image *image, struct qkt_rng *rng)
{
	static uint8_t buf[65536];
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t size = qcow_size(image);
	uint64_t off = qkt_rng_below(rng, size);
	uint64_t len = 1 + qkt_rng_below(rng, qkt_rng_below(rng, 3) == 0 ? sizeof(buf) : 4096);
	enum qcow_status status = QCOW_OK;

	len = len > size - off ? size - off : len;
	switch (qkt_rng_below(rng, 6)) {
	case 0:
		status = qcow_zero(
			image, off, len, (unsigned)qkt_rng_below(rng, 2) * QCOW_IO_UNMAP, &err);
		break;
	case 1:
		status = qcow_discard(image, off, len, 0, &err);
		break;
	case 2:
		status = qcow_flush(image, &err);
		break;
	case 3:
		status = qcow_pread(image, buf, len, off, &err);
		break;
	default:
		status = qcow_pwrite(image, buf, len, off, 0, &err);
	}
	if (status == QCOW_E_BUG)
		fail_msg("%s (%s)", err.message, err.site);
}

/* False where the image is refused. */
static bool run(const uint8_t *bytes, size_t n, uint64_t seed)
{
	struct qkt_rng rng = qkt_rng_fixed(seed);
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_check_options check = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	uint8_t *copy = malloc(n);

	assert_non_null(copy);
	memcpy(copy, bytes, n);
	damage(&rng, copy, n);
	assert_ok(qcow_memory_open(0, &store, &err), err);
	assert_ok(qcow_store_write(store, copy, n, 0, &err), err);
	free(copy);
	o.flags = QCOW_OPEN_WRITE | QCOW_OPEN_NO_BACKING;
	o.format = "qcow2";
	o.prove = qkt_rng_below(&rng, 2) == 0 ? QCOW_PROVE_AUTO : QCOW_PROVE_FULL;
	enum qcow_status status = qcow_open(store, &o, &image, &err);
	if (status == QCOW_E_BUG)
		fail_msg("%s (%s)", err.message, err.site);
	if (status != QCOW_OK)
		return false;
	for (unsigned i = 0; i < N_STEPS && qcow_size(image) != 0; i++)
		step(image, &rng);
	(void)!qcow_flush(image, NULL);
	check.on_finding = note;
	n_worse = n_copied = n_high = 0;
	assert_ok(qcow_check(image, &check, &result, &err), err);
	if (n_worse != 0 || n_copied > n_high)
		fail_msg("seed %llu: writing made it worse", (unsigned long long)seed);
	qcow_close(image);
	return true;
}

static void writing_makes_damage_no_worse(void **state)
{
	(void)state;
	static const char *const bases[] = {
		"qemu-img create -q -f qcow2 -o cluster_size=512 b 1M && qemu-io -c 'write 0 100k' "
		"-c "
		"'write 500k 20k' b && qemu-img snapshot -c s b && qemu-io -c 'write 50k 10k' b",
		"qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=64 b 8M && qemu-io "
		"-c "
		"'write 0 200k' -c 'write -z 40k 20k' b",
		"qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=1k c 2M && qemu-io -c "
		"'write 0 200k' c && qemu-img convert -c -O qcow2 -o compat=0.10,cluster_size=1k c "
		"b"};
	struct qkt_rng rng = qkt_rng_init(1944);

	for (size_t i = 0; i < sizeof(bases) / sizeof(*bases); i++) {
		size_t n = 0;
		unsigned n_opened = 0;
		sh("rm -f b && %s", bases[i]);
		uint8_t *bytes = slurp("b", &n);
		for (unsigned k = 0; k < N_IMAGES; k++)
			n_opened += run(bytes, n, qkt_rng_next(&rng));
		assert_in_range(n_opened, N_IMAGES / 10, N_IMAGES * 9 / 10);
		free(bytes);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(writing_makes_damage_no_worse)};

	qkt_need_program("qemu-io", "qemu-utils");
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
