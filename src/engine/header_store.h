/* SPDX-License-Identifier: MIT */
/*
 * header_store: the header area of an image that is open for writing is replaced as a whole: extensions, backing
 * name, and fields of the fixed header with them. Unknown extensions, unknown header bytes and feature bits
 * stay. What QEMU leaves after a change is left here, byte for byte. SAFETY: old or new after a crash.
 * Specification: "Header", "Header extensions".
 *
 *	QK_TRY(qk_header_store_load(image, &area, err));
 *	area.header.… = …; area.ext.… = …;
 *	status = qk_header_store_write(image, &area, err);
 *	qk_header_store_release(&area);
 *
 * The caller keeps everybody else from the image meanwhile (engine/control.h), and has the image read again what the
 * header says; neither call changes `image`.
 */
#ifndef QK_ENGINE_HEADER_STORE_H
#define QK_ENGINE_HEADER_STORE_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "format/header.h"

struct qk_header_area {
	uint8_t *cluster0; /* as the disk has it; `header` and `ext` point into it */
	size_t bytes; /* the cluster size */
	struct qk_header header; /* backing_off and backing_len follow from ext.backing_name */
	struct qk_extensions
		ext; /* spans that are put in are the caller's, until the write is done */
};

/* Read and decode cluster 0. Released by the caller, on failure too. QCOW_E_IO, QCOW_E_NOMEM, errors of
 * qk_header_area_decode. */
enum qcow_status qk_header_store_load(
	struct qcow_image *image, struct qk_header_area *out, struct qcow_error *err) QK_MUST_USE;

/* The text as a span for ext.backing_name and its kin; NULL: absent. */
struct qk_span qk_header_store_text(const char *text);

/*
 * Barrier, write, barrier: what the new header names is stable before it, and it is stable afterwards. QCOW_E_LIMIT,
 * QCOW_E_FORMAT (nobody would open it again), QCOW_E_NOMEM: nothing was written. A failed write or flush fences:
 * the disk has the old header or the new one, never a mix of the two.
 */
enum qcow_status qk_header_store_write(struct qcow_image *image, const struct qk_header_area *area,
	struct qcow_error *err) QK_MUST_USE;

/* Would it be written? Without touching anything; errors as qk_header_store_write. */
enum qcow_status qk_header_store_judge(
	const struct qk_header_area *area, struct qcow_error *err) QK_MUST_USE;

void qk_header_store_release(struct qk_header_area *area);

#endif
