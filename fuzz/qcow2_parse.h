/* SPDX-License-Identifier: MIT */
/*
 * What the mutator sees of an image: its geometry, and every field by the structure that it is in. Nothing
 * in the image is believed: what does not lie within the bytes is left out. From the specification alone.
 */
#ifndef QK_FUZZ_QCOW2_PARSE_H
#define QK_FUZZ_QCOW2_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum class {
	CLASS_HEADER,
	CLASS_EXTENSION,
	CLASS_L1,
	CLASS_L2,
	CLASS_SUBCLUSTERS,
	CLASS_REFCOUNT_TABLE,
	CLASS_REFCOUNT_BLOCK,
	CLASS_SNAPSHOT,
	CLASS_SNAPSHOT_L1,
	CLASS_BITMAP_DIRECTORY,
	CLASS_BITMAP_TABLE,
	CLASS_LUKS,
	CLASS_STREAM, /* compressed data */
	N_CLASSES
};

struct field {
	uint64_t off;
	unsigned bytes;
};

/* More fields of a class than these: a sample, by the seed. */
#define FIELDS_PER_CLASS 128
#define PLACES_MAX	 64

struct field_list {
	struct field fields[FIELDS_PER_CLASS];
	unsigned n, seen;
};

struct parsed {
	uint8_t *data;
	size_t n;
	uint64_t seed; /* state of the random numbers */
	unsigned cluster_bits, refcount_order;
	uint64_t cluster, l2_entries, entry_bytes;
	bool v3, extended_l2, data_file;
	struct field_list lists[N_CLASSES];
	/* offsets of structures, of any kind: what an offset may be changed to */
	uint64_t places[PLACES_MAX];
	unsigned n_places, n_l2_tables;
	/* NULL, or references to each cluster of the file, which the walk counts */
	uint32_t *refs;
	uint64_t n_clusters;
};

/* A random number; in [0, n), n > 0. */
uint64_t parse_random(uint64_t *state);
uint64_t parse_below(uint64_t *state, uint64_t n);

uint64_t parse_get(const uint8_t *data, uint64_t off, unsigned bytes);
void parse_put(uint8_t *data, uint64_t off, unsigned bytes, uint64_t value);

/* Fill `p` from the bytes; false where they are no qcow2 header with a cluster size. `refs` may be NULL. */
bool parse_image(struct parsed *p, uint8_t *data, size_t n, uint64_t seed, uint32_t *refs);

/* Where a compressed descriptor says its data lies: bytes from the file's start, and how many sectors' worth. */
void parse_compressed(const struct parsed *p, uint64_t entry, uint64_t *off, uint64_t *bytes);

/* Do `bytes` at `off` lie within the image? */
bool parse_within(const struct parsed *p, uint64_t off, uint64_t bytes);

#define ENTRY_COPIED	 (UINT64_C(1) << 63)
#define ENTRY_COMPRESSED (UINT64_C(1) << 62)
#define ENTRY_OFFSET	 UINT64_C(0x00fffffffffffe00)

#endif
