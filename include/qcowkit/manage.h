/* SPDX-License-Identifier: MIT */
/*
 * Managing images that are open for writing (QCOW_OPEN_WRITE). Each call is wholly done and stable when it returns
 * QCOW_OK, and a crash during it leaves the image as it was before or as it is after. Calls on guest data may go on in
 * other threads meanwhile: they wait. A call that fails has changed nothing, unless it fences the image as a failed flush does
 * (qcow_recover).
 */
#ifndef QCOWKIT_MANAGE_H
#define QCOWKIT_MANAGE_H

#include <qcowkit/qcowkit.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- backing file ---- */

struct qcow_backing_options {
	uint32_t struct_size;
	const char *name;   /* to record, at most 1023 bytes; NULL: none */
	const char *format; /* "qcow2", "raw", …, at most 15 bytes; NULL: none, and readers will not guess */
	bool dry_run;	    /* only say whether it can be done */
};
#ifdef __cplusplus
static inline struct qcow_backing_options qcow_backing_options_init(void)
{
	struct qcow_backing_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_BACKING_OPTIONS_INIT qcow_backing_options_init()
#else
#define QCOW_BACKING_OPTIONS_INIT                                 \
	{                                                         \
		.struct_size = sizeof(struct qcow_backing_options) \
	}
#endif

/*
 * Record another backing file, or none. Nothing is opened or compared: the disk reads the same only where the new file
 * holds what the old one did (qcow_rebase sees to that). The layers that are open below `image` stay what they are until
 * it is opened again. Header extensions, header bytes and feature bits that this version does not know stay.
 * QCOW_E_INVAL (arguments; a raw data file, beside which nothing may lie), QCOW_E_NOTSUP (no qcow2 image),
 * QCOW_E_READONLY, QCOW_E_FORMAT (a name no reader would take), QCOW_E_LIMIT (no room in the first cluster), errors of
 * the store. Specification: "Header", "Header extensions".
 */
QCOW_EXPORT enum qcow_status qcow_set_backing(struct qcow_image *image,
	const struct qcow_backing_options *options, struct qcow_error *err) QCOW_MUST_USE;

/*
 * The image gives up everything that it holds: its disk reads what lies below, and zeros where nothing does. Internal
 * snapshots stay. For an overlay whose content is in its backing file: a crash during the call leaves some of it in the
 * image and some not. QCOW_E_CORRUPT with a finding: a damaged table, nothing was done. QCOW_E_NOTSUP, QCOW_E_READONLY,
 * errors of the store.
 */
QCOW_EXPORT enum qcow_status qcow_empty(struct qcow_image *image, struct qcow_error *err) QCOW_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
