/* SPDX-License-Identifier: MIT */
/*
 * codec: the choice between the compression methods. It holds no state of its own.
 */
#include "codec/codec.h"

#include "base/mem.h"

enum qcow_status qk_codec_new(enum qcow_compression compression, size_t cluster_size, int level,
	struct qcow_codec **out, struct qcow_error *err)
{
	struct qcow_codec *codec = qk_calloc(1, sizeof(*codec));
	enum qcow_status status = QCOW_OK;

	if (codec == NULL)
		return QK_FAIL_NOMEM(err);
	codec->compression = compression;
	codec->cluster_size = cluster_size;
	if (compression == QCOW_COMPRESSION_ZLIB)
		status = qk_deflate_new(level, &codec->deflate, err);
	else if (compression == QCOW_COMPRESSION_ZSTD)
		status = qk_zstd_new(level, &codec->zstd, err);
	else
		status = QK_FAIL(err, QCOW_E_INVAL, "compression type %u is not known",
			(unsigned)compression);
	if (status != QCOW_OK) {
		free(codec);
		return status;
	}
	*out = codec;
	return QCOW_OK;
}

void qk_codec_free(struct qcow_codec *codec)
{
	if (codec == NULL)
		return;
	qk_deflate_free(codec->deflate);
	qk_zstd_free(codec->zstd);
	free(codec);
}

enum qcow_status qk_codec_compress(struct qcow_codec *codec, const void *in, void *out,
	size_t *out_len, struct qcow_error *err)
{
	struct qk_span cluster = {in, codec->cluster_size};

	if (codec->deflate != NULL)
		return qk_deflate_compress(codec->deflate, cluster, out, out_len, err);
	return qk_zstd_compress(codec->zstd, cluster, out, out_len, err);
}

enum qcow_status qk_codec_decompress(
	struct qcow_codec *codec, const void *in, size_t in_len, void *out, struct qcow_error *err)
{
	struct qk_span stream = {in, in_len};

	if (codec->deflate != NULL)
		return qk_deflate_decompress(codec->deflate, stream, out, codec->cluster_size, err);
	return qk_zstd_decompress(codec->zstd, stream, out, codec->cluster_size, err);
}
