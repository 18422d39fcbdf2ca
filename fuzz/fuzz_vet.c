/* SPDX-License-Identifier: MIT */
/*
 * A whole image, judged and copied. Input: the file. Oracle: the verdict agrees with the check, a copy of
 * what can be read is clean and reads the same, and neither takes more than its bounds.
 */
#include "whole.h"

#include <qcowkit/ops.h>

#define MAX_COPY FUZZ_MIB

struct told {
	uint64_t n;
};

static void on_refusal(void *ctx, const struct qcow_refusal *refusal)
{
	struct told *told = ctx;
	FUZZ_CHECK(refusal->text[0] != '\0' && refusal->rule[0] != '\0');
	told->n++;
}

static void check_clean(struct qcow_image *image)
{
	struct qcow_check_options o = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result r;
	o.flags = QCOW_CHECK_DATA;
	FUZZ_CHECK(qcow_check(image, &o, &r, NULL) == QCOW_OK);
	FUZZ_CHECK(r.corruptions == 0 && r.leaks == 0 && r.notes == 0 && r.check_errors == 0);
}

static void check_equal(struct qcow_image *a, struct qcow_image *b)
{
	static uint8_t one[1 << 16], other[1 << 16];
	uint64_t size = qcow_size(a);
	FUZZ_CHECK(qcow_size(b) == size);
	for (uint64_t off = 0; off < size; off += sizeof(one)) {
		size_t len = (size_t)qk_min(sizeof(one), size - off);
		FUZZ_CHECK(qcow_pread(b, other, len, off, NULL) == QCOW_OK);
		if (qcow_pread(a, one, len, off, NULL) == QCOW_OK)
			FUZZ_CHECK(memcmp(one, other, len) == 0);
	}
}

/* As `qcow sanitize --salvage` does: what cannot be read becomes zeros. */
static void copy(struct qcow_image *image, bool compress)
{
	struct qcow_convert_options o = QCOW_CONVERT_OPTIONS_INIT;
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_convert_result result;
	struct qcow_store *store = NULL;
	struct qcow_image *made = NULL;
	o.sources = &image;
	o.n_sources = 1;
	o.salvage = true;
	o.n_workers = 1;
	o.compress = compress;
	FUZZ_CHECK(qcow_memory_open(0, &store, NULL) == QCOW_OK);
	fuzz_bounds_begin();
	FUZZ_CHECK(qcow_convert(store, NULL, &o, &result, NULL) == QCOW_OK);
	fuzz_bounds_end("copy", 48 * FUZZ_MIB);
	FUZZ_CHECK(qcow_open(store, &open, &made, NULL) == QCOW_OK);
	check_clean(made);
	check_equal(image, made);
	qcow_close(made);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct fuzz_input input = {.data = data, .n = n};
	struct qcow_store *store = fuzz_store_open(&input);
	struct qcow_vet_options o = QCOW_VET_OPTIONS_INIT;
	struct qcow_vet_result r = {0};
	struct told told = {0};
	o.features = QCOW_VET_ALL & ~(n % 2 != 0 ? (uint32_t)QCOW_VET_SNAPSHOTS : 0);
	o.max_findings = UINT64_MAX;
	o.memory_bytes = 1;
	o.on_refusal = on_refusal;
	o.ctx = &told;
	fuzz_bounds_begin();
	FUZZ_CHECK(qcow_vet(store, &o, &r, NULL) == QCOW_OK);
	fuzz_bounds_end("vet", 8 * FUZZ_MIB);
	FUZZ_CHECK(r.ok == (r.refusals == 0) && told.n == r.refusals);
	if (r.image == NULL) {
		FUZZ_CHECK(!r.ok);
		return 0;
	}
	FUZZ_CHECK(!r.ok || r.check.corruptions == 0);
	qcow_close(r.image);

	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	open.flags = QCOW_OPEN_NO_BACKING | QCOW_OPEN_NO_DATA_FILE;
	open.format = "qcow2";
	store = fuzz_store_open(&input);
	if (qcow_open(store, &open, &image, NULL) != QCOW_OK)
		return 0;
	if (qcow_size(image) <= MAX_COPY)
		copy(image, n % 3 == 0);
	qcow_close(image);
	return 0;
}
