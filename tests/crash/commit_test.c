/* SPDX-License-Identifier: MIT */
/* Every crash while an overlay is committed leaves two files that read the same together, and a base that holds the disk once
 * it is done; every crash while dd writes to a disk leaves each sector old or new. */

#include <string.h>

#include <host.h>
#include <qcowkit/manage.h>
#include <qcowkit/ops.h>

#include "store.h"
#include "whole.h"

#define SIZE	"100k"
#define RANDOM	"head -c 300k /dev/urandom >r && "
#define CREATE	"qemu-img create -q -f qcow2 "
#define BASE(o) RANDOM CREATE "-o " o " base " SIZE " && "
#define RAW	RANDOM "head -c " SIZE " r >base && "
#define BELOW                                                                                  \
	"qemu-io -c 'write -q -P 1 0 20k' -c 'write -q -z 20k 4k' -c 'write -q -P 2 40k 30k' " \
	"base && "
#define PACKED_BELOW                                                                             \
	"qemu-io -c 'write -q -c -P 1 0 4k' -c 'write -q -c -P 6 12k 4k' -c 'write -q -P 2 40k " \
	"30k' base && "
#define SHARED(file)                                                                         \
	"qemu-img snapshot -c one " file " && qemu-io -c 'write -q -P 3 8k 6k' " file " && " \
	"qemu-img snapshot -c two " file " && "
/* What the commit writes is marked; one granule is marked before, so that the bits stay the same. */
#define BITMAPS(file)                                                                        \
	"qemu-img bitmap --add -g 128k " file " on && qemu-img bitmap --add --disable " file \
	" off && "
#define OVERLAY(o, format) CREATE "-b base -F " format " -o " o " img " SIZE " && "
#define WRITTEN                                                                                 \
	"qemu-io -c 'write -q -s r 33k 5k' -c 'write -q -z 6k 21k' -c 'write -q -P 9 42k 30k' " \
	"-c 'write -q -s r 90k 9k' img"
#define PACKED " -c 'write -q -c -P 3 0 4k' -c 'write -q -c -P 4 28k 4k'"

static struct qcow_image *deepest(struct qcow_image *image)
{
	while (qcow_backing(image) != NULL)
		image = qcow_backing(image);
	return image;
}

static enum qcow_status commit_to(struct qcow_image *image, bool keep, struct qcow_error *err)
{
	struct qcow_commit_options o = QCOW_COMMIT_OPTIONS_INIT;
	struct qcow_commit_result result;
	o.n_workers = 1;
	o.keep = keep;
	return qcow_commit(image, deepest(image), &o, &result, err);
}

static enum qcow_status commit(struct qcow_image *image, struct qcow_error *err)
{
	return commit_to(image, false, err);
}

static enum qcow_status commit_and_keep(struct qcow_image *image, struct qcow_error *err)
{
	return commit_to(image, true, err);
}

/* Both can be written. */
static const char *write_both(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_pwrite(deepest(image), "b", 1, 7000, QCOW_IO_FUA, &err) != QCOW_OK)
		return "the write to the base failed";
	return qcow_pwrite(image, "w", 1, 30000, QCOW_IO_FUA, &err) == QCOW_OK ? NULL
									       : "the write failed";
}

/* A new disk, of which zeros are left out. */
static enum qcow_status write_disk(struct qcow_image *image, bool sparse, struct qcow_error *err)
{
	struct qcow_dd_options o = QCOW_DD_OPTIONS_INIT;
	struct qcow_dd_result result;
	struct qcow_open_options raw = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *source = NULL;
	static uint8_t bytes[80 * 1024];
	memset(bytes, 0xdd, sizeof(bytes));
	memset(bytes + 20000, 0, 30000);
	raw.format = "raw";
	enum qcow_status status = qcow_open(
		qkc_bytes_store(bytes, sizeof(bytes)), &raw, &source, err);
	if (status != QCOW_OK)
		return status;
	o.source_off = 700;
	o.target_off = 5000;
	o.len = 75000;
	o.sparse = sparse;
	o.n_workers = 1;
	status = qcow_dd(source, image, &o, &result, err);
	qcow_close(source);
	return status == QCOW_OK ? qcow_flush(image, err) : status;
}

static enum qcow_status dd(struct qcow_image *image, struct qcow_error *err)
{
	return write_disk(image, false, err);
}

static enum qcow_status dd_sparse(struct qcow_image *image, struct qcow_error *err)
{
	return write_disk(image, true, err);
}

static const char *writes(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	return qcow_pwrite(image, "w", 1, 30000, QCOW_IO_FUA, &err) == QCOW_OK ? NULL
									       : "the write failed";
}

#define COMMIT(name, setup, min)                                                \
	{                                                                       \
		name, setup, NULL, NULL, commit, write_both, min, QKC_OVER_BASE \
	}
