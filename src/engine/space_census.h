/* SPDX-License-Identifier: MIT */
/*
 * space_census: the audit room's census of an image, for the space that will write to it. Used while the
 * space is being made: one thread, no lock.
 */
#ifndef QK_ENGINE_SPACE_CENSUS_H
#define QK_ENGINE_SPACE_CENSUS_H

#include "audit/refs.h"
#include "engine/space_private.h"

struct qk_space_census {
	struct qk_space *sp;
	struct qk_header header; /* as it was at first: what is counted does not move */
	struct qk_audit audit;
	struct qk_refs refs;
	struct qk_census census;
	struct qk_refblock *block; /* pinned: the last that was compared, or NULL */
	uint64_t n_clusters; /* of the file as it was at first */
	struct qk_space_noted beyond; /* the first entry that points past the end of the file */
	bool has_unread_tables;
	bool has_damage; /* some entry or table is not as it should be */
	bool reclaims; /* what nothing refers to is free */
	uint64_t stored[QK_CENSUS_PAGE_BYTES / 2]; /* refcounts of a page */
	uint64_t full_idx, n_full; /* clusters of one block that are in use, of those compared */
};

/* Release it also after a failure. QCOW_E_NOMEM. */
enum qcow_status qk_space_census_init(struct qk_space_census *c, struct qk_space *sp,
	const struct qk_refs_watch *watch, struct qcow_error *err) QK_MUST_USE;
void qk_space_census_release(struct qk_space_census *c);

/* Count all references, and call `pass` for each window [census.lo, census.hi) of clusters: in ascending order
 * they cover the file. QCOW_E_IO where a table cannot be read, QCOW_E_CORRUPT where an entry points past the
 * end of the file, QCOW_E_NOMEM, what pass returns. */
enum qcow_status qk_space_census_run(struct qk_space_census *c,
	enum qcow_status (*pass)(void *ctx, struct qcow_error *err), void *ctx,
	struct qcow_error *err) QK_MUST_USE;

/* Within a pass: every cluster that has references, ascending, with its counter in the wide form. */
enum qcow_status qk_space_census_each(struct qk_space_census *c,
	enum qcow_status (*each)(
		void *ctx, uint64_t cluster, uint64_t word, struct qcow_error *err),
	void *ctx, struct qcow_error *err) QK_MUST_USE;

/* Is the cluster fit for an image that is written, whatever its refcount? QCOW_E_CORRUPT: METADATA_OVERLAP,
 * COPIED_WRONG. */
enum qcow_status qk_space_census_judge(const struct qk_space *sp, uint64_t cluster, uint64_t word,
	struct qcow_error *err) QK_MUST_USE;

#endif
