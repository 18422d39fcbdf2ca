/* SPDX-License-Identifier: MIT */
/*
 * snaptab: entries of the snapshot table. Pure. Specification: "Snapshots".
 */
#ifndef QK_FORMAT_SNAPTAB_H
#define QK_FORMAT_SNAPTAB_H

#include "base/bytes.h"
#include "format/geometry.h"

struct qk_snapshot_entry {
	qk_hoff l1_off;
	uint32_t l1_entries;
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_nsec;
	uint32_t vm_state_size32; /* bytes 32-35 as stored */
	struct qk_span extra; /* as stored, known fields included */
	struct qk_span id, name;
	/* from the extra data where it is long enough */
	bool has_vm_state_size64, has_disk_size, has_icount;
	uint64_t vm_state_size64, disk_size, icount;
};

#define QK_SNAPSHOT_FIXED_BYTES 40U
#define QK_SNAPSHOT_EXTRA_BYTES 24U /* the extra data we write: VM state size, disk size, icount */

/* Bytes of the entry with these lengths, padding included. */
uint64_t qk_snapshot_entry_bytes(uint64_t extra_len, uint64_t id_len, uint64_t name_len);

/* Decode one entry at the reader and step over its padding. False (reader bad) where it overruns.
 * The values are not judged. Spans point into the reader's bytes. */
bool qk_snapshot_decode(struct qk_reader *r, struct qk_snapshot_entry *out);

/* Judge an entry: L1 alignment, size and range, extra data length (version 3 needs 16 bytes),
 * sizes, an L1 table that is too short for the disk size. The end of the file is not judged.
 * Returns a finding id (SNAPSHOT_L1, SNAPSHOT_EXTRA, SNAPSHOT_TABLE) or 0. */
unsigned qk_snapshot_judge(const struct qk_geometry *g, const struct qk_snapshot_entry *e);

/* Bytes of VM state: the 64-bit field where there is one. */
uint64_t qk_snapshot_vm_state_bytes(const struct qk_snapshot_entry *e);

/* Write the entry as stored (extra verbatim) with padding zeros. */
void qk_snapshot_encode(struct qk_writer *w, const struct qk_snapshot_entry *e);

#endif
