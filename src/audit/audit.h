/* SPDX-License-Identifier: MIT */
/*
 * audit: what a walk over an image's metadata needs to know, how it reads, and how it reports.
 *
 * A struct qk_audit is filled by the caller (the api room) from an open image; it borrows everything
 * that it points to. One thread at a time.
 */
#ifndef QK_AUDIT_AUDIT_H
#define QK_AUDIT_AUDIT_H

#include <qcowkit/qcowkit.h>

#include "format/header.h"

#define QK_AUDIT_WHERE_BYTES 128U

struct qk_audit {
	/* filled by the caller */
	struct qcow_store *store;
	const struct qk_header *header;
	const struct qk_extensions *ext;
	const struct qk_geometry *geometry;
	uint64_t file_size;
	void (*report)(void *ctx, const struct qcow_finding *finding);
	void *report_ctx;
	const struct qcow_progress *progress; /* or NULL */

	/* kept by audit.c */
	bool quiet; /* findings of the structures were reported by an earlier pass */
	uint64_t n_read_errors; /* while not quiet; a place that fails twice in a row counts once */
	uint64_t failed_off; /* where the last read failed, if n_read_errors != 0 */
	struct qcow_error first_failure; /* of the first of them */
	unsigned zero_streak; /* reads in a row that held zeros only */
};

/* A finding about [host_off] with where = the formatted text. stored == expected where nothing is known. */
struct qk_audit_note {
	unsigned id;
	uint64_t host_off, guest_off, stored, expected;
};

/* Pass a finding on, unless a->quiet. */
void qk_audit_report(struct qk_audit *a, const struct qk_audit_note *note, const char *fmt, ...)
	QK_PRINTF(3, 4);

/* Pass a finding on that is found once only, whatever a->quiet says. */
void qk_audit_report_always(
	struct qk_audit *a, const struct qk_audit_note *note, const char *fmt, ...) QK_PRINTF(3, 4);

/*
 * Read a piece of a table; what lies past the end of the file reads as zeros. *is_zero: the piece holds
 * only zeros; buf is then not filled (holes of the file are skipped without reading them). A failure
 * is reported as TABLE_READ_FAILED and answered by false.
 */
bool qk_audit_read(
	struct qk_audit *a, void *buf, size_t len, uint64_t off, bool *is_zero, const char *what);

/* The file's size rounded up to whole clusters: offsets at or past it are beyond the file. */
uint64_t qk_audit_end(const struct qk_audit *a);

/* QCOW_E_CANCELLED where the caller's callback says so. */
enum qcow_status qk_audit_cancelled(const struct qk_audit *a, struct qcow_error *err) QK_MUST_USE;

/*
 * How much of the active L1 table and of the refcount table is believed, in bytes. All, where the table lies
 * in the file. A table that runs past the end has a length that lies: of it only what the disk, or the
 * file, needs is read, and only as far as the file goes.
 */
uint64_t qk_audit_l1_bytes(const struct qk_audit *a);
uint64_t qk_audit_rt_bytes(const struct qk_audit *a);

/* The same tables as the header describes them: 32 and 64 bits cannot overflow. */
static inline uint64_t qk_audit_l1_claimed_bytes(const struct qk_audit *a)
{
	return (uint64_t)a->header->l1_entries * 8;
}

static inline uint64_t qk_audit_rt_claimed_bytes(const struct qk_audit *a)
{
	return (uint64_t)a->header->rt_clusters << a->geometry->cluster_bits;
}

/* The extension is there, and the autoclear bit says that it may be believed. */
static inline bool qk_audit_has_bitmaps(const struct qk_audit *a)
{
	return a->ext->has_bitmaps && (a->header->autoclear & QCOW_AUTOCLEAR_BITMAPS) != 0;
}

#endif
