/* SPDX-License-Identifier: MIT */
/*
 * List the internal snapshots of images, and how much of each disk is stored: snapshots IMAGE...
 *
 * Shows that an image is opened without its backing files where only its own tables are wanted, and
 * that a snapshot is opened as a read-only disk of its own.
 *
 *     cc snapshots.c $(pkg-config --cflags --libs qcowkit) -o snapshots
 */
#include <inttypes.h>
#include <stdio.h>

#include <qcowkit/manage.h>
#include <qcowkit/qcowkit.h>

static enum qcow_status open_layer(const char *path, const char *snapshot_id,
	struct qcow_image **image, struct qcow_error *err)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store;
	enum qcow_status status = qcow_file_open(path, 0, &store, err);

	if (status != QCOW_OK)
		return status;
	options.flags = QCOW_OPEN_NO_BACKING | QCOW_OPEN_NO_DATA_FILE;
	options.snapshot = snapshot_id;
	options.snapshot_by_id = snapshot_id != NULL;
	return qcow_open(store, &options, image, err);
}

/* The bytes of the disk for which this layer has an answer of its own. */
static enum qcow_status count_stored(
	struct qcow_image *image, uint64_t *bytes, struct qcow_error *err)
{
	uint64_t size = qcow_size(image), off = 0;

	*bytes = 0;
	while (off < size) {
		struct qcow_extent extent;
		enum qcow_status status = qcow_map(image, off, size - off, 0, &extent, err);

		if (status != QCOW_OK)
			return status;
		if (extent.flags & QCOW_EXTENT_DATA)
			*bytes += extent.len;
		off += extent.len;
	}
	return QCOW_OK;
}

/* How many of the first bytes of a machine's state, where it was saved with one, are there. */
static enum qcow_status look_at_state(
	struct qcow_image *view, uint64_t size, struct qcow_error *err)
{
	unsigned char first[512];
	size_t n = size < sizeof(first) ? (size_t)size : sizeof(first), i;
	enum qcow_status status = qcow_read_vm_state(view, first, n, 0, err);

	if (status != QCOW_OK)
		return status;
	for (i = 0; i < n && first[i] == 0; i++)
		;
	printf(", and a machine's state of %" PRIu64 " bytes, which begins with %s", size,
		i == n ? "zeros" : "data");
	return QCOW_OK;
}

/* Names come from the image: control bytes must not reach a terminal. */
static void print_name(const char *name)
{
	for (; *name; name++)
		putchar((unsigned char)*name < ' ' || *name == 127 ? '?' : *name);
}

static enum qcow_status list(const char *path, struct qcow_image *image, struct qcow_error *err)
{
	struct qcow_info info;
	uint32_t i;

	qcow_get_info(image, &info);
	printf("%s: %" PRIu32 " snapshots\n", path, info.n_snapshots);
	for (i = 0; i < info.n_snapshots; i++) {
		struct qcow_snapshot snapshot;
		struct qcow_image *view;
		uint64_t stored = 0;
		enum qcow_status status = qcow_get_snapshot(image, i, &snapshot, err);

		if (status == QCOW_OK)
			status = open_layer(path, snapshot.id, &view, err);
		if (status != QCOW_OK)
			return status;
		status = count_stored(view, &stored, err);
		if (status == QCOW_OK) {
			printf("%s ", snapshot.id);
			print_name(snapshot.name);
			printf(": a disk of %" PRIu64 " bytes, %" PRIu64 " stored",
				snapshot.disk_size, stored);
		}
		if (status == QCOW_OK && snapshot.vm_state_size != 0)
			status = look_at_state(view, snapshot.vm_state_size, err);
		if (status == QCOW_OK)
			printf("\n");
		qcow_close(view);
		if (status != QCOW_OK)
			return status;
	}
	return QCOW_OK;
}

int main(int argc, char **argv)
{
	int i, bad = 0;

	for (i = 1; i < argc; i++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_image *image = NULL;
		enum qcow_status status = open_layer(argv[i], NULL, &image, &err);

		if (status == QCOW_OK)
			status = list(argv[i], image, &err);
		if (status != QCOW_OK) {
			fprintf(stderr, "snapshots: %s: %s\n", argv[i], err.message);
			bad = 1;
		}
		qcow_close(image);
	}
	return bad;
}
