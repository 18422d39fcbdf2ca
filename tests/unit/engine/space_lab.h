/* SPDX-License-Identifier: MIT */
/*
 * space_lab: an empty image in memory with a space on it, an array of integers that says what its refcounts
 * must be, and a reader of stored refcounts that shares no code with the engine.
 */
#ifndef QK_SPACE_LAB_H
#define QK_SPACE_LAB_H

#include "cm.h"

#include "engine/image.h"
#include "engine/open.h"
#include "engine/space.h"
#include "fault.h"
#include "order.h"
#include "rng.h"

#define LAB_CLUSTERS (1U << 20) /* of the array */

struct lab_options {
	uint64_t cluster_size;
	uint32_t refcount_bits;
	uint64_t disk_size; /* 0: 1 MiB */
	uint64_t fixed_clusters; /* the store has this many and cannot grow; 0: it grows */
	uint64_t cache_bytes;
	enum qcow_prove prove;
	uint32_t version; /* 0: 3 */
	bool plain; /* neither fault store nor order checker, which allocate */
};

struct lab {
	struct qkt_fault *fault;
	struct qkt_order *order; /* judges every write */
	struct qcow_image *image; /* owns the store */
	struct qcow_store *store;
	struct qcow_store *peek; /* below what fails */
	struct qk_space *sp;
	uint32_t *counts; /* references that the test holds, by cluster */
	uint32_t *
		linked; /* of these, those that the last publication that ended well made possible */
	uint64_t top; /* clusters from here on were never touched */
	unsigned cluster_bits;
	uint64_t max;
};

/* An empty image in memory, in a store that cannot grow where o->fixed_clusters says so. */
struct qcow_store *lab_store(const struct lab_options *o);

/* A store that passes everything on to `inner`, which it owns, has `size` bytes and cannot grow. */
struct qcow_store *lab_fix(struct qcow_store *inner, uint64_t size);

/* Aborts the test where something fails. */
void lab_open(struct lab *lab, const struct lab_options *o);
/* A space on the lab's store again, after lab->sp was freed. */
enum qcow_status lab_space(struct lab *lab, const struct lab_options *o, struct qcow_error *err);
void lab_free(struct lab *lab);

/* Take, and note it in the array; fails the test where the run was in use. */
enum qcow_status lab_take(struct lab *lab, uint64_t n, uint64_t min_n, struct qk_space_run *run,
	struct qcow_error *err);
enum qcow_status lab_take_as(struct lab *lab, enum qk_space_kind kind, uint64_t n, uint64_t min_n,
	struct qk_space_run *run, struct qcow_error *err);
enum qcow_status lab_raise(struct lab *lab, uint64_t cluster, struct qcow_error *err);
enum qcow_status lab_drop(struct lab *lab, uint64_t cluster, struct qcow_error *err);
/* begin, flush, link, flush, done. */
enum qcow_status lab_publish(struct lab *lab, struct qcow_error *err);

/* Stored refcounts against references: header, refcount table and blocks, L1 and the array `counts`: equal. Or
 * the array `linked`: never less. */
void lab_judge(struct lab *lab, bool exact);

/* The stored refcount of a cluster. */
uint64_t lab_stored(struct lab *lab, uint64_t cluster);

#endif
