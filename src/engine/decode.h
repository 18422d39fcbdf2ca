/* SPDX-License-Identifier: MIT */
/*
 * decode: compressed clusters of one image. Keeps decoders (a codec context with its buffers is never
 * made for one cluster) and the last few decoded clusters, for readers that come in small steps.
 */
#ifndef QK_ENGINE_DECODE_H
#define QK_ENGINE_DECODE_H

#include <qcowkit/qcowkit.h>

#include "engine/lookup.h"

struct qk_decode;

/* Allocates next to nothing: contexts and buffers are made when the first compressed cluster is read. */
enum qcow_status qk_decode_new(enum qcow_compression compression, size_t cluster_size,
	struct qk_decode **out, struct qcow_error *err);
void qk_decode_free(struct qk_decode *decode);

/* Copy run->len bytes of the compressed run (at most one cluster) to buf. A whole cluster is decoded
 * straight into buf; parts come from the decoded clusters, and threads that want the same cluster at once
 * wait for one decode. QCOW_E_CORRUPT with COMPRESSED_STREAM and offsets, QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status qk_decode_read(
	struct qk_decode *decode, const struct qk_run *run, void *buf, struct qcow_error *err);

#endif
