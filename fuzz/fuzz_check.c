/* SPDX-License-Identifier: MIT */
/*
 * A whole image, checked and walked. Input: the file. Oracle: totals are those of the callbacks, findings have a
 * name, structures come before their entries, and where the check finds no corruption, reads find none. Then it is
 * repaired in memory: a check finds nothing but what cannot be repaired, a second repair does nothing, and undoing gives
 * the input back.
 */
#include "whole.h"

#include <qcowkit/manage.h>

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

struct left {
	uint64_t n; /* of what a repair leaves alone */
};

static void look_at_left(void *ctx, const struct qcow_finding *f)
{
	struct left *left = ctx;

	left->n += f->id == QCOW_FINDING_CRYPTO_HEADER || f->id == QCOW_FINDING_METADATA_OVERLAP;
}

/* The bytes of a store are the input's. */
static void compare(struct qcow_store *store, const struct fuzz_input *input)
{
	uint64_t size = 0;
	uint8_t *bytes = malloc(input->n + 1);

	FUZZ_CHECK(bytes != NULL && qcow_store_size(store, &size, NULL) == QCOW_OK);
	FUZZ_CHECK(size == input->n);
	FUZZ_CHECK(qcow_store_read(store, bytes, input->n, 0, NULL) == QCOW_OK);
	FUZZ_CHECK(memcmp(bytes, input->data, input->n) == 0);
	free(bytes);
}

static void repair(const struct fuzz_input *input)
{
	struct qcow_repair_options o = QCOW_REPAIR_OPTIONS_INIT;
	struct qcow_repair_result r;
	struct left left = {0};
	struct qcow_store *store = NULL, *undo = NULL;

	FUZZ_CHECK(qcow_memory_open(input->n, &store, NULL) == QCOW_OK);
	FUZZ_CHECK(qcow_memory_open(0, &undo, NULL) == QCOW_OK);
	FUZZ_CHECK(qcow_store_write(store, input->data, input->n, 0, NULL) == QCOW_OK);
	o.undo = undo;
	o.on_finding = look_at_left;
	o.ctx = &left;
	enum qcow_status status = qcow_repair(store, &o, &r, NULL);
	FUZZ_CHECK(status != QCOW_E_BUG);
	if (status == QCOW_OK) {
		/* a header cluster that is the encryption header, too, is nobody's to move */
		FUZZ_CHECK(r.after.corruptions == 0 || left.n != 0);
		FUZZ_CHECK(r.after.leaks == 0);
		o.undo = NULL;
		FUZZ_CHECK(qcow_repair(store, &o, &r, NULL) == QCOW_OK && r.n_steps == 0);
	}
	FUZZ_CHECK(qcow_repair_undo(store, undo, NULL) == QCOW_OK);
	compare(store, input);
	qcow_store_close(store);
	qcow_store_close(undo);
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
	repair(&input);
	return 0;
}
