/* SPDX-License-Identifier: MIT */
/*
 * fresh: clusters taken for new structures that nothing on the disk names yet. Until something does they can be given
 * back, all of them or those of the last step. One thread.
 */
#ifndef QK_ENGINE_FRESH_H
#define QK_ENGINE_FRESH_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "engine/space.h"

struct qk_fresh_runs {
	struct qk_space_run *v;
	uint32_t n, room;
};

struct qk_fresh {
	struct qcow_image *image;
	enum qk_space_kind kind;
	struct qk_fresh_runs taken; /* in the order taken */
	struct qk_fresh_runs spare; /* of those: not needed after all */
	uint64_t near; /* where the last run ends */
};

/* How much had been taken at some time. */
struct qk_fresh_mark {
	uint32_t n, n_spare;
	uint64_t n_last; /* clusters of the last run */
};

void qk_fresh_init(struct qk_fresh *f, struct qcow_image *image, enum qk_space_kind kind);
/* Frees memory; what was taken stays taken. */
void qk_fresh_release(struct qk_fresh *f);

/* A run of exactly n clusters, with refcount 1. Errors of qk_space_take. */
enum qcow_status qk_fresh_take(
	struct qk_fresh *f, uint64_t n, uint64_t *off, struct qcow_error *err) QK_MUST_USE;

/* Write to what was taken; [off, off + len) is checked for overlap. */
enum qcow_status qk_fresh_write(struct qk_fresh *f, const void *bytes, uint64_t len, uint64_t off,
	struct qcow_error *err) QK_MUST_USE;

/* Cluster `off` was taken and will not be named: qk_fresh_keep gives it back. QCOW_E_NOMEM. */
enum qcow_status qk_fresh_spare(
	struct qk_fresh *f, uint64_t off, uint64_t n, struct qcow_error *err) QK_MUST_USE;

struct qk_fresh_mark qk_fresh_get_mark(const struct qk_fresh *f);
/* Give back what was taken since the mark, or all of it where mark is NULL. Nothing may name it. */
void qk_fresh_give_back(struct qk_fresh *f, const struct qk_fresh_mark *mark);
/* The rest is named by now: give back what is spare. */
void qk_fresh_keep(struct qk_fresh *f);

#endif
