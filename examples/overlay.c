/* SPDX-License-Identifier: MIT */
/*
 * An overlay and what lies below it:
 *
 *     overlay flatten IMAGE             it holds everything itself from now on, and names no backing file
 *     overlay rename IMAGE NAME FORMAT  its backing file has another name
 *     overlay forget IMAGE              it gives up what it holds: its disk is that of its backing file
 *     overlay commit IMAGE              what it holds is written into its backing file, and it is emptied
 *
 * Shows calls of manage.h and ops.h on an image that is open for writing.
 *
 *     cc overlay.c $(pkg-config --cflags --libs qcowkit) -o overlay
 */
#include <stdio.h>
#include <string.h>

#include <qcowkit/manage.h>
#include <qcowkit/ops.h>
#include <qcowkit/qcowkit.h>

/* Our policy: what this user's images name is opened, by its path from the current folder. */
static enum qcow_status open_named(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	const char *what = (const char *)ctx;

	out->format = ref->format;
	/* a commit writes to the layer below */
	out->writable = strcmp(what, "commit") == 0 && ref->depth == 0;
	return qcow_file_open(ref->name, out->writable ? QCOW_FILE_WRITE : 0, &out->store, err);
}

static enum qcow_status flatten(struct qcow_image *image, struct qcow_error *err)
{
	struct qcow_rebase_options options = QCOW_REBASE_OPTIONS_INIT;
	struct qcow_rebase_result result;
	enum qcow_status status = qcow_rebase(image, &options, &result, err);

	if (status == QCOW_OK)
		printf("%llu bytes were copied\n", (unsigned long long)result.bytes_copied);
	return status;
}

static enum qcow_status rename_backing(
	struct qcow_image *image, const char *name, const char *format, struct qcow_error *err)
{
	struct qcow_backing_options options = QCOW_BACKING_OPTIONS_INIT;

	options.name = name;
	options.format = format;
	return qcow_set_backing(image, &options, err);
}

static enum qcow_status commit(struct qcow_image *image, struct qcow_error *err)
{
	struct qcow_commit_options options = QCOW_COMMIT_OPTIONS_INIT;
	struct qcow_commit_result result;
	enum qcow_status status = qcow_commit(image, qcow_backing(image), &options, &result, err);

	if (status == QCOW_OK)
		printf("%llu bytes were committed\n", (unsigned long long)result.bytes_copied);
	return status;
}

int main(int argc, char **argv)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store;
	struct qcow_image *image;
	enum qcow_status status;
	const char *what = argc > 1 ? argv[1] : "";

	if (argc != (strcmp(what, "rename") == 0 ? 5 : 3)) {
		fprintf(stderr,
			"usage: overlay flatten|forget|commit IMAGE | rename IMAGE NAME FORMAT\n");
		return 2;
	}
	options.flags = QCOW_OPEN_WRITE;
	options.resolve = open_named;
	options.resolve_ctx = argv[1];
	status = qcow_file_open(argv[2], QCOW_FILE_WRITE, &store, &err);
	if (status == QCOW_OK)
		status = qcow_open(store, &options, &image, &err);
	if (status != QCOW_OK) {
		fprintf(stderr, "overlay: %s\n", err.message);
		return 1;
	}
	if (strcmp(what, "flatten") == 0)
		status = flatten(image, &err);
	else if (strcmp(what, "rename") == 0)
		status = rename_backing(image, argv[3], argv[4], &err);
	else if (strcmp(what, "commit") == 0)
		status = commit(image, &err);
	else
		status = qcow_empty(image, &err);
	if (status == QCOW_OK)
		status = qcow_flush(image, &err);
	if (status != QCOW_OK)
		fprintf(stderr, "overlay: %s\n", err.message);
	qcow_close(image);
	return status == QCOW_OK ? 0 : 1;
}
