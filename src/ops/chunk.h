/* SPDX-License-Identifier: MIT */
/*
 * chunk: the piece of work that goes through convert's pipe, and what is done to it in parallel:
 * read, tell zeros from data, compress.
 *
 *     |<------------------------- chunk: off, len ------------------------>|
 *     |  unit  |  unit  |  unit  |  unit  | ...                      |short|
 *      DATA     ZERO     PACKED   BACKING    one state for each unit
 *
 * A unit is what the target can leave out: a cluster of a qcow2 target, 4 KiB of a raw one.
 */
#ifndef QK_OPS_CHUNK_H
#define QK_OPS_CHUNK_H

#include <qcowkit/ops.h>

#include "ops/source.h"

enum qk_chunk_kind {
	QK_CHUNK_MIXED, /* at most chunk_bytes, described by segments and then by units */
	QK_CHUNK_ZERO, /* a run of any length that reads as zeros */
	QK_CHUNK_BACKING, /* a run of any length that the target's backing file holds */
	QK_CHUNK_CLONE /* a run of any length whose blocks the target may share */
};

enum qk_unit_state {
	QK_UNIT_DATA = 0,
	QK_UNIT_ZERO, /* known to be zero without reading */
	QK_UNIT_FOUND, /* found to be zero by reading */
	QK_UNIT_BACKING,
	QK_UNIT_PACKED /* compressed, the stream stands at the unit's place in the buffer */
};

enum qk_put_kind {
	QK_PUT_WRITE, /* buf + from */
	QK_PUT_ZERO,
	QK_PUT_CLONE /* the source store's bytes at `from` */
};

/* One thing to do to the target's data store after the chunk has its place. */
struct qk_put {
	enum qk_put_kind kind;
	uint64_t host_off, len, from;
};

/* A range that could not be read. */
struct qk_lost {
	uint64_t off, len;
};

struct qk_chunk {
	enum qk_chunk_kind kind;
	uint64_t off, len;
	struct qcow_store *clone_store;
	uint64_t clone_off;
	uint8_t *buf; /* chunk_bytes, aligned for O_DIRECT */
	struct qk_segment *segments;
	unsigned n_segments, max_segments;
	uint8_t *states; /* enum qk_unit_state, one a unit */
	uint32_t *packed_bytes; /* with compression */
	struct qk_put *puts;
	unsigned n_puts, max_puts;
	struct qk_lost *lost; /* with salvage, in guest order */
	unsigned n_lost, max_lost;
	struct qcow_error why; /* of the first of them */
	/* added to the result when the chunk is through */
	uint64_t bytes_read, bytes_written, bytes_cloned, bytes_zero;
};

/* What one thread keeps for itself. */
struct qk_scratch {
	struct qcow_codec *codec; /* with compression */
	uint8_t *packed; /* one unit */
	uint8_t *backing; /* chunk_bytes, where content is compared with the backing image */
};

/* How chunks are treated; the same for all of them. */
struct qk_policy {
	uint64_t unit_bytes, chunk_bytes; /* powers of two */
	uint64_t sparse_bytes; /* zeros shorter than this are kept as data; 0 = all zeros are */
	bool compress;
	struct qcow_image *compare; /* leave out what this image holds too, or NULL */
};

/* QCOW_E_NOMEM; what was taken is released by qk_chunk_release. */
enum qcow_status qk_chunk_init(struct qk_chunk *chunk, const struct qk_policy *policy, bool salvage,
	struct qcow_error *err);
void qk_chunk_release(struct qk_chunk *chunk);

/* Make the chunk empty again, at `off`. */
void qk_chunk_reset(struct qk_chunk *chunk, uint64_t off);

/* Append a segment that follows the last one; false where there is no room for it. */
bool qk_chunk_add_segment(struct qk_chunk *chunk, const struct qk_segment *segment);

/* Append something to be done. QCOW_E_NOMEM. */
enum qcow_status qk_chunk_add_put(
	struct qk_chunk *chunk, struct qk_put put, struct qcow_error *err);

/* Read a mixed chunk and give every unit its state. Errors as qcow_pread, unless `salvage`. */
enum qcow_status qk_chunk_fill(struct qk_chunk *chunk, const struct qk_policy *policy,
	const struct qk_source *source, struct qk_scratch *scratch, struct qcow_error *err);

/* The run of units with one state from `unit`: the index after it. ZERO and FOUND are one state. */
uint64_t qk_chunk_run(const struct qk_chunk *chunk, uint64_t unit, uint64_t n_units);

#endif
