/* SPDX-License-Identifier: MIT */
/*
 * The codecs, judged by other implementations: zlib and libzstd used directly, and golden streams written by
 * hand. That QEMU reads what we compress, and we what QEMU compresses, is tested with whole images.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <zlib.h>
#include <zstd.h>

#include <qcowkit/qcowkit.h>

#define MAX_CLUSTER (2U << 20)
#define MAX_STREAM  (5U << 20)

struct buffers {
	uint8_t in[MAX_CLUSTER * 2];
	uint8_t out[MAX_CLUSTER + 64];
	uint8_t stream[MAX_STREAM];
};
static struct buffers *b;

static int allocate(void **state)
{
	(void)state;
	b = calloc(1, sizeof(*b));
	return b == NULL;
}

static int release(void **state)
{
	(void)state;
	free(b);
	return 0;
}

/* Words from a small alphabet: compressible, with matches at all distances. */
static void fill_text(uint8_t *p, size_t n, uint32_t seed)
{
	for (size_t i = 0; i < n; i++) {
		seed = seed * 1664525U + 1013904223U;
		p[i] = (uint8_t)((seed >> 28) < 9 || i < 4096 ? 'a' + (seed >> 29)
							      : p[i - (seed >> 20)]);
	}
}

static void fill_noise(uint8_t *p, size_t n)
{
	uint64_t x = 88172645463325252ULL;

	for (size_t i = 0; i < n; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p[i] = (uint8_t)(x >> 32);
	}
}

static struct qcow_codec *codec_for(enum qcow_compression method, size_t cluster, int level)
{
	struct qcow_codec *codec = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;

	if (qcow_codec_new(method, cluster, level, &codec, &err) != QCOW_OK)
		fail_msg("%s", err.message);
	return codec;
}

static size_t deflate_directly(int window_bits, const uint8_t *in, size_t n, uint8_t *out)
{
	z_stream z = {0};

	assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, window_bits, 9, Z_DEFAULT_STRATEGY), Z_OK);
	z.next_in = (Bytef *)(uintptr_t)in;
	z.avail_in = (uInt)n;
	z.next_out = out;
	z.avail_out = MAX_STREAM;
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	size_t len = z.total_out;
	(void)deflateEnd(&z);
	return len;
}

static size_t inflate_directly(const uint8_t *in, size_t n, uint8_t *out, size_t room)
{
	z_stream z = {0};

	/* the window that QEMU asks for */
	assert_int_equal(inflateInit2(&z, -12), Z_OK);
	z.next_in = (Bytef *)(uintptr_t)in;
	z.avail_in = (uInt)n;
	z.next_out = out;
	z.avail_out = (uInt)room;
	assert_int_equal(inflate(&z, Z_FINISH), Z_STREAM_END);
	size_t len = z.total_out;
	(void)inflateEnd(&z);
	return len;
}

static void assert_corrupt(struct qcow_codec *codec, size_t len, const char *words)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	assert_int_equal(
		qcow_codec_decompress(codec, b->stream, len, b->out, &err), QCOW_E_CORRUPT);
	assert_int_equal(err.status, QCOW_E_CORRUPT);
	assert_int_equal(err.finding, QCOW_FINDING_COMPRESSED_STREAM);
	if (strstr(err.message, words) == NULL)
		fail_msg("'%s' is not in '%s'", words, err.message);
}

static void assert_decodes(struct qcow_codec *codec, size_t stream_len, size_t cluster)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	memset(b->out, 0xee, cluster + 64);
	if (qcow_codec_decompress(codec, b->stream, stream_len, b->out, &err) != QCOW_OK)
		fail_msg("%s", err.message);
	assert_memory_equal(b->out, b->in, cluster);
	for (size_t i = 0; i < 64; i++)
		assert_int_equal(b->out[cluster + i], 0xee);
}

static void zlib_reads_our_deflate_at_every_cluster_size_and_level(void **state)
{
	(void)state;
	for (size_t cluster = 512; cluster <= MAX_CLUSTER; cluster *= 2) {
		fill_text(b->in, cluster, (uint32_t)cluster);
		for (int level = -1; level <= 12; level += cluster > 65536 ? 13 : 1) {
			if (level == 0)
				continue;
			struct qcow_codec *codec = codec_for(QCOW_COMPRESSION_ZLIB, cluster, level);
			size_t len = 0;
			assert_int_equal(
				qcow_codec_compress(codec, b->in, b->stream, &len, NULL), QCOW_OK);
			assert_in_range(len, 1, cluster - 1);
			assert_int_equal(
				inflate_directly(b->stream, len, b->out, cluster), cluster);
			assert_memory_equal(b->out, b->in, cluster);
			qcow_codec_free(codec);
		}
	}
}

