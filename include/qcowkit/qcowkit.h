/* SPDX-License-Identifier: MIT */
/*
 * qcowkit: a library for qcow2 virtual disks.
 *
 * The shape of the library:
 *   struct qcow_store    bytes on a host: a file, a block device, memory     (qcowkit/store.h)
 *   struct qcow_image    one open layer, qcow2 or raw, with its backing layers below it
 *   struct qcow_builder  a new image being written front to back, invisible until it is finished
 *
 * Threads: calls that read and write guest data (qcow_pread, qcow_map, qcow_pwrite, qcow_flush … and the
 * qcow_get_* calls) may run on one image from any number of threads at once. Open, close and check of one image are the caller's to order. A builder
 * belongs to one thread at a time, except where a call says otherwise.
 *
 * Errors: see qcowkit/error.h. `err` may always be NULL. Out parameters are set on success only,
 * unless a call says otherwise.
 *
 * Structs with a `struct_size` member must be initialised with their _INIT macro; members added by
 * later versions then have their defaults.
 */
#ifndef QCOWKIT_H
#define QCOWKIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <qcowkit/error.h>
#include <qcowkit/findings.h>
#include <qcowkit/store.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QCOW_VERSION_MAJOR 0
#define QCOW_VERSION_MINOR 1
#define QCOW_VERSION_PATCH 0
#define QCOW_VERSION_TEXT  "0.1.0"

/* The version of the library that is linked, "0.1.0". Static storage. */
QCOW_EXPORT const char *qcow_version(void);

struct qcow_image;
struct qcow_builder;

/* ---- long calls: progress and cancelling ---- */

/* Both callbacks may be NULL. They run on the calling thread or a worker's, one at a time. */
struct qcow_progress {
	void (*report)(void *ctx, uint64_t done, uint64_t total); /* done <= total, never decreasing */
	bool (*cancelled)(void *ctx); /* true ends the call with QCOW_E_CANCELLED */
	void *ctx;
};

/* ---- opening ---- */

enum qcow_reference_kind {
	QCOW_REF_BACKING = 1,
	QCOW_REF_DATA_FILE = 2
};

/* A file that an image names. `name` comes from whoever made the image: trust nothing in it. */
struct qcow_reference {
	enum qcow_reference_kind kind;
	const char *name;   /* as stored, NUL terminated (a stored NUL is refused before) */
	const char *format; /* recorded backing format, or NULL */
	const char *from;   /* name of the store of the image that names it */
	unsigned depth;	    /* 0 = named by the image being opened, 1 = by its backing image, … */
};

/* A passphrase: any bytes. It stays its owner's, who wipes it. */
struct qcow_secret {
	const void *data;
	size_t len;
};

/* What a resolver answers; it comes zeroed. Stores and image pass to the library, also when the open fails
 * later. Of a backing file it is either a store, an image, or is_none. */
struct qcow_resolved {
	struct qcow_store *store;
	const char *format; /* "qcow2", "raw", "luks", or NULL: probe. Valid until the resolver is next called. */
	struct qcow_secret secret;	/* of this layer, where it is encrypted; data NULL: get_secret is asked */
	struct qcow_store *luks_header; /* as in struct qcow_open_options */
	struct qcow_image *image;	/* an open image, with all that lies below it */
	bool is_none;			/* nothing lies below: what the layers above lack reads as zeros */
	bool writable;			/* backing file: the layer is for writing too, by qcow_backing of the
					   one above it (qcow_commit); with QCOW_OPEN_WRITE only */
};

enum {
	QCOW_OPEN_NO_BACKING = 1,   /* do not resolve the backing file: guest data of the layer alone,
				       unallocated ranges read as zeros and map as not present */
	QCOW_OPEN_NO_DATA_FILE = 2, /* do not resolve the data file: reading guest data then fails */
	QCOW_OPEN_CHECK = 4,	    /* for check, info and dump: tolerate what only refuses guest data
				       (crypt_method without a secret, the corrupt bit, bad snapshot table) */
	QCOW_OPEN_PROBE = 8,	    /* allow format probing of a backing file without a recorded format */
	QCOW_OPEN_WRITE = 16	    /* for reading and writing; layers below are never written */
};

/* What an open for writing does with an image whose dirty bit is set: its refcounts are not to be believed. */
enum qcow_dirty_policy {
	QCOW_DIRTY_REBUILD = 0, /* count anew, so that a crash at any moment leaves a dirty or a good image */
	QCOW_DIRTY_REFUSE	/* fail with QCOW_E_READONLY */
};

/* How an open for writing knows that a cluster with refcount 0 is free: refcounts can lie. */
enum qcow_prove {
	QCOW_PROVE_AUTO = 0, /* count references first where the tables are within 8 MiB, else take only clusters
				past the end of the file (or, where it cannot grow, count first) */
	QCOW_PROVE_FULL,     /* count first, whatever it takes */
	QCOW_PROVE_OFF	     /* believe the refcounts */
};

/*
 * Bits of qcow_open_options.discard. What nothing refers to any more, durably, is always free for the image itself. With
 * these it also goes back to the file system, as holes, before it is used again. A store that cannot punch holes is
 * no failure.
 */
enum qcow_discard_flags {
	QCOW_DISCARD_PASS_REQUEST = 1,	/* freed by qcow_discard and by qcow_zero with QCOW_IO_UNMAP */
	QCOW_DISCARD_PASS_SNAPSHOT = 2, /* freed by operations on snapshots */
	QCOW_DISCARD_PASS_OTHER = 4,	/* freed by anything else: overwritten, compressed anew, tables that moved */
	QCOW_DISCARD_NO_UNREF = 8	/* qcow_discard and QCOW_IO_UNMAP leave a cluster of its own to a zero cluster
					   instead of freeing it, so that a later write allocates nothing; with
					   PASS_REQUEST its content goes all the same. Version 3 only (QCOW_E_INVAL) */
};

