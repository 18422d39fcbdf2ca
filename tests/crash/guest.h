/* SPDX-License-Identifier: MIT */
/*
 * guest: what each 512-byte sector of the virtual disk may hold after a crash: the value of the last step
 * that is durable for it, or of any step since. Values are hashes of sectors (disk.h). It shares no code with
 * the library.
 *
 * Steps are added in the order they run, from 1. A sector that the end of the disk cuts short counts as if
 * zeros followed.
 */
#ifndef QKC_GUEST_H
#define QKC_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "explore.h"

struct qkc_guest;

/* A disk of zeros, and room up to `end_bytes` for what lies behind it. */
struct qkc_guest *qkc_guest_new(uint64_t disk_bytes, uint64_t end_bytes);
void qkc_guest_free(struct qkc_guest *g);
/* The disk's alone. */
uint64_t qkc_guest_bytes(const struct qkc_guest *g);

/* What a sector holds before the first step. */
void qkc_guest_start(struct qkc_guest *g, uint64_t sector, uint64_t hash);

enum qkc_write_kind {
	QKC_PLAIN,
	QKC_FUA, /* durable when the step is done */
	QKC_MAYBE /* the step fails, or need not do it: the value may be there from now on, and never must */
};

/* Step `step` writes the sector. */
void qkc_guest_write(struct qkc_guest *g, uint32_t step, enum qkc_write_kind kind, uint64_t sector,
	uint64_t hash);

/* What the steps from this one on have written may be there or not, for ever. */
void qkc_guest_doubt(struct qkc_guest *g, uint32_t from_step);

/* The value after all steps. */
uint64_t qkc_guest_now(const struct qkc_guest *g, uint64_t sector);

bool qkc_guest_allows(
	const struct qkc_guest *g, const struct qkc_moment *at, uint64_t sector, uint64_t hash);

/* Has the sector ever held anything but the zeros of a new disk? */
bool qkc_guest_knows(const struct qkc_guest *g, uint64_t sector);

/* The first sector in [sector, past) that is not plain zeros for ever; UINT64_MAX: none. */
uint64_t qkc_guest_next(const struct qkc_guest *g, uint64_t sector, uint64_t past);

#endif
