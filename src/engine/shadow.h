/* SPDX-License-Identifier: MIT */
/*
 * shadow: a complete second refcount structure, table and blocks, beside the one that is in use. Nothing refers to it
 * before the caller switches header bytes 48-59 (and 96-99 where the width changes) in one write of sector 0, so
 * a crash leaves the old structure whole, and clusters that leak.
 *
 *	qk_shadow_build || the caller's switch || the old structure is free
 *
 * For repair, for a new refcount width, and for snapshots. Specification: "Host cluster management".
 */
#ifndef QK_ENGINE_SHADOW_H
#define QK_ENGINE_SHADOW_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "format/geometry.h"

struct qk_space;

/* Where counts and clusters come from. Clusters are host offsets >> cluster_bits. */
struct qk_shadow_source {
	void *ctx;
	/* What refers to clusters [first, first + n) when the switch is done: out[0 .. n), zeroed before the call. Asked
	 * once for every cluster below `end`, ascending, n <= QK_SHADOW_COUNTS. What it says of the clusters
	 * that `take` gave to the new structure is not looked at: they count 1. */
	enum qcow_status (*counts)(
		void *ctx, uint64_t first, uint64_t n, uint64_t *out, struct qcow_error *err);
	/* A run of at most n and at least min_n clusters that nothing on the disk, old or new, refers to; the store
	 * is long enough for them, or grows by writes. QCOW_E_NOSPC. */
	enum qcow_status (*take)(void *ctx, uint64_t n, uint64_t min_n, uint64_t *first,
		uint64_t *n_taken, struct qcow_error *err);
	/* Clusters that were taken and are not needed. */
	void (*give_back)(void *ctx, uint64_t first, uint64_t n);
};

#define QK_SHADOW_COUNTS 4096U

struct qk_shadow_request {
	struct qcow_store *store;
	const struct qk_geometry *geometry; /* with the refcount width of the new structure */
	const struct qk_shadow_source *source;
	uint64_t
		end; /* from this cluster on everything has refcount 0, but for the structure itself */
	const struct qcow_progress *progress; /* or NULL: clusters counted, cancelling */
};

struct qk_shadow_run {
	uint64_t first, n; /* clusters */
};

/* What was built. All of it is the caller's to look at. */
struct qk_shadow {
	uint64_t rt_off; /* header bytes 48-55 */
	uint32_t rt_clusters; /* bytes 56-59 */
	uint64_t *table; /* offset of each block, 0 none */
	uint64_t n_entries;
	struct qk_shadow_run
		*runs; /* the clusters of the structure, in the order they were taken */
	size_t n_runs;
	/* the builder's own */
	size_t runs_room;
	uint64_t table_room;
	struct qk_shadow_run spare;
};

/*
 * Write a second structure to fresh clusters; not flushed. QCOW_E_LIMIT: a count that the width cannot hold (the error
 * names the cluster), or a table over 8 MiB; QCOW_E_NOSPC, QCOW_E_CANCELLED, QCOW_E_NOMEM, errors of the store and of
 * the source. After a failure `runs` says which clusters had been taken: nothing refers to them. Release it
 * in any case. Memory: the table, 2 MiB, and 32 KiB.
 */
enum qcow_status qk_shadow_build(const struct qk_shadow_request *rq, struct qk_shadow *out,
	struct qcow_error *err) QK_MUST_USE;
/* Would a build meet a count that the width cannot hold, or too long a table? Takes and writes nothing. QCOW_E_LIMIT as above,
 * QCOW_E_NOMEM, errors of the source. */
enum qcow_status qk_shadow_judge(
	const struct qk_shadow_request *rq, struct qcow_error *err) QK_MUST_USE;
void qk_shadow_release(struct qk_shadow *s);

/* Header bytes 48-59 for what was built. */
#define QK_SHADOW_HEADER_OFF   48U
#define QK_SHADOW_HEADER_BYTES 12U
void qk_shadow_header(const struct qk_shadow *s, uint8_t out[QK_SHADOW_HEADER_BYTES]);

/* The clusters of what was built go back to the source: after a failure of the build, or of the caller before anything
 * of the switch was written. */
void qk_shadow_undo(const struct qk_shadow_source *source, struct qk_shadow *s);

/* What QCOW_E_NOSPC means for an operation that was undone; nothing for another status. */
void qk_shadow_explain(enum qcow_status status, struct qcow_error *err);

/*
 * A source over the space of an image that is written and whose data plane stands still with nothing staged: its
 * refcounts as they are, but 0 for the table and blocks in use now (they are free with the switch) and for
 * reservations. Clusters are taken from the space, which is of no use after the switch: make it anew. To
 * change counts on the way, wrap `counts`.
 */
void qk_shadow_of_space(struct qk_space *sp, struct qk_shadow_source *out);
/* One more than the last cluster that can have a refcount there. */
uint64_t qk_shadow_space_end(struct qk_space *sp);

#endif
