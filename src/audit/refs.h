/* SPDX-License-Identifier: MIT */
/*
 * refs: visits everything that refers to a host cluster and counts it into a census, once a pass.
 *
 * Order: header, refcount table and blocks, encryption header, snapshot table and L1 tables, active L1
 * table, bitmap directory, tables and data, then each distinct L2 table once.
 */
#ifndef QK_AUDIT_REFS_H
#define QK_AUDIT_REFS_H

#include "audit/audit.h"
#include "audit/census.h"
#include "audit/l2scan.h"
#include "audit/l2set.h"
#include "audit/reftable.h"
#include "audit/snaplist.h"
#include "audit/sweep.h"

struct qk_refs {
	struct qk_audit *a;
	struct qk_census *census;
	struct qk_reftable rt;
	struct qk_snaplist snaps;
	struct qk_sweep snap_l1; /* bytes of the snapshots' L1 tables */
	struct qk_sweep snap_l1_clusters; /* the same in whole clusters */
	struct qk_sweep bitmap_tables, bitmap_table_clusters;
	uint64_t bitmap_directory_bytes;
	struct qk_l2set set;
	struct qk_l2scan scan;
	uint8_t *chunk; /* of an L1 or bitmap table */
	uint8_t *l2_buf; /* whole L2 tables, as many as fit */
	uint64_t l2_buf_bytes;
};

struct qk_refs_request {
	struct qk_audit *audit;
	struct qk_census *census;
	uint64_t memory_bytes; /* of the set of L2 tables */
	bool decode_streams;
};

/* Read the small tables (refcount table, snapshot table, bitmap directory), reporting what is wrong with them
 * and with the header's state. Release it also after a failure. QCOW_E_NOMEM. */
enum qcow_status qk_refs_init(
	struct qk_refs *r, const struct qk_refs_request *q, struct qcow_error *err) QK_MUST_USE;
void qk_refs_release(struct qk_refs *r);

/* Count every reference into r->census. QCOW_E_CANCELLED. */
enum qcow_status qk_refs_count(struct qk_refs *r, struct qcow_error *err) QK_MUST_USE;

/* Report the active entries whose COPIED disagrees with the marks in the census. QCOW_E_CANCELLED. */
enum qcow_status qk_refs_explain(struct qk_refs *r, struct qcow_error *err) QK_MUST_USE;

#endif
