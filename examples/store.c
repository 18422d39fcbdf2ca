/* SPDX-License-Identifier: MIT */
/*
 * Read an image that is not in a file: store IMAGE
 *
 * Shows a store of one's own. This one is the whole image in memory; it counts what the library asks
 * for, and prints it after the first MiB of the disk was read.
 *
 *     cc store.c $(pkg-config --cflags --libs qcowkit) -o store
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qcowkit/qcowkit.h>

struct bytes {
	char *data;
	uint64_t len;
	uint64_t n_reads, n_bytes; /* one thread here; several would need atomics */
};

static enum qcow_status bytes_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct bytes *b = ctx;
	int i;

	(void)err;
	b->n_reads++;
	for (i = 0; i < n_iov; i++) { /* the library has checked the range */
		memcpy(iov[i].iov_base, b->data + off, iov[i].iov_len);
		off += iov[i].iov_len;
		b->n_bytes += iov[i].iov_len;
	}
	return QCOW_OK;
}

static enum qcow_status bytes_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	(void)err;
	*size_bytes = ((struct bytes *)ctx)->len;
	return QCOW_OK;
}

static void bytes_close(void *ctx)
{
	free(((struct bytes *)ctx)->data);
}

static const struct qcow_store_ops bytes_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "bytes",
	.preadv = bytes_preadv,
	.size = bytes_size,
	.close = bytes_close,
};

static int load(const char *path, struct bytes *b)
{
	FILE *f = fopen(path, "rb");
	long len = -1;

	if (f && fseek(f, 0, SEEK_END) == 0)
		len = ftell(f);
	if (len >= 0) {
		rewind(f);
		b->len = (uint64_t)len;
		b->data = malloc((size_t)len + 1);
		if (!b->data || fread(b->data, 1, (size_t)len, f) != (size_t)len)
			len = -1;
	}
	if (len < 0)
		perror(path);
	if (f)
		fclose(f);
	return len < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	static char first[1 << 20];
	struct bytes bytes = {0};
	struct qcow_store *store;
	struct qcow_image *image;
	enum qcow_status status;
	size_t n;

	if (argc != 2 || load(argv[1], &bytes) < 0)
		return 2;
	status = qcow_store_new(&bytes_ops, &bytes, &store, &err);
	if (status != QCOW_OK) { /* then the bytes are still ours */
		free(bytes.data);
		fprintf(stderr, "store: %s\n", err.message);
		return 1;
	}
	options.flags = QCOW_OPEN_NO_BACKING;
	status = qcow_open(store, &options, &image, &err);
	if (status != QCOW_OK) { /* the library has closed the store */
		fprintf(stderr, "store: %s\n", err.message);
		return 1;
	}
	n = qcow_size(image) < sizeof(first) ? (size_t)qcow_size(image) : sizeof(first);
	status = qcow_pread(image, first, n, 0, &err);
	if (status == QCOW_OK)
		printf("%zu bytes of the disk: %" PRIu64 " reads, %" PRIu64 " bytes of the store\n",
			n, bytes.n_reads, bytes.n_bytes);
	else
		fprintf(stderr, "store: %s\n", err.message);
	qcow_close(image);
	return status == QCOW_OK ? 0 : 1;
}
