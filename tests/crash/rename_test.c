/* SPDX-License-Identifier: MIT */
/* Every crash while a snapshot gets another name leaves it the old one or the new one, and all else as it was. */
#include <cm.h>

#include <host.h>
#include <qcowkit/manage.h>

#include "whole.h"

#define CREATE(options) "qemu-img create -q -f qcow2 -o " options " img 200k && "
#define SHARED                                                                                 \
	"qemu-io -c 'write -q -P 3 0 100k' img && qemu-img snapshot -c one img && qemu-io -c " \
	"'write -q -P 4 90k 8k' img && qemu-img snapshot -c two img && qemu-img snapshot -c "  \
	"three img && qemu-img snapshot -d one img"
#define PACKED	" && qemu-io -c 'write -q -c -P 3 128k 64k' img && qemu-img snapshot -c four img"
#define BITMAPS " && qemu-img bitmap --add -g 512 img on && qemu-io -c 'write -q -P 9 0 7k' img"

static enum qcow_status longer(struct qcow_image *image, struct qcow_error *err)
{
	static char name[256];
	memset(name, 'n', sizeof(name) - 1);
	return qcow_snapshot_rename(image, "two", QCOW_SNAPSHOT_NAME, name, err);
}

static enum qcow_status shorter(struct qcow_image *image, struct qcow_error *err)
{
	return qcow_snapshot_rename(image, "three", QCOW_SNAPSHOT_NAME, "3", err);
}

/* It can be done again. */
static const char *goes_on(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_snapshot_rename(image, "2", QCOW_SNAPSHOT_ID, "again", &err) != QCOW_OK)
		return "no other name";
	return qcow_pwrite(image, "w", 1, 95000, QCOW_IO_FUA, &err) == QCOW_OK ? NULL
									       : "the write failed";
}

#define ROW(name, setup, run)                               \
	{                                                   \
		name, setup, NULL, NULL, run, goes_on, 3, 0 \
	}

static const struct qkc_operation operations[] = {
	ROW("v2 512, longer", CREATE("compat=0.10,cluster_size=512") SHARED, longer),
	ROW("v2 4k, shorter", CREATE("compat=0.10,cluster_size=4k") SHARED, shorter),
	ROW("v3 512, bitmaps, longer", CREATE("cluster_size=512") SHARED BITMAPS, longer),
	ROW("v3 4k, compressed, longer", CREATE("cluster_size=4k") SHARED PACKED, longer),
	ROW("v3 64k, compressed, bitmaps, shorter",
		CREATE("cluster_size=64k") SHARED PACKED BITMAPS, shorter),
};

static void every_crash_leaves_the_old_name_or_the_new(void **state)
{
	(void)state;
	assert_int_equal(
		qkc_whole_explore_all(operations, sizeof(operations) / sizeof(operations[0]), 10),
		0);
}

static void every_call_may_fail(void **state)
{
	(void)state;
	assert_int_equal(
		qkc_whole_fail_all(operations, sizeof(operations) / sizeof(operations[0])), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_crash_leaves_the_old_name_or_the_new),
		cmocka_unit_test(every_call_may_fail),
	};
	qkt_need_program("qemu-io", "qemu-utils");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