static void libzstd_reads_our_zstd_at_every_cluster_size_and_level(void **state)
{
	(void)state;
	for (size_t cluster = 512; cluster <= MAX_CLUSTER; cluster *= 2) {
		fill_text(b->in, cluster, (uint32_t)cluster + 1);
		for (int level = -1; level <= 22; level += cluster > 65536 ? 23 : 1) {
			if (level == 0)
				continue;
			struct qcow_codec *codec = codec_for(QCOW_COMPRESSION_ZSTD, cluster, level);
			size_t len = 0;
			assert_int_equal(
				qcow_codec_compress(codec, b->in, b->stream, &len, NULL), QCOW_OK);
			assert_in_range(len, 1, cluster - 1);
			assert_int_equal(ZSTD_decompress(b->out, cluster, b->stream, len), cluster);
			assert_memory_equal(b->out, b->in, cluster);
			qcow_codec_free(codec);
		}
	}
}

static void deflate_of_every_window_is_read(void **state)
{
	(void)state;
	for (size_t cluster = 512; cluster <= MAX_CLUSTER; cluster *= 4) {
		struct qcow_codec *codec = codec_for(QCOW_COMPRESSION_ZLIB, cluster, -1);
		fill_text(b->in, cluster, 7);
		for (int window = 9; window <= 15; window++)
			assert_decodes(codec, deflate_directly(-window, b->in, cluster, b->stream),
				cluster);
		qcow_codec_free(codec);
	}
}

static void trailing_bytes_are_ignored(void **state)
{
	(void)state;
	struct qcow_codec *zlib = codec_for(QCOW_COMPRESSION_ZLIB, 65536, -1);
	struct qcow_codec *zstd = codec_for(QCOW_COMPRESSION_ZSTD, 65536, -1);

	fill_text(b->in, 65536, 3);
	size_t len = deflate_directly(-12, b->in, 65536, b->stream);
	fill_noise(b->stream + len, 511);
	assert_decodes(zlib, len + 511, 65536);
	len = ZSTD_compress(b->stream, MAX_STREAM, b->in, 65536, 3);
	fill_noise(b->stream + len, 511);
	assert_decodes(zstd, len + 511, 65536);
	qcow_codec_free(zlib);
	qcow_codec_free(zstd);
}

static void decoding_stops_after_a_cluster(void **state)
{
	(void)state;
	struct qcow_codec *zlib = codec_for(QCOW_COMPRESSION_ZLIB, 65536, -1);
	struct qcow_codec *zstd = codec_for(QCOW_COMPRESSION_ZSTD, 65536, -1);

	fill_text(b->in, MAX_CLUSTER, 4);
	assert_decodes(zlib, deflate_directly(-15, b->in, 65537, b->stream), 65536);
	assert_decodes(zlib, deflate_directly(-15, b->in, MAX_CLUSTER, b->stream), 65536);
	assert_decodes(zstd, ZSTD_compress(b->stream, MAX_STREAM, b->in, 65537, 3), 65536);
	assert_decodes(zstd, ZSTD_compress(b->stream, MAX_STREAM, b->in, MAX_CLUSTER, 3), 65536);
	qcow_codec_free(zlib);
	qcow_codec_free(zstd);
}

/* QEMU stops when the cluster is full: an end that is missing or damaged is never seen. */
static void deflate_without_an_end_is_read(void **state)
{
	(void)state;
	struct qcow_codec *codec = codec_for(QCOW_COMPRESSION_ZLIB, 4096, -1);

	fill_noise(b->in, 4096);
	/* one stored block that is not the last: header 0, LEN, NLEN, data */
	const uint8_t head[5] = {0, 0x00, 0x10, 0xff, 0xef};
	memcpy(b->stream, head, 5);
	memcpy(b->stream + 5, b->in, 4096);
	assert_decodes(codec, 5 + 4096, 4096);
	memset(b->stream + 5 + 4096, 0xff, 600); /* then a block of the reserved type */
	assert_decodes(codec, 5 + 4096 + 600, 4096);
	assert_corrupt(codec, 5 + 4095, "cut short after 4095 of 4096 bytes");
	qcow_codec_free(codec);
}

