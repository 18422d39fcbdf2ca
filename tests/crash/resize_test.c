/* SPDX-License-Identifier: MIT */
/* Every crash during a resize leaves the old disk or the new one, and what lay past an end is never seen again. */

#include <stdlib.h>

#include <qcowkit/manage.h>

#include "whole.h"

#define CREATE	   "qemu-img create -q -f qcow2 "
#define FILL(size) " && qemu-io -c 'write -q -P 3 0 " size "' img"

/* with snapshots */
#define KEY    "--object secret,id=k,data=abc "
#define OPENED " --image-opts driver=qcow2,encrypt.key-secret=k,file.filename=img"
#define ENCRYPTED(options)                                                                        \
	CREATE KEY "-o encrypt.format=aes,encrypt.key-secret=k," options " img 200k && "          \
		   "qemu-io " KEY "-c 'write -q -P 3 0 200k'" OPENED " && qemu-img snapshot " KEY \
		   "-c one" OPENED " && qemu-io " KEY "-c 'write -q -P 4 20k 30k'" OPENED

static enum qcow_status resize(struct qcow_image *image, uint64_t size,
	enum qcow_preallocation preallocation, struct qcow_error *err)
{
	struct qcow_resize_options o = QCOW_RESIZE_OPTIONS_INIT;
	o.shrink = true;
	o.preallocation = preallocation;
	return qcow_resize(image, size, &o, err);
}

static enum qcow_status longer(struct qcow_image *image, struct qcow_error *err)
{
	return resize(image, qcow_size(image) * 5 + 100, QCOW_PREALLOC_OFF, err);
}

static enum qcow_status a_little_longer(struct qcow_image *image, struct qcow_error *err)
{
	return resize(image, qcow_size(image) + 700, QCOW_PREALLOC_OFF, err);
}

static enum qcow_status longer_allocated(struct qcow_image *image, struct qcow_error *err)
{
	return resize(image, qcow_size(image) * 2, QCOW_PREALLOC_METADATA, err);
}

static enum qcow_status longer_reserved(struct qcow_image *image, struct qcow_error *err)
{
	return resize(image, qcow_size(image) * 2, QCOW_PREALLOC_FALLOC, err);
}

static enum qcow_status longer_written(struct qcow_image *image, struct qcow_error *err)
{
	return resize(image, qcow_size(image) * 2, QCOW_PREALLOC_FULL, err);
}

static enum qcow_status shorter(struct qcow_image *image, struct qcow_error *err)
{
	return resize(image, qcow_size(image) / 5 + 100, QCOW_PREALLOC_OFF, err);
}

/* What follows the disk's end is zeros, whatever a crash has left there. */
static const char *grows_with_zeros(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t old = qcow_size(image);
	uint8_t buf[4096];
	if (resize(image, old + 600000, QCOW_PREALLOC_OFF, &err) != QCOW_OK)
		return "the grow failed";
	for (uint64_t off = old; off < old + 600000; off += sizeof(buf)) {
		uint64_t n = old + 600000 - off < sizeof(buf) ? old + 600000 - off : sizeof(buf);
		if (qcow_pread(image, buf, (size_t)n, off, &err) != QCOW_OK)
			return "the read failed";
		for (uint64_t i = 0; i < n; i++)
			if (buf[i] != 0)
				return "old bytes show past the old end";
	}
	return NULL;
}

#define SHARED                                                                           \
	" && qemu-img snapshot -c one img && qemu-io -c 'write -q -P 4 20k 30k' img && " \
	"qemu-img snapshot -c two img && qemu-io -c 'write -q -P 5 60k 50k' img"
#define BITMAPS                                                                                \
	" && qemu-img bitmap --add -g 512 img on && qemu-img bitmap --add -g 1024 img off && " \
	"qemu-io -c 'write -q -P 6 10k 90k' img && qemu-img bitmap --disable img off"
#define DATA	 "data_file=data"
#define RAW_DATA "data_file=data,data_file_raw=on"
#define PACKED	 "head -c 200k /dev/urandom >back.raw && qemu-img convert -c -O qcow2 "

