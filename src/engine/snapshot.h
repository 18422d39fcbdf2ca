/* SPDX-License-Identifier: MIT */
/*
 * snapshot: making, applying, deleting and renaming internal snapshots.
 *
 *   snapshot.c		the operations: what is counted, what is switched
 *   snapshot_table.c	the snapshot table in memory
 *   snapshot_new.c	tables in fresh clusters
 *   snapshot_copy.c	L2 tables whose COPIED bits change
 *   snapshot_count.c	refcounts after the switch
 *
 * Each is one switch (control.h): new L2 tables, L1 tables, snapshot table and a whole second refcount structure in clusters
 * that nothing names || one write of sector 0, bytes 24-71. What was replaced is free in the new structure.
 *
 *			active tree	snapshot's tree		COPIED in the active tree
 *	create		+ 1		(the same)		cleared
 *	delete			 	- 1			set where the refcount is 1
 *	apply		- 1 (the old)	+ 1			clear, but for tables copied on the way
 *
 * Specification: "Snapshots", "Host cluster management".
 */
#ifndef QK_ENGINE_SNAPSHOT_H
#define QK_ENGINE_SNAPSHOT_H

#include <qcowkit/manage.h>

#include "base/err.h"

/* As the public calls of manage.h, whose arguments were checked. */
enum qcow_status qk_snapshot_create(struct qcow_image *image,
	const struct qcow_snapshot_create_options *options, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_snapshot_apply(struct qcow_image *image, const char *key,
	enum qcow_snapshot_key how, const struct qcow_progress *progress,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_snapshot_delete(struct qcow_image *image, const char *const *keys, size_t n,
	enum qcow_snapshot_key how, const struct qcow_progress *progress,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_snapshot_rename(struct qcow_image *image, const char *key,
	enum qcow_snapshot_key how, const char *name, struct qcow_error *err) QK_MUST_USE;

struct qk_snapshot_plan {
	enum qcow_snapshot_act act;
	const char *const *keys; /* n of them: none for CREATE, one for APPLY */
	size_t n;
	enum qcow_snapshot_key how;
};

/* qcow_snapshot_judge. */
enum qcow_status qk_snapshot_foresee(struct qcow_image *image, const struct qk_snapshot_plan *plan,
	const struct qcow_progress *progress, struct qcow_error *err) QK_MUST_USE;

#endif
