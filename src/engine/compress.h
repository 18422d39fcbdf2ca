/* SPDX-License-Identifier: MIT */
/*
 * compress: clusters that are written compressed. Streams lie byte behind byte in host clusters, as many in one as it
 * has room and its refcount allows; each counts one reference for each cluster it touches. Nothing is ever
 * written in place: a stream that is replaced gives its references up.
 */
#ifndef QK_ENGINE_COMPRESS_H
#define QK_ENGINE_COMPRESS_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"

struct qk_compress;

enum qcow_status qk_compress_new(struct qk_compress **out, struct qcow_error *err) QK_MUST_USE;
/* NULL is allowed. */
void qk_compress_free(struct qk_compress *c);

/* The `n` clusters from host offset `off` on are about to lose a reference: no stream is added to them any more. */
void qk_compress_forget(struct qcow_image *image, uint64_t off, uint64_t n);

/* A publication begins: no sector that a stream lies in is written again. */
void qk_compress_seal(struct qcow_image *image);

/* qcow_write_compressed without its flags. The range lies within the disk and is whole clusters, or ends with the
 * disk. Any thread. */
enum qcow_status qk_write_compressed(struct qcow_image *image, const uint8_t *buf, uint64_t len,
	uint64_t off, struct qcow_error *err) QK_MUST_USE;

#endif
