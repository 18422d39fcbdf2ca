/* SPDX-License-Identifier: MIT */
/*
 * api_codec: the public calls on codecs: argument checks, nothing else. A codec belongs to one thread at
 * a time, so there is nothing to lock.
 */
#include <qcowkit/qcowkit.h>

#include "base/num.h"
#include "codec/codec.h"
#include "format/limits.h"

enum qcow_status qcow_codec_new(enum qcow_compression compression, size_t cluster_size, int level,
	struct qcow_codec **out, struct qcow_error *err)
{
	if (out == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_codec_new: out is NULL");
	if (!qk_is_pow2(cluster_size) || cluster_size < (1U << QK_MIN_CLUSTER_BITS) ||
		cluster_size > (1U << QK_MAX_CLUSTER_BITS))
		return QK_FAIL(err, QCOW_E_INVAL,
			"cluster size %zu is not a power of two between 512 and 2M", cluster_size);
	return qk_codec_new(compression, cluster_size, level, out, err);
}

void qcow_codec_free(struct qcow_codec *codec)
{
	qk_codec_free(codec);
}

enum qcow_status qcow_codec_compress(struct qcow_codec *codec, const void *in, void *out,
	size_t *out_len, struct qcow_error *err)
{
	if (codec == NULL || in == NULL || out == NULL || out_len == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_codec_compress: an argument is NULL");
	return qk_codec_compress(codec, in, out, out_len, err);
}

enum qcow_status qcow_codec_decompress(
	struct qcow_codec *codec, const void *in, size_t in_len, void *out, struct qcow_error *err)
{
	if (codec == NULL || (in == NULL && in_len != 0) || out == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_codec_decompress: an argument is NULL");
	if (in_len > UINT32_MAX)
		return QK_FAIL(err, QCOW_E_INVAL,
			"qcow_codec_decompress: %zu bytes are more than any compressed cluster",
			in_len);
	return qk_codec_decompress(codec, in, in_len, out, err);
}
