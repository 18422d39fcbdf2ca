/* SPDX-License-Identifier: MIT */
/*
 * decode: compressed clusters of one image. Keeps decoders (a codec context with its buffers is never
 * made for one cluster) and the last few decoded clusters, for readers that come in small steps.
 */
#ifndef QK_ENGINE_DECODE_H
#define QK_ENGINE_DECODE_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "engine/lookup.h"

struct qk_decode;

/* Allocates next to nothing: contexts and buffers are made when the first compressed cluster is read. Decoded clusters take up
 * cache_bytes at most, 2 MiB or 4 clusters where that is less. */
enum qcow_status qk_decode_new(enum qcow_compression compression, size_t cluster_size,
	uint64_t cache_bytes, struct qk_decode **out, struct qcow_error *err);
void qk_decode_free(struct qk_decode *decode);

/* Copy run->len bytes of the compressed run (at most one cluster) to buf. A whole cluster is decoded
 * straight into buf; parts come from the decoded clusters, and threads that want the same cluster at once
 * wait for one decode. QCOW_E_CORRUPT with COMPRESSED_STREAM and offsets, QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status qk_decode_read(
	struct qk_decode *decode, const struct qk_run *run, void *buf, struct qcow_error *err);

/* The same where the cluster is decoded already. false: it is not, and nothing was done. */
bool qk_decode_read_ready(struct qk_decode *decode, const struct qk_run *run, void *buf);

/* The clusters at [host_off, host_off + len) hold something else from now on, or will: no reader has a run there that is
 * to go away. What is still read there stays right. */
void qk_decode_forget(struct qk_decode *decode, uint64_t host_off, uint64_t len);

/* Compress a cluster from `in` to `out` (a cluster). *out_len is 0 where it would not get smaller. QCOW_E_NOMEM. */
enum qcow_status qk_decode_compress(struct qk_decode *decode, const void *in, void *out,
	size_t *out_len, struct qcow_error *err) QK_MUST_USE;

#endif
