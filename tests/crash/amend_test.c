/* SPDX-License-Identifier: MIT */
/* Every crash while an image is amended leaves it as it was, or as it was to be; zero clusters on the way to version 2 are
 * nothing that anybody reads. */

#include <string.h>

#include <qcowkit/manage.h>

#include "whole.h"

#define CREATE "qemu-img create -q -f qcow2 "
#define ZEROS                                                                                    \
	" && qemu-io -c 'write -q -P 3 0 100k' -c 'write -q -z 16k 16k' -c 'write -q -z -u 48k " \
	"8k' "                                                                                   \
	"-c 'write -q -z 120k 8k' img"
#define SHARED                                                                                 \
	" && qemu-img snapshot -c one img && qemu-io -c 'write -q -z 0 4k' -c 'write -q -P 4 " \
	"90k 8k' img && qemu-img snapshot -c two img"
/* As older writers left them: snapshots without extra data, and so without sizes. */
#define WITHOUT_SIZES                                                                 \
	" && python3 -c \"import struct\n"                                            \
	"b = bytearray(open('img', 'rb').read())\n"                                   \
	"n, start = struct.unpack('>IQ', b[60:72])\n"                                 \
	"at, table = start, b''\n"                                                    \
	"for i in range(n):\n"                                                        \
	"    extra = struct.unpack('>I', b[at + 36:at + 40])[0]\n"                    \
	"    end = at + 40 + extra + sum(struct.unpack('>HH', b[at + 12:at + 16]))\n" \
	"    table += b[at:at + 36] + bytes(4) + b[at + 40 + extra:end]\n"            \
	"    table += bytes(-len(table) & 7)\n"                                       \
	"    at = (end + 7) & ~7\n"                                                   \
	"b[start:at] = table + bytes(at - start - len(table))\n"                      \
	"open('img', 'wb').write(b)\""
#define BASE	"head -c 200k /dev/urandom >back.raw && "
#define BITMAPS " && qemu-img bitmap --add -g 512 img on"

/* QEMU measures its speed for a second each time, and fails where the machine is very busy: one image for all rows. */
#define KEYS   "--object secret,id=one,data=one --object secret,id=two,data=two "
#define OPENED " --image-opts driver=qcow2,encrypt.key-secret=one,file.filename=luks"
#define LUKS                                                                                  \
	"if ! test -e luks; then for i in $(seq 40); do rm -f luks; qemu-img create -q " KEYS \
	"-f qcow2 -o encrypt.format=luks,encrypt.key-secret=one,encrypt.iter-time=1,cluster_" \
	"size=4k luks 200k && qemu-img amend " KEYS "-o encrypt.state=active,encrypt.new-"    \
	"secret=two,encrypt.iter-time=1" OPENED " && break; done; qemu-io " KEYS              \
	"-c 'write -q -P 3 0 100k'" OPENED " && qemu-img snapshot " KEYS "-c one" OPENED      \
	"; fi; cp luks img"

static enum qcow_status amend(
	struct qcow_image *image, uint32_t version, uint32_t refcount_bits, struct qcow_error *err)
{
	struct qcow_amend_options o = QCOW_AMEND_OPTIONS_INIT;
	o.version = version;
	o.refcount_bits = refcount_bits;
	return qcow_amend(image, &o, err);
}

static enum qcow_status to_2(struct qcow_image *image, struct qcow_error *err)
{
	return amend(image, 2, 0, err);
}

static enum qcow_status to_3(struct qcow_image *image, struct qcow_error *err)
{
	return amend(image, 3, 0, err);
}

static enum qcow_status to_64(struct qcow_image *image, struct qcow_error *err)
{
	return amend(image, 0, 64, err);
}

static enum qcow_status to_2_bits(struct qcow_image *image, struct qcow_error *err)
{
	return amend(image, 0, 2, err);
}

static enum qcow_status lazy(struct qcow_image *image, struct qcow_error *err)
{
	struct qcow_amend_options o = QCOW_AMEND_OPTIONS_INIT;
	o.lazy_refcounts = QCOW_AMEND_ON;
	return qcow_amend(image, &o, err);
}

