/* SPDX-License-Identifier: MIT */
/*
 * audit: reading tables with zeros past the end of the file, and passing findings on.
 *
 * Holes: an image may be a sparse file whose tables are mostly holes, and reading those costs as much as
 * reading data. After a few zero reads in a row the store is asked first; files without holes never are.
 */
#include "audit/audit.h"

#include <stdarg.h>
#include <stdio.h>

#define ZERO_STREAK_BEFORE_ASKING 4U

static void report_v(
	struct qk_audit *a, const struct qk_audit_note *note, const char *fmt, va_list ap)
{
	char where[QK_AUDIT_WHERE_BYTES];

	(void)vsnprintf(where, sizeof(where), fmt, ap);
	a->report(a->report_ctx, &(struct qcow_finding){.id = note->id,
					 .severity = qcow_finding_severity(note->id),
					 .host_off = note->host_off,
					 .guest_off = note->guest_off,
					 .stored = note->stored,
					 .expected = note->expected,
					 .where = where});
}

void qk_audit_report(struct qk_audit *a, const struct qk_audit_note *note, const char *fmt, ...)
{
	va_list ap;

	if (a->quiet)
		return;
	va_start(ap, fmt);
	report_v(a, note, fmt, ap);
	va_end(ap);
}

void qk_audit_report_always(
	struct qk_audit *a, const struct qk_audit_note *note, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	report_v(a, note, fmt, ap);
	va_end(ap);
}

static bool is_hole(struct qk_audit *a, size_t len, uint64_t off)
{
	struct qcow_store_extent e = {0};

	if (off >= a->file_size)
		return true;
	uint64_t in_file = qk_min(len, a->file_size - off);
	return qcow_store_extents(a->store, off, in_file, &e, NULL) == QCOW_OK && e.is_hole &&
	       e.len >= in_file;
}

/* Passes overlap where a block is looked at for two reasons: one failure is told once. */
static void note_failure(
	struct qk_audit *a, uint64_t off, const char *what, const struct qcow_error *err)
{
	if (a->quiet || (a->n_read_errors != 0 && a->failed_off == off))
		return;
	if (a->n_read_errors++ == 0)
		a->first_failure = *err;
	a->failed_off = off;
	qk_audit_report(a,
		&(struct qk_audit_note){QCOW_FINDING_TABLE_READ_FAILED, off, QCOW_NO_OFFSET, 0, 0},
		"%s: %.60s", what, err->message);
}

bool qk_audit_read(
	struct qk_audit *a, void *buf, size_t len, uint64_t off, bool *is_zero, const char *what)
{
	*is_zero = true;
	if (a->zero_streak >= ZERO_STREAK_BEFORE_ASKING && is_hole(a, len, off))
		return true;
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_store_read_padded(a->store, buf, len, off, &err) != QCOW_OK) {
		note_failure(a, off, what, &err);
		return false;
	}
	*is_zero = qk_is_zero(buf, len);
	a->zero_streak = *is_zero ? a->zero_streak + 1 : 0;
	return true;
}

uint64_t qk_audit_end(const struct qk_audit *a)
{
	uint64_t mask = a->geometry->cluster_size - 1;

	return (a->file_size + mask) & ~mask;
}

static uint64_t believed_bytes(
	const struct qk_audit *a, uint64_t off, uint64_t claimed, uint64_t needed)
{
	uint64_t end = qk_audit_end(a);

	if (qk_in_range(off, claimed, end))
		return claimed;
	return off < end ? qk_min(qk_min(claimed, needed), end - off) : 0;
}

uint64_t qk_audit_l1_bytes(const struct qk_audit *a)
{
	return believed_bytes(a, a->header->l1_off, qk_audit_l1_claimed_bytes(a),
		qk_geometry_l1_entries(a->geometry, a->header->size) * 8);
}

uint64_t qk_audit_rt_bytes(const struct qk_audit *a)
{
	uint64_t n_clusters = qk_audit_end(a) >> a->geometry->cluster_bits;
	uint64_t needed = qk_div_up(n_clusters, a->geometry->rb_entries) * 8;
	uint64_t mask = a->geometry->cluster_size - 1;

	return believed_bytes(
		a, a->header->rt_off, qk_audit_rt_claimed_bytes(a), (needed + mask) & ~mask);
}

enum qcow_status qk_audit_cancelled(const struct qk_audit *a, struct qcow_error *err)
{
	const struct qcow_progress *p = a->progress;

	if (p != NULL && p->cancelled != NULL && p->cancelled(p->ctx))
		return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
	return QCOW_OK;
}