static const struct qkc_operation operations[] = {
	{"shorter 512", CREATE "-o cluster_size=512 img 200k" FILL("200k"), NULL, NULL, shorter,
		grows_with_zeros, 6, QKC_TIDIES},
	{"shorter 4k v2", CREATE "-o cluster_size=4k,compat=0.10 img 200k" FILL("200k"), NULL, NULL,
		shorter, grows_with_zeros, 12, QKC_TIDIES},
	{"shorter 64k", CREATE "-o cluster_size=64k img 1M" FILL("1M"), NULL, NULL, shorter,
		grows_with_zeros, 21, QKC_TIDIES},
	{"shorter snapshots 512", CREATE "-o cluster_size=512 img 200k" FILL("200k") SHARED, NULL,
		NULL, shorter, grows_with_zeros, 13, QKC_TIDIES},
	{"shorter snapshots 4k", CREATE "-o cluster_size=4k img 200k" FILL("200k") SHARED, NULL,
		NULL, shorter, grows_with_zeros, 26, QKC_TIDIES},
	{"shorter bitmaps 512", CREATE "-o cluster_size=512 img 200k" FILL("200k") BITMAPS, NULL,
		NULL, shorter, grows_with_zeros, 44, QKC_TIDIES},
	{"shorter bitmaps 64k", CREATE "-o cluster_size=64k img 1M" FILL("1M") BITMAPS, NULL, NULL,
		shorter, grows_with_zeros, 62, QKC_TIDIES},
	{"shorter bitmaps snapshots 4k device",
		CREATE "-o cluster_size=4k img 200k" FILL("200k") SHARED BITMAPS
		" && truncate -s 2M img",
		NULL, NULL, shorter, NULL, 53, QKC_ON_DEVICE | QKC_TIDIES},
	{"shorter packed 4k", PACKED "-o cluster_size=4k back.raw img", NULL, NULL, shorter,
		grows_with_zeros, 15, QKC_TIDIES},
	{"shorter subclusters", CREATE "-o extended_l2=on,cluster_size=16k img 200k" FILL("200k"),
		NULL, NULL, shorter, grows_with_zeros, 4, QKC_TIDIES},
	{"longer 512", CREATE "-o cluster_size=512 img 200k" FILL("200k"), NULL, NULL, longer,
		grows_with_zeros, 5, 0},
	{"longer v2 512", CREATE "-o cluster_size=512,compat=0.10 img 200k" FILL("200k"), NULL,
		NULL, longer, grows_with_zeros, 5, 0},
	{"longer 64k odd", CREATE "-o cluster_size=64k img 200k" FILL("150k"), NULL, NULL,
		a_little_longer, grows_with_zeros, 2, 0},
	{"longer snapshots 4k", CREATE "-o cluster_size=4k img 199k" FILL("199k") SHARED, NULL,
		NULL, longer, grows_with_zeros, 28, 0},
	{"longer bitmaps 512", CREATE "-o cluster_size=512 img 200k" FILL("200k") BITMAPS, NULL,
		NULL, longer, grows_with_zeros, 42, 0},
	{"longer bitmaps 64k", CREATE "-o cluster_size=64k img 200k" FILL("200k") BITMAPS, NULL,
		NULL, longer, grows_with_zeros, 40, 0},
	{"longer over a longer disk 4k",
		"head -c 900k /dev/urandom >back.raw && " CREATE
		"-b back.raw -F raw -o cluster_size=4k img 101k",
		"back.raw", NULL, longer, grows_with_zeros, 24, 0},
	{"longer over a longer disk v2 512",
		"head -c 300k /dev/urandom >back.raw && " CREATE
		"-b back.raw -F raw -o cluster_size=512,compat=0.10 img 51k",
		"back.raw", NULL, longer, grows_with_zeros, 56, 0},
	{"longer allocated 4k", CREATE "-o cluster_size=4k img 100k" FILL("100k"), NULL, NULL,
		longer_allocated, grows_with_zeros, 3, 0},
	{"longer reserved 64k, snapshots",
		CREATE "-o cluster_size=64k img 200k" FILL("200k") SHARED, NULL, NULL,
		longer_reserved, grows_with_zeros, 3, 0},
	{"longer written v2 4k", CREATE "-o compat=0.10,cluster_size=4k img 100k" FILL("100k"),
		NULL, NULL, longer_written, grows_with_zeros, 3, 0},
	{"shorter encrypted 4k", ENCRYPTED("cluster_size=4k"), NULL, "abc", shorter,
		grows_with_zeros, 10, QKC_TIDIES},
	{"longer encrypted 64k", ENCRYPTED("cluster_size=64k"), NULL, "abc", longer,
		grows_with_zeros, 2, 0},
	{"shorter, data file 4k", CREATE "-o " DATA ",cluster_size=4k img 200k" FILL("200k"), NULL,
		NULL, shorter, grows_with_zeros, 3, QKC_TIDIES},
	{"shorter, raw data file 512",
		CREATE "-o " RAW_DATA ",cluster_size=512 img 200k" FILL("200k"), NULL, NULL,
		shorter, grows_with_zeros, 5, QKC_TIDIES},
	{"shorter, raw data device 4k",
		CREATE "-o " RAW_DATA
		       ",cluster_size=4k img 200k" FILL("200k") " && truncate -s 2M img",
		NULL, NULL, shorter, NULL, 5, QKC_ON_DEVICE | QKC_TIDIES},
	{"longer, data file 4k", CREATE "-o " DATA ",cluster_size=4k img 199k" FILL("199k"), NULL,
		NULL, longer, grows_with_zeros, 3, 0},
	{"longer, data file 64k odd", CREATE "-o " DATA ",cluster_size=64k img 200k" FILL("150k"),
		NULL, NULL, a_little_longer, grows_with_zeros, 2, 0},
	{"longer, data file allocated 4k",
		CREATE "-o " DATA ",cluster_size=4k img 100k" FILL("100k"), NULL, NULL,
		longer_allocated, grows_with_zeros, 3, 0},
	{"longer, raw data file 512",
		CREATE "-o " RAW_DATA ",cluster_size=512 img 200k" FILL("200k"), NULL, NULL, longer,
		grows_with_zeros, 100, 0},
	{"longer, raw data device 4k, garbage",
		CREATE "-o " RAW_DATA ",cluster_size=4k img 99k" FILL(
			"99k") " && truncate -s 2M img && head -c 600k /dev/urandom >>data",
		NULL, NULL, longer, NULL, 3, QKC_ON_DEVICE},
	{"longer, data device, bitmaps, garbage",
		CREATE "-o " DATA ",cluster_size=4k img 101k" FILL("70k") BITMAPS
		" && truncate -s 2M img && head -c 600k /dev/urandom >>data",
		NULL, NULL, longer, NULL, 3, QKC_ON_DEVICE},
	{"longer, data file over a longer disk 4k",
		"head -c 900k /dev/urandom >back.raw && " CREATE "-b back.raw -F raw -o " DATA
		",cluster_size=4k img 101k && head -c 600k /dev/urandom >>data",
		"back.raw", NULL, longer, grows_with_zeros, 3, 0},
};

int main(void)
{
	return qkc_whole_main("every_crash_leaves_the_old_disk_or_the_new", operations,
		sizeof(operations) / sizeof(operations[0]), 7);
}
