/* SPDX-License-Identifier: MIT */
/* base: the image that a plan starts from, made by qemu-img and qemu-io: never by what is to be judged. */
#ifndef QKC_BASE_H
#define QKC_BASE_H

#include <stdint.h>

#include "disk.h"
#include "plan.h"

struct qkc_base {
	struct qkc_disk *image;
	uint8_t *backing; /* a raw disk, or NULL */
	uint64_t backing_bytes;
	const struct qkc_plan *plan; /* the one it was made by; the caller's */
};

/* Files are made in the test's folder (host.h) and stay: base.qcow2, base.data, back.raw. Ends the program where QEMU
 * fails. */
struct qkc_base qkc_base_make(const struct qkc_plan *p);
void qkc_base_free(struct qkc_base *b);

/* Write a disk to a file of the test's folder. */
void qkc_disk_save(const struct qkc_disk *d, const char *path);
/* Its data file. */
void qkc_disk_save_data(const struct qkc_disk *d, const char *path);

/* Give a disk the data file that lies in the test's folder. */
void qkc_disk_load_data(struct qkc_disk *d, const char *name);

#endif
