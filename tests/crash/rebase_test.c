/* SPDX-License-Identifier: MIT */
/* Every crash while an overlay is put on another backing file, or is emptied into one that holds the same, leaves a disk
 * that reads the same and names the old file or the new one. */

#include <host.h>
#include <qcowkit/manage.h>
#include <qcowkit/ops.h>

#include "whole.h"

#define SIZE "100k"
#define FILES                                           \
	"head -c 60k /dev/urandom >back.raw && "        \
	"(head -c 20k back.raw; head -c 20k /dev/zero;" \
	" head -c 30k /dev/urandom) >other.raw && "
#define OVERLAY(options) \
	"qemu-img create -q -f qcow2 -b back.raw -F raw -o " options " img " SIZE " && "
#define WRITTEN \
	"qemu-io -c 'write -q -P 7 10k 5k' -c 'write -q -z 18k 3k' -c 'write -q -P 9 50k 30k' img"
#define PACKED " -c 'write -q -c -P 3 0 4k' -c 'write -q -c -P 4 24k 4k'"
#define SHARED                                                                                   \
	" && qemu-img snapshot -c one img && qemu-io -c 'write -q -P 4 12k 9k' img && qemu-img " \
	"snapshot -c two img"
/* Copying marks what it copies; one granule is marked before, so that the bits stay the same. */
#define BITMAPS \
	"qemu-img bitmap --add -g 128k img on && qemu-img bitmap --add --disable img off && "
/* what it holds is what back.raw holds */
#define COMMITTED "head -c " SIZE " /dev/urandom >back.raw && "
#define HELD(how) "qemu-io -c 'write -q " how "-s back.raw 0 " SIZE "' img"

static enum qcow_status rebase(
	struct qcow_image *image, const char *name, bool compress, struct qcow_error *err)
{
	struct qcow_rebase_options o = QCOW_REBASE_OPTIONS_INIT;
	struct qcow_rebase_result result;
	struct qcow_open_options raw = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	raw.format = "raw";
	o.n_workers = 1;
	o.compress = compress;
	if (name != NULL) {
		enum qcow_status status = qcow_file_open(qkt_path(name), 0, &store, err);
		if (status == QCOW_OK)
			status = qcow_open(store, &raw, &o.backing, err);
		if (status != QCOW_OK)
			return status;
		o.backing_name = name;
		o.backing_format = "raw";
	}
	enum qcow_status status = qcow_rebase(image, &o, &result, err);
	qcow_close(o.backing);
	return status;
}

static enum qcow_status to_other(struct qcow_image *image, struct qcow_error *err)
{
	return rebase(image, "other.raw", false, err);
}

static enum qcow_status to_other_packed(struct qcow_image *image, struct qcow_error *err)
{
	return rebase(image, "other.raw", true, err);
}

static enum qcow_status to_none(struct qcow_image *image, struct qcow_error *err)
{
	return rebase(image, NULL, false, err);
}

static enum qcow_status rename_below(struct qcow_image *image, struct qcow_error *err)
{
	struct qcow_backing_options o = QCOW_BACKING_OPTIONS_INIT;
	o.name = "/a/folder/that/has/a/rather/long/name/so/that/the/header/grows/back.raw";
	o.format = "raw";
	return qcow_set_backing(image, &o, err);
}

/* It can be written. */
static const char *writes(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	return qcow_pwrite(image, "w", 1, 30000, QCOW_IO_FUA, &err) == QCOW_OK ? NULL
									       : "the write failed";
}

#define ROW(name, setup, run, min)                                 \
	{                                                          \
		name, setup, "back.raw", NULL, run, writes, min, 0 \
	}

static const struct qkc_operation operations[] = {
	ROW("rebase v2 512", FILES OVERLAY("compat=0.10,cluster_size=512") WRITTEN SHARED, to_other,
		140),
	ROW("rebase v3 4k, snapshots, bitmaps",
		FILES OVERLAY("cluster_size=4k") BITMAPS WRITTEN PACKED SHARED, to_other, 120),
	ROW("rebase v3 64k, bitmaps", FILES OVERLAY("cluster_size=64k") BITMAPS WRITTEN, to_other,
		4),
	ROW("rebase extended 16k", FILES OVERLAY("cluster_size=16k,extended_l2=on") WRITTEN SHARED,
		to_other, 70),
	ROW("rebase compressed 4k", FILES OVERLAY("cluster_size=4k") WRITTEN SHARED,
		to_other_packed, 250),
	ROW("rebase to none v2 4k", FILES OVERLAY("compat=0.10,cluster_size=4k") WRITTEN SHARED,
		to_none, 120),
	ROW("rebase to none v3 512, bitmaps", FILES OVERLAY("cluster_size=512") BITMAPS WRITTEN,
		to_none, 200),
	{"rebase encrypted 4k",
		FILES "qemu-img create -q --object secret,id=k,data=abc -f qcow2 -b back.raw -F "
		      "raw -o encrypt.format=aes,encrypt.key-secret=k,cluster_size=4k img " SIZE
		      " && qemu-io --object secret,id=k,data=abc -c 'write -q -P 7 10k 5k' -c "
		      "'write -q -z 18k 3k' --image-opts "
		      "driver=qcow2,encrypt.key-secret=k,file.filename=img",
		"back.raw", "abc", to_other, writes, 30, 0},
	ROW("rename v2 512", FILES OVERLAY("compat=0.10,cluster_size=512") WRITTEN, rename_below,
		2),
	ROW("rename v3 4k, snapshots, bitmaps",
		FILES OVERLAY("cluster_size=4k") BITMAPS WRITTEN PACKED SHARED, rename_below, 2),
	ROW("rename v3 64k", FILES OVERLAY("cluster_size=64k") BITMAPS WRITTEN SHARED, rename_below,
		2),
	ROW("emptied v2 512", COMMITTED OVERLAY("compat=0.10,cluster_size=512") HELD(""),
		qcow_empty, 3),
	ROW("emptied v3 4k, snapshots, bitmaps",
		COMMITTED OVERLAY("cluster_size=4k") BITMAPS WRITTEN SHARED " && " HELD(""),
		qcow_empty, 3),
	ROW("emptied compressed 4k", COMMITTED OVERLAY("cluster_size=4k") HELD("-c "), qcow_empty,
		3),
	ROW("emptied 64k", COMMITTED OVERLAY("cluster_size=64k") HELD(""), qcow_empty, 3),
};

int main(void)
{
	return qkc_whole_main("every_crash_leaves_a_disk_that_reads_the_same", operations,
		sizeof(operations) / sizeof(operations[0]), 9);
}
