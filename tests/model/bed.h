/* SPDX-License-Identifier: MIT */
/*
 * bed: an image file in some configuration, made by qemu-img and qemu-io alone, and the array of bytes that it
 * must read as. What it reads as is asked of the oracle (tests/oracle), never of the library.
 */
#ifndef QKT_BED_H
#define QKT_BED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rng.h"

#define BED_SNAPSHOTS  4
#define BED_PASSPHRASE "abc123"

struct bed_config {
	unsigned version, cluster_bits, refcount_bits;
	unsigned n_layers; /* in all: 1 is an image without a backing file */
	bool is_zstd, has_compressed, is_lazy;
	bool is_extended; /* the top layer has extended L2 entries */
	bool is_fixed; /* to be opened as a store that cannot grow */
	bool may_compress; /* in later steps */
	bool has_bitmaps; /* an enabled one and a disabled one */
	bool has_data_file, is_raw_data; /* of the top layer */
	const char *
		crypt; /* NULL, or how the top layer is encrypted with BED_PASSPHRASE: "aes", "luks" */
	unsigned n_snapshots; /* at the start */
	size_t size; /* of the disk, bytes; any number */
	const char *qemu; /* prefix of the tools' paths */
};

struct bed {
	struct bed_config c;
	struct qkt_rng *rng;
	char path[300];
	uint8_t *bytes; /* the disk */
	uint8_t *
		touched; /* with bitmaps, a byte a sector: written, zeroed or discarded since they were made */
	struct {
		unsigned id;
		uint8_t *bytes;
	} snapshots[BED_SNAPSHOTS];
	unsigned n_snapshots;
};

/* A random configuration that QEMU can make; with_data_file: one that has a data file, where it is version 3. */
struct bed_config bed_config_random(struct qkt_rng *rng, bool with_data_file);

/* One line: what a failure prints. */
void bed_config_print(const struct bed_config *c);

/* Make it in the test's folder. Aborts where QEMU refuses. */
void bed_make(struct bed *bed, const struct bed_config *c, struct qkt_rng *rng);
void bed_free(struct bed *bed);

/* Run qemu-io with random steps on the image, which nobody has open, and take over what it did. */
void bed_qemu_steps(struct bed *bed, unsigned n);

/* A snapshot by qemu-img, where there is room for one more and the format allows it. */
void bed_snapshot(struct bed *bed);

/* The file reads as the array for the oracle and is clean for it; with `by_qemu` for both QEMU tools too,
 * and so do all snapshots, and a raw data file does alone. Says what is wrong and aborts otherwise. leaks: they are allowed. */
void bed_check(struct bed *bed, bool by_qemu, bool leaks);

/* What was done to the disk, or tried: the enabled bitmap has to know. */
void bed_touch(struct bed *bed, size_t off, size_t len);

/* A random range of the disk of at most `most` bytes, not empty; with `whole` of 512-byte sectors. */
void bed_range(struct bed *bed, bool whole, size_t most, size_t *off, size_t *len);

#endif
