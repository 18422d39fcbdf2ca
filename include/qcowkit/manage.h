/* SPDX-License-Identifier: MIT */
/*
 * Operations that manage an image which is open for writing (QCOW_OPEN_WRITE).
 *
 * Each is wholly done or not at all, whenever a crash comes, and stable when it returns QCOW_OK. Each is alone: calls on
 * guest data of the same image wait until it is through, on any number of threads, and it waits for those under way; two
 * operations run one after the other. Walks, checks and bitmap readers of the image are the caller's to keep away, and
 * what qcow_get_* gave before (strings, extensions) is gone afterwards. Callbacks must not use the image.
 *
 * (But qcow_repair and its undoing work on a store that nobody has open as an image.)
 *
 * A failure leaves the image as it was. Where it is uncertain what the disk has, the image is fenced as after a failed
 * flush: qcow_recover then brings back the state before the operation.
 */
#ifndef QCOWKIT_MANAGE_H
#define QCOWKIT_MANAGE_H

#include <qcowkit/qcowkit.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- snapshots ---- */

#define QCOW_SNAPSHOT_NAME_BYTES \
	255 /* the longest name that is written: other programs cut what is longer */

struct qcow_snapshot_create_options {
	uint32_t struct_size;
	const char *name; /* not unique, and may be "": the id tells snapshots apart. NULL: "" */
	const char *id; /* NULL: one more than the largest number among the ids */
	bool has_date; /* date_sec (since 1970) and date_nsec; without it: now */
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_nsec; /* how long the guest has run */
	uint64_t icount; /* instructions that it has run; 0 is what other programs write for none */
	struct qcow_progress progress;
};
#ifdef __cplusplus
static inline struct qcow_snapshot_create_options qcow_snapshot_create_options_init(void)
{
	struct qcow_snapshot_create_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_SNAPSHOT_CREATE_OPTIONS_INIT qcow_snapshot_create_options_init()
#else
#define QCOW_SNAPSHOT_CREATE_OPTIONS_INIT                                  \
	{                                                                  \
		.struct_size = sizeof(struct qcow_snapshot_create_options) \
	}
#endif

/* What names a snapshot. Of several with one name the first in the table is meant. */
enum qcow_snapshot_key {
	QCOW_SNAPSHOT_ID_OR_NAME =
		0, /* the one with this id; where there is none, with this name */
	QCOW_SNAPSHOT_ID,
	QCOW_SNAPSHOT_NAME,
	QCOW_SNAPSHOT_NAME_OR_ID
};

/*
 * Make a snapshot of the disk as it is, at the end of the table, without VM state. QCOW_E_EXIST (the id),
 * QCOW_E_INVAL (a name or id that is too long), QCOW_E_LIMIT (65,536 snapshots, a table of 64 MiB, or a cluster that can
 * have no more references: always so with 1-bit refcounts where anything is allocated), QCOW_E_CORRUPT with a finding,
 * QCOW_E_NOSPC, QCOW_E_UNSUPPORTED (a data file), QCOW_E_CANCELLED, QCOW_E_READONLY, errors of the store.
 */
QCOW_EXPORT enum qcow_status qcow_snapshot_create(struct qcow_image *image,
	const struct qcow_snapshot_create_options *options, struct qcow_error *err) QCOW_MUST_USE;

/*
 * The disk is again what it was when the snapshot was made, its size too (version 3). The snapshot stays. Enabled
 * bitmaps record a change of everything. QCOW_E_NOENT; QCOW_E_UNSUPPORTED: the size would change in version 2, or in an
 * image with bitmaps; and the errors of qcow_snapshot_create.
 */
QCOW_EXPORT enum qcow_status qcow_snapshot_apply(struct qcow_image *image, const char *key,
	enum qcow_snapshot_key how, const struct qcow_progress *progress,
	struct qcow_error *err) QCOW_MUST_USE;

/* Delete n snapshots, all or none, in one pass. Two keys that mean one snapshot: QCOW_E_INVAL. Errors as above. */
QCOW_EXPORT enum qcow_status qcow_snapshot_delete(struct qcow_image *image, const char *const *keys,
	size_t n, enum qcow_snapshot_key how, const struct qcow_progress *progress,
	struct qcow_error *err) QCOW_MUST_USE;

/* Give a snapshot another name; everything else of its entry is kept byte for byte. Errors as above. */
QCOW_EXPORT enum qcow_status qcow_snapshot_rename(struct qcow_image *image, const char *key,
	enum qcow_snapshot_key how, const char *name, struct qcow_error *err) QCOW_MUST_USE;

enum qcow_snapshot_act {
	QCOW_SNAPSHOT_CREATE = 1,
	QCOW_SNAPSHOT_APPLY,
	QCOW_SNAPSHOT_DELETE
};

/*
 * Would qcow_snapshot_create (no keys), qcow_snapshot_apply (one key) or qcow_snapshot_delete do it? Nothing changes, and the
 * image may be open read-only; every table that the operation would read is read and counted. QCOW_OK, or the error that it would
 * answer; what only writing can meet (a full host) is not foreseen. Of an image that is marked dirty and not open for
 * writing nothing is counted. QCOW_E_INVAL (an act that is none, keys that do not go with it), QCOW_E_CANCELLED.
 */
QCOW_EXPORT enum qcow_status qcow_snapshot_judge(struct qcow_image *image,
	enum qcow_snapshot_act act, const char *const *keys, size_t n, enum qcow_snapshot_key how,
	const struct qcow_progress *progress, struct qcow_error *err) QCOW_MUST_USE;

/* The state of a machine that an image, or the snapshot that it was opened with, was saved with: it lies behind the disk. Its
 * length is vm_state_size of struct qcow_snapshot; past it are zeros. Backing files hold none. QCOW_E_NOTSUP (raw, a data
 * file), QCOW_E_RANGE, errors of qcow_pread. Specification: "Snapshots", bytes 32 to 35. */
QCOW_EXPORT enum qcow_status qcow_read_vm_state(struct qcow_image *image, void *buf, size_t len,
	uint64_t off, struct qcow_error *err) QCOW_MUST_USE;

/* Write a machine's state, of which the next snapshot keeps a copy; nothing of the disk or of a bitmap changes. Alone with the
 * image, and stable on return. QCOW_E_LIMIT (an L1 table over 32 MiB), as reading, errors of qcow_pwrite. */
QCOW_EXPORT enum qcow_status qcow_write_vm_state(struct qcow_image *image, const void *buf,
	size_t len, uint64_t off, struct qcow_error *err) QCOW_MUST_USE;

/* ---- bitmaps ---- */

enum qcow_bitmap_act {
	QCOW_BITMAP_ADD = 1,	/* a new one, clear and enabled */
	QCOW_BITMAP_REMOVE,	/* also one that is marked in use, which nothing else may be done to */
	QCOW_BITMAP_REMOVE_ALL, /* those too; none there is no failure */
	QCOW_BITMAP_CLEAR,	/* all of it is clean */
	QCOW_BITMAP_ENABLE,	/* it records what is written from now on */
	QCOW_BITMAP_DISABLE,
	QCOW_BITMAP_MERGE	/* what is dirty in the source becomes dirty in it; granularities may differ */
};

struct qcow_bitmap_action {
	enum qcow_bitmap_act act;
	const char *name;	   /* of the bitmap, 1 to 1023 bytes; not for REMOVE_ALL */
	uint32_t granularity_bits; /* ADD: 9 to 31; 0: the cluster size, but at least 4 KiB and at most 64 KiB */
	const char *source;	   /* MERGE: the name of the bitmap that is added */
	struct qcow_image *source_image; /* MERGE: the image that has it, of a disk of the same size; NULL: the same image */
};

struct qcow_bitmap_edit_options {
	uint32_t struct_size;
	bool dry_run; /* say whether it could be done, and change nothing; the image may be open read-only */
	struct qcow_progress progress; /* cancelling ends it before it is done, or not at all */
};
#ifdef __cplusplus
/* C++ has no designated initialisers before C++20 */
static inline struct qcow_bitmap_edit_options qcow_bitmap_edit_options_init(void)
{
	struct qcow_bitmap_edit_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_BITMAP_EDIT_OPTIONS_INIT qcow_bitmap_edit_options_init()
#else
#define QCOW_BITMAP_EDIT_OPTIONS_INIT                                 \
	{                                                             \
		.struct_size = sizeof(struct qcow_bitmap_edit_options) \
	}
#endif

/*
 * The actions, in their order, on the persistent bitmaps of a version 3 image: all of them or none. Bitmaps that record
 * writes are stored first. `options` NULL: the defaults. `failed` (or NULL) gets, on failure, the index of the action
 * that could not be done, n_actions where it was none of them. Memory does not grow with the disk.
 * Meanwhile no other thread may call anything about bitmaps of this image (qcow_get_bitmap and its kin), and readers of them
 * are closed before: indices, strings and readers from before a call that succeeds mean nothing afterwards.
 * QCOW_E_NOENT (no such bitmap), QCOW_E_EXIST, QCOW_E_INVAL (names, granularity, disks of different sizes), QCOW_E_LIMIT
 * (65,535 bitmaps, 64 MiB of directory, 512 MiB of bits in a bitmap, 1 GiB in all enabled ones), QCOW_E_CORRUPT with
 * finding BITMAP_INCONSISTENT (marked in use) or that of what is damaged, QCOW_E_UNSUPPORTED (version 2; extra data
 * that nobody may ignore), QCOW_E_NOTSUP (no qcow2 image), QCOW_E_READONLY, QCOW_E_CANCELLED, QCOW_E_NOSPC, QCOW_E_IO,
 * QCOW_E_NOMEM. Specification: "Bitmaps extension", "Bitmaps".
 */
QCOW_EXPORT enum qcow_status qcow_bitmap_edit(struct qcow_image *image,
	const struct qcow_bitmap_action *actions, size_t n_actions,
	const struct qcow_bitmap_edit_options *options, size_t *failed,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- size and options ---- */

struct qcow_resize_options {
	uint32_t struct_size;
	bool shrink; /* the disk may become shorter: what lies past its new end is lost */
	bool dry_run; /* say whether it could be done, and change nothing; the image may be open read-only */
	enum qcow_preallocation
		preallocation; /* of what a disk that grows gets (raw: not METADATA) */
	struct qcow_progress progress; /* cancelling ends it before it is done, or not at all */
};
#ifdef __cplusplus
/* C++ has no designated initialisers before C++20 */
static inline struct qcow_resize_options qcow_resize_options_init(void)
{
	struct qcow_resize_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_RESIZE_OPTIONS_INIT qcow_resize_options_init()
#else
#define QCOW_RESIZE_OPTIONS_INIT                                  \
	{                                                         \
		.struct_size = sizeof(struct qcow_resize_options) \
	}
#endif

/*
 * The disk has `size` bytes from now on, any number of them. What is new reads as zeros, also where a backing file
 * that is longer than the disk was would show, and where an earlier disk of this image ended later. Snapshots keep the
 * sizes of their disks. Bitmaps follow: enabled ones have the new part dirty, others have it clean. options NULL: the
 * defaults.
 * A data file becomes as long as the disk, or stays a device that is long enough; a new part of a raw one has all its clusters.
 * What an image that shrinks held past its new end is free afterwards; where that fails (the host is full, a
 * failing disk) it is called done all the same, the log tells, and the next grow puts the rest away.
 * QCOW_E_INVAL (shorter without `shrink`; preallocation while shrinking; a backing file that is not open); QCOW_E_LIMIT (an L1 table or a
 * bitmap would be too large; more than 2^63 - 1 bytes); QCOW_E_UNSUPPORTED (version 2 with snapshots, snapshots or bitmaps that could not
 * follow); QCOW_E_NOTSUP (a store of fixed size, a part of a raw disk); QCOW_E_POLICY (the data file was not opened); QCOW_E_CORRUPT with finding (a table past the end that
 * cannot be read), QCOW_E_READONLY, QCOW_E_NOSPC, QCOW_E_IO, QCOW_E_NOMEM, QCOW_E_CANCELLED.
 */
QCOW_EXPORT enum qcow_status qcow_resize(struct qcow_image *image, uint64_t size,
	const struct qcow_resize_options *options, struct qcow_error *err) QCOW_MUST_USE;

enum qcow_amend_switch {
	QCOW_AMEND_KEEP = 0,
	QCOW_AMEND_ON,
	QCOW_AMEND_OFF
};

struct qcow_amend_options {
	uint32_t struct_size;
	bool dry_run;		/* say whether it could be done, and change nothing; the image may be open read-only */
	uint32_t version;	/* 2 or 3; 0: stays */
	uint32_t refcount_bits; /* 1, 2, 4, … 64; 0: stays */
	enum qcow_amend_switch lazy_refcounts;
	enum qcow_amend_switch data_file_raw; /* ON is for images that have it already */
	const char *data_file_name; /* to record for the data file that there is; NULL: stays */
	struct qcow_progress progress; /* of the longest steps */
};
#ifdef __cplusplus
static inline struct qcow_amend_options qcow_amend_options_init(void)
{
	struct qcow_amend_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_AMEND_OPTIONS_INIT qcow_amend_options_init()
#else
#define QCOW_AMEND_OPTIONS_INIT                             \
	{                                                   \
		.struct_size = sizeof(struct qcow_amend_options) \
	}
#endif

/*
 * Change options of a qcow2 image. The disk, the snapshots and the bitmaps stay what they are. All that was asked for is
 * judged before the first change; each change is then wholly done or not at all, one after the other: to
 * version 3, lazy refcounts, the data file, refcounts, to version 2. Version 2 has no zero clusters: where a backing file
 * could show they become clusters of zeros.
 * QCOW_E_INVAL (a number out of range); QCOW_E_UNSUPPORTED (what version 2 has not: other widths than 16 bits, lazy refcounts,
 * bitmaps, data files, compression types, extended L2 entries, snapshots of other sizes); QCOW_E_LIMIT (a refcount that the new
 * width cannot hold); QCOW_E_NOTSUP (no qcow2 image), QCOW_E_CORRUPT with finding, QCOW_E_READONLY, QCOW_E_NOSPC, QCOW_E_IO,
 * QCOW_E_NOMEM, QCOW_E_CANCELLED.
 */
QCOW_EXPORT enum qcow_status qcow_amend(struct qcow_image *image,
	const struct qcow_amend_options *options, struct qcow_error *err) QCOW_MUST_USE;

/* ---- LUKS key slots ---- */

#define QCOW_LUKS_SLOTS	   8
#define QCOW_LUKS_ANY_SLOT (-1)

enum qcow_key_action {
	QCOW_KEY_NONE = 0,
	QCOW_KEY_ADD = 1,
	QCOW_KEY_ERASE
};

struct qcow_key_options {
	uint32_t struct_size;
	enum qcow_key_action action;
	int slot;		     /* 0 to 7, or QCOW_LUKS_ANY_SLOT: a free one; those that old_secret opens */
	struct qcow_secret new_secret; /* ADD: opens the slot from now on */
	struct qcow_secret old_secret; /* ERASE: all slots that it opens (with `slot`: that one, if it does); data NULL: none */
	uint32_t iter_time_ms;	     /* ADD: that opening the slot takes this machine; 0 = 2000; QCOW_LUKS_ITER_LEAST */
	bool force; /* ERASE also the last slot, after which nothing opens the image any more; ADD over an active slot */
	bool dry_run;
	struct qcow_progress progress; /* cancelled before anything is written, or not at all */
};
#ifdef __cplusplus
static inline struct qcow_key_options qcow_key_options_init(void)
{
	struct qcow_key_options o = {};
	o.struct_size = sizeof(o);
	o.slot = QCOW_LUKS_ANY_SLOT;
	return o;
}
#define QCOW_KEY_OPTIONS_INIT qcow_key_options_init()
#else
#define QCOW_KEY_OPTIONS_INIT                                                                  \
	{                                                                                      \
		.struct_size = sizeof(struct qcow_key_options), .slot = QCOW_LUKS_ANY_SLOT \
	}
#endif

/*
 * Add a passphrase to an image that is encrypted with LUKS and open with one of its passphrases, or erase some. qcow2 images,
 * LUKS files and detached headers. The disk stays as it is. In no state that a crash may leave is a slot active whose
 * key is not there, or the last one gone; an active slot that is overwritten (`force`) may be the one that a crash loses, and
 * only beside another. The key material of an erased slot is overwritten after it was made inactive.
 * QCOW_E_NOTSUP (not LUKS), QCOW_E_INVAL (slot, secrets), QCOW_E_EXIST (the slot is active; none is free), QCOW_E_NOENT (no slot
 * fits; it is inactive), QCOW_E_POLICY (the last slot, and no `force`), QCOW_E_LIMIT, QCOW_E_READONLY, QCOW_E_IO, QCOW_E_NOMEM,
 * QCOW_E_CANCELLED. After a failure of the host the slot may be as it was, or as it was to be.
 */
QCOW_EXPORT enum qcow_status qcow_amend_keys(struct qcow_image *image,
	const struct qcow_key_options *options, struct qcow_error *err) QCOW_MUST_USE;

/* ---- repair ---- */

enum qcow_repair_mode {
	QCOW_REPAIR_LEAKS = 1, /* lower refcounts that are above the references, and nothing else */
	QCOW_REPAIR_ALL = 2    /* whatever qcow_check finds and a repair can put right */
};

/*
 * The phases of a repair, in the order of the writes; a flush lies between one and the next. After a crash anywhere the
 * image is no worse than before, and repairing it again ends as the first repair would have.
 */
enum qcow_repair_phase {
	QCOW_REPAIR_UNLINK = 0, /* entries that cannot be are unlinked or mended, COPIED is cleared where it is wrong */
	QCOW_REPAIR_RAISE,	/* refcounts below the references are raised; or new structures are written */
	QCOW_REPAIR_HEADER,	/* one write of sector 0: tables that moved, lists that are shorter */
	QCOW_REPAIR_RELINK,	/* entries name the copies that were made for them */
	QCOW_REPAIR_LOWER,	/* refcounts above the references are lowered */
	QCOW_REPAIR_COPIED,	/* COPIED is set where it is missing */
	QCOW_REPAIR_FINISH,	/* the dirty and the corrupt bit are cleared, where the image is clean */
	QCOW_REPAIR_PHASES
};

enum qcow_repair_kind {
	QCOW_REPAIR_L1_ENTRY = 1,
	QCOW_REPAIR_L2_ENTRY,	  /* of an extended one, either word */
	QCOW_REPAIR_BITMAP_ENTRY, /* of a bitmap's table */
	QCOW_REPAIR_REFCOUNTS,	  /* 8 bytes of a refcount block */
	QCOW_REPAIR_HEADER_FIELD, /* 8 bytes of the header */
	QCOW_REPAIR_NEW_REFCOUNTS, /* a second refcount structure is written to free clusters; `off` says nothing */
	QCOW_REPAIR_NEW_L1,	  /* a new active L1 table, with what can be read of the old one */
	QCOW_REPAIR_NEW_SNAPSHOTS, /* a new snapshot table, without the snapshots whose L1 table is lost */
	QCOW_REPAIR_NEW_COPY	   /* a copy of what the entry at `off` names and cannot share; `now` says nothing */
};

/* One step of a plan: a word of 8 bytes that changes, or a structure that is written anew. */
struct qcow_repair_step {
	enum qcow_repair_phase phase;
	enum qcow_repair_kind kind;
	unsigned finding;  /* enum qcow_finding_id of what it is for, or 0 */
	uint64_t host_off; /* of the word, or QCOW_NO_OFFSET */
	uint64_t was, now; /* big-endian words as numbers; both 0 for new structures */
};

struct qcow_repair_options {
	uint32_t struct_size;
	enum qcow_repair_mode mode;
	bool dry_run;	       /* plan, tell, and write nothing */
	uint64_t memory_bytes; /* bound of all that is counted and planned; 0 = 64 MiB, at least 4 MiB */
	/* An empty store that can grow (it stays the caller's): every byte that is replaced is saved there, durably, before it
	 * is replaced. qcow_repair_undo puts them back. NULL: nothing is saved. */
	struct qcow_store *undo;
	/* What the check before the repair finds, at most max_findings of it (0: all). May be NULL. */
	void (*on_finding)(void *ctx, const struct qcow_finding *finding);
	uint64_t max_findings;
	/* Each step before anything of its round is written, in the order of the writes. May be NULL. */
	void (*on_step)(void *ctx, const struct qcow_repair_step *step);
	void *ctx;
	/* Cancelling is heeded while counting and planning, and between rounds; never within the writes of one. */
	struct qcow_progress progress;
};
#ifdef __cplusplus
/* C++ has no designated initialisers before C++20 */
static inline struct qcow_repair_options qcow_repair_options_init(void)
{
	struct qcow_repair_options o = {};
	o.struct_size = sizeof(o);
	o.mode = QCOW_REPAIR_ALL;
	return o;
}
#define QCOW_REPAIR_OPTIONS_INIT qcow_repair_options_init()
#else
#define QCOW_REPAIR_OPTIONS_INIT                                                                   \
	{                                                                                          \
		.struct_size = sizeof(struct qcow_repair_options), .mode = QCOW_REPAIR_ALL         \
	}
#endif

struct qcow_repair_result {
	struct qcow_check_result before, after; /* after a dry run both are the same */
	uint64_t leaks_fixed, corruptions_fixed; /* of those before */
	uint64_t n_steps;			 /* words that were changed, and structures written (dry run: would be) */
	uint32_t n_rounds;			 /* of planning and writing; a dry run plans the first */
	bool is_partial; /* dry run: there is more than one round plans */
};

/*
 * Check the image in `store` (which stays the caller's and must be writable, unless dry_run) and repair it, at best to
 * where qcow_check finds nothing. Nothing else may have it open. Opens no other file: neither backing file nor data
 * file is looked at, and no passphrase is wanted.
 *
 * What a repair does to content: an entry that cannot be right (unaligned, past the end of the file, on a structure) is
 * unlinked: its clusters read as zeros in version 3, as the backing file, or zeros without one, in version 2 and where
 * a whole L2 table is lost. An L2 table that two entries of the L1 table name, and a cluster that more entries name than
 * its refcount can count, are copied for those that cannot share them (up to the length of the file, or 64 MiB: what is more is
 * unlinked). A bitmap's entry that cannot be right becomes "all dirty"; a damaged bitmap directory
 * drops all bitmaps. Snapshots whose L1 table is lost are removed. Nothing else changes what the disk, a snapshot or a
 * bitmap says. Compressed streams that do not decode are left as they are.
 *
 * Mode LEAKS does nothing where references may be missing from the count because an entry or a table is damaged.
 * QCOW_OK also where something could not be repaired: see result->after. QCOW_E_IO and what qcow_open returns where the
 * header or a table cannot be read: then nothing was written. QCOW_E_READONLY, QCOW_E_NOSPC (no room for a second
 * refcount structure), QCOW_E_INVAL (undo store not empty), QCOW_E_CANCELLED, QCOW_E_NOMEM; errors of the store and
 * the undo store. `result` is set where the first check came to an end, on failure too.
 */
QCOW_EXPORT enum qcow_status qcow_repair(struct qcow_store *store, const struct qcow_repair_options *options,
	struct qcow_repair_result *result, struct qcow_error *err) QCOW_MUST_USE;

/*
 * Put back what a repair, also one that was cut short, has saved in `undo`, which must be writable, for how far it has come
 * is noted there: the image is byte for byte as it was before. Doing it again after a crash or a failure is right.
 * An image that was written to since is refused before anything is written: each sector that the repair
 * replaced must hold what it wrote there, and the file must be as long as it left it (after a repair that was cut short:
 * anything that it had there at any time). What it never wrote to is not looked at.
 * QCOW_E_FORMAT (`undo` holds no such record, or its start is damaged), QCOW_E_INVAL (it is of another image, or the
 * image was changed since), QCOW_E_READONLY, QCOW_E_LIMIT (sectors that lie close together were saved millions of times), errors of both stores.
 */
QCOW_EXPORT enum qcow_status qcow_repair_undo(struct qcow_store *store, struct qcow_store *undo,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- backing file ---- */

struct qcow_backing_options {
	uint32_t struct_size;
	const char *name; /* to record, at most 1023 bytes; NULL: none */
	const char *
		format; /* "qcow2", "raw", …, at most 15 bytes; NULL: none, and readers will not guess */
	bool dry_run; /* only say whether it can be done */
};
#ifdef __cplusplus
static inline struct qcow_backing_options qcow_backing_options_init(void)
{
	struct qcow_backing_options o = {};
	o.struct_size = sizeof(o);
	return o;
}
#define QCOW_BACKING_OPTIONS_INIT qcow_backing_options_init()
#else
#define QCOW_BACKING_OPTIONS_INIT                                  \
	{                                                          \
		.struct_size = sizeof(struct qcow_backing_options) \
	}
#endif

/*
 * Record another backing file, or none. Nothing is opened or compared: the disk reads the same only where the new file
 * holds what the old one did (qcow_rebase sees to that). The layers that are open below `image` stay what they are until
 * it is opened again. Header extensions, header bytes and feature bits that this version does not know stay.
 * QCOW_E_INVAL (arguments; a raw data file, beside which nothing may lie), QCOW_E_NOTSUP (no qcow2 image),
 * QCOW_E_READONLY, QCOW_E_FORMAT (a name no reader would take), QCOW_E_LIMIT (no room in the first cluster), errors of
 * the store. Specification: "Header", "Header extensions".
 */
QCOW_EXPORT enum qcow_status qcow_set_backing(struct qcow_image *image,
	const struct qcow_backing_options *options, struct qcow_error *err) QCOW_MUST_USE;

/*
 * The image gives up everything that it holds: its disk reads what lies below, and zeros where nothing does. Internal
 * snapshots stay; what it held in a data file becomes holes. For an overlay whose content is in its backing file: a
 * crash during the call leaves some of it in the image and some not. QCOW_E_CORRUPT with a finding: a damaged table,
 * nothing was done. QCOW_E_NOTSUP, QCOW_E_READONLY, errors of the store.
 */
QCOW_EXPORT enum qcow_status qcow_empty(
	struct qcow_image *image, struct qcow_error *err) QCOW_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
