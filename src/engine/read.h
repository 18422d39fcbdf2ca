/* SPDX-License-Identifier: MIT */
/*
 * read: guest data of a chain into the caller's memory.
 */
#ifndef QK_ENGINE_READ_H
#define QK_ENGINE_READ_H

#include <qcowkit/qcowkit.h>

/* qcow_pread: begin, move the bytes, end. The range lies within the disk. Any thread. */
enum qcow_status qk_read(
	struct qcow_image *image, void *buf, size_t len, uint64_t off, struct qcow_error *err);

/* qcow_pread_nowait: the same, of what is at hand; else QCOW_E_WOULD_BLOCK. */
enum qcow_status qk_read_nowait(
	struct qcow_image *image, void *buf, size_t len, uint64_t off, struct qcow_error *err);

/* Bytes of this layer alone, wherever the disk ends; what it does not hold is zeros. A qcow2 image, off + len below 2^63. */
enum qcow_status qk_read_past(
	struct qcow_image *image, void *buf, size_t len, uint64_t off, struct qcow_error *err);

#endif
