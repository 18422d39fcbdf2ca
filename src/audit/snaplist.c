/* SPDX-License-Identifier: MIT */
/*
 * snaplist: the snapshot table, judged entry by entry.
 */
#include "audit/snaplist.h"

#include "audit/snapread.h"
#include "base/mem.h"

struct list_reader {
	struct qk_snapread read;
	struct qk_audit *audit;
	uint64_t kept_bytes; /* of the entries so far, but for extra data that nobody reads */
};

static void stop(struct qk_snaplist *s, struct qk_audit *a, uint64_t off, const char *why)
{
	s->finding = QCOW_FINDING_SNAPSHOT_TABLE;
	qk_audit_report(a,
		&(struct qk_audit_note){
			s->finding, off, QCOW_NO_OFFSET, s->n, a->header->n_snapshots},
		"snapshot %u of %u: %s", s->n, a->header->n_snapshots, why);
}

static enum qcow_status read_part(
	void *ctx, uint8_t *buf, size_t n, uint64_t off, struct qcow_error *err)
{
	struct qk_audit *a = ctx;
	bool is_zero = false;

	if (!qk_audit_read(a, buf, n, off, &is_zero, "snapshot table"))
		return QK_FAIL(err, QCOW_E_IO, "the snapshot table cannot be read");
	if (is_zero)
		memset(buf, 0, n);
	return QCOW_OK;
}

/* The L1 table of an entry: what makes it unusable is in `finding`. */
static struct qk_snap_l1 judge(
	const struct qk_audit *a, const struct qk_snapshot_entry *e, unsigned *finding)
{
	struct qk_snap_l1 l1 = {.off = e->l1_off.v, .n_entries = e->l1_entries};
	uint64_t bytes = (uint64_t)e->l1_entries * 8;

	*finding = qk_snapshot_judge(a->geometry, e);
	if (*finding == 0 && !qk_in_range(l1.off, bytes, qk_audit_end(a)))
		*finding = QCOW_FINDING_SNAPSHOT_L1;
	if (*finding == QCOW_FINDING_SNAPSHOT_L1 || bytes > QK_MAX_L1_BYTES ||
		!qk_is_aligned(l1.off, a->geometry->cluster_size)) {
		l1.n_entries = 0;
		l1.finding = *finding;
	}
	return l1;
}

static bool load_entry(struct qk_snaplist *s, struct list_reader *r)
{
	struct qk_audit *a = r->audit;
	struct qk_snapshot_entry e;
	uint64_t off = r->read.off;
	bool is_whole = false;

	if (qk_snapread_next(&r->read, &e, &is_whole, NULL) != QCOW_OK) {
		s->finding = QCOW_FINDING_TABLE_READ_FAILED;
		return false;
	}
	if (!is_whole) {
		stop(s, a, off, "the entry runs past the end of the file or past every limit");
		return false;
	}
	/* the window ends with the cluster; only padding may lie past the end of the file */
	uint64_t used = QK_SNAPSHOT_FIXED_BYTES + (uint64_t)e.extra.n + e.id.n + e.name.n;
	if (!qk_in_range(off, used, a->file_size)) {
		stop(s, a, off, "the entry runs past the end of the file");
		return false;
	}
	r->kept_bytes += qk_snapshot_entry_bytes(
		qk_min(e.extra.n, QK_MAX_SNAPSHOT_EXTRA), e.id.n, e.name.n);
	if (r->kept_bytes > QK_MAX_SNAPSHOT_TABLE_BYTES) {
		stop(s, a, off, "the table is longer than 64 MiB");
		return false;
	}
	unsigned finding = 0;
	struct qk_snap_l1 l1 = judge(a, &e, &finding);
	if (finding != 0)
		qk_audit_report(a,
			&(struct qk_audit_note){
				finding, off, QCOW_NO_OFFSET, e.l1_off.v, e.l1_off.v},
			"snapshot %u of %u: L1 table of %u entries at 0x%llx, %zu bytes of extra "
			"data",
			s->n, a->header->n_snapshots, e.l1_entries, (unsigned long long)e.l1_off.v,
			e.extra.n);
	s->v[s->n++] = l1;
	s->table_bytes = r->read.off - a->header->snapshots_off;
	return true;
}

enum qcow_status qk_snaplist_load(struct qk_snaplist *s, struct qk_audit *a, struct qcow_error *err)
{
	*s = (struct qk_snaplist){0};
	uint32_t n = a->header->n_snapshots;
	QK_AUTO_FREE uint8_t *buf = NULL;

	if (n == 0)
		return QCOW_OK;
	if (n > QK_MAX_SNAPSHOTS || a->header->snapshots_off >= a->file_size) {
		stop(s, a, a->header->snapshots_off, "the table lies beyond the end of the file");
		return QCOW_OK;
	}
	buf = qk_malloc(QK_SNAPREAD_BYTES, 1);
	s->v = qk_calloc(n, sizeof(*s->v));
	if (buf == NULL || s->v == NULL) {
		qk_snaplist_release(s);
		return QK_FAIL_NOMEM(err);
	}
	struct list_reader r = {.audit = a,
		.read = {.read = read_part,
			.ctx = a,
			.end = qk_audit_end(a),
			.off = a->header->snapshots_off,
			.buf = buf}};
	while (s->n < n && load_entry(s, &r))
		;
	return QCOW_OK;
}

void qk_snaplist_release(struct qk_snaplist *s)
{
	free(s->v);
	*s = (struct qk_snaplist){0};
}
