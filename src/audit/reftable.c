/* SPDX-License-Identifier: MIT */
/*
 * reftable: loads and judges the refcount table.
 */
#include "audit/reftable.h"

#include "base/mem.h"
#include "format/l1l2.h"

#define CHUNK_BYTES (64U * 1024U)

static void bad_entry(struct qk_audit *a, unsigned finding, uint64_t index, uint64_t raw)
{
	qk_audit_report(a,
		&(struct qk_audit_note){
			finding, a->header->rt_off + index * 8, QCOW_NO_OFFSET, raw, raw},
		"refcount table entry %llu = 0x%llx", (unsigned long long)index,
		(unsigned long long)raw);
}

static uint64_t judge(struct qk_audit *a, uint64_t index, uint64_t raw)
{
	struct qk_rt_entry e = qk_rt_decode(a->geometry, raw);

	if (e.finding == 0 && e.block_off.v >= qk_audit_end(a))
		e.finding = QCOW_FINDING_REFTABLE_ENTRY_BEYOND_FILE;
	if (e.finding == 0)
		return e.block_off.v;
	bad_entry(a, e.finding, index, raw);
	return QK_REFTABLE_UNUSABLE;
}

static void load_chunk(struct qk_reftable *t, struct qk_audit *a, uint64_t first, uint8_t *buf)
{
	uint64_t n = qk_min(CHUNK_BYTES / 8, t->n - first);
	bool is_zero = false;

	if (!qk_audit_read(a, buf, (size_t)n * 8, a->header->rt_off + first * 8, &is_zero,
		    "refcount table")) {
		for (uint64_t i = 0; i < n; i++)
			t->v[first + i] = QK_REFTABLE_UNUSABLE;
		return;
	}
	for (uint64_t i = 0; i < n && !is_zero; i++) {
		uint64_t raw = qk_load64(buf + i * 8);
		t->v[first + i] = raw == 0 ? 0 : judge(a, first + i, raw);
	}
}

struct use {
	uint64_t off, index;
};

static int compare_uses(const void *a, const void *b)
{
	const struct use *x = a;
	const struct use *y = b;

	if (x->off != y->off)
		return x->off < y->off ? -1 : 1;
	return (x->index > y->index) - (x->index < y->index);
}

/* An entry that names the block of an earlier one is reported and made unusable. */
static enum qcow_status find_twice(
	struct qk_reftable *t, struct qk_audit *a, struct qcow_error *err)
{
	size_t n = 0;
	QK_AUTO_FREE struct use *uses = NULL;

	for (uint64_t i = 0; i < t->n; i++)
		n += t->v[i] > QK_REFTABLE_UNUSABLE;
	uses = qk_malloc(n, sizeof(*uses));
	if (uses == NULL)
		return QK_FAIL_NOMEM(err);
	n = 0;
	for (uint64_t i = 0; i < t->n; i++) {
		if (t->v[i] > QK_REFTABLE_UNUSABLE)
			uses[n++] = (struct use){t->v[i], i};
	}
	qsort(uses, n, sizeof(*uses), compare_uses);
	for (size_t i = 1; i < n; i++) {
		if (uses[i].off != uses[i - 1].off)
			continue;
		bad_entry(a, QCOW_FINDING_REFCOUNT_BLOCK_TWICE, uses[i].index, uses[i].off);
		t->v[uses[i].index] = QK_REFTABLE_UNUSABLE;
	}
	return QCOW_OK;
}

enum qcow_status qk_reftable_load(struct qk_reftable *t, struct qk_audit *a, struct qcow_error *err)
{
	*t = (struct qk_reftable){0};
	uint64_t off = a->header->rt_off;
	uint64_t bytes = qk_audit_rt_bytes(a);
	uint64_t claimed = qk_audit_rt_claimed_bytes(a);
	QK_AUTO_FREE uint8_t *buf = NULL;

	if (!qk_in_range(off, claimed, qk_audit_end(a)))
		qk_audit_report(a,
			&(struct qk_audit_note){QCOW_FINDING_REFTABLE_BEYOND_FILE, off,
				QCOW_NO_OFFSET, off + claimed, a->file_size},
			"refcount table of %llu bytes", (unsigned long long)claimed);
	t->n = qk_min(bytes, QK_MAX_REFTABLE_BYTES) / 8;
	t->v = qk_calloc(t->n, sizeof(*t->v));
	buf = qk_malloc(CHUNK_BYTES, 1);
	if (t->v == NULL || buf == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t first = 0; first < t->n; first += CHUNK_BYTES / 8)
		load_chunk(t, a, first, buf);
	return find_twice(t, a, err);
}

void qk_reftable_release(struct qk_reftable *t)
{
	free(t->v);
	*t = (struct qk_reftable){0};
}