#define QCOW_MAX_CHAIN_DEPTH 256

enum qcow_encryption {
	QCOW_ENCRYPTION_NONE = 0,
	QCOW_ENCRYPTION_AES = 1,
	QCOW_ENCRYPTION_LUKS = 2
};

/* What a secret is wanted for. */
struct qcow_secret_request {
	const char *name; /* of the store of the image */
	enum qcow_encryption encryption;
};

/* What is noticed and does not fail. */
enum qcow_log_level {
	QCOW_LOG_NOTE = 1,   /* legal, and worth knowing: unknown features and extensions */
	QCOW_LOG_WARNING = 2 /* damage, or what a later step may trip over */
};

/* Valid during the call. `text` may hold names as the image has them: escape what is printed. */
struct qcow_log_entry {
	enum qcow_log_level level;
	unsigned finding;  /* enum qcow_finding_id, 0 if none */
	const char *image; /* name of the store of the layer */
	const char *text;  /* one sentence, no final newline */
};

struct qcow_open_options {
	uint32_t struct_size;
	uint32_t flags;
	const char *format;   /* "qcow2", "raw", "luks" (version 1), or NULL: probe by magic */
	const char *snapshot; /* id or name of an internal snapshot to view read-only, or NULL */
	bool snapshot_by_id;  /* `snapshot` is an id only / */
	bool snapshot_by_name; /* … a name only; neither: id first, then name */
	uint64_t raw_offset;  /* for format raw: the disk starts here in the store */
	uint64_t raw_size;    /* for format raw: and has this many bytes; 0 = to the end. It may go past the end
				 by less than 512 bytes (a last sector cut short), which read as zeros */
	uint64_t cache_bytes; /* budget of a layer's tables; half as much is for decoded clusters; 0 = 8 MiB */
	/* Opens what the image names. NULL: images that name files they need are refused (QCOW_E_POLICY).
	 * The resolver says no by returning a failure, which the open passes on. */
	enum qcow_status (*resolve)(void *ctx, const struct qcow_reference *ref,
		struct qcow_resolved *out, struct qcow_error *err);
	void *resolve_ctx;
	/* A backing image to use instead of the one named; passes to the new image on success. */
	struct qcow_image *backing;
	/* The passphrase of the image itself, where it is encrypted. data NULL: none. */
	struct qcow_secret secret;
	/* Asked for the passphrase of an encrypted layer that `secret` is not for; NULL: such layers are
	 * refused (QCOW_E_KEY). What it gives must stay until it is called again or the open returns. Never
	 * called with QCOW_OPEN_CHECK, which opens such layers without their key. */
	enum qcow_status (*get_secret)(void *ctx, const struct qcow_secret_request *request,
		struct qcow_secret *out, struct qcow_error *err);
	void *secret_ctx;
	/* Deriving a key may take seconds: true ends the open with QCOW_E_CANCELLED. NULL: never. */
	bool (*cancelled)(void *ctx);
	void *cancel_ctx;
	/* Iterations of a key derivation that are worked off for an image; more is QCOW_E_LIMIT. 0 = 10^8. */
	uint32_t max_iterations;
	/* With QCOW_OPEN_WRITE: */
	enum qcow_dirty_policy dirty;
	enum qcow_prove prove;
	uint64_t stage_bytes; /* memory for mappings that no flush has published yet; 0 = 4 MiB. When it is
				 full, a write publishes by itself */
	/* For format luks: the store of a detached header; the image's own store then holds the disk alone. It
	 * passes to the library like the image's. NULL: the header is at the start of the image. */
	struct qcow_store *luks_header;
	/* Told what the library notices of the image and of the layers below it and does not fail for; NULL: nobody
	 * is. Called on the thread that notices, during qcow_open or later, at worst on several at once; it must
	 * not call back with the image. The library itself never prints. */
	void (*log)(void *ctx, const struct qcow_log_entry *entry);
	void *log_ctx;
	uint32_t discard; /* with QCOW_OPEN_WRITE: enum qcow_discard_flags, for this image and none below it */
};
#ifdef __cplusplus
/* C++ has no designated initialisers before C++20 */
static inline struct qcow_open_options qcow_open_options_init(void)
{
	struct qcow_open_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_OPEN_OPTIONS_INIT qcow_open_options_init()
#else
#define QCOW_OPEN_OPTIONS_INIT                                                                     \
	{                                                                                          \
		.struct_size = sizeof(struct qcow_open_options)                                    \
	}
#endif

/*
 * Open an image and, unless told otherwise, everything below it. `store` passes to the library, on
 * failure too (it is closed). Reads cluster 0 and validates every header field before it is used;
 * no guest data is read. Nothing is written, unless QCOW_OPEN_WRITE is given: then unknown autoclear bits
 * are cleared and a dirty image gets its refcounts rebuilt (options->dirty).
 * With QCOW_OPEN_WRITE: QCOW_E_READONLY for a store that is not writable, a snapshot view, and an image that
 * may be opened read-only at most, and a data file that is not writable; QCOW_E_POLICY where the data file was not
 * opened; QCOW_E_UNSUPPORTED for an enabled bitmap with extra data that nobody may ignore; QCOW_E_LIMIT for more granules of enabled bitmaps than are tracked (512 MiB of bits
 * for one, 1 GiB for all); QCOW_E_KEY without the key of an
 * encrypted image; QCOW_E_CORRUPT with the finding for
 * a refcount below its references, structures that share a cluster, a refcount table that contradicts itself, and
 * entries past the end of the file: what options->prove has looked at.
 * Enabled bitmaps record every write, zero and discard. They are marked in use, durably, before the first, and
 * stored by qcow_close; one that cannot be stored stays in use, of which its status and
 * the log tell.
 * QCOW_E_FORMAT (with a sentence naming field and value), QCOW_E_NOT_QCOW2 (format "qcow2" asked for, or
 * a QFI file of unknown version), QCOW_E_UNSUPPORTED, QCOW_E_POLICY, QCOW_E_LOOP, QCOW_E_NOENT (snapshot),
 * QCOW_E_KEY, QCOW_E_IO, QCOW_E_NOMEM, and what the resolver returns.
 */
QCOW_EXPORT enum qcow_status qcow_open(struct qcow_store *store, const struct qcow_open_options *options,
	struct qcow_image **out, struct qcow_error *err) QCOW_MUST_USE;

/* Close the image, its backing chain and all their stores, whatever fails. NULL is allowed. An image open for writing is
 * flushed first, enabled bitmaps are stored, and what was reserved is given back: the first of these that failed is
 * answered, and the log tells the rest. What a failure means for guest data only qcow_flush says: call it before. */
QCOW_EXPORT enum qcow_status qcow_close(struct qcow_image *image);

/* ---- what an image is ---- */

enum qcow_compression {
	QCOW_COMPRESSION_ZLIB = 0,
	QCOW_COMPRESSION_ZSTD = 1
};

#define QCOW_INCOMPAT_DIRTY	  (UINT64_C(1) << 0)
#define QCOW_INCOMPAT_CORRUPT	  (UINT64_C(1) << 1)
#define QCOW_INCOMPAT_DATA_FILE	  (UINT64_C(1) << 2)
#define QCOW_INCOMPAT_COMPRESSION (UINT64_C(1) << 3)
#define QCOW_INCOMPAT_EXTENDED_L2 (UINT64_C(1) << 4)
#define QCOW_COMPAT_LAZY_REFCOUNTS (UINT64_C(1) << 0)
#define QCOW_AUTOCLEAR_BITMAPS	  (UINT64_C(1) << 0)
#define QCOW_AUTOCLEAR_DATA_RAW	  (UINT64_C(1) << 1)

/* All strings belong to the image and live until qcow_close, or a call of manage.h on it. */
struct qcow_info {
	const char *format; /* "qcow2", "raw" or "luks" */
	uint64_t virtual_size;
	uint64_t file_size; /* bytes of the store */
	/* qcow2 only (encryption and crypto_… luks too), 0 or NULL for raw: */
	uint32_t version;
	uint64_t cluster_size;
	uint32_t refcount_bits;
	enum qcow_compression compression;
	enum qcow_encryption encryption;
	bool extended_l2;
	uint64_t incompatible, compatible, autoclear; /* the feature words, 0 for version 2 */
	uint32_t header_length;
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint64_t refcount_table_offset;
	uint32_t refcount_table_clusters;
	uint64_t snapshots_offset;
	uint32_t n_snapshots;
	uint32_t n_bitmaps;	      /* 0 also where the autoclear bit says not to trust them */
	uint64_t bitmap_directory_offset, bitmap_directory_size;
	uint64_t crypto_offset, crypto_length; /* of the encryption header, 0 if none */
	const char *backing_name;     /* as recorded, or NULL */
	const char *backing_format;   /* as recorded, or NULL */
	const char *data_file_name;   /* as recorded, or NULL */
	bool read_only_at_most;	      /* damage was seen that forbids writing */
	bool luks_detached_header;    /* luks: the header is in a store of its own */
};

QCOW_EXPORT void qcow_get_info(const struct qcow_image *image, struct qcow_info *out);

/* The size of the disk (of the snapshot, where one is viewed) in bytes. */
QCOW_EXPORT uint64_t qcow_size(const struct qcow_image *image);

/* The layer below, or NULL. It belongs to `image`. */
QCOW_EXPORT struct qcow_image *qcow_backing(const struct qcow_image *image);

/* The store of the layer itself; of its data file (NULL if none). They belong to `image`. */
QCOW_EXPORT struct qcow_store *qcow_image_store(const struct qcow_image *image);
QCOW_EXPORT struct qcow_store *qcow_image_data_store(const struct qcow_image *image);
/* The store of the detached LUKS header, or NULL. It belongs to `image`. */
QCOW_EXPORT struct qcow_store *qcow_image_header_store(const struct qcow_image *image);

/* Header extensions in file order, all of them (also unknown ones). `data` lives until qcow_close. */
struct qcow_extension {
	uint32_t type;
	uint32_t length;
	const uint8_t *data;
};
QCOW_EXPORT uint32_t qcow_extension_count(const struct qcow_image *image);
QCOW_EXPORT enum qcow_status qcow_get_extension(const struct qcow_image *image, uint32_t index,
	struct qcow_extension *out, struct qcow_error *err) QCOW_MUST_USE;

/* The name of feature `bit` in the image's own feature name table, or the name this library knows,
 * or NULL. kind 0 incompatible, 1 compatible, 2 autoclear. */
QCOW_EXPORT const char *qcow_feature_name(const struct qcow_image *image, unsigned kind, unsigned bit);

/* id and name hold what the file holds, NUL terminated; control bytes are the printer's to escape. */
struct qcow_snapshot {
	const char *id;
	const char *name;
	size_t id_bytes, name_bytes;
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_nsec;
	uint64_t vm_state_size;
	uint64_t disk_size;	/* the image's size where the entry does not say */
	bool has_disk_size;
	uint64_t icount;	/* UINT64_MAX: none recorded */
	const uint8_t *extra;	/* the extra data as stored */
	uint32_t extra_bytes;
};

/* Snapshot `index` of n_snapshots, in table order. Fails with QCOW_E_CORRUPT where the table cannot be
 * read (QCOW_OPEN_CHECK let the open pass). Strings live until qcow_close, or a call of manage.h on the image. */
QCOW_EXPORT enum qcow_status qcow_get_snapshot(const struct qcow_image *image, uint32_t index,
	struct qcow_snapshot *out, struct qcow_error *err) QCOW_MUST_USE;

/* The same for every snapshot in table order, without keeping any: a table may hold 65,536 of them. Strings live
 * during the call of `visit`, which returns false to stop. Entries before a failure were visited. */
QCOW_EXPORT enum qcow_status qcow_each_snapshot(const struct qcow_image *image,
	bool (*visit)(void *ctx, uint32_t index, const struct qcow_snapshot *snapshot), void *ctx,
	struct qcow_error *err) QCOW_MUST_USE;

struct qcow_bitmap {
	const char *name;
	uint32_t granularity_bits;
	bool in_use, is_auto, extra_data_compatible;
	uint32_t flags; /* as stored */
	uint64_t table_offset;
	uint32_t table_entries;
	uint32_t extra_bytes;
};
QCOW_EXPORT enum qcow_status qcow_get_bitmap(const struct qcow_image *image, uint32_t index,
	struct qcow_bitmap *out, struct qcow_error *err) QCOW_MUST_USE;
QCOW_EXPORT enum qcow_status qcow_each_bitmap(const struct qcow_image *image,
	bool (*visit)(void *ctx, uint32_t index, const struct qcow_bitmap *bitmap), void *ctx,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- reading ---- */

/*
 * Read [off, off + len) of the disk. Backing layers are followed; what no layer holds reads as zeros.
 * QCOW_E_RANGE beyond the disk; QCOW_E_CORRUPT with err->finding where a table or compressed cluster in
 * the range is bad (other ranges stay readable); QCOW_E_IO; QCOW_E_NOMEM; QCOW_E_KEY.
 * On failure the content of buf is unspecified.
 */
QCOW_EXPORT enum qcow_status qcow_pread(struct qcow_image *image, void *buf, size_t len, uint64_t off,
	struct qcow_error *err) QCOW_MUST_USE;

enum {
	QCOW_EXTENT_PRESENT = 1,    /* some layer holds this range (data or zero flag) */
	QCOW_EXTENT_ZERO = 2,	    /* reads as zeros, known without reading */
	QCOW_EXTENT_DATA = 4,	    /* bytes are stored for it */
	QCOW_EXTENT_COMPRESSED = 8, /* … compressed */
	QCOW_EXTENT_OFFSET = 16	    /* host_off is where it is stored, plainly, in the layer's (data) store */
};

struct qcow_extent {
	uint64_t off, len;	   /* guest bytes; off is the offset asked for */
	uint64_t host_off;	   /* valid with QCOW_EXTENT_OFFSET */
	struct qcow_image *layer;  /* that decides the range; the deepest asked where none does */
	uint32_t depth;		   /* 0 = the image itself */
	uint32_t flags;
	uint32_t compressed_bytes; /* with QCOW_EXTENT_COMPRESSED: sectors * 512 covered by one cluster */
};

/*
 * The longest run at `off` (at most `len` bytes) with one answer. Contiguous clusters, also of several
 * L2 tables, are one extent only where their host offsets are contiguous. A compressed cluster is an
 * extent of its own. In raw layers holes of the file answer ZERO without DATA; in qcow2 layers a plain
 * cluster that lies in a hole of the file answers ZERO with DATA, a zero cluster with a preallocated host
 * cluster ZERO with OFFSET. Where max_depth stops above a layer that covers the range, what no layer asked
 * holds answers no flag at all.
 * `max_depth` 0 looks at the image alone; UINT32_MAX at the whole chain.
 * Errors as qcow_pread.
 */
QCOW_EXPORT enum qcow_status qcow_map(struct qcow_image *image, uint64_t off, uint64_t len,
	uint32_t max_depth, struct qcow_extent *out, struct qcow_error *err) QCOW_MUST_USE;

/* qcow_pread where all of it is at hand: tables in the cache, data plain and in the host's page cache (or in a file system that
 * is memory), nobody alone with the image. Else QCOW_E_WOULD_BLOCK, at once, also for what qcow_pread would fail with:
 * then qcow_pread is to be called where waiting is no harm. For event loops. QCOW_E_RANGE, QCOW_E_WOULD_BLOCK. */
QCOW_EXPORT enum qcow_status qcow_pread_nowait(struct qcow_image *image, void *buf, size_t len,
	uint64_t off, struct qcow_error *err) QCOW_MUST_USE;

/* qcow_pread into `n_iov` buffers, one after the other. */
QCOW_EXPORT enum qcow_status qcow_preadv(struct qcow_image *image, const struct iovec *iov, int n_iov,
	uint64_t off, struct qcow_error *err) QCOW_MUST_USE;

/* ---- writing ---- */

/*
 * For images opened with QCOW_OPEN_WRITE; any number of threads at once, readers too. Two calls that run at
 * the same time on the same bytes leave, sector by sector, what the one or the other wrote.
 *
 * What a call wrote is seen by every read that begins after it returned, and survives a crash after a
 * qcow_flush that began after it returned. A crash before leaves each 512-byte sector as it was or as it
 * was written, and never anything else; the image stays clean (clusters may leak).
 *
 * Errors of all calls here: QCOW_E_READONLY (not opened for writing), QCOW_E_RANGE (beyond the disk),
 * QCOW_E_NOSPC (the host is full; nothing is lost, other writes may go on), QCOW_E_IO, QCOW_E_CORRUPT with
 * finding (a table is bad, or a write would land on metadata: nothing was written there), QCOW_E_NOMEM.
 * A call that failed may have written any of its sectors.
 *
 * A flush that fails, and a failed write to metadata in use (unless the host is full), fence the image: what is on the disk
 * is not known. From then on every call here fails with that first error until qcow_recover succeeds; reads go on.
 */
enum {
	QCOW_IO_FUA = 1,   /* stable when the call returns, as if qcow_flush followed */
	QCOW_IO_UNMAP = 2, /* qcow_zero: clusters may be given up */
	QCOW_IO_FAST = 4,  /* qcow_zero: QCOW_E_NOTSUP where zeros would have to be written as data */
	QCOW_IO_EXPLICIT = 8 /* qcow_zero: the image itself holds the zeros, also where it reads as zeros already: it
				is to get another backing file */
};

/* Write `len` bytes at `off`. flags: QCOW_IO_FUA. */
QCOW_EXPORT enum qcow_status qcow_pwrite(struct qcow_image *image, const void *buf, size_t len, uint64_t off,
	unsigned flags, struct qcow_error *err) QCOW_MUST_USE;

/* The same from `n_iov` buffers, one after the other. */
QCOW_EXPORT enum qcow_status qcow_pwritev(struct qcow_image *image, const struct iovec *iov, int n_iov,
	uint64_t off, unsigned flags, struct qcow_error *err) QCOW_MUST_USE;

/* Write whole clusters (`off` and `len` are multiples of the cluster size, or the range ends with the disk) compressed by
 * the image's method; a cluster that does not get smaller is written as it is. What was there before is
 * replaced, and the space of it is free after the next flush. flags: QCOW_IO_FUA. QCOW_E_INVAL: not whole clusters;
 * QCOW_E_UNSUPPORTED: an image that has no compressed clusters (raw, encrypted, with a data file). */
QCOW_EXPORT enum qcow_status qcow_write_compressed(struct qcow_image *image, const void *buf, size_t len,
	uint64_t off, unsigned flags, struct qcow_error *err) QCOW_MUST_USE;

/* [off, off + len) reads as zeros afterwards, whatever a backing file holds. Whole clusters become zero clusters
 * and keep their host clusters unless QCOW_IO_UNMAP; version 2 knows no zero clusters: zeros are written as
 * data, but with QCOW_IO_UNMAP and no backing file; a raw data file gets the zeros itself, and no fast ones.
 * flags: any of QCOW_IO_. */
QCOW_EXPORT enum qcow_status qcow_zero(struct qcow_image *image, uint64_t off, uint64_t len, unsigned flags,
	struct qcow_error *err) QCOW_MUST_USE;

/* The content of the range is not needed any more: clusters that lie in it whole (the last of the disk may
 * be cut) are given up and read as zeros; the rest of the range stays as it is, and so does all of it in a
 * version 2 image with a backing file, where nothing could hide that. With QCOW_DISCARD_PASS_REQUEST their space in a data
 * file goes back to the host with the next flush, in a raw one at once. flags: QCOW_IO_FUA. */
QCOW_EXPORT enum qcow_status qcow_discard(struct qcow_image *image, uint64_t off, uint64_t len,
	unsigned flags, struct qcow_error *err) QCOW_MUST_USE;

/* Everything that returned before is stable when it returns. Costs one flush of the store, two where
 * clusters were allocated since the last. Calls at the same time share their work. */
QCOW_EXPORT enum qcow_status qcow_flush(struct qcow_image *image, struct qcow_error *err) QCOW_MUST_USE;

/* After a failure that fenced the image: write again what is uncertain, flush, read it back, and lift the
 * fence. After a flush that failed, writes since the last good one may be lost, sector by sector: what such a
 * sector reads then is what it held before. Write them again.
 * QCOW_OK where there is no fence. Fails, and the fence stays, where the host still does. Waits for calls
 * that are under way. */
QCOW_EXPORT enum qcow_status qcow_recover(struct qcow_image *image, struct qcow_error *err) QCOW_MUST_USE;

/* ---- what a bitmap says ---- */

struct qcow_bitmap_reader;

struct qcow_bitmap_extent {
	uint64_t off, len; /* guest bytes; off is the offset asked for */
	bool dirty;
};

/* The index of the bitmap `name`, for qcow_get_bitmap and qcow_bitmap_open. QCOW_E_NOENT (also where the
 * autoclear bit says not to trust any), QCOW_E_CORRUPT (the directory cannot be read), QCOW_E_NOMEM, QCOW_E_IO. */
QCOW_EXPORT enum qcow_status qcow_bitmap_find(struct qcow_image *image, const char *name,
	uint32_t *index, struct qcow_error *err) QCOW_MUST_USE;

/*
 * Begin to read bitmap `index`. It is about the active disk, also where a snapshot is viewed, and needs neither
 * backing file, data file nor key. The reader takes 70 KiB whatever the disk's size and must be closed before the
 * image. Threads: a reader belongs to one thread at a time; any number of readers may work on one image at once,
 * beside every call that reads.
 * QCOW_E_CORRUPT with err->finding (BITMAP_INCONSISTENT: it is marked in use, and nothing it says can be trusted;
 * BITMAP_TABLE, BITMAP_DIRECTORY: it is damaged), QCOW_E_UNSUPPORTED (it has extra data that may not be ignored),
 * QCOW_E_RANGE, QCOW_E_NOMEM, QCOW_E_IO.
 */
QCOW_EXPORT enum qcow_status qcow_bitmap_open(struct qcow_image *image, uint32_t index,
	struct qcow_bitmap_reader **out, struct qcow_error *err) QCOW_MUST_USE;

/*
 * The run at `off`, at most `len` bytes of it, that is dirty or clean throughout. It ends with the run, or after
 * 16 MiB of bitmap were looked at: the next one may then say the same. Offsets may come in any order.
 * QCOW_E_RANGE beyond the disk; QCOW_E_CORRUPT with err->finding where the bitmap's table names no cluster of the
 * file (other ranges stay readable); QCOW_E_IO.
 */
QCOW_EXPORT enum qcow_status qcow_bitmap_read(struct qcow_bitmap_reader *reader, uint64_t off,
	uint64_t len, struct qcow_bitmap_extent *out, struct qcow_error *err) QCOW_MUST_USE;

/* NULL is allowed. */
QCOW_EXPORT void qcow_bitmap_close(struct qcow_bitmap_reader *reader);

/* ---- checking ---- */

struct qcow_finding {
	unsigned id; /* enum qcow_finding_id */
	enum qcow_severity severity;
	uint64_t host_off;  /* the cluster or entry concerned, or QCOW_NO_OFFSET */
	uint64_t guest_off; /* or QCOW_NO_OFFSET */
	uint64_t stored;    /* the value in the file (an entry, a refcount) */
	uint64_t expected;  /* what it should be, where that is known, else equal to stored */
	const char *where;  /* "L2 table 3, entry 17", valid during the callback */
};

/* The name of a finding, "REFCOUNT_TOO_LOW"; its severity; its sentence. NULL / 0 for an unknown id. */
QCOW_EXPORT const char *qcow_finding_name(unsigned id);
QCOW_EXPORT const char *qcow_finding_text(unsigned id);
QCOW_EXPORT enum qcow_severity qcow_finding_severity(unsigned id);

enum {
	QCOW_CHECK_DATA = 1 /* decode every compressed cluster too */
};

struct qcow_check_options {
	uint32_t struct_size;
	uint32_t flags;
	uint64_t memory_bytes; /* bound of the census; 0 = 64 MiB; smaller means more passes */
	uint64_t max_findings; /* callbacks at most; 0 = all. Totals are always exact. */
	void (*on_finding)(void *ctx, const struct qcow_finding *finding);
	void *ctx;
	struct qcow_progress progress;
};
#ifdef __cplusplus
/* C++ has no designated initialisers before C++20 */
static inline struct qcow_check_options qcow_check_options_init(void)
{
	struct qcow_check_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_CHECK_OPTIONS_INIT qcow_check_options_init()
#else
#define QCOW_CHECK_OPTIONS_INIT                                                                    \
	{                                                                                          \
		.struct_size = sizeof(struct qcow_check_options)                                   \
	}
#endif

struct qcow_check_result {
	uint64_t corruptions, leaks, notes;
	uint64_t check_errors;	      /* reads that failed: the judgement is incomplete */
	uint64_t total_clusters;      /* of the virtual disk */
	uint64_t allocated_clusters;  /* of the active tree, compressed ones too */
	uint64_t fragmented_clusters; /* whose host offset does not follow their predecessor's */
	uint64_t compressed_clusters;
	uint64_t image_end_offset;    /* end of the last cluster in use */
};

/* Walk every reference and compare with the refcounts. Reads only. Opens nothing. Of an image that is written it sees
 * what is on the disk: flush before, and leave it alone meanwhile.
 * QCOW_OK also where findings exist; QCOW_E_NOTSUP for raw; QCOW_E_CANCELLED, QCOW_E_NOMEM, QCOW_E_IO. */
QCOW_EXPORT enum qcow_status qcow_check(struct qcow_image *image, const struct qcow_check_options *options,
	struct qcow_check_result *result, struct qcow_error *err) QCOW_MUST_USE;

/* ---- walking all metadata ---- */

enum qcow_structure {
	QCOW_STRUCT_HEADER = 1,
	QCOW_STRUCT_L1,		     /* the active L1 table, or with `snapshot` a snapshot's */
	QCOW_STRUCT_L1_ENTRY,	     /* not 0 */
	QCOW_STRUCT_L2,
	QCOW_STRUCT_L2_ENTRY,	     /* not 0; `value2` is the subcluster bitmap */
	QCOW_STRUCT_REFCOUNT_TABLE,
	QCOW_STRUCT_REFCOUNT_TABLE_ENTRY, /* not 0 */
	QCOW_STRUCT_REFCOUNT_BLOCK,
	QCOW_STRUCT_REFCOUNT_ENTRY,  /* not 0; host_off is the cluster counted */
	QCOW_STRUCT_SNAPSHOT_TABLE,
	QCOW_STRUCT_BITMAP_DIRECTORY,
	QCOW_STRUCT_BITMAP_TABLE,
	QCOW_STRUCT_BITMAP_TABLE_ENTRY,
	QCOW_STRUCT_CRYPTO_HEADER
};

struct qcow_walk_item {
	enum qcow_structure kind;
	uint64_t host_off; /* of the structure; for entries, of the entry itself */
	uint64_t len;	   /* bytes of the structure or entry */
	uint64_t index;	   /* of the entry in its table */
	uint64_t value, value2; /* entries: as stored */
	uint64_t target_off, target_len; /* entries: host bytes referred to; 0 if none */
	uint64_t guest_off; /* L1 and L2 entries, else QCOW_NO_OFFSET */
	int64_t snapshot;   /* index of the snapshot whose tree this is, -1 = active */
	unsigned finding;   /* != 0: what is wrong with it; then nothing below it is walked */
};

enum {
	QCOW_WALK_REFCOUNTS = 1, /* refcount entries too, not only tables and blocks */
	QCOW_WALK_ENTRIES = 2	 /* L2 entries too, not only tables */
};

/* Visit every structure of the image once in a fixed order, tables before their entries. The visitor
 * returns false to stop (the walk then ends with QCOW_OK). Memory does not grow with the image. */
QCOW_EXPORT enum qcow_status qcow_walk(struct qcow_image *image, unsigned flags,
	bool (*visit)(void *ctx, const struct qcow_walk_item *item), void *ctx,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- making images ---- */

enum qcow_preallocation {
	QCOW_PREALLOC_OFF = 0,
	QCOW_PREALLOC_METADATA,
	QCOW_PREALLOC_FALLOC,
	QCOW_PREALLOC_FULL
};

struct qcow_create_options {
	uint32_t struct_size;
	uint64_t virtual_size; /* any number of bytes */
	uint32_t version;      /* 2 or 3 */
	uint64_t cluster_size; /* power of two, 512 to 2 MiB */
	uint32_t refcount_bits; /* 1, 2, 4, 8, 16, 32, 64; version 2: 16 */
	enum qcow_compression compression;
	enum qcow_preallocation preallocation;
	bool extended_l2, lazy_refcounts, data_file_raw;
	bool keep_data_file; /* the data file's content stays and becomes the disk (raw data files) */
	const char *backing_name, *backing_format; /* recorded; nothing is opened */
	const char *data_file_name;		   /* recorded */
	struct qcow_progress progress;
	/* Flush the stores before sector 0 is written and after it: a crash then leaves no image or a whole
	 * one. Without it nothing is flushed. */
	bool durable;
	/* Guest data is encrypted with `secret`, which is used by the call that takes the options alone. LUKS
	 * has the options below, whose names are those of qemu-img ("aes-256", "xts", "plain64" or "essiv",
	 * "sha256", 2000 ms of deriving a key); NULL and 0: these defaults. AES is old and weak. */
	enum qcow_encryption encryption;
	struct qcow_secret secret;
	const char *luks_cipher, *luks_mode, *luks_ivgen, *luks_ivgen_hash, *luks_hash;
	uint32_t luks_iter_time_ms; /* QCOW_LUKS_ITER_LEAST: as few iterations as LUKS allows, 1000 */
	/*
	 * What is made: NULL or "qcow2", or "luks": a LUKS version 1 file, the disk behind its header, whole
	 * sectors of 512 bytes. It takes virtual_size, preallocation (off, falloc, full), progress, durable,
	 * secret and the luks_ options; the others must have their defaults. What nobody writes of such a disk
	 * does not read as zeros: qcow_builder_zero stores them.
	 */
	const char *format;
	/* luks: `store` gets the header alone, and `data_store`, if there is one, the disk. */
	bool luks_detached_header;
	/* luks: the file is there and keeps its header and its length; `secret` opens it, and the builder writes
	 * over the disk, whose size virtual_size may not exceed. */
	bool luks_keep;
};
#define QCOW_LUKS_ITER_LEAST UINT32_MAX
#ifdef __cplusplus
/* C++ has no designated initialisers before C++20 */
static inline struct qcow_create_options qcow_create_options_init(void)
{
	struct qcow_create_options o = {};
	o.struct_size = sizeof(o);
	o.version = 3;
	o.cluster_size = 65536;
	o.refcount_bits = 16;
	return o;
}
#define QCOW_CREATE_OPTIONS_INIT qcow_create_options_init()
#else
#define QCOW_CREATE_OPTIONS_INIT                                                                   \
	{                                                                                          \
		.struct_size = sizeof(struct qcow_create_options), .version = 3,                   \
		.cluster_size = 65536, .refcount_bits = 16                                         \
	}
#endif

/* Are the options consistent and within the format's limits? Touches nothing.
 * QCOW_E_INVAL or QCOW_E_UNSUPPORTED with a sentence that names the option, QCOW_E_LIMIT where the size
 * is more than the format can map with this cluster size or the names do not fit the first cluster. */
QCOW_EXPORT enum qcow_status qcow_create_validate(const struct qcow_create_options *options,
	struct qcow_error *err) QCOW_MUST_USE;

/* Bytes of the LUKS header and its key slots that an image with these options has: in a LUKS file the disk begins
 * there. Needs no secret. QCOW_E_UNSUPPORTED, QCOW_E_INVAL. */
QCOW_EXPORT enum qcow_status qcow_luks_header_bytes(const struct qcow_create_options *options,
	uint64_t *bytes, struct qcow_error *err) QCOW_MUST_USE;

/*
 * Write an empty image into `store` (emptied first) and with data_file_name its data into
 * `data_store` (else NULL). The header is written last. Both stores stay the caller's. Not flushed unless
 * options->durable.
 */
QCOW_EXPORT enum qcow_status qcow_create(struct qcow_store *store, struct qcow_store *data_store,
	const struct qcow_create_options *options, struct qcow_error *err) QCOW_MUST_USE;

/*
 * A builder writes a new image front to back. Guest offsets of its calls never decrease and ranges
 * never overlap; they are multiples of the cluster size, and so are lengths unless the range ends at
 * the end of the disk. What is never mentioned is unallocated. Nothing can open the file before
 * qcow_builder_finish: sector 0 is written last.
 */
QCOW_EXPORT enum qcow_status qcow_builder_new(struct qcow_store *store, struct qcow_store *data_store,
	const struct qcow_create_options *options, struct qcow_builder **out,
	struct qcow_error *err) QCOW_MUST_USE;

/* Reserve host clusters for a run of plain guest clusters. They are contiguous on the host from
 * *host_off for *run_bytes <= len bytes (whole clusters, or up to the end of the disk); call again for
 * the rest. The caller fills [*host_off, +run_bytes) of the (data) store before finish, from any
 * thread; the builder itself fills the rest of a last partial cluster with zeros. */
QCOW_EXPORT enum qcow_status qcow_builder_reserve(struct qcow_builder *builder, uint64_t off, uint64_t len,
	uint64_t *host_off, uint64_t *run_bytes, struct qcow_error *err) QCOW_MUST_USE;

/* Write `len` bytes of the disk at `off` to `host_off` of the (data) store, both from within one answer of
 * qcow_builder_reserve: encrypted where the image is. Encrypted data comes in whole sectors of 512 bytes, up
 * to the end of the disk. Any thread. QCOW_E_INVAL (no whole sectors), errors of the store. */
QCOW_EXPORT enum qcow_status qcow_builder_write(struct qcow_builder *builder, uint64_t off,
	uint64_t host_off, const void *buf, size_t len, struct qcow_error *err) QCOW_MUST_USE;

/* One compressed cluster: `data` is its raw deflate stream or zstd frame, smaller than a cluster.
 * Extents are packed by byte. The builder may gather them: they are on the store after finish. */
QCOW_EXPORT enum qcow_status qcow_builder_compressed(struct qcow_builder *builder, uint64_t off,
	const void *data, size_t len, struct qcow_error *err) QCOW_MUST_USE;

/* A run that reads as zeros whatever the backing file holds. Version 2 with a backing file has no way
 * to say so: the builder then allocates and writes zeros. */
QCOW_EXPORT enum qcow_status qcow_builder_zero(struct qcow_builder *builder, uint64_t off, uint64_t len,
	struct qcow_error *err) QCOW_MUST_USE;

struct qcow_bitmap_options {
	uint32_t struct_size;
	const char *name;	   /* 1 to 1023 bytes */
	uint32_t granularity_bits; /* 9 to 31 */
	bool is_auto;		   /* enabled: writers of the disk mark what they write */
};
#ifdef __cplusplus
/* C++ has no designated initialisers before C++20 */
static inline struct qcow_bitmap_options qcow_bitmap_options_init(void)
{
	struct qcow_bitmap_options o = {};
	o.struct_size = sizeof(o);
	o.granularity_bits = 16;
	return o;
}
#define QCOW_BITMAP_OPTIONS_INIT qcow_bitmap_options_init()
#else
#define QCOW_BITMAP_OPTIONS_INIT                                                                   \
	{                                                                                          \
		.struct_size = sizeof(struct qcow_bitmap_options), .granularity_bits = 16          \
	}
#endif

/* Begin a persistent bitmap of the new disk (version 3), clean throughout, and end the one before. At any time
 * before finish. QCOW_E_INVAL, QCOW_E_EXIST (the name), QCOW_E_LIMIT, QCOW_E_NOMEM, errors of the store. */
QCOW_EXPORT enum qcow_status qcow_builder_bitmap(struct qcow_builder *builder,
	const struct qcow_bitmap_options *options, struct qcow_error *err) QCOW_MUST_USE;

/* [off, +len) is dirty in the bitmap begun last. Offsets never decrease. */
QCOW_EXPORT enum qcow_status qcow_builder_bitmap_dirty(struct qcow_builder *builder, uint64_t off,
	uint64_t len, struct qcow_error *err) QCOW_MUST_USE;

/* Write the tables, then sector 0. The builder is freed, on failure too. Flushed with `durable` only: then what
 * the caller wrote to the stores before this call is stable as well. */
QCOW_EXPORT enum qcow_status qcow_builder_finish(struct qcow_builder *builder,
	struct qcow_error *err) QCOW_MUST_USE;

/* Free the builder; the file is left without a header. NULL is allowed. */
QCOW_EXPORT void qcow_builder_abandon(struct qcow_builder *builder);

/* ---- codecs: one whole cluster in, one whole cluster out ---- */

struct qcow_codec;
/* A context for one thread. `level` -1 = the default. QCOW_E_INVAL, QCOW_E_NOMEM. */
QCOW_EXPORT enum qcow_status qcow_codec_new(enum qcow_compression compression, size_t cluster_size,
	int level, struct qcow_codec **out, struct qcow_error *err) QCOW_MUST_USE;
QCOW_EXPORT void qcow_codec_free(struct qcow_codec *codec);
/* Compress cluster_size bytes into `out` (room for cluster_size - 1 bytes). *out_len is 0 where the
 * result would not be smaller than the cluster: store it plainly. */
QCOW_EXPORT enum qcow_status qcow_codec_compress(struct qcow_codec *codec, const void *in, void *out,
	size_t *out_len, struct qcow_error *err) QCOW_MUST_USE;
/* Decode `in` to exactly cluster_size bytes. Trailing bytes of `in` are ignored; decoding stops after
 * a cluster. QCOW_E_CORRUPT with QCOW_FINDING_COMPRESSED_STREAM. */
QCOW_EXPORT enum qcow_status qcow_codec_decompress(struct qcow_codec *codec, const void *in, size_t in_len,
	void *out, struct qcow_error *err) QCOW_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
