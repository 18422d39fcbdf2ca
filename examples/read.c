/* SPDX-License-Identifier: MIT */
/*
 * Write a range of a disk to standard output: read IMAGE [OFFSET [LENGTH]]
 *
 * Shows how to open an image, how to answer when it names a backing file, and how errors are told.
 *
 *     cc read.c $(pkg-config --cflags --libs qcowkit) -o read
 */
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qcowkit/qcowkit.h>

#define CHUNK_BYTES ((size_t)1 << 20)

/*
 * An image names files, and the name comes from whoever made the image. The library opens nothing by
 * itself: this is our policy. Only plain names in the folder of the image that names them, and only
 * with a recorded format.
 */
static enum qcow_status open_neighbour(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	char folder[4096], path[8192];

	(void)ctx;
	if (strpbrk(ref->name, "/:") || !ref->format || strlen(ref->from) >= sizeof(folder)) {
		err->status = QCOW_E_POLICY;
		snprintf(err->message, sizeof(err->message), "'%.200s' is not opened", ref->name);
		return QCOW_E_POLICY;
	}
	strncpy(folder, ref->from, sizeof(folder) - 1);
	folder[sizeof(folder) - 1] = '\0';
	snprintf(path, sizeof(path), "%s/%s", dirname(folder), ref->name);
	out->format = strcmp(ref->format, "raw") == 0 ? "raw" : "qcow2";
	return qcow_file_open(path, 0, &out->store, err);
}

static enum qcow_status copy_out(
	struct qcow_image *image, uint64_t off, uint64_t len, struct qcow_error *err)
{
	static char buf[CHUNK_BYTES];

	while (len > 0) {
		size_t n = len < sizeof(buf) ? (size_t)len : sizeof(buf);
		enum qcow_status status = qcow_pread(image, buf, n, off, err);

		if (status != QCOW_OK)
			return status;
		if (fwrite(buf, 1, n, stdout) != n) {
			perror("read: standard output");
			exit(1);
		}
		off += n;
		len -= n;
	}
	return QCOW_OK;
}

int main(int argc, char **argv)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store;
	struct qcow_image *image;
	enum qcow_status status;
	uint64_t off, len;

	if (argc < 2 || argc > 4) {
		fprintf(stderr, "usage: read IMAGE [OFFSET [LENGTH]]\n");
		return 2;
	}
	status = qcow_file_open(argv[1], 0, &store, &err);
	if (status == QCOW_OK) {
		options.resolve = open_neighbour;
		status = qcow_open(
			store, &options, &image, &err); /* the store is the image's now */
	}
	if (status != QCOW_OK) {
		fprintf(stderr, "read: %s: %s\n", qcow_status_text(status), err.message);
		return 1;
	}
	off = argc > 2 ? strtoull(argv[2], NULL, 0) : 0;
	len = qcow_size(image) - (off < qcow_size(image) ? off : qcow_size(image));
	if (argc > 3)
		len = strtoull(argv[3], NULL, 0);
	status = copy_out(image, off, len, &err);
	if (status != QCOW_OK)
		fprintf(stderr, "read: %s: %s\n", qcow_status_text(status), err.message);
	qcow_close(image);
	return status == QCOW_OK && fflush(stdout) == 0 ? 0 : 1;
}
