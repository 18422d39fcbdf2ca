/* SPDX-License-Identifier: MIT */
/*
 * snaplist: the snapshot table, entry by entry through a window that holds the longest legal entry.
 */
#include "audit/snaplist.h"

#include "base/mem.h"
#include "format/snaptab.h"

/* 40 bytes, 1024 of extra data, id and name of 65535 each, and padding: 132 KiB; a read ahead besides */
#define WINDOW_BYTES	    (256U * 1024U)
#define LONGEST_ENTRY_BYTES (40U + QK_MAX_SNAPSHOT_EXTRA + 2U * 65535U + 8U)

struct window {
	uint8_t *buf;
	uint64_t off; /* of buf[0] in the file */
	size_t n, at;
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

/* Make the window hold `ahead` bytes from its place on, or all that the file has. */
static bool fill(struct window *w, struct qk_audit *a, size_t ahead)
{
	/* the padding of the last entry may lie past the end of the file, within its cluster */
	uint64_t end = qk_audit_end(a);

	if (w->n - w->at >= ahead || (w->n != 0 && w->off + w->n >= end))
		return true;
	bool is_zero = false;
	w->off += w->at;
	w->at = 0;
	w->n = (size_t)qk_min(WINDOW_BYTES, end - w->off);
	if (!qk_audit_read(a, w->buf, w->n, w->off, &is_zero, "snapshot table"))
		return false;
	if (is_zero)
		memset(w->buf, 0, w->n);
	return true;
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

static bool load_entry(struct qk_snaplist *s, struct qk_audit *a, struct window *w)
{
	struct qk_snapshot_entry e = {0};
	uint64_t off = w->off + w->at;

	if (!fill(w, a, LONGEST_ENTRY_BYTES)) {
		s->finding = QCOW_FINDING_TABLE_READ_FAILED;
		return false;
	}
	struct qk_reader r = qk_reader_init(w->buf + w->at, w->n - w->at);
	bool is_whole = qk_snapshot_decode(&r, &e);
	/* extra data beyond every limit can be left out, where the rest can be read */
	if (!is_whole && fill(w, a, WINDOW_BYTES)) {
		r = qk_reader_init(w->buf + w->at, w->n - w->at);
		is_whole = qk_snapshot_decode(&r, &e);
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
	w->kept_bytes += qk_snapshot_entry_bytes(
		qk_min(e.extra.n, QK_MAX_SNAPSHOT_EXTRA), e.id.n, e.name.n);
	if (w->kept_bytes > QK_MAX_SNAPSHOT_TABLE_BYTES) {
		stop(s, a, off, "the table is longer than 64 MiB");
		return false;
	}
	w->at += r.at;
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
	s->table_bytes = w->off + w->at - a->header->snapshots_off;
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
	buf = qk_malloc(WINDOW_BYTES, 1);
	s->v = qk_calloc(n, sizeof(*s->v));
	if (buf == NULL || s->v == NULL) {
		qk_snaplist_release(s);
		return QK_FAIL_NOMEM(err);
	}
	struct window w = {.buf = buf, .off = a->header->snapshots_off};
	while (s->n < n && load_entry(s, a, &w))
		;
	return QCOW_OK;
}

void qk_snaplist_release(struct qk_snaplist *s)
{
	free(s->v);
	*s = (struct qk_snaplist){0};
}
