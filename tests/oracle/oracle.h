/* SPDX-License-Identifier: MIT */
/*
 * A reader of qcow2 images that judges ours: written from the specification alone
 * (docs/interop/qcow2.rst of QEMU), sharing not a line with the library. It is meant to be
 * obviously right, not fast: whole tables are held in memory, at most 1 GiB of them. What it
 * does not understand it refuses, with exit status 1.
 *
 * image.c, guest.c, crypt.c and check.c are a library too (oracle_core), for tests that judge images in memory,
 * thousands a second. Whoever links it defines refuse(), which does not return: the program ends, or the
 * thread that asked does. Memory stays taken until forget(). One thread at a time.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* incompatible_features */
#define INCOMPAT_DIRTY	     (UINT64_C(1) << 0)
#define INCOMPAT_CORRUPT     (UINT64_C(1) << 1)
#define INCOMPAT_DATA_FILE   (UINT64_C(1) << 2)
#define INCOMPAT_COMPRESSION (UINT64_C(1) << 3)
#define INCOMPAT_EXTENDED_L2 (UINT64_C(1) << 4)
#define INCOMPAT_KNOWN	     UINT64_C(0x1f)
/* autoclear_features */
#define AUTOCLEAR_BITMAPS  (UINT64_C(1) << 0)
#define AUTOCLEAR_RAW_DATA (UINT64_C(1) << 1)

/* L1 and L2 table entries */
#define ENTRY_COPIED	 (UINT64_C(1) << 63)
#define ENTRY_COMPRESSED (UINT64_C(1) << 62)
#define ENTRY_ZERO	 (UINT64_C(1) << 0)
#define ENTRY_OFFSET	 UINT64_C(0x00fffffffffffe00) /* bits 9-55 */

struct snapshot {
	uint64_t l1_off, disk_bytes, vm_state_bytes;
	uint32_t n_l1, date_seconds;
	char *id, *name;
	size_t id_bytes, name_bytes;
};

struct bitmap {
	uint64_t table_off;
	uint32_t n_table, flags, extra_bytes;
	uint8_t type, granularity_bits;
	char *name;
	size_t name_bytes;
};

/* Bytes of a file or, where fd is -1, in memory. */
struct file {
	int fd;
	const uint8_t *bytes;
	uint64_t n_bytes;
};

/* Of the guest's data; n_bytes 0: none. */
struct image_key {
	uint8_t bytes[64];
	uint64_t n_bytes;
	bool is_xts, by_guest;
};

struct image {
	const char *path;
	struct file file, data; /* data: the external data file; data.fd is -1 until it is opened */
	uint64_t file_bytes;

	uint32_t version, cluster_bits, crypt_method, n_l1, n_rt_clusters, n_snapshots;
	uint64_t backing_off, disk_bytes, l1_off, rt_off, snapshots_off;
	uint32_t backing_bytes, refcount_order, header_bytes, compression;
	uint64_t incompatible, compatible, autoclear;

	char *backing, *backing_format, *data_file; /* NULL: not recorded */
	bool has_bitmaps, has_crypto;
	uint32_t n_bitmaps, n_unknown_extensions;
	uint64_t bitmap_dir_off, bitmap_dir_bytes, crypto_off, crypto_bytes;

	uint64_t cluster_bytes, n_l2; /* n_l2: entries in an L2 table */
	bool extended_l2, has_data_file;
	uint64_t snapshots_bytes; /* of the snapshot table, without padding after the last entry */
	struct snapshot *snapshots;
	struct bitmap *bitmaps;
	/* NULL, or what is wrong with the table; the structures are then not filled */
	const char *snapshots_error, *bitmaps_error;

	struct image_key key; /* image_unlock() */

	/* caches of one L2 table and one decompressed cluster */
	uint64_t *l2, l2_off;
	uint8_t *plain, *packed;
	uint64_t plain_entry;
};

/* What is read: the active disk or a snapshot. */
struct view {
	const uint64_t *l1;
	uint64_t n_l1, disk_bytes;
};

/* RESERVED: a subcluster that is not allocated, of a cluster that has its place in the file */
enum kind {
	UNALLOCATED,
	RESERVED,
	ZERO,
	ZERO_ALLOCATED,
	DATA,
	COMPRESSED
};

struct run {
	enum kind kind;
	uint64_t bytes; /* from the offset asked for; never past the end of the disk */
	uint64_t
		host; /* RESERVED, ZERO_ALLOCATED, DATA: where it begins; COMPRESSED: of the stream */
	uint64_t packed_bytes; /* COMPRESSED: up to the end of the last sector */
	uint64_t entry; /* the L2 entry */
	uint64_t within; /* of the offset asked for, in its cluster */
	uint64_t guest; /* the offset asked for */
};

/* oracle.c, or whoever links the library */
_Noreturn void refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* image.c */
/* Zeros, until forget() frees all that was taken. */
void *take(uint64_t n, uint64_t each_bytes);
void forget(void);
uint64_t be(const uint8_t *p, unsigned bytes);
/* Fills the buffer: what lies past the end of the file is zero. Gives the bytes that were there. */
uint64_t read_at(const struct file *file, void *buf, uint64_t bytes, uint64_t off);
/* A table of 64-bit numbers; what lies past the end of the file is zero. */
uint64_t *read_words(const struct image *img, uint64_t off, uint64_t n);
struct image *image_open(const char *path);
/* An image in memory; its data file, if it names one, cannot be read but by image_data_bytes. */
struct image *image_open_bytes(const uint8_t *bytes, uint64_t n_bytes);
/* The data file of such an image is in memory too. */
void image_data_bytes(struct image *img, const uint8_t *bytes, uint64_t n_bytes);
/* A name recorded in an image, relative to that image's folder. */
char *beside(const char *image_path, const char *name);

/* guest.c */
/* snapshot: NULL for the active disk, else an id or a name */
struct view image_view(const struct image *img, const char *snapshot);
struct run resolve(struct image *img, const struct view *view, uint64_t off);
void read_run(struct image *img, const struct run *run, uint8_t *buf, uint64_t bytes);
/* NULL, or what the specification forbids in an entry without ENTRY_COMPRESSED. */
const char *entry_fault(const struct image *img, uint64_t entry, uint64_t bits);
/* Where a compressed cluster lies, for an entry with ENTRY_COMPRESSED. */
void compressed_extent(const struct image *img, uint64_t entry, uint64_t *off, uint64_t *bytes);

/* crypt.c */
/* From now on read_run() decrypts; a passphrase that opens nothing is refused. */
void image_unlock(struct image *img, const char *passphrase);
/* read_run() of a run that is DATA. */
void read_encrypted(struct image *img, const struct file *file, const struct run *run, uint8_t *buf,
	uint64_t bytes);

/* check.c */
struct verdict {
	uint64_t n_clusters, n_under, n_leaks, n_copied_set, n_copied_missing, n_overlaps, n_bad,
		n_past_end;
	char first
		[160]; /* the first line about something that is neither a leak nor past the end, or "" */
};

/* Fills the verdict; writes what is wrong and the totals to `out` unless that is NULL. Gives the exit status:
 * 0 clean, 2 corrupt, 3 leaks. */
int check(struct image *img, struct verdict *verdict, FILE *out);

#endif
