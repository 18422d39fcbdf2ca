/* SPDX-License-Identifier: MIT */
/*
 * snapshot_lab: an image whose disk and snapshots are known byte for byte, for the tests of snapshots. Every write passes the
 * order checker; qemu-img judges and reads.
 */
#ifndef SNAPSHOT_LAB_H
#define SNAPSHOT_LAB_H

#include "cm.h"

#include <stdlib.h>

#include <qcowkit/manage.h>

#include "host.h"
#include "image.h"
#include "rng.h"

#define LAB_SNAPS 8u

struct lab_snap {
	char id[24];
	char name[32];
	uint8_t *disk;
	size_t size;
};

struct lab {
	struct qkt_image im;
	struct qkt_image_options open;
	const char *format; /* qemu-img's options */
	size_t size, cluster;
	bool compresses;
	uint8_t *disk;
	struct lab_snap snaps[LAB_SNAPS];
	unsigned n;
	struct qkt_rng rng;
};

/* qemu-img makes the image, "image" in the test's folder, of `size` bytes; it is opened. */
void lab_start(struct lab *l, const char *options, size_t cluster, size_t size, uint64_t seed);
void lab_close(struct lab *l);
void lab_free(struct lab *l);
void lab_open(struct lab *l);

void lab_write(struct lab *l); /* at random: plain, compressed, zeros, a discard */
void lab_create(struct lab *l, const char *name);
void lab_apply(struct lab *l, unsigned i);
/* The snapshots whose bits are set, in one call. */
void lab_delete(struct lab *l, unsigned mask);
void lab_rename(struct lab *l, unsigned i, const char *name);

/* Disk and list are what they should be; no finding, no leak. */
void lab_check(struct lab *l);
/* Close, let qemu-img make, apply or delete one and qemu-io write, open again. */
void lab_turn(struct lab *l, const char *qemu, unsigned number);
/* Close, judge by qemu-img, read every snapshot with it and by us, open again. */
void lab_judge(struct lab *l, const char *qemu);

#endif
