/* SPDX-License-Identifier: MIT */
/* Every crash while bitmaps are changed leaves all of them as they were, or all as they should be. */

#include <qcowkit/manage.h>

#include "whole.h"

#define CREATE	     "qemu-img create -q -f qcow2 "
#define WRITE(where) " && qemu-io -c 'write -q -P 3 " where "' img"
#define BITMAPS                                                                                  \
	WRITE("0 100k")                                                                          \
	" && qemu-img bitmap --add -g 512 img a && qemu-img bitmap --add -g 4k img b" WRITE(     \
		"20k 30k") " && qemu-img bitmap --disable img b && qemu-img bitmap --add -g 1k " \
			   "img c" WRITE("150k 7k")
#define SHARED " && qemu-img snapshot -c one img" WRITE("40k 20k")
#define PACKED "head -c 200k /dev/urandom >back.raw && qemu-img convert -c -O qcow2 "
/* What comes behind this name in the header lies past sector 0. */
#define DEEP "././././././././././././././././././././././././././././././././"

static enum qcow_status edit(struct qcow_image *image, const struct qcow_bitmap_action *actions,
	size_t n, struct qcow_error *err)
{
	return qcow_bitmap_edit(image, actions, n, NULL, NULL, err);
}

/* The extension comes. */
static enum qcow_status first(struct qcow_image *image, struct qcow_error *err)
{
	static const struct qcow_bitmap_action actions[] = {
		{.act = QCOW_BITMAP_ADD, .name = "first", .granularity_bits = 9}};
	return edit(image, actions, 1, err);
}

/* The extension goes. */
static enum qcow_status none(struct qcow_image *image, struct qcow_error *err)
{
	static const struct qcow_bitmap_action actions[] = {{.act = QCOW_BITMAP_REMOVE_ALL}};
	return edit(image, actions, 1, err);
}

static enum qcow_status everything(struct qcow_image *image, struct qcow_error *err)
{
	static const struct qcow_bitmap_action actions[] = {
		{.act = QCOW_BITMAP_ADD, .name = "new", .granularity_bits = 10},
		{.act = QCOW_BITMAP_MERGE, .name = "new", .source = "a"},
		{.act = QCOW_BITMAP_MERGE, .name = "new", .source = "b"},
		{.act = QCOW_BITMAP_MERGE, .name = "b", .source = "c"},
		{.act = QCOW_BITMAP_ENABLE, .name = "b"},
		{.act = QCOW_BITMAP_CLEAR, .name = "a"},
		{.act = QCOW_BITMAP_DISABLE, .name = "a"},
		{.act = QCOW_BITMAP_REMOVE, .name = "c"},
	};
	return edit(image, actions, sizeof(actions) / sizeof(actions[0]), err);
}

/* A bitmap of the same name can be made anew, and no cluster of the old ones is in the way. */
static const char *goes_on(struct qcow_image *image)
{
	static const struct qcow_bitmap_action actions[] = {
		{.act = QCOW_BITMAP_REMOVE_ALL}, {.act = QCOW_BITMAP_ADD, .name = "a"}};
	struct qcow_error err = QCOW_ERROR_INIT;
	if (edit(image, actions, 2, &err) != QCOW_OK)
		return "bitmaps cannot be made anew";
	if (qcow_pwrite(image, "y", 1, 1000, QCOW_IO_FUA, &err) != QCOW_OK)
		return "the write failed";
	return NULL;
}

static const struct qkc_operation operations[] = {
	{"first 512", CREATE "-o cluster_size=512 img 200k" WRITE("0 9k"), NULL, NULL, first,
		goes_on, 9, 0},
	{"first 4k", CREATE "-o cluster_size=4k img 200k" WRITE("0 9k"), NULL, NULL, first, goes_on,
		9, 0},
	{"first 64k over sector 0",
		"truncate -s 200k back.raw && " CREATE "-b " DEEP DEEP DEEP DEEP
		"back.raw -F raw -o cluster_size=64k img 200k",
		"back.raw", NULL, first, goes_on, 9, 0},
	{"none 512", CREATE "-o cluster_size=512 img 200k" BITMAPS, NULL, NULL, none, goes_on, 3,
		0},
	{"none 64k", CREATE "-o cluster_size=64k img 200k" BITMAPS, NULL, NULL, none, goes_on, 3,
		0},
	{"everything 512", CREATE "-o cluster_size=512 img 200k" BITMAPS, NULL, NULL, everything,
		goes_on, 60, 0},
	{"everything 4k snapshots", CREATE "-o cluster_size=4k img 200k" SHARED BITMAPS, NULL, NULL,
		everything, goes_on, 60, 0},
	{"everything 64k", CREATE "-o cluster_size=64k img 200k" BITMAPS, NULL, NULL, everything,
		goes_on, 60, 0},
	{"everything refcount 1", CREATE "-o cluster_size=4k,refcount_bits=1 img 200k" BITMAPS,
		NULL, NULL, everything, goes_on, 60, 0},
	{"everything packed", PACKED "-o cluster_size=4k back.raw img" BITMAPS, NULL, NULL,
		everything, goes_on, 60, 0},
	{"everything device", CREATE "-o cluster_size=4k img 200k" BITMAPS " && truncate -s 2M img",
		NULL, NULL, everything, goes_on, 60, QKC_ON_DEVICE},
};

int main(void)
{
	return qkc_whole_main("every_crash_leaves_all_bitmaps_or_none_changed", operations,
		sizeof(operations) / sizeof(operations[0]), 8);
}
