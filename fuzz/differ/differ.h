/* SPDX-License-Identifier: MIT */
/*
 * What the readers that differ compares have in common: a mutated image, the places where it is probed, and
 * what one reader says there.
 */
#ifndef QK_DIFFER_H
#define QK_DIFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROBES_MAX  96
#define PROBE_BYTES 512
#define WORDS_MAX   600
#define WHY_MAX	    96

struct probe {
	uint64_t off;
	unsigned len; /* PROBE_BYTES, or to the end of the disk */
};

struct subject {
	const char *path; /* the image as a file, for readers that want one */
	uint8_t *data;
	size_t n;
	uint64_t disk_bytes; /* as the header has it */
	struct probe probes[PROBES_MAX];
	unsigned n_probes;
};

enum outcome {
	UNKNOWN, /* not asked: the reader had given up */
	READ,
	FAILED
};

struct reading {
	bool opened, died;
	char refusal[WORDS_MAX]; /* where it did not open */
	enum outcome outcome[PROBES_MAX];
	unsigned finding[PROBES_MAX]; /* of ours, where it failed */
	bool compressed[PROBES_MAX]; /* ours: the probe begins in a compressed cluster */
	char why[PROBES_MAX][WHY_MAX];
	uint8_t bytes[PROBES_MAX][PROBE_BYTES];
};

/* The library, in this process. */
void read_ours(const struct subject *subject, struct reading *out);

/* The reader of tests/oracle, in a child of this process. */
void read_oracle(const struct subject *subject, struct reading *out);

/* A qemu-io that goes on from image to image, run as an unprivileged user. */
struct qemu;
struct qemu *qemu_start(char *const *argv, const char *folder);
void qemu_stop(struct qemu *qemu);
/* `ours` says which probes to expect; what is read there is compared by QEMU itself where it is uniform. */
void read_qemu(struct qemu *qemu, const struct subject *subject, const struct reading *ours,
	struct reading *out);

/* What files that images name hold: this byte, CANARY_BYTES times. */
#define CANARY_NAME  "canary.raw"
#define DATA_NAME    "data.raw"
#define CANARY_BYTE  'C'
#define CANARY_BYTES 8192

#endif
