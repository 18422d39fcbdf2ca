/* SPDX-License-Identifier: MIT */
/*
 * Make a compressed image from a stream: build TARGET SIZE <disk
 *
 * Shows the builder (clusters are given front to back, the header is written last, so that nobody can
 * open a half-made image) and a codec.
 *
 *     cc build.c $(pkg-config --cflags --libs qcowkit) -o build
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qcowkit/qcowkit.h>

#define CLUSTER_BYTES ((size_t)65536)

struct job {
	struct qcow_store *store;
	struct qcow_builder *builder;
	struct qcow_codec *codec;
	char in[CLUSTER_BYTES], out[CLUSTER_BYTES];
};

/* `len` bytes of job->in go to `off`. */
static enum qcow_status add_plain(
	struct job *job, uint64_t off, uint64_t len, struct qcow_error *err)
{
	uint64_t host_off, run_bytes;
	enum qcow_status status = qcow_builder_reserve(
		job->builder, off, len, &host_off, &run_bytes, err);

	if (status != QCOW_OK)
		return status;
	return qcow_store_write(job->store, job->in, (size_t)run_bytes, host_off, err);
}

static enum qcow_status add_cluster(
	struct job *job, uint64_t off, uint64_t len, struct qcow_error *err)
{
	static const char zeros[CLUSTER_BYTES];
	size_t out_len;
	enum qcow_status status;

	if (memcmp(job->in, zeros, CLUSTER_BYTES) == 0)
		return QCOW_OK; /* what is never mentioned reads as zeros */
	status = qcow_codec_compress(job->codec, job->in, job->out, &out_len, err);
	if (status != QCOW_OK)
		return status;
	if (out_len == 0) /* it does not get smaller */
		return add_plain(job, off, len, err);
	return qcow_builder_compressed(job->builder, off, job->out, out_len, err);
}

static enum qcow_status add_stream(struct job *job, uint64_t size, struct qcow_error *err)
{
	uint64_t off;

	for (off = 0; off < size; off += CLUSTER_BYTES) {
		size_t want = size - off < CLUSTER_BYTES ? (size_t)(size - off) : CLUSTER_BYTES;
		size_t got = fread(job->in, 1, want, stdin);
		enum qcow_status status;

		memset(job->in + got, 0, CLUSTER_BYTES - got);
		status = add_cluster(job, off, want, err);
		if (status != QCOW_OK || got < want)
			return status;
	}
	return QCOW_OK;
}

static enum qcow_status build(
	struct job *job, const char *path, uint64_t size, struct qcow_error *err)
{
	struct qcow_create_options options = QCOW_CREATE_OPTIONS_INIT;
	enum qcow_status status;

	options.virtual_size = size;
	options.cluster_size = CLUSTER_BYTES;
	status = qcow_file_open(
		path, QCOW_FILE_WRITE | QCOW_FILE_CREATE | QCOW_FILE_EXCL, &job->store, err);
	if (status == QCOW_OK)
		status = qcow_codec_new(options.compression, CLUSTER_BYTES, -1, &job->codec, err);
	if (status == QCOW_OK)
		status = qcow_builder_new(job->store, NULL, &options, &job->builder, err);
	if (status == QCOW_OK)
		status = add_stream(job, size, err);
	if (status != QCOW_OK) {
		qcow_builder_abandon(job->builder);
		return status;
	}
	status = qcow_builder_finish(job->builder, err);
	return status == QCOW_OK ? qcow_store_flush(job->store, err) : status;
}

int main(int argc, char **argv)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	static struct job job;
	enum qcow_status status;

	if (argc != 3) {
		fprintf(stderr, "usage: build TARGET SIZE <disk\n");
		return 2;
	}
	status = build(&job, argv[1], strtoull(argv[2], NULL, 0), &err);
	if (status != QCOW_OK)
		fprintf(stderr, "build: %s: %s\n", qcow_status_text(status), err.message);
	qcow_codec_free(job.codec);
	qcow_store_close(job.store);
	return status == QCOW_OK ? 0 : 1;
}
