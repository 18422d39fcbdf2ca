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
	struct qcow_image *const
		*sources; /* concatenated, each from the next sector of 512 bytes on */
	unsigned n_sources;
	const char *format; /* "qcow2", "raw" or "luks" */
	/* qcow2 and luks: how to make the target. virtual_size 0 = the end of the last source; where that is raw, the end
	 * of its last sector of 512 bytes, for other programs count disks in those. */
	struct qcow_create_options create;
	bool whole_sectors; /* the target ends with a sector of 512 bytes in any case, as QEMU's do */
	bool compress; /* into target_image by its own method and level */
	int level; /* of the codec, -1 = the default */
	uint64_t sparse_bytes; /* -S: runs of zeros of at least this many bytes are not stored;
				  0 = store everything, UINT64_MAX = the default of 4 KiB */
	bool target_is_zero; /* --target-is-zero: the target reads as zeros, nothing needs zeroing */
	bool keep_target; /* -n: the target exists, is at least as long, and is not emptied (raw, luks) */
	/* -n onto a qcow2 image: written through this, which is open for writing and stays the caller's; `target` is then
	 * NULL, `create` is not looked at but for its size, and `backing` is what lies below the image. Published
	 * and flushed at the end. */
	struct qcow_image *target_image;
	/* -B: the new image gets this backing chain; ranges whose answer comes from it are not copied.
	 * Only the first source's layers above it are. Stays the caller's. */
	struct qcow_image *backing;
	bool salvage; /* unreadable ranges become zeros and are counted */
	bool out_of_order; /* -W: targets that allow it are written in any order (raw) */
	bool no_clone; /* never share blocks by reflink */
	unsigned n_workers; /* -m: 1 to 16; 0 = the number of processors, 2 to 16 */
	uint64_t rate_bytes_per_sec; /* -r: 0 = unlimited */
	/* runs on the calling thread or a worker's, like the progress: one at a time */
	void (*on_salvage)(void *ctx, uint64_t off, uint64_t len, const struct qcow_error *why);
	void *salvage_ctx;
	struct qcow_progress progress;
	/* Copy the persistent bitmaps of the source (one source, version 3; a qcow2 target of version 3): content,
	 * granularity, whether they are enabled. One that is marked in use, or cannot be read, refuses the
	 * whole before anything is written, or with skip_broken_bitmaps is left out and told. Into target_image, a disk
	 * of the same size, they go in one step after the disk; none may have a name that is there. */
	bool bitmaps, skip_broken_bitmaps;
	void (*on_skipped_bitmap)(void *ctx, const char *name, const struct qcow_error *why);
	void *bitmap_ctx;
};
#ifdef __cplusplus
/* C++ has no designated initialisers before C++20 */
static inline struct qcow_convert_options qcow_convert_options_init(void)
{
	struct qcow_convert_options o = {};
	o.struct_size = sizeof(o);
	o.format = "qcow2";
	o.create = QCOW_CREATE_OPTIONS_INIT;
	o.level = -1;
	o.sparse_bytes = UINT64_MAX;
	return o;
}
#define QCOW_CONVERT_OPTIONS_INIT qcow_convert_options_init()
#else
#define QCOW_CONVERT_OPTIONS_INIT                                                           \
	{                                                                                   \
		.struct_size = sizeof(struct qcow_convert_options), .format = "qcow2",      \
		.create = QCOW_CREATE_OPTIONS_INIT, .level = -1, .sparse_bytes = UINT64_MAX \
	}
#endif

struct qcow_convert_result {
	uint64_t bytes_read, bytes_written, bytes_cloned, bytes_zero, bytes_salvaged;
};

/*
 * Copy the guest's view of the sources into `target` (and with create.data_file_name or
 * create.luks_detached_header into `target_data`). A luks target is written whole: its zeros are encrypted too.
 * The bytes written are the same for every number of workers (unless out_of_order).
 * Not flushed: the caller chooses. A target that certainly cannot hold the result is refused before
 * anything is written (QCOW_E_NOSPC).
 */
QCOW_EXPORT enum qcow_status qcow_convert(struct qcow_store *target, struct qcow_store *target_data,
	const struct qcow_convert_options *options, struct qcow_convert_result *result,
	struct qcow_error *err) QCOW_MUST_USE;

/* Write the disk to a stream (a pipe): from offset 0 to the end, holes as zeros. */
QCOW_EXPORT enum qcow_status qcow_convert_to_fd(struct qcow_image *source, int fd,
	const struct qcow_progress *progress, struct qcow_error *err) QCOW_MUST_USE;

/* ---- compare ---- */

