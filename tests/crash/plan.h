/* SPDX-License-Identifier: MIT */
/*
 * plan: a workload. How its image is made, and the steps that are then run on it, by us or by QEMU.
 */
#ifndef QKC_PLAN_H
#define QKC_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <rng.h>

enum qkc_act {
	QKC_DO_WRITE,
	QKC_DO_WRITE_FUA,
	QKC_DO_WRITE_STATE, /* behind the disk, from qkc_plan_state_off on; of ours alone */
	QKC_DO_WRITE_COMPRESSED, /* whole clusters */
	QKC_DO_ZERO,
	QKC_DO_ZERO_UNMAP,
	QKC_DO_DISCARD,
	QKC_DO_FLUSH,
	/* of ours alone: */
	QKC_DO_FAIL, /* off: an enum qkc_fail, and a qkc_only_file; len: the nth such call from now on fails */
	QKC_DO_RECOVER,
	QKC_DO_REOPEN, /* close, and open again */
	QKC_DO_SNAPSHOT, /* make one */
	QKC_DO_APPLY, /* off: the snapshot's place in the table */
	QKC_DO_DELETE /* off: a bit for each place: in one call */
};

enum qkc_fail {
	QKC_FAIL_NONE,
	QKC_FAIL_FLUSH, /* EIO, once */
	QKC_FAIL_FLUSH_DROP, /* the same, and reads give what was durable before */
	QKC_FAIL_WRITE, /* EIO after half of it, once */
	QKC_FAIL_SPACE /* ENOSPC: half of the first one is done, and nothing then, until the next QKC_DO_FAIL */
};

/* Calls to the other file are not counted and do not fail. */
enum qkc_only_file {
	QKC_ANY_FILE = 0,
	QKC_ONLY_IMAGE = 16,
	QKC_ONLY_DATA_FILE = 32,
	QKC_FAIL_KIND = 15 /* the bits of enum qkc_fail */
};

/* How a step ended. */
enum qkc_outcome {
	QKC_STEP_FAILED, /* for an I/O error: what is not flushed is in doubt */
	QKC_STEP_DONE,
	QKC_STEP_NO_SPACE
};

struct qkc_step {
	enum qkc_act act;
	uint64_t off, len; /* multiples of 512, but for writes and zeros of our own */
};

/* Wholly before or wholly after, and durable when it is done. */
static inline bool qkc_is_operation(enum qkc_act act)
{
	return act >= QKC_DO_SNAPSHOT;
}

#define QKC_PASSPHRASE "abc123"

struct qkc_config {
	unsigned version, cluster_bits, refcount_bits;
};

struct qkc_plan {
	struct qkc_config config;
	uint64_t disk_bytes, backing_bytes; /* backing_bytes 0: no backing file */
	bool has_snapshot, is_zstd, is_extended;
	bool has_bitmaps; /* an enabled one and a disabled one, before `between` */
	bool has_data_file, is_raw_data;
	const char *crypt; /* NULL, or how it is encrypted with QKC_PASSPHRASE: "aes", "luks" */
	/* how the image is changed once QEMU has made it; for ours alone: */
	bool is_dirty; /* the dirty bit is set, refcounts are zeros */
	bool lacks_copied; /* COPIED is nowhere set */
	uint64_t
		fixed_spare; /* not 0: a device that cannot grow, with so many clusters after the image */
	unsigned discard; /* QCOW_DISCARD_ bits */
	uint64_t stage_bytes, cache_bytes; /* for the open; 0: as the library likes */
	struct qkc_step *first; /* done by qemu-io before the snapshot */
	size_t n_first;
	struct qkc_step *between; /* and after it */
	size_t n_between;
	struct qkc_step *steps;
	size_t n_steps;
	struct qkt_rng rng;
};

/* Where the state of a machine begins: behind what the L2 tables of the disk map. */
uint64_t qkc_plan_state_off(const struct qkc_plan *p);

void qkc_plan_first(struct qkc_plan *p, enum qkc_act act, uint64_t off, uint64_t len);
void qkc_plan_between(struct qkc_plan *p, enum qkc_act act, uint64_t off, uint64_t len);
void qkc_plan_step(struct qkc_plan *p, enum qkc_act act, uint64_t off, uint64_t len);
void qkc_plan_clear(struct qkc_plan *p);

/* "write 65536 +4096" */
void qkc_step_print(const struct qkc_step *s, char *line, size_t n);

/* What a step writes: 8 bytes of its own in each sector, over and over, so that every sector of every step is
 * told from every other and compresses. Any offset and length. */
void qkc_content(uint32_t step, uint64_t off, uint8_t *buf, uint64_t len);
#define QKC_FIRST_STEP \
	1000000u /* numbers the content of `first` and then `between`; less 1 the backing file's */

/* What the sector of the disk holds after the first `n` steps, where all of them did what they were to do. */
void qkc_sector_after(const struct qkc_plan *p, uint32_t n, uint64_t sector, uint8_t *buf);

/* Which clusters of a range a discard gives up: whole ones; the last of the disk may be cut. */
struct qkc_step qkc_discarded(const struct qkc_plan *p, const struct qkc_step *s);

/* A workload: makes a plan for a configuration. */
struct qkc_workload {
	const char *name;
	void (*make)(struct qkc_plan *p);
	unsigned only; /* enum qkc_only bits */
	unsigned
		min_states; /* fewer distinct states in a row fail it; half of them for clusters of 512 */
};

enum qkc_only {
	QKC_SMALL_CLUSTERS = 1, /* for clusters of 4 KiB and less */
	QKC_OURS = 2, /* qemu-io cannot run it */
	QKC_THEIRS = 4, /* we cannot run it yet */
	QKC_V3 = 8,
	QKC_NO_WIDTH_1 = 16, /* needs refcounts above 1 */
	QKC_TINY_CLUSTERS = 32, /* 512 bytes, where a table is soon full */
	QKC_EXTENDED = 64, /* version 3, clusters of 16 KiB and more */
	/* one configuration: QEMU takes seconds to make an image, each open derives the key */
	QKC_LUKS = 128,
	QKC_WIDTH_16 = 256 /* refcounts of 16 bits, for others make no difference */
};

extern const struct qkc_workload qkc_workloads[];
extern const size_t qkc_n_workloads;

/* The same on every machine for one seed. Variant 0 is the workload as it is written down; others have it
 * elsewhere on the disk, with more or fewer flushes and longer or shorter writes. */
struct qkc_plan qkc_plan_make(
	const struct qkc_workload *w, const struct qkc_config *c, uint64_t seed, unsigned variant);

#endif
