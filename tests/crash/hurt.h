/* SPDX-License-Identifier: MIT */
/*
 * hurt: images with snapshots, bitmaps and compressed clusters that QEMU makes, and what is damaged in them, each in one word
 * or few, by the specification: for tests of the repair.
 */
#ifndef QKC_HURT_H
#define QKC_HURT_H

#include <stdbool.h>
#include <stdint.h>

#define QKC_N_HOSTS 20u

struct qkc_kind {
	unsigned version, cluster_bits;
};

/* An image as bytes, and where its parts were before anything was damaged. */
struct qkc_patient {
	struct qkc_kind kind;
	uint8_t *bytes; /* malloc'ed */
	uint64_t n;
	uint64_t cluster, l1, rt, block, snapshots,
		directory; /* offsets; directory 0: no bitmaps */
	uint64_t second; /* of the entry of the second snapshot */
	uint64_t table; /* the first L2 table of the disk */
	uint64_t hosts[QKC_N_HOSTS]; /* of the first clusters of the disk */
};

struct qkc_hurt {
	const char *name;
	/* False: there is no such thing in this image. */
	bool (*damage)(struct qkc_patient *p);
	unsigned without; /* bits: the snapshots whose content cannot be kept, the first's is 1 */
	bool hides_counts; /* refcounts cannot be compared before the repair: what is wrong with them shows up later */
};

extern const struct qkc_hurt qkc_hurts[];
extern const unsigned qkc_n_hurts;

/* In the folder of the test (host.h). The bytes are the caller's, to be freed. */
void qkc_patient_make(struct qkc_patient *p, struct qkc_kind kind);
/* A copy with `spare` clusters of garbage behind the image. */
void qkc_patient_copy(struct qkc_patient *p, const struct qkc_patient *from, uint64_t spare);

#endif
