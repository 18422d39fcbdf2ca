/* SPDX-License-Identifier: MIT */
/*
 * The next increment of a backup: bitmaps IMAGE OLD NEW
 *
 * Bitmap OLD has recorded what was written since the last backup. In one step that no crash can cut in two it stops
 * recording and NEW begins; then what OLD says is printed: the ranges that this backup has to copy. Where there is no OLD
 * yet, NEW alone begins.
 *
 *     cc bitmaps.c $(pkg-config --cflags --libs qcowkit) -o bitmaps
 */
#include <inttypes.h>
#include <stdio.h>

#include <qcowkit/manage.h>
#include <qcowkit/qcowkit.h>

static enum qcow_status print_dirty(
	struct qcow_image *image, const char *name, struct qcow_error *err)
{
	struct qcow_bitmap_reader *reader = NULL;
	struct qcow_bitmap_extent extent;
	uint64_t off, size = qcow_size(image);
	uint32_t index;
	enum qcow_status status = qcow_bitmap_find(image, name, &index, err);
	if (status == QCOW_OK)
		status = qcow_bitmap_open(image, index, &reader, err);
	for (off = 0; status == QCOW_OK && off < size; off += extent.len) {
		status = qcow_bitmap_read(reader, off, size - off, &extent, err);
		if (status == QCOW_OK && extent.dirty)
			printf("%" PRIu64 " +%" PRIu64 "\n", extent.off, extent.len);
	}
	qcow_bitmap_close(reader);
	return status;
}

static enum qcow_status next_increment(struct qcow_image *image, const char *old_name,
	const char *new_name, struct qcow_error *err)
{
	struct qcow_bitmap_action actions[2] = {
		{QCOW_BITMAP_ADD, NULL, 0, NULL, NULL}, {QCOW_BITMAP_DISABLE, NULL, 0, NULL, NULL}};
	struct qcow_bitmap_edit_options options = QCOW_BITMAP_EDIT_OPTIONS_INIT;
	uint32_t index;
	enum qcow_status status = qcow_bitmap_find(image, old_name, &index, err);
	int has_old = status == QCOW_OK;
	if (!has_old && status != QCOW_E_NOENT)
		return status;
	actions[0].name = new_name;
	actions[1].name = old_name;
	status = qcow_bitmap_edit(image, actions, has_old ? 2 : 1, &options, NULL, err);
	return status == QCOW_OK && has_old ? print_dirty(image, old_name, err) : status;
}

int main(int argc, char **argv)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store;
	struct qcow_image *image = NULL;
	enum qcow_status status;

	if (argc != 4) {
		fprintf(stderr, "usage: bitmaps IMAGE OLD NEW\n");
		return 2;
	}
	/* bitmaps need no other file of the chain */
	options.flags = QCOW_OPEN_WRITE | QCOW_OPEN_NO_BACKING;
	status = qcow_file_open(argv[1], QCOW_FILE_WRITE, &store, &err);
	if (status == QCOW_OK)
		status = qcow_open(store, &options, &image, &err);
	if (status == QCOW_OK)
		status = next_increment(image, argv[2], argv[3], &err);
	if (status != QCOW_OK)
		fprintf(stderr, "%s: %s\n", argv[1], err.message);
	qcow_close(image);
	return status == QCOW_OK ? 0 : 1;
}