static void several_zstd_frames_make_a_cluster(void **state)
{
	(void)state;
	struct qcow_codec *codec = codec_for(QCOW_COMPRESSION_ZSTD, 65536, -1);

	fill_text(b->in, 65536, 5);
	size_t len = ZSTD_compress(b->stream, MAX_STREAM, b->in, 20000, 3);
	len += ZSTD_compress(b->stream + len, MAX_STREAM - len, b->in + 20000, 45536, 3);
	assert_decodes(codec, len, 65536);
	assert_corrupt(codec, len - 1, "ends after");
	qcow_codec_free(codec);
}

/* libzstd may know them, and takes 64 MiB for this one. */
static void frames_of_formats_before_the_rfc_are_refused(void **state)
{
	(void)state;
	static const uint8_t v05[] = {0x25, 0xb5, 0x2f, 0xfd, 0x0f},
			     skippable[] = {0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3};
	struct qcow_codec *codec = codec_for(QCOW_COMPRESSION_ZSTD, 65536, -1);

	memcpy(b->stream, v05, sizeof(v05));
	assert_corrupt(codec, sizeof(v05), "no zstd frame begins after 0 of 65536");
	fill_text(b->in, 65536, 5);
	size_t len = ZSTD_compress(b->stream, MAX_STREAM, b->in, 20000, 3);
	memcpy(b->stream + len, v05, sizeof(v05));
	assert_corrupt(codec, len + sizeof(v05), "no zstd frame begins after 20000 of 65536");
	/* what the RFC lets a decoder skip is skipped, before a frame and between two */
	memcpy(b->stream + len, skippable, sizeof(skippable));
	len += sizeof(skippable);
	len += ZSTD_compress(b->stream + len, MAX_STREAM - len, b->in + 20000, 45536, 3);
	assert_decodes(codec, len, 65536);
	qcow_codec_free(codec);
}

/* A frame whose size is not stated, as streaming encoders write. */
static size_t stream_zstd(int window_log, size_t n)
{
	ZSTD_CCtx *c = ZSTD_createCCtx();
	ZSTD_inBuffer in = {b->in, n, 0};
	ZSTD_outBuffer out = {b->stream, MAX_STREAM, 0};

	assert_non_null(c);
	(void)ZSTD_CCtx_setParameter(c, ZSTD_c_windowLog, window_log);
	(void)ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, 0);
	while (in.pos < in.size)
		assert_false(ZSTD_isError(ZSTD_compressStream2(c, &out, &in, ZSTD_e_continue)));
	while (ZSTD_compressStream2(c, &out, &in, ZSTD_e_end) != 0)
		;
	(void)ZSTD_freeCCtx(c);
	return out.pos;
}

static void zstd_windows_are_capped_at_8_mib(void **state)
{
	(void)state;
	struct qcow_codec *codec = codec_for(QCOW_COMPRESSION_ZSTD, 65536, -1);

	fill_text(b->in, 65536, 6);
	assert_decodes(codec, stream_zstd(23, 65536), 65536);
	assert_corrupt(codec, stream_zstd(24, 65536), "window over 8 MiB");
	assert_decodes(codec, stream_zstd(17, 65536), 65536); /* and the context goes on */
	qcow_codec_free(codec);
}

static void content_short_of_a_cluster_is_corrupt(void **state)
{
	(void)state;
	struct qcow_codec *zlib = codec_for(QCOW_COMPRESSION_ZLIB, 65536, -1);
	struct qcow_codec *zstd = codec_for(QCOW_COMPRESSION_ZSTD, 65536, -1);

	fill_text(b->in, 65536, 8);
	assert_corrupt(zlib, deflate_directly(-12, b->in, 65535, b->stream),
		"ends after 65535 of 65536 bytes");
	assert_corrupt(zstd, ZSTD_compress(b->stream, MAX_STREAM, b->in, 65535, 3),
		"ends after 65535 of 65536 bytes");
	assert_corrupt(zlib, 0, "after 0 of");
	assert_corrupt(zstd, 0, "after 0 of");
	qcow_codec_free(zlib);
	qcow_codec_free(zstd);
}

