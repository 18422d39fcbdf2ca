/* SPDX-License-Identifier: MIT */
/*
 * Repair an image, and take it back where something is left: repair IMAGE UNDO
 *
 * UNDO is made: what the repair replaces is saved there first.
 *
 *     cc repair.c $(pkg-config --cflags --libs qcowkit) -o repair
 */
#include <inttypes.h>
#include <stdio.h>

#include <qcowkit/manage.h>

static void show(void *ctx, const struct qcow_repair_step *step)
{
	(void)ctx;
	if (step->host_off != QCOW_NO_OFFSET)
		printf("at %" PRIu64 ": %" PRIx64 " becomes %" PRIx64 "\n", step->host_off,
			step->was, step->now);
}

static enum qcow_status repair(
	struct qcow_store *store, struct qcow_store *undo, struct qcow_error *err)
{
	struct qcow_repair_options options = QCOW_REPAIR_OPTIONS_INIT;
	struct qcow_repair_result result;
	enum qcow_status status;

	options.undo = undo;
	options.on_step = show;
	status = qcow_repair(store, &options, &result, err);
	if (status == QCOW_OK)
		printf("%" PRIu64 " corruptions and %" PRIu64 " leaks repaired, %" PRIu64 " left\n",
			result.corruptions_fixed, result.leaks_fixed,
			result.after.corruptions + result.after.leaks);
	if (status == QCOW_OK && result.after.corruptions == 0)
		return QCOW_OK;
	return qcow_repair_undo(store, undo, err);
}

int main(int argc, char **argv)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL, *undo = NULL;
	unsigned make = QCOW_FILE_WRITE | QCOW_FILE_CREATE | QCOW_FILE_EXCL;
	enum qcow_status status;

	if (argc != 3)
		return 2;
	status = qcow_file_open(argv[1], QCOW_FILE_WRITE, &store, &err);
	if (status == QCOW_OK)
		status = qcow_file_open(argv[2], make, &undo, &err);
	if (status == QCOW_OK)
		status = repair(store, undo, &err);
	if (status != QCOW_OK)
		fprintf(stderr, "repair: %s: %s\n", argv[1], err.message);
	qcow_store_close(undo);
	qcow_store_close(store);
	return status == QCOW_OK ? 0 : 1;
}
