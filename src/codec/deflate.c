/* SPDX-License-Identifier: MIT */
/*
 * deflate: raw deflate streams (RFC 1951, without a zlib header), both ways.
 *
 * libdeflate does the work. It knows whole streams only, while a cluster's stream may go on past the
 * cluster or lack its end (QEMU reads both, for it stops when the cluster is full): what libdeflate
 * does not decode, zlib is asked for once more, and its word is final. A stream that ends before the
 * cluster is full is damage in either.
 *
 * The window is 32 KiB in both directions. QEMU says 4 KiB, but inflates a cluster with one call, where
 * zlib copies from the output itself and no window limits the distance (tests/unit/codec holds QEMU to it).
 */
#include "codec/codec.h"

#include <libdeflate.h>
#include <zlib.h>

#include "base/mem.h"

struct qk_deflate {
	int level;
	struct libdeflate_compressor *compressor;
	struct libdeflate_decompressor *decompressor;
	z_stream zlib;
	bool has_zlib;
};

enum qcow_status qk_deflate_new(int level, struct qk_deflate **out, struct qcow_error *err)
{
	if (level != -1 && (level < QK_DEFLATE_LEVEL_MIN || level > QK_DEFLATE_LEVEL_MAX))
		return QK_FAIL(err, QCOW_E_INVAL,
			"compression level %d is not between %d and %d, those of zlib", level,
			QK_DEFLATE_LEVEL_MIN, QK_DEFLATE_LEVEL_MAX);
	struct qk_deflate *d = qk_calloc(1, sizeof(*d));
	if (d == NULL)
		return QK_FAIL_NOMEM(err);
	d->level = level == -1 ? QK_DEFLATE_LEVEL_DEFAULT : level;
	*out = d;
	return QCOW_OK;
}

void qk_deflate_free(struct qk_deflate *d)
{
	if (d == NULL)
		return;
	libdeflate_free_compressor(d->compressor);
	libdeflate_free_decompressor(d->decompressor);
	if (d->has_zlib)
		(void)inflateEnd(&d->zlib);
	free(d);
}

enum qcow_status qk_deflate_compress(
	struct qk_deflate *d, struct qk_span in, void *out, size_t *out_len, struct qcow_error *err)
{
	if (d->compressor == NULL)
		d->compressor = libdeflate_alloc_compressor(d->level);
	if (d->compressor == NULL)
		return QK_FAIL_NOMEM(err);
	*out_len = libdeflate_deflate_compress(d->compressor, in.p, in.n, out, in.n - 1);
	return QCOW_OK;
}

/* zlib fails an init with a version error only where the header is not the library's. */
static enum qcow_status prepare_zlib(struct qk_deflate *d, struct qcow_error *err)
{
	int rc = d->has_zlib ? inflateReset(&d->zlib) : inflateInit2(&d->zlib, -15);

	if (rc == Z_MEM_ERROR)
		return QK_FAIL_NOMEM(err);
	if (rc != Z_OK)
		return QK_FAIL(err, QCOW_E_BUG, "zlib refuses to start: error %d", rc);
	d->has_zlib = true;
	return QCOW_OK;
}

static enum qcow_status inflate_at_most(
	struct qk_deflate *d, struct qk_span in, void *out, size_t out_len, struct qcow_error *err)
{
	QK_TRY(prepare_zlib(d, err));
	d->zlib.next_in = (Bytef *)(uintptr_t)in.p;
	d->zlib.avail_in = (uInt)in.n;
	d->zlib.next_out = out;
	d->zlib.avail_out = (uInt)out_len;
	int rc = inflate(&d->zlib, Z_FINISH);
	if (rc == Z_MEM_ERROR)
		return QK_FAIL_NOMEM(err);
	if (d->zlib.avail_out == 0)
		return QCOW_OK;
	size_t got = out_len - d->zlib.avail_out;
	if (rc == Z_STREAM_END || rc == Z_BUF_ERROR)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_COMPRESSED_STREAM,
			QCOW_NO_OFFSET, QCOW_NO_OFFSET,
			"the deflate stream of a compressed cluster %s after %zu of %zu bytes",
			rc == Z_STREAM_END ? "ends" : "is cut short", got, out_len);
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_COMPRESSED_STREAM, QCOW_NO_OFFSET,
		QCOW_NO_OFFSET,
		"the deflate stream of a compressed cluster is damaged after %zu of %zu bytes", got,
		out_len);
}

enum qcow_status qk_deflate_decompress(
	struct qk_deflate *d, struct qk_span in, void *out, size_t out_len, struct qcow_error *err)
{
	/* No stream is longer than clusters and their slack: this bounds zlib's 32-bit counts. */
	QK_ASSERT(D1, in.n <= UINT32_MAX && out_len <= UINT32_MAX);
	if (d->decompressor == NULL)
		d->decompressor = libdeflate_alloc_decompressor();
	if (d->decompressor == NULL)
		return QK_FAIL_NOMEM(err);
	if (libdeflate_deflate_decompress(d->decompressor, in.p, in.n, out, out_len, NULL) ==
		LIBDEFLATE_SUCCESS)
		return QCOW_OK;
	return inflate_at_most(d, in, out, out_len, err);
}
