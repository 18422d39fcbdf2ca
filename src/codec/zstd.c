/* SPDX-License-Identifier: MIT */
/*
 * zstd: zstd frames, both ways, with contexts that are reused from cluster to cluster.
 *
 * Decoding streams, for a cluster may hold several frames or a frame longer than the cluster, and QEMU
 * reads both. A frame of known size that fits, the usual case, is decoded by libzstd in one pass without a
 * window; for others the window is capped, so that a frame of a few bytes cannot ask for gigabytes. Frames of
 * the formats before RFC 8878, which libzstd may know too, know no such cap: they are not zstd here.
 */
#include "codec/codec.h"

#include <zstd.h>
#include <zstd_errors.h>

#include "base/mem.h"

/* 2^23 = 8 MiB: what every decoder is asked to support (RFC 8878, 3.1.1.1.2), four times the largest
 * cluster. */
#define MAX_WINDOW_LOG 23

struct qk_zstd {
	int level;
	ZSTD_CCtx *compressor;
	ZSTD_DCtx *decompressor;
};

enum qcow_status qk_zstd_new(int level, struct qk_zstd **out, struct qcow_error *err)
{
	if (level != -1 && (level < QK_ZSTD_LEVEL_MIN || level > QK_ZSTD_LEVEL_MAX))
		return QK_FAIL(err, QCOW_E_INVAL,
			"compression level %d is not between %d and %d, those of zstd", level,
			QK_ZSTD_LEVEL_MIN, QK_ZSTD_LEVEL_MAX);
	struct qk_zstd *z = qk_calloc(1, sizeof(*z));
	if (z == NULL)
		return QK_FAIL_NOMEM(err);
	z->level = level == -1 ? QK_ZSTD_LEVEL_DEFAULT : level;
	*out = z;
	return QCOW_OK;
}

void qk_zstd_free(struct qk_zstd *z)
{
	if (z == NULL)
		return;
	(void)ZSTD_freeCCtx(z->compressor);
	(void)ZSTD_freeDCtx(z->decompressor);
	free(z);
}

static enum qcow_status prepare_compressor(struct qk_zstd *z, struct qcow_error *err)
{
	if (z->compressor != NULL)
		return QCOW_OK;
	z->compressor = ZSTD_createCCtx();
	if (z->compressor == NULL)
		return QK_FAIL_NOMEM(err);
	size_t rc = ZSTD_CCtx_setParameter(z->compressor, ZSTD_c_compressionLevel, z->level);
	if (ZSTD_isError(rc))
		return QK_FAIL(err, QCOW_E_BUG, "zstd refuses level %d: %s", z->level,
			ZSTD_getErrorName(rc));
	return QCOW_OK;
}

enum qcow_status qk_zstd_compress(
	struct qk_zstd *z, struct qk_span in, void *out, size_t *out_len, struct qcow_error *err)
{
	QK_TRY(prepare_compressor(z, err));
	size_t rc = ZSTD_compress2(z->compressor, out, in.n - 1, in.p, in.n);
	if (!ZSTD_isError(rc)) {
		*out_len = rc;
		return QCOW_OK;
	}
	if (ZSTD_getErrorCode(rc) == ZSTD_error_dstSize_tooSmall) {
		*out_len = 0;
		return QCOW_OK;
	}
	if (ZSTD_getErrorCode(rc) == ZSTD_error_memory_allocation)
		return QK_FAIL_NOMEM(err);
	return QK_FAIL(err, QCOW_E_BUG, "zstd fails to compress: %s", ZSTD_getErrorName(rc));
}

static enum qcow_status prepare_decompressor(struct qk_zstd *z, struct qcow_error *err)
{
	if (z->decompressor != NULL) {
		size_t rc = ZSTD_DCtx_reset(z->decompressor, ZSTD_reset_session_only);
		QK_ASSERT(Z1, !ZSTD_isError(rc));
		return QCOW_OK;
	}
	z->decompressor = ZSTD_createDCtx();
	if (z->decompressor == NULL)
		return QK_FAIL_NOMEM(err);
	size_t rc = ZSTD_DCtx_setParameter(z->decompressor, ZSTD_d_windowLogMax, MAX_WINDOW_LOG);
	QK_ASSERT(Z2, !ZSTD_isError(rc));
	return QCOW_OK;
}

/* Does a frame begin with these bytes: 28 b5 2f fd, or 50 to 5f 2a 4d 18, which is skipped? Fewer than four bytes
 * may: libzstd wants more then. */
static bool is_frame(const uint8_t *p, size_t n)
{
	static const uint8_t zstd[] = {0x28, 0xb5, 0x2f, 0xfd},
			     skipped[] = {0x50, 0x2a, 0x4d, 0x18};
	if (n < sizeof(zstd))
		return true;
	return memcmp(p, zstd, sizeof(zstd)) == 0 ||
	       ((p[0] & 0xf0) == skipped[0] && memcmp(p + 1, skipped + 1, 3) == 0);
}

static enum qcow_status refuse(size_t rc, size_t got, size_t want, struct qcow_error *err)
{
	if (!ZSTD_isError(rc))
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_COMPRESSED_STREAM,
			QCOW_NO_OFFSET, QCOW_NO_OFFSET,
			"the zstd frame of a compressed cluster ends after %zu of %zu bytes", got,
			want);
	if (ZSTD_getErrorCode(rc) == ZSTD_error_memory_allocation)
		return QK_FAIL_NOMEM(err);
	if (ZSTD_getErrorCode(rc) == ZSTD_error_frameParameter_windowTooLarge)
		return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_COMPRESSED_STREAM,
			QCOW_NO_OFFSET, QCOW_NO_OFFSET,
			"the zstd frame of a compressed cluster asks for a window over %u MiB",
			(1U << MAX_WINDOW_LOG) >> 20);
	return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_COMPRESSED_STREAM, QCOW_NO_OFFSET,
		QCOW_NO_OFFSET,
		"the zstd frame of a compressed cluster is damaged after %zu of %zu bytes: %s", got,
		want, ZSTD_getErrorName(rc));
}

enum qcow_status qk_zstd_decompress(
	struct qk_zstd *z, struct qk_span in, void *out, size_t out_len, struct qcow_error *err)
{
	QK_TRY(prepare_decompressor(z, err));
	ZSTD_inBuffer src = {in.p, in.n, 0};
	ZSTD_outBuffer dst = {out, out_len, 0};
	size_t rc = 0; /* 0: a frame has ended, or none has begun */

	while (dst.pos < dst.size) {
		size_t in_before = src.pos;
		size_t out_before = dst.pos;
		if (rc == 0 && !is_frame(in.p + in_before, in.n - in_before))
			return QK_FAIL_AT(err, QCOW_E_CORRUPT, QCOW_FINDING_COMPRESSED_STREAM,
				QCOW_NO_OFFSET, QCOW_NO_OFFSET,
				"no zstd frame begins after %zu of %zu bytes of a compressed "
				"cluster",
				dst.pos, dst.size);
		rc = ZSTD_decompressStream(z->decompressor, &dst, &src);
		/* A turn that moves nothing has no input left: the end came too early. */
		if (ZSTD_isError(rc) || (src.pos == in_before && dst.pos == out_before))
			return refuse(rc, dst.pos, dst.size, err);
	}
	return QCOW_OK;
}
