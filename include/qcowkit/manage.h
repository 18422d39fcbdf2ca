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

/* ---- size and options ---- */

struct qcow_resize_options {
	uint32_t struct_size;
	bool shrink;  /* the disk may become shorter: what lies past its new end is lost */
	bool dry_run; /* say whether it could be done, and change nothing; the image may be open read-only */
	enum qcow_preallocation preallocation; /* of what a disk that grows gets (raw: not METADATA) */
	struct qcow_progress progress; /* cancelling ends it before it is done, or not at all */
};
#ifdef __cplusplus
/* C++ has no designated initialisers before C++20 */
static inline struct qcow_resize_options qcow_resize_options_init(void)
{
	struct qcow_resize_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_RESIZE_OPTIONS_INIT qcow_resize_options_init()
#else
#define QCOW_RESIZE_OPTIONS_INIT                             \
	{                                                    \
		.struct_size = sizeof(struct qcow_resize_options) \
	}
#endif

/*
 * The disk has `size` bytes from now on, any number of them. What is new reads as zeros, also where a backing file
 * that is longer than the disk was would show, and where an earlier disk of this image ended later. Snapshots keep the
 * sizes of their disks. Bitmaps follow: enabled ones have the new part dirty, others have it clean. options NULL: the
 * defaults.
 * What an image that shrinks held past its new end is free afterwards; where that fails (the host is full, a
 * failing disk) it is called done all the same, the log tells, and the next grow puts the rest away.
 * QCOW_E_INVAL (shorter without `shrink`; preallocation while shrinking; a backing file that is not open); QCOW_E_LIMIT (an L1 table or a
 * bitmap would be too large; more than 2^63 - 1 bytes); QCOW_E_UNSUPPORTED (version 2 with snapshots, snapshots or bitmaps that could not
 * follow); QCOW_E_NOTSUP (a store of fixed size, a part of a raw disk); QCOW_E_CORRUPT with finding (a table past the end that
 * cannot be read), QCOW_E_READONLY, QCOW_E_NOSPC, QCOW_E_IO, QCOW_E_NOMEM, QCOW_E_CANCELLED.
 */
QCOW_EXPORT enum qcow_status qcow_resize(struct qcow_image *image, uint64_t size,
	const struct qcow_resize_options *options, struct qcow_error *err) QCOW_MUST_USE;

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
