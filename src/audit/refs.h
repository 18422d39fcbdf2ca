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

struct qk_refs_entry {
	uint64_t off; /* of the entry in the file */
	uint64_t raw, covers;
	uint32_t index; /* in the active L1 table, or QK_L2SET_NO_INDEX */
};

/* Who wants to see entries and tables themselves. What is NULL is not visited. */
struct qk_refs_visitor {
	void *ctx;
	/* An entry, not 0, of the active L1 table, or (index QK_L2SET_NO_INDEX) of `covers` snapshots'. */
	enum qcow_status (*l1)(void *ctx, const struct qk_refs_entry *e, struct qcow_error *err);
	/* An entry, not 0, of the table of `covers` bitmaps. */
	enum qcow_status (*bitmap)(
		void *ctx, const struct qk_refs_entry *e, struct qcow_error *err);
	/* A distinct L2 table; `table` NULL: all zeros. */
	enum qcow_status (*l2)(void *ctx, const struct qk_l2ref *ref, const uint8_t *table,
		struct qcow_error *err);
};

/* Who wants to see each L2 table that is counted and not all zeros, maybe more than once. */
struct qk_refs_watch {
	void *ctx;
	void (*table)(void *ctx, uint64_t off, const uint8_t *table);
};

struct qk_refs {
	struct qk_audit *a;
	const struct qk_refs_watch *watch; /* or NULL */
	bool without_refcounts; /* refcount table and blocks are not counted */
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
	const struct qk_refs_visitor *visitor; /* of the visit under way */
	enum qcow_status visit_status; /* what it has returned first */
	struct qcow_error visit_error;
};

struct qk_refs_request {
	struct qk_audit *audit;
	struct qk_census *census;
	uint64_t memory_bytes; /* of the set of L2 tables */
	bool decode_streams;
	const uint64_t *skip_snapshots; /* a bit each: those whose L1 table is left out, or NULL */
	const struct qk_refs_watch *watch; /* or NULL */
	bool without_refcounts; /* count neither refcount table nor blocks: they are to be replaced */
};

/* Read the small tables (refcount table, snapshot table, bitmap directory), reporting what is wrong with them
 * and with the header's state. Release it also after a failure. QCOW_E_NOMEM. */
enum qcow_status qk_refs_init(
	struct qk_refs *r, const struct qk_refs_request *q, struct qcow_error *err) QK_MUST_USE;
void qk_refs_release(struct qk_refs *r);

/* Count every reference into r->census. QCOW_E_CANCELLED. */
enum qcow_status qk_refs_count(struct qk_refs *r, struct qcow_error *err) QK_MUST_USE;

/* L1 entries, then bitmap entries, then L2 tables; nothing is counted or reported but tables that cannot be read, once.
 * QCOW_E_CANCELLED, what the visitor returns. */
enum qcow_status qk_refs_visit(
	struct qk_refs *r, const struct qk_refs_visitor *v, struct qcow_error *err) QK_MUST_USE;

/* Report the active entries whose COPIED disagrees with the marks in the census. QCOW_E_CANCELLED. */
enum qcow_status qk_refs_explain(struct qk_refs *r, struct qcow_error *err) QK_MUST_USE;

#endif
