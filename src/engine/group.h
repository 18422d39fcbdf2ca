/* SPDX-License-Identifier: MIT */
/*
 * group: the guest clusters of one sector of an L2 table, locked for remapping. All that remaps goes through here, so
 * two that remap one cluster never run together.
 */
#ifndef QK_ENGINE_GROUP_H
#define QK_ENGINE_GROUP_H

#include <qcowkit/qcowkit.h>

#include "engine/stage.h"
#include "format/l1l2.h"

struct qk_group {
	struct qcow_image *image;
	struct qk_chunk *chunk;
	qk_goff guest; /* of entry 0 */
	uint32_t n; /* entries */
	uint64_t words
		[QK_STAGE_WORDS]; /* as readers see them now, host order; two of an extended entry */
	uint64_t owned; /* entries whose host cluster has one reference: see qk_group_judge */
};

/* Lock the group of the guest cluster at `off` and make its L2 table writable; publishes first where the stage is
 * full. Errors of qk_table_get, of a publication, QCOW_E_IO with TABLE_READ_FAILED. */
enum qcow_status qk_group_lock(struct qcow_image *image, qk_goff off, struct qk_group *out,
	struct qcow_error *err) QK_MUST_USE;
void qk_group_unlock(struct qk_group *group);

/* The stripe of the group at `off`, to look at its entries and change none. */
struct qk_group_hold {
	struct qcow_image *image;
	struct qk_chunk *chunk; /* NULL: nothing is staged */
	qk_goff guest;
	uint64_t busy; /* words of the chunk that the disk may have otherwise */
};
void qk_group_hold(struct qcow_image *image, qk_goff off, struct qk_group_hold *out);
void qk_group_release(struct qk_group_hold *hold);
/* Does the disk have the entry of the cluster at `off` as readers see it? */
bool qk_group_is_settled(const struct qk_group_hold *hold, qk_goff off);

/* Decode entry i. Host clusters past the end of the file get their finding too. */
struct qk_l2_entry qk_group_entry(const struct qk_group *group, uint32_t i);

/* Judge entries [first, first + n), and find out which host clusters have one reference: COPIED says so, else
 * the refcount, where the refcounts were proved. QCOW_E_CORRUPT with finding for the first that is bad, QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status qk_group_judge(
	struct qk_group *group, uint32_t first, uint32_t n, struct qcow_error *err) QK_MUST_USE;

/* The clusters that lose a reference when entry `e` is replaced; n 0: none. */
struct qk_pair qk_group_unlinked(const struct qk_group *group, const struct qk_l2_entry *e);

/* A zero cluster that kept its host cluster has been published: `kept` says which (stage.h). Where it still is just that, the
 * content goes back to the file system; where its group is being changed, nothing is done. Under the publish lock,
 * when no reader is left. */
void qk_group_punch(struct qcow_image *image, const struct qk_pair *kept);

/* Bytes of the guest's disk that a group maps. */
uint64_t qk_group_span(const struct qcow_image *image);

/* Entry i is to become `e`: its words go to `change`, whose `first` is the first entry of the change in words. */
void qk_group_put(const struct qk_group *group, struct qk_stage_change *change, uint32_t i,
	const struct qk_l2_entry *e);

/* An empty change of entries [first, first + n), whose words are still to be put. */
void qk_group_change(
	struct qk_group *group, struct qk_stage_change *change, uint32_t first, uint32_t n);

/* Leave all but the first n entries of a change alone. */
void qk_group_trim(const struct qk_group *group, struct qk_stage_change *change, uint32_t n);

/* qk_stage_commit, and take the words over. Where no word changes: nothing. */
enum qcow_status qk_group_commit(
	struct qk_group *group, struct qk_stage_change *change, struct qcow_error *err) QK_MUST_USE;

#endif
