/* SPDX-License-Identifier: MIT */
/*
 * Try something on a disk, and take it back: rollback IMAGE
 *
 * Makes a snapshot, with a note in the place of a machine's state, overwrites the first bytes of the disk, goes back to the snapshot, and deletes it. Each step is
 * whole and durable when its call returns.
 *
 *     cc rollback.c $(pkg-config --cflags --libs qcowkit) -o rollback
 */
#include <stdio.h>
#include <string.h>

#include <qcowkit/manage.h>

static enum qcow_status try_and_take_back(struct qcow_image *image, struct qcow_error *err)
{
	struct qcow_snapshot_create_options options = QCOW_SNAPSHOT_CREATE_OPTIONS_INIT;
	const char *const names[] = {"tried"};
	char before[16], now[16];
	enum qcow_status status = qcow_pread(image, before, sizeof(before), 0, err);

	options.name = "before the trial";
	/* can it have a snapshot? Asked for the sentence: the call itself leaves the image as it was, too */
	if (status == QCOW_OK)
		status = qcow_snapshot_judge(
			image, QCOW_SNAPSHOT_CREATE, NULL, 0, QCOW_SNAPSHOT_ID, NULL, err);
	/* a snapshot keeps what lies behind the disk: a machine's state, or a note of ours */
	if (status == QCOW_OK)
		status = qcow_write_vm_state(image, "before the trial", sizeof(now), 0, err);
	if (status == QCOW_OK)
		status = qcow_snapshot_create(image, &options, err);
	if (status == QCOW_OK)
		status = qcow_pwrite(image, "something else..", sizeof(now), 0, 0, err);
	if (status == QCOW_OK)
		status = qcow_snapshot_rename(
			image, "before the trial", QCOW_SNAPSHOT_NAME, "tried", err);
	if (status == QCOW_OK)
		status = qcow_snapshot_apply(image, "tried", QCOW_SNAPSHOT_NAME, NULL, err);
	if (status == QCOW_OK)
		status = qcow_pread(image, now, sizeof(now), 0, err);
	if (status == QCOW_OK)
		printf("the disk is %s\n",
			memcmp(before, now, sizeof(now)) == 0 ? "as it was" : "not as it was");
	if (status == QCOW_OK)
		status = qcow_snapshot_delete(image, names, 1, QCOW_SNAPSHOT_NAME, NULL, err);
	return status;
}

int main(int argc, char **argv)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store;
	struct qcow_image *image = NULL;
	enum qcow_status status;

	if (argc != 2)
		return 2;
	options.flags = QCOW_OPEN_WRITE | QCOW_OPEN_NO_BACKING;
	status = qcow_file_open(argv[1], QCOW_FILE_WRITE, &store, &err);
	if (status == QCOW_OK)
		status = qcow_open(store, &options, &image, &err);
	if (status == QCOW_OK)
		status = try_and_take_back(image, &err);
	if (status != QCOW_OK)
		fprintf(stderr, "rollback: %s: %s\n", argv[1], err.message);
	qcow_close(image);
	return status != QCOW_OK;
}
