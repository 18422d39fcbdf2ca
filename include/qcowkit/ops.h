/* SPDX-License-Identifier: MIT */
/*
 * Whole-image operations, written on the public calls of qcowkit.h alone.
 */
#ifndef QCOWKIT_OPS_H
#define QCOWKIT_OPS_H

#include <qcowkit/qcowkit.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- convert ---- */

struct qcow_convert_options {
	uint32_t struct_size;
	struct qcow_image *const *sources; /* concatenated */
	unsigned n_sources;
	const char *format; /* "qcow2" or "raw" */
	/* qcow2: how to make the target. virtual_size 0 = the sum of the sources (or the one given). */
	struct qcow_create_options create;
	bool compress;
	int level;	    /* of the codec, -1 = the default */
	uint64_t sparse_bytes; /* -S: runs of zeros of at least this many bytes are not stored;
				  0 = store everything, UINT64_MAX = the default of 4 KiB */
	bool target_is_zero; /* --target-is-zero: the target reads as zeros, nothing needs zeroing */
	bool keep_target;   /* -n: the target exists, is at least as long, and is not emptied (raw) */
	/* -B: the new image gets this backing chain; ranges whose answer comes from it are not copied.
	 * Only the first source's layers above it are. Stays the caller's. */
	struct qcow_image *backing;
	bool salvage;	    /* unreadable ranges become zeros and are counted */
	bool out_of_order;  /* -W: targets that allow it are written in any order (raw) */
	bool no_clone;	    /* never share blocks by reflink */
	unsigned n_workers; /* -m: 1 to 16; 0 = the number of processors, 2 to 16 */
	uint64_t rate_bytes_per_sec; /* -r: 0 = unlimited */
	void (*on_salvage)(void *ctx, uint64_t off, uint64_t len, const struct qcow_error *why);
	void *salvage_ctx;
	struct qcow_progress progress;
};
#define QCOW_CONVERT_OPTIONS_INIT                                                                  \
	{                                                                                          \
		.struct_size = sizeof(struct qcow_convert_options), .format = "qcow2",             \
		.create = QCOW_CREATE_OPTIONS_INIT, .level = -1, .sparse_bytes = UINT64_MAX        \
	}

struct qcow_convert_result {
	uint64_t bytes_read, bytes_written, bytes_cloned, bytes_zero, bytes_salvaged;
};

/*
 * Copy the guest's view of the sources into `target` (and with create.data_file_name into
 * `target_data`). The bytes written are the same for every number of workers (unless out_of_order).
 * Not flushed: the caller chooses. A target that certainly cannot hold the result is refused before
 * anything is written (QCOW_E_NOSPC).
 */
QCOW_EXPORT enum qcow_status qcow_convert(struct qcow_store *target, struct qcow_store *target_data,
	const struct qcow_convert_options *options, struct qcow_convert_result *result,
	struct qcow_error *err) QCOW_MUST_USE;

/* Write the disk to a stream (a pipe): from offset 0 to the end, holes as zeros. */
QCOW_EXPORT enum qcow_status qcow_convert_to_fd(struct qcow_image *source, int fd,
	const struct qcow_progress *progress, struct qcow_error *err) QCOW_MUST_USE;

/* ---- measure ---- */

struct qcow_measure_result {
	uint64_t required;	  /* bytes of the file that convert would write, at most */
	uint64_t fully_allocated; /* … if every guest cluster were allocated */
	uint64_t bitmaps;	  /* additional bytes for the source's bitmaps */
	bool has_bitmaps;
};

/* How large `create` would be with the data of `source` (NULL: an empty disk of create->virtual_size).
 * format "qcow2" or "raw". */
QCOW_EXPORT enum qcow_status qcow_measure(struct qcow_image *source, const char *format,
	const struct qcow_create_options *create, struct qcow_measure_result *out,
	struct qcow_error *err) QCOW_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
