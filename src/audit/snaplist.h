/* SPDX-License-Identifier: MIT */
/*
 * snaplist: where the snapshots' L1 tables lie. Specification: "Snapshots".
 */
#ifndef QK_AUDIT_SNAPLIST_H
#define QK_AUDIT_SNAPLIST_H

#include "audit/audit.h"

struct qk_snap_l1 {
	uint64_t off;
	uint32_t n_entries; /* 0: no table, or one that cannot be used (finding says why) */
	unsigned finding;
};

/* At most QK_MAX_SNAPSHOTS entries of 16 bytes: 1 MiB. */
struct qk_snaplist {
	struct qk_snap_l1 *v;
	uint32_t n;
	uint64_t table_bytes; /* as far as the table could be decoded */
	unsigned finding; /* why it could not be decoded to its end, or 0 */
};

/* Read the snapshot table through a bounded window, reporting what is wrong with it. QCOW_E_NOMEM. */
enum qcow_status qk_snaplist_load(
	struct qk_snaplist *s, struct qk_audit *a, struct qcow_error *err) QK_MUST_USE;
void qk_snaplist_release(struct qk_snaplist *s);

#endif