enum qcow_difference {
	QCOW_DIFFERENCE_NONE = 0,
	QCOW_DIFFERENCE_SIZE, /* strict: one disk is longer */
	QCOW_DIFFERENCE_ALLOCATION, /* strict: a range is of another kind */
	QCOW_DIFFERENCE_CONTENT
};

struct qcow_compare_options {
	uint32_t struct_size;
	bool strict; /* sizes and the kind of every range must agree too */
	bool whole_sectors; /* raw disks end with a sector of 512 bytes, and offsets told are of sectors, as in QEMU */
	unsigned n_workers; /* 1 to 16; 0 = the number of processors, 2 to 16 */
	/* The flags of an extent that `strict` compares; NULL: all. One call at a time, side 0 or 1. */
	uint32_t (*strict_flags)(void *ctx, unsigned side, const struct qcow_extent *extent);
	void *ctx;
	struct qcow_progress progress;
};
#ifdef __cplusplus
static inline struct qcow_compare_options qcow_compare_options_init(void)
{
	struct qcow_compare_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_COMPARE_OPTIONS_INIT qcow_compare_options_init()
#else
#define QCOW_COMPARE_OPTIONS_INIT                                  \
	{                                                          \
		.struct_size = sizeof(struct qcow_compare_options) \
	}
#endif

struct qcow_compare_result {
	enum qcow_difference difference;
	uint64_t offset; /* of the first difference, or where the call failed */
	uint64_t sizes[2]; /* as compared */
	unsigned failed_side; /* after a failure: whose map or data could not be read */
	bool failed_to_read; /* … its data, not its map */
};

/*
 * Do two images hold the same disk? What both maps know to be zeros is not read; where one disk is longer, the
 * rest of it must read as zeros. The answer, and which failure is told, are the same for every number of workers: what
 * comes first on the disk. *result is filled on failure too. `options`
 * NULL: the defaults. Errors of qcow_map and qcow_pread, QCOW_E_INVAL, QCOW_E_NOMEM, QCOW_E_CANCELLED.
 */
QCOW_EXPORT enum qcow_status qcow_compare(struct qcow_image *a, struct qcow_image *b,
	const struct qcow_compare_options *options, struct qcow_compare_result *result,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- rebase ---- */

struct qcow_rebase_options {
	uint32_t struct_size;
	struct qcow_image *backing; /* the new chain, open; stays the caller's. NULL: none */
	const char *backing_name; /* to record for it; NULL: none */
	const char *backing_format; /* as in struct qcow_backing_options */
	bool compress; /* what is copied, in whole clusters */
	bool dry_run; /* only count; the image need not be open for writing */
	unsigned n_workers; /* 1 to 16; 0 = the number of processors, 2 to 16 */
	struct qcow_progress progress;
};
#ifdef __cplusplus
static inline struct qcow_rebase_options qcow_rebase_options_init(void)
{
	struct qcow_rebase_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_REBASE_OPTIONS_INIT qcow_rebase_options_init()
#else
#define QCOW_REBASE_OPTIONS_INIT                                  \
	{                                                         \
		.struct_size = sizeof(struct qcow_rebase_options) \
	}
#endif

struct qcow_rebase_result {
	uint64_t bytes_copied, bytes_zeroed; /* that the image did not hold itself */
};

/*
 * Put an overlay on another backing file, or on none, and keep what it reads: clusters (subclusters) that it does not
 * hold and that differ between the chain below it and the new one are copied into it, zeros as zeros. Then qcow_set_backing.
 * `image` is open for writing with its old chain, and nobody else writes it during the call. It keeps that chain until
 * it is closed. Where the call fails, is cancelled or the machine stops, the image names its old backing file and
 * reads the same. Internal snapshots are not looked at: what they do not hold comes from the new file from then on.
 * Copying counts as writing for enabled bitmaps. Errors of qcow_map, qcow_pread, qcow_pwrite and qcow_set_backing,
 * QCOW_E_CANCELLED.
 */
QCOW_EXPORT enum qcow_status qcow_rebase(struct qcow_image *image,
	const struct qcow_rebase_options *options, struct qcow_rebase_result *result,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- commit ---- */

struct qcow_commit_options {
	uint32_t struct_size;
	bool keep; /* do not empty the image afterwards */
	bool dry_run; /* only count; nothing need be open for writing */
	uint64_t rate_bytes_per_sec; /* of what is copied; 0 = unlimited */
	unsigned n_workers; /* 1 to 16; 0 = the number of processors, 2 to 16 */
	struct qcow_progress progress;
};
#ifdef __cplusplus
static inline struct qcow_commit_options qcow_commit_options_init(void)
{
	struct qcow_commit_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_COMMIT_OPTIONS_INIT qcow_commit_options_init()
#else
#define QCOW_COMMIT_OPTIONS_INIT                                  \
	{                                                         \
		.struct_size = sizeof(struct qcow_commit_options) \
	}
#endif

struct qcow_commit_result {
	uint64_t bytes_copied, bytes_zeroed; /* in the base */
};

/*
 * Write what `image` and the layers between it and `base` hold into `base`, a layer below it: the base then holds what
 * the image reads. A shorter base is grown (qcow_resize), a longer one keeps what lies past the end. When the base is
 * stable the image is emptied (qcow_empty), unless `keep`; the layers between are left as they are. What they hold
 * beside what the image reads is of no use afterwards, nor are other images that lie on the base.
 * Both are open for writing (the base by struct qcow_resolved.writable), and nobody else writes either meanwhile.
 * Where the call fails, is cancelled or the machine stops, the image reads the same as before, from wherever.
 * `options` NULL: the defaults. Errors of qcow_map, qcow_pread, qcow_pwrite, qcow_resize and qcow_empty, QCOW_E_INVAL, QCOW_E_CANCELLED.
 */
QCOW_EXPORT enum qcow_status qcow_commit(struct qcow_image *image, struct qcow_image *base,
	const struct qcow_commit_options *options, struct qcow_commit_result *result,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- dd ---- */

struct qcow_dd_options {
	uint32_t struct_size;
	uint64_t source_off, target_off,
		len; /* bytes; the source may be read to the end of its last sector of 512 */
	uint64_t block_bytes; /* what `sparse` judges */
	bool sparse; /* blocks of zeros, counted from source_off, are not written: the target keeps what it has there */
	unsigned n_workers; /* 1 to 16; 0 = the number of processors, 2 to 16 */
	struct qcow_progress progress;
};
#ifdef __cplusplus
static inline struct qcow_dd_options qcow_dd_options_init(void)
{
	struct qcow_dd_options o = {};
	o.struct_size = sizeof(o);
	o.block_bytes = 512;
	return o;
}
#define QCOW_DD_OPTIONS_INIT qcow_dd_options_init()
#else
#define QCOW_DD_OPTIONS_INIT                                                      \
	{                                                                         \
		.struct_size = sizeof(struct qcow_dd_options), .block_bytes = 512 \
	}
#endif

struct qcow_dd_result {
	uint64_t bytes_written;
};

/*
 * Write a range of the disk of `source` to `target`, which is open for writing, in any order. Both are as long as the range
 * asks for. Not flushed. QCOW_E_RANGE, QCOW_E_INVAL, QCOW_E_NOMEM, QCOW_E_CANCELLED, errors of qcow_pread, qcow_pwrite
 * and qcow_map: the target may hold any part of it then.
 */
QCOW_EXPORT enum qcow_status qcow_dd(struct qcow_image *source, struct qcow_image *target,
	const struct qcow_dd_options *options, struct qcow_dd_result *result,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- measure ---- */

struct qcow_measure_result {
	uint64_t required; /* bytes of the file that convert would write, at most */
	uint64_t fully_allocated; /* … if every guest cluster were allocated */
	uint64_t bitmaps; /* additional bytes for the source's bitmaps */
	bool has_bitmaps;
};

/* How large `create` would be with the data of `source` (NULL: an empty disk of create->virtual_size).
 * format "qcow2", "raw" or "luks". */
QCOW_EXPORT enum qcow_status qcow_measure(struct qcow_image *source, const char *format,
	const struct qcow_create_options *create, struct qcow_measure_result *out,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- vet ---- */

/* What an image may use. X(bit, NAME, word) */
#define QCOW_VET_FEATURES(X)                                         \
	X(0, BACKING, "backing") /* names a backing file */          \
	X(1, DATA_FILE, "data-file") /* names a data file */         \
	X(2, CORRUPT, "corrupt") /* marked corrupt */                \
	X(3, DIRTY, "dirty") /* refcounts are not up to date */      \
	X(4, VERSION_2, "version-2")                                 \
	X(5, LAZY_REFCOUNTS, "lazy-refcounts")                       \
	X(6, EXTENDED_L2, "extended-l2")                             \
	X(7, ZSTD, "zstd") /* compression type zstd */               \
	X(8, COMPRESSED, "compressed") /* has compressed clusters */ \
	X(9, SNAPSHOTS, "snapshots")                                 \
	X(10, BITMAPS, "bitmaps")                                    \
	X(11, AES, "aes")                                            \
	X(12, LUKS, "luks")                                          \
	X(13, UNKNOWN, "unknown") /* feature bits or header extensions that nobody here knows */

enum qcow_vet_feature {
#define QCOW_VET_FEATURE_ENUM(bit, name, word) QCOW_VET_##name = 1 << (bit),
	QCOW_VET_FEATURES(QCOW_VET_FEATURE_ENUM)
#undef QCOW_VET_FEATURE_ENUM
	QCOW_VET_ALL = (1 << 14) - 1,
	/* What a stranger's image may use: all but other files and a mark that says it is broken. */
	QCOW_VET_DEFAULT = QCOW_VET_ALL &
			   ~(QCOW_VET_BACKING | QCOW_VET_DATA_FILE | QCOW_VET_CORRUPT)
};

/* The word for one feature bit, "extended-l2", or NULL. Static storage. */
QCOW_EXPORT const char *qcow_vet_feature_name(unsigned feature);

enum qcow_refusal_kind {
	QCOW_REFUSAL_HEADER = 1, /* it cannot be opened; rule is the status, "QCOW_E_FORMAT" */
	QCOW_REFUSAL_FINDING, /* its tables are damaged; rule is the finding's name */
	QCOW_REFUSAL_POLICY /* the options forbid it; rule is the option's word, "backing" */
};

/* Valid during the callback. `text` holds names as the image has them: escape what is printed. */
struct qcow_refusal {
	enum qcow_refusal_kind kind;
	const char *rule;
	const char *text; /* a sentence with the values */
	const struct qcow_finding *finding; /* of QCOW_REFUSAL_FINDING, else NULL */
};

struct qcow_vet_options {
	uint32_t struct_size;
	uint32_t features; /* enum qcow_vet_feature bits that are allowed */
	const char *format; /* "qcow2" or "raw" */
	/* Refused above; UINT64_MAX and UINT32_MAX: no bound. */
	uint64_t max_size; /* bytes of the virtual disk */
	uint64_t max_ratio; /* bytes of the virtual disk for each byte of the file */
	uint64_t
		max_data_ratio; /* bytes that clusters in use stand for, for each byte of the file */
	uint32_t max_snapshots, max_bitmaps;
	uint64_t max_findings; /* findings told at most; totals are exact */
	uint64_t memory_bytes; /* as in struct qcow_check_options */
	void (*on_refusal)(void *ctx, const struct qcow_refusal *refusal);
	void *ctx;
	struct qcow_progress progress;
};
#ifdef __cplusplus
/* C++ has no designated initialisers before C++20 */
static inline struct qcow_vet_options qcow_vet_options_init(void)
{
	struct qcow_vet_options o = {};
	o.struct_size = sizeof(o);
	o.features = QCOW_VET_DEFAULT;
	o.format = "qcow2";
	o.max_size = UINT64_MAX;
	o.max_ratio = UINT64_MAX;
	o.max_data_ratio = UINT64_MAX;
	o.max_snapshots = UINT32_MAX;
	o.max_bitmaps = UINT32_MAX;
	o.max_findings = 100;
	return o;
}
#define QCOW_VET_OPTIONS_INIT qcow_vet_options_init()
#else
#define QCOW_VET_OPTIONS_INIT                                                                 \
	{                                                                                     \
		.struct_size = sizeof(struct qcow_vet_options), .features = QCOW_VET_DEFAULT, \
		.format = "qcow2", .max_size = UINT64_MAX, .max_ratio = UINT64_MAX,           \
		.max_data_ratio = UINT64_MAX, .max_snapshots = UINT32_MAX,                    \
		.max_bitmaps = UINT32_MAX, .max_findings = 100                                \
	}
#endif

struct qcow_vet_result {
	bool ok; /* nothing was refused */
	uint64_t refusals; /* all of them, told or not */
	struct qcow_image *image; /* to look at and close; NULL where it cannot be opened */
	uint32_t features; /* that it uses */
	uint64_t data_bytes; /* that clusters in use stand for */
	uint64_t ratio, data_ratio; /* rounded up */
	struct qcow_check_result check; /* zeros for raw */
};

/*
 * May this image be let in? Judged by its header and its tables: no guest data is read and no other file
 * opened. For raw there is nothing to judge but its size, and that its first bytes are no qcow2 header.
 * `store` passes to the library. QCOW_OK is a verdict, `result->ok` says which; a failure is none:
 * QCOW_E_INVAL, QCOW_E_IO, QCOW_E_NOMEM, QCOW_E_CANCELLED and other failures of the host.
 */
QCOW_EXPORT enum qcow_status qcow_vet(struct qcow_store *store,
	const struct qcow_vet_options *options, struct qcow_vet_result *result,
	struct qcow_error *err) QCOW_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
