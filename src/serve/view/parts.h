/* SPDX-License-Identifier: MIT */
/*
 * parts: where the partitions of a disk lie: GPT, and MBR with its logical ones. Pure but for the callback that reads; every
 * number of the disk is checked, loops end, and memory does not follow what a disk says.
 *
 * UEFI specification 2.10, chapter 5 (GPT); for MBR the layout is that of the first sector: four entries of 16 bytes
 * at 446, 55 AA at 510, extended partitions (types 05, 0f, 85) hold a chain of such sectors.
 */
#ifndef QK_SERVE_VIEW_PARTS_H
#define QK_SERVE_VIEW_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <qcowkit/error.h>

/* More are not looked at. */
#define QK_PARTS_MAX 256U

struct qk_part {
	unsigned
		number; /* as systems count: GPT entries and the MBR's from 1, logical ones from 5 */
	uint64_t off, size; /* bytes, within the disk */
};

struct qk_parts {
	unsigned n;
	struct qk_part part[QK_PARTS_MAX];
};

/* Read [off, +len), which lies within the disk. */
typedef enum qcow_status qk_parts_read_fn(
	void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err);

/* Find them. A disk without a table has none; entries that are empty, do not lie within the disk, or overlap the table
 * of a chain that was followed already are left out. Errors of `read`, QCOW_E_NOMEM. */
enum qcow_status qk_parts_find(qk_parts_read_fn *read, void *ctx, uint64_t disk_size,
	struct qk_parts *out, struct qcow_error *err) __attribute__((warn_unused_result));

#endif
