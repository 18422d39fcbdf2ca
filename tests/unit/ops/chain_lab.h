/* SPDX-License-Identifier: MIT */
/*
 * chain_lab: files in memory that are layers of one another, a record of what is done to them, and every file as a
 * crash may leave it. A crash keeps, for each file, what was written before its last flush that was complete, and any
 * sectors of what came after.
 */
#ifndef TEST_CHAIN_LAB_H
#define TEST_CHAIN_LAB_H

#include <qcowkit/qcowkit.h>

#include "fault.h"
#include "model.h"
#include "rng.h"

#define LAB_FILES 4u

struct lab_file {
	const char *name; /* as images record it; NULL: none */
	const char *format;
	struct qkt_model bytes; /* before what is recorded */
};

struct lab {
	struct lab_file files[LAB_FILES];
	struct qkt_fault *fault; /* behind every store of lab_store */
	struct qkt_rng rng;
	unsigned n_states;
};

void lab_init(struct lab *lab, uint64_t seed);
void lab_release(struct lab *lab);

/* A store with the bytes of `m`. */
struct qcow_store *lab_copy(const struct qkt_model *m);

/* File `i` in a store that fails when told to and is recorded with its number. */
struct qcow_store *lab_store(struct lab *lab, unsigned i);

/* Open file `i` of `files` and what it names. writable: bits of files that are for writing; file `i` only and backing files
 * that are named on the way. With `lab` stores of lab_store, else copies. NULL with *err. */
struct qcow_image *lab_open(struct lab *lab, const struct lab_file *files, unsigned i,
	unsigned writable, struct qcow_error *err);

/* What file `i` has by now: read it from an open image's store before that is closed. */
struct qkt_model lab_take(struct qcow_store *store);

/* Make file `i`, empty, and open it for writing: raw where `cluster` is 0, else an overlay of file `below` (LAB_FILES: of none). */
struct qcow_image *lab_make(struct lab *lab, unsigned i, const char *name, uint32_t version,
	uint32_t cluster, bool extended, unsigned below, size_t size);

/* What the open image's store holds becomes the content of file `i`. */
void lab_keep(struct lab *lab, unsigned i, struct qcow_image *image);

/* For every moment of the record up to its end, `n_each` states: everything issued by then, nothing that was not flushed,
 * and random sectors of it. `judge` gets the files as they are then. */
void lab_crash(struct lab *lab, unsigned n_each,
	void (*judge)(void *ctx, const struct lab_file *files), void *ctx);

/* Does the disk of file `i` hold exactly `want`? Opened read-only, checked, read whole. */
void lab_expect(const struct lab_file *files, unsigned i, const struct qkt_model *want);

#endif
