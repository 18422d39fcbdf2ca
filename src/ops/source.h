/* SPDX-License-Identifier: MIT */
/*
 * source: several images seen as one disk, as a sequence of segments that each have one answer.
 */
#ifndef QK_OPS_SOURCE_H
#define QK_OPS_SOURCE_H

#include <qcowkit/qcowkit.h>

enum qk_segment_kind {
	QK_SEGMENT_DATA, /* must be read */
	QK_SEGMENT_ZERO, /* reads as zeros, known without reading */
	QK_SEGMENT_BACKING /* what the target's backing file holds too */
};

struct qk_segment {
	uint64_t off, len;
	enum qk_segment_kind kind;
	struct qcow_store *store; /* DATA stored plainly there at host_off, else NULL */
	uint64_t host_off;
};

#define QK_SOURCE_LAYERS 16

/* What is known of a layer's store, so that a segment costs no system call. */
struct qk_source_layer {
	const struct qcow_image *image;
	struct qcow_store *store;
	uint64_t size;
	bool may_have_holes; /* a qcow2 layer in a file with fewer blocks than bytes */
	uint64_t known_off, known_len; /* host range with one answer … */
	bool known_hole; /* … which is this */
};

struct qk_source {
	struct qcow_image *const *images;
	unsigned n_images;
	uint64_t *
		starts; /* of each image in the disk, at a sector; starts[n_images]: where all end */
	uint64_t size; /* of the disk: zeros from starts[n_images] up to it */
	/* Layers of the first image at this depth and below hold what the target's backing file holds;
	 * 0 = there is none. */
	unsigned backing_depth;
	uint64_t backing_limit; /* below it an unallocated range comes from those layers */
	bool salvage; /* a range that cannot be mapped is DATA that reading will judge */
	/* the walk: one thread at a time */
	struct qk_segment ahead;
	struct qk_source_layer layers[QK_SOURCE_LAYERS];
};

/* QEMU reads disks in whole sectors: each image begins at one, and what the one before lacks is zeros. */
#define QK_SOURCE_SECTOR ((uint64_t)512)

/* `size` 0: the sum of the images, each to the end of its last sector. QCOW_E_NOMEM, QCOW_E_RANGE (sizes that overflow). */
enum qcow_status qk_source_init(struct qk_source *source, struct qcow_image *const *images,
	unsigned n_images, uint64_t size, struct qcow_error *err);
void qk_source_release(struct qk_source *source);

/* Say which layers of the first image the target's backing image shares, by the identity of their
 * files. False where none does: then the content has to be compared. */
bool qk_source_find_backing(struct qk_source *source, const struct qcow_image *backing);

/* The segment at `off` < size, to its end. Calls with rising offsets are cheap; one thread at a time.
 * Errors as qcow_map. */
enum qcow_status qk_source_segment(
	struct qk_source *source, uint64_t off, struct qk_segment *out, struct qcow_error *err);

/* Read a range of the disk, across images and past the last one. From any thread. As qcow_pread. */
enum qcow_status qk_source_read(const struct qk_source *source, void *buf, uint64_t len,
	uint64_t off, struct qcow_error *err);

/* The images' index that holds `off`; n_images past the last. */
unsigned qk_source_find(const struct qk_source *source, uint64_t off);

#endif
