/* SPDX-License-Identifier: MIT */
/*
 * codec: one whole cluster in, one whole cluster out, by raw deflate or zstd. Pure: no I/O.
 *
 * A struct qcow_codec keeps what the libraries need from one cluster to the next. It belongs to one
 * thread at a time. Compressor and decompressor are made when they are first needed, so a context that
 * only reads costs no compressor. Specification: "Compressed Clusters Descriptor", "compression_type".
 */
#ifndef QK_CODEC_CODEC_H
#define QK_CODEC_CODEC_H

#include <qcowkit/qcowkit.h>

#include "base/bytes.h"
#include "base/err.h"

struct qk_deflate;
struct qk_zstd;

struct qcow_codec {
	enum qcow_compression compression;
	size_t cluster_size;
	struct qk_deflate *deflate; /* exactly one of the two */
	struct qk_zstd *zstd;
};

/* Levels that a caller may ask for; -1 is the default of the method. */
#define QK_DEFLATE_LEVEL_MIN	 1
#define QK_DEFLATE_LEVEL_DEFAULT 2
#define QK_DEFLATE_LEVEL_MAX	 12
#define QK_ZSTD_LEVEL_MIN	 1
#define QK_ZSTD_LEVEL_DEFAULT	 3
#define QK_ZSTD_LEVEL_MAX	 22

/* Make a context for clusters of `cluster_size` bytes. QCOW_E_INVAL (method, level), QCOW_E_NOMEM. */
enum qcow_status qk_codec_new(enum qcow_compression compression, size_t cluster_size, int level,
	struct qcow_codec **out, struct qcow_error *err) QK_MUST_USE;
/* NULL is allowed. */
void qk_codec_free(struct qcow_codec *codec);

/* Compress a cluster from `in` into `out`, which has room for cluster_size - 1 bytes. *out_len is 0 where
 * the result would not fit there. QCOW_E_NOMEM, QCOW_E_BUG. */
enum qcow_status qk_codec_compress(struct qcow_codec *codec, const void *in, void *out,
	size_t *out_len, struct qcow_error *err) QK_MUST_USE;

/* Decode the stream that starts at `in` into exactly one cluster at `out`. What follows in `in`, or in the
 * stream, is not looked at. QCOW_E_CORRUPT with QCOW_FINDING_COMPRESSED_STREAM (content bad, or shorter
 * than a cluster), QCOW_E_NOMEM. Reads `in_len` bytes at most, writes a cluster at most. */
enum qcow_status qk_codec_decompress(struct qcow_codec *codec, const void *in, size_t in_len,
	void *out, struct qcow_error *err) QK_MUST_USE;

/* The two methods, with the same contracts. */
enum qcow_status qk_deflate_new(
	int level, struct qk_deflate **out, struct qcow_error *err) QK_MUST_USE;
void qk_deflate_free(struct qk_deflate *d);
enum qcow_status qk_deflate_compress(struct qk_deflate *d, struct qk_span in, void *out,
	size_t *out_len, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_deflate_decompress(struct qk_deflate *d, struct qk_span in, void *out,
	size_t out_len, struct qcow_error *err) QK_MUST_USE;

enum qcow_status qk_zstd_new(int level, struct qk_zstd **out, struct qcow_error *err) QK_MUST_USE;
void qk_zstd_free(struct qk_zstd *z);
enum qcow_status qk_zstd_compress(struct qk_zstd *z, struct qk_span in, void *out, size_t *out_len,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_zstd_decompress(struct qk_zstd *z, struct qk_span in, void *out, size_t out_len,
	struct qcow_error *err) QK_MUST_USE;

#endif
