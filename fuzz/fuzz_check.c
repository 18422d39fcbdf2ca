/* SPDX-License-Identifier: MIT */
/*
 * A whole image, checked and walked. Input: the file. Oracle: totals are those of the callbacks, findings have a
 * name, structures come before their entries, and where the check finds no corruption, reads find none.
 */
#include "whole.h"

struct totals {
	uint64_t n[QCOW_SEVERITY_NOTE + 1];
};

static void count(void *ctx, const struct qcow_finding *f)
{
	struct totals *t = ctx;

	FUZZ_CHECK(qcow_finding_name(f->id) != NULL && f->where[0] != '\0');
	FUZZ_CHECK(f->severity == qcow_finding_severity(f->id));
	t->n[f->severity]++;
}

struct walk {
	enum qcow_structure table;
	uint64_t n;
};

static bool visit(void *ctx, const struct qcow_walk_item *item)
{
	struct walk *w = ctx;

	if (w->n == 0)
		FUZZ_CHECK(item->kind == QCOW_STRUCT_HEADER);
	if (item->kind == QCOW_STRUCT_L2_ENTRY)
		FUZZ_CHECK(w->table == QCOW_STRUCT_L2);
	if (item->kind == QCOW_STRUCT_REFCOUNT_ENTRY)
		FUZZ_CHECK(w->table == QCOW_STRUCT_REFCOUNT_BLOCK && item->value != 0);
	if (item->kind != QCOW_STRUCT_L2_ENTRY && item->kind != QCOW_STRUCT_REFCOUNT_ENTRY)
		w->table = item->kind;
	return ++w->n < 20000;
}

/* What no finding is about can be read. */
static void read_start(struct qcow_image *image)
{
	static uint8_t buf[1 << 16];
	uint64_t size = qcow_size(image);

	for (uint64_t off = 0; off < size && off < 8 * sizeof(buf); off += sizeof(buf)) {
		size_t len = (size_t)qk_min(sizeof(buf), size - off);
		FUZZ_CHECK(qcow_pread(image, buf, len, off, NULL) != QCOW_E_CORRUPT);
	}
}

static void check(struct qcow_image *image)
{
	struct qcow_check_options o = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result r = {0};
	struct totals t = {{0}};

	o.flags = QCOW_CHECK_DATA;
	o.memory_bytes = 1;
	o.on_finding = count;
	o.ctx = &t;
	fuzz_bounds_begin();
	FUZZ_CHECK(qcow_check(image, &o, &r, NULL) == QCOW_OK);
	fuzz_bounds_end("check", 8 * FUZZ_MIB);
	FUZZ_CHECK(t.n[QCOW_SEVERITY_CORRUPTION] == r.corruptions);
	FUZZ_CHECK(t.n[QCOW_SEVERITY_LEAK] == r.leaks && t.n[QCOW_SEVERITY_NOTE] == r.notes);
	FUZZ_CHECK(r.fragmented_clusters <= r.allocated_clusters);
	if (r.corruptions == 0)
		read_start(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct fuzz_input input = {.data = data, .n = n};
	struct qcow_store *store = fuzz_store_open(&input);
	struct qcow_image *image = NULL;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct walk w = {.n = 0};

	o.flags = QCOW_OPEN_NO_BACKING | QCOW_OPEN_NO_DATA_FILE | QCOW_OPEN_CHECK;
	o.format = "qcow2";
	if (qcow_open(store, &o, &image, NULL) != QCOW_OK)
		return 0;
	check(image);
	fuzz_bounds_begin();
	FUZZ_CHECK(qcow_walk(image, QCOW_WALK_ENTRIES | QCOW_WALK_REFCOUNTS, visit, &w, NULL) ==
		   QCOW_OK);
	fuzz_bounds_end("walk", 8 * FUZZ_MIB);
	qcow_close(image);
	return 0;
}