static enum qcow_status amend_key(
	struct qcow_image *image, enum qcow_key_action action, struct qcow_error *err)
{
	struct qcow_key_options o = QCOW_KEY_OPTIONS_INIT;
	o.action = action;
	if (action == QCOW_KEY_ADD) {
		o.new_secret = (struct qcow_secret){"new", 3};
		o.iter_time_ms = QCOW_LUKS_ITER_LEAST;
	} else
		o.old_secret = (struct qcow_secret){"two", 3};
	return qcow_amend_keys(image, &o, err);
}

static enum qcow_status add_key(struct qcow_image *image, struct qcow_error *err)
{
	return amend_key(image, QCOW_KEY_ADD, err);
}

static enum qcow_status erase_key(struct qcow_image *image, struct qcow_error *err)
{
	return amend_key(image, QCOW_KEY_ERASE, err);
}

/* It can be written. */
static const char *writes(struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	static char buf[30000];
	memset(buf, 'w', sizeof(buf));
	return qcow_pwrite(image, buf, sizeof(buf), 5000, QCOW_IO_FUA, &err) == QCOW_OK
		       ? NULL
		       : "the write failed";
}

static const struct qkc_operation operations[] = {
	{"to version 2, 512", CREATE "-o cluster_size=512 img 200k" ZEROS, NULL, NULL, to_2, writes,
		5, 0},
	{"to version 2, 4k, snapshots", CREATE "-o cluster_size=4k img 200k" ZEROS SHARED, NULL,
		NULL, to_2, writes, 5, 0},
	{"to version 2, 512, backing",
		BASE CREATE "-b back.raw -F raw -o cluster_size=512 img 200k" ZEROS, "back.raw",
		NULL, to_2, writes, 5, 0},
	{"to version 2, 4k, backing, snapshots",
		BASE CREATE "-b back.raw -F raw -o cluster_size=4k img 200k" ZEROS SHARED,
		"back.raw", NULL, to_2, writes, 5, 0},
	{"to version 2, 64k", CREATE "-o cluster_size=64k img 400k" ZEROS, NULL, NULL, to_2, writes,
		2, 0},
	{"to version 3, 512", CREATE "-o compat=0.10,cluster_size=512 img 200k" ZEROS SHARED, NULL,
		NULL, to_3, writes, 2, 0},
	{"to version 3, 4k, snapshots without sizes",
		CREATE "-o compat=0.10,cluster_size=4k img 200k" ZEROS SHARED WITHOUT_SIZES, NULL,
		NULL, to_3, writes, 4, 0},
	{"to version 3, 64k", CREATE "-o compat=0.10 img 200k" ZEROS SHARED, NULL, NULL, to_3,
		writes, 2, 0},
	{"refcounts of 64 bits, 512", CREATE "-o cluster_size=512 img 200k" ZEROS SHARED BITMAPS,
		NULL, NULL, to_64, writes, 30, 0},
	{"refcounts of 64 bits, 64k", CREATE "-o cluster_size=64k img 200k" ZEROS SHARED, NULL,
		NULL, to_64, writes, 2, 0},
	{"refcounts of 2 bits, 4k, device",
		CREATE "-o cluster_size=4k img 200k" ZEROS SHARED " && truncate -s 1M img", NULL,
		NULL, to_2_bits, writes, 2, QKC_ON_DEVICE},
	{"refcounts of 2 bits, packed",
		BASE "qemu-img convert -c -O qcow2 -o cluster_size=4k back.raw img", NULL, NULL,
		to_64, writes, 2, 0},
	{"lazy refcounts", CREATE "img 200k" ZEROS, NULL, NULL, lazy, writes, 2, 0},
	{"key added, 4k", LUKS, NULL, "one", add_key, writes, 20, 0},
	{"key erased, 4k", LUKS, NULL, "one", erase_key, writes, 5, 0},
};

int main(void)
{
	return qkc_whole_main("every_crash_leaves_it_whole", operations,
		sizeof(operations) / sizeof(operations[0]), 7);
}
