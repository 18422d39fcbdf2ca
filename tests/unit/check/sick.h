/* SPDX-License-Identifier: MIT */
/*
 * sick: small images with random damage: words of L1, L2 and refcount tables and refcounts are replaced by what may look
 * right.
 */
#ifndef QKT_SICK_H
#define QKT_SICK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <qcowkit/store.h>

#include "rng.h"

struct qkt_base {
	uint64_t cluster;
	unsigned bits, version;
	uint8_t *bytes;
	size_t n;
	uint64_t n_guest; /* clusters of the disk */
	uint64_t l1, rt;
	uint64_t *host, *l2; /* of each guest cluster: host cluster and L2 table's, 0 none */
};

/* An image that was damaged. */
struct qkt_sick {
	const struct qkt_base *base;
	uint8_t *bytes;
	size_t n;
	bool *is_free; /* by guest cluster: a damaged word speaks of it, it may change */
	bool fixed;
};

/* A store in memory with these bytes. */
struct qcow_store *qkt_store_of(const uint8_t *bytes, size_t n);
/* What guest cluster `guest` holds, n bytes. */
void qkt_content_of(uint64_t guest, uint8_t *buf, uint64_t n);

/* A well image, made in the folder of the test (host.h). */
void qkt_make_base(struct qkt_base *b, uint64_t cluster, unsigned bits, unsigned version);
void qkt_drop_base(struct qkt_base *b);

/* Damage a copy of it, or one that is as long as a device. */
void qkt_fall_sick(struct qkt_sick *s, const struct qkt_base *b, struct qkt_rng *rng);
void qkt_get_well(struct qkt_sick *s);

#endif
