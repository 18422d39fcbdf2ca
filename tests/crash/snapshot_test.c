/* SPDX-License-Identifier: MIT */
/* Every crash while a snapshot is made, applied, deleted or gets another name leaves what was before it or what is after it, and
 * all else as it was. */

#include <string.h>

#include <qcowkit/manage.h>

#include "whole.h"

#define CREATE(options) "qemu-img create -q -f qcow2 -o " options " img 200k && "
#define SHARED                                                                                 \
	"qemu-io -c 'write -q -P 3 0 100k' img && qemu-img snapshot -c one img && qemu-io -c " \
	"'write -q -P 4 90k 8k' img && qemu-img snapshot -c two img && qemu-img snapshot -c "  \
	"three img && qemu-img snapshot -d one img"
#define PACKED	" && qemu-io -c 'write -q -c -P 3 128k 64k' img && qemu-img snapshot -c four img"
#define BITMAPS " && qemu-img bitmap --add -g 512 img on && qemu-io -c 'write -q -P 9 0 7k' img"

#define KEY    "--object secret,id=k,data=abc "
#define OPENED " --image-opts driver=qcow2,encrypt.key-secret=k,file.filename=img"
#define ENCRYPTED                                                                                \
	"qemu-img create -q " KEY "-f qcow2 -o encrypt.format=aes,encrypt.key-secret=k,"         \
	"cluster_size=4k img 200k && qemu-io " KEY "-c 'write -q -P 3 0 100k'" OPENED            \
	" && qemu-img snapshot " KEY "-c two" OPENED " && qemu-io " KEY "-c 'write -q -P 4 90k " \
	"8k'" OPENED " && qemu-img snapshot " KEY "-c three" OPENED

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

static enum qcow_status make(struct qcow_image *image, struct qcow_error *err)
{
	const struct qcow_snapshot_create_options o = {
		.struct_size = sizeof(o), .name = "new", .has_date = true};
	return qcow_snapshot_create(image, &o, err);
}

static enum qcow_status apply(struct qcow_image *image, struct qcow_error *err)
{
	return qcow_snapshot_apply(image, "three", QCOW_SNAPSHOT_NAME, NULL, err);
}

static enum qcow_status delete_all(struct qcow_image *image, struct qcow_error *err)
{
	static const char *const names[] = {"two", "three"};
	return qcow_snapshot_delete(image, names, 2, QCOW_SNAPSHOT_NAME, NULL, err);
}

/* It can be written. */
static const char *writes(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	return qcow_pwrite(image, "w", 1, 95000, QCOW_IO_FUA, &err) == QCOW_OK ? NULL
									       : "the write failed";
}

/* It can be done again. */
static const char *renames(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_snapshot_rename(image, "2", QCOW_SNAPSHOT_ID, "again", &err) != QCOW_OK)
		return "no other name";
	return writes(image);
}

#define RENAME(name, setup, run)                            \
	{                                                   \
		name, setup, NULL, NULL, run, renames, 3, 0 \
	}
#define ROWS(name, setup) ROWS_OPENED(name, setup, NULL)
#define ROWS_OPENED(name, setup, passphrase)                                             \
	{"make, " name, setup, NULL, passphrase, make, writes, 15, 0},                   \
		{"apply, " name, setup, NULL, passphrase, apply, writes, 15, QKC_MARKS}, \
	{                                                                                \
		"delete, " name, setup, NULL, passphrase, delete_all, writes, 15, 0      \
	}

static const struct qkc_operation operations[] = {
	RENAME("v2 512, longer", CREATE("compat=0.10,cluster_size=512") SHARED, longer),
	RENAME("v2 4k, shorter", CREATE("compat=0.10,cluster_size=4k") SHARED, shorter),
	RENAME("v3 512, bitmaps, longer", CREATE("cluster_size=512") SHARED BITMAPS, longer),
	RENAME("v3 4k, compressed, longer", CREATE("cluster_size=4k") SHARED PACKED, longer),
	RENAME("v3 64k, compressed, bitmaps, shorter",
		CREATE("cluster_size=64k") SHARED PACKED BITMAPS, shorter),
	ROWS("v2 512", CREATE("compat=0.10,cluster_size=512") SHARED),
	ROWS("v2 4k, compressed", CREATE("compat=0.10,cluster_size=4k") SHARED PACKED),
	ROWS("v2 64k", CREATE("compat=0.10") SHARED PACKED),
	ROWS("v3 512, bitmaps", CREATE("cluster_size=512") SHARED BITMAPS),
	ROWS("v3 4k, compressed, bitmaps", CREATE("cluster_size=4k") SHARED PACKED BITMAPS),
	ROWS("v3 64k, compressed, bitmaps", CREATE("cluster_size=64k") SHARED PACKED BITMAPS),
	ROWS_OPENED("encrypted 4k", ENCRYPTED, "abc"),
	ROWS("subclusters 16k", CREATE("cluster_size=16k,extended_l2=on") SHARED),
};

int main(void)
{
	return qkc_whole_main("every_crash_leaves_what_was_or_what_is_to_be", operations,
		sizeof(operations) / sizeof(operations[0]), 10);
}
