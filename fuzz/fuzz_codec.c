/* SPDX-License-Identifier: MIT */
/*
 * A compressed cluster. Input: method and cluster size in a byte each, then the stream. Oracle: what zlib or
 * libzstd decode to a whole cluster we decode to the same; what we decode survives another round; memory is
 * bounded whatever window a frame asks for.
 */
#include "whole.h"

#include <zlib.h>
#include <zstd.h>

/* Decodes with zlib alone; false where that does not make a cluster without an error. */
static bool inflate_whole(const uint8_t *in, size_t n, uint8_t *out, size_t cluster)
{
	z_stream z = {.next_in = (Bytef *)(uintptr_t)in,
		.avail_in = (uInt)n,
		.next_out = out,
		.avail_out = (uInt)cluster};
	FUZZ_CHECK(inflateInit2(&z, -15) == Z_OK);
	int rc = inflate(&z, Z_FINISH);
	bool ok = z.avail_out == 0 && (rc == Z_STREAM_END || rc == Z_BUF_ERROR);
	inflateEnd(&z);
	return ok;
}

/* Does a frame ask for a window over 8 MiB, which need not be granted (RFC 8878, 3.1.1.1.2)? Its header says so in the
 * byte after the descriptor, unless it is a single segment. */
static bool has_large_window(const uint8_t *in, size_t n)
{
	return n > 5 && (in[4] & 0x20) == 0 && in[5] > (23 - 10) << 3;
}

static bool unzstd_whole(const uint8_t *in, size_t n, uint8_t *out, size_t cluster)
{
	size_t frame = ZSTD_findFrameCompressedSize(in, n);
	return !ZSTD_isError(frame) && !has_large_window(in, n) &&
	       ZSTD_decompress(out, cluster, in, frame) == cluster;
}

/* What was decoded, compressed and decoded again. */
static void round_trip(struct qcow_codec *codec, const uint8_t *plain, size_t cluster)
{
	uint8_t *packed = malloc(cluster), *again = malloc(cluster);
	size_t n = 0;
	FUZZ_CHECK(packed != NULL && again != NULL);
	FUZZ_CHECK(qcow_codec_compress(codec, plain, packed, &n, NULL) == QCOW_OK && n < cluster);
	if (n != 0) {
		FUZZ_CHECK(qcow_codec_decompress(codec, packed, n, again, NULL) == QCOW_OK);
		FUZZ_CHECK(memcmp(plain, again, cluster) == 0);
	}
	free(packed);
	free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct qcow_codec *codec = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	if (n < 2)
		return 0;
	bool zstd = data[0] % 2 != 0;
	size_t cluster = (size_t)512 << data[1] % 8; /* to 64 KiB */
	uint8_t *ours = calloc(1, cluster), *theirs = calloc(1, cluster);
	FUZZ_CHECK(ours != NULL && theirs != NULL);
	bool expected = zstd ? unzstd_whole(data + 2, n - 2, theirs, cluster)
			     : inflate_whole(data + 2, n - 2, theirs, cluster);
	fuzz_bounds_begin();
	FUZZ_CHECK(qcow_codec_new(zstd ? QCOW_COMPRESSION_ZSTD : QCOW_COMPRESSION_ZLIB, cluster, -1,
			   &codec, NULL) == QCOW_OK);
	enum qcow_status status = qcow_codec_decompress(codec, data + 2, n - 2, ours, &err);
	fuzz_bounds_end("decode", 10 * FUZZ_MIB);
	FUZZ_CHECK(status == QCOW_OK ||
		   (status == QCOW_E_CORRUPT && err.finding == QCOW_FINDING_COMPRESSED_STREAM));
	if (expected)
		FUZZ_CHECK(status == QCOW_OK && memcmp(ours, theirs, cluster) == 0);
	if (status == QCOW_OK)
		round_trip(codec, ours, cluster);
	qcow_codec_free(codec);
	free(ours);
	free(theirs);
	return 0;
}