static void noise_is_corrupt_and_leaves_the_context_usable(void **state)
{
	(void)state;
	for (int m = 0; m < 2; m++) {
		enum qcow_compression method = m == 0 ? QCOW_COMPRESSION_ZLIB
						      : QCOW_COMPRESSION_ZSTD;
		struct qcow_codec *codec = codec_for(method, 65536, -1);
		fill_text(b->in, 65536, 9);
		for (size_t at = 0; at < 40; at++) {
			size_t len = 0;
			assert_int_equal(
				qcow_codec_compress(codec, b->in, b->stream, &len, NULL), QCOW_OK);
			assert_decodes(codec, len, 65536);
			memset(b->stream + at * len / 40, 0xff, len / 40);
			struct qcow_error err = QCOW_ERROR_INIT;
			enum qcow_status st = qcow_codec_decompress(
				codec, b->stream, len, b->out, &err);
			/* neither format protects its content: damage may decode to other bytes */
			assert_true(st == QCOW_E_CORRUPT || memcmp(b->out, b->in, 65536) != 0);
			assert_true(st == QCOW_OK || err.finding == QCOW_FINDING_COMPRESSED_STREAM);
		}
		memset(b->stream, 0xff, 4096);
		assert_corrupt(codec, 4096,
			m == 0 ? "damaged after 0 of 65536 bytes"
			       : "no zstd frame begins after 0 of 65536 bytes");
		qcow_codec_free(codec);
	}
}

static void noise_does_not_compress(void **state)
{
	(void)state;
	for (int m = 0; m < 2; m++) {
		enum qcow_compression method = m == 0 ? QCOW_COMPRESSION_ZLIB
						      : QCOW_COMPRESSION_ZSTD;
		for (size_t cluster = 512; cluster <= MAX_CLUSTER; cluster *= 8) {
			struct qcow_codec *codec = codec_for(method, cluster, -1);
			size_t len = 1;
			fill_noise(b->in, cluster);
			memset(b->stream, 0xee, cluster + 16);
			assert_int_equal(
				qcow_codec_compress(codec, b->in, b->stream, &len, NULL), QCOW_OK);
			assert_int_equal(len, 0);
			assert_int_equal(b->stream[cluster - 1], 0xee);
			qcow_codec_free(codec);
		}
	}
}

static void wrong_arguments_are_named(void **state)
{
	(void)state;
	struct qcow_codec *codec = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;

	assert_int_equal(
		qcow_codec_new(QCOW_COMPRESSION_ZLIB, 1000, -1, &codec, &err), QCOW_E_INVAL);
	assert_non_null(strstr(err.message, "cluster size 1000"));
	assert_int_equal(
		qcow_codec_new(QCOW_COMPRESSION_ZLIB, 4U << 20, -1, &codec, &err), QCOW_E_INVAL);
	assert_int_equal(
		qcow_codec_new(QCOW_COMPRESSION_ZLIB, 65536, 13, &codec, &err), QCOW_E_INVAL);
	assert_non_null(strstr(err.message, "level 13"));
	assert_int_equal(
		qcow_codec_new(QCOW_COMPRESSION_ZSTD, 65536, 23, &codec, &err), QCOW_E_INVAL);
	assert_int_equal(
		qcow_codec_new((enum qcow_compression)2, 65536, -1, &codec, &err), QCOW_E_INVAL);
	assert_non_null(strstr(err.message, "type 2"));
	assert_null(codec);
	qcow_codec_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(zlib_reads_our_deflate_at_every_cluster_size_and_level),
		cmocka_unit_test(libzstd_reads_our_zstd_at_every_cluster_size_and_level),
		cmocka_unit_test(deflate_of_every_window_is_read),
		cmocka_unit_test(trailing_bytes_are_ignored),
		cmocka_unit_test(decoding_stops_after_a_cluster),
		cmocka_unit_test(deflate_without_an_end_is_read),
		cmocka_unit_test(several_zstd_frames_make_a_cluster),
		cmocka_unit_test(frames_of_formats_before_the_rfc_are_refused),
		cmocka_unit_test(zstd_windows_are_capped_at_8_mib),
		cmocka_unit_test(content_short_of_a_cluster_is_corrupt),
		cmocka_unit_test(noise_is_corrupt_and_leaves_the_context_usable),
		cmocka_unit_test(noise_does_not_compress),
		cmocka_unit_test(wrong_arguments_are_named),
	};
	return cmocka_run_group_tests(tests, allocate, release);
}