#define DD(name, setup, run, min)                                       \
	{                                                               \
		name, setup, NULL, NULL, run, writes, min, QKC_IN_PARTS \
	}

static const struct qkc_operation operations[] = {
	COMMIT("commit v2 512 to v2 4k, snapshots",
		BASE("compat=0.10,cluster_size=4k") BELOW SHARED("base")
			OVERLAY("compat=0.10,cluster_size=512", "qcow2") WRITTEN,
		200),
	COMMIT("commit v3 4k to v3 4k, all",
		BASE("cluster_size=4k") PACKED_BELOW SHARED("base") BITMAPS("base") OVERLAY(
			"cluster_size=4k", "qcow2") BITMAPS("img") SHARED("img") WRITTEN PACKED,
		200),
	COMMIT("commit v3 64k to v3 512, bitmaps",
		BASE("cluster_size=512") BELOW BITMAPS("base") OVERLAY("cluster_size=64k", "qcow2")
			BITMAPS("img") WRITTEN,
		250),
	COMMIT("commit v3 512 to v3 64k, snapshots in both",
		BASE("cluster_size=64k") BELOW SHARED("base") OVERLAY("cluster_size=512", "qcow2")
			SHARED("img") WRITTEN,
		300),
	COMMIT("commit subclusters to subclusters",
		BASE("cluster_size=16k,extended_l2=on") BELOW SHARED("base")
			OVERLAY("cluster_size=16k,extended_l2=on", "qcow2") WRITTEN,
		200),
	COMMIT("commit v3 4k to a shorter v3 4k",
		RANDOM CREATE "-o cluster_size=4k base 37k && "
			      "qemu-io -c 'write -q -s r 0 37k' base && " BITMAPS("base")
				      OVERLAY("cluster_size=4k", "qcow2") WRITTEN,
		300),
	{"commit v3 4k to raw", RAW OVERLAY("cluster_size=4k", "raw") WRITTEN, NULL, NULL, commit,
		write_both, 150, QKC_OVER_RAW_BASE},
	{"commit v2 512 to a shorter raw",
		RANDOM "head -c 50k r >base && " OVERLAY("compat=0.10,cluster_size=512", "raw")
			WRITTEN,
		NULL, NULL, commit, write_both, 200, QKC_OVER_RAW_BASE},
	{"commit to a deeper layer, and keep",
		BASE("cluster_size=4k") BELOW CREATE
		"-b base -F qcow2 -o cluster_size=512 back.raw 90k && "
		"qemu-io -f qcow2 -c 'write -q -s r 30k 20k' -c 'write -q -z 60k 5k' back.raw "
		"&& " CREATE "-b back.raw -F qcow2 -o cluster_size=4k img " SIZE " && " WRITTEN,
		"back.raw", NULL, commit_and_keep, write_both, 200, QKC_OVER_BASE},
	{"commit from an encrypted v3 4k",
		BASE("cluster_size=4k") BELOW CREATE
		"--object secret,id=k,data=abc -b base -F qcow2 -o "
		"encrypt.format=aes,encrypt.key-secret=k,cluster_size=4k img " SIZE
		" && qemu-io --object secret,id=k,data=abc -c 'write -q -z 6k 21k' -c 'write -q "
		"-P 9 42k 30k' --image-opts driver=qcow2,encrypt.key-secret=k,file.filename=img",
		NULL, "abc", commit, write_both, 50, QKC_OVER_BASE},
	{"commit and keep v3 4k",
		BASE("cluster_size=4k") BELOW SHARED("base") OVERLAY("cluster_size=4k", "qcow2")
			WRITTEN,
		NULL, NULL, commit_and_keep, write_both, 150, QKC_OVER_BASE},
	DD("dd v2 512, snapshots",
		RANDOM CREATE "-o compat=0.10,cluster_size=512 img " SIZE " && " SHARED("img")
			WRITTEN,
		dd, 200),
	DD("dd v3 4k, all",
		RANDOM CREATE "-o cluster_size=4k img " SIZE " && " BITMAPS("img") SHARED("img")
			WRITTEN PACKED,
		dd, 200),
	DD("dd v3 64k, bitmaps", RANDOM CREATE "img " SIZE " && " BITMAPS("img") WRITTEN, dd, 60),
	DD("dd subclusters, sparse",
		RANDOM CREATE "-o cluster_size=16k,extended_l2=on img " SIZE " && " SHARED("img")
			WRITTEN,
		dd_sparse, 120),
	DD("dd raw data file 4k",
		RANDOM CREATE "-o cluster_size=4k,data_file=data,data_file_raw=on img " SIZE
			      " && " WRITTEN,
		dd, 80),
};

int main(void)
{
	return qkc_whole_main("every_crash_leaves_files_that_read_the_same", operations,
		sizeof(operations) / sizeof(operations[0]), 11);
}
