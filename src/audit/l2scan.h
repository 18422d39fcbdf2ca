/* SPDX-License-Identifier: MIT */
/*
 * l2scan: what one L2 table in memory refers to: counting, statistics, and what is wrong with it.
 * Specification: "Cluster mapping", "Extended L2 Entries".
 */
#ifndef QK_AUDIT_L2SCAN_H
#define QK_AUDIT_L2SCAN_H

#include "audit/audit.h"
#include "audit/census.h"
#include "audit/l2set.h"
#include "codec/codec.h"

/* Of the active tree, as qemu-img check counts them: a fragment does not follow the cluster before it in the
 * same L2 table. */
struct qk_l2stats {
	uint64_t allocated, fragmented, compressed;
	uint64_t next_off; /* where the table's next cluster is no fragment; 0 before the first */
};

struct qk_l2scan {
	struct qk_audit *a;
	struct qk_census *census;
	struct qk_l2stats stats;
	bool want_stats;
	bool past_disk_reported;
	/* decoding of compressed clusters; NULL: not wanted */
	struct qcow_codec *codec;
	uint8_t *stream, *plain; /* two clusters, one cluster */
};

/* Count the table's references into the census. Findings are reported unless a->quiet. */
void qk_l2scan_count(struct qk_l2scan *s, const struct qk_l2ref *ref, const uint8_t *table);

/* Report the entries of an active table whose COPIED disagrees: those that name a cluster marked with
 * QK_CENSUS_OVERLAP (marked by the judge) where the bit is not that of QK_CENSUS_EXCLUSIVE (refcount is 1). */
void qk_l2scan_explain(struct qk_l2scan *s, const struct qk_l2ref *ref, const uint8_t *table);

/* The same for one entry of the active L1 table. */
void qk_l2scan_explain_l1(struct qk_l2scan *s, uint32_t l1_index, uint64_t raw);

#endif
