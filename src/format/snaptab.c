/* SPDX-License-Identifier: MIT */
/*
 * snaptab: entries of the snapshot table.
 *
 * Pure. decode bounds and splits, judge judges, encode writes back what decode saw: extra data
 * verbatim, so that fields which a later version defines survive.
 *
 *   0         8   12 14 16   20   24     32    36        40          40 + extra
 *   | L1 off  |n  |il|nl|sec |nsec|clock |vm32 |extra len| extra ... | id | name | pad to 8
 */
#include "format/snaptab.h"

#include <qcowkit/findings.h>

#define EXTRA_VM_STATE_SIZE 0U /* in the extra data, so bytes 40-47 of the entry */
#define EXTRA_DISK_SIZE	    8U
#define EXTRA_ICOUNT	    16U

static size_t padding_bytes(uint64_t used)
{
	return (size_t)(-used & 7);
}

uint64_t qk_snapshot_entry_bytes(uint64_t extra_len, uint64_t id_len, uint64_t name_len)
{
	uint64_t used = QK_SNAPSHOT_FIXED_BYTES + extra_len + id_len + name_len;
	return used + padding_bytes(used);
}

/* The 64-bit field at `at` of the extra data, where the data is long enough to hold it. */
static bool extra_field(struct qk_span extra, size_t at, uint64_t *out)
{
	if (extra.n < at + 8)
		return false;
	*out = qk_load64(extra.p + at);
	return true;
}

bool qk_snapshot_decode(struct qk_reader *r, struct qk_snapshot_entry *out)
{
	*out = (struct qk_snapshot_entry){0};
	size_t start = r->at;
	out->l1_off.v = qk_read64(r);
	out->l1_entries = qk_read32(r);
	size_t id_len = qk_read16(r);
	size_t name_len = qk_read16(r);
	out->date_sec = qk_read32(r);
	out->date_nsec = qk_read32(r);
	out->vm_clock_nsec = qk_read64(r);
	out->vm_state_size32 = qk_read32(r);
	size_t extra_len = qk_read32(r);
	out->extra = qk_read_span(r, extra_len);
	out->id = qk_read_span(r, id_len);
	out->name = qk_read_span(r, name_len);
	qk_read_skip(r, padding_bytes(r->at - start));
	out->has_vm_state_size64 = extra_field(
		out->extra, EXTRA_VM_STATE_SIZE, &out->vm_state_size64);
	out->has_disk_size = extra_field(out->extra, EXTRA_DISK_SIZE, &out->disk_size);
	out->has_icount = extra_field(out->extra, EXTRA_ICOUNT, &out->icount);
	return !r->bad;
}

static bool is_l1_usable(const struct qk_geometry *g, const struct qk_snapshot_entry *e)
{
	uint64_t bytes = (uint64_t)e->l1_entries * 8;
	if (bytes > QK_MAX_L1_BYTES || !qk_is_table_place(g->cluster_bits, e->l1_off.v, bytes))
		return false;
	return !e->has_disk_size || e->l1_entries >= qk_geometry_l1_entries(g, e->disk_size);
}

unsigned qk_snapshot_judge(const struct qk_geometry *g, const struct qk_snapshot_entry *e)
{
	if (e->extra.n > QK_MAX_SNAPSHOT_EXTRA)
		return QCOW_FINDING_SNAPSHOT_EXTRA;
	if (g->version >= 3 && !e->has_disk_size)
		return QCOW_FINDING_SNAPSHOT_EXTRA;
	if (e->has_disk_size && e->disk_size > QK_MAX_SIZE)
		return QCOW_FINDING_SNAPSHOT_TABLE;
	if (!is_l1_usable(g, e))
		return QCOW_FINDING_SNAPSHOT_L1;
	return 0;
}

uint64_t qk_snapshot_vm_state_bytes(const struct qk_snapshot_entry *e)
{
	return e->has_vm_state_size64 ? e->vm_state_size64 : e->vm_state_size32;
}

void qk_snapshot_encode(struct qk_writer *w, const struct qk_snapshot_entry *e)
{
	size_t start = w->at;
	QK_ASSERT_VOID(F6, e->id.n <= UINT16_MAX && e->name.n <= UINT16_MAX);
	QK_ASSERT_VOID(F6, e->extra.n <= UINT32_MAX);
	qk_write64(w, e->l1_off.v);
	qk_write32(w, e->l1_entries);
	qk_write16(w, (uint16_t)e->id.n);
	qk_write16(w, (uint16_t)e->name.n);
	qk_write32(w, e->date_sec);
	qk_write32(w, e->date_nsec);
	qk_write64(w, e->vm_clock_nsec);
	qk_write32(w, e->vm_state_size32);
	qk_write32(w, (uint32_t)e->extra.n);
	qk_write_bytes(w, e->extra.p, e->extra.n);
	qk_write_bytes(w, e->id.p, e->id.n);
	qk_write_bytes(w, e->name.p, e->name.n);
	qk_write_zeros(w, padding_bytes(w->at - start));
}
